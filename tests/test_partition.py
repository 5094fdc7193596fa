import pytest

from cambrian.sharding import (
    Kind,
    LayerPlan,
    LayerSpec,
    Layout,
    MeshShape,
    Partition,
    Plan,
    UsageError,
    layouts,
    local_samples,
    refusal,
)
from cambrian.sharding.planner.allowed_partitions import allowed_partitions

CONV = LayerSpec("conv", Kind.CONV, None, (8, 8, 12), (8, 8, 24), kernel=3, padding=(1, 1))
STRIDED = LayerSpec("strided", Kind.CONV, None, (8, 8, 12), (4, 4, 24), kernel=3, stride=2, padding=(1, 1))
ODD = LayerSpec("odd", Kind.CONV, None, (7, 7, 12), (4, 4, 24), kernel=3, stride=2, padding=(1, 1))
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
        (CONV, Partition.SAMPLES, 4, 6, "divisible by the model axis of 4 for samples, got 6"),
        (CONV, Partition.ROWS, 8, 1, None),
        (CONV, Partition.ROWS, 7, 1, "conv: output rows must be divisible by the model axis of 7 for rows, got 8"),
        (CONV, Partition.ROWS, 9, 1, "must be divisible by the model axis of 9 for rows, got 8"),
        (STRIDED, Partition.ROWS, 4, 1, None),
        (STRIDED, Partition.ROWS, 8, 1, "output rows must be divisible by the model axis of 8 for rows, got 4"),
        (ODD, Partition.ROWS, 2, 1, "input rows must equal output rows × stride for rows, got 7 and 4 × 2"),
        (HEAD, Partition.ROWS, 1, 1, "rows must be of a layer on images, got dense"),
        (CONV, Partition.CHANNELS, 24, 1, None),
        (CONV, Partition.CHANNELS, 23, 1, "divisible by the model axis of 23 for channels, got 24"),
        (CONV, Partition.INPUT_CHANNELS, 12, 1, None),
        (CONV, Partition.INPUT_CHANNELS, 24, 1, "conv: input channels must be divisible by the model axis of 24"),
        (POOL, Partition.INPUT_CHANNELS, 2, 1, "input_channels must be of a layer with weights, got mean_pool"),
    ],
)
def test_refusal_names_layer_dimension_and_axis(layer, partition, model, batch_size, reason):
    got = refusal(layer, partition, MeshShape(model, 1), batch_size)
    if reason is None:
        assert got is None
    else:
        assert got is not None and reason in got and got.startswith(f"{layer.name}: ") and partition in got


def allowed(mesh: str, batch_size: int, partition: str) -> list[str]:
    network = (CONV, POOL, HEAD)
    return [" ".join(ps) for ps in allowed_partitions(network, MeshShape.parse(mesh), batch_size, partition)[0]]


@pytest.mark.parametrize(
    "mesh, batch_size, partition, expected",
    [
        ("1x4", 4, "auto", ["whole", "whole", "whole"]),
        ("1x4", 4, "rows", ["whole", "whole", "whole"]),
        (
            "2x1",
            4,
            "auto",
            [
                "whole samples rows channels input_channels",
                "whole samples rows channels",
                "whole samples channels input_channels",
            ],
        ),
        (
            "4x1",
            3,
            "auto",
            ["whole rows channels input_channels", "whole rows channels", "whole input_channels"],
        ),
        ("4x1", 4, "intra_sample", ["rows channels input_channels", "rows channels", "input_channels"]),
        ("3x1", 3, "intra_sample", ["channels input_channels", "channels", "input_channels"]),
        ("2x1", 4, "channels", ["channels input_channels", "whole samples rows channels"]),
        ("4x1", 4, "rows", ["rows", "whole samples rows channels", "whole samples input_channels"]),
        ("4x1", 4, "samples", ["samples", "whole samples rows channels", "whole samples input_channels"]),
    ],
)
def test_allowed_partitions(mesh, batch_size, partition, expected):
    assert allowed(mesh, batch_size, partition)[: len(expected)] == expected


def test_a_note_says_which_convolutions_stay_whole():
    partitions, notes = allowed_partitions((CONV, POOL, HEAD), MeshShape(5, 1), 4, "auto")
    assert partitions == [("whole",), ("whole",), ("whole", "channels")]
    assert notes == ("the model axis of 5 divides neither rows nor channels of 1 of 1 convolutions: left whole (conv)",)


