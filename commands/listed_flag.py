"""Flags that take one value or a comma-separated list of them."""

from typing import Any

from absl import flags


class OneOrMore(flags.ArgumentParser):
    """Parses `2,4,8` to a tuple, and a single value to that value, so that only sweeps have tuples.

    Args:
      parser: parser of one value.
    """

    def __init__(self, parser: flags.ArgumentParser):
        super().__init__()
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help}; or several, separated by commas".lstrip("; ")

    def parse(self, argument: Any) -> Any:
        """Parses text, a single value, or a list from a report.json.

        Raises:
          ValueError, TypeError: as the parser of one value, or if a value is repeated.
        """
        if isinstance(argument, str):
            items = [item.strip() for item in argument.split(",")]
        else:
            items = list(argument) if isinstance(argument, (list, tuple)) else [argument]
        values = tuple(self._parser.parse(item) for item in items)
        if len(set(values)) != len(values) or not values:
            raise ValueError(f"values in a list must differ, got {argument}")
        return values[0] if len(values) == 1 else values

    def flag_type(self) -> str:
        return f"list of {self._parser.flag_type()}"
