"""Kills one card of a run on two, or in a quarter of the cases both, at a random instant.

*Right* is a run that classifies every image once, as an undisturbed one does, whichever card is killed. *Refused* is
one whose cards were all killed: it ends with one line that says how, and keeps the predictions that were finished.
"""

import dataclasses
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.damage.jobs import find_fault, find_misleading, start
from benchmarks.damage.kills import Kill
from command import Command

_ENDS_WITHIN_S = 120.0


@dataclasses.dataclass(frozen=True)
class CardKill(Kill):
    kind: str = "cards"

    def disturb(
        self, command: Command, instant_s: float, expected: Path, chance: random.Random, tell: Callable[[str], None]
    ) -> str:
        with start(self.kind, command) as process:
            killed = _kill_cards(process, instant_s, all_of_them=chance.random() < 0.25)
            try:
                _, errors = process.communicate(timeout=_ENDS_WITHIN_S)
            finally:
                process.kill()
        if not killed:
            return ""
        tell(f"killed {killed} after {instant_s:.3f} s")
        if process.returncode == 0:
            if fault := find_fault(self.kind, command.home, expected):
                tell(f"exit code 0 with {fault}")
                return "lost"
            return "right"
        *_, last = errors.splitlines() or [""]
        if process.returncode != 1 or killed == 1 or not last.startswith("error: CardsEnded: "):
            tell(f"exit code {process.returncode}, {errors.strip()[-300:]}")
            return "crashed"
        if fault := find_misleading(self.kind, command.home, expected):
            tell(f"left {fault}")
            return "lost"
        return "refused"


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
