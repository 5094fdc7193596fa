"""Winograd's minimal filtering: computes m outputs of a 3-tap filter with m + 2 products instead of 3 m.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308; the matrices follow Toom-Cook.
F(m, 3) along one axis computes Aᵀ[(G g) ⊙ (Bᵀ d)] from m + 2 inputs d and the taps g; in two dimensions it nests.

The products over channels are matrix products, one for each of the m + 2 transformed positions, or (m + 2)² in two
dimensions. Input and output transforms are sums in float32. XLA:CPU is fastest without unnecessary slices and
concatenations between these steps. So kernels are separate arrays, one for each row of positions; with `split` one for
each position, which makes the products independent of each other at the cost of more parameters.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cambrian.models.lowerings.lowering import Call, Finish, Lowering, Padding, Window, pad

TAPS = 3
# Of F(m × m). On operands rounded to bfloat16, the transform of F(4 × 4) costs the logits one digit too many.
DTYPES = {2: ("float32", "bfloat16"), 4: ("float32",)}
# Interpolation points besides infinity; small points of both signs keep the rounding error low.
_POINTS = {2: (0, 1, -1), 4: (0, 1, -1, Fraction(1, 2), Fraction(-1, 2))}


@functools.cache
def filtering_matrices(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns Aᵀ (m, n), G (n, 3) and Bᵀ (n, n) of F(m, 3) in float64, for m = `outputs`, 2 or 4, and n = m + 2."""
    points = [Fraction(point) for point in _POINTS[outputs]]
    last = Fraction(1)
    a = [[point**row for point in points] + [last if row == outputs - 1 else Fraction(0)] for row in range(outputs)]
    g, b = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = functools.reduce(lambda product, other: product * (point - other), others, Fraction(1))
        g.append([point**tap / scale for tap in range(TAPS)])
        b.append([*_polynomial(others), Fraction(0)])
    g.append([Fraction(0)] * (TAPS - 1) + [last])
    b.append(_polynomial(points))
    a_matrix, g_matrix, b_matrix = (np.array(matrix, np.float64) for matrix in (a, g, b))
    return a_matrix, g_matrix, b_matrix


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    coefficients = [Fraction(1)]  # lowest power first
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * coefficient for coefficient in coefficients), Fraction(0)]
        coefficients = [high - low for high, low in zip(shifted, scaled, strict=True)]
    return coefficients


