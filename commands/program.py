"""From a model to its program, and what a program depends on."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian.commands.calibration import read_calibration
from cambrian.commands.classifier import Classifier
from cambrian.commands.configuration import CALIBRATE_S, Configuration, batch_sizes
from cambrian.commands.console import progress_bar
from cambrian.commands.model import Model, read_model
from cambrian.commands.user_model import UserModel
from cambrian.engine.runtime.memory import device_memory_bytes
from cambrian.engine.runtime.parity import NUM_PROBE_SAMPLES
from cambrian.models.costs.machine import has_table, tuned_table_path
from cambrian.sharding import (
    Network,
    Plan,
    Preprocessing,
    Program,
    Rules,
    UsageError,
    mesh_shape,
    named_arrays,
    program_from_function,
)
from cambrian.sharding.host import computes_bfloat16

if TYPE_CHECKING:
    from cambrian.models import Calibration

_PACKAGES = ("commands", "configs", "engine", "models", "sharding")
_ROOT = Path(__file__).resolve().parent.parent
_CODE_AND_DATA = (".py", ".jsonl", ".zip")


def build_program(configuration: Configuration, mesh: Mesh, user_model: UserModel | None = None) -> Program:
    """The program of a configuration whose platform, precision and batch size are chosen.

    Args:
      user_model: of the configuration; None for a ResNet.

    Raises:
      UsageError: as `read_model` and `model_program`, or `classifier_program`.
      OutOfMemory: if no plan fits the devices.
    """
    if user_model is not None:
        classifier = user_model.classifier
        calibration, notes = _calibration(
            configuration,
            classifier.preprocessing,
            classifier.labels,
            user_model.stock.output_spec.shape[1],
            classifier.trained,
        )
        program = classifier_program(
            classifier,
            mesh,
            batch_size=configuration.batch_size,
            precision=configuration.precision,
            partition=configuration.partition,
            name=user_model.stock.name,
            launches_at_once=configuration.launches_at_once,
            memory_limit_bytes=configuration.device_memory_limit_bytes,
            calibrate_s=configuration.calibrate_s,
            calibration=calibration,
        )
        weights = configuration.weights if configuration.weights not in ("auto", "random") else configuration.user_model
        metadata = {**program.metadata, "weights": weights}
        return dataclasses.replace(program, metadata=metadata, notes=(*notes, *program.notes))
    model = read_model(configuration)
    calibration, notes = _calibration(
        configuration,
        model.config.preprocessing,
        model.config.labels,
        model.architecture.num_classes,
        model.trained,
    )
    program = model_program(
        model,
        mesh,
        batch_size=configuration.batch_size,
        precision=configuration.precision,
        partition=configuration.partition,
        launches_at_once=configuration.launches_at_once,
        memory_limit_bytes=configuration.device_memory_limit_bytes,
        calibrate_s=configuration.calibrate_s,
        compile_reference=configuration.execution == "offline",
        calibration=calibration,
    )
    return dataclasses.replace(program, notes=(*notes, *program.notes))


def _calibration(
    configuration: Configuration,
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
    num_logits: int,
    trained: bool,
) -> tuple["Calibration | None", tuple[str, ...]]:
    if configuration.precision != "int8":
        return None, ()
    check_int8(configuration.platform)
    return read_calibration(
        preprocessing,
        labels,
        num_logits,
        trained,
        calibration_data=configuration.calibration_data,
        data=configuration.data,
        max_top1_drop=configuration.max_top1_drop,
    )


def check_int8(platform: str) -> None:
    """Raises UsageError unless this platform can multiply 8-bit integers."""
    from cambrian.models.lowerings.onednn_forms import int8_obstacle

    if (reason := int8_obstacle(platform)) is not None:
        raise UsageError(f"precision int8 requires products of 8-bit integers by oneDNN: {reason}")


def model_program(
    model: Model,
    mesh: Mesh,
    *,
    batch_size: int,
    precision: str,
    partition: str = "auto",
    launches_at_once: int = 1,
    memory_limit_bytes: int | None = None,
    calibrate_s: float = 0.0,
    compile_reference: bool = False,
    calibration: "Calibration | None" = None,
) -> Program:
    """Plans a model on a mesh by this machine's costs, and specialises it to the plan.

    Args:
      batch_size: global number of images of a launch, a multiple of the data axis; 0 for the one predicted to be best.
      precision: float32, bfloat16, int8, or auto for the one predicted to be faster.
      partition: as `cambrian.sharding.choose_plan` takes it.
      launches_at_once: number of launches that compute side by side on a single device.
      memory_limit_bytes: of a device; None for its memory.
      calibrate_s: seconds in which to measure what decides the plan, where no cost table of this machine is there.
      compile_reference: whether to compile the program's reference meanwhile, because it will be called; not while
        costs are measured.
      calibration: for int8.

    Raises:
      UsageError: if the mesh can't cut the model as asked.
      OutOfMemory: if no plan fits the devices.
    """
    from cambrian import models

    devices, shape = mesh.local_devices, mesh_shape(mesh)
    platform, notes = devices[0].platform, []
    table = models.current_cost_table(platform)
    precisions = precisions_of(precision, platform)
    calibrates = calibrate_s > 0 and platform == "cpu" and not table.is_complete(precisions)
    pixels: Any = {
        "image_size": model.image_size,
        "mean": model.config.preprocessing.mean,
        "std": model.config.preprocessing.std,
    }
    quantized = None
    if calibration is not None:
        quantized = models.quantize(model.architecture, model.variables, calibration, **pixels)

    def plan(network: Network) -> tuple[Plan, models.Setting]:
        limit_bytes = device_memory_bytes(devices) if memory_limit_bytes is None else memory_limit_bytes
        plans = models.Plans(network, shape, table, partition, launches_at_once, limit_bytes)
        sizes = [batch_size] if batch_size else batch_sizes(shape, platform)
        with progress_bar(round(calibrate_s) if calibrates else 0, "measuring this machine", unit="s") as show_progress:
            chosen = models.calibrated(
                plans,
                precisions,
                sizes,
                mesh,
                calibrate_s,
                lambda done: show_progress(round(done)),
            )
        notes.extend(chosen.notes)
        return chosen.plans.plan(chosen.setting), chosen.setting

    program = models.build_program(
        model.architecture,
        model.variables,
        plan,
        mesh,
        quantized=quantized,
        **pixels,
        metadata={
            "labels": list(model.config.labels),
            "preprocessing": model.config.preprocessing.to_json(),
            "weights": model.weights,
            "trained": model.trained,
        },
        compile_reference=compile_reference and not calibrates,
    )
    return dataclasses.replace(
        program,
        metadata={**program.metadata, **_plan_facts(program, partition)},
        probe_samples=_probe_pictures(model.config.preprocessing),
        notes=(*model.notes, *program.notes, *notes),
    )


def precisions_of(precision: str, platform: str) -> list[str]:
    """The precisions that a requested one may mean, the expected one first."""
    if precision != "auto":
        return [precision]
    return sorted(["float32", "bfloat16"], reverse=not computes_bfloat16(platform))


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
        return dataclasses.replace(program, metadata={**program.metadata, **_plan_facts(program, partition)})
    if partition != "auto":
        raise UsageError(f"sharding rules decide the partition: expected auto, got {partition!r}")
    if precision != "float32":
        raise UsageError(f"with sharding rules a function computes in its own precision, got {precision!r}")
    tolerance = TOLERANCE[precision] if tolerance is None else tolerance
    return program_from_function(function, values, inputs, mesh, rules, name=name, tolerance=tolerance)


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
        program, probe_samples=_probe_pictures(classifier.preprocessing), metadata={**program.metadata, **facts}
    )


def _name_of(model: Any) -> str:
    return getattr(model, "__qualname__", type(model).__name__)


def _plan_facts(program: Program, partition: str) -> dict[str, Any]:
    """What reports and `--mode plan` show of the plan that `partition` led to."""
    facts: dict[str, Any] = {"partition": partition}
    if program.plan is not None:
        facts["layer_costs"] = [dataclasses.asdict(cost) for cost in program.plan.costs]
        if program.network is not None:
            mesh = mesh_shape(program.mesh)
            facts["intra_sample_flops_fraction"] = program.plan.intra_sample_flops_fraction(program.network, mesh)
    return facts


def _probe_pictures(preprocessing: Preprocessing) -> np.ndarray:
    """Pictures of the packaged sample as a model reads them, (N, H, W, 3) uint8; logits of noise are less telling."""
    from cambrian.commands.images.sample import open_sample  # Pillow, which a start without a build can do without

    sample = open_sample("test")
    chosen = np.random.default_rng(0).permutation(len(sample))[:NUM_PROBE_SAMPLES]
    return np.stack([sample.read(index, preprocessing).pixels for index in chosen.tolist()])


def calibration_s(configuration: Configuration) -> float | None:
    """The seconds that a build on a known platform may measure; None where a cost table of this machine is there.

    A table may lack int8.
    """
    measures = configuration.user_model or configuration.precision == "int8" or not has_table(configuration.platform)
    return configuration.calibrate_s if measures else None


def code_digest() -> str:
    """A digest of Cambrian's code and data."""
    return source_digest(*(_ROOT / package for package in _PACKAGES))


def build_digest(platform: str) -> str:
    """A digest of everything but the configuration that a built program depends on.

    That is all of Cambrian's code and data, and the cost table that `--tune` measured on this machine. What builds have
    measured for themselves doesn't count: each would make the others' artefacts be built anew.
    """
    tuned = tuned_table_path(platform)
    return source_digest(*(_ROOT / package for package in _PACKAGES), *([tuned] if tuned else []))


def source_digest(*parts: Path) -> str:
    """A digest of files, and of the code and data in folders: contents, and names relative to each folder.

    Raises:
      FileNotFoundError: if a part doesn't exist.
    """
    files = {}
    for part in parts:
        if not part.exists():
            raise FileNotFoundError(f"expected a file or folder to digest, got {part}")
        found = [part] if part.is_file() else [p for p in part.rglob("*") if p.suffix in _CODE_AND_DATA]
        for path in found:
            name = f"{part.name}/{path.relative_to(part).as_posix()}"
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
