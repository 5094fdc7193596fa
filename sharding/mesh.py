"""The device mesh: a `model` axis that cuts layers and a `data` axis that cuts the batch."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from cambrian.sharding.errors import UsageError

MODEL_AXIS = "model"
DATA_AXIS = "data"


@dataclasses.dataclass(frozen=True, slots=True)
class MeshShape:
    """Sizes of the two mesh axes, written `MODELxDATA`.

    Raises:
      UsageError: if an axis is smaller than 1.
    """

    model: int
    data: int

    def __post_init__(self):
        if self.model < 1 or self.data < 1:
            raise UsageError(f"a mesh needs at least 1 device on each axis, got {self}")

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Reads `4x8`: 4 devices on the model axis, 8 on the data axis.

        Raises:
          UsageError: if the text has another form.
        """
        match = re.fullmatch(r"\s*(\d+)x(\d+)\s*", text)
        if match is None:
            raise UsageError(f"a mesh is written MODELxDATA, such as 4x8, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def num_devices(self) -> int:
        return self.model * self.data

    def check_batch_size(self, batch_size: int) -> None:
        """Raises UsageError unless the data axis cuts `batch_size` samples evenly."""
        if batch_size < 1 or batch_size % self.data:
            raise UsageError(
                f"batch_size must be a multiple of the data axis of {self.data} in mesh {self}, got {batch_size}"
            )

    def __str__(self) -> str:
        return f"{self.model}x{self.data}"


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """Lays the first `shape.num_devices` of `devices` out as a (model, data) mesh.

    The axes are Auto: under Explicit ones, the default of `jax.make_mesh`, convolutions raise.

    Raises:
      UsageError: if there are fewer devices.
    """
    if len(devices) < shape.num_devices:
        raise UsageError(f"mesh {shape} needs {shape.num_devices} devices, got {len(devices)}")
    grid = np.asarray(devices[: shape.num_devices]).reshape(shape.model, shape.data)
    return Mesh(grid, (MODEL_AXIS, DATA_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_shape(mesh: Mesh) -> MeshShape:
    """The sizes of a mesh that `make_mesh` made."""
    return MeshShape(mesh.shape[MODEL_AXIS], mesh.shape[DATA_AXIS])
