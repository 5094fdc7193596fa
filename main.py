"""Classifies images with a sharded, ahead-of-time compiled ResNet.

python main.py --mesh 4x8 --threads 2
"""

import dataclasses
import math
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
from engine.configuration import Configuration, default_batch_size
from engine.launch import MAX_LAUNCHES_IN_FLIGHT
from engine.obtain import obtain
from engine.prediction import Prediction
from engine.run import run_configuration
from sharding import Program, UsageError, mesh_shape

FLAGS = flags.FLAGS
CPU_FLOPS_A_CORE = 60e9  # ResNet101 with XLA's own convolutions on AVX512 cores: 24 images/s on two
PRESET_OF_STEM = {"cifar": "resnet101_cifar10", "imagenet": "resnet101_imagenet"}
engine.flags.define_flags()
flags.adopt_module_key_flags(engine.flags)


def build_program(configuration: Configuration, mesh: Mesh) -> Program:
    """The program of a configuration whose platform, precision and batch size are chosen."""
    import models  # only where something must be built: an offline run starts without flax

    model = configuration.model
    architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
    trained = configuration.weights not in ("auto", "random")
    notes = ()
    if trained:
        weights = configuration.weights
        found, variables = models.read_weights(Path(weights))
        if found != architecture:
            if configuration.explicit_config:
                raise UsageError(
                    f"--config needs weights of {_describe(architecture)}, got {_describe(found)} in {weights}"
                )
            model = dataclasses.replace(engine.flags.load_preset(PRESET_OF_STEM[found.stem]).model, labels=())
            architecture = found
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
            "partition": configuration.partition,
            "weights": weights,
            "trained": trained,
            "intra_sample_flops_fraction": plan.intra_sample_flops_fraction(network, mesh_shape(mesh)),
        },
    )
    return dataclasses.replace(program, notes=(*notes, *program.notes))


def predict(configuration: Configuration) -> Prediction | None:
    """What a configuration is expected to take on CPU, by its counted operations; None where nothing is known."""
    import models

    if configuration.platform not in ("auto", "cpu") or configuration.artifact:
        return None
    if configuration.weights not in ("auto", "random") and not configuration.explicit_config:
        return None  # the weights decide the model
    model, mesh = configuration.model, configuration.mesh
    architecture = models.Architecture.resnet(model.depth, model.stem, model.num_classes)
    network = models.network(architecture, configuration.image_size or model.image_size)
    batch_size = configuration.batch_size or default_batch_size(mesh, "cpu")
    value_bytes = 4 if configuration.precision == "float32" else 2
    weights = sum(layer.kernel**2 * layer.in_shape[2] * layer.out_shape[2] for layer in network if layer.has_weights)
    activations = max(math.prod(layer.in_shape) + math.prod(layer.out_shape) for layer in network)
    in_flight = min(configuration.threads, MAX_LAUNCHES_IN_FLIGHT) * -(-batch_size // mesh.num_devices)
    return Prediction(
        # Virtual devices share the host's cores, so the mesh makes no difference to the count.
        launch_ms=1e3 * batch_size * sum(layer.flops for layer in network) / (CPU_FLOPS_A_CORE * (os.cpu_count() or 1)),
        batch_size=batch_size,
        bytes_per_device=value_bytes * (weights + in_flight * activations),
    )


def code_digest() -> str:
    """A digest of the code that `build_program` runs."""
    return source_digest(Path(__file__), *(Path(__file__).parent / part for part in ("models", "sharding", "configs")))


def main(argv: list[str]) -> int:
    try:
        if len(argv) > 1:
            raise UsageError(f"arguments are flags that begin with --, got {argv[1]!r}")
        axes, source = engine.flags.read_axes(FLAGS), code_digest()
        if any(len(values) > 1 for values in axes.values()):
            from engine.sweep import sweep_command  # matplotlib takes a while

            return sweep_command(FLAGS, axes, [sys.executable, __file__], predict, source)
        configuration = engine.flags.read_configuration(FLAGS)
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
