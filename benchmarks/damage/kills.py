"""Kills a command at a random instant, then runs it again.

*Right* is a kill that leaves nothing that passes for finished results, after which the same command keeps what was
finished and succeeds with the results of an undisturbed one: the same predictions, trials and, to the bit, trained
weights. Every kill meets the command at work.
"""

import dataclasses
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.damage.jobs import copied, prepare, repeat, run, start
from command import Command


@dataclasses.dataclass(frozen=True)
class Kill:
    kind: str
    hung_after_s: float = 300.0  # `Command` gives up after 120 s

    def prepare(self, folder: Path) -> None:
        prepare(self.kind, folder)
        with tempfile.TemporaryDirectory() as directory:
            command = Command(copied(folder / "start", Path(directory) / "home"))
            began = time.perf_counter()
            run(self.kind, command)
            (folder / "duration").write_text(str(time.perf_counter() - began))

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        longest_s = float((folder / "duration").read_text())
        while True:
            with tempfile.TemporaryDirectory() as directory:
                command = Command(copied(folder / "start", Path(directory) / "home"))
                instant_s = chance.uniform(0, 1.5 * longest_s)  # cases run beside each other, and so more slowly
                if outcome := self.disturb(command, instant_s, folder / "expected", chance, tell):
                    return outcome

    def disturb(
        self, command: Command, instant_s: float, expected: Path, chance: random.Random, tell: Callable[[str], None]
    ) -> str:
        """Returns the outcome of a kill; empty if it didn't meet the command at work."""
        with start(self.kind, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(instant_s)
                return ""
            except subprocess.TimeoutExpired:
                process.kill()
        tell(f"killed after {instant_s:.3f} s")
        return repeat(self.kind, command, expected, tell) or "right"
