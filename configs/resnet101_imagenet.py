"""ResNet101 with the ImageNet stem (7×7, stride 2, max pooling) on 224×224 images, as ImageNet checkpoints expect it.

    python main.py --config configs/resnet101_imagenet.py --num_images 32

Preprocessing as He et al., "Deep Residual Learning" (2016), and torchvision do at test time: shorter side 256, centre
crop.
"""

from cambrian.commands.configuration import ModelConfig, Preset

CONFIG = Preset(
    model=ModelConfig(
        depth=101,
        stem="imagenet",
        num_classes=1000,
        image_size=224,
        crop_fraction=0.875,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
)
