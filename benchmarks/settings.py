"""What `scaling.py` runs: pure lists of settings."""

import dataclasses

from cambrian.sharding import MeshShape


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One configuration of main.py, whatever its precision and model."""

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
    """Those of all the curves, each once."""
    curves = (
        over_batch(UNSHARDED),
        over_batch(DEFAULT_MESH),
        over_devices(batch_size),
        over_model_axis(batch_size, "auto"),
        over_model_axis(batch_size, "intra_sample"),
    )
    return list(dict.fromkeys(setting for curve in curves for setting in curve))


def over_devices(batch_size: int) -> list[Setting]:
    """1 to 32 devices on the data axis."""
    return [Setting(MeshShape(1, count), batch_size) for count in _powers(1, NUM_DEVICES)]


def over_batch(mesh: MeshShape) -> list[Setting]:
    """Up to 256 images per launch, from the fewest that the data axis takes."""
    return [Setting(mesh, batch_size) for batch_size in _powers(mesh.data, MAX_BATCH)]


def over_model_axis(batch_size: int, partition: str) -> list[Setting]:
    """32 devices, 1 to 32 of them on the model axis; a model axis of 1 cuts nothing within a sample."""
    least = 2 if partition == "intra_sample" else 1
    meshes = [MeshShape(model, NUM_DEVICES // model) for model in _powers(least, NUM_DEVICES)]
    return [Setting(mesh, batch_size, partition) for mesh in meshes]


def _powers(first: int, last: int) -> list[int]:
    powers = [first]
    while powers[-1] < last:
        powers.append(2 * powers[-1])
    return powers
