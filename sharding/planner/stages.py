"""Every way of cutting a network as a graph: its stages are the layers, its states lie between them.

A state says in which layouts each live tensor (one that a later layer reads) exists, and whether the layer before was
cut by samples. An arrow from state to state is a partition with its transitions. The number of states grows with the
power of the tensors that live at one time: in a residual network a block's input and one or two more.
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
    """A partition of a layer, from the state before it.

    Attributes:
      source: number of the state.
      partition: of the layer.
      transition_ms: of all tensors that the layer reads in a new layout.
      samples_change: whether a device's number of samples changes before the layer.
    """

    source: int
    partition: Partition
    transition_ms: float
    samples_change: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A layer.

    Attributes:
      rewrite_ms: by the state before it, for writing the live tensors out and reading them again in other chunks.
      arrows: by the state after it, the arrows that end there.
    """

    rewrite_ms: list[float]
    arrows: list[list[Arrow]]


def stages_of(network: Network, allowed: Sequence[tuple[Partition, ...]], costs: Costs) -> list[Stage]:
    """The stages of `network` with the partitions `allowed` for each layer; blocks of one geometry share them."""
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
