"""ONNX Runtime, in float32 and int8: its CPU provider has no bfloat16 convolution.

For int8, its static quantisation takes uint8 activations and int8 kernels with a scale for each channel, calibrated on
the problem's images.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

from benchmarks.sides.onnx_graph import INPUT, onnx_model
from benchmarks.sides.problem import Problem, Runner


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on normalised float32 images (N, C, H, W)."""
    del mode  # there is only one
    model = onnx_model(problem.network, problem.params, batch).SerializeToString()
    if precision == "int8":
        model = _quantized(problem, batch)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(problem.normalised(batch).transpose(0, 3, 1, 2))

    def run(launches: int) -> np.ndarray:
        for _ in range(launches):
            logits = session.run(None, {INPUT: images})[0]
        return np.asarray(logits)

    return Runner(run)


def _quantized(problem: Problem, batch: int) -> bytes:
    from onnxruntime import quantization  # pyright: ignore[reportMissingImports]

    images = problem.normalised(len(problem.images)).transpose(0, 3, 1, 2)
    batches = iter(np.ascontiguousarray(images[: len(images) // batch * batch]).reshape(-1, batch, *images.shape[1:]))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            found = next(batches, None)
            return None if found is None else {INPUT: found}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(onnx_model(problem.network, problem.params, batch).SerializeToString())
        quantization.quantize_static(
            source,
            target,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return target.read_bytes()
