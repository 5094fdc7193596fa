"""Executable: a compiled program with its parameters on the devices."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.engine.runtime.batch import check_inputs, empty_batch, fetch, num_samples, put, samples
from cambrian.engine.runtime.deferred_probe import DeferredProbe
from cambrian.engine.runtime.launch import launch
from cambrian.engine.runtime.parity import Parity
from cambrian.engine.runtime.stream import Turn, stream
from cambrian.sharding import (
    MIXES_SAMPLES,
    MeshShape,
    Program,
    Specs,
    TensorSpec,
    local_rows,
    mesh_shape,
)
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


class Computed(NamedTuple):
    """Outputs of a batch on the host, and when it left each phase, in seconds of `time.perf_counter`.

    Attributes:
      outputs: (N, …), or pytree of arrays (N, …), as the output spec.
      launched: when the inputs were on the devices.
      ready: when the launch had ended.
      fetched: when the outputs were on the host.
      card: index of the card that computed it.
    """

    outputs: Any
    launched: float
    ready: float
    fetched: float
    card: int = 0


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Executable:
    """A program compiled ahead of time for one mesh and batch size.

    On a mesh over several processes, each of them gives the inputs of its own `rows` of a batch and gets their outputs,
    and all make the same launches in the same order.

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
      plan: layer name → partition, lowering, micro_batch and precision; empty for a function that isn't rewritten.
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
    def rows(self) -> range:
        """The samples of a launch that this process gives and gets; all of them unless it shares the mesh."""
        return local_rows(self.mesh, self.batch_size)

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    @property
    def pending_probe(self) -> DeferredProbe | None:
        """The deferred probe that hasn't run yet; None if there is none."""
        return self.probe if self.probe is not None and self.probe.parity is None else None

    @property
    def in_this_process(self) -> bool:
        """Whether it computes in this process alone: then its threads are joined before the interpreter exits."""
        return not self.mesh.is_multi_process

    @property
    def mesh_shape(self) -> MeshShape:
        """Sizes of the mesh axes."""
        return mesh_shape(self.mesh)

    def __reduce__(self):
        raise TypeError("an executable can't be copied or pickled: save it, and load the artefact")

    def put(self, inputs: Any) -> Any:
        """Pads inputs with zeros to a whole batch, or to this process's rows, and moves them to the devices.

        Raises:
          TypeError: if `inputs` isn't an array, where one is expected.
          UsageError: if structure, shapes or dtypes differ from the executable's, or a batch isn't whole whose samples
            the program mixes.
        """
        return put(self.whole_batch(inputs), self.input_spec, self.mesh)

    def whole_batch(self, inputs: Any) -> Any:
        """Pads inputs with zeros to a whole batch, or to this process's rows; raises as `put`."""
        check_inputs(inputs, self.input_spec, len(self.rows) if MIXES_SAMPLES in self.metadata else 1)
        return jax.tree.map(lambda array: _padded(array, len(self.rows)), inputs)

    def launch(self, inputs: Any) -> Any:
        """Starts a launch on a whole batch, from `put` or on the host; returns without waiting for its outputs."""
        return launch(self.compiled, self.params, inputs)

    def compute(self, inputs: Any, thread: int = 0, turn: Turn | None = None) -> Computed:
        """Launches up to as many inputs as it has `rows` and waits for their outputs.

        Args:
          thread: number of the host thread, which decides nothing here.
          turn: place in a stream. In the first one's launch the pending probe is run, if there is one; `inputs` may
            then be empty. Where several processes share the mesh, the launch waits for its turn.

        Raises:
          TypeError, UsageError: as `put`.
          ParityError: if the probe's outputs are too far from the reference.
        """
        count, probe = num_samples(inputs), self.pending_probe if turn is not None and turn.number == 0 else None
        if probe is not None and count > probe.room:
            probe.run_alone(self)
            probe = None
        whole = inputs if probe is None else probe.mixed_with(self, inputs)
        # Waiting for the transfer costs no throughput, as another thread's launch executes meanwhile; and it keeps the
        # transfer out of the launch's time.
        on_devices = jax.block_until_ready(self.put(whole))
        launched = time.perf_counter()
        with low_cpu_latency(self.platform):
            with contextlib.nullcontext() if turn is None or self.in_this_process else turn.taken():
                outputs = self.launch(on_devices)
            outputs = jax.block_until_ready(outputs)
        ready = time.perf_counter()
        outputs = fetch(outputs)
        fetched = time.perf_counter()
        outputs = samples(outputs, 0, count) if probe is None else probe.checked(self, outputs, count)
        return Computed(outputs, launched, ready, fetched)

    def warm_up(self) -> None:
        """Runs one launch on zeros and waits for it."""
        zeros = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), self.input_spec)
        jax.block_until_ready(self.launch(self.put(zeros)))

    def __call__(self, inputs: Any) -> Any:
        """Returns the outputs (N, …) for inputs (N, …) of any N, launched batch by batch; N = 0 launches nothing."""
        outputs, count = [empty_batch(self.output_spec)], num_samples(inputs)
        check_inputs(inputs, self.input_spec, least=None)
        if (probe := self.pending_probe) is not None:
            probe.run_alone(self)
        # A launch on a host array starts sooner than JAX moves the array, but computes in a thread of XLA's.
        prepare = self.put if launches_run_side_by_side() or self.mesh.is_multi_process else self.whole_batch
        with low_cpu_latency(self.platform):
            for start in range(0, count, len(self.rows)):
                batch = samples(inputs, start, start + len(self.rows))
                outputs.append(samples(fetch(self.launch(prepare(batch))), 0, count - start))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def stream(self, batches: Iterable[Any], threads: int = 2) -> Iterator[Any]:
        """Yields the outputs of each batch (0 ≤ N ≤ `batch_size` inputs), in order, computed by `threads` host threads.

        Reads only a few batches ahead of the consumer, so `batches` may be endless.
        """
        return stream(self, batches, threads=threads)


def _padded(inputs: Any, num_rows: int) -> Any:
    if len(inputs) == num_rows:
        return inputs
    padded = np.zeros((num_rows, *inputs.shape[1:]), inputs.dtype)
    padded[: len(inputs)] = inputs
    return padded
