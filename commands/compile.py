"""`--mode compile`: builds the configuration's artefact and prints its directory."""

from cambrian.commands.configuration import Configuration
from cambrian.commands.console import print_note
from cambrian.commands.executables import make_executable
from cambrian.commands.ready import divided


def compile_command(configuration: Configuration) -> None:
    """Builds the artefact unless it is cached, loads it, runs its whole probe, and prints its directory.

    The artefact notes that the probe has passed, so that the first run on this machine starts as fast as later ones.

    That of several cards is built on the share of the host that one of them has.

    Raises:
      UsageError, DamagedArtifact, ParityError: as `make_executable`.
    """
    if configuration.cards == 1:
        made = make_executable(configuration, defer_probe=True)
    else:
        card, shares, _ = divided(configuration)
        with shares[0].occupied():
            made = make_executable(card, defer_probe=True)
    if (probe := made.executable.pending_probe) is not None:
        probe.run_alone(made.executable)
    for note in made.executable.notes:
        print_note(note)
    print(made.path)
