"""Trains ResNet101 with the CIFAR stem on CIFAR-10; designed for one current data-centre GPU.

    python main.py --mode train --config configs/train_resnet101_cifar10.py --data cifar10

The target is at least 94.5% top-1 in less than ten minutes. docs/training.md derives the estimate of the time.
"""

import dataclasses

from cambrian.configs.resnet101_cifar10 import CONFIG as INFERENCE
from cambrian.models.training.recipe import Recipe

CONFIG = dataclasses.replace(INFERENCE, flags=(("mode", "train"), ("precision", "bfloat16")))
# Linear scaling of the learning rate with the batch size, 0.1 per 128 images, and warm-up: Goyal et al.,
# arXiv:1706.02677.
RECIPE = Recipe(
    epochs=35,
    batch_size=512,
    optimizer="sgd",
    learning_rate=0.4,
    warmup_epochs=3.0,
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.1,
    crop_padding=4,
    flip=True,
    cutout_size=8,
    ema_decay=0.998,
    evaluate_every_epochs=5,
)
