"""Convolutions, dense layers and poolings are recognised in every layout, and give what JAX gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cambrian
import cambrian.sharding
from cambrian.models.graph.constants import compact
from cambrian.models.graph.find_poolings import Pool
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.precision import in_bfloat16
from cambrian.models.graph.trace import trace
from graph_cases import conv, draw, evaluate, fused, others, rewrite


@pytest.mark.parametrize(
    ("numbers", "kernel", "images"),
    [
        (("NHWC", "HWIO", "NHWC"), (3, 2, 4, 6), (2, 7, 6, 4)),
        (("NCHW", "OIHW", "NCHW"), (6, 4, 3, 2), (2, 4, 7, 6)),
        (("NCHW", "HWIO", "NHWC"), (3, 2, 4, 6), (2, 4, 7, 6)),
        (("CWHN", "OWHI", "HWNC"), (6, 3, 2, 4), (4, 6, 7, 2)),
        (("NWC", "WIO", "NWC"), (3, 4, 6), (2, 7, 4)),
        (("NCW", "OIW", "NCW"), (6, 4, 3), (2, 4, 7)),
        (("NDHWC", "DHWIO", "NDHWC"), (2, 3, 2, 4, 6), (2, 5, 7, 6, 4)),
        (("NCDHW", "OIDHW", "NCDHW"), (6, 4, 3, 2, 3), (2, 4, 6, 5, 7)),
    ],
)
@pytest.mark.parametrize("more", [{}, {"rhs_dilation": 2}, {"stride": 2}, {"padding": (1, 3)}])
def test_every_layout_stride_padding_and_dilation(numbers, kernel, images, more):
    axes = len(images) - 2
    more = {**more}
    if "padding" in more:
        more["padding"] = [more["padding"]] * axes
    if "rhs_dilation" in more:
        more["rhs_dilation"] = (2,) * axes
    graph = rewrite(lambda k, x: jnp.tanh(conv(x, k, numbers=numbers, **more)), draw(*kernel), draw(*images))
    assert [operation.activation for operation in fused(graph)] == ["TANH"]


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups(groups):
    graph = rewrite(lambda k, x: conv(x, k, feature_group_count=groups), draw(3, 3, 8 // groups, 16), draw(2, 5, 5, 8))
    assert [operation.groups for operation in fused(graph)] == [groups]


@pytest.mark.parametrize(
    ("einsum", "left", "right"),
    [
        ("nk,km->nm", (3, 4), (4, 5)),
        ("nk,mk->nm", (3, 4), (5, 4)),
        ("nlk,khd->nlhd", (2, 3, 4), (4, 2, 5)),
        ("nlhd,hdk->nlk", (2, 3, 2, 5), (2, 5, 4)),
        ("nhwk,km->nhwm", (2, 3, 4, 5), (5, 6)),
        ("nabck,km->nabcm", (2, 3, 2, 2, 5), (5, 6)),
        ("nkl,km->nml", (2, 4, 3), (4, 5)),
    ],
)
def test_every_dense_layer_is_a_convolution(einsum, left, right):
    graph = rewrite(lambda k, x: jnp.einsum(einsum, x, k), draw(*right), draw(*left))
    assert len(fused(graph)) == 1


def test_padding_becomes_the_convolution_s_own():
    def function(k, x):
        return conv(jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))), k, padding="VALID")

    graph = rewrite(function, draw(3, 3, 4, 4), draw(1, 6, 6, 4))
    assert [operation.window.padding for operation in fused(graph)] == [((1, 2), (0, 1))]
    assert others(graph) == []
    padded = rewrite(
        lambda k, x: conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0), k, padding="VALID"),
        draw(3, 3, 4, 4),
        draw(1, 6, 6, 4),
    )
    assert others(padded) == ["pad"]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 0), (1, 1), (0, 1), (0, 0))])
@pytest.mark.parametrize(("size", "stride"), [((2, 2), (2, 2)), ((3, 2), (1, 2)), ((4, 4), (4, 4))])
def test_poolings_of_images(size, stride, padding):
    x = draw(2, 9, 8, 3) - 2  # negative: padding must be lower
    window = ((1, *size, 1), (1, *stride, 1), padding)

    def function(p, x):
        counts = lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, *window)
        largest = lax.reduce_window(x, -jnp.inf, lax.max, *window)
        return largest * p + lax.reduce_window(x, 0.0, lax.add, *window) / counts

    graph = rewrite(function, np.float32(3), x)
    assert [node.operation.kind for node in graph.nodes if isinstance(node.operation, Pool)] == ["max", "sum"]
    counts = [compact(constant.array) for constant in graph.constants() if constant.size > 1]
    assert all((each.shape[0], each.shape[3]) == (1, 1) for each in counts)
    narrow = in_bfloat16(optimized(trace(lambda p, x: function(p, x @ np.eye(3, dtype="f")), np.float32(3), x)[0]))
    (got,) = evaluate(narrow, x)
    assert np.linalg.norm(got - function(3, x)) < 1e-2 * np.linalg.norm(function(3, x))


@pytest.mark.parametrize("shape", [(2, 9, 3), (2, 5, 6, 7, 3)])
def test_poolings_along_one_and_three_axes(shape):
    axes = len(shape) - 2
    window = ((1, *[3] * axes, 1), (1, *[2] * axes, 1), "SAME")
    graph = rewrite(lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, *window) * p, draw(), draw(*shape) - 2)
    assert [node.name for node in graph.nodes] == ["pool", "mul"]


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (3, 0))])
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (4, 5)])
@pytest.mark.parametrize("strides", [(2, 2), (3, 2), (1, 4)])
def test_transposed_convolutions_are_computed_by_phases(strides, size, padding):
    kernel, images = draw(*size, 3, 4), draw(2, 5, 4, 3)
    graph = rewrite(lambda k, x: jax.nn.relu(lax.conv_transpose(x, k, strides, padding) + 1), kernel, images)
    (operation,) = fused(graph)
    assert operation.activation == (None if "crop" in others(graph) else "RELU")
    assert "conv_general_dilated" not in others(graph)


def test_a_transposed_convolution_along_one_axis_and_one_that_skips_pixels():
    def along_time(k, x):
        return lax.conv_transpose(x, k, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert len(fused(rewrite(along_time, draw(3, 3, 4), draw(2, 5, 3)))) == 1

    def strided(k, x):
        return conv(x, k, stride=3, padding=((1, 1), (1, 1)), lhs_dilation=(2, 2))

    assert others(rewrite(strided, draw(3, 3, 3, 4), draw(2, 5, 5, 3))) == ["conv_general_dilated"]


@pytest.mark.parametrize("padding", [[(1, 1), (1, 1)], [(0, 2), (1, 0)]])
@pytest.mark.parametrize("padded_before", [False, True])
def test_a_pointwise_convolution_with_padding_has_a_border(padding, padded_before):
    kernel, x = draw(1, 1, 4, 8), draw(1, 8, 8, 4)

    def function(k, x):
        if not padded_before:
            return conv(x, k, padding=padding) + 1
        return conv(jnp.pad(x, ((0, 0), *padding, (0, 0))), k, padding="VALID") + 1

    rewrite(function, kernel, x)
    np.testing.assert_allclose(cambrian.optimize(function, kernel)(x), function(kernel, x), rtol=1e-4, atol=1e-5)


def test_the_precision_that_a_function_asks_for_is_kept():
    for function in (
        lambda k, x: jnp.dot(x, k, precision="highest"),
        lambda k, x: conv(x[:, None, None], k[None, None], precision="highest")[:, 0, 0],
    ):
        (operation,) = fused(rewrite(function, draw(6, 7), draw(3, 6)))
        operation = dataclasses.replace(operation, lowering="native")
        arrays = draw(*operation.in_shape), draw(*operation.kernel_shape), draw(7)
        assert "Precision.HIGHEST" in str(jax.make_jaxpr(operation)(*arrays))
