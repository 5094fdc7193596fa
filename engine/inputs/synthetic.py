"""Random images, for measuring without data."""

import dataclasses

import numpy as np

from engine.inputs.source import Image


@dataclasses.dataclass(frozen=True, slots=True)
class SyntheticSource:
    """Uniform noise without labels; an image depends on seed, index and image size alone."""

    num_images: int
    image_size: int
    seed: int

    @property
    def description(self) -> str:
        return f"synthetic images, seed {self.seed}"

    @property
    def class_names(self) -> None:
        return None

    @property
    def has_labels(self) -> bool:
        return False

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Image:
        if not 0 <= index < self.num_images:
            raise IndexError(index)
        shape = (self.image_size, self.image_size, 3)
        pixels = np.random.default_rng((self.seed, index)).integers(256, size=shape, dtype=np.uint8)
        return Image(f"synthetic_{index:06d}", pixels, None)
