"""Errors that a caller tells apart: to rebuild an artefact, to report why a run ended."""

from sharding import UsageError


class DamagedArtifact(UsageError):
    """A file of an artefact is missing, cut short or altered; the message names it."""


class ArtifactExists(UsageError):
    """An artefact was to be saved where something already is."""


class ParityError(RuntimeError):
    """Outputs are further from the unsharded float32 reference than the program tolerates."""


class OutOfMemory(RuntimeError):
    """A run needs more memory than a device has or is allowed."""
