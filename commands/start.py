"""The program's entry point: refuses an address space too small for the libraries that everything else imports."""

import os
import resource
import sys

_IMPORTED_BYTES = 512 * 2**20  # of Python, NumPy and JAX, measured on 2 cores; then `check_address_space` takes over


def start() -> None:
    """Runs `cambrian`, the same as `python main.py`, and exits."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _IMPORTED_BYTES:
        sys.exit(
            f"error: OutOfMemory: expected at least {_IMPORTED_BYTES // 2**20} MiB of address space (ulimit -v), got "
            f"{limit // 2**20} MiB"
        )
    try:
        from cambrian.commands.cli import cli  # imports NumPy and JAX
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        os._exit(130)

    cli()
