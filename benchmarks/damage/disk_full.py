"""Runs a command on a disk that may be too small for its results, then again on one that isn't.

The disk is a tmpfs, which only root may mount; its free space is drawn evenly, up to 1.2 times what the command takes.
*Right* is a command that had enough. *Refused* is one error line that names a path and the full disk, with exit code 1
or 2; a sweep may also have trials that failed so. Either way nothing passes for finished results, and with enough space
the same command keeps what was finished and succeeds.
"""

import contextlib
import dataclasses
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.damage.jobs import copied, prepare, run
from benchmarks.damage.shortage import judge, judge_repeated
from command import Command

_ENOUGH_BYTES = 2**30
_ABOUT_SPACE = re.compile(r"[\w.-]/[\w.-].*No space left on device|No space left on device.*[\w.-]/[\w.-]")


@dataclasses.dataclass(frozen=True)
class DiskFull:
    kind: str
    hung_after_s: float = 300.0  # `Command` gives up after 120 s

    def prepare(self, folder: Path) -> None:
        prepare(self.kind, folder)
        with _disk(_ENOUGH_BYTES) as home:
            command = Command(copied(folder / "start", home))
            before = shutil.disk_usage(home).used
            run(self.kind, command)
            (folder / "sizes").write_text(f"{before} {shutil.disk_usage(home).used - before}")

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        used, taken = map(int, (folder / "sizes").read_text().split())
        free = int(chance.uniform(0, 1.2) * taken)
        tell(f"{free // 1024} of {taken // 1024} KiB free")
        expected = folder / "expected"
        with _disk(used + free) as home:
            command = Command(copied(folder / "start", home))
            outcome = run(self.kind, command)
            fault = judge(self.kind, command, outcome, expected, _ABOUT_SPACE, tell)
            subprocess.run(["mount", "-o", f"remount,size={_ENOUGH_BYTES}", home], check=True)
            return fault or judge_repeated(self.kind, command, outcome, expected, tell)


@contextlib.contextmanager
def _disk(size: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", home], check=True)
        try:
            yield home
        finally:
            subprocess.run(["umount", "-l", home], check=True)
