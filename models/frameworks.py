"""Models of JAX's libraries as functions of (params, inputs). No library is imported here: an instance exists only
where its package was imported."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cambrian.sharding import UsageError

Function = Callable[..., Any]


def as_function(model: Any, params: Any) -> tuple[Function, Any]:
    """Returns the function of (params, *inputs (N, …)) that a model is in evaluation mode, and its parameters.

    Args:
      model: a function; a Flax NNX, Equinox or Keras model, which hold their parameters; or a Flax Linen module or a
        Haiku transform. An Equinox model takes one sample, and is mapped over the batch.
      params: of a function, Linen module (its variables) or Haiku transform (its parameters; with state, a pair of
        parameters and state); the state of an Equinox model that has one; None otherwise.

    Raises:
      UsageError: if `model` is none of these, `params` are missing or superfluous, or a parameter has no value, since
        `jax.jit` or `jax.grad` traces it.
    """
    model = _without_jit(model)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model, params))):
        raise UsageError("parameters must have values, got traced ones: optimise or compile outside of jax.jit")
    if _is_instance(model, "equinox", "Module") and not inspect.isroutine(getattr(model, "__wrapped__", None)):
        return _equinox(model, params)  # `filter_jit` makes modules of functions, too
    for package, class_name, adapt in _WITH_PARAMS:
        if _is_instance(model, package, class_name):
            if params is not None:
                raise UsageError(f"a model of {package} holds its parameters: leave params out")
            return adapt(model)
    for package, class_name, adapt in _WITHOUT_PARAMS:
        if _is_instance(model, package, class_name):
            if params is None:
                raise UsageError(f"expected params, the parameters of the model of {package}, got None")
            return adapt(model), jax.tree.map(_copied, params)
    if not callable(model) or isinstance(model, type):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UsageError(f"expected a function, or a model of Flax, Equinox, Haiku or Keras, got {got}")
    return model, jax.tree.map(_copied, params)


def _copied(leaf: Any) -> Any:
    """A copy of a NumPy array, which its owner may change, as `jax.jit` takes it: in 32 bits, or by jax_enable_x64."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype) if leaf.dtype.kind in "fiuc" else leaf.dtype)


def _is_instance(model: Any, package: str, class_name: str) -> bool:
    found = getattr(sys.modules.get(package), class_name, None)
    return found is not None and isinstance(model, found)


def _without_jit(model: Any) -> Any:
    """The model that `jax.jit` or `nnx.jit` wraps, which would hide its parameters; anything else as it is."""
    inner = getattr(model, "__wrapped__", None) if isinstance(model, jax.stages.Wrapped) else None
    classes = ("equinox", "Module"), ("flax.nnx", "Module"), ("keras", "Model")
    return inner if any(_is_instance(inner, *each) for each in classes) else model


def _nnx(module: Any) -> tuple[Function, Any]:
    from flax import nnx

    graphdef, keys, state = nnx.split(module, nnx.RngState, ...)  # random keys aren't parameters

    def apply(state: Any, *inputs: Any) -> Any:
        merged = nnx.merge(graphdef, jax.tree.map(lambda key: key, keys), state)  # copies, which a trace may change
        merged.eval()
        return merged(*inputs)

    return apply, jax.tree.map(_copied, state)  # variables of its own: the module's change when it is trained


def _equinox(module: Any, state: Any) -> tuple[Function, Any]:
    import equinox  # pyright: ignore[reportMissingImports]

    module = equinox.nn.inference_mode(module)
    arrays, rest = equinox.partition(module if state is None else (module, state), equinox.is_array)

    def apply(arrays: Any, *inputs: Any) -> Any:
        model = equinox.combine(arrays, rest)
        return jax.vmap(model if state is None else lambda *sample: model[0](*sample, model[1])[0])(*inputs)

    return apply, jax.tree.map(_copied, arrays)


def _keras(model: Any) -> tuple[Function, Any]:
    import keras  # pyright: ignore[reportMissingImports]

    if keras.backend.backend() != "jax":
        raise UsageError(f"expected Keras on the jax backend (KERAS_BACKEND=jax), got {keras.backend.backend()}")
    trainable = [variable.path for variable in model.trainable_variables]
    fixed = [variable.path for variable in model.non_trainable_variables]
    variables = (*model.trainable_variables, *model.non_trainable_variables)
    values = {variable.path: variable.value for variable in variables}
    if len(values) < len(variables):
        raise UsageError("expected a Keras model whose variables have distinct paths: give its layers distinct names")

    def apply(values: dict[str, jax.Array], *inputs: Any) -> Any:
        of_paths = [values[path] for path in trainable], [values[path] for path in fixed]
        return model.stateless_call(*of_paths, *inputs, training=False)[0]

    return apply, values


def _linen(module: Any) -> Function:
    return lambda variables, *inputs: module.apply(variables, *inputs)


def _haiku(transform: Any) -> Function:
    takes_key = "rng" in inspect.signature(transform.apply).parameters
    return lambda params, *inputs: transform.apply(params, *([None] if takes_key else []), *inputs)


def _haiku_with_state(transform: Any) -> Function:
    takes_key = "rng" in inspect.signature(transform.apply).parameters

    def apply(params: Any, *inputs: Any) -> Any:
        return transform.apply(*params, *([None] if takes_key else []), *inputs)[0]

    return apply


_WITH_PARAMS = (("flax.nnx", "Module", _nnx), ("keras", "Model", _keras))
_WITHOUT_PARAMS = (
    ("flax.linen", "Module", _linen),
    ("haiku", "TransformedWithState", _haiku_with_state),
    ("haiku", "Transformed", _haiku),
)
