import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from safetensors.numpy import save_file

from cambrian.models.checkpoints.conversion import import_tensors
from cambrian.models.checkpoints.naming import hugging_face_name, torchvision_name
from cambrian.models.checkpoints.weights import read_weights
from cambrian.models.graph.read_layers import layered_network
from cambrian.models.resnet.architecture import Architecture, residual_blocks
from cambrian.models.resnet.flax_resnet import (
    Bottleneck,
    ResNet,
    as_function,
    load_resnet,
    load_variables,
    variables_of,
)
from cambrian.models.resnet.network import network
from cambrian.models.resnet.variables import expected_shapes, random_variables
from cambrian.sharding import Kind, Network, UsageError
from unsharded import inference_function, relative_error

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
SMALL = {
    "bottleneck_imagenet": (Architecture("imagenet", (1, 2), True, 5, width=8), 33),
    "bottleneck_cifar": (Architecture("cifar", (1, 2), True, 5, width=8), 9),
    "basic_cifar": (Architecture("cifar", (2, 1), False, 5, width=8), 8),
}


def images_of(count: int, size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(size).standard_normal((count, size, size, 3), np.float32))


@pytest.fixture(scope="module")
def reference() -> Any:
    if not REFERENCE.is_dir():
        pytest.skip("shared/reference is not beside this repository")
    spec = importlib.util.spec_from_file_location("reference_weights", REFERENCE / "reference_weights.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.state_dict = functools.cache(module.state_dict)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "stem", "num_classes", "count", "size"),
    [
        ("imagenet_224_1000", "imagenet", 1000, 2, 224),
        ("imagenet_32_10", "imagenet", 10, 8, 32),
        ("cifar_32_10", "cifar", 10, 8, 32),
    ],
)
def test_resnet101_gives_the_logits_of_pytorch(reference, case, stem, num_classes, count, size):
    architecture, variables, _ = import_tensors(reference.state_dict(num_classes, stem), "reference_weights.py")
    assert architecture == Architecture.resnet(101, stem, num_classes)
    images = reference.images(count, size).transpose(0, 2, 3, 1)
    logits = inference_function(architecture, variables)(images)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, np.load(REFERENCE / "resnet101_logits.npz")[case]) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["Hugging Face", "torchvision", "timm"])
