"""Every legal mix of partitions gives the logits of the unsharded network."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cambrian.models.costs.table import CostTable
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.build_program import build_program
from cambrian.models.resnet.network import network
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import (
    Kind,
    LayerPlan,
    MeshShape,
    Partition,
    Plan,
    Program,
    UsageError,
    make_mesh,
)
from plan_cases import random_plan
from unsharded import outputs_of, relative_error

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def build(architecture, mesh, plan, image_size, batch_size, precision="float32") -> Program:
    return build_program(
        architecture,
        random_variables(architecture, seed=1),
        plan,
        make_mesh(mesh, jax.devices()),
        image_size=image_size,
        batch_size=batch_size,
        precision=precision,
        mean=MEAN,
        std=STD,
    )


def plan_of(net, mesh: MeshShape, batch_size: int, partition: str = "auto", precision: str = "float32") -> Plan:
    """The plan by nominal costs, the same on every machine."""
    return make_plan(net, mesh, batch_size, "cpu", precision, partition, table=CostTable("cpu"))


def images_of(batch_size: int, image_size: int) -> np.ndarray:
    # The first of the same 32, so that one reference serves every batch size.
    return np.random.default_rng(0).integers(0, 256, (32, image_size, image_size, 3), np.uint8)[:batch_size]


@functools.cache
def unsharded_logits(architecture: Architecture, image_size: int) -> np.ndarray:
    net = network(architecture, image_size)
    plan = plan_of(net, MeshShape(1, 1), 32)
    return build(architecture, MeshShape(1, 1), plan, image_size, 32).reference(images_of(32, image_size))


def assert_unsharded_logits(program: Program, architecture: Architecture, tolerance: float = 1e-5) -> None:
    batch_size, image_size = program.input_spec.shape[:2]
    expected = unsharded_logits(architecture, image_size)[:batch_size]
    error = relative_error(outputs_of(program, images_of(batch_size, image_size)), expected)
    assert error <= tolerance, error


# Width and image size are such that each mesh finds rows and channels to cut; 10 classes and the deep layers don't
# always divide. The second batch of a mesh isn't divisible by the model axis, so that samples isn't legal.
CASES = [
    ("1x32", 32, 32, 32, "cifar"),
    ("2x16", 32, 32, 16, "imagenet"),
    ("4x8", 32, 32, 24, "cifar"),
    ("8x4", 32, 32, 4, "cifar"),
    ("16x2", 32, 32, 6, "imagenet"),
    ("32x1", 32, 32, 3, "cifar"),
    ("32x1", 32, 32, 32, "imagenet"),
    ("3x2", 12, 24, 4, "imagenet"),
    ("3x2", 12, 24, 6, "cifar"),
    ("5x1", 20, 20, 5, "imagenet"),
]


@pytest.mark.slow
@pytest.mark.parametrize("mesh, width, image_size, batch_size, stem", CASES)
def test_any_legal_mix_of_partitions_gives_the_unsharded_logits(mesh, width, image_size, batch_size, stem):
    shape = MeshShape.parse(mesh)
    seed = CASES.index((mesh, width, image_size, batch_size, stem))
    architecture = Architecture(stem, blocks=(1, 1), bottleneck=seed % 2 == 0, num_classes=10, width=width)
    net = network(architecture, image_size)
    program = build(architecture, shape, random_plan(net, shape, batch_size, seed), image_size, batch_size)
    assert_unsharded_logits(program, architecture)


@pytest.mark.parametrize("partition", ["auto", "samples", "rows", "channels", "intra_sample"])
@pytest.mark.parametrize("bottleneck", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_each_partition_flag_gives_the_unsharded_logits(partition, bottleneck):
    shape, image_size, batch_size = MeshShape(2, 4), 16, 8
    architecture = Architecture("cifar", blocks=(1, 1), bottleneck=bottleneck, num_classes=10, width=8)
    net = network(architecture, image_size)
    plan = plan_of(net, shape, batch_size, partition)
    program = build(architecture, shape, plan, image_size, batch_size)
    assert_unsharded_logits(program, architecture)


def test_a_halo_wider_than_a_device_s_rows_reaches_over_several_neighbours():
    architecture = Architecture("imagenet", blocks=(1,), bottleneck=False, num_classes=10, width=4)
    net = network(architecture, 16)  # 7×7 over 2 rows a device: three rows from above
    shape = MeshShape(8, 1)
    plan = Plan(
        tuple(
            (
                layer.name,
                LayerPlan(Partition.ROWS if layer.name == "conv1" else Partition.WHOLE, "native"),
            )
            for layer in net
        )
    )
    program = build(architecture, shape, plan, 16, 1)
    assert_unsharded_logits(program, architecture)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_images_are_normalised_before_their_channels_are_cut(micro_batch):
    architecture = Architecture("cifar", blocks=(1,), bottleneck=False, num_classes=10, width=4)
    net = network(architecture, 8)
    cut = {"conv1": Partition.INPUT_CHANNELS}
    plan = Plan(
        tuple((layer.name, LayerPlan(cut.get(layer.name, Partition.WHOLE), "native", micro_batch)) for layer in net)
    )
    assert_unsharded_logits(build(architecture, MeshShape(3, 1), plan, 8, 2), architecture)


def test_odd_image_sizes_are_computed_whole_where_nothing_divides():
    architecture = Architecture("cifar", blocks=(1, 1), bottleneck=True, num_classes=10, width=8)
    net = network(architecture, 15)
    plan = plan_of(net, MeshShape(3, 1), 1, "intra_sample")
    assert plan["conv1"].partition == Partition.ROWS
    assert plan["layer2.0.conv2"].partition == Partition.WHOLE
    assert plan.notes == (
        "the model axis of 3 divides neither rows nor channels of 3 of 9 convolutions: "
        "left whole (layer2.0.conv2, layer2.0.downsample.conv, layer2.0.conv3)",
    )
    program = build(architecture, MeshShape(3, 1), plan, 15, 1)
    assert_unsharded_logits(program, architecture)


def test_apply_stands_inside_other_jitted_computation():
    architecture = Architecture("cifar", blocks=(1,), bottleneck=True, num_classes=10, width=8)
    plan = plan_of(network(architecture, 8), MeshShape(2, 2), 2, "intra_sample")
    program = build(architecture, MeshShape(2, 2), plan, 8, 2)
    images = images_of(2, 8)

    @jax.jit
    def probabilities(params, images):
        return jax.nn.softmax(program.apply(params, images[:, :, ::-1]))

    logits = program.reference(images[:, :, ::-1])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(list(program.params), images), expected, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_stays_within_its_tolerance_of_float32():
    architecture = Architecture("cifar", blocks=(1, 1), bottleneck=True, num_classes=10, width=16)
    net = network(architecture, 16)
    plan = plan_of(net, MeshShape(2, 4), 8, "intra_sample", "bfloat16")
    program = build(architecture, MeshShape(2, 4), plan, 16, 8, precision="bfloat16")
    error = relative_error(outputs_of(program, images_of(8, 16)), unsharded_logits(architecture, 16)[:8])
    assert 1e-5 < error <= program.tolerance == 2e-2


def test_shardings_of_inputs_parameters_and_outputs():
    architecture = Architecture("cifar", blocks=(1,), bottleneck=True, num_classes=10, width=8)
    net = network(architecture, 8)
    last: dict[str, tuple[Partition, ...]] = {  # the partitions of the convolutions, the pool and the dense layer
        "samples": (Partition.SAMPLES, Partition.SAMPLES, Partition.SAMPLES),
        "rows": (Partition.ROWS, Partition.ROWS, Partition.WHOLE),
        "channels": (Partition.CHANNELS, Partition.CHANNELS, Partition.INPUT_CHANNELS),
    }
    expected = {
        "samples": (P(("data", "model")), P(), P(("data", "model"))),
        "rows": (P("data", "model"), P(), P("data")),
        "channels": (P("data"), P("model"), P("data")),
    }
    for partition, (images, kernel, logits) in expected.items():
        of_kind: dict[Kind, Partition] = dict(
            zip((Kind.CONV, Kind.MEAN_POOL, Kind.DENSE), last[partition], strict=True)
        )
        plan = Plan(
            tuple(
                (layer.name, LayerPlan(of_kind[layer.kind], "im2col" if layer.kernel > 1 else "matmul"))
                for layer in net
            )
        )
        program = build(architecture, MeshShape(4, 2), plan, 8, 8)
        specs = {spec.name: spec for spec in program.param_specs}
        assert program.input_spec.partition_spec == images
        assert specs["conv1.kernel"].partition_spec == kernel
        assert program.output_spec.partition_spec == logits
        assert [name for name, _ in plan.layers if f"{name}.kernel" in specs] == [
            spec.name.removesuffix(".kernel") for spec in program.param_specs if spec.name.endswith(".kernel")
        ]
    # Cut kernels lie shard after shard: (model, taps, in, out / model).
    assert specs["conv1.kernel"].shape == (4, 9, 3, 2)
    assert specs["layer1.0.conv1.bias"].shape == (4, 2)


def test_a_plan_the_mesh_cannot_do_is_refused_naming_layer_dimension_and_axis():
    architecture = Architecture("cifar", blocks=(1,), bottleneck=True, num_classes=10, width=8)
    net = network(architecture, 8)
    plan = plan_of(net, MeshShape(4, 1), 4, "rows")
    with pytest.raises(UsageError, match="mesh 3x1: conv1: output rows must be divisible by the model axis of 3"):
        build(architecture, MeshShape(3, 1), plan, 8, 4)
    winograd = Plan(tuple((name, LayerPlan(p.partition, "fft")) for name, p in plan.layers))
    with pytest.raises(UsageError, match="lowering of conv1 must be one of native, matmul, im2col, .*, got 'fft'"):
        build(architecture, MeshShape(4, 1), winograd, 8, 4)
    matmul = Plan(tuple((name, LayerPlan(p.partition, "matmul")) for name, p in plan.layers))
    with pytest.raises(UsageError, match="lowering of conv1 must compute a 3×3 convolution with stride 1, got matmul"):
        build(architecture, MeshShape(4, 1), matmul, 8, 4)


def test_a_bias_has_the_type_it_is_added_in():
    if obstacle := LOWERINGS["onednn"].obstacle("cpu"):
        pytest.skip(obstacle)
    architecture = Architecture("cifar", blocks=(1,), bottleneck=True, num_classes=10, width=8)
    net = network(architecture, 8)
    plan = Plan(
        tuple(
            (layer.name, LayerPlan(Partition.WHOLE, "onednn" if layer.name == "conv1" else "im2col"))
            if layer.kernel == 3
            else (layer.name, LayerPlan(Partition.WHOLE, "matmul"))
            for layer in net
        )
    )
    specs = {spec.name: spec for spec in build(architecture, MeshShape(1, 1), plan, 8, 4, "bfloat16").param_specs}
    assert specs["conv1.bias"].dtype == "bfloat16"  # by oneDNN, whose operands are all of one type
    assert specs["layer1.0.conv2.bias"].dtype == "float32"


@pytest.mark.slow
def test_the_logits_of_a_dense_layer_by_onednn_stay_float32():
    if obstacle := LOWERINGS["onednn"].obstacle("cpu"):
        pytest.skip(obstacle)
    architecture = Architecture("cifar", blocks=(1,), bottleneck=True, num_classes=10, width=16)
    *layers, (name, _) = plan_of(network(architecture, 8), MeshShape(2, 1), 4, "channels", "bfloat16").layers

    def logits(dense: LayerPlan) -> np.ndarray:
        plan = Plan((*layers, (name, dense)))
        return outputs_of(build(architecture, MeshShape(2, 1), plan, 8, 4, "bfloat16"), images_of(4, 8))

    expected = logits(LayerPlan(Partition.WHOLE, "matmul"))
    for partition in (Partition.WHOLE, Partition.CHANNELS, Partition.INPUT_CHANNELS):
        assert relative_error(logits(LayerPlan(partition, "onednn")), expected) <= 1e-6, partition


@pytest.mark.parametrize(("mesh", "partition"), [(MeshShape(2, 2), "rows"), (MeshShape(2, 1), "channels")])
@pytest.mark.parametrize("size", [(16, 20), pytest.param((16, 9), marks=pytest.mark.slow)])
def test_images_of_two_sizes_give_the_unsharded_logits(mesh, partition, size):
    architecture, batch_size = Architecture("imagenet", (1, 1), True, 6, width=4), 4
    plan = plan_of(network(architecture, size), mesh, batch_size, partition)
    program = build(architecture, mesh, plan, size, batch_size)
    assert program.input_spec.shape == (batch_size, *size, 3)
    images = np.random.default_rng(0).integers(0, 256, program.input_spec.shape, np.uint8)
    assert relative_error(outputs_of(program, images), program.reference(images)) <= 1e-5
