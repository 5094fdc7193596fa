"""Launches computations: all launches of the process share one bound and one order.

XLA:CPU aborts the process when too many multi-device launches are in flight (about 60 on 32 virtual devices), and
collectives deadlock when two devices are given two launches in different orders. So launches are enqueued one at a
time, and each holds one of `MAX_LAUNCHES_IN_FLIGHT` slots until its outputs are ready. No caller has to return a slot:
a launch that finds all of them taken waits for the oldest.

Launches on a single CPU device need no order. Where the process is set up for it, each is computed by the thread that
launches it, as many at once as there are cores.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from cambrian.sharding.host import host_cores, launches_run_side_by_side

MAX_LAUNCHES_IN_FLIGHT = 8

_cores = threading.BoundedSemaphore(host_cores())
_enqueuing = threading.Lock()
_outputs_in_flight: collections.deque[Any] = collections.deque()  # oldest first; guarded by _enqueuing


def launch(
    compiled: Callable[[Sequence[jax.Array], Any], Any],
    params: Sequence[jax.Array],
    inputs: Any,
) -> Any:
    """Starts `compiled(params, inputs)` and returns its outputs without waiting for them.

    First waits while `MAX_LAUNCHES_IN_FLIGHT` launches of this process, of any executable and thread, are in flight.
    Keeps the outputs of at most that many launches alive. On a single CPU device where launches run side by side, and
    with `inputs` on the device, it waits for a core instead, and for the outputs.

    Raises:
      Whatever `compiled` raises. A launch that fails later raises where its outputs are used.
    """
    if launches_run_side_by_side() and all(map(_is_on_one_cpu_device, jax.tree.leaves(inputs))):
        jax.block_until_ready(inputs)  # XLA would compute it later, in a thread of its own
        with _cores:
            return compiled(params, inputs)
    # Waits with the lock held: other callers need the same slot.
    with _enqueuing:
        while len(_outputs_in_flight) >= MAX_LAUNCHES_IN_FLIGHT:
            # A failed launch has ended, too. `is_ready` would crash on a deleted array.
            with contextlib.suppress(RuntimeError):
                jax.block_until_ready(_outputs_in_flight[0])
            _outputs_in_flight.popleft()
        outputs = compiled(params, inputs)
        _outputs_in_flight.append(outputs)
    return outputs


def launches_computing_at_once(mesh: Mesh, threads: int) -> int:
    """Returns the number of launches on `mesh` that compute at once when `threads` host threads launch."""
    side_by_side = launches_run_side_by_side() and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return min(threads, host_cores()) if side_by_side else 1


def _is_on_one_cpu_device(array: Any) -> bool:
    if not isinstance(array, jax.Array):
        return False
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"
