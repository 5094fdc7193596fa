"""The ResNet as a function of its variables, in two flat dicts: parameters and statistics."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.flax_resnet import abstract_resnet
from cambrian.models.training.convolution import Convolve

Arrays = dict[str, jax.Array]
Apply = Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, Arrays]]


def is_statistic(name: str) -> bool:
    """Whether a variable (see `models.resnet.variables`) is a running statistic of a batch norm, without gradient."""
    return name.endswith((".mean", ".var"))


def split_variables(variables: Mapping[str, jax.Array]) -> tuple[Arrays, Arrays]:
    """Splits variables into parameters and statistics, both by name."""
    statistics = {name: value for name, value in variables.items() if is_statistic(name)}
    return {name: value for name, value in variables.items() if name not in statistics}, statistics


def trained_part(params: Arrays, statistics: Arrays, freeze: str) -> tuple[Arrays, Arrays]:
    """Returns the parameters and statistics that a training changes; `freeze` as in `Recipe`."""
    if freeze == "none":
        return params, statistics
    return {name: value for name, value in params.items() if name.startswith("fc.")}, {}


def network_function(
    architecture: Architecture, dtype: DTypeLike, training: bool, convolution: Convolve = lax.conv_general_dilated
) -> Apply:
    """Returns a traceable function `apply(params, statistics, images) -> (logits, new statistics)`.

    It maps normalised images (N, H, W, 3) to float32 logits (N, classes). Convolutions and activations are of `dtype`,
    variables are float32. In training, batch norms use the statistics of the batch over all its devices, and update the
    running statistics. Otherwise they use the running statistics and return them unchanged.
    """
    model = abstract_resnet(architecture, dtype)
    model.train() if training else model.eval()
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Conv):
            module.conv_general_dilated = convolution
    graphdef, abstract = nnx.split(model)
    paths = dict(nnx.to_flat_state(abstract))

    def apply(params: Arrays, statistics: Arrays, images: jax.Array) -> tuple[jax.Array, Arrays]:
        values = params | statistics
        state = nnx.from_flat_state(
            [(path, variable.replace(values[".".join(map(str, path))])) for path, variable in paths.items()]
        )
        merged = nnx.merge(graphdef, state)
        logits = merged(images)
        found = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(merged))}
        return logits, {name: found[name].get_value() for name in statistics}

    return apply
