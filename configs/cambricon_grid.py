"""The paper's grid: five splits of 32 devices × 2 to 16 host threads, with the model axis cutting within samples.

    python main.py --config configs/cambricon_grid.py

Runs 40 configurations three times each; docs/paper.md has the results. With `--partition auto` the planner may use the
model axis as a second data axis. A launch has 64 images, two per device, so that several threads can overlap launches
on 512 images.
"""

from cambrian.commands.configuration import Preset
from cambrian.configs.resnet101_cifar10 import CONFIG as RESNET101

CONFIG = Preset(
    model=RESNET101.model,
    flags=(
        ("mesh", "2x16,4x8,8x4,16x2,32x1"),
        ("threads", "2,4,6,8,10,12,14,16"),
        ("partition", "intra_sample"),
        ("batch_size", "64"),
    ),
)
