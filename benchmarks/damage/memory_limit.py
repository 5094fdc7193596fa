"""Runs a command with a limited address space (RLIMIT_AS), then again without the limit.

*Right* is a command that the limit was enough for. *Refused* is one error line about memory, with exit code 1; a sweep
may also have trials that failed so. Either way nothing passes for finished results, and without the limit the same
command keeps what was finished and succeeds. *Crashed* includes commands that XLA aborts.
"""

import dataclasses
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.damage.jobs import copied, prepare, run
from benchmarks.damage.shortage import judge, judge_repeated
from command import Command

_MIB = (128, 2048)  # limits are drawn evenly from these
_ABOUT_MEMORY = re.compile("OutOfMemory|MemoryError|RESOURCE_EXHAUSTED|can't start new thread|failed to map segment")
_LIMITED = """
import os, resource, sys

resource.setrlimit(resource.RLIMIT_AS, ({0}, {0}))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@dataclasses.dataclass(frozen=True)
class MemoryLimit:
    kind: str
    hung_after_s: float = 300.0  # `Command` gives up after 120 s

    def prepare(self, folder: Path) -> None:
        prepare(self.kind, folder)

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        mib = chance.randint(*_MIB)
        tell(f"limited to {mib} MiB")
        expected = folder / "expected"
        with tempfile.TemporaryDirectory() as directory:
            command = Command(copied(folder / "start", Path(directory) / "home"))
            script = Path(directory) / "limited.py"
            script.write_text(_LIMITED.format(mib * 2**20))
            outcome = run(self.kind, command, before=script)
            fault = judge(self.kind, command, outcome, expected, _ABOUT_MEMORY, tell)
            return fault or judge_repeated(self.kind, command, outcome, expected, tell)
