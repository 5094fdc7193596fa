"""The process of a card: loads the executable that its parent asks for, and computes batches until the parent is gone.

- *control*: a connection to the parent. It carries functions that make the executable, their outcomes, and the file
  descriptors of new lanes. When it closes, however the parent ended, the process exits at once.
- *lanes*: one for each host thread that has a batch in this card. A lane is a connection and a piece of shared memory
  that holds the inputs and outputs of one batch; a thread of this process serves it. The parent writes inputs and sends
  their number; the answer says that the outputs are there. The memory has no name: it is gone with its processes.
"""

import dataclasses
import itertools
import math
import mmap
import os
import pickle
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NoReturn

import jax
import numpy as np

from cambrian.engine.errors import one_line
from cambrian.engine.runtime.batch import samples
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.engine.runtime.memory import peak_host_memory_bytes
from cambrian.engine.runtime.parity import Parity
from cambrian.sharding import ALIGNMENT, MeshShape, Specs, TensorSpec
from cambrian.sharding.host import SETTINGS, host

NEW_LANE = b"lane"  # on the control connection; two descriptors follow

# Makes a card's executable, in its process, and what else the parent is to know. Pickled, as is the latter.
Make = Callable[[], tuple[Executable, Any]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True, weakref_slot=True)
class ExecutableFacts:
    """What an executable is, for the processes that don't hold it; attributes as those of `Executable`."""

    name: str
    kind: str
    input_spec: Specs
    output_spec: Specs
    mesh_shape: MeshShape
    platform: str
    analysis: Analysis
    parity: Parity | None
    plan: dict[str, dict[str, str | int]] = dataclasses.field(repr=False)
    metadata: dict[str, Any] = dataclasses.field(repr=False)
    notes: tuple[str, ...]

    @classmethod
    def of(cls, executable: Executable) -> "ExecutableFacts":
        return cls(**{field.name: getattr(executable, field.name) for field in dataclasses.fields(cls)})


class LaneMemory:
    """Inputs and outputs of one batch in shared memory, which both sides map.

    Attributes:
      inputs: array, or pytree of arrays, as the input spec.
      outputs: as the output spec.
    """

    def __init__(self, descriptor: int, *specs: Specs):
        memory = mmap.mmap(descriptor, self.num_bytes(*specs))
        starts = itertools.accumulate(map(_aligned_bytes, jax.tree.leaves(specs)), initial=0)
        self.inputs, self.outputs = jax.tree.map(
            lambda spec: np.ndarray(spec.shape, np.dtype(spec.dtype), memory, next(starts)), specs
        )

    @staticmethod
    def num_bytes(*specs: Specs) -> int:
        """Returns the size of the memory for the specs of inputs and outputs."""
        return sum(map(_aligned_bytes, jax.tree.leaves(specs)))


def copy_batch(memory: Any, batch: Any) -> None:
    """Copies a batch of N samples to the first N of `memory`, a pytree of the same structure."""
    for array, values in zip(jax.tree.leaves(memory), jax.tree.leaves(batch), strict=True):
        array[: len(values)] = values


def _aligned_bytes(spec: TensorSpec) -> int:
    num_bytes = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    return max(-(-num_bytes // ALIGNMENT), 1) * ALIGNMENT


def serve(descriptor: int) -> NoReturn:
    """Serves the parent at the other end of the control connection `descriptor`; never returns."""
    control = Connection(descriptor)
    made: queue.SimpleQueue[Executable] = queue.SimpleQueue()
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(control, asked, made), daemon=True).start()
    host.decline(*SETTINGS)
    host.permit(*pickle.loads(asked.get()))
    while True:
        try:
            make: Make = pickle.loads(asked.get())
            executable, facts = make()
        except Exception as error:
            control.send(_picklable(error))
            continue
        made.put(executable)
        control.send((ExecutableFacts.of(executable), facts))


def _read(control: Connection, asked: "queue.SimpleQueue[bytes]", made: "queue.SimpleQueue[Executable]") -> None:
    """Hands requests to the main thread and starts the threads of lanes; ends the process with its parent."""
    executable = None
    try:
        while True:
            message = control.recv_bytes()
            if message != NEW_LANE:
                asked.put(message)
                continue
            lane, memory = Connection(recv_handle(control)), recv_handle(control)
            executable = executable or made.get()
            threading.Thread(target=_serve_lane, args=(lane, memory, executable), daemon=True).start()
    except (EOFError, OSError):
        os._exit(0)


def _serve_lane(lane: Connection, descriptor: int, executable: Executable) -> None:
    memory = LaneMemory(descriptor, executable.input_spec, executable.output_spec)
    os.close(descriptor)
    while True:
        try:
            count = lane.recv()
        except (EOFError, OSError):
            return
        try:
            computed = executable.compute(samples(memory.inputs, 0, count))
            copy_batch(memory.outputs, computed.outputs)
            answer = computed.launched, computed.ready, peak_host_memory_bytes()
        except Exception as error:
            answer = one_line(error)
        lane.send(answer)


def _picklable(error: Exception) -> Exception:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
