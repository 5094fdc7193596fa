"""Library use: the scripts of docs/library.md and docs/models.md, and users' own models: compile, save, load."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from cambrian import engine
from cambrian.sharding import MeshShape, make_mesh, program_from_function
from cambrian.sharding.host import acquire_devices
from command import ROOT, Command

DOCUMENTS = {"library": 6, "models": 3}  # name → least number of scripts
INPUTS = jax.ShapeDtypeStruct((8, 8, 8, 3), "float32")
RULES = [("conv/kernel|Conv_0/kernel", P(None, None, None, "model")), (".*", P())]


@pytest.fixture
def run_script(tmp_path) -> Callable[[str], str]:
    """A function that runs a Python script in a process of its own, in `tmp_path`, and returns what it prints."""
    command = Command(tmp_path)
    command.environment["JAX_PLATFORMS"] = "cpu"

    def run(script: str) -> str:
        outcome = command(script=("-c", script))
        assert outcome.exit_code == 0, outcome.stderr
        return outcome.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documented_scripts_print_what_the_document_says(name, run_script):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == text.count("```python") >= DOCUMENTS[name]
    loading = [example for example in examples if "cambrian.load" in example[0]]  # what others save
    saving = [example for example in examples if example not in loading]
    with ThreadPoolExecutor(2) as pool:
        for some in (saving, loading):
            printed = pool.map(run_script, [script for script, _ in some])
            assert list(printed) == [expected for _, expected in some]


@pytest.mark.slow
def test_the_first_script_of_the_readme_runs(run_script):
    script = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert script is not None
    assert re.fullmatch(r"\(10, 10\) [\d.]+\n", run_script(script[1]))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(2, 4), acquire_devices(8, "cpu")[0])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).standard_normal((11, 8, 8, 3), np.float32)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 16, kernel_size=(3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(16, 4, rngs=rngs)])

    def __call__(self, images):
        return self.heads[0](nnx.relu(self.norm(self.conv(images))).mean(axis=(1, 2)))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(4)(nn.relu(nn.Conv(16, (3, 3))(images)).mean(axis=(1, 2)))


def nnx_model():
    model = NnxModel(nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    return (lambda state, images: nnx.merge(graphdef, state)(images)), state


def linen_model():
    model = LinenModel()
    return model.apply, model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))


def plain_function():
    kernel = np.random.default_rng(2).standard_normal((3, 3, 3, 16), np.float32)
    head = np.random.default_rng(3).standard_normal((16, 4), np.float32)

    def function(params, images):
        features = jax.lax.conv_general_dilated(
            images, params["conv/kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(features).mean(axis=(1, 2)) @ params["layers"][0]

    return function, {"conv/kernel": kernel, "layers": [head]}


NAMES = {
    nnx_model: [
        "conv/bias",
        "conv/kernel",
        "heads/0/bias",
        "heads/0/kernel",
        "norm/bias",
        "norm/mean",
        "norm/scale",
        "norm/var",
    ],
    linen_model: [
        "params/Conv_0/bias",
        "params/Conv_0/kernel",
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ],
    plain_function: ["conv/kernel", "layers/0"],
}

FRESH_PROCESS = """
import sys
import numpy as np
from cambrian import engine

