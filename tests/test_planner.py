"""The planner against all plans of small networks."""

import dataclasses
import functools
import itertools

import pytest

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.network import network as network_of
from cambrian.sharding import (
    Kind,
    LayerPlan,
    LayerSpec,
    MeshShape,
    Option,
    OutOfMemory,
    Partition,
    Plan,
    UsageError,
    choose_plan,
)
from cambrian.sharding.planner import plan_costs
from cambrian.sharding.planner.allowed_partitions import allowed_partitions
from cambrian.sharding.planner.trellis import Trellis
from planner_cases import (
    BATCH_SIZE,
    DOWNSAMPLE,
    NETWORKS,
    RESIDUAL,
    RandomCosts,
    bytes_of,
    choices_of,
    conv,
    cost_of,
    milliseconds_of,
    options_of,
)

CASES = [
    (name, mesh, seed)
    for name in NETWORKS
    for mesh in ("2x1", "2x2", "4x1", "1x2")
    for seed in range(6 if name == "residual" else 2)
]


def costs_of(name, seed):
    return RandomCosts(seed, 3 if name == "residual" else 2, movement_ms=(3.0, 0.5, 10.0)[seed % 3])


@functools.cache
def every_plan(name, mesh, seed):
    """Milliseconds and bytes of all plans, the fastest first."""
    network, costs = NETWORKS[name], costs_of(name, seed)
    options = [list(options_of(layer, MeshShape.parse(mesh), costs)) for layer in network]
    return sorted(
        (milliseconds_of(network, choices, costs), bytes_of(choices)) for choices in itertools.product(*options)
    )


@pytest.mark.parametrize("name, mesh, seed", CASES)
def test_no_plan_is_faster(name, mesh, seed):
    network, shape, costs = NETWORKS[name], MeshShape.parse(mesh), costs_of(name, seed)
    fastest, _ = every_plan(name, mesh, seed)[0]
    plan = choose_plan(network, shape, BATCH_SIZE, costs)
    plan.check(network, shape, BATCH_SIZE)
    assert cost_of(plan, network, costs) == pytest.approx(fastest)
    predicted = plan_costs(plan, network, shape, costs, batch_size=BATCH_SIZE, element_bytes=4)
    assert sum(layer.compute_ms + layer.communication_ms for layer in predicted) == pytest.approx(fastest)
    allowed, _ = allowed_partitions(network, shape, BATCH_SIZE)
    assert Trellis(network, allowed, shape, BATCH_SIZE, costs).shortest()[0] == pytest.approx(fastest)
    assert choose_plan(network, shape, BATCH_SIZE, costs, memory_limit_bytes=10**6) == plan


@pytest.mark.parametrize("name, mesh, seed", CASES)
def test_within_a_memory_limit(name, mesh, seed):
    network, shape, costs = NETWORKS[name], MeshShape.parse(mesh), costs_of(name, seed)
    every = every_plan(name, mesh, seed)
    unlimited, needed = every[0][1], min(size for _, size in every)
    for part in (0.0, 0.05, 0.2, 0.4, 0.75):
        limit = round(needed + part * (unlimited - needed))
        plan = choose_plan(network, shape, BATCH_SIZE, costs, memory_limit_bytes=limit)
        choices = choices_of(plan, network, costs)
        assert bytes_of(choices) <= limit
        fastest = next(ms for ms, size in every if size <= limit)
        assert milliseconds_of(network, choices, costs) <= fastest * 1.005
    message = f"at least {needed} bytes for weights and the working memory of a layer, got a limit of {needed - 1}"
    with pytest.raises(OutOfMemory, match=message):
        choose_plan(network, shape, BATCH_SIZE, costs, memory_limit_bytes=needed - 1)