@pytest.mark.parametrize(
    "mesh, batch_size, partition, message",
    [
        ("5x1", 4, "rows", "mesh 5x1: conv: output rows must be divisible by the model axis of 5 for rows, got 8"),
        ("5x1", 4, "channels", "mesh 5x1: conv: output channels must be divisible by the model axis of 5"),
        ("5x1", 4, "samples", "mesh 5x1: conv: 4 samples over a data axis"),
        ("5x1", 4, "intra_sample", "the model axis must divide the rows or channels of a convolution"),
        ("1x4", 4, "intra_sample", "the model axis must divide the rows or channels"),
        ("1x4", 6, "auto", "batch_size must be a multiple of the data axis of 4 in mesh 1x4, got 6"),
        ("4x1", 4, "columns", "partition must be one of auto, samples, rows, channels, intra_sample, got 'columns'"),
    ],
)
def test_what_a_mesh_cannot_do_is_refused(mesh, batch_size, partition, message):
    with pytest.raises(UsageError) as error:
        allowed(mesh, batch_size, partition)
    assert message in str(error.value)


def plan(*partitions: Partition) -> Plan:
    names = ("conv", "pool", "head")
    return Plan(tuple((name, LayerPlan(p, "native")) for name, p in zip(names, partitions, strict=True)))


def test_a_plan_as_json():
    head = Plan((("head", LayerPlan(Partition.WHOLE, "matmul", 4)),)).to_json()["head"]
    assert head == {"partition": "whole", "lowering": "matmul", "micro_batch": 4, "precision": "float32"}


@pytest.mark.parametrize(
    "partition, micro_batch, samples",
    [
        (Partition.ROWS, 0, None),
        (Partition.ROWS, 3, None),
        (Partition.ROWS, 6, None),
        (Partition.ROWS, 4, 6),
        (Partition.ROWS, 12, 6),
        (Partition.ROWS, -1, 6),
        (Partition.SAMPLES, 3, None),
        (Partition.SAMPLES, 6, 3),
    ],
)
def test_a_micro_batch_divides_the_samples_of_a_device(partition, micro_batch, samples):
    made, mesh = Plan((("conv", LayerPlan(partition, "native", micro_batch)),)), MeshShape(2, 2)
    assert local_samples(partition, mesh, 12) == (3 if partition == Partition.SAMPLES else 6)
    if samples is None:
        made.check((CONV,), mesh, 12)
        return
    message = f"mesh 2x2: conv: micro_batch must be 0 or divide the {samples} samples of a device, got {micro_batch}"
    with pytest.raises(UsageError, match=message):
        made.check((CONV,), mesh, 12)


def test_plan_check_names_layer_and_mesh():
    network = (CONV, POOL, HEAD)
    made = plan(Partition.CHANNELS, Partition.CHANNELS, Partition.INPUT_CHANNELS)
    made.check(network, MeshShape(3, 2), 2)
    with pytest.raises(UsageError, match="mesh 5x1: conv: output channels must be divisible"):
        made.check(network, MeshShape(5, 1), 1)
    with pytest.raises(UsageError, match="multiple of the data axis of 2"):
        made.check(network, MeshShape(3, 2), 3)
    with pytest.raises(UsageError, match="expected a plan of the layers"):
        made.check(network[:2], MeshShape(1, 1), 1)


def test_intra_sample_flops_fraction_counts_the_cut_layers():
    network = (CONV, POOL, HEAD)
    made = plan(Partition.ROWS, Partition.ROWS, Partition.WHOLE)
    conv, head = 2 * 8 * 8 * 24 * 9 * 12, 2 * 24 * 10
    assert made.intra_sample_flops_fraction(network, MeshShape(2, 1)) == conv / (conv + head)
    assert made.intra_sample_flops_fraction(network, MeshShape(1, 2)) == 0.0
    samples = plan(Partition.SAMPLES, Partition.SAMPLES, Partition.SAMPLES)
    assert samples.intra_sample_flops_fraction(network, MeshShape(2, 1)) == 0.0
    of_pools = Plan((("pool", LayerPlan(Partition.ROWS, "native")),))
    assert of_pools.intra_sample_flops_fraction((POOL,), MeshShape(2, 1)) == 0.0
