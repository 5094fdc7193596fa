"""The sides of one precision, measured in turns; a side that fails is dropped."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, ParamSpec

from benchmarks.sides import SIDES
from benchmarks.sides.result import Result

# Largest relative error of the logits.
LIMITS = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 0.3}
_P = ParamSpec("_P")
_ROOT = Path(__file__).parents[2]


class SideError(RuntimeError):
    """A side failed to answer a command, or its process ended."""


class Client:
    """The process of a side in one mode and precision (`benchmarks.sides.worker`); a context manager that ends it."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class Contender:
    """A side in one mode and precision: its process and its result. All methods raise SideError."""

    client: Client
    result: Result

    def build(self, batch: int) -> None:
        """Compiles for a batch size and checks the logits."""
        error, limit = self.client.ask("build", batch), LIMITS[self.result.precision]
        if not error <= limit:
            raise SideError(f"the relative error of the logits must be at most {limit:g}, got {error:g}")
        self.result.relative_errors[batch] = error

    def measure_throughput(self, batch: int, seconds: float) -> None:
        rate = self.client.ask("throughput", batch, seconds)
        self.result.images_per_second.setdefault(batch, []).append(rate)

    def measure_latency(self, seconds: float) -> None:
        self.result.latency_ms.append(self.client.ask("latency", 1, seconds))


class Race:
    """The contenders that haven't failed, and the failures of the others."""

    def __init__(self, contenders: list[Contender]):
        self.contenders = contenders
        self.failures: list[str] = []
        self._backwards = False

    def each(self, step: Callable[Concatenate[Contender, _P], None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Runs a step for one contender after another; drops contenders that fail, and reports the failure."""
        for contender in self.contenders[:: -1 if self._backwards else 1]:
            try:
                step(contender, *args, **kwargs)
            except SideError as error:
                self.contenders.remove(contender)
                self.failures.append(f"{contender.result} left out at {step.__name__}{args}: {error}")
                print(self.failures[-1], flush=True)

    def turn(self) -> None:
        """Reverses the order, so that a drift in the machine's speed favours no side."""
        self._backwards = not self._backwards


@contextlib.contextmanager
def start(sides: list[str], precision: str, stem: str, folder: Path) -> Iterator[Race]:
    """Starts a race of the sides that support `precision`; their processes end with the context."""
    with contextlib.ExitStack() as processes:
        contenders = []
        for side in sides:
            if precision in SIDES[side].precisions:
                for mode in SIDES[side].modes:
                    client = processes.enter_context(Client(side, mode, precision, stem, folder))
                    contenders.append(Contender(client, Result(side, mode, precision)))
        yield Race(contenders)
