"""Errors that a caller tells apart: to rebuild an artefact, to report why a run ended."""

from typing import TYPE_CHECKING

from cambrian.sharding import UsageError

if TYPE_CHECKING:
    from cambrian.engine.runtime.parity import Parity


class DamagedArtifact(UsageError):
    """A file of an artefact is missing, cut short or altered; the message names it."""


class ArtifactExists(UsageError):
    """An artefact was to be saved where something already is."""


class ParityError(RuntimeError):
    """Outputs are further from the unsharded float32 reference than the program tolerates.

    Attributes:
      parity: what was measured.
    """

    def __init__(self, message: str, parity: "Parity"):
        super().__init__(message)
        self.parity = parity
