"""The program of a user's function, model of a JAX library, or classifier."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from cambrian.commands.classifier import Classifier
from cambrian.commands.configuration import default_batch_size
from cambrian.commands.console import elapsed_time
from cambrian.commands.program.facts import of_classifier, with_plan_facts
from cambrian.commands.program.options import BuildOptions
from cambrian.sharding import Program, Rules, UsageError, mesh_shape, named_arrays, program_from_function


def function_program(
    model: Any,
    params: Any,
    spec: Any,
    mesh: Mesh,
    options: BuildOptions,
    *,
    rules: Rules | None = None,
    name: str = "",
    tolerance: float | None = None,
) -> Program:
    """The program of a user's function, or of a model of a JAX library.

    Without rules the function is optimised, and planned where it consists of layers alone; otherwise the mesh cuts the
    batch. With rules XLA partitions it as it is.

    Args:
      model, params: as `cambrian.models.frameworks.as_function` takes them.
      spec: shape and dtype of one sample: a `jax.ShapeDtypeStruct`, or one for each array in a pytree of dicts, lists
        and tuples.
      rules: sharding rules of the parameters; None for none.
      name: empty for the model's own.
      tolerance: largest relative error of the outputs; None for 1e-4, or 2e-2 in bfloat16, or as docs/int8.md says.

    Raises:
      UsageError: if the model isn't one, an argument is missing, or the mesh can't cut it.
    """
    from cambrian.models.frameworks import as_function
    from cambrian.models.graph.build_program import build_program
    from cambrian.models.graph.comparison import default_tolerance
    from cambrian.models.graph.fastest_program import marked_by_results
    from cambrian.models.graph.sample_mixing import marked_as_mixing, mixing_operation
    from cambrian.models.graph.trace import trace_abstractly

    if spec is None:
        raise UsageError("expected spec, the shape and dtype of one sample, with a function or module, got None")
    function, values = as_function(model, params)
    if function is model:
        _check_arguments(function)
    name = name or name_of(model)
    named_arrays("spec", spec)
    batch_size = options.batch_size or default_batch_size(mesh_shape(mesh), mesh.local_devices[0].platform)
    inputs = jax.tree.map(lambda each: jax.ShapeDtypeStruct((batch_size, *each.shape), each.dtype), spec)
    precision = "float32" if options.precision == "auto" else options.precision
    if rules is None:
        with elapsed_time(f"optimising {name}"):
            program = build_program(
                function,
                values,
                inputs,
                mesh,
                name=name,
                precision=precision,
                partition=options.partition,
                tolerance=tolerance,
                launches_at_once=options.launches_at_once,
                memory_limit_bytes=options.limit_bytes(mesh),
                calibrate_s=options.calibrate_s,
                calibration=options.calibration,
            )
        return with_plan_facts(program, options.partition)
    if options.partition != "auto":
        raise UsageError(f"sharding rules decide the partition: expected auto, got {options.partition!r}")
    if precision != "float32":
        raise UsageError(f"with sharding rules a function computes in its own precision, got {precision!r}")
    program = program_from_function(function, values, inputs, mesh, rules, name=name)
    if tolerance is None:
        tolerance = default_tolerance(trace_abstractly(function, values, inputs), precision)
    program = dataclasses.replace(program, tolerance=tolerance)
    mixing = mixing_operation(function, values, inputs)
    return marked_by_results(program) if mixing is None else marked_as_mixing(program, mixing)


def classifier_program(
    classifier: Classifier,
    mesh: Mesh,
    options: BuildOptions,
    *,
    name: str = "",
    tolerance: float | None = None,
) -> Program:
    """The program of a user's classifier, from pixels (N, H, W, 3) uint8 to logits; arguments as `function_program`.

    Raises:
      UsageError: as `Classifier.as_function` and `function_program`.
    """
    function, params = classifier.as_function()
    pixels = classifier.pixels(1)
    spec = jax.ShapeDtypeStruct(pixels.shape[1:], pixels.dtype)
    name = name or name_of(classifier.model)
    program = function_program(function, params, spec, mesh, options, name=name, tolerance=tolerance)
    return of_classifier(program, classifier.preprocessing, classifier.labels, classifier.trained)


def _check_arguments(function: Callable[..., Any]) -> None:
    inner = getattr(function, "__wrapped__", function) if isinstance(function, jax.stages.Wrapped) else function
    try:
        signature = inspect.signature(inner, follow_wrapped=False)  # a decorator may have arguments of its own
    except ValueError:  # of a builtin
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise UsageError(f"a function must take (params, inputs), got {name_of(function)}{signature}") from error


def name_of(model: Any) -> str:
    """The name of a function, or of the class of a model, also in `jax.jit`."""
    inner = getattr(model, "__wrapped__", model)
    return getattr(inner, "__qualname__", type(inner).__name__)
