"""ResNet101 with the CIFAR stem on 32×32 images, the default configuration.

    python main.py --config configs/resnet101_cifar10.py

Mean and standard deviation are of CIFAR-10's training images; labels are in the data set's order. Images of other sizes
are resized exactly as by transformers' CLIPImageProcessor, so that exported models can use it.
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
