"""OpenVINO, with the number of requests in flight that it considers optimal for its latency or throughput mode.

For int8, NNCF quantises the network by its defaults, calibrated on the problem's images.
"""

import functools

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]

from benchmarks.sides.onnx_graph import onnx_model
from benchmarks.sides.problem import Problem, Runner

_FLOATS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what isn't quantised


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on normalised float32 images (N, C, H, W); `mode` is latency or throughput."""
    if precision == "int8":
        model = _quantized(problem).clone()
        model.reshape([batch, *model.input().shape[1:]])
    else:
        model = ov.Core().read_model(onnx_model(problem.network, problem.params, batch).SerializeToString())
    hints = {"PERFORMANCE_HINT": mode.upper(), "INFERENCE_PRECISION_HINT": _FLOATS[precision]}
    compiled = ov.Core().compile_model(model, "CPU", hints)
    in_flight = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    queue = ov.AsyncInferQueue(compiled, in_flight)
    images = np.ascontiguousarray(problem.normalised(batch).transpose(0, 3, 1, 2))
    logits = np.empty((batch, problem.architecture.num_classes), np.float32)
    queue.set_callback(lambda request, _: np.copyto(logits, request.get_output_tensor().data))

    def run(launches: int) -> np.ndarray:
        for _ in range(launches):
            queue.start_async({0: images})
        queue.wait_all()
        return logits

    return Runner(run, in_flight)


@functools.cache
def _quantized(problem: Problem) -> ov.Model:
    import nncf  # pyright: ignore[reportMissingImports]

    model = ov.Core().read_model(onnx_model(problem.network, problem.params, 1).SerializeToString())
    images = problem.normalised(len(problem.images)).transpose(0, 3, 1, 2)
    return nncf.quantize(model, nncf.Dataset(list(images[:, None])), subset_size=len(images))
