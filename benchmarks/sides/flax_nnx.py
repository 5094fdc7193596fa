"""The Flax NNX ResNet under plain `jax.jit`, batch norms not folded."""

import jax
import numpy as np
from flax import nnx

from benchmarks.sides.problem import Problem, Runner
from cambrian.models.resnet.flax_resnet import load_resnet


def make_runner(problem: Problem, batch: int, precision: str, mode: str) -> Runner:
    """Makes a runner on normalised float32 images (N, H, W, C); convolutions and activations are of `precision`."""
    del mode  # there is only one
    model = load_resnet(problem.architecture, problem.variables, jax.numpy.dtype(precision))
    model.eval()
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)  # a call with flat arrays is 2 ms faster than with an NNX state
    apply = jax.jit(lambda leaves, images: nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))(images))
    images = jax.device_put(problem.normalised(batch))

    def run(launches: int) -> np.ndarray:
        for _ in range(launches):
            logits = np.asarray(apply(leaves, images))
        return logits

    return Runner(run)
