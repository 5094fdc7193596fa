"""Classifies images with a sharded, ahead-of-time compiled ResNet.

python main.py --mesh 4x8 --threads 2
"""

import dataclasses
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from jax.sharding import Mesh

import engine.flags
from engine.cache import source_digest
from engine.configuration import Configuration
from engine.obtain import obtain
from engine.run import run_configuration
from engine.weights_model import model_of_weights
from sharding import Program, UsageError, mesh_shape

FLAGS = flags.FLAGS
engine.flags.define_flags()
flags.adopt_module_key_flags(engine.flags)


def build_program(configuration: Configuration, mesh: Mesh) -> Program:
    """The program of a configuration whose platform, precision and batch size are chosen."""
    import models  # only where something must be built: an offline run starts without flax

    model = configuration.model
    architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
    trained = configuration.weights not in ("auto", "random")
    notes: tuple[str, ...] = ()
    if trained:
        weights = configuration.weights
        given = models.read_weights(weights)
        if configuration.explicit_config and given.architecture != architecture:
            raise UsageError(
                f"--config needs weights of {_describe(architecture)}, got {_describe(given.architecture)} in {weights}"
            )
        model = model_of_weights(configuration, given.told())
        architecture, variables, notes = given.architecture, given.variables, given.notes
    else:
        weights = f"random, seed {configuration.seed}"
        variables = models.random_variables(architecture, configuration.seed)
        if configuration.weights == "auto":
            notes = ("no trained weights: running on random ones; --weights PATH takes a checkpoint",)
    image_size = configuration.image_size or model.image_size
    network = models.network(architecture, image_size)
    plan = models.make_plan(
        network, configuration.mesh, configuration.batch_size, configuration.platform, configuration.partition
    )
    program = models.build_program(
        architecture,
        variables,
        plan,
        mesh,
        image_size=image_size,
        batch_size=configuration.batch_size,
        precision=configuration.precision,
        mean=model.mean,
        std=model.std,
        metadata={
            "labels": list(model.labels),
            "crop_fraction": model.crop_fraction,
            "interpolation": model.interpolation,
            "partition": configuration.partition,
            "weights": weights,
            "trained": trained,
            "intra_sample_flops_fraction": plan.intra_sample_flops_fraction(network, mesh_shape(mesh)),
        },
    )
    return dataclasses.replace(program, notes=(*notes, *program.notes))


def code_digest() -> str:
    """A digest of the code that `build_program` runs."""
    return source_digest(Path(__file__), *(Path(__file__).parent / part for part in ("models", "sharding", "configs")))


def main(argv: list[str]) -> int:
    try:
        if len(argv) > 1:
            raise UsageError(f"arguments are flags that begin with --, got {argv[1]!r}")
        configuration = engine.flags.read_configuration(FLAGS)
        source = code_digest()
        if FLAGS.mode == "train":
            from main_train import train_configuration  # only here: it loads flax, optax and orbax

            train_configuration(configuration, engine.flags.effective_flags(FLAGS))
            return 0
        if FLAGS.mode == "compile":
            obtained = obtain(configuration, build_program, source)
            for note in obtained.executable.notes:
                print(f"note: {note}", file=sys.stderr)
            print(obtained.path)
            return 0
        report, output_dir = run_configuration(
            configuration, engine.flags.effective_flags(FLAGS), build_program, source
        )
        from engine.table import print_table  # rich takes a tenth of a second, which the first result needn't wait for

        print_table(report)
        print(f"report and predictions in {output_dir}")
        return 0
    except UsageError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        exit_code = _complain("interrupted", 130)
        sys.stdout.flush()
        os._exit(exit_code)  # XLA crashes the interpreter's own exit where a compilation was interrupted
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", 1)


def _describe(architecture: Any) -> str:
    return f"{architecture.name} with the {architecture.stem} stem and {architecture.num_classes} classes"


def _complain(message: object, exit_code: int) -> int:
    if FLAGS.debug:
        traceback.print_exc()
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return exit_code


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        print(f"error: flags must be among those that --help lists, got --{error.flagname}", file=sys.stderr)
        sys.exit(2)
    except (flags.Error, ValueError) as error:  # ValueError: a value for --noFLAG
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def cli() -> None:
    """The command `cambrian`, the same as `python main.py`."""
    logging.set_verbosity(logging.WARNING)  # of JAX, which logs each platform it doesn't find
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is finished is kept
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    cli()
