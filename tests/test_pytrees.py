"""Functions of pytrees: dicts, lists and tuples of arrays, each with the batch as first dimension."""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

import cambrian
from cambrian.engine.artifact.manifest import MANIFEST
from cambrian.sharding import UsageError

RANDOM = np.random.default_rng(0)
PARAMS = {"embed": RANDOM.standard_normal((11, 8), np.float32), "head": RANDOM.standard_normal((8, 3), np.float32)}
SPEC = {"tokens": jax.ShapeDtypeStruct((5,), "int32"), "more": (jax.ShapeDtypeStruct((8,), "float32"),)}
BATCH = {
    "tokens": RANDOM.integers(0, 11, (10, 5), np.int32),
    "more": (RANDOM.standard_normal((10, 8), np.float32),),
}


class Inputs(NamedTuple):
    tokens: jax.ShapeDtypeStruct


def function(params, inputs):
    hidden = jax.nn.relu(params["embed"][inputs["tokens"]].mean(1) + inputs["more"][0])
    return {"logits": hidden @ params["head"], "hidden": [hidden, hidden.argmax(-1)]}


@pytest.fixture(scope="module")
def executable():
    return cambrian.compile(function, PARAMS, SPEC, mesh="2x2", batch_size=4)


def check(results, expected):
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    for result, array in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert result.dtype == array.dtype
        np.testing.assert_allclose(result, array, rtol=1e-4, atol=1e-5)


def test_calls_and_streams(executable):
    expected = function(PARAMS, BATCH)
    check(executable(BATCH), expected)
    batches = [jax.tree.map(lambda array, start=start: array[start : start + 4], BATCH) for start in (0, 4, 8, 10)]
    results = list(executable.stream(batches))
    assert [len(result["logits"]) for result in results] == [4, 4, 2, 0]
    check(jax.tree.map(lambda *parts: np.concatenate(parts), *results), expected)


def test_an_artefact_holds_the_structures(executable, tmp_path):
    executable.save(tmp_path / "artifact")
    loaded = cambrian.load(tmp_path / "artifact")
    check(loaded(BATCH), function(PARAMS, BATCH))
    assert loaded.parity is not None
    assert loaded.parity.max_relative_error <= 1e-5
    manifest = json.loads((tmp_path / "artifact" / MANIFEST).read_text())
    assert list(manifest["input_spec"]["dict"]["more"]) == ["tuple"]
    assert (loaded.input_spec, loaded.output_spec) == (executable.input_spec, executable.output_spec)
    with pytest.raises(UsageError, match="expected an image classifier, .* got function without labels"):
        loaded.classify("synthetic", num_images=1)


def test_what_isn_t_the_executable_s_structure_is_refused(executable):
    for inputs, message in [
        (BATCH["tokens"], "inputs must have the structure PyTreeDef"),
        (BATCH | {"tokens": BATCH["tokens"][:3]}, "the same number of samples, got"),
        (
            BATCH | {"tokens": BATCH["tokens"].astype(np.uint8)},
            r"inputs/tokens must have shape \(N, 5\) and dtype int32",
        ),
    ]:
        with pytest.raises(UsageError, match=message):
            executable(inputs)
    with pytest.raises(TypeError, match="must be a NumPy or JAX array"):
        executable(BATCH | {"tokens": 3})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"tokens": 3}, "spec/tokens must be one array, or a plain dict by names, list or tuple of arrays, got int"),
        ({"a": {}}, "spec/a must be one array, .* got an empty dict"),
        ({"a": {0: SPEC["tokens"]}}, "spec/a must be one array, or a plain dict by names, .* got dict"),
        (Inputs(SPEC["tokens"]), "spec must be one array, .* plain .* tuple of arrays, got Inputs"),
        ({"a/b": SPEC["tokens"], "a": {"b": SPEC["tokens"]}}, "got two arrays spec/a/b"),
    ],
)
def test_specs_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        cambrian.compile(function, PARAMS, spec)
