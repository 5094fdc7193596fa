"""What cards run in tests in place of a compiled executable: no backend starts, and launches take as long as told."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.engine.runtime.executable import Analysis, Computed
from cambrian.sharding import MeshShape, TensorSpec, UsageError

BATCH_SIZE = 4
FAILS = -1.0  # an input that no card can compute


@dataclasses.dataclass(frozen=True)
class StandIn:
    """Outputs are each input (3,) and the process that computed it."""

    delay_s: float = 0.0
    name: str = "stand-in"
    kind: str = "native"
    input_spec: TensorSpec = TensorSpec("inputs", (BATCH_SIZE, 3), "float32")
    output_spec: TensorSpec = TensorSpec("outputs", (BATCH_SIZE, 4), "float64")
    mesh_shape: MeshShape = MeshShape(1, 1)
    platform: str = "cpu"
    analysis: Analysis = Analysis(0, 0, 0, 0.0)
    parity: None = None
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ("a note",)

    def compute(self, inputs: np.ndarray, thread: int = 0) -> Computed:
        if (inputs == FAILS).any():
            raise MemoryError("no memory for this batch")
        launched = time.perf_counter()
        time.sleep(self.delay_s)
        outputs = np.concatenate([inputs, np.full((len(inputs), 1), os.getpid())], axis=1)
        ready = time.perf_counter()
        return Computed(outputs, launched, ready, ready)


def make(delay_s: float = 0.0) -> tuple[StandIn, int]:
    """Makes the stand-in; its fact is the process."""
    return StandIn(delay_s), os.getpid()


def load(built: Path) -> tuple[StandIn, int]:
    """Makes the stand-in if it was built."""
    if not built.exists():
        raise UsageError("expected something built, got nothing")
    return make()


def build(built: Path) -> tuple[StandIn, int]:
    """Builds the stand-in, and adds this process to those that did."""
    with built.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return make()


def die(survivors: Path | None = None) -> tuple[StandIn, int]:
    """Kills the process, unless another one has died for `survivors`."""
    if survivors is not None:
        try:
            survivors.touch(exist_ok=False)
        except FileExistsError:
            return make()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
