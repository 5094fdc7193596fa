"""Processes that run cases: one that crashes or hangs costs its case alone."""

import multiprocessing
import random
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.damage.part import Part


def run_cases(part: Part, num_cases: int, seed: int, num_workers: int) -> list[tuple[str, str]]:
    """Returns the outcome of each case, and what was done to it."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        preparing = multiprocessing.get_context("spawn").Process(target=part.prepare, args=(folder,))
        preparing.start()
        preparing.join()
        if preparing.exitcode:
            raise RuntimeError(f"expected an undamaged original, got exit code {preparing.exitcode}")
        workers = [_Worker(part, folder, seed) for _ in range(num_workers)]

        def share(index: int) -> list[tuple[str, str]]:
            return [workers[index].outcome(number) for number in range(index, num_cases, num_workers)]

        with ThreadPoolExecutor(num_workers) as pool:
            outcomes = [outcome for part in pool.map(share, range(num_workers)) for outcome in part]
        for worker in workers:
            worker.stop()
    return outcomes


def _serve(connection: Connection, part: Part, folder: Path, seed: int) -> None:
    while (number := connection.recv()) is not None:
        told = [f"case {number}"]

        def tell(what: str, told: list[str] = told) -> None:
            told.append(what)
            connection.send(", ".join(told))

        try:
            outcome = part.case(folder, number, random.Random(f"{seed} {number}"), tell)
        except subprocess.TimeoutExpired:
            outcome = "hung"
        except Exception as error:
            outcome = "crashed"
            told.append(f"{type(error).__name__}: {error}")
        connection.send((outcome, ", ".join(told)))


class _Worker:
    """A process that runs cases; replaced when it crashes or hangs."""

    def __init__(self, part: Part, folder: Path, seed: int):
        self._arguments = (part, folder, seed)
        self._hung_after_s = part.hung_after_s
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon, whose parts could start no processes.
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()

    def outcome(self, number: int) -> tuple[str, str]:
        what = f"case {number}"
        try:
            self._connection.send(number)
            while self._connection.poll(self._hung_after_s):
                message = self._connection.recv()
                if isinstance(message, tuple):
                    return message
                what = message
        except (EOFError, OSError):
            self._replace()
            return "crashed", what
        self._replace()
        return "hung", what

    def _replace(self) -> None:
        self._process.kill()
        self._process.join()
        self._start()

    def stop(self) -> None:
        self._connection.send(None)
        self._process.join()
