"""Classifies images with a sharded, ahead-of-time compiled ResNet.

python main.py --mesh 4x8 --threads 2
"""

import os
import signal
import sys
import traceback

from absl import app, flags, logging

import engine.flags
from commands.build import build_program, code_digest
from engine.configuration import Configuration
from engine.obtain import obtain
from engine.run import run_configuration
from sharding import UsageError

FLAGS = flags.FLAGS
engine.flags.define_flags()
flags.adopt_module_key_flags(engine.flags)


def run(configuration: Configuration) -> None:
    report, output_dir = run_configuration(
        configuration, engine.flags.effective_flags(FLAGS), build_program, code_digest
    )
    from engine.table import print_table  # rich takes a tenth of a second, which the first result needn't wait for

    print_table(report)
    print(f"report and predictions in {output_dir}")


def compile_artifact(configuration: Configuration) -> None:
    obtained = obtain(configuration, build_program, code_digest)
    for note in obtained.executable.notes:
        print(f"note: {note}", file=sys.stderr)
    print(obtained.path)


def plan(configuration: Configuration) -> None:
    from commands.plan import plan_command

    print(f"picture of the plan in {plan_command(configuration, FLAGS.tune)}")


def train(configuration: Configuration) -> None:
    from commands.train import train_configuration  # flax, optax and orbax, which nothing else loads

    train_configuration(configuration, engine.flags.effective_flags(FLAGS))


def main(argv: list[str]) -> int:
    modes = {"run": run, "compile": compile_artifact, "plan": plan, "train": train}
    try:
        if len(argv) > 1:
            raise UsageError(f"arguments are flags that begin with --, got {argv[1]!r}")
        axes = engine.flags.read_axes(FLAGS)
        if any(len(values) > 1 for values in axes.values()):
            from commands.predict import predict
            from engine.sweep import sweep_command  # matplotlib takes a while

            # The CPU's cost table stands for any: another platform's is found only by starting its backend.
            return sweep_command(FLAGS, axes, [sys.executable, __file__], predict, code_digest("cpu"))
        configuration = engine.flags.read_configuration(FLAGS)
        modes[FLAGS.mode](configuration)
        return 0
    except UsageError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        exit_code = _complain("interrupted", 130)
        sys.stdout.flush()
        os._exit(exit_code)  # XLA crashes the interpreter's own exit where a compilation was interrupted
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", 1)


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
