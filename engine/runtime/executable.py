"""An Executable: a compiled program together with its parameters on the devices."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.engine.runtime.launch import launch
from cambrian.engine.runtime.parity import Parity
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import Program, TensorSpec, UsageError
from cambrian.sharding.host import launches_run_side_by_side, low_cpu_latency


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """What XLA says of a compiled program: bytes per device, and floating-point operations of one launch per device."""

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    flops: float

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "Analysis":
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        assert memory is not None  # CPU, GPU and TPU all have it
        return cls(
            argument_bytes=memory.argument_size_in_bytes,
            output_bytes=memory.output_size_in_bytes,
            temporary_bytes=memory.temp_size_in_bytes,
            flops=float((cost or {}).get("flops", 0.0)),
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Executable:
    """A program compiled ahead of time for one mesh and batch size.

    Attributes:
      name: of the model.
      kind: where it came from: `online` (compiled in this process), `native` (loaded machine code), `portable`
        (loaded StableHLO, compiled at load).
      compiled: `compiled(params, inputs) -> outputs`.
      params: the parameters on the devices, in the order of `param_specs`.
      analysis: memory and arithmetic, per device.
      parity: relative error and top-1 agreement of the probe against the unsharded float32 reference; None before a
        probe was run.
      plan: layer name → partition, lowering and micro_batch; empty for a user's function.
      metadata: JSON-compatible facts of the program: preprocessing, labels, weights.
      notes: in words, each way other than asked for.
      program: what it was compiled from; None once loaded.
    """

    name: str
    kind: str
    compiled: jax.stages.Compiled = dataclasses.field(repr=False)
    params: list[jax.Array] = dataclasses.field(repr=False)
    param_specs: tuple[TensorSpec, ...] = dataclasses.field(repr=False)
    input_spec: TensorSpec
    output_spec: TensorSpec
    mesh: Mesh
    analysis: Analysis
    parity: Parity | None = None
    plan: dict[str, dict[str, str | int]] = dataclasses.field(default_factory=dict, repr=False)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    program: Program | None = dataclasses.field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        """Number of samples of one launch, over all devices."""
        return self.input_spec.shape[0]

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    def put(self, inputs: np.ndarray) -> jax.Array:
        """Pads up to `batch_size` inputs to a whole batch with zeros and moves it to the devices.

        Raises:
          UsageError: if shape or dtype aren't the executable's.
        """
        return jax.device_put(self._whole_batch(inputs), self.input_spec.sharding(self.mesh))

    def _whole_batch(self, inputs: np.ndarray) -> np.ndarray:
        shape, dtype = self.input_spec.shape, np.dtype(self.input_spec.dtype)
        if inputs.shape[1:] != shape[1:] or not 1 <= len(inputs) <= shape[0] or inputs.dtype != dtype:
            raise UsageError(
                f"inputs need shape (1…{shape[0]}, {', '.join(map(str, shape[1:]))}) and dtype {dtype}, "
                f"got {inputs.shape} and {inputs.dtype}"
            )
        if len(inputs) < shape[0]:
            padded = np.zeros(shape, dtype)
            padded[: len(inputs)] = inputs
            inputs = padded
        return inputs

    def launch(self, inputs: jax.Array | np.ndarray) -> jax.Array:
        """Starts a launch on a whole batch, moved by `put` or on the host; returns without waiting for its outputs."""
        return launch(self.compiled, self.params, inputs)

    def warm_up(self) -> None:
        """Runs one launch on zeros to its end."""
        shape, dtype = self.input_spec.shape, self.input_spec.dtype
        self.launch(self.put(np.zeros(shape, dtype))).block_until_ready()

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """The outputs (N, …) for inputs (N, …) of any N, launched batch by batch; nothing is launched for N = 0."""
        outputs = [np.empty((0, *self.output_spec.shape[1:]), self.output_spec.dtype)]
        # A launch takes an array of the host sooner than JAX moves it, but computes it in a thread of XLA's.
        prepare = self.put if launches_run_side_by_side() else self._whole_batch
        with low_cpu_latency(self.platform):
            for start in range(0, len(inputs), self.batch_size):
                batch = inputs[start : start + self.batch_size]
                # np.asarray alone waits for one device of those that hold the same part, while the others still compute
                # and read the parameters, whose file somebody may replace once this returns.
                outputs.append(np.asarray(self.launch(prepare(batch)).block_until_ready())[: len(batch)])
        return np.concatenate(outputs)

    def stream(self, batches: Iterable[np.ndarray], threads: int = 2) -> Iterator[np.ndarray]:
        """The outputs of each batch (0 ≤ N ≤ `batch_size` inputs), in order, computed by `threads` host threads.

        Reads only a few batches ahead of what is consumed, so an endless iterator is fine.
        """
        return stream(self, batches, threads=threads)
