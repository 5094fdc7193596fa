"""Lowerings of a graph: measured once, the fastest is taken, and never a wrong one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cambrian
import cambrian.sharding
from cambrian.models.graph import fastest_program
from cambrian.models.graph.choose_lowerings import MeasuredCosts, choose_lowerings, fastest, with_lowering
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import rewritten
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.trace import trace
from cambrian.models.lowerings import LOWERINGS, Window, lowerings_for
from cambrian.models.lowerings.onednn import Convolution
from graph_cases import conv, draw, evaluate, fused


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["native", "onednn", "onednn_winograd_2x2", "winograd_4x4", "im2col"])
@pytest.mark.parametrize("activation", [None, "GELU_ERF"])
@pytest.mark.parametrize("residual", [False, True])
def test_every_lowering_computes_what_follows(lowering, activation, residual):
    params = {"kernel": draw(3, 3, 16, 16), "bias": draw(16)}

    def function(p, x):
        y = conv(x, p["kernel"]) + p["bias"]
        y = y + x if residual else y
        return jax.nn.gelu(y, approximate=False) if activation else y

    x = draw(2, 6, 6, 16)
    graph = optimized(trace(function, params, x)[0])
    (operation,) = fused(graph)
    if lowering not in lowerings_for(operation, "cpu"):
        pytest.skip(f"{lowering} isn't available here")
    graph = rewritten(graph, lambda node: [with_lowering(node, lowering)] if node.name == "fused_convolution" else None)
    assert [each.lowering for each in fused(graph)] == [lowering]
    expected = np.asarray(function(params, x))
    assert np.allclose(evaluate(graph, x)[0], expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_tiny_products_are_left_to_xla_without_measuring(tmp_path):
    graph = optimized(trace(lambda k, x: jnp.tanh(x @ k), draw(8, 8), draw(4, 8))[0])
    costs = MeasuredCosts(tmp_path / "costs.jsonl")
    chosen = choose_lowerings(graph, jax.devices()[0], costs, seconds=60.0)
    assert [operation.lowering for operation in fused(chosen)] == ["matmul"]
    assert costs.milliseconds == {}


def test_costs_are_measured_once_and_kept(tmp_path):
    graph = optimized(trace(lambda k, x: x @ k, draw(256, 256), draw(64, 256))[0])
    costs = MeasuredCosts(tmp_path / "folder" / "costs.jsonl")
    choose_lowerings(graph, jax.devices()[0], costs, seconds=60.0)
    lines = costs.path.read_text().splitlines() if costs.path.exists() else []
    assert len(lines) == len(costs.milliseconds) != 1  # none, or each candidate
    choose_lowerings(graph, jax.devices()[0], costs, seconds=60.0)
    assert costs.path.exists() is bool(lines)
    assert not lines or costs.path.read_text().splitlines() == lines


def test_damaged_costs_are_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    operation = FusedConvolution((2, 7, 9, 24), 40, Window.square(3, 1, ((1, 1), (1, 1))))
    (costs := MeasuredCosts.of_machine("cpu")).add(operation, 2.0)
    costs.path.write_bytes(b'\0\0\n\xff\xfe\n{"operation"\n' + costs.path.read_bytes())
    assert MeasuredCosts.of_machine("cpu") == costs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 300)))  # as a folder that can't be searched
    assert MeasuredCosts.of_machine("cpu").milliseconds == {}


def test_a_lowering_with_wrong_results_is_never_taken(monkeypatch):
    kernel, x = draw(3, 3, 24, 40), draw(2, 7, 9, 24)
    monkeypatch.setattr(Convolution, "pack", lambda _, kernel: kernel[::-1].copy())
    fast = cambrian.optimize(lambda k, x: jax.nn.relu(conv(x, k)), kernel)
    np.testing.assert_allclose(fast(x), jax.nn.relu(conv(x, kernel)), rtol=1e-4, atol=1e-4)
    operation = FusedConvolution(x.shape, 40, Window.square(3, 1, ((1, 1), (1, 1))), activation="RELU", precision=None)
    costs = MeasuredCosts.of_machine("cpu")
    assert costs.get(dataclasses.replace(operation, lowering="onednn")) == np.inf
    assert fastest(operation, "cpu", costs).lowering != "onednn"


def test_in_a_loop_xla_computes_no_convolution_that_another_can(tmp_path):
    operation = FusedConvolution((2, 7, 9, 24), 40, Window.square(3, 1, ((1, 1), (1, 1))))
    costs = MeasuredCosts(tmp_path / "costs")
    for lowering, milliseconds in (("native", 1.0), ("onednn", 2.0)):
        costs.add(dataclasses.replace(operation, lowering=lowering), milliseconds)
    if LOWERINGS["onednn"].obstacle("cpu") is not None:
        pytest.skip("oneDNN can't be called")
    assert [fastest(operation, "cpu", costs, in_loop).lowering for in_loop in (False, True)] == ["native", "onednn"]


def test_a_function_that_is_kept_as_it_is_has_a_gain_of_one(monkeypatch):
    monkeypatch.setattr(fastest_program, "median_seconds", lambda launches: dict.fromkeys(launches, 1.0))
    executable = cambrian.compile(lambda k, x: jax.nn.relu(x @ k), draw(4, 8), jax.ShapeDtypeStruct((4,), "float32"))
    assert executable.metadata["gain"] == 1.0
    assert "computed as JAX compiles it: the optimised function was measured 1.00 times as fast" in executable.notes
