"""Random images, for measuring without data."""

import dataclasses

import numpy as np

from cambrian.commands.images.source import Image
from cambrian.sharding import Preprocessing


@dataclasses.dataclass(frozen=True, slots=True)
class SyntheticSource:
    """Uniform noise without labels; an image depends on seed, index and image size alone."""

    num_images: int
    seed: int

    @property
    def description(self) -> str:
        return f"synthetic images, seed {self.seed}"

    @property
    def class_names(self) -> None:
        return None

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int, preprocessing: Preprocessing) -> Image:
        shape = (*preprocessing.size, 3)
        pixels = np.random.default_rng((self.seed, index)).integers(256, size=shape, dtype=np.uint8)
        return Image(f"synthetic_{index:06d}", pixels, None)
