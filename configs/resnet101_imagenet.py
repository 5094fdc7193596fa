"""ResNet101 with the ImageNet stem (7×7, stride 2, max pooling) on 224×224 images, as ImageNet checkpoints expect it.

    python main.py --config configs/resnet101_imagenet.py --num_images 32

Preprocessing as in He et al., "Deep Residual Learning" (2016), and V1 of torchvision's weights: shorter side 256,
centre crop, mean and standard deviation of ImageNet.
"""

from cambrian.commands.configuration import ModelConfig, Preset
from cambrian.sharding import Preprocessing

CONFIG = Preset(
    model=ModelConfig(
        depth=101,
        stem="imagenet",
        num_classes=1000,
        preprocessing=Preprocessing(size=(224, 224), resize_to=(256, 256)),
    ),
)