def winograd_2d(outputs: int, split: bool = False) -> Lowering:
    """Returns F(m × m, 3 × 3) for m = `outputs`: 2.25 times less arithmetic for 2, 4 times for 4."""
    a, g, b = filtering_matrices(outputs)
    positions = outputs + TAPS - 1

    def transform(kernel: np.ndarray) -> list[np.ndarray]:
        rows = np.einsum("ai,ijco,bj->abco", g, kernel.astype(np.float64), g).astype(np.float32)
        return [position for row in rows for position in row] if split else list(rows)

    def apply(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
        window = finish.call.window
        rows, columns = window.out_size(x.shape)
        tile_rows, tile_columns = -(-rows // outputs), -(-columns // outputs)
        tiled = pad(x, tiled_padding(x, window, tile_rows * outputs, tile_columns * outputs)).astype(jnp.float32)
        by_row = every(tiled, 1, positions, tile_rows, outputs)
        partial = []
        for i in range(positions):
            transformed = combine(b[i], by_row)
            by_column = every(transformed, 2, positions, tile_columns, outputs)
            tiles = [combine(row, by_column).astype(x.dtype) for row in b]
            weights = kernel[i * positions : (i + 1) * positions] if split else kernel[i]
            products = _products(tiles, weights)
            partial.append(jnp.stack([combine(row, products) for row in a], axis=3))
        y = jnp.stack([combine(row, partial) for row in a], axis=2)
        y = y.reshape(x.shape[0], tile_rows * outputs, tile_columns * outputs, -1)
        return finish(y[:, :rows, :columns])

    return Lowering(transform, apply, supports, dtypes=DTYPES[outputs], slow_to_compile=split)


def winograd_1d(outputs: int) -> Lowering:
    """Returns F(1 × m, 3 × 3) for m = `outputs`, along each row, with the three rows of taps in one product.

    It takes 1.5 times less arithmetic for 2, 2 times for 4, in fewer and larger products than in two dimensions.
    """
    a, g, b = filtering_matrices(outputs)
    positions = outputs + TAPS - 1

    def transform(kernel: np.ndarray) -> list[np.ndarray]:
        return [np.einsum("bj,ijco->bico", g, kernel.astype(np.float64)).astype(np.float32)]

    def apply(x: jax.Array, kernel: Sequence[jax.Array], finish: Finish) -> jax.Array:
        window = finish.call.window
        rows, columns = window.out_size(x.shape)
        tile_columns = -(-columns // outputs)
        tiled = pad(x, tiled_padding(x, window, rows, tile_columns * outputs)).astype(jnp.float32)
        by_column = every(tiled, 2, positions, tile_columns, outputs)
        stacks = []
        for row in b:
            transformed = combine(row, by_column).astype(x.dtype)
            stacks.append(jnp.stack([transformed[:, i : i + rows] for i in range(TAPS)], axis=3))
        channels = TAPS * x.shape[3]
        tiles = [stack.reshape(*stack.shape[:3], channels) for stack in stacks]
        products = _products(tiles, kernel[0].reshape(positions, channels, -1))
        y = jnp.stack([combine(row, products) for row in a], axis=3)
        return finish(y.reshape(x.shape[0], rows, tile_columns * outputs, -1)[:, :, :columns])

    return Lowering(transform, apply, supports)


def supports(call: Call) -> bool:
    """Whether F(m, 3) computes a call."""
    return call.is_ungrouped_square and call.window.size == (TAPS, TAPS) and call.window.stride == (1, 1)


def tiled_padding(x: jax.Array, window: Window, rows: int, columns: int) -> Padding:
    """Returns the window's padding, extended below and on the right for `rows` × `columns` outputs of whole tiles."""
    (above, _), (left, _) = window.padding
    below, right = rows + TAPS - 1 - above - x.shape[1], columns + TAPS - 1 - left - x.shape[2]
    return (above, below), (left, right)


def every(x: jax.Array, axis: int, positions: int, tiles: int, step: int) -> list[jax.Array]:
    """Returns, for each position in a tile, the slice of `x` with this position of all tiles."""
    return [
        lax.slice_in_dim(x, position, position + (tiles - 1) * step + 1, step, axis) for position in range(positions)
    ]


def combine(coefficients: np.ndarray, terms: Sequence[jax.Array]) -> jax.Array:
    """Returns the linear combination of `terms`."""
    total = None
    for coefficient, term in zip(coefficients, terms, strict=True):
        if coefficient == 0:
            continue
        scaled = term if coefficient == 1 else -term if coefficient == -1 else term * np.float32(coefficient)
        total = scaled if total is None else total + scaled
    assert total is not None
    return total


def _products(tiles: Sequence[jax.Array], weights: jax.Array | Sequence[jax.Array]) -> list[jax.Array]:
    """Multiplies each position's tiles (N, H, W, C_in) by its matrix (C_in, C_out): (N, H, W, C_out) float32."""
    shape = tiles[0].shape
    if isinstance(weights, Sequence):
        products = [_dot(tile.reshape(-1, shape[-1]), matrix) for tile, matrix in zip(tiles, weights, strict=True)]
    else:
        stacked = jnp.stack(tiles).reshape(len(tiles), -1, shape[-1])
        batched = _dot(stacked, weights)
        products = [batched[position] for position in range(len(tiles))]
    return [product.reshape(*shape[:-1], -1) for product in products]


def _dot(x: jax.Array, weights: jax.Array) -> jax.Array:
    batch = tuple(range(x.ndim - 2))
    return lax.dot_general(
        x,
        weights,
        (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch)),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
