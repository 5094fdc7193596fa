"""Tuning: measures the costs that the planner needs for one network on one mesh."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from cambrian.models.costs.files import mark_as_tuned, recording
from cambrian.models.costs.layer_case import LayerCase, case_of, dtype_of, lowerings_of
from cambrian.models.costs.layer_options import micro_batches
from cambrian.models.costs.measure import measure_cases, measure_transition
from cambrian.models.costs.table import CostTable, Transition
from cambrian.sharding import Layout, MeshShape, Network, Partition, local_samples, mesh_shape, refusal
from cambrian.sharding.host import planned_as

# Lowerings slower than this multiple of the fastest one, on both the smallest and the middle number of samples, aren't
# measured on other numbers.
_HOPELESS = 1.6
_TRANSITION_VALUES = (2**15, 2**18, 2**21)
_LOOP_VALUES = (2**15, 2**24)  # up to beyond the caches: the layers around a loop leave its tensors in memory


@dataclasses.dataclass(frozen=True, slots=True)
class CaseGroup:
    """The cases of one layer under one partition: lowerings × numbers of samples."""

    samples: tuple[int, ...]
    lowerings: tuple[str, ...]
    case: Callable[[str, int], LayerCase]


def tune(
    table: CostTable,
    path: Path,
    network: Network,
    mesh: Mesh,
    batch_size: int,
    precision: str,
    *,
    launches_at_once: int = 1,
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Measures what `table` lacks to plan `network` on `mesh`, and appends each measurement to `path` immediately.

    Args:
      table: contents of `path`; the measurements are added to it.
      path: file of the table.
      network: layers to measure.
      mesh: devices to measure on.
      batch_size: global number of samples per launch.
      precision: float32, bfloat16, or int8 for a network with quantised layers.
      launches_at_once: number of host threads that launch concurrently.
      progress: wrapper of the list of parts, such as a progress bar.

    Raises:
      OSError: if the file can't be written.
    """
    platform = mesh.devices.flat[0].platform
    shape, batch_size = planned_as(mesh_shape(mesh), batch_size, launches_at_once)
    parts: list[CaseGroup | Transition] = [
        *_groups(network, shape, batch_size, precision, platform),
        *_transitions(shape, "float32" if precision == "int8" else precision),
    ]
    known = dict(table.times)
    with recording(table, path) as keep:

        def measure(cases: Sequence[LayerCase]) -> None:
            if lacking := [case for case in cases if not table.is_measured(case)]:
                times, reference_ms = measure_cases(lacking, mesh, launches_at_once)
                for case, milliseconds in zip(lacking, times, strict=True):
                    keep(case, milliseconds, reference_ms)

        for part in itertools.chain(progress(parts), parts):  # once more, what other processes slowed
            if isinstance(part, CaseGroup):
                _measure_group(part, table, measure)
            elif not table.is_measured(part):
                (milliseconds,), reference_ms = measure_transition(part, mesh, launches_at_once)
                keep(part, milliseconds, reference_ms)
    if precision not in table.tuned or table.times != known:
        mark_as_tuned(table, path, precision)


def _measure_group(group: CaseGroup, table: CostTable, measure: Callable[[Sequence[LayerCase]], None]) -> None:
    smallest, middle = group.samples[0], group.samples[len(group.samples) // 2]
    promising = set()
    for samples in (smallest, middle):
        cases = [group.case(lowering, samples) for lowering in group.lowerings]
        measure(cases)
        limit = _HOPELESS * min(map(table.milliseconds, cases))
        promising |= {case.lowering for case in cases if table.milliseconds(case) <= limit}
    for samples in group.samples:
        measure([group.case(lowering, samples) for lowering in sorted(promising)])


def _groups(network: Network, mesh: MeshShape, batch_size: int, precision: str, platform: str) -> list[CaseGroup]:
    groups: dict[LayerCase, CaseGroup] = {}
    partitions = Partition if mesh.model > 1 else (Partition.WHOLE,)
    for layer in network:
        for partition in partitions:
            if refusal(layer, partition, mesh, batch_size) is not None:
                continue
            samples = local_samples(partition, mesh, batch_size)
            counts = {size or samples for size in micro_batches(layer, partition, samples, mesh)}
            lowerings = tuple(lowerings_of(layer, platform, dtype_of(layer, precision)))

            def case(lowering: str, samples: int, layer=layer, partition=partition) -> LayerCase:
                return case_of(layer, partition, lowering, samples, dtype_of(layer, precision), mesh)

            geometry = dataclasses.replace(case(lowerings[0], samples), samples=0)
            if geometry in groups:
                counts |= set(groups[geometry].samples)
            groups[geometry] = CaseGroup(tuple(sorted(counts)), lowerings, case)
    return list(groups.values())


def _transitions(mesh: MeshShape, dtype: str) -> list[Transition]:
    changes = [f"{one}>{two}" for one in Layout for two in Layout if one != two]
    operations = [*changes, "halo", "sum"] if mesh.model > 1 else []
    wanted = [("loop", values) for values in _LOOP_VALUES]
    wanted += [(operation, values) for operation in operations for values in _TRANSITION_VALUES]
    return [Transition(operation, str(mesh), values, dtype) for operation, values in wanted]
