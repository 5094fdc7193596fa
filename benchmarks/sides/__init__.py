"""The sides of `peers.py`: for each a module whose `make_runner(problem, batch, precision, mode)` makes it ready."""

import dataclasses

OURS = "ours"
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One side.

    Attributes:
      module: in this package.
      package: the distribution whose version is reported.
      modes: how it can run; each is measured on its own.
    """

    module: str
    package: str
    modes: tuple[str, ...]
    precisions: tuple[str, ...] = PRECISIONS


SIDES = {
    OURS: Side("ours", "jax", ("1x1 call", "1x1 stream", "2x1 call")),
    "openvino": Side("open_vino", "openvino", ("latency", "throughput")),
    "onnxruntime": Side("onnx_runtime", "onnxruntime", ("default",), precisions=("float32",)),
    "pytorch": Side("pytorch", "torch", ("eager", "compile")),
    "flax": Side("flax_nnx", "flax", ("jax.jit",)),
}
