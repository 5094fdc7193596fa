"""PyTorch with folded weights and channels_last tensors: eager, or compiled by Inductor with frozen weights."""

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch._inductor.config  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from benchmarks.sides.problem import Problem, Runner
from cambrian.sharding import Kind, LayerSpec

torch._inductor.config.compile_threads = 1  # Inductor forks more, and JAX, imported here too, warns of deadlocks


class FoldedNetwork(torch.nn.Module):
    """The network in `dtype`: maps normalised images (N, C, H, W) of that dtype to logits (N, num_classes)."""

    def __init__(self, problem: Problem, dtype: torch.dtype):
        super().__init__()
        self.network = problem.network
        for name, param in problem.params.items():
            # The transpose gives shape OIHW, or (out, in) for linear; .contiguous makes it channels_last in memory.
            tensor = torch.from_numpy(param.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[param.ndim]))
            layout = torch.channels_last if param.ndim == 4 else torch.contiguous_format
            self.register_buffer(_attribute(name), tensor.to(dtype).contiguous(memory_format=layout))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: dict[str | None, torch.Tensor] = {None: images}
        for layer in self.network:
            y = self._compute(layer, values[layer.input])
            if layer.residual is not None:
                y = y + values[layer.residual]
            values[layer.name] = F.relu(y) if layer.activation else y
        return values[self.network[-1].name]

    def _compute(self, layer: LayerSpec, x: torch.Tensor) -> torch.Tensor:
        if layer.kind == Kind.MEAN_POOL:
            return x.mean((2, 3))
        if layer.kind == Kind.MAX_POOL:
            return F.max_pool2d(x, layer.kernel, layer.stride, layer.padding[0])
        kernel, bias = (getattr(self, _attribute(f"{layer.name}.{part}")) for part in ("kernel", "bias"))
        if layer.kind == Kind.DENSE:
            return F.linear(x, kernel, bias)
        return F.conv2d(x, kernel, bias, layer.stride, layer.padding[0])


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on normalised images (N, C, H, W); images and weights are of `precision`.

    `mode` is eager or compile.
    """
    dtype = getattr(torch, precision)
    apply = FoldedNetwork(problem, dtype).eval()
    if mode == "compile":
        # Packs weights once for oneDNN and its fusions, which PyTorch doesn't do by default.
        apply = torch.compile(apply, dynamic=False, options={"freezing": True})
    images = torch.from_numpy(problem.normalised(batch)).permute(0, 3, 1, 2).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run(launches: int) -> np.ndarray:
        for _ in range(launches):
            logits = apply(images)
        return logits.float().numpy()

    return Runner(run)


def _attribute(name: str) -> str:
    return name.replace(".", "_")
