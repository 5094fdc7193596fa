"""The optimizer of a recipe, built from optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cambrian.models.training.recipe import Recipe


def learning_rate_schedule(recipe: Recipe, steps_per_epoch: int) -> Callable[[Any], jax.Array]:
    """Returns step → learning rate: linear warm-up, then cosine decay to 0 (Loshchilov, Hutter, arXiv:1608.03983)."""
    num_steps = recipe.epochs * steps_per_epoch
    warmup_steps = min(round(recipe.warmup_epochs * steps_per_epoch), num_steps - 1)  # optax decays for at least a step
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if recipe.warmup_epochs else recipe.learning_rate,
        peak_value=recipe.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
    )
    return lambda step: jnp.asarray(schedule(jnp.asarray(step, jnp.float32)))  # avoids int-float promotion in optax


def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimizer of a flat dict of parameters; weight decay applies to kernels, not to norms and biases."""
    schedule = learning_rate_schedule(recipe, steps_per_epoch)
    if recipe.optimizer == "adamw":
        return _with_mixed_types(optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=_decays))
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=_decays),
        optax.sgd(schedule, momentum=recipe.momentum, nesterov=True),
    )


def _with_mixed_types(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Permits optax to multiply its integer counts with floats under strict dtype promotion."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _decays(params: dict) -> dict[str, bool]:
    return {name: name.endswith(".kernel") for name in params}
