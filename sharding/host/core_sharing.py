"""How launches on virtual CPU devices share the host's cores.

When several cores compute a layer together, each layer waits for the slowest core, and results pass from one core's
caches to another's. So cores compute together only where there are more of them than launches under way: the devices of
a mesh compute at once, and on a single device so do the launches of several host threads.
"""

import jax

from cambrian.sharding.host.cpu import computes_bfloat16, host_cores
from cambrian.sharding.mesh import MeshShape

# With jax 0.12 one core computes the launches of all threads in turn: half as many images/s.
COMPUTES_SIDE_BY_SIDE = jax.__version_info__ < (0, 11)


def launches_at_once(num_devices: int, threads: int, precision: str) -> int:
    """Number of launches that compute at once when `threads` host threads launch on a mesh of virtual CPU devices.

    In bfloat16 on a single device with jax 0.10: at most one for each core. The launches of a larger mesh, whose
    devices wait for each other, compute in turn. So do those in float32, where kernels and activations are twice as
    large and launches at once evict each other's from the caches.
    """
    in_bfloat16 = precision == "bfloat16" or (precision == "auto" and computes_bfloat16("cpu"))
    side_by_side = COMPUTES_SIDE_BY_SIDE and num_devices == 1 and in_bfloat16
    return min(threads, host_cores()) if side_by_side else 1


def cores_per_device(num_devices: int, launches: int) -> int:
    """Number of cores that compute one launch on one device together, when `launches` launches compute at once."""
    return max(1, host_cores() // (num_devices * launches))


def planned_as(mesh: MeshShape, batch_size: int, launches: int) -> tuple[MeshShape, int]:
    """The mesh and batch size whose single launch costs what `launches` launches at once on `mesh` cost."""
    return (mesh, batch_size) if launches == 1 else (MeshShape(1, launches), batch_size * launches)
