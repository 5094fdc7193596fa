"""Evaluation at build of what depends on constants alone, such as the folded scale of a batch norm.

Broadcasts stay views, so that the mean of one channel isn't written out for every pixel. Common arithmetic is NumPy's:
JAX would compile a program for each shape.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.graph.graph import Constant, Node, Value

# A larger result than this, and than its operands, is computed at every launch: it would be stored and read.
_MOST_BYTES = 2**22
_NUMPY = {
    "add": np.add,
    "div": np.divide,
    "exp": np.exp,
    "log": np.log,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
}


def evaluated(node: Node) -> list[Constant] | None:
    """Computes the outputs of a node whose inputs are all constants; None if it should be computed at every launch."""
    arrays = [value.array for value in node.inputs if isinstance(value, Constant)]
    if len(arrays) < len(node.inputs) or node.has_effects or not node.outputs:
        return None
    dtypes = [value.dtype for value in (*node.inputs, *node.outputs)]
    if any(jnp.issubdtype(dtype, jax.dtypes.extended) for dtype in dtypes):  # random keys
        return None
    path = next((value.path for value in node.inputs if isinstance(value, Constant)), "")  # a view's is the parameter's
    if node.name == "broadcast_in_dim" and len(arrays) == 1:
        return [Constant.of(_broadcast(arrays[0], node.params["shape"], node.params["broadcast_dimensions"]), path)]
    if node.name == "reshape" and (view := _reshaped_view(arrays[0], node.params["new_sizes"])) is not None:
        return [Constant.of(view, path)]
    if node.name == "squeeze":
        return [Constant.of(np.squeeze(arrays[0], node.params["dimensions"]), path)]
    if node.name == "transpose":
        return [Constant.of(np.transpose(arrays[0], node.params["permutation"]), path)]
    # NumPy's conversions of floats to integers wrap around where those of XLA saturate.
    is_cast = node.name == "convert_element_type" and (
        jnp.issubdtype(node.output.dtype, jnp.floating) or not jnp.issubdtype(arrays[0].dtype, jnp.floating)
    )
    # Its division of integers rounds down, and warns of zeros.
    in_numpy = node.name in _NUMPY and (node.name != "div" or jnp.issubdtype(node.output.dtype, jnp.inexact))
    if in_numpy or is_cast:
        return [_elementwise(node, arrays)]
    outputs = sum(value.size * np.dtype(value.dtype).itemsize for value in node.outputs)
    if outputs > _MOST_BYTES and outputs > sum(array.nbytes for array in arrays):
        return None
    with jax.ensure_compile_time_eval():
        results = node.operation(*map(jnp.asarray, arrays))
    return [Constant.of(_with_broadcast_dimensions(np.asarray(result))) for result in results]


def compact(array: np.ndarray) -> np.ndarray:
    """Keeps one index of each broadcast dimension: a view, which broadcasts to the array. Leaves random keys alone."""
    if not isinstance(array, np.ndarray):
        return array
    return array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]


def uniform_value(value: Value) -> float | None:
    """The number that all elements of a constant are; None if they differ, or `value` isn't a constant."""
    if not isinstance(value, Constant):
        return None
    small = compact(value.array)
    if small.size != 1 or not jnp.issubdtype(small.dtype, np.number) or np.iscomplexobj(small):
        return None
    return float(small.reshape(()))


def _broadcast(array: np.ndarray, shape: Sequence[int], dimensions: Sequence[int]) -> np.ndarray:
    expanded = [1] * len(shape)
    for size, dimension in zip(array.shape, dimensions, strict=True):
        expanded[dimension] = size
    view = _reshaped_view(array, expanded)
    return np.broadcast_to(np.reshape(array, expanded) if view is None else view, tuple(shape))


def _reshaped_view(array: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Reshapes without writing out broadcast dimensions: only adds or removes dimensions of size 1."""
    kept = [size for size in array.shape if size != 1]
    if [size for size in shape if size != 1] != kept:
        return None
    squeezed = np.squeeze(array)
    return squeezed[tuple(np.newaxis if size == 1 else slice(None) for size in shape)]


def _with_broadcast_dimensions(array: np.ndarray) -> np.ndarray:
    """A view of the array, where dimensions along which it is constant are broadcast: the counts of a mean pooling."""
    small = array
    for axis in range(array.ndim):
        first = small.take([0], axis) if small.shape[axis] > 1 else small
        if first is not small and (small == first).all():
            small = first
    return np.broadcast_to(small, array.shape) if small.size < array.size else array


def _elementwise(node: Node, arrays: Sequence[np.ndarray]) -> Constant:
    small = [compact(array) for array in arrays]
    output = node.output
    result = small[0] if node.name == "convert_element_type" else _NUMPY[node.name](*small)
    return Constant.of(np.broadcast_to(np.asarray(result).astype(output.dtype), output.shape))
