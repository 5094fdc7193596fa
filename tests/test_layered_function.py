"""A function that consists of layers is planned: the model axis cuts it by rows and channels."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import cambrian
from cambrian.engine import compile_program
from cambrian.models.costs.files import in_force
from cambrian.models.costs.machine import this_machine
from cambrian.models.costs.table import CostTable
from cambrian.models.execution.build_program import build_program
from cambrian.models.execution.settings import Plans
from cambrian.models.graph.read_layers import NotLayered, layered_network
from cambrian.sharding import (
    Kind,
    LayerSpec,
    Layout,
    MeshShape,
    Partition,
    UsageError,
    layouts,
    make_mesh,
    refusal,
)
from plan_cases import random_plan
from unsharded import relative_error

SPEC = jax.ShapeDtypeStruct((16, 16, 3), "float32")
IMAGES = np.random.default_rng(0).standard_normal((8, 16, 16, 3), np.float32)
ONE = ((1, 1), (1, 1))


class Network(nnx.Module):
    """A stem, pooling, a residual block, and a head."""

    def __init__(self, activation=nnx.relu):
        rngs = nnx.Rngs(0)
        self.activation = activation
        self.stem = nnx.Conv(3, 16, (3, 3), padding=ONE, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.down = nnx.Conv(16, 32, (3, 3), strides=2, padding=ONE, rngs=rngs)
        self.skip = nnx.Conv(16, 32, (1, 1), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, images):
        x = self.activation(self.norm(self.stem(images)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(self.activation(self.down(x) + self.skip(x)).mean((1, 2)))


class Mobile(nnx.Module):
    """Depthwise layers, activations other than ReLU, and the padding that Flax and Keras have by default."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
        self.expand = nnx.Conv(16, 32, (1, 1), rngs=rngs)
        self.down = nnx.Conv(32, 32, (5, 5), strides=2, feature_group_count=32, rngs=rngs)
        self.grouped = nnx.Conv(32, 32, (3, 3), feature_group_count=8, rngs=rngs)
        self.head = nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu6(self.stem(images))
        x = nnx.silu(self.expand(nnx.relu6(self.depthwise(x) + x)))
        x = nnx.gelu(self.down(x))
        x = nnx.max_pool(nnx.relu(self.grouped(x)), (3, 3), strides=(2, 2), padding="SAME")
        return self.head(x.mean((1, 2)))


