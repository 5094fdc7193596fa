"""Kills one card of a run on two, or in a quarter of the cases both, at a random instant.

*Right* is a run that classifies every image once, as an undisturbed one does, whichever card is killed. *Refused* is
one whose cards were all killed: it ends with one line that says how, and keeps the predictions that were finished.
"""

import dataclasses
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.damage.jobs import copied, find_fault, find_misleading, prepare, start
from benchmarks.damage.kills import duration_s
from command import Command

_KIND = "cards"
_ENDS_WITHIN_S = 120.0


@dataclasses.dataclass(frozen=True)
class CardKill:
    hung_after_s: float = 300.0

    def prepare(self, folder: Path) -> None:
        prepare(_KIND, folder)
        (folder / "duration").write_text(str(duration_s(_KIND, folder)))

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        longest_s = float((folder / "duration").read_text())
        while True:
            with tempfile.TemporaryDirectory() as directory:
                command = Command(copied(folder / "start", Path(directory) / "home"))
                instant_s = chance.uniform(0, 1.5 * longest_s)  # cases run beside each other, and so more slowly
                with start(_KIND, command) as process:
                    killed = _kill_cards(process, instant_s, all_of_them=chance.random() < 0.25)
                    try:
                        _, errors = process.communicate(timeout=_ENDS_WITHIN_S)
                    finally:
                        process.kill()
                if killed:
                    tell(f"killed {killed} after {instant_s:.3f} s")
                    return _outcome(command, process.returncode, errors, folder / "expected", killed, tell)


def _kill_cards(process: subprocess.Popen, instant_s: float, all_of_them: bool) -> int:
    """Returns the number of cards killed; 0 if the command had ended, or had not yet started them."""
    time.sleep(instant_s)
    try:
        cards = psutil.Process(process.pid).children()[: None if all_of_them else 1]
        for card in cards:
            card.kill()
    except psutil.NoSuchProcess:
        return 0
    return len(cards)


def _outcome(
    command: Command, exit_code: int, errors: str, expected: Path, killed: int, tell: Callable[[str], None]
) -> str:
    if exit_code == 0:
        if fault := find_fault(_KIND, command.home, expected):
            tell(f"exit code 0 with {fault}")
            return "lost"
        return "right"
    *_, last = errors.splitlines() or [""]
    if exit_code != 1 or killed == 1 or not last.startswith("error: CardsEnded: "):
        tell(f"exit code {exit_code}, {errors.strip()[-300:]}")
        return "crashed"
    if fault := find_misleading(_KIND, command.home, expected):
        tell(f"left {fault}")
        return "lost"
    return "refused"
