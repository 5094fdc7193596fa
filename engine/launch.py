"""The one place where computations are launched: every launch of the process shares one bound and one order.

XLA:CPU aborts the process when too many multi-device launches are in flight (about 60 on 32 virtual devices), and
collectives deadlock when two devices are given two launches in different orders. So launches are enqueued one at a
time, and each holds one of `MAX_LAUNCHES_IN_FLIGHT` slots until its outputs are ready. Nobody has to give a slot back:
a launch that finds all of them taken waits for the oldest.
"""

import collections
import contextlib
import threading
from collections.abc import Callable, Sequence

import jax

MAX_LAUNCHES_IN_FLIGHT = 8

_enqueuing = threading.Lock()
_outputs_in_flight: collections.deque[jax.Array] = collections.deque()  # oldest first; guarded by _enqueuing


def launch(
    compiled: Callable[[Sequence[jax.Array], jax.Array], jax.Array], params: Sequence[jax.Array], inputs: jax.Array
) -> jax.Array:
    """Starts `compiled(params, inputs)` and returns its outputs without waiting for them.

    Waits first while `MAX_LAUNCHES_IN_FLIGHT` launches of this process, of any executable and thread, are in flight.
    The outputs of the latest launches are kept alive, at most that many.

    Raises:
      Whatever `compiled` raises. The failure of a launch under way is raised where its own outputs are used.
    """
    # The lock is held while waiting: whoever else wants to launch needs the same slot.
    with _enqueuing:
        while len(_outputs_in_flight) >= MAX_LAUNCHES_IN_FLIGHT:
            # A failed launch is over, too. (`is_ready` is no alternative: it crashes on an array that was deleted.)
            with contextlib.suppress(RuntimeError):
                _outputs_in_flight[0].block_until_ready()
            _outputs_in_flight.popleft()
        outputs = compiled(params, inputs)
        _outputs_in_flight.append(outputs)
    return outputs
