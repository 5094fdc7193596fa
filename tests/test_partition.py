import dataclasses

import pytest

from sharding import (
    Kind,
    LayerPlan,
    LayerSpec,
    Layout,
    MeshShape,
    Partition,
    Plan,
    UsageError,
    choose_partitions,
    layouts,
    refusal,
)

CONV = LayerSpec("conv", Kind.CONV, None, (8, 8, 12), (8, 8, 24), kernel=3, padding=1)
STRIDED = LayerSpec("strided", Kind.CONV, None, (8, 8, 12), (4, 4, 24), kernel=3, stride=2, padding=1)
ODD = LayerSpec("odd", Kind.CONV, None, (7, 7, 12), (4, 4, 24), kernel=3, stride=2, padding=1)
POOL = LayerSpec("pool", Kind.MEAN_POOL, "conv", (8, 8, 24), (1, 1, 24))
HEAD = LayerSpec("head", Kind.DENSE, "pool", (1, 1, 24), (1, 1, 10))


@pytest.mark.parametrize(
    "layer, partition, expected",
    [
        (CONV, Partition.WHOLE, (Layout.WHOLE, Layout.WHOLE)),
        (CONV, Partition.SAMPLES, (Layout.SAMPLES, Layout.SAMPLES)),
        (CONV, Partition.ROWS, (Layout.ROWS, Layout.ROWS)),
        (CONV, Partition.CHANNELS, (Layout.WHOLE, Layout.CHANNELS)),
        (CONV, Partition.INPUT_CHANNELS, (Layout.CHANNELS, Layout.WHOLE)),
        (POOL, Partition.ROWS, (Layout.ROWS, Layout.WHOLE)),
        (POOL, Partition.CHANNELS, (Layout.CHANNELS, Layout.CHANNELS)),
        (HEAD, Partition.CHANNELS, (Layout.WHOLE, Layout.CHANNELS)),
    ],
)
def test_layouts(layer, partition, expected):
    assert layouts(layer, partition) == expected


@pytest.mark.parametrize(
    "layer, partition, model, batch_size, reason",
    [
        (CONV, Partition.SAMPLES, 4, 8, None),
        (CONV, Partition.SAMPLES, 4, 6, "the 6 samples over a data axis of 1 divisible by the model axis of 4, got 6"),
        (CONV, Partition.ROWS, 8, 1, None),
        (CONV, Partition.ROWS, 7, 1, "conv: rows needs its output rows divisible by the model axis of 7, got 8"),
        (CONV, Partition.ROWS, 9, 1, "divisible by the model axis of 9, got 8"),
        (STRIDED, Partition.ROWS, 4, 1, None),
        (STRIDED, Partition.ROWS, 8, 1, "its output rows divisible by the model axis of 8, got 4"),
        (ODD, Partition.ROWS, 2, 1, "input rows equal to output rows × stride, got 7 and 4 × 2"),
        (HEAD, Partition.ROWS, 1, 1, "needs a layer over an image, got dense"),
        (CONV, Partition.CHANNELS, 24, 1, None),
        (CONV, Partition.CHANNELS, 23, 1, "its output channels divisible by the model axis of 23, got 24"),
        (CONV, Partition.INPUT_CHANNELS, 12, 1, None),
        (CONV, Partition.INPUT_CHANNELS, 24, 1, "its input channels divisible by the model axis of 24, got 12"),
        (POOL, Partition.INPUT_CHANNELS, 2, 1, "needs a layer with weights, got mean_pool"),
    ],
)
def test_refusal_names_layer_dimension_and_axis(layer, partition, model, batch_size, reason):
    got = refusal(layer, partition, MeshShape(model, 1), batch_size)
    if reason is None:
        assert got is None
    else:
        assert got is not None and reason in got and got.startswith(f"{layer.name}: {partition}")


def chosen(mesh: str, batch_size: int, partition: str) -> list[str]:
    network = (CONV, dataclasses.replace(POOL), HEAD)
    return [str(p) for p in choose_partitions(network, MeshShape.parse(mesh), batch_size, partition)[0].values()]


@pytest.mark.parametrize(
    "mesh, batch_size, partition, expected",
    [
        ("1x4", 4, "auto", ["whole", "whole", "whole"]),
        ("4x1", 4, "auto", ["samples", "samples", "samples"]),
        ("4x1", 3, "auto", ["rows", "rows", "input_channels"]),
        ("4x1", 4, "intra_sample", ["rows", "rows", "input_channels"]),
        ("3x1", 4, "intra_sample", ["channels", "channels", "input_channels"]),
        ("2x1", 4, "channels", ["channels", "channels", "input_channels"]),
        ("4x1", 4, "rows", ["rows", "rows", "whole"]),
        ("4x1", 4, "samples", ["samples", "samples", "samples"]),
    ],
)
def test_built_in_rule(mesh, batch_size, partition, expected):
    assert chosen(mesh, batch_size, partition) == expected


