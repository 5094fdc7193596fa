"""The settings that `scaling.py` measures, as pure lists."""

import dataclasses

from cambrian.sharding import MeshShape


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A configuration of main.py, apart from precision and model."""

    mesh: MeshShape
    batch_size: int
    partition: str = "auto"

    def __str__(self) -> str:
        return f"mesh {self.mesh}, batch {self.batch_size}, {self.partition}"


NUM_DEVICES = 32
MAX_BATCH = 256
UNSHARDED = MeshShape(1, 1)
DEFAULT_MESH = MeshShape(4, 8)


def all_settings(batch_size: int) -> list[Setting]:
    """Returns the settings of all curves, each once."""
    curves = (
        over_batch(UNSHARDED),
        over_batch(DEFAULT_MESH),
        over_devices(batch_size),
        over_model_axis(batch_size, "auto"),
        over_model_axis(batch_size, "intra_sample"),
    )
    return list(dict.fromkeys(setting for curve in curves for setting in curve))


def over_devices(batch_size: int) -> list[Setting]:
    """Returns settings with 1 to 32 devices on the data axis."""
    return [Setting(MeshShape(1, count), batch_size) for count in _powers(1, NUM_DEVICES)]


def over_batch(mesh: MeshShape) -> list[Setting]:
    """Returns settings from one image per data group to 256 images per launch."""
    return [Setting(mesh, batch_size) for batch_size in _powers(mesh.data, MAX_BATCH)]


def over_model_axis(batch_size: int, partition: str) -> list[Setting]:
    """Returns settings with 1 to 32 of 32 devices on the model axis; from 2 on for intra_sample."""
    least = 2 if partition == "intra_sample" else 1
    meshes = [MeshShape(model, NUM_DEVICES // model) for model in _powers(least, NUM_DEVICES)]
    return [Setting(mesh, batch_size, partition) for mesh in meshes]


def _powers(first: int, last: int) -> list[int]:
    powers = [first]
    while powers[-1] < last:
        powers.append(2 * powers[-1])
    return powers
