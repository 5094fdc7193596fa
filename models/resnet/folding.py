"""Folds batch norms into the convolutions before them, for inference."""

import numpy as np

from cambrian.models.resnet.architecture import BATCH_NORM_EPSILON, Architecture, network
from cambrian.models.resnet.variables import NORM_VARIABLES, Variables, check_variables, conv_and_norm
from cambrian.sharding import Kind


def fold_batch_norm(
    kernel: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Folds a batch norm with fixed statistics into the kernel and bias of the convolution before it.

    (x ∗ kernel - mean) · scale / √(var + epsilon) + bias = x ∗ (kernel · factor) + (bias - mean · factor), computed in
    float64.

    Args:
      kernel: kernel (height, width, in, out).
      scale: scale (out,) of the batch norm.
      bias: bias (out,) of the batch norm.
      mean: running mean (out,).
      var: running variance (out,).
      epsilon: constant added to the variance.

    Returns:
      Kernel (height, width, in, out) float32 and bias (out,) float32.
    """
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
    return (kernel * factor).astype(np.float32), (bias - mean * factor).astype(np.float32)


def fold(architecture: Architecture, variables: Variables) -> dict[str, np.ndarray]:
    """Returns the parameters for inference: `LAYER.kernel` and `LAYER.bias` of every layer with weights, in order.

    Args:
      architecture: architecture of the network.
      variables: all variables of the architecture (see `models.resnet.variables`).

    Returns:
      float32 kernels (height, width, in, out), `fc.kernel` (in, out), and biases (out,).

    Raises:
      UsageError: if a variable is missing, left over or of the wrong shape (names the variable).
    """
    check_variables(architecture, variables)
    params = {}
    for layer in network(architecture, image_size=1):  # weights don't depend on the image size
        if layer.kind == Kind.CONV:
            conv, norm = conv_and_norm(layer.name)
            statistics = {name: variables[f"{norm}.{name}"] for name in NORM_VARIABLES}
            kernel, bias = fold_batch_norm(variables[f"{conv}.kernel"], **statistics, epsilon=BATCH_NORM_EPSILON)
        elif layer.kind == Kind.DENSE:
            kernel, bias = variables[f"{layer.name}.kernel"], variables[f"{layer.name}.bias"]
        else:
            continue
        params |= {f"{layer.name}.kernel": kernel, f"{layer.name}.bias": bias}
    return params