def test_intra_sample_cuts_the_larger_of_activations_and_weights():
    # 4×4 positions with 64 + 64 channels are 2048 activations a sample; the weights are 9 · 64 · 64 = 36864.
    layer = LayerSpec("conv", Kind.CONV, None, (4, 4, 64), (4, 4, 64), kernel=3, padding=1)
    for samples, expected in ((17, Partition.CHANNELS), (18, Partition.ROWS)):
        assert choose_partitions((layer,), MeshShape(4, 2), 2 * samples, "intra_sample")[0] == {"conv": expected}


def test_auto_says_which_convolutions_stay_whole():
    partitions, notes = choose_partitions((CONV, POOL, HEAD), MeshShape(5, 1), 4, "auto")
    assert (partitions["conv"], partitions["pool"]) == (Partition.WHOLE, Partition.WHOLE)
    assert notes == ["the model axis of 5 divides neither rows nor channels of 1 of 1 convolutions: left whole (conv)"]


@pytest.mark.parametrize(
    "mesh, batch_size, partition, message",
    [
        ("5x1", 4, "rows", "mesh 5x1: conv: rows needs its output rows divisible by the model axis of 5, got 8"),
        ("5x1", 4, "channels", "mesh 5x1: conv: channels needs its output channels divisible by the model axis of 5"),
        ("5x1", 4, "samples", "mesh 5x1: conv: samples needs the 4 samples"),
        ("5x1", 4, "intra_sample", "needs a model axis that divides the rows or channels of some convolution"),
        ("1x4", 4, "intra_sample", "needs a model axis that divides"),
        ("1x4", 6, "auto", "batch_size must be a multiple of the data axis of 4 in mesh 1x4, got 6"),
        ("4x1", 4, "columns", "partition must be one of auto, samples, rows, channels, intra_sample, got 'columns'"),
    ],
)
def test_what_a_mesh_cannot_do_is_refused(mesh, batch_size, partition, message):
    with pytest.raises(UsageError) as error:
        chosen(mesh, batch_size, partition)
    assert message in str(error.value)


def plan(*partitions: Partition) -> Plan:
    names = ("conv", "pool", "head")
    return Plan(tuple((name, LayerPlan(p, "native")) for name, p in zip(names, partitions, strict=True)))


def test_plan_survives_json():
    made = plan(Partition.ROWS, Partition.ROWS, Partition.WHOLE)
    assert Plan.from_json(made.to_json()) == made
    with pytest.raises(UsageError, match="partition of conv must be one of .*, got 'columns'"):
        Plan.from_json({"conv": {"partition": "columns", "lowering": "native"}})
    with pytest.raises(UsageError, match="plan of conv needs partition and lowering, got"):
        Plan.from_json({"conv": {"partition": "rows"}})


def test_plan_check_names_layer_and_mesh():
    network = (CONV, POOL, HEAD)
    made = plan(Partition.CHANNELS, Partition.CHANNELS, Partition.INPUT_CHANNELS)
    made.check(network, MeshShape(3, 2), 2)
    with pytest.raises(UsageError, match="mesh 5x1: conv: channels needs its output channels"):
        made.check(network, MeshShape(5, 1), 1)
    with pytest.raises(UsageError, match="multiple of the data axis of 2"):
        made.check(network, MeshShape(3, 2), 3)
    with pytest.raises(UsageError, match="the plan needs the layers"):
        made.check(network[:2], MeshShape(1, 1), 1)


def test_intra_sample_flops_fraction_counts_the_cut_layers():
    network = (CONV, POOL, HEAD)
    made = plan(Partition.ROWS, Partition.ROWS, Partition.WHOLE)
    conv, head = 2 * 8 * 8 * 24 * 9 * 12, 2 * 24 * 10
    assert made.intra_sample_flops_fraction(network, MeshShape(2, 1)) == conv / (conv + head)
    assert made.intra_sample_flops_fraction(network, MeshShape(1, 2)) == 0.0
    samples = plan(Partition.SAMPLES, Partition.SAMPLES, Partition.SAMPLES)
    assert samples.intra_sample_flops_fraction(network, MeshShape(2, 1)) == 0.0
