"""The graph of all ways to cut a network: a stage for each layer, with states between the stages.

A state records in which layouts each live tensor (one that a later layer reads) exists, and whether the layer before
was cut by samples. An arrow between two states is a partition with its transitions. The number of states is exponential
in the number of tensors that are live at once: in a residual network the input of a block and one or two more.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from cambrian.sharding.layer import LayerSpec, Network
from cambrian.sharding.partition import Layout, Partition
from cambrian.sharding.plan_semantics import (
    LiveLayouts,
    compute_layer,
    images_layout,
    last_readers,
    tensor_shapes,
)
from cambrian.sharding.planner.costs import Costs, geometry

Shape = tuple[int, int, int]
State = tuple[bool, tuple[LiveLayouts, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Arrow:
    """A partition of a layer, starting from the state before it.

    Attributes:
      source: index of the state before the layer.
      partition: partition of the layer.
      transition_ms: time of the transitions of all tensors that the layer reads in a new layout.
      samples_change: whether the number of samples per device changes before the layer.
    """

    source: int
    partition: Partition
    transition_ms: float
    samples_change: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """All partitions of a layer.

    Attributes:
      rewrite_ms: for each state before the layer, time to write the live tensors out and read them in other chunks.
      arrows: for each state after the layer, the arrows that end there.
    """

    rewrite_ms: list[float]
    arrows: list[list[Arrow]]


def stages_of(network: Network, allowed: Sequence[tuple[Partition, ...]], costs: Costs) -> list[Stage]:
    """Builds the stages of `network` for the partitions `allowed` for each layer; equal blocks share stages."""
    shapes, last = tensor_shapes(network), last_readers(network)
    transition_ms, rechunk_ms = functools.cache(costs.transition_ms), functools.cache(costs.rechunk_ms)
    made: dict[object, tuple[Stage, tuple[State, ...]]] = {}
    live: list[str | None] = []
    states: tuple[State, ...] = ((False, ()),)
    stages = []
    for index, (layer, partitions) in enumerate(zip(network, allowed, strict=True)):
        names = [*(live if index else [None]), layer.name]
        kept = [name for name in names if last.get(name, -1) > index]
        reads = [layer.input] if layer.residual is None else [layer.input, layer.residual]
        places = [tuple(map(names.index, some)) for some in (live, reads, kept)]
        key = geometry(layer), partitions, tuple(shapes[name] for name in names), *places, states
        if key not in made:
            rewrite_ms = [
                sum(rechunk_ms(shapes[n], layout) for n, found in zip(live, copies, strict=True) for layout in found)
                for _, copies in states
            ]
            arrows = _arrows(layer, partitions, shapes, live, kept, states, transition_ms)
            made[key] = Stage(rewrite_ms, list(arrows.values())), tuple(arrows)
        stage, states = made[key]
        stages.append(stage)
        live = kept
    return stages


def _arrows(
    layer: LayerSpec,
    partitions: tuple[Partition, ...],
    shapes: dict[str | None, Shape],
    live: list[str | None],
    kept: list[str | None],
    states: tuple[State, ...],
    transition_ms: Callable[[Shape, Layout, Layout], float],
) -> dict[State, list[Arrow]]:
    arrows: dict[State, list[Arrow]] = {}
    for source, (by_samples, copies) in enumerate(states):
        for partition in partitions:
            tensors = dict(zip(live, copies, strict=True)) or {None: (images_layout(layer, partition),)}
            moves = compute_layer(tensors, layer, partition)
            ms = sum(transition_ms(shapes[name], old, new) for name, old, new in moves)
            target = partition == Partition.SAMPLES, tuple(tensors[name] for name in kept)
            samples_change = bool(live) and target[0] != by_samples
            arrows.setdefault(target, []).append(Arrow(source, partition, ms, samples_change))
    return arrows
