"""Executable: a compiled program with its parameters on the devices."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.engine.runtime.batch import empty_batch, fetch, num_samples, samples
from cambrian.engine.runtime.deferred_probe import DeferredProbe
from cambrian.engine.runtime.launch import launch
from cambrian.engine.runtime.parity import Parity
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import Program, Specs, TensorSpec, UsageError, named_arrays, shardings
from cambrian.sharding.host import launches_run_side_by_side, low_cpu_latency


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """XLA's analysis of a compiled program: bytes on each device, and its floating-point operations in one launch."""

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
      name: name of the model.
      kind: origin of the machine code: `online` (compiled in this process), `native` (loaded), or `portable` (compiled
        at load from StableHLO).
      compiled: function `compiled(params, inputs) -> outputs`, of arrays or pytrees, as their specs.
      params: parameters on the devices, in the order of `param_specs`.
      param_specs: specs of the parameters.
      input_spec: spec of the inputs of one launch, or pytree of specs.
      output_spec: spec of the outputs of one launch, or pytree of specs.
      mesh: mesh that the executable runs on.
      analysis: memory and arithmetic, per device.
      parity: relative error and top-1 agreement of the probe against the unsharded float32 reference; None until a
        probe has run on this machine.
      probe: probe that the first call or stream runs, and holds its results back for; None for none.
      plan: layer name → partition, lowering and micro_batch; empty for a user's function.
      metadata: JSON-compatible facts of the program, such as preprocessing and labels.
      notes: human-readable deviations from the request.
      program: program that it was compiled from; None if it was loaded.
    """

    name: str
    kind: str
    compiled: jax.stages.Compiled = dataclasses.field(repr=False)
    params: list[jax.Array] = dataclasses.field(repr=False)
    param_specs: tuple[TensorSpec, ...] = dataclasses.field(repr=False)
    input_spec: Specs
    output_spec: Specs
    mesh: Mesh
    analysis: Analysis
    parity: Parity | None = None
    probe: DeferredProbe | None = dataclasses.field(default=None, repr=False)
    plan: dict[str, dict[str, str | int]] = dataclasses.field(default_factory=dict, repr=False)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    program: Program | None = dataclasses.field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        """Number of samples in one launch, over all devices."""
        return jax.tree.leaves(self.input_spec)[0].shape[0]

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def pending_probe(self) -> DeferredProbe | None:
        """The deferred probe that hasn't run yet; None if there is none."""
        return self.probe if self.probe is not None and self.probe.parity is None else None

    def put(self, inputs: Any) -> Any:
        """Pads up to `batch_size` inputs with zeros to a whole batch and moves it to the devices.

        Raises:
          TypeError: if `inputs` isn't an array, where one is expected.
          UsageError: if structure, shapes or dtypes differ from the executable's.
        """
        return jax.device_put(self.whole_batch(inputs), shardings(self.input_spec, self.mesh))

    def whole_batch(self, inputs: Any) -> Any:
        """Pads up to `batch_size` inputs with zeros to a whole batch; raises as `put`."""
        expected, got = jax.tree.structure(self.input_spec), jax.tree.structure(inputs)
        if not isinstance(self.input_spec, TensorSpec) and got != expected:
            raise UsageError(f"inputs must have the structure {expected}, got {got}")
        names = iter(named_arrays("inputs", self.input_spec))
        whole = jax.tree.map(lambda spec, array: _padded(next(names), spec, array), self.input_spec, inputs)
        num_samples(inputs)  # the same in all arrays
        return whole

    def launch(self, inputs: Any) -> Any:
        """Starts a launch on a whole batch, from `put` or on the host; returns without waiting for its outputs."""
        return launch(self.compiled, self.params, inputs)

    def warm_up(self) -> None:
        """Runs one launch on zeros and waits for it."""
        zeros = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), self.input_spec)
        jax.block_until_ready(self.launch(self.put(zeros)))

    def __call__(self, inputs: Any) -> Any:
        """Returns the outputs (N, …) for inputs (N, …) of any N, launched batch by batch; N = 0 launches nothing."""
        if (probe := self.pending_probe) is not None:
            probe.run_alone(self)
        outputs, count = [empty_batch(self.output_spec)], num_samples(inputs)
        # A launch on a host array starts sooner than JAX moves the array, but computes in a thread of XLA's.
        prepare = self.put if launches_run_side_by_side() else self.whole_batch
        with low_cpu_latency(self.platform):
            for start in range(0, count, self.batch_size):
                batch = samples(inputs, start, start + self.batch_size)
                outputs.append(samples(fetch(self.launch(prepare(batch))), 0, count - start))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def stream(self, batches: Iterable[Any], threads: int = 2) -> Iterator[Any]:
        """Yields the outputs of each batch (0 ≤ N ≤ `batch_size` inputs), in order, computed by `threads` host threads.

        Reads only a few batches ahead of the consumer, so `batches` may be endless.
        """
        return stream(self, batches, threads=threads)


def _padded(name: str, spec: TensorSpec, inputs: Any) -> Any:
    if not isinstance(inputs, (np.ndarray, jax.Array)):
        raise TypeError(f"{name} must be a NumPy or JAX array, got {type(inputs).__name__}")
    shape, dtype = spec.shape, np.dtype(spec.dtype)
    if inputs.shape[1:] != shape[1:] or not 1 <= len(inputs) <= shape[0] or inputs.dtype != dtype:
        raise UsageError(
            f"{name} must have shape (1…{shape[0]}, {', '.join(map(str, shape[1:]))}) and dtype {dtype}, "
            f"got {inputs.shape} and {inputs.dtype}"
        )
    if len(inputs) == shape[0]:
        return inputs
    padded = np.zeros(shape, dtype)
    padded[: len(inputs)] = inputs
    return padded