DEEP = network_of(Architecture("imagenet", (2, 2), bottleneck=True, num_classes=16, width=8), 32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mesh", ["2x2", "4x1"])
def test_never_slower_than_one_partition_for_all(mesh, seed):
    shape, costs = MeshShape.parse(mesh), RandomCosts(seed, 4, movement_ms=(0.5, 3.0)[seed % 2])
    fastest = cost_of(choose_plan(DEEP, shape, BATCH_SIZE, costs), DEEP, costs)
    for partition in ("samples", "rows", "channels", "intra_sample"):
        assert fastest <= cost_of(choose_plan(DEEP, shape, BATCH_SIZE, costs, partition=partition), DEEP, costs) + 1e-9
    for partition, micro_batch in itertools.product(Partition, (0, 1, 2)):
        choices = []
        for layer in DEEP:
            options = list(options_of(layer, shape, costs))
            cut = [o for o in options if o[0] == partition] or [o for o in options if o[0] == Partition.WHOLE]
            alike = [o for o in cut if o[1].micro_batch == micro_batch] or cut
            choices.append(min(alike, key=lambda choice: choice[1].milliseconds))
        assert fastest <= milliseconds_of(DEEP, choices, costs) + 1e-9


@pytest.mark.parametrize("mesh, batch_size", [("2x2", 8), ("4x1", 8), ("4x1", 2)])
def test_restricted_partitions(mesh, batch_size):
    shape, costs = MeshShape.parse(mesh), RandomCosts(1)

    def chosen(partition, *, convolutions=True):
        plan = choose_plan(DEEP, shape, batch_size, costs, partition=partition)
        return {plan[layer.name].partition for layer in DEEP if (layer.kind == Kind.CONV) == convolutions}

    if batch_size == 8:
        assert chosen("samples") == {Partition.SAMPLES}
    else:
        with pytest.raises(UsageError, match="mesh 4x1: conv1: 2 samples over a data axis"):
            chosen("samples")
    assert chosen("rows") == {Partition.ROWS}
    assert chosen("channels") <= {Partition.CHANNELS, Partition.INPUT_CHANNELS}
    for convolutions in (True, False):
        assert not chosen("intra_sample", convolutions=convolutions) & {Partition.WHOLE, Partition.SAMPLES}


def test_notes_and_errors():
    network, costs = (conv("a", None, 3, 8), conv("b", "a", 8, 7, rows=8)), RandomCosts(0)
    assert choose_plan(network, MeshShape(4, 1), BATCH_SIZE, costs).notes == ()
    for partition in ("auto", "intra_sample"):
        plan = choose_plan((*network, conv("c", "b", 7, 7, rows=9)), MeshShape(4, 1), 2, costs, partition=partition)
        assert plan["c"].partition == Partition.WHOLE
        assert plan.notes == (
            "the model axis of 4 divides neither rows nor channels of 1 of 3 convolutions: left whole (c)",
        )

    class NoChannels(RandomCosts):
        def layer(self, layer, partition):
            return [Option("im2col", 3, 1.0, 0, 0)] if layer.name == "b" else super().layer(layer, partition)

    message = (
        "b: expected the cost of an option whose micro_batch divides its samples for one of channels, input_channels"
    )
    with pytest.raises(UsageError, match=message):
        choose_plan(RESIDUAL, MeshShape(4, 1), BATCH_SIZE, NoChannels(0), partition="channels")
    plan = Plan(tuple((layer.name, LayerPlan(Partition.WHOLE, "fft", 1)) for layer in RESIDUAL))
    message = "a: expected the cost of partition whole, lowering fft, micro_batch 1, got none"
    with pytest.raises(UsageError, match=message):
        plan_costs(plan, RESIDUAL, MeshShape(4, 1), costs, batch_size=8, element_bytes=4)


@dataclasses.dataclass(frozen=True)
class TableCosts:
    """Movements take one time, an option 1 ms or what the table says of layer, partition and micro-batch."""

    table: dict
    movement_ms: float = 0.0
    micro_batches: tuple[int, ...] = (0,)

    def layer(self, layer, partition):
        return [
            Option(lowering, m, self.table.get((layer.name, str(partition), m), 1.0), 0, 0)
            for m in self.micro_batches
            for lowering in ("im2col", "winograd")
        ]

    def transition_ms(self, shape, source, target):
        return self.movement_ms

    def rechunk_ms(self, shape, layout):
        return self.movement_ms


def test_of_equal_plans_the_same_is_taken():
    whole = LayerPlan(Partition.WHOLE, "im2col", 0)
    for micro_batches in ((0, 1, 2), (2, 0, 1)):
        plan = choose_plan(DOWNSAMPLE, MeshShape(2, 2), BATCH_SIZE, TableCosts({}, 0.0, micro_batches))
        assert plan == Plan(tuple((layer.name, whole) for layer in DOWNSAMPLE))


def test_a_loop_breaks_where_the_micro_batch_or_the_number_of_samples_changes():
    network = (conv("a", None, 3, 6), conv("b", "a", 6, 8))

    def chosen(table, movement_ms, micro_batches):
        costs = TableCosts(table, movement_ms, micro_batches)
        plan = choose_plan(network, MeshShape(2, 1), BATCH_SIZE, costs)
        predicted = plan_costs(plan, network, MeshShape(2, 1), costs, batch_size=BATCH_SIZE, element_bytes=4)
        return [(str(p.partition), p.micro_batch) for _, p in plan.layers], [
            (layer.compute_ms, layer.communication_ms) for layer in predicted
        ]

    faster = {("a", "rows", 2): 0.25, ("b", "rows", 1): 0.5}
    assert chosen(faster, 0.25, (1, 2)) == ([("rows", 2), ("rows", 1)], [(0.25, 0.0), (0.75, 0.0)])
    assert chosen(faster, 0.75, (1, 2)) == ([("rows", 2), ("rows", 2)], [(0.25, 0.0), (1.0, 0.0)])
    # From rows to samples: a transition, and with chunks the loops differ, too.
    faster = {("a", "rows", 2): 0.25, ("b", "samples", 2): 0.25, ("a", "rows", 0): 0.25, ("b", "samples", 0): 0.25}
    assert chosen(faster, 0.125, (2,)) == ([("rows", 2), ("samples", 2)], [(0.25, 0.0), (0.375, 0.125)])
    assert chosen(faster, 0.125, (0,)) == ([("rows", 0), ("samples", 0)], [(0.25, 0.0), (0.25, 0.125)])


def test_without_a_model_axis_lowering_and_micro_batch_are_chosen():
    costs = TableCosts({(name, "whole", 2): 0.5 for name in "abdc"}, 0.0, (0, 2))
    for partition in ("auto", "samples", "rows", "channels"):
        plan = choose_plan(DOWNSAMPLE, MeshShape(1, 2), BATCH_SIZE, costs, partition=partition)
        assert {p for _, p in plan.layers} == {LayerPlan(Partition.WHOLE, "im2col", 2)}
        assert plan.notes == ()


def test_bytes_that_a_device_receives():
    network = (
        conv("a", None, 4, 8),
        conv("b", "a", 8, 8, kernel=7),
        conv("c", "b", 8, 8, kernel=1, residual="a"),
        conv("d", "c", 8, 8, kernel=1),
        LayerSpec("p", Kind.MEAN_POOL, "d", (8, 8, 8), (1, 1, 8)),
    )
    costs = TableCosts({})

    def received(model, *partitions):
        plan = Plan(tuple((layer.name, LayerPlan(p, "im2col")) for layer, p in zip(network, partitions, strict=True)))
        found = plan_costs(plan, network, MeshShape(model, 2), costs, batch_size=8, element_bytes=2)
        return [layer.communicated_bytes for layer in found]

    samples, tensor = 4, 8 * 8 * 8
    whole, samples_cut, rows, channels, summed = Partition
    row = samples * 8 * 2  # of one column's channels, in bytes
    assert received(4, whole, whole, whole, whole, whole) == [0] * 5
    # Rows of 4 channels and of 8; a window of 7 over 2 rows a device reaches three rows either side, two at the edge.
    assert received(4, rows, rows, rows, rows, rows) == [
        samples * 2 * 8 * 4 * 2,
        5 * 8 * row,
        0,
        0,
        samples * 8 * 2 * 3 // 4 * 4,
    ]
    assert received(2, rows, rows, rows, rows, rows)[1] == 3 * 8 * row
    gathered, exchanged = samples * tensor * 3 // 4 * 2, samples * tensor * 3 // 16 * 2
    # b gathers a; c reads a in samples, a slice of the whole copy, and exchanges b; the sum of d is of float32.
    assert received(4, channels, channels, samples_cut, summed, whole) == [
        0,
        gathered,
        exchanged,
        exchanged + samples * tensor * 2 * 3 // 4 * 4,
        0,
    ]


@pytest.mark.slow
def test_a_large_network_has_few_states():
    network = network_of(Architecture.resnet(101, "imagenet", 1000), 64)
    shape = MeshShape(2, 4)
    allowed, _ = allowed_partitions(network, shape, 32)
    trellis = Trellis(network, allowed, shape, 32, RandomCosts(0))
    assert max(len(stage.arrows) for stage in trellis.stages) <= 64
    assert len({id(stage) for stage in trellis.stages}) < 50  # blocks share them
    fastest, choices = trellis.shortest()
    assert milliseconds_of(network, choices, RandomCosts(0)) == pytest.approx(fastest)
