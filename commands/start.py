"""The program's entry point: refuses an address space too small for the libraries that everything else imports."""

import os
import resource
import signal
import sys
from typing import NoReturn

_IMPORTED_BYTES = 512 * 2**20  # of Python, NumPy and JAX, measured on 2 cores; then `check_address_space` takes over


def start() -> None:
    """Runs `cambrian`, the same as `python main.py`, and exits."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _IMPORTED_BYTES:
        sys.exit(
            f"error: OutOfMemory: expected at least {_IMPORTED_BYTES // 2**20} MiB of address space (ulimit -v), got "
            f"{limit // 2**20} MiB"
        )
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # An exception would crash native code that is being imported, or be ignored in a callback of JAX's.
        signal.signal(signal.SIGINT, _end)
    from cambrian.commands.cli import cli  # imports NumPy and JAX

    cli()


def _end(*_: object) -> NoReturn:
    """Ends the process at once, by Ctrl-C before the command has begun."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)
