"""The command lines of a sweep: of its builds and runs, and those that a user types."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cambrian.commands.flags import DECIDED_BY_ARTIFACT, OF_INT8, SWEEP_FLAGS, Flags, flags_elsewhere
from cambrian.commands.loadgen.settings import LOADGEN_FLAGS
from cambrian.commands.sweep.grid import Cell

# Flags that don't identify a sweep.
_NOT_OF_THE_COMMAND = ("output_dir", "fresh", "dry_run", "debug")
# Those that only rank what a grid has measured.
_OF_THE_RANKING = ("objective", "max_latency_ms", "min_top1")


@dataclasses.dataclass(frozen=True, slots=True)
class CommandLines:
    """The command lines of the sweep that flags describe.

    Attributes:
      program: interpreter and script that run one configuration, without flags.
    """

    flags: Flags
    program: Sequence[str]

    def run(self, cell: Cell, num_images: int, output_dir: Path) -> list[str]:
        """Returns the command that runs a cell on a number of images; 0 for the cell's own."""
        chosen = {"num_images": num_images} if num_images else {}
        return [*self.program, *self._arguments(cell, self.flags["mode"], output_dir=str(output_dir), **chosen)]

    def build(self, cell: Cell, batch_size: int) -> list[str]:
        """Returns the command that builds a cell's executable, in whose batch size LoadGen's scenario has a say."""
        unused = dict.fromkeys((*LOADGEN_FLAGS, "output_dir", "max_latency_ms"))
        return [*self.program, *self._arguments(cell, "compile", **unused, batch_size=batch_size)]

    def answer(self, cell: Cell) -> str:
        """Returns what a user types to run a cell."""
        return shlex.join([*self._typed, *self._arguments(cell, self.flags["mode"], output_dir=None)])

    @property
    def sweep(self) -> str:
        """What a user types to run the sweep, less what doesn't decide its results."""
        measures_alike = self.flags["mode"] == "run" and self.flags["search"] == "grid"
        return self._whole(dict.fromkeys(_OF_THE_RANKING) if measures_alike else {})

    def resume(self, output_dir: Path) -> str:
        """Returns what a user types to go on with the sweep."""
        return self._whole({"output_dir": str(output_dir)})

    def _whole(self, chosen: Mapping[str, Any]) -> str:
        elsewhere = flags_elsewhere(self.flags["mode"], self.flags.axes["precision"])
        left_out: dict[str, Any] = dict.fromkeys((*_NOT_OF_THE_COMMAND, *elsewhere))
        return shlex.join([*self._typed, *command_line(self.flags, left_out | chosen)])

    def _arguments(self, cell: Cell, mode: str, **chosen: Any) -> list[str]:
        flags, precision = self.flags, cell["precision"]
        # A config or a report may hold flags that this mode ignores.
        left_out: dict[str, Any] = dict.fromkeys((*SWEEP_FLAGS, *flags_elsewhere(mode, [precision])))
        if flags["mode"] == "loadgen" and flags["scenario"] == "Server":
            del left_out["max_latency_ms"]
        if precision != "int8":
            left_out |= dict.fromkeys(OF_INT8)
        if flags["artifact"]:
            left_out |= dict.fromkeys((*DECIDED_BY_ARTIFACT, "artifact_dir"))
        return command_line(flags, cell.flags | left_out | chosen | {"mode": mode})

    @property
    def _typed(self) -> list[str]:
        script = Path(self.program[-1])
        if script.suffix != ".py":
            return ["cambrian"]  # the installed command, by its script or its module
        return ["python", script.name if script.resolve().parent == Path.cwd() else str(script)]


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
