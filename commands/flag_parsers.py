"""Parsers of flags: of one value or a comma-separated list, with errors that name the flag and the requirement."""

import os
import re
import reprlib
from typing import Any

from absl import flags

from cambrian.sharding import UsageError


class OneOrMore(flags.ArgumentParser):
    """Parses `2,4,8` to a tuple, and a single value to that value, so that only sweeps have tuples.

    Args:
      parser: parser of one value.
    """

    def __init__(self, parser: flags.ArgumentParser):
        super().__init__()
        self._parser = parser
        self.syntactic_help = f"{_requirement(parser)}, or several different ones, separated by commas"

    def parse(self, argument: Any) -> Any:
        """Parses text, a single value, or a list from a report.json.

        Raises:
          ValueError, TypeError: as the parser of one value.
          UsageError: without the flag's name, if a value is repeated.
        """
        if isinstance(argument, str):
            items = [item.strip() for item in argument.split(",")]
        else:
            items = list(argument) if isinstance(argument, (list, tuple)) else [argument]
        values = tuple(self._parser.parse(item) for item in items)
        if not values:
            raise ValueError("no value")
        if len(set(values)) != len(values):
            repeated = next(value for value in values if values.count(value) > 1)
            raise UsageError(f"must have each value once, got {repeated} more than once")
        return values[0] if len(values) == 1 else values

    def flag_type(self) -> str:
        return f"list of {self._parser.flag_type()}"


class MeshParser(flags.ArgumentParser):
    """Parses the text of a mesh: of `2,2`, it says that 2 is none, rather than that it comes twice."""

    syntactic_help = "MODELxDATA, such as 4x8"

    def parse(self, argument: Any) -> str:
        """Returns the text.

        Raises:
          TypeError: if it is none.
          UsageError: without the flag's name, if it has another form.
        """
        if not re.fullmatch(r"\s*\d+x\d+\s*", argument):
            raise UsageError(f"must be written MODELxDATA, such as 4x8, got {reprlib.repr(argument)}")
        return argument


class PathParser(flags.ArgumentParser):
    """Parses a path, whose leading `~` stands for the user's home folder also where no shell has seen it."""

    def parse(self, argument: Any) -> str:
        """Returns the expanded path; words such as `auto` stay as they are."""
        return os.path.expanduser(super().parse(argument))


class Named(flags.ArgumentParser):
    """Parses as `parser` does; its errors name the flag.

    Args:
      values: the flags of the same command line.
    """

    def __init__(self, name: str, parser: flags.ArgumentParser, values: flags.FlagValues):
        super().__init__()
        self._name, self._parser, self._values = name, parser, values

    def parse(self, argument: Any) -> Any:
        """Parses a value.

        Raises:
          UsageError: if `argument` isn't one, or is the next flag of the command line.
        """
        name = argument[2:].partition("=")[0] if isinstance(argument, str) and argument.startswith("--") else ""
        if name in self._values or name.removeprefix("no") in self._values:
            raise UsageError(f"--{self._name} must have a value, got the next flag, {argument}")
        try:
            return self._parser.parse(argument)
        except UsageError as error:
            raise UsageError(f"{self._name} {error}") from None
        except (ValueError, TypeError, OverflowError):
            requirement = _requirement(self._parser)
            raise UsageError(f"{self._name} must be {requirement}, got {reprlib.repr(argument)}") from None

    def flag_type(self) -> str:
        return self._parser.flag_type()


def _requirement(parser: flags.ArgumentParser) -> str:
    if isinstance(parser, flags.EnumParser):
        return f"one of {', '.join(parser.enum_values)}"
    if isinstance(parser, flags.BooleanParser):
        return "true or false"
    return parser.syntactic_help or "text"
