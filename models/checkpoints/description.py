"""What a checkpoint tells of itself beside its tensors: how images are prepared, and what its classes are called."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """Facts under the names of the model configuration's fields; None, or no labels, where the checkpoint is silent.

    Attributes:
      image_size: height and width in pixels.
      crop_fraction: the centre square kept of an image whose shorter side was resized to image_size / crop_fraction.
      interpolation: how images are resized, by Pillow's name in lower case, such as `bicubic`.
      mean, std: per channel, of pixels scaled to 0…1.
      labels: class names in the order of the logits.
    """

    image_size: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] = ()

    def known(self) -> dict[str, Any]:
        """The facts that there are, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}
