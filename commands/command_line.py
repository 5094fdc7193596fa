"""Makes command lines from flags, for the runs of a sweep and for its answer."""

from collections.abc import Mapping
from typing import Any

from cambrian.commands.flags import Flags


def command_line(flags: Flags, chosen: Mapping[str, Any]) -> list[str]:
    """Returns the arguments that give every flag its value in `flags`, without those at their default.

    Args:
      chosen: flag → another value for it; None leaves it out.
    """
    arguments = []
    for name, value in (dict(flags.values) | dict(chosen)).items():
        default = flags.defaults[name]
        # A default must be stated if the command line or --config sets another value.
        is_default = value == default and flags[name] == default and name not in flags.given
        if value is None or is_default:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            arguments += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return arguments
