"""The client of a side's process (see `benchmarks.sides.worker`)."""

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class SideError(RuntimeError):
    """A side failed to answer a command, or its process ended."""


class Client:
    """The process of a side in one mode and precision; a context manager that ends it."""

    def __init__(self, side: str, mode: str, precision: str, stem: str, folder: Path):
        self._log = folder / f"{side} {mode} {precision}.log"
        command = [sys.executable, "-m", "benchmarks.sides.worker", side, mode, precision, stem, str(folder)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def ask(self, command: str, *values: float) -> float:
        """Sends `build`, `throughput` or `latency` and returns the number in the answer.

        Raises:
          SideError: if the command failed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(command, *values, file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            last_words = self._log.read_text().strip().rpartition("\n")[2]
            raise SideError(f"the process ended with exit code {self._process.wait()}: {last_words}") from None
        if "failure" in answer:
            raise SideError(answer["failure"])
        (number,) = answer.values()
        return number

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # safe, as an idle worker has no state to save
        self._process.communicate()
