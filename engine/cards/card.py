"""A card as its parent sees it: a process, and the lanes on which host threads give it batches.

The process is started by `subprocess`, not by multiprocessing's spawn: that would import the user's script again, which
then needs an `if __name__ == "__main__"`.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any, NamedTuple

import jax
import numpy as np

from cambrian.engine.cards.worker import NEW_LANE, ExecutableFacts, LaneMemory, Make, copy_batch
from cambrian.engine.runtime.batch import num_samples, samples
from cambrian.engine.runtime.executable import Computed
from cambrian.sharding.host import Share, child_environment, host, oom_kills

# A card is hung that has answered nobody for so long: at first, and then at least, or ten times its slowest answer.
FIRST_PATIENCE_S, PATIENCE_S, PATIENCE_FACTOR = 600.0, 60.0, 10.0
_WAKE_S = 1.0
_END_S = 5.0  # from the end of a connection to that of its process
_CHILD = "from cambrian.engine.cards.worker import serve; serve({})"


class CardEnded(Exception):
    """The process of a card has ended, or is ended now."""


class _Lane(NamedTuple):
    connection: Connection
    memory: LaneMemory


class Card:
    """One process with an executable.

    Attributes:
      index: number of the card, from 0.
      control: connection to wait on for the outcome of `ask`.
      ended: how it ended, in words; empty while it runs.
      out_of_memory: whether it ended for want of memory.
      peak_memory_bytes: peak of its resident memory, as of its last answer.
    """

    def __init__(self, index: int, share: Share):
        self.index, self.ended, self.out_of_memory, self.peak_memory_bytes = index, "", False, 0
        self._description: ExecutableFacts | None = None
        self._lock = threading.Lock()  # of its end, and of sending on the control connection
        self._free_lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        self._num_answers, self._slowest_s = 0, 0.0
        self._oom_kills = oom_kills()
        self.control, theirs = Pipe()
        with theirs, share.occupied(), _signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD.format(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=child_environment(),
            )
        _cards.add(self)
        self._send(pickle.dumps(host.permitted))

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # of a process that has ended
            self.control.send_bytes(message)

    def ask(self, make: Make) -> None:
        """Asks the card to make its executable; `answer` receives the outcome."""
        self._send(pickle.dumps(make))

    def answer(self) -> Exception | Any:
        """Receives the outcome of `ask`: the exception that it raised, or its facts.

        Raises:
          CardEnded: if the process has ended.
        """
        try:
            outcome = self.control.recv()
        except (EOFError, OSError):
            self.end()
            raise CardEnded from None
        if isinstance(outcome, Exception):
            return outcome
        self._description, facts = outcome
        return facts

    @property
    def is_ready(self) -> bool:
        """Whether it has, or had, its executable."""
        return self._description is not None

    @property
    def description(self) -> ExecutableFacts:
        assert self._description is not None
        return self._description

    def compute(self, inputs: Any) -> Computed:
        """Computes a batch of valid inputs, and waits for it.

        Raises:
          CardEnded: if the process ended before it had answered.
        """
        lane = self._free_lane()
        copy_batch(lane.memory.inputs, inputs)
        count, start = num_samples(inputs), time.monotonic()
        try:
            lane.connection.send(count)
            answer = self._answer_on(lane.connection)
        except (EOFError, OSError):
            self.end()
            raise CardEnded from None
        if isinstance(answer, str):
            self.end(f"failed with {answer}", out_of_memory="RESOURCE_EXHAUSTED" in answer or "MemoryError" in answer)
            raise CardEnded
        launched, ready, self.peak_memory_bytes = answer
        self._num_answers += 1
        self._slowest_s = max(self._slowest_s, time.monotonic() - start)
        outputs = jax.tree.map(np.copy, samples(lane.memory.outputs, 0, count))
        self._free_lanes.put(lane)
        return Computed(outputs, launched, ready, time.perf_counter(), self.index)

    def _answer_on(self, connection: Connection) -> Any:
        # Adds up waits instead of reading a clock, which would count the time in which the whole program was stopped.
        silent_s, answers = 0.0, self._num_answers
        while not connection.poll(_WAKE_S):
            silent_s = silent_s + _WAKE_S if answers == self._num_answers else 0.0
            answers = self._num_answers
            patience_s = max(PATIENCE_S, PATIENCE_FACTOR * self._slowest_s) if answers else FIRST_PATIENCE_S
            if silent_s >= patience_s:
                self.end(f"gave no answer in {silent_s:.0f} s")
        return connection.recv()

    def _free_lane(self) -> _Lane:
        with contextlib.suppress(queue.Empty):
            return self._free_lanes.get_nowait()
        specs = self.description.input_spec, self.description.output_spec
        ours, theirs = Pipe()
        with theirs, _shared_memory(LaneMemory.num_bytes(*specs)) as descriptor:
            try:
                with self._lock:
                    self.control.send_bytes(NEW_LANE)
                    send_handle(self.control, theirs.fileno(), self._process.pid)
                    send_handle(self.control, descriptor, self._process.pid)
            except ConnectionError:
                self.end()
                raise CardEnded from None
            return _Lane(ours, LaneMemory(descriptor, *specs))

    def kill(self) -> None:
        """Kills the process without waiting for its end."""
        self._process.kill()

    def end(self, reason: str = "", out_of_memory: bool = False) -> None:
        """Waits for the end of the process, which has closed its connections, or kills it for a reason."""
        with self._lock:
            if self.ended:
                return
            if reason:
                self._process.kill()
            try:
                exit_code = self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                exit_code = -signal.SIGKILL
            if not reason and exit_code == -signal.SIGKILL:
                out_of_memory = (oom_kills() or 0) > (self._oom_kills or 0)
            self.out_of_memory = out_of_memory
            self.ended = reason or _words(exit_code, out_of_memory)


_cards: weakref.WeakSet[Card] = weakref.WeakSet()  # that this process has started


def _leave_to_parent() -> None:
    """Leaves the cards to the process of which this one is a fork: they serve it alone, and end with it."""
    for card in _cards:
        card.control.close()
        card.ended = f"belongs to process {os.getppid()}, of which this one is a fork"


os.register_at_fork(after_in_child=_leave_to_parent)


def _words(exit_code: int, out_of_memory: bool) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was killed by {signal.Signals(-exit_code).name}{', for want of memory' if out_of_memory else ''}"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks Ctrl-C and SIGTERM in processes started in this context, for good: their parent ends them.

    Both often reach a whole group of processes at once.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _shared_memory(num_bytes: int) -> Iterator[int]:
    """Makes shared memory without a name, which ends with the last process that maps it; yields its descriptor."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("cambrian")
            stack.callback(os.close, descriptor)
        else:
            descriptor = stack.enter_context(tempfile.TemporaryFile()).fileno()
        os.ftruncate(descriptor, num_bytes)
        yield descriptor
