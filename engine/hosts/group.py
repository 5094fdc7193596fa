"""A group of processes that share a mesh, as one of them sees it: process 0 is connected with all others."""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from cambrian.engine.errors import DamagedArtifact, one_line
from cambrian.engine.hosts.connection import Connection, ProcessEnded, ProcessRefused
from cambrian.sharding import UsageError

_WINDOW = 16  # launches that a process may be ahead of process 0
# For a main thread that doesn't notice the end of another process, because it waits for that in a collective.
_PATIENCE_S = 10.0
_PATIENCE_WITHOUT_RESULTS_S = 0.5
_NOTICED_S = 1.0
LAST_S = 1.0  # in which the others end when process 0 does, before JAX aborts them


class Group:
    """The processes that share a mesh.

    A context manager that tells the others how this process ends.

    Attributes:
      process_id: number of this process, from 0.
      num_processes: number of processes.
    """

    def __init__(self, process_id: int, num_processes: int, connected: Sequence[tuple[socket.socket, str]]):
        """Takes over connected sockets with the names of the processes behind them.

        Process 0 has one for each other process, in their order; these have one, to process 0.
        """
        self.process_id, self.num_processes, self._scratch = process_id, num_processes, ""
        self._closed, self._num_ahead, self._num_received = threading.Event(), 0, 0
        self._connections = [Connection(each, peer, self._watch) for each, peer in connected]

    def exchange(self, value: Any) -> list[Any]:
        """Returns the values of all processes, each of which calls this.

        Raises:
          ProcessRefused, ProcessEnded: if another process has ended.
        """
        if self.process_id:
            self._connections[0].send(value)
            return self._receive(self._connections[0])
        values = [value, *map(self._receive, self._connections)]
        for connection in self._connections:
            connection.send(values)
        return values

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compares facts of all processes.

        Raises:
          UsageError: naming the first fact that isn't the same in all; in every process.
          ProcessEnded: if another process has ended.
        """
        first, *others = self.exchange(dict(facts))
        for name in first:
            for process_id, theirs in enumerate(others, 1):
                if theirs.get(name) != first[name]:
                    raise UsageError(
                        f"all processes must have the same {name}, got {first[name]} in process 0 and "
                        f"{theirs.get(name)} in process {process_id}"
                    )

    def gather(self, value: Any) -> list[Any]:
        """Sends this process's part of a launch to process 0; returns the parts of all processes there, else none.

        A process waits where it is too many launches ahead of process 0, so that memory stays bounded.

        Raises:
          ProcessRefused, ProcessEnded: if another process has ended.
        """
        if self.process_id:
            if self._num_ahead == _WINDOW:
                self._receive(self._connections[0])
                self._num_ahead -= 1
            self._connections[0].send(value)
            self._num_ahead += 1
            return []
        values = [value, *map(self._receive, self._connections)]
        for connection in self._connections:
            connection.send(None)
        return values

    def finish(self) -> None:
        """Waits until process 0 has the parts of all processes; from then on, each may end.

        Raises:
          ProcessRefused, ProcessEnded: if another process has ended before.
        """
        while self._num_ahead:
            self._receive(self._connections[0])
            self._num_ahead -= 1
        if self.process_id:  # process 0 may end before this thread has taken its answer, which is no failure
            self._closed.set()
        self.exchange(None)
        self._closed.set()

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """Makes a folder that is removed at the end, also where the end of another process ends this one."""
        with tempfile.TemporaryDirectory(prefix="cambrian-") as directory:
            self._scratch = directory
            yield Path(directory)

    def _receive(self, connection: Connection) -> Any:
        value = connection.receive(self.check)
        self._num_received += 1
        return value

    def check(self) -> None:
        """Raises ProcessRefused or ProcessEnded if another process has ended."""
        for connection in self._connections:
            connection.check()

    def _watch(self, error: Exception, told: bool) -> None:
        """Ends this process if it doesn't notice the end of another one, nor receives what that one had sent.

        Where process 0 is gone without a word, at once: JAX is about to abort this one.
        """
        patience_s = (_PATIENCE_WITHOUT_RESULTS_S if told else 0.0) if self.process_id else _PATIENCE_S
        before = None
        while before != self._num_received:
            before = self._num_received
            if self._closed.wait(patience_s):
                return
        if self.process_id == 0:
            self._tell(error)
            if self._closed.wait(LAST_S):
                return
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        _exit(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        cause = self._cause_of(error)
        if cause is not None:
            self.fail(cause)
        self._closed.set()
        for connection in self._connections:
            connection.close()
        if cause is not error and cause is not None:
            raise cause from error

    def _cause_of(self, error: BaseException | None) -> BaseException | None:
        """The end of another process, of which a collective may learn before the connection to it does."""
        # A probe whose launch failed counts as a damaged artefact.
        may_follow = isinstance(error, Exception) and (
            isinstance(error, DamagedArtifact) or not isinstance(error, (UsageError, ProcessEnded))
        )
        deadline = time.monotonic() + _NOTICED_S
        while may_follow and time.monotonic() < deadline:
            try:
                self.check()
            except (ProcessEnded, ProcessRefused) as end:
                return end
            time.sleep(_NOTICED_S / 100)
        return error

    def fail(self, error: BaseException) -> None:
        """Tells the other processes, once, that this one ends with an error."""
        if not self._closed.is_set():
            self._tell(error)
        self._closed.set()

    def _tell(self, error: BaseException) -> None:
        for connection in self._connections:
            if connection.error is None:  # else it may block
                connection.fail(error, self._words(error))

    def _words(self, error: BaseException) -> str:
        if isinstance(error, (ProcessEnded, ProcessRefused)):
            return str(error)
        if isinstance(error, KeyboardInterrupt):
            return f"process {self.process_id} was interrupted"
        return f"process {self.process_id}: {error if isinstance(error, UsageError) else one_line(error)}"


def _exit(error: Exception) -> NoReturn:
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(2 if isinstance(error, UsageError) else 1)
