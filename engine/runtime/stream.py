"""Runs an executable over an iterable of batches with N host threads, and yields the results in input order.

A host thread takes the next item, decodes it, has the executable compute it and post-processes the outputs. The
executable moves the inputs to the devices, launches, waits and fetches the outputs; cards do so in processes of their
own. While its launch executes, the other threads prepare, and enqueue, the next ones.

Queues and their life cycle:
- *items*: the caller's iterable, read by the threads one at a time. Reading ends with the iterable, the first failure,
  or the end of the run.
- *room*: a semaphore of `2 × threads` permits. Reading an item takes one, and the consumer's receiving its result gives
  it back, so memory is bounded however many items there are, and however slow the consumer is.
- *futures*: one for each item read, in input order; a thread appends it when it reads the item and completes it with
  the result or the exception. The consumer waits for the first and yields or raises it. `None` marks the end of the
  items.
- *turns*: where several processes share the mesh, launches start in input order, in each process the same.
- *launches in flight*: bounded over the whole process, see `engine.runtime.launch`. A thread has at most one.

The threads start when the first result is asked for. However the run ends (items exhausted, a failure, the generator
closed, KeyboardInterrupt in the consumer), a thread stops after the batch that it works on, and is joined. One that the
caller's iterator blocks, or that waits for a card, is abandoned: it drops what it may still get, and ends. A generator
that is still open when the interpreter exits is stopped then.
"""

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cambrian.engine.runtime.batch import empty_batch, num_samples
from cambrian.engine.runtime.metrics import BatchTimes, Timeline
from cambrian.sharding import UsageError

if TYPE_CHECKING:
    from cambrian.engine.cards.cards import Cards
    from cambrian.engine.runtime.executable import Executable

_PATIENCE_S = 0.5  # for a thread that reads the caller's iterator, or waits for another that does

# A signal that arrives just before the consumer's thread goes to sleep doesn't wake it, so it wakes up by itself.
_WAKE_S = 0.2

_T = TypeVar("_T")
_R = TypeVar("_R")


class Turns:
    """Lets the launches of a stream start in the order of their items."""

    def __init__(self) -> None:
        self._next, self._changed = 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, number: int) -> Iterator[None]:
        """Waits for the turns before `number`; that behind it comes at the end of the context."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


class Turn(NamedTuple):
    """The place of an item in a stream."""

    number: int
    turns: Turns

    def taken(self) -> contextlib.AbstractContextManager[None]:
        """Waits for the turns before it; that behind it comes at the end of the context."""
        return self.turns.taken(self.number)


def stream(
    executable: "Executable | Cards",
    batches: Iterable[Any],
    *,
    threads: int,
    decode: Callable[[Any], Any] | None = None,
    postprocess: Callable[[Any, Any], Any] | None = None,
    timeline: Timeline | None = None,
    check: Callable[[], None] = lambda: None,
) -> Generator[Any, None, None]:
    """Yields the result of each item of `batches`, in order.

    Args:
      executable: executable to launch, or the cards that hold it.
      batches: items, one for each batch; at most `2 × threads` are read ahead of the results consumed.
      threads: number of host threads.
      decode: turns an item into inputs (N, …) with 0 ≤ N ≤ the executable's batch size, in a host thread; nothing is
        launched for N = 0. None where the items are the inputs.
      postprocess: turns an item and its outputs (N, …) into the result, in a host thread. None where the outputs are
        the result.
      timeline: records the times of every batch.
      check: called several times a second while the consumer waits; what it raises ends the run.

    Raises:
      UsageError: if `threads` is less than 1. From the iterator: the first exception, by input order, that `batches`,
        `decode`, the executable, its deferred probe or `postprocess` raised, after the results of all items before it.
    """
    if threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    turns = Turns()

    def run_batch(numbered: tuple[int, Any], thread: int) -> Any:
        handed_over, (number, item) = time.perf_counter(), numbered
        inputs = item if decode is None else decode(item)
        decoded = launched = ready = fetched = time.perf_counter()
        count, card = num_samples(inputs), 0
        if count or (number == 0 and executable.pending_probe is not None):
            # Results leave in order, so none does before the probe of the first item's launch has passed.
            outputs, launched, ready, fetched, card = executable.compute(inputs, thread, Turn(number, turns))
        else:
            outputs = empty_batch(executable.output_spec)
        result = outputs if postprocess is None else postprocess(item, outputs)
        if timeline is not None:
            finished = time.perf_counter()
            timeline.add(BatchTimes(count, handed_over, decoded, launched, ready, fetched, finished, card))
        return result

    return _ordered_map(run_batch, enumerate(batches), threads, executable.in_this_process, check)


def _ordered_map(
    work: Callable[[_T, int], _R],
    items: Iterable[_T],
    threads: int,
    in_this_process: bool,
    check: Callable[[], None],
) -> Generator[_R, None, None]:
    iterator = iter(items)
    room = threading.Semaphore(2 * threads)
    reading = threading.Lock()
    reading_ended = threading.Event()
    futures: queue.SimpleQueue[Future[_R] | None] = queue.SimpleQueue()
    working: set[threading.Thread] = set()  # the threads that have an item, and so may be inside JAX

    def run_next(thread: int) -> None:
        with reading:
            if reading_ended.is_set():
                return
            future: Future[_R] = Future()
            try:
                item = next(iterator)
            except StopIteration:
                reading_ended.set()
                futures.put(None)
                return
            except BaseException as error:
                reading_ended.set()
                future.set_exception(error)
                futures.put(future)
                return
            working.add(threading.current_thread())
            if reading_ended.is_set():  # while the iterator blocked
                return
            futures.put(future)
        try:
            future.set_result(work(item, thread))
        except BaseException as error:
            reading_ended.set()
            future.set_exception(error)
        working.discard(threading.current_thread())

    def run(thread: int) -> None:
        while not reading_ended.is_set():
            room.acquire()
            run_next(thread)

    workers: list[threading.Thread] = []

    def stop() -> None:
        reading_ended.set()
        room.release(threads)  # wakes the threads that wait for room
        if threading.current_thread() in workers:  # one of them collects the generator as garbage
            return
        deadline = time.monotonic() + _PATIENCE_S
        for worker in workers:
            if worker in working and not in_this_process:
                continue
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker in working:
                worker.join()

    # Daemons, because an abandoned generator must not keep the interpreter from exiting; but a thread inside JAX could
    # crash the exit, so the finalizer runs then too. It runs only once.
    stop_once = weakref.finalize(futures, stop)
    try:
        for index in range(threads):
            worker = threading.Thread(target=run, args=(index,), name=f"cambrian-host-{index}", daemon=True)
            worker.start()
            workers.append(worker)
        while (future := _next_of(futures, check)) is not None:
            result = _result_of(future, check)
            room.release()
            yield result
    finally:
        stop_once()


def _next_of(futures: "queue.SimpleQueue[_T]", check: Callable[[], None]) -> _T:
    while True:
        try:
            return futures.get(timeout=_WAKE_S)
        except queue.Empty:
            check()


def _result_of(future: "Future[_R]", check: Callable[[], None]) -> _R:
    while True:
        try:
            return future.result(timeout=_WAKE_S)
        except TimeoutError:
            if future.done():  # the error is its own, or it has just finished
                return future.result()
            check()
