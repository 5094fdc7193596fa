"""The device mesh: a `model` axis that cuts layers and a `data` axis that cuts the batch."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

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
            raise UsageError(f"a mesh must have at least 1 device on each axis, got {self}")

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Parses `4x8`: 4 devices on the model axis, 8 on the data axis.

        Raises:
          UsageError: if the text has another form.
        """
        match = re.fullmatch(r"\s*(\d{1,9})x(\d{1,9})\s*", text)
        if match is None:
            raise UsageError(f"a mesh must be written MODELxDATA, such as 4x8, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def num_devices(self) -> int:
        return self.model * self.data

    def divided(self, processes: int) -> "MeshShape":
        """The part of each of several processes: the data axis is divided as far as it goes, then the model axis.

        Raises:
          UsageError: unless that gives equal parts.
        """
        along_data = math.gcd(self.data, processes)
        along_model = processes // along_data
        if self.model % along_model:
            raise UsageError(
                f"processes must divide mesh {self} into equal parts, the data axis as far as it goes, then the model "
                f"axis, got {processes}"
            )
        return MeshShape(self.model // along_model, self.data // along_data)

    def check_batch_size(self, batch_size: int) -> None:
        """Raises UsageError unless the data axis divides `batch_size`."""
        if batch_size < 1 or batch_size % self.data:
            raise UsageError(
                f"batch_size must be a multiple of the data axis of {self.data} in mesh {self}, got {batch_size}"
            )

    def __str__(self) -> str:
        return f"{self.model}x{self.data}"


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """Makes a (model, data) mesh of the first `shape.num_devices` devices.

    Devices of several processes, as many of each and one process after the other, are arranged so that each process
    has a block of the shape `shape.divided`. The axes are Auto: convolutions raise under Explicit axes, the default of
    `jax.make_mesh`.

    Raises:
      UsageError: if there are fewer devices, or the processes don't divide the mesh.
    """
    if len(devices) < shape.num_devices:
        raise UsageError(f"mesh {shape}: expected at least {shape.num_devices} devices, got {len(devices)}")
    devices = devices[: shape.num_devices]
    block = shape.divided(len({device.process_index for device in devices}))
    blocks = np.asarray(devices).reshape(shape.data // block.data, shape.model // block.model, block.model, block.data)
    grid = blocks.transpose(1, 2, 0, 3).reshape(shape.model, shape.data)
    return Mesh(grid, (MODEL_AXIS, DATA_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def shape_and_devices(mesh: Mesh) -> tuple[MeshShape, list[jax.Device]]:
    """Returns the axis sizes of any mesh with the axes `model` and `data`, and its devices as `make_mesh` takes them.

    Raises:
      UsageError: if the mesh has other axes, or runs over several processes.
    """
    if set(mesh.axis_names) != {MODEL_AXIS, DATA_AXIS}:
        raise UsageError(f"a mesh must have the axes {MODEL_AXIS} and {DATA_AXIS}, got {', '.join(mesh.axis_names)}")
    if mesh.is_multi_process:
        raise UsageError(f"a mesh must be of this process's devices, got one over several processes: {mesh}")
    grid = mesh.devices if mesh.axis_names[0] == MODEL_AXIS else mesh.devices.T
    return mesh_shape(mesh), list(grid.flat)


@contextlib.contextmanager
def without_context_mesh(but: Mesh | None = None) -> Iterator[None]:
    """Without the mesh of `jax.set_mesh`, as computations on other devices raise under it, unless it is `but`."""
    with contextlib.nullcontext() if jax.sharding.get_mesh() == but else jax.set_mesh(None):
        yield


def local_rows(mesh: Mesh, num_rows: int) -> range:
    """Returns the rows of a batch that the data axis gives to the devices of this process."""
    if not mesh.is_multi_process:
        return range(num_rows)
    here = mesh.local_mesh
    first = np.argwhere(mesh.devices == here.devices.flat[0])[0, 1]
    each = num_rows // mesh.shape[DATA_AXIS]
    return range(first * each, (first + here.shape[DATA_AXIS]) * each)


def crosses_model_axis(mesh: Mesh) -> bool:
    """Returns whether the model axis runs over several processes, which then exchange activations."""
    return mesh.local_mesh.shape[MODEL_AXIS] < mesh.shape[MODEL_AXIS]


def mesh_shape(mesh: Mesh) -> MeshShape:
    """Returns the axis sizes of a mesh from `make_mesh`."""
    return MeshShape(mesh.shape[MODEL_AXIS], mesh.shape[DATA_AXIS])
