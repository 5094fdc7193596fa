"""Training on CPU: images/s of Cambrian, for the whole network and for its last layer, and of PyTorch eager.

    python -m benchmarks.training [--depths 18,50,101] [--batch 64] [--rounds 3] [--torch_python PYTHON]

Each side is a process of its own, warm. In every round each takes four steps in a row, and the last three count: memory
that a process left idle may have gone back to the host of a virtual machine. Figures are medians over the rounds.
Cambrian's have the huge pages of `--mode train`; PyTorch runs with and without them. It runs channels last, bfloat16 by
autocast, SGD with Nesterov momentum; `--torch_python` names an interpreter that has it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SIDES = {  # side → its environment
    "cambrian": _HUGE_PAGES,
    "last_layer": _HUGE_PAGES,
    "pytorch": {},
    "pytorch_huge_pages": _HUGE_PAGES,
}
_BLOCKS = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}


def jax_step(depth: int, precision: str, batch: int, freeze: str):
    """A function that takes one training step of the CIFAR ResNet on random images."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cambrian.models.resnet.architecture import Architecture
    from cambrian.models.resnet.variables import random_variables
    from cambrian.models.training import steps
    from cambrian.models.training.recipe import Recipe
    from cambrian.sharding import MeshShape, make_mesh

    architecture, recipe = Architecture.resnet(depth, "cifar", 10), Recipe(batch_size=batch, freeze=freeze)
    random, number = np.random.default_rng(0), 4 * batch
    images = jnp.asarray(random.integers(256, size=(number, 32, 32, 3), dtype=np.uint8))
    labels = jnp.asarray(random.integers(10, size=number, dtype=np.int32))
    mesh = make_mesh(MeshShape(1, 1), jax.devices("cpu")[:1])
    function = steps.steps_function(
        architecture, recipe, mesh,
        num_images=number, dtype=jnp.dtype(precision), mean=(0.5,) * 3, std=(0.25,) * 3, seed=0, in_one_launch=False,
    )  # fmt: skip
    run = jax.jit(function, donate_argnums=0)
    state, order = steps.initial_state(random_variables(architecture), recipe, 4), jnp.arange(number, dtype=jnp.int32)

    def step() -> None:
        nonlocal state
        state, loss = run(state, images, labels, order, np.int32(1))
        loss.block_until_ready()

    return step


def torch_step(depth: int, precision: str, batch: int):
    """The same step of the same network in PyTorch eager."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    class Block(nn.Module):
        def __init__(self, channels: int, inner: int, stride: int, bottleneck: bool):
            super().__init__()
            out = 4 * inner if bottleneck else inner
            sizes = (
                [(inner, 1, 1), (inner, 3, stride), (out, 1, 1)] if bottleneck else [(inner, 3, stride), (out, 3, 1)]
            )
            layers, before = [], channels
            for number, size, step in sizes:
                conv = nn.Conv2d(before, number, size, step, (size - 1) // 2, bias=False)
                layers += [conv, nn.BatchNorm2d(number), nn.ReLU()]
                before = number
            self.body = nn.Sequential(*layers[:-1])
            fits = stride == 1 and channels == out
            skip = [nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
            self.skip = nn.Identity() if fits else nn.Sequential(*skip)

        def forward(self, x):
            return functional.relu(self.body(x) + self.skip(x))

    blocks, bottleneck = _BLOCKS[depth]
    layers, channels = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()], 64
    for stage, count in enumerate(blocks):
        for index in range(count):
            layers.append(Block(channels, 64 * 2**stage, 2 if stage and not index else 1, bottleneck))
            channels = 64 * 2**stage * (4 if bottleneck else 1)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def serve(side: str, depth: int, precision: str, batch: int) -> None:
    """Takes two steps, then four more for each line read, and prints the images/s of the last three."""
    if side.startswith("pytorch"):
        step = torch_step(depth, precision, batch)
    else:
        step = jax_step(depth, precision, batch, freeze="backbone" if side == "last_layer" else "none")
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        step()
        began = time.perf_counter()
        for _ in range(3):
            step()
        print(3 * batch / (time.perf_counter() - began), flush=True)


def compare(depth: int, precision: str, batch: int, rounds: int, torch_python: str) -> dict[str, float]:
    """Median images/s of each side, in interleaved rounds."""
    workers = {}
    try:
        for side, environment in SIDES.items():
            python = torch_python if side.startswith("pytorch") else sys.executable
            command = [python, __file__, "--serve", side, str(depth), precision, str(batch)]
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                env=os.environ | environment,
            )
            workers[side] = worker
            ask(worker)
        speeds = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in SIDES if number % 2 else reversed(SIDES):
                workers[side].stdin.write("\n")
                speeds[side].append(float(ask(workers[side])))
        return {side: statistics.median(values) for side, values in speeds.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def ask(worker: subprocess.Popen) -> str:
    """The worker's next line."""
    assert worker.stdout is not None
    if not (line := worker.stdout.readline()):
        raise RuntimeError(f"a side ended early: {worker.args}")
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="18,50,101")
    parser.add_argument("--precisions", default="bfloat16,float32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch_python", default=sys.executable)
    flags = parser.parse_args()
    print("| network | precision | last layer | whole | PyTorch eager | with huge pages | whole / PyTorch | likewise |")
    print("|---|---|---|---|---|---|---|---|")
    for depth in map(int, flags.depths.split(",")):
        for precision in flags.precisions.split(","):
            speed = compare(depth, precision, flags.batch, flags.rounds, flags.torch_python)
            ours, head, torch, torch_huge = (speed[side] for side in SIDES)
            numbers = [f"{value:.1f}" for value in (head, ours, torch, torch_huge)]
            ratios = [f"{ours / value:.2f}" for value in (torch, torch_huge)]
            print("| " + " | ".join((f"ResNet{depth}", precision, *numbers, *ratios)) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