executable = engine.load("artifact", signing_key="key")
np.save("outputs.npy", executable(np.load("images.npy")))
print(executable.kind, "flax" in sys.modules, "cambrian.models.lowerings" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [*(pytest.param(model, marks=pytest.mark.slow) for model in (nnx_model, linen_model)), plain_function]
)
def test_a_users_model_is_sharded_by_its_rules_and_runs_without_its_code(model, mesh, images, tmp_path, run_script):
    function, params = model()
    program = program_from_function(function, params, INPUTS, mesh, RULES, name="mine", metadata={"labels": ["a"]})
    assert [spec.name for spec in program.param_specs] == NAMES[model]
    assert program.notes == ()

    executable = engine.compile_program(program)
    for spec, param in zip(executable.param_specs, executable.params, strict=True):
        cut = spec.shape[:3] == (3, 3, 3)
        assert param.sharding == jax.NamedSharding(mesh, P(None, None, None, "model") if cut else P())
        assert {shard.data.shape for shard in param.addressable_shards} == {(3, 3, 3, 8) if cut else spec.shape}
    # The machine code takes a kernel's half: the rules reached the compiler.
    assert executable.analysis.argument_bytes < sum(array.nbytes for array in program.params) + images[:2].nbytes

    expected = function(params, images)
    outputs = executable(images)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    streamed = executable.stream(iter([images[:8], images[8:]]), threads=2)
    np.testing.assert_array_equal(np.concatenate(list(streamed)), outputs)
    np.testing.assert_allclose(program.reference(images), expected, rtol=1e-4, atol=1e-5)

    engine.save(executable, tmp_path / "artifact", tmp_path / "key")
    np.save(tmp_path / "images.npy", images)
    assert run_script(FRESH_PROCESS) == "native False False\n"
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), outputs)
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    assert manifest["rules"] == [[pattern, str(spec)] for pattern, spec in RULES]
    assert manifest["metadata"] == {"labels": ["a"]}


def augmented(images):
    return images[:, :, ::-1] * 2


@pytest.mark.slow
def test_apply_and_call_stand_in_one_compiled_program_with_other_computation(mesh, images, tmp_path):
    function, params = plain_function()
    program = program_from_function(function, params, INPUTS, mesh, RULES, name="mine")
    engine.save(engine.compile_program(program), tmp_path / "artifact", tmp_path / "key")
    portable = engine.load_portable(tmp_path / "artifact", devices=list(mesh.devices.flat))
    batch = images[:8]
    expected = jax.nn.softmax(function(params, augmented(batch)))
    for call, on_devices in (
        (program.apply, engine.put_params(program.params, program.param_specs, mesh)),
        (portable.call, portable.params),
    ):
        jitted = jax.jit(lambda params, images, call=call: jax.nn.softmax(call(params, augmented(images))))
        compiled = jitted.lower(on_devices, batch).compile()
        np.testing.assert_allclose(compiled(on_devices, batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_a_session_prints_of_them_is_short_and_holds_no_weights(mesh, tmp_path):
    function, params = plain_function()
    program = program_from_function(function, params, INPUTS, mesh, RULES, name="mine")
    executable = engine.compile_program(program)
    engine.save(executable, tmp_path / "artifact", tmp_path / "key")
    portable = engine.load_portable(tmp_path / "artifact", devices=list(mesh.devices.flat))
    for text in map(repr, (program, executable, portable)):
        assert "(8, 8, 8, 3)" in text and len(text) < 1000 and "rray(" not in text


def test_the_rules_hold_inside_other_functions_whatever_the_arguments(mesh, images):
    function, params = plain_function()
    over_all = P(("data", "model"))
    program = program_from_function(
        function,
        params,
        INPUTS,
        mesh,
        RULES,
        name="mine",
        input_partition_spec=over_all,
        output_partition_spec=P("data", "model"),
    )
    compiled = jax.jit(program.apply).lower(program.params, images[:8]).compile()
    (kernel, head), inputs = compiled.input_shardings[0]
    assert kernel.shard_shape((3, 3, 3, 16)) == (3, 3, 3, 8) and head.shard_shape((16, 4)) == (16, 4)
    assert inputs.shard_shape(INPUTS.shape) == (1, 8, 8, 3)
    assert compiled(program.params, images[:8]).sharding == jax.NamedSharding(mesh, P("data", "model"))


def test_no_inputs_give_no_outputs(mesh, images):
    function, params = plain_function()
    executable = engine.compile_program(program_from_function(function, params, INPUTS, mesh, RULES, name="mine"))
    outputs = executable(images[:0])
    assert outputs.shape == (0, 4) and outputs.dtype == np.float32
    assert len(executable(images[:1])) == 1
