"""Kills a command at a random instant, then runs it again.

*Right* is a kill that leaves nothing that passes for finished results, after which the same command succeeds with the
results of an undisturbed one: the same predictions, trials and, to the bit, trained weights. Every kill meets the
command at work.
"""

import dataclasses
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.damage.jobs import FLAGS, copied, find_fault, find_misleading, prepare
from command import Command

KINDS = tuple(FLAGS)


@dataclasses.dataclass(frozen=True)
class Kill:
    kind: str
    hung_after_s: float = 300.0  # `Command` gives up after 120 s

    def prepare(self, folder: Path) -> None:
        prepare(self.kind, folder)
        (folder / "duration").write_text(str(_duration_s(self.kind, folder)))

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        expected, longest_s = folder / "expected", float((folder / "duration").read_text())
        is_killed = False
        while not is_killed:
            with tempfile.TemporaryDirectory() as directory:
                command = Command(copied(folder / "start", Path(directory) / "home"))
                instant_s = chance.uniform(0, 1.5 * longest_s)  # cases run beside each other, and so more slowly
                is_killed = _kill(command, FLAGS[self.kind], instant_s)
                if not is_killed:
                    continue
                tell(f"killed after {instant_s:.3f} s")
                if fault := find_misleading(self.kind, command.home, expected):
                    tell(f"left {fault}")
                    return "lost"
                outcome = command(*FLAGS[self.kind])
                if outcome.exit_code:
                    tell(outcome.stderr.strip()[-300:])
                    return "crashed" if outcome.exit_code < 0 or "Traceback" in outcome.stderr else "lost"
                if fault := find_fault(self.kind, command.home, expected):
                    tell(fault)
                    return "lost"
        return "right"


def _kill(command: Command, flags: tuple[str, ...], instant_s: float) -> bool:
    """Returns whether the kill met the command at work."""
    with command.start(*flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(instant_s)
            return False
        except subprocess.TimeoutExpired:
            process.kill()
            return True


def _duration_s(kind: str, folder: Path) -> float:
    with tempfile.TemporaryDirectory() as directory:
        command = Command(copied(folder / "start", Path(directory) / "home"))
        start = time.perf_counter()
        command(*FLAGS[kind])
        return time.perf_counter() - start
