"""The command line: flags read once, the mode that they name, errors in one line with the exit code that they mean."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from cambrian.commands.configuration import Configuration
from cambrian.commands.flags import Flags, define_flags, read_configuration, read_flags
from cambrian.sharding import UsageError
from cambrian.sharding.host import host

FLAGS = flags.FLAGS


def cli() -> None:
    """Runs `cambrian`, the same as `python main.py`, and exits."""
    logging.set_verbosity(logging.WARNING)  # JAX logs each platform that it doesn't find
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: finished results are kept
    host.permit("cpu_latency", "malloc")  # the process is Cambrian's own
    define_flags(FLAGS)
    for flag in FLAGS.flags_by_module_dict()[define_flags.__module__]:
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # --help shows these
    app.run(_main, flags_parser=_parse_flags)


def _main(argv: list[str]) -> int:
    try:
        if len(argv) > 1:
            raise UsageError(f"arguments are flags that begin with --, got {argv[1]!r}")
        found = read_flags(FLAGS)
        if found.is_sweep:
            from cambrian.commands.sweep.command import sweep_command  # matplotlib takes a while to import

            return sweep_command(found, [sys.executable, *_program(argv[0])])
        configuration = read_configuration(found)
        _MODES[found["mode"]](found, configuration)
        return 0
    except UsageError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        exit_code = _fail("interrupted", 130)
        sys.stdout.flush()
        os._exit(exit_code)  # XLA crashes the interpreter's own exit after an interrupted compilation
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error}", 1)


def _program(started: str) -> list[str]:
    """What the interpreter is given to start this program again."""
    return [started] if started.endswith(".py") else ["-m", __spec__.name]


# Each mode imports its own packages: a run needs neither Flax nor matplotlib.
def _run(found: Flags, configuration: Configuration) -> None:
    from cambrian.commands.run.run import run_command

    run_command(configuration, found)


def _compile(found: Flags, configuration: Configuration) -> None:
    from cambrian.commands.compile import compile_command

    compile_command(configuration)


def _plan(found: Flags, configuration: Configuration) -> None:
    from cambrian.commands.plan.plan import plan_command

    plan_command(configuration, found["tune"])


def _train(found: Flags, configuration: Configuration) -> None:
    from cambrian.commands.train.train import train_command

    train_command(configuration, found)


_MODES: dict[str, Callable[[Flags, Configuration], None]] = {
    "run": _run,
    "compile": _compile,
    "plan": _plan,
    "train": _train,
}


def _fail(message: object, exit_code: int) -> int:
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


if __name__ == "__main__":
    cli()
