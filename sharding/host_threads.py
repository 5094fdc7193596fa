"""How launches on virtual CPU devices share the host's cores.

Each layer that several cores compute together waits for the slowest of them, and passes what they made from one core's
caches to another's. So cores work together only where there are more of them than computations: the devices of a mesh
compute at once, and on a single device so may the launches of several host threads.
"""

import jax

from sharding.cpu import computes_bfloat16, host_cores
from sharding.mesh import MeshShape

# With jax 0.12 one core computes the launches of all threads, one after another: half as many images/s.
COMPUTES_SIDE_BY_SIDE = jax.__version_info__ < (0, 11)


def launches_at_once(num_devices: int, threads: int, precision: str) -> int:
    """The launches that compute at once when so many host threads launch on a mesh of virtual CPU devices.

    In bfloat16, on a single device, with jax 0.10, at most one for each core. Those of a larger mesh, whose devices
    wait for each other, compute one after another. So they do in float32: kernels and activations are twice as large,
    and launches at once take the caches from each other.
    """
    in_bfloat16 = precision == "bfloat16" or (precision == "auto" and computes_bfloat16("cpu"))
    side_by_side = COMPUTES_SIDE_BY_SIDE and num_devices == 1 and in_bfloat16
    return min(threads, host_cores()) if side_by_side else 1


def cores_per_device(num_devices: int, launches: int) -> int:
    """The cores that compute one launch on one device together, when so many launches compute at once."""
    return max(1, host_cores() // (num_devices * launches))


def planned_as(mesh: MeshShape, batch_size: int, launches: int) -> tuple[MeshShape, int]:
    """The mesh and batch size whose one launch costs what so many do that compute at once on `mesh`."""
    return (mesh, batch_size) if launches == 1 else (MeshShape(1, launches), batch_size * launches)