def test_the_reference_is_the_same_in_every_naming(reference, naming, tmp_path):
    tensors = reference.state_dict(10, "imagenet")
    architecture, expected, _ = import_tensors(tensors, "reference_weights.py")  # whose logits the test above compares
    if naming != "Hugging Face":
        to_hugging_face = {torchvision_name(name): hugging_face_name(name) for name in expected}
        tensors = {theirs: tensors[name] for theirs, name in to_hugging_face.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    configs = {"Hugging Face": {"model_type": "resnet", "depths": [3, 4, 23, 3]}, "timm": {"architecture": "resnet101"}}
    if naming in configs:
        (tmp_path / "config.json").write_text(json.dumps(configs[naming]))
    weights = read_weights(tmp_path if naming in configs else tmp_path / "model.safetensors")
    assert weights.architecture == architecture
    assert list(weights.variables) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(weights.variables[name], value, strict=True)


def apply_folded(layers: Network, params: Mapping[str, np.ndarray], images: jax.Array) -> jax.Array:
    outputs: dict[str | None, jax.Array] = {None: images}
    for layer in layers:
        x, padding = outputs[layer.input], [layer.padding] * 2
        window = (layer.kernel, layer.kernel), (layer.stride, layer.stride)
        match layer.kind:
            case Kind.CONV:
                kernel = jnp.asarray(params[f"{layer.name}.kernel"])
                x = lax.conv_general_dilated(x, kernel, window[1], padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
                x = x + params[f"{layer.name}.bias"]
            case Kind.MAX_POOL:
                x = lax.reduce_window(
                    x, -np.inf, lax.max, (1, *window[0], 1), (1, *window[1], 1), [(0, 0), *padding, (0, 0)]
                )
            case Kind.MEAN_POOL:
                x = x.mean((1, 2))
            case Kind.DENSE:
                x = x @ params[f"{layer.name}.kernel"][0, 0] + params[f"{layer.name}.bias"]
        x = x if layer.residual is None else x + outputs[layer.residual]
        outputs[layer.name] = nnx.relu(x) if layer.activation else x
    assert all(outputs[layer.name].shape[1:] == layer.out_shape for layer in layers if layer.kind == Kind.CONV)
    return outputs[layers[-1].name]


@pytest.mark.parametrize("case", SMALL)
def test_folded_convolutions_equal_the_model_in_evaluation_mode(case):
    architecture, size = SMALL[case]
    variables, images = random_variables(architecture, seed=1), images_of(3, size)
    function, state = as_function(load_resnet(architecture, variables))
    layered = layered_network(function, state, jax.ShapeDtypeStruct((3, size, size, 3), "float32"))
    params, layers = layered.params, layered.layers
    assert layers == network(architecture, size)
    assert {name: value.dtype for name, value in params.items()} == dict.fromkeys(params, np.float32)
    assert list(params) == [f"{spec.name}.{kind}" for spec in layers if spec.has_weights for kind in ("kernel", "bias")]
    logits = jax.jit(lambda images: apply_folded(layers, params, images))(images)
    assert relative_error(logits, np.asarray(inference_function(architecture, variables)(images))) <= 2e-6


@pytest.mark.parametrize("case", SMALL)
def test_the_model_has_the_expected_variables(case):
    architecture, _ = SMALL[case]
    model = nnx.eval_shape(lambda: ResNet(architecture, rngs=nnx.Rngs(0)))
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert shapes == expected_shapes(architecture)


@pytest.mark.parametrize("case", SMALL)
def test_variables_make_the_round_trip(case):
    architecture, _ = SMALL[case]
    variables = random_variables(architecture, seed=2)
    assert {name: value.shape for name, value in variables.items()} == expected_shapes(architecture)
    restored = variables_of(load_resnet(architecture, variables))
    assert restored.keys() == variables.keys()
    for name, value in variables.items():
        assert value.dtype == restored[name].dtype == np.float32
        np.testing.assert_array_equal(restored[name], value)


def test_random_variables_depend_on_the_seed_alone():
    architecture, _ = SMALL["basic_cifar"]
    first, again, other = (random_variables(architecture, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_variables_that_do_not_fit_are_named():
    architecture, _ = SMALL["basic_cifar"]
    variables = random_variables(architecture)
    model = load_resnet(architecture, variables)
    without = {name: value for name, value in variables.items() if name != "layer1.1.bn2.var"}
    with pytest.raises(UsageError, match=r"expected the variable layer1\.1\.bn2\.var"):
        load_variables(model, without)
    with pytest.raises(UsageError, match=r"no variable fc\.scale"):
        load_variables(model, variables | {"fc.scale": np.ones(5, np.float32)})
    with pytest.raises(UsageError, match=r"fc\.kernel .*must have shape \(16, 5\), got \(5, 16\)"):
        load_variables(model, variables | {"fc.kernel": variables["fc.kernel"].T})


def test_a_loaded_model_does_not_share_memory_with_its_variables():
    architecture, _ = SMALL["basic_cifar"]
    variables = random_variables(architecture)
    model = load_resnet(architecture, variables)
    before = variables["fc.bias"].copy()
    variables["fc.bias"][:] = 7
    np.testing.assert_array_equal(variables_of(model)["fc.bias"], before)


def test_training_mode_normalises_by_the_batch_and_tracks_it():
    architecture, size = SMALL["basic_cifar"]
    variables, images = random_variables(architecture), images_of(16, size)
    model = load_resnet(architecture, variables)
    nnx.jit(lambda model, images: model(images))(model, images)
    tracked = variables_of(model)
    stem = lax.conv_general_dilated(
        images, jnp.asarray(variables["conv1.kernel"]), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean, var = np.mean(stem, (0, 1, 2)), np.var(stem, (0, 1, 2))
    np.testing.assert_allclose(tracked["bn1.mean"], 0.9 * variables["bn1.mean"] + 0.1 * mean, rtol=0, atol=1e-5)
    np.testing.assert_allclose(tracked["bn1.var"], 0.9 * variables["bn1.var"] + 0.1 * var, rtol=1e-5)
    model.eval()
    nnx.jit(lambda model, images: model(images))(model, images)
    evaluated = variables_of(model)
    assert all(np.array_equal(evaluated[name], tracked[name]) for name in tracked)


@pytest.mark.slow
def test_bfloat16_training_learns_and_keeps_float32_variables():
    architecture = Architecture("cifar", (1, 1), False, 5, width=8)
    model = load_resnet(architecture, random_variables(architecture), dtype=jnp.bfloat16)
    images, labels = images_of(10, 8), jnp.arange(10) % 5

    def loss_of(model: ResNet, images: jax.Array, labels: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(model(images))
        return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()

    @nnx.jit
    def step(model: ResNet, images: jax.Array, labels: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, images, labels)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda param, gradient: param - 0.5 * gradient, params, gradients))
        return loss

    losses = [float(step(model, images, labels)) for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.slow
def test_bfloat16_logits_are_close_to_float32():
    architecture, size = SMALL["bottleneck_imagenet"]
    variables, images = random_variables(architecture), images_of(4, size)
    model = load_resnet(architecture, variables, dtype=jnp.bfloat16)
    model.eval()
    logits = nnx.jit(lambda model, images: model(images))(model, images)
    assert logits.dtype == jnp.float32
    error = relative_error(logits, np.asarray(inference_function(architecture, variables)(images)))
    assert 1e-4 < error < 2e-2  # not so close that it was computed in float32


@pytest.mark.slow
def test_an_untrained_block_is_the_identity():
    architecture, _ = SMALL["bottleneck_cifar"]
    last_block = list(residual_blocks(architecture))[2]
    x = jnp.abs(jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 64), np.float32)))
    outputs = nnx.jit(lambda x: Bottleneck(last_block, jnp.float32, nnx.Rngs(0))(x))(x)
    np.testing.assert_array_equal(outputs, x)
