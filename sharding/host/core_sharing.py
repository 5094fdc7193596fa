"""How launches on virtual CPU devices share the host's cores.

A layer that several cores compute together waits for the slowest core, and passes its results from the caches of one
core to those of another. So a launch uses several cores only if there are more cores than concurrent computations: the
devices of a mesh compute concurrently, and on a single device so do launches by several host threads.
"""

from cambrian.sharding.host.cpu import computes_bfloat16, host_cores
from cambrian.sharding.mesh import MeshShape


def launches_at_once(num_devices: int, threads: int, precision: str, processes: int = 1) -> int:
    """Returns how many launches compute concurrently when `threads` host threads launch on virtual CPU devices.

    Launches in bfloat16 or int8 on a single device compute concurrently, up to one per core. Launches on larger meshes,
    whose devices wait for each other, compute in turn. So do launches in float32: their kernels and activations are at
    least twice as large, and concurrent launches would evict each other's from the caches.

    Args:
      num_devices: number of devices of the mesh.
      threads: number of host threads that launch.
      precision: float32, bfloat16, int8 or auto.
      processes: number of processes that divide the host's cores and launch so, each with `threads` threads.
    """
    is_narrow = precision in ("bfloat16", "int8") or (precision == "auto" and computes_bfloat16("cpu"))
    return min(threads, max(host_cores() // processes, 1)) if num_devices == 1 and is_narrow else 1


def cores_per_device(num_devices: int, launches: int) -> int:
    """Returns the number of cores that compute a launch on one device when `launches` launches run concurrently."""
    return max(1, host_cores() // (num_devices * launches))


def planned_as(mesh: MeshShape, batch_size: int, launches: int) -> tuple[MeshShape, int]:
    """Returns the mesh and batch size of a single launch that costs as much as `launches` concurrent ones on `mesh`."""
    return MeshShape(mesh.model, mesh.data * launches), batch_size * launches
