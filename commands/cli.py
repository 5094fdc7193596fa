"""The command line: parses the flags, calls the mode, and reports an error in one line with its exit code."""

import _thread
import difflib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from importlib.metadata import version
from typing import Any

from absl import app, flags, logging

from cambrian.commands.configuration import Configuration
from cambrian.commands.flags import Flags, define_flags, help_text, own_flags, read_configuration, read_flags
from cambrian.sharding import UsageError
from cambrian.sharding.host import host, restart_with_huge_pages, shares_mesh

FLAGS = flags.FLAGS
_HELP = ("-h", "-help", "--help")
_AGAIN_S = 0.05
_NOT_OURS = ("flagfile", "undefok")  # absl's: --config is for files, and an unknown flag is never dropped


class _StandardOutput(io.FileIO):
    """Standard output, which its errors name as those of a file do."""

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from None


def cli() -> None:
    """Runs `cambrian`, the same as `python main.py`, and exits."""
    if sys.stdout is None or sys.stderr is None:  # else the next file opened takes the descriptor, and the output
        print("error: standard output and standard error must be open, got a closed one", file=sys.stderr or sys.stdout)
        sys.exit(2)
    binary = io.BufferedWriter(_StandardOutput(sys.stdout.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(  # file names needn't be Unicode
        binary, sys.stdout.encoding, errors="backslashreplace", line_buffering=sys.stdout.isatty()
    )
    logging.set_verbosity(logging.WARNING)  # JAX logs each platform that it doesn't find
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of pictures that it reads, and without their names
    sys.unraisablehook = _interrupt_again
    host.permit("cpu_latency", "malloc")  # this process belongs to Cambrian
    define_flags(FLAGS)
    try:
        app.run(_interruptible_main, flags_parser=_parse_flags)
    except SystemExit as end:
        exit_code = end.code
    except OSError as error:  # from printing the help
        exit_code = _fail(f"{type(error).__name__}: {error}", 1)
    try:
        sys.stdout.flush()
    except OSError as error:
        exit_code = _fail(f"{type(error).__name__}: {error}", 1)
    if exit_code and shares_mesh():  # a launch may wait for a process that is gone
        os._exit(exit_code if isinstance(exit_code, int) else 1)
    sys.exit(exit_code)


def _interrupt_again(ignored: Any) -> None:
    """Interrupts the main thread once more if Python ignored an interrupt, as in a finalizer."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(_AGAIN_S, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


def _interruptible_main(argv: list[str]) -> int:
    """Runs the command, which Ctrl-C and SIGTERM end in the same way: finished results are kept."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a job that a shell starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return _main(argv)


def _main(argv: list[str]) -> int:
    try:
        if len(argv) > 1:
            raise UsageError(f"arguments must be flags that begin with --, got {argv[1]!r}")
        found = read_flags(FLAGS)
        if found.is_sweep:
            from cambrian.commands.sweep.command import sweep_command  # Matplotlib takes a while to import

            return sweep_command(found, [sys.executable, *_program(argv[0])])
        _run_mode(found, read_configuration(found))
        return 0
    except UsageError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        exit_code = _fail("interrupted", 130)
        os._exit(exit_code)  # XLA crashes the interpreter's own exit after an interrupted compilation
    except MemoryError as error:
        return _fail(f"MemoryError: {str(error) or 'the system gives this process no more memory'}", 1)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error}", 1)


def _program(started: str) -> list[str]:
    """Returns the interpreter's arguments that start this program again."""
    is_script = started.endswith(".py") and not os.path.samefile(started, __file__)
    return [started] if is_script else ["-P", "-m", __spec__.name]  # -P: without the user's folder in sys.path


def _run_mode(found: Flags, configuration: Configuration) -> None:
    """Each mode imports its own packages: a run needs neither Flax nor Matplotlib."""
    match found["mode"]:
        case "run":
            from cambrian.commands.run.run import run_command

            run_command(configuration, found)
        case "compile":
            from cambrian.commands.compile import compile_command

            compile_command(configuration)
        case "plan":
            from cambrian.commands.plan.plan import plan_command

            plan_command(configuration, found["tune"])
        case "train":
            restart_with_huge_pages()
            from cambrian.commands.train.train import train_command

            train_command(configuration, found)
        case "batch":
            from cambrian.commands.batch.command import batch_command

            batch_command(configuration, found)
        case "loadgen":
            from cambrian.commands.loadgen.loadgen import loadgen_command

            loadgen_command(configuration, found)


def _fail(message: object, exit_code: int) -> int:
    if FLAGS.is_parsed() and FLAGS.debug:
        traceback.print_exc()
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # one error is enough: the rest of the output goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code


def _parse_flags(argv: list[str]) -> list[str]:
    if any(argument in _HELP for argument in argv[1:]):
        print(help_text(FLAGS))
        sys.exit(0)
    if "--version" in argv[1:]:
        print(", ".join(f"{name} {version(name)}" for name in ("cambrian", "jax")))
        sys.exit(0)
    names, own = [_name(argument) for argument in argv[1:] if argument.startswith("-")], own_flags(FLAGS)
    try:
        if refused := [name for name in names if name in _NOT_OURS]:
            raise flags.UnrecognizedFlagError(refused[0])
        if argv[-1].startswith("-") and "=" not in argv[-1] and _takes_value(last := names[-1]):
            raise UsageError(f"--{last} must have a value, got none")
        rest = FLAGS(argv)
        if len(rest) > 1 and (before := _name(argv[argv.index(rest[1]) - 1])) in own and not _takes_value(before):
            raise UsageError(f"--{before} takes no value, and --no{before} turns it off, got {rest[1]!r}")
        return rest
    except flags.UnrecognizedFlagError as error:
        closest = difflib.get_close_matches(error.flagname, own, 1)
        hint = f"did you mean --{closest[0]}?" if closest else "--help lists all flags"
        sys.exit(_fail(f"unknown flag --{error.flagname}; {hint}", 2))
    except flags.IllegalFlagValueError as error:  # absl puts the flag before our message, which names it
        sys.exit(_fail(error.__context__ if isinstance(error.__context__, UsageError) else error, 2))
    except (flags.Error, ValueError) as error:
        sys.exit(_fail(error, 2))


def _takes_value(name: str) -> bool:
    flag = own_flags(FLAGS).get(name)
    return flag is not None and not flag.boolean


def _name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0]


if __name__ == "__main__":
    cli()
