"""ResNet101 with the CIFAR stem on 32×32 images, as the default run uses it.

    python main.py --config configs/resnet101_cifar10.py

Mean and standard deviation are those of CIFAR-10's training images; labels in the data set's order.
"""

from cambrian.commands.configuration import ModelConfig, Preset

CONFIG = Preset(
    model=ModelConfig(
        depth=101,
        stem="cifar",
        num_classes=10,
        image_size=32,
        crop_fraction=1.0,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
)
