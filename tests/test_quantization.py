"""int8: which layers are on integers, and integers as a float64 simulation computes them on every mesh."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cambrian.models.costs.table import CostTable
from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.graph.build_program import build_program as build_function
from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings
from cambrian.models.graph.fused_convolution import layer_name
from cambrian.models.graph.observe import evaluator
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.quantization import Calibration, Quantized, quantized
from cambrian.models.graph.quantize import quantizable
from cambrian.models.graph.read_layers import read_layers
from cambrian.models.graph.trace import trace
from cambrian.models.lowerings.onednn_forms import int8_obstacle
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.build_program import build_program, quantize
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import Kind, MeshShape, Partition, UsageError, make_mesh
from graph_cases import conv
from unsharded import outputs_of, relative_error

pytestmark = pytest.mark.skipif(int8_obstacle("cpu") is not None, reason=str(int8_obstacle("cpu")))

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (24, 32, 32, 3), np.uint8)
# Two blocks with a residual each, one of them across a change of shape; and a stem that pools.
ARCHITECTURES = {
    "cifar": Architecture("cifar", (2, 1), True, 10, width=32),
    "imagenet": Architecture("imagenet", (1, 1), False, 10, width=64),
}


@functools.cache
def quantized_resnet(stem: str, max_top1_drop: float = 100.0) -> Quantized:
    architecture = ARCHITECTURES[stem]
    calibration = Calibration(IMAGES, "noise", max_top1_drop=max_top1_drop)
    return quantize(architecture, random_variables(architecture), calibration, image_size=32, mean=MEAN, std=STD)


def simulated(network: LayeredNetwork, images: np.ndarray) -> np.ndarray:
    """The logits in float64, from the definition of each layer alone."""
    pixels = ((images / 255 - MEAN) / STD).astype(np.float32)
    tensors: dict[str | None, np.ndarray] = {None: pixels}  # uint8, or floats
    for layer in network.layers:
        x, integers = tensors[layer.input], network.integers.get(layer.name)
        residual = None if layer.residual is None else tensors[layer.residual].astype(np.float64)
        if integers is None and x.dtype == np.uint8 and layer.kind != Kind.MAX_POOL:
            x = (x - float(network.stored[layer.input].zero)) * network.stored[layer.input].scale
        if integers is not None and integers.images is not None:
            x = rounded(x * np.float32(1 / integers.images.scale) + integers.images.zero, layer.quantized)
        if layer.kind == Kind.MEAN_POOL:
            y = x.mean((1, 2), keepdims=True)
        elif layer.kind == Kind.MAX_POOL:
            y = windows(layer, x).max((4, 5))
        else:
            kernel, bias = (network.params[f"{layer.name}.{name}"].astype(np.float64) for name in ("kernel", "bias"))
            y = np.tensordot(windows(layer, x.astype(np.float64)), kernel, ((4, 5, 3), (0, 1, 2))) + bias
            scale, out_scale = (1.0, 1.0) if integers is None else integers.scales
            y = y * scale if residual is None else (y * scale + residual) * out_scale
            y = np.maximum(y, 0) if layer.activation else y
            y = rounded(y, integers.out_dtype) if integers is not None and integers.out_dtype != "float32" else y
        tensors[layer.name] = y
    return tensors[network.layers[-1].name].reshape(len(images), -1)


@functools.cache
def simulated_logits(stem: str) -> np.ndarray:
    return simulated(read_layers(quantized_resnet(stem).graph), IMAGES)


@functools.cache
def reference_logits(stem: str) -> np.ndarray:
    return quantized_resnet(stem).reference(IMAGES)


def windows(layer, x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), layer.padding, layer.padding, (0, 0)))  # with zeros: what is pooled is never negative
    found = sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(1, 2))
    return found[:, :: layer.stride, :: layer.stride]


def rounded(y: np.ndarray, dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.clip(np.rint(y), limits.min, limits.max).astype(dtype)


@pytest.mark.parametrize("stem", ARCHITECTURES)
@pytest.mark.parametrize(
    "mesh, partition",
    [("1x1", "auto"), ("2x4", "samples"), ("4x2", "rows"), ("2x2", "channels"), ("4x2", "intra_sample")],
)
def test_integers_are_those_of_a_float64_simulation(stem, mesh, partition):
    found, shape = quantized_resnet(stem), MeshShape.parse(mesh)
    network = read_layers(found.graph)
    plan = make_plan(network.layers, shape, 24, "cpu", "int8", partition, table=CostTable("cpu"))
    assert {plan[layer.name].precision for layer in network.layers if layer.quantized} == {"int8"}
    program = build_program(
        ARCHITECTURES[stem],
        {},
        plan,
        make_mesh(shape, jax.devices()),
        image_size=32,
        batch_size=24,
        precision="int8",
        quantized=found,
    )
    reference = reference_logits(stem)
    # In another precision or order of a sum, a value between two integers may round to the other one.
    assert relative_error(reference, simulated_logits(stem)) <= 1e-2
    assert relative_error(outputs_of(program, IMAGES), reference) <= 1e-3
    assert program.tolerance == max(1e-2, 2 * found.facts["relative_error"])
    dtypes = {spec.name: spec.dtype for spec in program.param_specs}
    assert dtypes["conv1.kernel"] == dtypes["layer1.0.conv2.kernel"] == "int8" and dtypes["fc.kernel"] == "float32"
    assert program.metadata["quantization"]["num_images"] == 24


def test_all_layers_but_the_last_and_channel_groups_are_on_integers():
    def function(params, x):
        x = jax.nn.relu(conv(x, params["first"]))
        x = conv(x, params["linear"])
        x = conv(x, params["padded"]) + conv(x, params["unpadded"])
        x = jax.nn.gelu(conv(x, params["gelu"]))
        x = x + jax.nn.silu(conv(x, params["silu"]) + x)
        x = jax.nn.relu(conv(x, params["grouped"], feature_group_count=2))
        return x.mean((1, 2)) @ params["last"]

    sizes = {"first": 3, "linear": 3, "padded": 3, "unpadded": 1, "gelu": 3, "silu": 3}
    shapes = {name: (size, size, 64, 64) for name, size in sizes.items()}  # so many channels that kernels are packed
    shapes |= {"grouped": (3, 3, 32, 64), "last": (64, 8)}
    params = {
        name: RANDOM.standard_normal(shape, np.float32) / math.prod(shape[:-1]) ** 0.5 for name, shape in shapes.items()
    }
    inputs = RANDOM.standard_normal((16, 4, 4, 64), np.float32)
    graph = optimized(trace(function, params, jax.ShapeDtypeStruct((16, 4, 4, 64), "float32"))[0])
    found = quantized(graph, Calibration(inputs, "noise", max_top1_drop=100.0))
    assert {*found.facts["scales"]} == {*sizes}
    assert 1e-4 < relative_error(found.reference(inputs), np.asarray(function(params, inputs))) < 0.03
    by_calls = choose_lowerings(found.graph, jax.devices("cpu")[0], MeasuredCosts(Path("unused")), seconds=0.0)
    assert relative_error(evaluator(by_calls)(inputs)[0], found.reference(inputs)) < 1e-3


def test_sums_that_overflow_32_bits_keep_float32():
    def names(size: int) -> list[str]:
        params = {"wide": np.zeros((size, 8), np.float32), "last": np.zeros((8, 8), np.float32)}
        shape = jax.ShapeDtypeStruct((1, size), "float32")
        graph = optimized(trace(lambda p, x: jax.nn.relu(x @ p["wide"]) @ p["last"], params, shape)[0])
        return [layer_name(node) for node in quantizable(graph)]

    fits = (2**31 - 1) // (255 * 127)
    assert names(fits) == ["wide"] and names(fits + 1) == []


def test_inverted_residuals_are_on_integers():
    """Depthwise layers, ReLU6, and linear results that are read and added, as in MobileNetV2."""

    def block(params, x, name):
        y = jax.nn.relu6(conv(x, params[f"{name}_expand"]))
        kernel = params[f"{name}_depthwise"].reshape(3, 3, 1, 96)  # as Keras does
        y = jax.nn.relu6(conv(y, kernel, feature_group_count=96) + 2)  # some reach 6
        return conv(y, params[f"{name}_project"])

    def function(params, x):
        x = block(params, x, "a")
        x = x + block(params, x, "b")
        x = jax.nn.silu(conv(x, params["silu"]))
        return conv(x, params["after"]).mean((1, 2)) @ params["last"]

    shapes = {"expand": (1, 1, 32, 96), "depthwise": (3, 3, 96, 1), "project": (1, 1, 96, 32)}
    shapes = {f"{block}_{name}": shape for block in "ab" for name, shape in shapes.items()}
    shapes |= {"silu": (1, 1, 32, 32), "after": (1, 1, 32, 32), "last": (32, 10)}
    taps = {name: 9.0 if "depthwise" in name else float(np.prod(shape[:-1])) for name, shape in shapes.items()}
    params = {name: RANDOM.standard_normal(shape, np.float32) / taps[name] ** 0.5 for name, shape in shapes.items()}
    inputs = RANDOM.standard_normal((16, 8, 8, 32), np.float32)
    graph = optimized(trace(function, params, jax.ShapeDtypeStruct((16, 8, 8, 32), "float32"))[0])
    found = quantized(graph, Calibration(inputs, "noise", max_top1_drop=100.0))
    assert list(found.facts["scales"]) == [*shapes][:-1]
    assert [node.name for node in found.graph.nodes if node.name in ("quantize", "dequantize")] == ["quantize"]
    exact = np.asarray(function(params, inputs))
    assert 1e-4 < relative_error(found.reference(inputs), exact) < 0.03
    cpu = jax.devices("cpu")[0]
    by_calls = choose_lowerings(found.graph, cpu, MeasuredCosts(Path("unused")), seconds=0.0)
    assert relative_error(evaluator(by_calls)(inputs)[0], found.reference(inputs)) < 1e-3


def test_any_function_of_layers_and_more_has_int8():
    params = {
        "first": RANDOM.standard_normal((3, 3, 3, 64), np.float32) / 5,
        "inner": RANDOM.standard_normal((3, 3, 64, 64), np.float32) / 24,
        "last": RANDOM.standard_normal((64, 10), np.float32) / 8,
    }

    def function(params, x):
        x = jax.nn.relu(conv(x, params["first"]))
        x = jnp.tanh(jax.nn.relu(conv(x, params["inner"])))
        return x.mean((1, 2)) @ params["last"]

    samples = RANDOM.standard_normal((32, 8, 8, 3), np.float32)
    inputs, mesh = jax.ShapeDtypeStruct((8, 8, 8, 3), "float32"), make_mesh(MeshShape(1, 2), jax.devices())
    program = build_function(
        function, params, inputs, mesh, name="net", precision="int8", calibration=Calibration(samples, "noise")
    )
    assert program.plan is not None
    assert [plan.precision for _, plan in program.plan.layers] == ["int8", "int8", "float32"]
    got = outputs_of(program, samples[:8])
    assert relative_error(got, program.reference(samples[:8])) <= 1e-3
    assert 1e-4 < relative_error(got, np.asarray(function(params, samples[:8]))) < 0.05
    with pytest.raises(UsageError, match="precision int8 needs calibration, samples of the inputs of net, got None"):
        build_function(function, params, inputs, mesh, name="net", precision="int8")


def test_concatenated_integers_have_one_scale():
    shapes = {
        "stem": (3, 3, 3, 16),
        "wide": (3, 3, 16, 24),
        "narrow": (1, 1, 16, 8),
        "inner": (3, 3, 48, 16),
        "last": (16, 10),
    }
    params = {
        name: RANDOM.standard_normal(shape, np.float32) / math.prod(shape[:-1]) ** 0.5 for name, shape in shapes.items()
    }
    params["wide"] *= 7  # another range than that of the rest

    def function(params, x):
        x = jax.nn.relu(conv(x, params["stem"]))
        wide, narrow = (jax.nn.relu(conv(x, params[name])) for name in ("wide", "narrow"))
        pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        joined = jnp.concatenate([jnp.concatenate([wide, narrow], axis=-1), pooled], axis=-1)
        return jax.nn.relu(conv(joined, params["inner"])).mean((1, 2)) @ params["last"]

    samples = RANDOM.standard_normal((32, 8, 8, 3), np.float32)
    graph, _ = trace(function, params, jax.ShapeDtypeStruct((8, 8, 8, 3), "float32"))
    found = quantized(optimized(graph), Calibration(samples, "noise", max_top1_drop=100.0))
    concatenations = [node for node in found.graph.nodes if node.name == "concatenate"]
    assert concatenations
    assert {str(value.dtype) for node in concatenations for value in (*node.inputs, node.output)} == {"uint8"}
    assert sum(node.name == "quantize" for node in found.graph.nodes) == 1  # the images
    assert relative_error(found.reference(samples), np.asarray(function(params, samples))) < 0.05


@pytest.mark.parametrize(("factor", "dtype"), [(0.5, "uint8"), (40, "float32")])
def test_a_concatenation_keeps_the_bound_of_a_relu6(factor, dtype):
    random = np.random.default_rng(1)
    shapes = {"stem": (3, 3, 3, 16), "wide": (3, 3, 16, 24), "bounded": (1, 1, 16, 8), "inner": (1, 1, 32, 16)}
    params = {
        name: random.standard_normal(shape, np.float32) / math.prod(shape[:-1]) ** 0.5 for name, shape in shapes.items()
    }
    params |= {"wide": params["wide"] * factor, "bounded": params["bounded"] * 20, "last": np.eye(16, dtype=np.float32)}

    def function(params, x):
        x = jax.nn.relu(conv(x, params["stem"]))
        wide, bounded = (conv(x, params[name]) for name in ("wide", "bounded"))
        joined = jnp.concatenate([jax.nn.relu(wide), jax.nn.relu6(bounded)], axis=-1)
        return jax.nn.relu(conv(joined, params["inner"])).mean((1, 2)) @ params["last"]

    samples = random.standard_normal((32, 8, 8, 3), np.float32)
    graph, _ = trace(function, params, jax.ShapeDtypeStruct((8, 8, 8, 3), "float32"))
    found = quantized(optimized(graph), Calibration(samples, "noise", max_top1_drop=100.0))
    assert [str(node.output.dtype) for node in found.graph.nodes if node.name == "concatenate"] == [dtype]
    assert relative_error(found.reference(samples), np.asarray(function(params, samples))) < 0.05


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pooling_over_channels_has_no_channels_to_rescale(stride):
    params = {
        "first": RANDOM.standard_normal((3, 3, 4, 16), np.float32) * np.logspace(-1, 1, 16, dtype=np.float32),
        "inner": RANDOM.standard_normal((3, 3, 16 // stride, 8), np.float32) / 3,
        "last": RANDOM.standard_normal((8, 10), np.float32),
    }

    def function(params, x):
        y = jax.nn.relu(conv(x, params["first"]))
        window, strides = (1, 1, 1, 3 - stride % 2), (1, 1, 1, stride)
        y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, window, strides, "SAME")
        return jax.nn.relu(conv(y, params["inner"])).mean((1, 2)) @ params["last"]

    samples = RANDOM.standard_normal((32, 8, 8, 4), np.float32)
    inputs, mesh = jax.ShapeDtypeStruct((8, 8, 8, 4), "float32"), make_mesh(MeshShape(1, 1), jax.devices())
    program = build_function(
        function, params, inputs, mesh, name="net", precision="int8", calibration=Calibration(samples, "noise")
    )
    assert relative_error(outputs_of(program, samples[:8]), np.asarray(function(params, samples[:8]))) < 0.05


def test_a_graph_that_computes_something_else_is_not_quantised():
    kernel, inputs = RANDOM.standard_normal((8, 8), np.float32), RANDOM.standard_normal((16, 8), np.float32)
    graph = optimized(trace(lambda k, x: jax.nn.relu(x @ k) @ k, kernel, inputs)[0])
    with pytest.raises(UsageError, match=r"int8 needs float32 outputs of the optimised function within 0.0001 of its"):
        quantized(graph, Calibration(inputs, "noise"), lambda x: jax.nn.relu(x @ kernel) @ kernel + 0.1)


def test_padding_pooling_and_flattening_stay_on_integers_when_rows_are_cut():
    def function(params, x):
        x = jnp.pad(jax.nn.relu(conv(x, params["first"])), ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(conv(x, params["inner"])).reshape(len(x), -1)
        return jax.nn.relu(x @ params["dense"]) @ params["last"]

    shapes = {"first": (3, 3, 3, 64), "inner": (3, 3, 64, 64), "dense": (4 * 4 * 64, 32), "last": (32, 10)}
    params = {
        name: RANDOM.standard_normal(shape, np.float32) / math.prod(shape[:-1]) ** 0.5 for name, shape in shapes.items()
    }
    samples = RANDOM.standard_normal((16, 8, 8, 3), np.float32)
    program = build_function(
        function,
        params,
        jax.ShapeDtypeStruct((8, 8, 8, 3), "float32"),
        make_mesh(MeshShape(2, 1), jax.devices()),
        name="net",
        precision="int8",
        partition="rows",
        calibration=Calibration(samples, "noise", max_top1_drop=100.0),
    )
    assert program.plan is not None
    partitions = {name: plan.partition for name, plan in program.plan.layers if plan.precision == "int8"}
    assert [*partitions] == ["first", "inner", "dense"] and partitions["inner"] == Partition.ROWS
    assert relative_error(outputs_of(program, samples[:8]), program.reference(samples[:8])) <= 1e-3


def test_a_network_without_inner_layers_is_refused():
    graph = optimized(
        trace(lambda p, x: x @ p, np.eye(64, dtype=np.float32), jax.ShapeDtypeStruct((4, 64), "float32"))[0]
    )
    with pytest.raises(UsageError, match="the network has none of them"):
        quantized(graph, Calibration(RANDOM.standard_normal((16, 64), np.float32), "noise"))


def test_without_the_instructions_there_is_no_int8(monkeypatch):
    from cambrian.models.lowerings import onednn_forms

    monkeypatch.setattr(onednn_forms, "cpu_features", lambda: frozenset({"avx2"}))
    assert "has none of the instructions amx_int8, avx512_vnni, avx_vnni" in str(int8_obstacle("cpu"))
    assert int8_obstacle("gpu") == "oneDNN runs on cpu, not on gpu"
