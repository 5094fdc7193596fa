"""Each lowering alone against a convolution in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cambrian.models.lowerings import LOWERINGS, Call, Finish, Window
from cambrian.models.lowerings.activations import ACTIVATIONS
from cambrian.models.lowerings.lowering import isolated
from cambrian.models.lowerings.onednn import Convolution, obstacle
from cambrian.models.lowerings.onednn_forms import fused_activations
from cambrian.models.lowerings.winograd import filtering_matrices
from unsharded import relative_error

NO_PADDING = ((0, 0), (0, 0))
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}
CASES = [
    (name, size, stride)
    for name, size, stride in itertools.product(LOWERINGS, (1, 3, 7), (1, 2))
    if LOWERINGS[name].supports(Call((1, 8, 8, 5), 6, Window.square(size, stride, NO_PADDING), "float32", "float32"))
]


def convolve(images: np.ndarray, kernel: np.ndarray, stride: int, padding) -> np.ndarray:
    padded = np.pad(images.astype(np.float64), ((0, 0), *padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel.astype(np.float64))


def usable(name: str):
    if obstacle := LOWERINGS[name].obstacle("cpu"):
        pytest.skip(f"{name}: {obstacle}")
    return LOWERINGS[name]


def plain(images: np.ndarray | jax.Array, channels: int, window: Window, out_dtype: str | None = None) -> Finish:
    """Nothing follows, but for a cast."""
    dtype = str(images.dtype)
    return Finish(Call(images.shape, channels, window, dtype, out_dtype or dtype), jnp.zeros(channels))


def test_every_window_has_a_lowering_that_needs_no_library_and_every_lowering_a_window():
    without = {(size, stride) for name, size, stride in CASES if not name.startswith("onednn")}
    assert without == set(itertools.product((1, 3, 7), (1, 2)))
    assert {name for name, _, _ in CASES} == set(LOWERINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name, size, stride", CASES)
def test_lowering_is_the_convolution_at_every_image_size_and_padding(name, size, stride):
    lowering = usable(name)
    random = np.random.default_rng(0)
    kernel = random.standard_normal((size, size, 5, 6), np.float32)
    weights = [jnp.asarray(array) for array in lowering.transform(kernel)]
    same = (size // 2, size // 2)
    paddings = [(same, same), ((0, 0), (1, 1)), NO_PADDING] if size > 1 else [NO_PADDING]
    cases = [
        (random.standard_normal((2, length, length, 5), np.float32), Window.square(size, stride, padding))
        for length, padding in itertools.product((1, 3, 8, 9), paddings)
        if all(length + sum(pad) >= size for pad in padding)  # a window must fit
    ]
    batches = [images for images, _ in cases]
    every = jax.jit(
        lambda batches, w: [
            lowering.apply(x, w, plain(x, 6, window)) for x, (_, window) in zip(batches, cases, strict=True)
        ]
    )(batches, weights)
    for (images, window), got in zip(cases, every, strict=True):
        expected = convolve(images, kernel, stride, window.padding)
        assert got.dtype == jnp.float32 and got.shape == expected.shape
        assert relative_error(got, expected) <= TOLERANCE["float32"]


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] * (dtype != "float32"))
        for name in LOWERINGS
        for dtype in LOWERINGS[name].dtypes
        if dtype in TOLERANCE
    ],
)
def test_the_finish_adds_bias_and_residual_before_the_relu(name, dtype):
    lowering = usable(name)
    size = next(
        size for other, size, stride in CASES if other == name and stride == 1 and (size > 1 or name == "matmul")
    )
    pads = ((size // 2, size // 2), (size // 2, size // 2))
    random = np.random.default_rng(1)
    images, residual = (random.standard_normal((3, 8, 8, 16), np.float32).astype(dtype) for _ in range(2))
    kernel = random.standard_normal((size, size, 16, 16), np.float32) / size / 4
    bias = random.standard_normal(16, np.float32)
    weights = [jnp.asarray(array, dtype) for array in lowering.transform(kernel)]
    call = Call(images.shape, 16, Window.square(size, 1, pads), dtype, dtype, residual=True, activation="RELU")
    finish = Finish(call, jnp.asarray(bias), jnp.asarray(residual))
    got = jax.jit(lambda x, w: lowering.apply(x, w, finish))(images, weights)
    expected = convolve(images, kernel, 1, pads) + bias + residual.astype(np.float64)
    assert got.dtype == dtype
    assert relative_error(got, np.maximum(expected, 0)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("outputs", [2, 4])
def test_filtering_matrices_give_the_outputs_of_a_filter(outputs):
    a, g, b = filtering_matrices(outputs)
    random = np.random.default_rng(2)
    data, taps = random.standard_normal(outputs + 2), random.standard_normal(3)
    np.testing.assert_allclose(a @ ((g @ taps) * (b @ data)), np.correlate(data, taps), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("in_channels, out_channels", [(32, 16), (64, 64), (64, 96), (31, 40), (33, 48), (512, 512)])
@pytest.mark.parametrize("name", [name for name in LOWERINGS if LOWERINGS[name].pack])
def test_onednn_computes_the_same_of_a_packed_kernel(name, in_channels, out_channels, dtype):
    lowering = usable(name)
    if dtype not in lowering.dtypes:
        return
    random = np.random.default_rng(4)
    window = Window.square(3, 1, ((1, 1), (1, 1)))
    images = random.standard_normal((2, 5, 6, in_channels), np.float32)
    kernel = random.standard_normal((3, 3, in_channels, out_channels), np.float32) / in_channels**0.5
    assert lowering.pack is not None
    (transformed,) = lowering.transform(kernel)
    # bfloat16 values come in pairs, and where blocks of 16 of them aren't full the kernel stays as it is; as it does
    # where the channels of many groups don't fill blocks.
    misfit = 32 if dtype == "bfloat16" else 1 if name == "onednn" else 16
    stays = in_channels % misfit or (name != "onednn" and out_channels % 16)
    compute = jax.jit(lambda x, w: lowering.apply(x, [w], plain(x, out_channels, window)))
    expected = convolve(images, kernel, 1, window.padding)
    # F(4 × 4) loses half a digit over so many channels.
    tolerance = TOLERANCE[dtype] * (3 if "4x4" in name else 1)
    for summed in (False, True):
        call = Call(images.shape, out_channels, window, dtype, dtype, summed=summed)
        packed = lowering.pack(transformed.astype(dtype), call)
        assert packed.ndim == (4 if stays else 1)
        assert lowering.packed_bytes is not None and lowering.packed_bytes(call) == packed.nbytes
        assert relative_error(compute(jnp.asarray(images, dtype), packed), expected) <= tolerance


@pytest.mark.parametrize("in_channels", [1, 2, 3])
def test_onednn_computes_the_same_of_a_packed_kernel_of_few_channels(in_channels):
    usable("onednn")
    random = np.random.default_rng(6)
    convolution = Convolution((1, 4, 4, in_channels), 256, Window.square(1, 1, NO_PADDING), "float32", "float32")
    images = random.standard_normal(convolution.in_shape, np.float32)
    kernel = random.standard_normal(convolution.kernel_shape, np.float32)
    packed = convolution.pack(kernel)
    assert packed.ndim == 1
    got = jax.jit(lambda x, w: convolution(x, w))(images, packed)
    assert relative_error(got, convolve(images, kernel, 1, NO_PADDING)) <= TOLERANCE["float32"]


def test_onednn_is_tried_and_called_under_vmap():
    usable("onednn")
    random = np.random.default_rng(7)
    convolution = Convolution((2, 4, 4, 16), 16, Window.square(3, 1, NO_PADDING), "float32", "float32")
    images = random.standard_normal((3, *convolution.in_shape), np.float32)
    kernel = random.standard_normal(convolution.kernel_shape, np.float32)

    def compute(each: jax.Array) -> jax.Array:
        assert obstacle.__wrapped__("cpu") is None
        return convolution(each, jnp.asarray(kernel))

    got = jax.vmap(compute)(jnp.asarray(images))
    expected = convolve(images.reshape(6, 4, 4, 16), kernel, 1, NO_PADDING)
    assert relative_error(got, expected.reshape(got.shape)) <= TOLERANCE["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_the_kernel_of_few_channels_is_packed_right_whatever_follows(activation, dtype):
    usable("onednn")
    if activation and activation not in fused_activations():
        pytest.skip(f"oneDNN's call doesn't compute {activation}")
    random = np.random.default_rng(7)
    following = ("BIAS", *([activation] if activation else []))
    few = ((3, 8, 1, 1), (5, 8, 1, 1), (5, 8, 2, 1), (5, 8, 4, 1), (3, 16, 2, 2), (3, 32, 3, 1), (3, 32, 4, 1))
    for size, in_channels, out_channels, stride in (*few, (9, 8, 3, 1), (3, 1, 1, 1), (1, 64, 1, 1), (3, 64, 17, 1)):
        same = (size // 2, size // 2)
        window = Window.square(size, stride, (same, same))
        call = Convolution((3, 8, 8, in_channels), out_channels, window, dtype, dtype, following=following)
        images = random.standard_normal(call.in_shape, np.float32).astype(dtype)
        kernel = (random.standard_normal(call.kernel_shape, np.float32) / in_channels**0.5 / size).astype(dtype)
        bias = random.standard_normal(out_channels, np.float32).astype(dtype)
        got = jax.jit(call.__call__)(images, call.pack(kernel), [bias])
        expected = convolve(images, kernel, stride, window.padding) + bias.astype(np.float64)
        if activation:
            expected = np.asarray(ACTIVATIONS[activation](jnp.asarray(expected, jnp.float32)))
        np.testing.assert_allclose(
            np.asarray(got, np.float32), expected, rtol=2e-2, atol=TOLERANCE[dtype], err_msg=f"{size} {in_channels}"
        )


@pytest.mark.parametrize(
    ("height", "width", "in_channels", "size", "padding"),
    [
        (1, 2, 3, (1, 3), ((0, 0), (6, 0))),
        (1, 4, 3, (1, 3), ((0, 0), (0, 6))),
        (2, 2, 16, (3, 3), ((6, 0), (6, 0))),
        (4, 4, 1, (3, 3), ((6, 0), (0, 6))),
        (2, 2, 1, (2, 2), ((0, 1), (0, 1))),
    ],
)
def test_the_kernel_is_packed_right_where_windows_see_much_padding(height, width, in_channels, size, padding):
    usable("onednn")
    random = np.random.default_rng(8)
    call = Convolution((2, height, width, in_channels), 4, Window(size, (1, 1), padding), "float32", "float32")
    images, kernel = (random.standard_normal(shape, np.float32) for shape in (call.in_shape, call.kernel_shape))
    got, numbers = jax.jit(call.__call__)(images, call.pack(kernel)), ("NHWC", "HWIO", "NHWC")
    images, kernel = jnp.asarray(images), jnp.asarray(kernel)
    expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=numbers)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_onednn_says_why_it_cannot_be_used_elsewhere():
    assert LOWERINGS["onednn"].obstacle("gpu") == "oneDNN runs on cpu, not on gpu"


def test_onednn_keeps_a_float32_result_of_bfloat16_operands():
    lowering, random = usable("onednn"), np.random.default_rng(5)
    x = random.standard_normal((2, 1, 1, 64), np.float32).astype("bfloat16")
    kernel = random.standard_normal((1, 1, 64, 10), np.float32).astype("bfloat16")
    finish = plain(x, 10, Window.square(1, 1, NO_PADDING), "float32")
    got = lowering.apply(jnp.asarray(x), [jnp.asarray(kernel)], finish)
    expected = convolve(x, kernel, 1, NO_PADDING)
    assert got.dtype == jnp.float32
    assert relative_error(got, expected) <= TOLERANCE["float32"]


def test_onednn_computes_single_pixels_in_one_row():
    usable("onednn")
    random = np.random.default_rng(9)
    window = Window.square(1, 2, NO_PADDING)
    call = Convolution((3, 4, 5, 16), 8, window, "float32", "float32", following=("BIAS", "BINARY_ADD"))
    images, kernel, bias, residual = (
        random.standard_normal(shape, np.float32) for shape in (call.in_shape, call.kernel_shape, (8,), call.out_shape)
    )
    lowered = jax.jit(call.__call__).lower(images, call.pack(kernel), [bias, residual])
    assert "-> tensor<1x1x18x8xf32>" in lowered.as_text()
    expected = convolve(images, kernel, 2, NO_PADDING) + bias + residual
    assert relative_error(lowered.compile()(images, call.pack(kernel), [bias, residual]), expected) <= 2e-6


@pytest.mark.parametrize("name", ["RELU", "RELU6", "SWISH", "ELU"])
def test_a_function_compiled_by_itself_is_one_call_with_all_that_it_calls(name):
    outer = jax.jit(lambda x: 2 * isolated(lambda y: ACTIVATIONS[name](y + 1))(x))
    program = outer.lower(jax.ShapeDtypeStruct((64, 64), "float32")).compile().as_text()
    assert program is not None and program.count(" call(") == 1
