"""The program of a configuration."""

import dataclasses

from jax.sharding import Mesh

from cambrian.commands.calibration import read_calibration
from cambrian.commands.configuration import Configuration
from cambrian.commands.model import Model
from cambrian.commands.program.function import classifier_program
from cambrian.commands.program.options import BuildOptions
from cambrian.commands.program.resnet import model_program, precisions_of
from cambrian.commands.user_model import UserModel
from cambrian.models.costs.machine import tuned_precisions
from cambrian.sharding import Program, UsageError


def build_program(configuration: Configuration, mesh: Mesh, model: Model | UserModel) -> Program:
    """The program of a model, by its configuration, whose platform is known.

    Raises:
      UsageError: as `model_program` or `classifier_program`.
      OutOfMemory: if no plan fits the devices.
    """
    if isinstance(model, Model):
        facts = model.config.preprocessing, model.config.labels, model.architecture.num_classes, model.trained
    else:
        classifier, num_logits = model.classifier, model.stock.output_spec.shape[1]
        facts = classifier.preprocessing, classifier.labels, num_logits, classifier.trained
    calibration, notes = None, ()
    if configuration.precision == "int8":
        check_int8(configuration.platform)
        calibration, notes = read_calibration(
            *facts,
            calibration_data=configuration.calibration_data,
            data=configuration.data,
            max_top1_drop=configuration.max_top1_drop,
        )
    options = BuildOptions(
        batch_size=configuration.batch_size,
        precision=configuration.precision,
        partition=configuration.partition,
        launches_at_once=configuration.launches_at_once,
        memory_limit_bytes=configuration.device_memory_limit_bytes,
        calibrate_s=configuration.calibrate_s,
        calibration=calibration,
    )
    if isinstance(model, Model):
        program = model_program(model, mesh, options, compile_reference=configuration.execution == "offline")
    else:
        program = classifier_program(model.classifier, mesh, options, name=model.stock.name)
        program = dataclasses.replace(program, metadata={**program.metadata, "weights": configuration.named_weights})
    return dataclasses.replace(program, notes=(*notes, *program.notes))


def check_int8(platform: str) -> None:
    """Raises UsageError unless this platform can multiply 8-bit integers."""
    from cambrian.models.lowerings.onednn_forms import int8_obstacle

    if (reason := int8_obstacle(platform)) is not None:
        raise UsageError(f"precision int8 requires products of 8-bit integers by oneDNN: {reason}")


def measuring_s(configuration: Configuration) -> float | None:
    """The seconds that a build on a known platform may measure; None where this machine's cost table is complete."""
    precisions = precisions_of(configuration.precision, configuration.platform)
    is_complete = tuned_precisions(configuration.platform).issuperset(precisions)
    return configuration.calibrate_s if configuration.user_model or not is_complete else None
