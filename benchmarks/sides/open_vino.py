"""OpenVINO, with the number of requests in flight that it considers optimal for its latency or throughput mode."""

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]

from benchmarks.sides.onnx_graph import onnx_model
from benchmarks.sides.problem import Problem, Runner


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on normalised float32 images (N, C, H, W); `mode` is latency or throughput."""
    core = ov.Core()
    model = core.read_model(onnx_model(problem.network, problem.params, batch).SerializeToString())
    hints = {
        "PERFORMANCE_HINT": mode.upper(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    compiled = core.compile_model(model, "CPU", hints)
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
