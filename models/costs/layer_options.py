"""The planner's costs from a cost table: the options of each layer with their times."""

import dataclasses
import enum
import functools
import math

import jax.numpy as jnp
import numpy as np

from cambrian.models.costs.layer_case import LayerCase, case_of, dtype_of, lowerings_of
from cambrian.models.costs.table import CostTable, Measurable, Transition
from cambrian.models.lowerings import LOWERINGS
from cambrian.sharding import Kind, LayerSpec, Layout, MeshShape, Option, Partition, local_samples
from cambrian.sharding.plan_semantics import halo_rows

# The range of pixels in a micro-batch, besides all samples at once: with fewer pixels, matrix products are too small;
# with more, activations don't fit the caches.
_LEAST_PIXELS, _MOST_PIXELS = 256, 2**16


class Outlook(enum.IntEnum):
    """How estimated times are taken: as the power of their uncertainty with which they are multiplied."""

    OPTIMISTIC = -1
    EXPECTED = 0
    PESSIMISTIC = 1


@dataclasses.dataclass(frozen=True, eq=False)
class TableCosts:
    """Costs on one mesh with one batch size (see `sharding.Costs`), measured or estimated by a cost table.

    Attributes:
      table: cost table.
      mesh: sizes of the mesh axes.
      batch_size: global number of samples per launch.
      dtype: precision: dtype of activations and kernels, or int8.
      without: names of lowerings that aren't considered.
      outlook: how long what wasn't measured on this machine takes. As expected, a lowering that was only measured on a
        machine with other instruction sets isn't considered.
      launches_at_once: number of launches that a device computes at once. The mesh and the batch size stand for all of
        them, see `planned_as`; a device holds the working memory of each.
    """

    table: CostTable
    mesh: MeshShape
    batch_size: int
    dtype: str
    without: frozenset[str] = frozenset()
    outlook: Outlook = Outlook.EXPECTED
    launches_at_once: int = 1

    def layer(self, layer: LayerSpec, partition: Partition) -> list[Option]:
        """Returns the options of a layer: each lowering with each micro-batch."""
        samples = local_samples(partition, self.mesh, self.batch_size)
        return [
            self._option(layer, partition, lowering, micro_batch, samples)
            for lowering in self._lowerings(layer, partition, samples)
            for micro_batch in micro_batches(layer, partition, samples, self.mesh)
            # XLA:CPU computes its own convolutions many times more slowly inside a loop.
            if not (micro_batch and lowering == "native" and layer.kind == Kind.CONV and self.table.platform == "cpu")
        ]

    def transition_ms(self, shape: tuple[int, int, int], source: Layout, target: Layout) -> float:
        """Returns the milliseconds of a transition of all samples of each group; slicing a whole tensor copies."""
        moved = self.transition(shape, source, target)
        return 0.0 if moved is None else self.milliseconds(moved)

    def rechunk_ms(self, shape: tuple[int, int, int], layout: Layout) -> float:
        """Returns the milliseconds of a loop over all samples that only copies."""
        return self.milliseconds(self.rechunking(shape, layout))

    def milliseconds(self, timed: Measurable) -> float:
        """Returns the milliseconds of a case or transition by the outlook."""
        return self.table.milliseconds(timed) * self.table.uncertainty(timed) ** self.outlook

    def transition(self, shape: tuple[int, int, int], source: Layout, target: Layout) -> Transition | None:
        """Returns the transition that `transition_ms` costs; None if nothing moves."""
        if source == target or self.mesh.model == 1:
            return None
        return self._transition(f"{source}>{target}", math.prod(shape) * self.batch_size // self.mesh.data)

    def rechunking(self, shape: tuple[int, int, int], layout: Layout) -> Transition:
        """Returns the transition that `rechunk_ms` costs."""
        samples = self.batch_size // self.mesh.data
        values = math.prod(shape) * samples // (1 if layout == Layout.WHOLE else self.mesh.model)
        return self._transition("loop", values)

    def parts(
        self, layer: LayerSpec, partition: Partition, lowering: str, micro_batch: int
    ) -> list[tuple[Measurable, int]]:
        """Returns what the time of an option consists of, and how often: its case, and the collective inside it."""
        samples = local_samples(partition, self.mesh, self.batch_size)
        at_once = micro_batch or samples
        inside = self._inside(layer, partition, at_once) if self.mesh.model > 1 else []
        return [(part, samples // at_once) for part in (self.case(layer, partition, lowering, at_once), *inside)]

    def case(self, layer: LayerSpec, partition: Partition, lowering: str, samples: int) -> LayerCase:
        """Returns the case of a layer on this mesh, with `samples` at a time."""
        return case_of(layer, partition, lowering, samples, dtype_of(layer, self.dtype), self.mesh)

    def _lowerings(self, layer: LayerSpec, partition: Partition, samples: int) -> list[str]:
        every = lowerings_of(layer, self.table.platform, dtype_of(layer, self.dtype))
        names = [name for name in every if name not in self.without]
        if self.outlook != Outlook.EXPECTED or not self.table.is_foreign:
            return names
        tried = [n for n in names if self.table.is_alike_measured(self.case(layer, partition, n, samples))]
        return tried or ["onednn" if "onednn" in names else names[0]]  # which choose kernels by instruction sets

    def _option(self, layer: LayerSpec, partition: Partition, lowering: str, micro_batch: int, samples: int) -> Option:
        case = self.case(layer, partition, lowering, micro_batch or samples)
        parts = self.parts(layer, partition, lowering, micro_batch)
        return Option(
            lowering=lowering,
            micro_batch=micro_batch,
            milliseconds=sum(times * self.milliseconds(part) for part, times in parts),
            weight_bytes=self._weight_bytes(case),
            working_bytes=self.launches_at_once * self._working_bytes(case, samples),
            precision="int8" if layer.quantized else case.dtype,
        )

    def _inside(self, layer: LayerSpec, partition: Partition, samples: int) -> list[Transition]:
        """The collective inside a layer, if there is one."""
        _, columns, channels = layer.in_shape
        if partition == Partition.INPUT_CHANNELS:
            return [self._transition("sum", samples * math.prod(layer.out_shape))]
        if partition == Partition.ROWS and layer.kind == Kind.MEAN_POOL:
            return [self._transition("sum", samples * channels)]
        if partition == Partition.ROWS and (halo := sum(halo_rows(layer))):
            return [self._transition("halo", samples * halo * columns * channels)]
        return []

    def _transition(self, operation: str, values: int) -> Transition:
        if self.dtype == "int8":  # which takes as long to move as a quarter of the values in float32
            return Transition(operation, str(self.mesh), max(1, values // 4), "float32")
        return Transition(operation, str(self.mesh), values, self.dtype)

    def _weight_bytes(self, case: LayerCase) -> int:
        if not case.has_weights:
            return 0
        bias = 4 * case.out_channels
        if (packed_bytes := LOWERINGS[case.lowering].packed_bytes) is not None:
            return packed_bytes(case.call(case.activation)) + bias
        kernel = case.kernel**2 * case.in_channels * case.out_channels // case.groups
        return round(kernel * _growth(case.lowering, case.kernel)) * jnp.dtype(case.dtype).itemsize + bias

    def _working_bytes(self, case: LayerCase, samples: int) -> int:
        """Bytes of input, output and residual of all local samples, and of float32 products of one micro-batch."""
        size = jnp.dtype(case.dtype).itemsize
        chunks = samples // case.samples
        made = math.prod(case.out_shape)
        held = math.prod(case.in_shape) + made * (2 if case.residual else 1)
        patches = math.prod(case.in_shape) * (case.kernel**2 if case.kernel > 1 else 0)
        return held * chunks * size + 4 * made + 4 * patches


def micro_batches(layer: LayerSpec, partition: Partition, samples: int, mesh: MeshShape) -> list[int]:
    """Returns the micro-batches considered for a layer: powers of four that divide `samples`, and 0 for all at once.

    Layers cut by channels run at once: they would communicate for each chunk, and their matrix products are small
    enough.
    """
    if mesh.model > 1 and partition not in (Partition.SAMPLES, Partition.ROWS):
        return [0]
    rows, columns, _ = layer.in_shape
    pixels = rows * columns // (mesh.model if partition == Partition.ROWS else 1)
    powers = (4**power for power in range(samples.bit_length()))
    return [0] + [
        size
        for size in powers
        if size < samples and samples % size == 0 and _LEAST_PIXELS <= size * pixels <= _MOST_PIXELS
    ]


@functools.cache
def _growth(lowering: str, kernel: int) -> float:
    """Ratio of the sizes of a kernel after and before its transform."""
    arrays = LOWERINGS[lowering].transform(np.zeros((kernel, kernel, 1, 1), np.float32))
    return sum(array.size for array in arrays) / kernel**2
