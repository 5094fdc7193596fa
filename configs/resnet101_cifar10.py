"""ResNet101 with the CIFAR stem on 32×32 images, as the default run uses it.

    python main.py --config configs/resnet101_cifar10.py

Mean and standard deviation of CIFAR-10's training images; labels in the data set's order. Images of other sizes are
resized as transformers' CLIPImageProcessor does, so that it can be told to do the same.
"""

from cambrian.commands.configuration import ModelConfig, Preset
from cambrian.sharding import Preprocessing

CONFIG = Preset(
    model=ModelConfig(
        depth=101,
        stem="cifar",
        num_classes=10,
        preprocessing=Preprocessing(
            size=(32, 32),
            resize_to=(32, 32),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            resampler="torch",
            offset_rounding="floor",
        ),
        labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
)
