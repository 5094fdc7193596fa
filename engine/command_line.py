"""Command lines made of flags: what a sweep runs, and what it names as its answer."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from engine.flags import effective_flags


def command_line(values: flags.FlagValues, chosen: Mapping[str, Any]) -> list[str]:
    """The arguments that give every flag the value it has in `values`, leaving out those at their default.

    Args:
      chosen: flag → another value for it; None leaves it out.
    """
    arguments = []
    for name, value in (effective_flags(values) | dict(chosen)).items():
        flag = values[name]
        # A default must be said where the command line or --config says otherwise.
        is_default = value == flag.default and flag.value == flag.default and not flag.present
        if value is None or is_default:
            continue
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            arguments += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return arguments
