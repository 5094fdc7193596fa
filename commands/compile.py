"""`--mode compile`: builds the configuration's artefact and prints its directory."""

import sys

from cambrian.commands.configuration import Configuration
from cambrian.commands.executables import make_executable


def compile_command(configuration: Configuration) -> None:
    """Builds the artefact unless it is cached, loads it, and prints its directory on standard output.

    Raises:
      UsageError, DamagedArtifact, ParityError: as `make_executable`.
    """
    made = make_executable(configuration)
    for note in made.executable.notes:
        print(f"note: {note}", file=sys.stderr)
    print(made.path)
