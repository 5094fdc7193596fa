"""A float64 reference in NumPy that shares no code with any side."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.sides.problem import Problem
from cambrian.sharding import Kind, LayerSpec

_CHUNK = 4  # images at a time, which bounds the memory of the patches


def reference_logits(problem: Problem, batch: int) -> np.ndarray:
    """Returns the logits (batch, num_classes) float64 of the first `batch` images."""
    images = problem.normalised(batch).astype(np.float64)
    return np.concatenate([_logits(problem, images[start : start + _CHUNK]) for start in range(0, batch, _CHUNK)])


def _logits(problem: Problem, images: np.ndarray) -> np.ndarray:
    values: dict[str | None, np.ndarray] = {None: images}
    for layer in problem.network:
        x = values[layer.input]
        match layer.kind:
            case Kind.CONV:
                kernel = problem.params[f"{layer.name}.kernel"].astype(np.float64)
                y = np.tensordot(_windows(layer, x, 0.0), kernel, ((4, 5, 3), (0, 1, 2)))
                y += problem.params[f"{layer.name}.bias"]
            case Kind.MAX_POOL:
                y = _windows(layer, x, -np.inf).max((4, 5))
            case Kind.MEAN_POOL:
                y = x.mean((1, 2))
            case Kind.DENSE:
                y = x @ problem.params[f"{layer.name}.kernel"] + problem.params[f"{layer.name}.bias"]
        if layer.residual is not None:
            y += values[layer.residual]
        values[layer.name] = np.maximum(y, 0) if layer.activation else y
    return values[problem.network[-1].name]


def _windows(layer: LayerSpec, x: np.ndarray, fill: float) -> np.ndarray:
    """(N, H', W', C, kernel, kernel)."""
    padded = np.pad(x, ((0, 0), layer.padding, layer.padding, (0, 0)), constant_values=fill)
    windows = sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(1, 2))
    return windows[:, :: layer.stride, :: layer.stride]
