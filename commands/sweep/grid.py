"""The grid: every combination of the values that a sweep varies."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cambrian.sharding import MeshShape
from cambrian.sharding.host import launches_at_once

# Host threads enter an executable only by the number of launches that compute at once.
_NOT_OF_THE_EXECUTABLE = ("threads", "num_images")


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One configuration: (flag, value) for every flag that a sweep can vary, in a fixed order."""

    values: tuple[tuple[str, Any], ...]

    @property
    def flags(self) -> dict[str, Any]:
        return dict(self.values)

    def __getitem__(self, flag: str) -> Any:
        return self.flags[flag]

    @property
    def executable(self) -> "Cell":
        """The values that determine the executable; cells that agree in them share one."""
        flags = self.flags
        mesh = MeshShape.parse(str(flags["mesh"]))
        cards = flags["cards"]
        at_once = launches_at_once(mesh.num_devices, -(-flags["threads"] // cards), flags["precision"], cards)
        deciding = (pair for pair in self.values if pair[0] not in _NOT_OF_THE_EXECUTABLE)
        return Cell((*deciding, ("launches_at_once", at_once)))


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a sweep.

    Attributes:
      axes: (flag, values) for every flag that a sweep can vary, including those with a single value.
    """

    axes: tuple[tuple[str, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, axes: Mapping[str, Sequence[Any]]) -> "Grid":
        return cls(tuple((flag, tuple(values)) for flag, values in axes.items()))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The product of the axes, the last one varying fastest."""
        flags = [flag for flag, _ in self.axes]
        combinations = itertools.product(*(values for _, values in self.axes))
        return tuple(Cell(tuple(zip(flags, values, strict=True))) for values in combinations)

    @property
    def varied(self) -> tuple[str, ...]:
        """The flags with several values."""
        return tuple(flag for flag, values in self.axes if len(values) > 1)

    def values(self, flag: str) -> tuple[Any, ...]:
        return dict(self.axes)[flag]

    def name(self, cell: Cell) -> str:
        """Names a cell by its varied flags: `mesh 4x8, threads 2`."""
        chosen = [(flag, value) for flag, value in cell.values if flag in self.varied]
        return ", ".join(f"{flag} {value}" for flag, value in chosen or [("mesh", cell["mesh"])])

    def folder(self, cell: Cell) -> str:
        """The same as a folder name: `mesh=4x8,threads=2`."""
        return self.name(cell).replace(", ", ",").replace(" ", "=")
