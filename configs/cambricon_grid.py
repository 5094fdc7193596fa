"""The paper's grid: five splits of 32 devices × 2 to 16 host threads, the model axis cutting within a sample.

    python main.py --config configs/cambricon_grid.py

40 configurations, run three times each; docs/paper.md shows what they came to. With `--partition auto` the planner may
turn the model axis into a second data axis. Launches are of 64 images, two for each device, so that 512 images give
several threads launches to overlap.
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
