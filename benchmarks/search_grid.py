"""A grid of 200 configurations of a small network, for `search_cost.py`: precision × batch × mesh × threads.

    python main.py --config benchmarks/search_grid.py --repeats 1 --output_dir runs/search-grid
    python benchmarks/search_cost.py --full runs/search-grid

With `--search auto` and another directory, the first command runs the search; docs/paper.md has the results of both.
"""

import dataclasses

from cambrian.commands.configuration import Preset
from cambrian.configs.resnet101_cifar10 import CONFIG as RESNET101

CONFIG = Preset(
    model=dataclasses.replace(RESNET101.model, depth=18),
    flags=(
        ("precision", "float32,bfloat16"),
        ("batch_size", "8,16,32,64"),
        ("mesh", "1x1,1x2,2x1,2x2,1x4"),
        ("threads", "1,2,4,8,16"),
        ("num_images", "256"),
    ),
)
