"""The program of a user's function, model of a JAX library, or classifier."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from cambrian.commands.classifier import Classifier
from cambrian.commands.configuration import CALIBRATE_S
from cambrian.commands.program.facts import plan_facts, probe_pictures
from cambrian.engine.runtime.memory import device_memory_bytes
from cambrian.sharding import Program, Rules, UsageError, named_arrays, program_from_function

if TYPE_CHECKING:
    from cambrian.models import Calibration


def function_program(
    model: Any,
    params: Any,
    spec: Any,
    mesh: Mesh,
    *,
    batch_size: int,
    precision: str = "auto",
    partition: str = "auto",
    rules: Rules | None = None,
    name: str = "",
    tolerance: float | None = None,
    launches_at_once: int = 1,
    memory_limit_bytes: int | None = None,
    calibrate_s: float = CALIBRATE_S,
    calibration: "Calibration | None" = None,
) -> Program:
    """The program of a user's function, or of a model of a JAX library.

    Without rules the function is optimised, and planned where it consists of layers alone; otherwise the mesh cuts the
    batch. With rules XLA partitions it as it is.

    Args:
      model, params: as `cambrian.models.frameworks.as_function` takes them.
      spec: shape and dtype of one sample: a `jax.ShapeDtypeStruct`, or one for each array in a pytree of dicts, lists
        and tuples.
      batch_size: global number of samples of a launch.
      precision: float32, bfloat16, int8, or auto, which is the function's own.
      partition: as `cambrian.models.graph.build_program` takes it.
      rules: sharding rules of the parameters; None for none.
      name: empty for the model's own.
      tolerance: largest relative error of the outputs; None for 1e-4, or 2e-2 in bfloat16, or as docs/int8.md says.
      launches_at_once: number of launches that compute side by side on a single device.
      memory_limit_bytes: of a device; None for its memory.
      calibrate_s: seconds in which to measure lowerings.
      calibration: for int8.

    Raises:
      UsageError: if the model isn't one, an argument is missing, or the mesh can't cut it.
    """
    from cambrian.models.execution.build_program import TOLERANCE
    from cambrian.models.frameworks import as_function
    from cambrian.models.graph.build_program import build_program
    from cambrian.models.graph.over_samples import marked_as_mixing, mixing_operation

    if spec is None:
        raise UsageError("expected spec, the shape and dtype of one sample, with a function or module, got None")
    function, values = as_function(model, params)
    name = name or _name_of(model)
    named_arrays("spec", spec)
    inputs = jax.tree.map(lambda each: jax.ShapeDtypeStruct((batch_size, *each.shape), each.dtype), spec)
    precision = "float32" if precision == "auto" else precision
    if rules is None:
        devices = mesh.local_devices
        program = build_program(
            function,
            values,
            inputs,
            mesh,
            name=name,
            precision=precision,
            partition=partition,
            tolerance=tolerance,
            launches_at_once=launches_at_once,
            memory_limit_bytes=device_memory_bytes(devices) if memory_limit_bytes is None else memory_limit_bytes,
            calibrate_s=calibrate_s,
            calibration=calibration,
        )
        return dataclasses.replace(program, metadata={**program.metadata, **plan_facts(program, partition)})
    if partition != "auto":
        raise UsageError(f"sharding rules decide the partition: expected auto, got {partition!r}")
    if precision != "float32":
        raise UsageError(f"with sharding rules a function computes in its own precision, got {precision!r}")
    tolerance = TOLERANCE[precision] if tolerance is None else tolerance
    program = program_from_function(function, values, inputs, mesh, rules, name=name, tolerance=tolerance)
    mixing = mixing_operation(function, values, inputs)
    return program if mixing is None else marked_as_mixing(program, mixing)


def classifier_program(
    classifier: Classifier,
    mesh: Mesh,
    *,
    batch_size: int,
    precision: str = "auto",
    partition: str = "auto",
    name: str = "",
    tolerance: float | None = None,
    launches_at_once: int = 1,
    memory_limit_bytes: int | None = None,
    calibrate_s: float = CALIBRATE_S,
    calibration: "Calibration | None" = None,
) -> Program:
    """The program of a user's classifier, from pixels (N, H, W, 3) uint8 to logits; arguments as `function_program`.

    Raises:
      UsageError: as `Classifier.as_function` and `function_program`.
    """
    function, params = classifier.as_function()
    pixels = classifier.pixels(batch_size)
    program = function_program(
        function,
        params,
        jax.ShapeDtypeStruct(pixels.shape[1:], pixels.dtype),
        mesh,
        batch_size=batch_size,
        precision=precision,
        partition=partition,
        name=name or _name_of(classifier.model),
        tolerance=tolerance,
        launches_at_once=launches_at_once,
        memory_limit_bytes=memory_limit_bytes,
        calibrate_s=calibrate_s,
        calibration=calibration,
    )
    facts = {
        "labels": list(classifier.labels),
        "preprocessing": classifier.preprocessing.to_json(),
        "trained": classifier.trained,
    }
    return dataclasses.replace(
        program, probe_samples=probe_pictures(classifier.preprocessing), metadata={**program.metadata, **facts}
    )


def _name_of(model: Any) -> str:
    return getattr(model, "__qualname__", type(model).__name__)