class Flattening(nnx.Module):
    """Convolution, pooling, and dense layers on all pixels, as VGG and LeNet have them."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 8, (3, 3), padding=ONE, rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 8, 16, rngs=rngs)
        self.head = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(nnx.relu(self.conv(images)), (4, 4), strides=(4, 4))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def test_its_layers_are_named_by_their_parameters():
    model = Network()
    model.eval()
    graphdef, params = nnx.split(model)
    network = layered_network(
        lambda params, images: nnx.merge(graphdef, params)(images / 255.0 - 0.5),
        params,
        jax.ShapeDtypeStruct((1, 16, 16, 3), "float32"),
    )
    assert [(layer.name, layer.kind, layer.input, layer.residual) for layer in network.layers] == [
        ("stem", Kind.CONV, None, None),
        ("max_pool", Kind.MAX_POOL, "stem", None),
        ("skip", Kind.CONV, "max_pool", None),
        ("down", Kind.CONV, "max_pool", "skip"),
        ("mean_pool", Kind.MEAN_POOL, "down", None),
        ("head", Kind.DENSE, "mean_pool", None),
    ]
    assert [layer.activation for layer in network.layers] == ["RELU", None, None, "RELU", None, None]
    np.testing.assert_allclose(network.prepare(jax.numpy.asarray(IMAGES)), IMAGES / 255 - 0.5, rtol=1e-6)


def test_channel_groups_activations_and_padding_of_one_side_are_parts_of_layers():
    graphdef, params = nnx.split(Mobile())
    network = layered_network(
        lambda params, images: nnx.merge(graphdef, params)(images),
        params,
        jax.ShapeDtypeStruct((1, 16, 16, 3), "float32"),
    )
    assert [(layer.name, layer.padding, layer.groups, layer.activation) for layer in network.layers] == [
        ("stem", (0, 1), 1, "RELU6"),
        ("depthwise", (1, 1), 16, "RELU6"),
        ("expand", (0, 0), 1, "SWISH"),
        ("down", (1, 2), 32, "GELU_TANH"),
        ("grouped", (1, 1), 8, "RELU"),
        ("max_pool", (0, 1), 1, None),
        ("mean_pool", (0, 0), 1, None),
        ("head", (0, 0), 1, None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "batch_size"), [("4x2", 8), ("2x4", 8), ("8x1", 1), ("3x1", 3), ("1x2", 4)])
def test_any_legal_mix_of_partitions_computes_the_function(mesh, batch_size):
    shape = MeshShape.parse(mesh)
    graphdef, params = nnx.split(Mobile())
    inputs = jax.ShapeDtypeStruct((batch_size, 16, 16, 3), "float32")
    network = layered_network(lambda params, images: nnx.merge(graphdef, params)(images), params, inputs)
    for seed in range(3):
        plan = random_plan(network.layers, shape, batch_size, seed)
        device_mesh = make_mesh(shape, jax.devices())
        program = build_program(
            network,
            plan,
            device_mesh,
            name="mobile",
            inputs=inputs,
            reference=lambda images: np.asarray(Mobile()(images)),
        )
        executable = compile_program(program)
        images = IMAGES[:batch_size]
        expected = np.asarray(Mobile()(images))
        assert relative_error(executable(images), expected) <= 1e-5


def test_shipped_tables_know_no_channel_groups():
    shipped = in_force(CostTable("cpu", this_machine("cpu")))
    for model, is_known in ((Network(), True), (Mobile(), False)):
        model.eval()
        graphdef, params = nnx.split(model)
        inputs = jax.ShapeDtypeStruct((1, 16, 16, 3), "float32")
        layers = layered_network(lambda p, x, graphdef=graphdef: nnx.merge(graphdef, p)(x), params, inputs).layers
        assert Plans(layers, MeshShape(1, 1), shipped).knows_layers("float32") == is_known
        assert Plans(layers, MeshShape(1, 1), CostTable("cpu")).knows_layers("float32")


def test_channel_groups_are_cut_by_channels_without_a_transition():
    layer = LayerSpec("depthwise", Kind.CONV, None, (8, 8, 12), (8, 8, 12), 3, 1, (1, 1), groups=12)
    assert layouts(layer, Partition.CHANNELS) == (Layout.CHANNELS, Layout.CHANNELS)
    assert refusal(layer, Partition.CHANNELS, MeshShape(4, 1), 1) is None
    assert refusal(layer, Partition.CHANNELS, MeshShape(8, 1), 1) == (
        "depthwise: channel groups must be divisible by the model axis of 8 for channels, got 12"
    )
    assert "without channel groups" in (refusal(layer, Partition.INPUT_CHANNELS, MeshShape(4, 1), 1) or "")


@pytest.mark.slow
def test_integers_of_channel_groups_and_activations_are_cut_within_samples():
    calibration = np.random.default_rng(1).standard_normal((16, 16, 16, 3), np.float32)
    executable = cambrian.compile(
        Mobile(),
        spec=SPEC,
        mesh="2x2",
        batch_size=4,
        partition="intra_sample",
        precision="int8",
        calibration=calibration,
        max_top1_drop=100,
    )
    assert {"rows", "channels"} & {layer["partition"] for layer in executable.plan.values()}
    assert executable.program is not None
    expected = executable.program.reference(IMAGES[:4])
    assert relative_error(executable(IMAGES[:4]), expected) <= 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("network", [Network, Mobile])
@pytest.mark.parametrize(
    ("mesh", "partition", "batch_size", "precision", "tolerance"),
    [
        ("4x1", "rows", 2, "float32", 1e-5),
        ("2x2", "channels", 2, "float32", 1e-5),
        ("4x2", "intra_sample", 2, "bfloat16", 2e-2),
        ("2x1", "auto", 1, "float32", 1e-5),
    ],
)
def test_the_model_axis_cuts_within_samples(mesh, partition, batch_size, precision, tolerance, network):
    model = network()
    executable = cambrian.compile(
        model, spec=SPEC, mesh=mesh, batch_size=batch_size, partition=partition, precision=precision
    )
    cuts = {layer["partition"] for layer in executable.plan.values()}
    assert partition == "auto" or cuts & {"rows", "channels"}
    assert partition != "rows" or executable.plan["stem"]["partition"] == "rows"
    model.eval()
    expected = np.asarray(model(IMAGES))
    error = relative_error(executable(IMAGES), expected)
    assert error <= tolerance


@pytest.mark.parametrize(("mesh", "precision", "tolerance"), [("2x1", "float32", 1e-5), ("4x2", "bfloat16", 2e-2)])
def test_a_dense_layer_on_all_pixels_is_cut_by_channels(mesh, precision, tolerance):
    model = Flattening()
    executable = cambrian.compile(
        model, spec=SPEC, mesh=mesh, batch_size=2, partition="intra_sample", precision=precision
    )
    assert list(executable.plan) == ["conv", "max_pool", "hidden", "head"]
    assert {executable.plan[name]["partition"] for name in ("hidden", "head")} <= {"channels", "input_channels"}
    expected = np.asarray(model(IMAGES))
    assert relative_error(executable(IMAGES), expected) <= tolerance


def test_zeros_around_the_output_of_a_relu_are_padding_of_the_pooling():
    params = {"stem": {"kernel": np.ones((1, 1, 3, 4), np.float32)}}

    def function(params, x):
        y = nnx.relu(x @ params["stem"]["kernel"][0, 0])
        y = jax.numpy.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nnx.max_pool(y, (3, 3), (2, 2)).mean((1, 2))

    network = layered_network(function, params, jax.ShapeDtypeStruct((1, 9, 9, 3), "float32"))
    pool = network.layers[1]
    assert (pool.kind, pool.padding, pool.in_shape, pool.out_shape) == (Kind.MAX_POOL, (1, 1), (9, 9, 4), (5, 5, 4))


@pytest.mark.parametrize(
    ("zeros", "size", "around"),
    [((-1, -1), 2, (0, 0)), ((-1, 0), 3, (1, 0)), ((1, 1), 2, (1, 1)), ((0, 2), 3, (0, 1)), ((3, 0), 3, (0, 0))],
)
def test_zeros_that_decide_a_maximum_or_cut_pixels_off_are_no_padding_of_the_pooling(zeros, size, around):
    both: Any = (around, around)  # of rows and columns
    params = {"stem": {"kernel": np.ones((1, 1, 3, 4), np.float32)}}

    def function(params, x):
        y = nnx.relu(x @ params["stem"]["kernel"][0, 0])
        y = jax.lax.pad(y, 0.0, ((0, 0, 0), (*zeros, 0), (*zeros, 0), (0, 0, 0)))
        return nnx.max_pool(y, (size, size), (2, 2), both).mean((1, 2))

    with pytest.raises(NotLayered, match="the operation pad"):
        layered_network(function, params, jax.ShapeDtypeStruct((1, 9, 9, 3), "float32"))


def test_padding_by_integers_of_numpy_can_be_written_to_a_cost_table():
    around: Any = ((0, 0, 0), *[(np.int64(1), np.int64(1), 0)] * 2, (0, 0, 0))  # as Keras has it

    def function(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            jax.lax.pad(x, 0.0, around), params["kernel"], (1, 1), "VALID", None, None, numbers
        )
        return nnx.max_pool(jax.lax.pad(nnx.relu(y), 0.0, around), (3, 3), (2, 2)).mean((1, 2))

    params = {"kernel": np.ones((3, 3, 3, 4), np.float32)}
    network = layered_network(function, params, jax.ShapeDtypeStruct((1, 9, 9, 3), "float32"))
    assert json.loads(json.dumps([layer.padding for layer in network.layers])) == [[1, 1], [1, 1], [0, 0]]


def test_other_functions_are_cut_by_samples_alone():
    model = Network(nnx.softplus)
    with pytest.raises(UsageError, match=r"partition must be auto or samples for Network, which contains .*operation"):
        cambrian.compile(model, spec=SPEC, mesh="2x1", batch_size=2, partition="rows")
    with pytest.raises(UsageError, match=r"multiple of the mesh's 2 devices for Network, which .*, got 1"):
        cambrian.compile(model, spec=SPEC, mesh="2x1", batch_size=1)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda params, x: x[..., :1] + x[..., 1:2], "the operation slice"),
        (lambda params, x: jax.nn.softmax(x.mean((1, 2)) @ params["head"]["kernel"]), "the operation reduce_max"),
        (lambda params, x: (x.sum((1, 2)) / 3) @ params["head"]["kernel"], "a sum that isn't the mean"),
        (lambda params, x: (x @ params["head"]["kernel"]).astype("bfloat16"), "the operation convert_element_type"),
        (lambda params, x: x.astype("bfloat16") @ params["head"]["kernel"].astype("bfloat16"), "in bfloat16"),
        (lambda params, x: (x.mean((1, 2)) @ params["head"]["kernel"]).reshape(-1, 2, 2) @ np.eye(2, 3), "reshape"),
        (lambda params, x: x.mean((1, 2), keepdims=True), r"results \(N, 1, 1, C\)"),
        (lambda params, x: x * 2, "results other than the output of the last layer"),
    ],
)
def test_what_is_no_layer_is_named(function, what):
    params = {"head": {"kernel": np.ones((3, 4), np.float32)}}
    with pytest.raises(NotLayered, match=what):
        layered_network(function, params, jax.ShapeDtypeStruct((1, 4, 4, 3), "float32"))


@pytest.mark.parametrize("given", [IMAGES[:5], IMAGES.astype(np.float16), {"images": IMAGES}])
def test_the_program_refuses_inputs_that_custom_calls_were_not_made_for(given):
    executable = cambrian.compile(Network(), spec=SPEC, batch_size=8, precision="bfloat16", calibrate_s=0)
    assert executable.program is not None
    apply = jax.jit(executable.program.apply)
    assert apply(executable.params, IMAGES).shape == (8, 8)
    with pytest.raises(UsageError, match="inputs must have"):
        apply(executable.params, given)
