"""The public library: a model becomes an executable in one call, whatever kind of model it is."""

import copy
import dataclasses
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec as P

import cambrian
from cambrian.models.resnet.architecture import Architecture
from command import write_checkpoint, write_images
from unsharded import inference_function

SMALL = Architecture("cifar", (1, 1), False, 10, width=8)
SPEC, VECTOR = jax.ShapeDtypeStruct((8, 8, 3), "float32"), jax.ShapeDtypeStruct((4,), "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_checkpoint(tmp_path_factory.mktemp("weights") / "small.safetensors", SMALL)
    return cambrian.resnet(path, image_size=8)


@pytest.fixture(scope="module")
def executable(model):
    return cambrian.compile(model, mesh="2x4", batch_size=8, precision="float32")


def reference(model, images):
    preprocessing = model.config.preprocessing
    normalised = (images / np.float32(255) - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    return np.asarray(inference_function(model.architecture, model.variables)(normalised))


def test_a_checkpoint_decides_its_architecture(model):
    assert (model.architecture, model.trained, model.image_size) == (SMALL, True, (8, 8))
    with pytest.raises(cambrian.UsageError, match="depth must be that of the weights, 6, or left out, got 50"):
        cambrian.resnet(model.weights, depth=50)
    random = cambrian.resnet(depth=18, stem="imagenet", num_classes=7, seed=3)
    assert (random.architecture, random.trained) == (Architecture.resnet(18, "imagenet", 7), False)
    assert (random.image_size, random.config.labels) == ((224, 224), ())


def test_preprocessing_that_nobody_states_is_noted(model, tmp_path):
    assumed = "the weights don't state their preprocessing: "
    assert model.notes[1:] == (f"{assumed}images become 8×8 pixels, normalised as those of CIFAR-10",)
    imagenet = write_checkpoint(tmp_path / "imagenet.safetensors", Architecture("imagenet", (1,), False, 3, width=4))
    (note,) = cambrian.resnet(imagenet, image_size=112).notes
    assert (
        note
        == f"{assumed}the shorter side becomes 128 pixels, as for V1 of torchvision's weights; --resize 116 suits V2"
    )
    for stated in (cambrian.resnet(imagenet, resize=117), cambrian.resnet()):
        assert stated.notes == ()


def test_a_resnet_gives_the_unsharded_logits(model, executable):
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    expected = reference(model, images)
    np.testing.assert_allclose(executable(images), expected, rtol=1e-4, atol=1e-4)
    streamed = list(executable.stream([images[:8], images[8:]], threads=2))
    np.testing.assert_allclose(np.concatenate(streamed), expected, rtol=1e-4, atol=1e-4)
    assert executable.mesh.devices.shape == (2, 4) and executable.batch_size == 8 and executable.plan


def test_a_mesh_of_the_caller_s_is_taken_in_any_order_of_its_axes(model, executable):
    devices = np.asarray(jax.devices()[::-1][:8]).reshape(4, 2)
    own = cambrian.compile(model, mesh=Mesh(devices, ("data", "model")), batch_size=8, precision="float32")
    np.testing.assert_array_equal(own.mesh.devices, devices.T)
    assert own.mesh.axis_names == executable.mesh.axis_names
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(own(images), executable(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(cambrian.UsageError, match="a mesh must have the axes model and data, got x, y"):
        cambrian.compile(model, mesh=Mesh(devices, ("x", "y")), batch_size=8)
    with pytest.raises(cambrian.UsageError, match="platform must be that of the mesh's devices, cpu, got gpu"):
        cambrian.compile(model, mesh=own.mesh, batch_size=8, platform="gpu")


def test_classify_names_classes_in_input_order(model, executable, tmp_path):
    pixels = write_images(tmp_path, ["b/1.png", "a/2.png", "a/1.png"])
    predictions = executable.classify(tmp_path)
    assert [p.image for p in predictions] == ["a/1.png", "a/2.png", "b/1.png"]
    assert [p.label for p in predictions] == ["a", "a", "b"]
    expected = reference(model, pixels[[2, 1, 0]])
    assert [p.predicted for p in predictions] == [str(index) for index in expected.argmax(axis=1)]
    exponentials = np.exp(expected - expected.max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)
    np.testing.assert_allclose([p.probability for p in predictions], probabilities, rtol=1e-4)


def test_a_bad_image_is_an_error_or_skipped(executable, tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "3.png").write_text("no image")
    with pytest.raises(cambrian.UnreadableImage, match=r"3\.png"):
        executable.classify(tmp_path)
    assert [p.image for p in executable.classify(tmp_path, skip_bad_images=True)] == ["1.png", "2.png"]


def test_save_and_load(executable, tmp_path):
    executable.save(tmp_path / "artefact", signing_key=tmp_path / "key")
    with pytest.raises(cambrian.ArtifactExists):
        executable.save(tmp_path / "artefact", signing_key=tmp_path / "key")
    loaded = cambrian.load(
        tmp_path / "artefact", devices=list(executable.mesh.devices.flat), signing_key=tmp_path / "key"
    )
    assert loaded.parity is not None and loaded.parity.max_relative_error < 1e-4
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(loaded(images), executable(images), rtol=1e-5, atol=1e-6)
    with pytest.raises(cambrian.UsageError, match="expected an executable compiled from its program, got a native one"):
        loaded.save(tmp_path / "again")
    with pytest.raises(cambrian.UsageError, match="absent"):
        cambrian.load(tmp_path / "absent")


class Module(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 16, kernel_size=(3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, images):
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(images))).mean(axis=(1, 2))))


@pytest.mark.slow
def test_an_nnx_module_is_computed_in_evaluation_mode_and_left_as_it_is():
    module = Module(nnx.Rngs(0))
    module.norm.mean.set_value(jnp.full(16, 0.25, jnp.float32))
    rules = [("conv/kernel", P(None, None, None, "model")), (".*", P())]
    executable = cambrian.compile(module, spec=SPEC, mesh="2x4", batch_size=8, rules=rules)
    images = np.random.default_rng(0).standard_normal((5, 8, 8, 3), np.float32)
    outputs = executable(images)
    assert not module.norm.use_running_average
    module.eval()
    np.testing.assert_allclose(outputs, module(images), rtol=1e-4, atol=1e-5)
    assert executable.name == "Module"


def test_a_function_without_rules_is_cut_by_the_batch_alone():
    layer = nn.Dense(4)
    variables = layer.init(jax.random.key(0), np.zeros((1, 6), np.float32))
    spec = jax.ShapeDtypeStruct((6,), "float32")
    executable = cambrian.compile(layer.apply, variables, spec, mesh="1x8", name="dense")
    inputs = np.random.default_rng(0).standard_normal((9, 6), np.float32)
    expected = np.asarray(layer.apply(variables, inputs))
    np.testing.assert_allclose(executable(inputs), expected, rtol=1e-4, atol=1e-5)
    assert all(param.sharding.is_fully_replicated for param in executable.params)
    assert (executable.name, executable.batch_size % 8) == ("dense", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mesh": "4by8"}, "a mesh must be written MODELxDATA"),
        ({"mesh": (4, 8)}, r"a mesh must be written MODELxDATA, such as '4x8', or be a jax.*Mesh, got \(4, 8\)"),
        ({"batch_size": 3, "mesh": "1x2"}, "batch_size must be a multiple of the data axis of 2"),
        ({"batch_size": -1}, "batch_size must be from 0 to 1048576, got -1"),
        ({"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        ({"threads": 0}, "threads must be from 1 to 1024, got 0"),
        ({"threads": 2.5}, "threads must be a whole number, got 2.5"),
        ({"tolerance": float("nan")}, "tolerance must be from 0 to inf, got nan"),
        ({"precision": "int4"}, "precision must be one of auto, float32, bfloat16, int8, got 'int4'"),
        ({"partition": "columns"}, "partition must be one of .*, got 'columns'"),
        ({"platform": "npu"}, "platform"),
        ({"spec": SPEC}, "belong to a function or module"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(model, arguments, message):
    with pytest.raises(cambrian.UsageError, match=message):
        cambrian.compile(model, **arguments)


@pytest.mark.parametrize("calibration", [3, [[0.0]], {"x": 3}, {}, np.array(["a"]), np.float32(1)])
def test_calibration_is_an_array_or_a_pytree_of_them(calibration):
    with pytest.raises(cambrian.UsageError, match=r"must be an array of inputs \(M, …\), or a pytree of them, got"):
        cambrian.compile(lambda p, x: x @ p, np.eye(4), SPEC, precision="int8", calibration=calibration)


def test_what_is_no_model_and_no_array_is_refused(executable):
    for other in ("weights.safetensors", None):
        with pytest.raises(TypeError, match=r"expected a model, such as cambrian.resnet\(PATH\), .*, got "):
            cambrian.compile(other)
    with pytest.raises(TypeError, match="inputs must be a NumPy or JAX array, or a pytree of arrays, got int"):
        executable([[0]])
    with pytest.raises(TypeError, match="or a pytree of arrays, got NoneType"):
        executable(None)


def test_an_executable_says_what_to_do_instead_of_tracing_copying_and_pickling_it(executable):
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="an executable can't be copied or pickled: save it, and load the artefact"):
            copied(executable)
    with pytest.raises(TypeError, match="call executable.program.apply"):
        jax.jit(executable)(np.zeros((2, 8, 8, 3), np.uint8))


def test_numbers_of_64_bits_are_taken_as_jax_takes_them():
    params = {"kernel": np.random.default_rng(0).standard_normal((4, 3)), "steps": np.array([3])}
    executable = cambrian.compile(lambda p, x: x @ p["kernel"] * p["steps"].astype("float32"), params, VECTOR)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(executable(x), 3 * x @ params["kernel"], rtol=1e-5)


def test_what_is_rewritten_is_never_differentiated(executable):
    def function(kernel, x):
        return jax.lax.stop_gradient(x @ kernel) * (x @ kernel)

    kernel, x = np.random.default_rng(0).standard_normal((4, 3), np.float32), np.ones((2, 4), np.float32)
    rewritten = cambrian.compile(function, kernel, VECTOR, batch_size=2, precision="bfloat16", calibrate_s=0)
    as_it_is = cambrian.compile(function, kernel, VECTOR, batch_size=2, rules=[(".*", P())])

    def gradient(made, inputs):
        params = [param.astype("float32") for param in made.params]
        return jax.grad(lambda params: made.program.apply(params, inputs).sum())(params)

    for made, inputs in ((rewritten, x), (executable, np.zeros((8, 8, 8, 3), np.uint8))):
        with pytest.raises(TypeError, match="a rewritten function can't be differentiated"):
            gradient(made, inputs)
    expected = jax.grad(lambda kernel: function(kernel, x).sum())(kernel)
    np.testing.assert_allclose(gradient(as_it_is, x)[0], expected, rtol=1e-5)


def test_jax_may_refuse_to_add_dimensions(model):
    kernel, x = np.random.default_rng(0).standard_normal((4, 3), np.float32), np.ones((2, 4), np.float32)
    with jax.numpy_rank_promotion("raise"):
        executable = cambrian.compile(model, batch_size=2, precision="float32")
        dense = cambrian.compile(lambda p, x: jax.nn.relu(x @ p), kernel, VECTOR, batch_size=2, precision="bfloat16")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(executable(images), reference(model, images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dense(x), np.maximum(x @ kernel, 0), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_in_context_is_the_user_s_own(axis_type, tmp_path):
    kernel, x, spec = np.eye(8, dtype=np.float32), np.ones((4, 8), np.float32), jax.ShapeDtypeStruct((8,), "float32")
    with jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:2])):
        executable = cambrian.compile(lambda k, x: jax.nn.relu(x @ k) @ k, kernel, spec, mesh="1x2", batch_size=4)
        executable.save(tmp_path / "artefact")
        assert np.array_equal(cambrian.load(tmp_path / "artefact")(x), executable(x))
    mesh = cambrian.sharding.make_mesh(cambrian.MeshShape(1, 2), jax.devices()[:2])
    with jax.set_mesh(mesh):  # which bare partition specs of a function mean

        def function(k, x):
            return jax.lax.with_sharding_constraint(x @ k, P("data"))

        executable = cambrian.compile(function, kernel, spec, mesh=mesh, batch_size=4, rules=[(".*", P())])
        assert np.array_equal(executable(x), x)


def test_nothing_is_said_about_rules_where_none_were_given():
    executable = cambrian.compile(lambda _, x: jnp.sin(x), None, VECTOR)
    assert not any("rule" in note for note in executable.notes)


def test_a_function_without_finite_outputs_is_named():
    executable = cambrian.compile(lambda p, x: jnp.log(x @ p), -np.eye(4, dtype=np.float32), VECTOR)
    assert any("that aren't finite for random inputs" in note for note in executable.notes)


@pytest.mark.parametrize("transform", [lambda function: function, jax.jit])
def test_a_decorator_may_pass_arguments_of_its_own(transform):
    def scaled(function):
        return functools.wraps(function)(lambda *arguments: function(3, *arguments))

    function = transform(scaled(lambda scale, params, x: scale * x))
    np.testing.assert_array_equal(cambrian.compile(function, {}, VECTOR)(np.ones((3, 4), np.float32)), 3)


def test_a_function_needs_its_spec_and_with_rules_has_its_own_precision():
    with pytest.raises(cambrian.UsageError, match="spec"):
        cambrian.compile(lambda params, x: x, {})
    with pytest.raises(cambrian.UsageError, match=r"a function must take \(params, inputs\), got .*<lambda>\(x\)"):
        cambrian.compile(lambda x: 2 * x, spec=SPEC)
    with pytest.raises(cambrian.UsageError, match="partition must be one of .*, got 'columns'"):
        cambrian.compile(lambda params, x: x, {}, SPEC, partition="columns")
    with pytest.raises(cambrian.UsageError, match="precision"):
        cambrian.compile(lambda params, x: x, {}, SPEC, rules=(), precision="bfloat16")
    with pytest.raises(cambrian.UsageError, match="expected a function, or a model of Flax, .*, got int"):
        cambrian.compile(3, {}, SPEC)
    with pytest.raises(cambrian.UsageError, match="expected a stem among cifar, imagenet, got 'lsun'"):
        cambrian.resnet(stem="lsun")


def test_classifying_needs_an_image_classifier(executable, tmp_path):
    write_images(tmp_path, ["1.png"])
    other = dataclasses.replace(executable, metadata={})
    with pytest.raises(cambrian.UsageError, match="expected an image classifier"):
        other.classify(tmp_path)


@pytest.mark.parametrize(("labels", "got"), [(None, "None"), ([1, 2], r"\[1, 2\]"), (["cat", "dog"], "2 labels")])
def test_labels_that_do_not_name_the_classes_are_refused(executable, labels, got):
    other = dataclasses.replace(executable, metadata=executable.metadata | {"labels": labels})
    with pytest.raises(cambrian.UsageError, match=f"must be the names of all 10 classes, or none, got {got}"):
        other.classify("synthetic", num_images=1)


@pytest.mark.parametrize(
    "facts", [3, {"num_images": 16}, {"relative_error": "x", "top1_agreement": 1, "num_images": 16}]
)
def test_facts_of_a_quantization_that_no_report_can_show_are_refused(executable, facts):
    other = dataclasses.replace(executable, metadata=executable.metadata | {"quantization": facts})
    with pytest.raises(cambrian.UsageError, match="must have the numbers relative_error, top1_agreement, num_images"):
        other.classify("synthetic", num_images=1)


def test_settings_of_the_host_are_known_by_name():
    assert "cpu_latency" not in cambrian.HostSettings().permitted
    settings = cambrian.HostSettings()
    settings.permit("cpu_latency")
    settings.decline("virtual_devices", "time_slices")
    assert "cpu_latency" in settings.permitted and not {"virtual_devices", "time_slices"} & settings.permitted
    with pytest.raises(cambrian.UsageError, match="expected host settings among virtual_devices, .*, got nothing"):
        settings.decline("nothing")
