"""What a checkpoint states beside its tensors: preprocessing and class names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cambrian.sharding import Preprocessing


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """Facts under the names of the model configuration's fields; None, or no labels, where the checkpoint is silent.

    Attributes:
      labels: class names in the order of the logits.
    """

    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON-compatible values."""
        preprocessing = None if self.preprocessing is None else self.preprocessing.to_json()
        return {"preprocessing": preprocessing, "labels": list(self.labels)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], source: Path | str) -> "Description":
        """The inverse of `to_json`.

        Raises:
          UsageError: naming `source`, if the preprocessing can't be read.
          KeyError: if a field is missing.
        """
        stated = value["preprocessing"]
        preprocessing = None if stated is None else Preprocessing.from_json(stated, source)
        return cls(preprocessing, tuple(value["labels"]))

    def known(self) -> dict[str, Any]:
        """The facts that the checkpoint states, by name."""
        values = {"preprocessing": self.preprocessing, "labels": self.labels}
        return {name: value for name, value in values.items() if value not in (None, ())}
