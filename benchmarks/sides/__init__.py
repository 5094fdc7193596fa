"""The sides of `peers.py`, each a module with a function `make_runner(problem, batch, precision, mode)`."""

import dataclasses

OURS = "ours"
PRECISIONS = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """A side of the comparison.

    Attributes:
      module: name of its module in this package.
      package: distribution whose version is reported.
      modes: modes of execution, each measured separately.
      precisions: precisions that it supports.
    """

    module: str
    package: str
    modes: tuple[str, ...]
    precisions: tuple[str, ...] = ("float32", "bfloat16")


SIDES = {
    OURS: Side("ours", "jax", ("1x1 call", "1x1 stream", "2x1 call"), PRECISIONS),
    "openvino": Side("open_vino", "openvino", ("latency", "throughput"), PRECISIONS),
    "onnxruntime": Side("onnx_runtime", "onnxruntime", ("default",), ("float32", "int8")),
    "pytorch": Side("pytorch", "torch", ("eager", "compile")),
    "flax": Side("flax_nnx", "flax", ("jax.jit",)),
}
