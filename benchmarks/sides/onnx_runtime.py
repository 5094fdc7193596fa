"""ONNX Runtime, in float32 only: its CPU provider has no bfloat16 convolution."""

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

from benchmarks.sides.onnx_graph import INPUT, onnx_model
from benchmarks.sides.problem import Problem, Runner


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on normalised float32 images (N, C, H, W)."""
    del precision, mode  # there is only one of each
    model = onnx_model(problem.network, problem.params, batch).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(problem.normalised(batch).transpose(0, 3, 1, 2))

    def run(launches: int) -> np.ndarray:
        for _ in range(launches):
            logits = session.run(None, {INPUT: images})[0]
        return np.asarray(logits)

    return Runner(run)
