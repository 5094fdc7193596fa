"""Brings LoadGen's queries to the host threads, and the answers back.

Threads and their life cycle:
- *LoadGen's thread* is inside LoadGen, without the GIL, from the start of the test to its end. LoadGen calls `load`,
  `issue`, `flush` and `unload` on it. No exception may leave these: LoadGen's logging thread would be left running, and
  abort the process when it exits.
- *Host threads* of `engine.runtime.stream` take batches of samples from `batches`, launch them, and answer them. The
  batches end with the test.
- *The caller's thread* waits for the results, so it gets the first exception of a host thread, and Ctrl-C. Then every
  sample is answered at once, with nothing, until LoadGen ends: it can't be stopped.
"""

import atexit
import collections
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import mlperf_loadgen as loadgen  # pyright: ignore[reportMissingImports]
import numpy as np

from cambrian.commands.accuracy.top_k import top_k
from cambrian.commands.images import ModelImages
from cambrian.commands.loadgen.settings import MOST_LOADED
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.metrics import Timeline
from cambrian.engine.runtime.stream import stream

_PATIENCE_S = 3.0  # for LoadGen to end after a failure


class Sample(NamedTuple):
    """A sample that LoadGen asks for: the id of its response, its index in the data set, when it was asked for."""

    id: int
    index: int
    issued_s: float


class Queries:
    """Samples that LoadGen waits for, in batches.

    Args:
      max_delay_s: seconds that a sample waits for others to fill its batch.
    """

    def __init__(self, batch_size: int, max_delay_s: float):
        self._batch_size, self._max_delay_s = batch_size, max_delay_s
        self._changed = threading.Condition()
        self._waiting: collections.deque[Sample] = collections.deque()
        self._unanswered: set[int] = set()
        self._flushed = self._ended = False

    def issue(self, samples: Sequence[Any]) -> None:
        """Takes a query from LoadGen."""
        now = time.perf_counter()
        issued = [Sample(sample.id, sample.index, now) for sample in samples]
        with self._changed:
            ended = self._ended
            if not ended:
                self._waiting.extend(issued)
                self._unanswered.update(sample.id for sample in issued)
                self._flushed = False
                self._changed.notify()
        if ended:
            _complete([sample.id for sample in issued], np.zeros(len(issued), np.int64))

    def flush(self) -> None:
        """Takes LoadGen's word that no query follows soon."""
        with self._changed:
            self._flushed = True
            self._changed.notify()

    def batches(self) -> Iterator[list[Sample]]:
        """Yields the samples in batches, until the end."""
        while True:
            with self._changed:
                while not (self._waiting or self._ended):
                    self._changed.wait()
                if self._ended:
                    return
                due_s = self._waiting[0].issued_s + self._max_delay_s
                while len(self._waiting) < self._batch_size and not (self._flushed or self._ended):
                    left_s = due_s - time.perf_counter()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            yield batch

    def answer(self, samples: Sequence[Sample], classes: np.ndarray) -> None:
        """Answers samples with their classes (N,) int64."""
        ids = [sample.id for sample in samples]
        with self._changed:
            self._unanswered.difference_update(ids)  # before LoadGen may use them again
        _complete(ids, classes)

    def end(self) -> None:
        """Ends the batches."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def answer_rest(self) -> None:
        """Answers every sample that LoadGen still waits for; after `end`, when no host thread works any more."""
        with self._changed:
            ids = list(self._unanswered)
            self._unanswered.clear()
        _complete(ids, np.zeros(len(ids), np.int64))


def _complete(ids: Sequence[int], classes: np.ndarray) -> None:
    # LoadGen copies what it logs before the call returns; `classes` lives until then.
    address, size = classes.ctypes.data, classes.itemsize
    loadgen.QuerySamplesComplete(
        [loadgen.QuerySampleResponse(id_, address + size * place, size) for place, id_ in enumerate(ids)]
    )


class Samples:
    """The images of a data set, in memory as LoadGen loads them, and their labels.

    Args:
      threads: number of threads that decode.
    """

    def __init__(self, images: ModelImages, threads: int):
        self.labels: dict[int, int | None] = {}
        self._images, self._threads = images, threads
        self._loaded: dict[int, np.ndarray] = {}
        self._error: BaseException | None = None

    def load(self, indices: Sequence[int]) -> None:
        """Decodes images before the test; all of a large data set, for accuracy alone, are decoded when asked for."""
        distinct = sorted(set(indices))
        if len(distinct) > MOST_LOADED:
            return
        try:
            with ThreadPoolExecutor(self._threads) as pool:
                self._loaded = dict(zip(distinct, pool.map(self._decode, distinct), strict=True))
        except BaseException as error:
            self._error = error

    def unload(self, indices: Sequence[int]) -> None:
        """Forgets what was loaded."""
        self._loaded = {}

    def pixels(self, batch: Sequence[Sample]) -> np.ndarray:
        """The images (N, H, W, 3) uint8 of a batch; raises what `load` failed with."""
        if self._error is not None:
            raise self._error
        loaded = self._loaded
        images = [loaded[index] if (index := sample.index) in loaded else self._decode(index) for sample in batch]
        return np.stack(images)

    def _decode(self, index: int) -> np.ndarray:
        image = self._images[index]
        self.labels[index] = image.label
        return image.pixels


def run_test(
    executable: Executable,
    samples: Samples,
    num_samples: int,
    settings: Any,
    log_settings: Any,
    *,
    threads: int,
    max_delay_s: float,
    timeline: Timeline,
) -> None:
    """Runs a test of LoadGen to its end.

    Args:
      num_samples: number of images in the data set.
      settings: LoadGen's TestSettings.
      log_settings: LoadGen's LogSettings.
      threads: number of host threads.

    Raises:
      What a host thread, or loading the images, raised.
    """
    queries = Queries(executable.batch_size, max_delay_s)

    def answer(batch: list[Sample], logits: np.ndarray) -> None:
        queries.answer(batch, np.ascontiguousarray(top_k(logits, 1)[0][:, 0], np.int64))

    answers = stream(
        executable, queries.batches(), threads=threads, decode=samples.pixels, postprocess=answer, timeline=timeline
    )
    sut = loadgen.ConstructSUT(queries.issue, queries.flush)
    library = loadgen.ConstructQSL(num_samples, min(num_samples, MOST_LOADED), samples.load, samples.unload)

    def test() -> None:
        try:
            loadgen.StartTestWithLogSettings(sut, library, settings, log_settings)
        finally:
            queries.end()

    thread = threading.Thread(target=test, name="cambrian-loadgen", daemon=True)
    thread.start()
    try:
        with contextlib.closing(answers):
            for _ in answers:
                pass
    except BaseException:
        queries.end()
        queries.answer_rest()
        thread.join(_PATIENCE_S)
        if thread.is_alive():
            atexit.register(os._exit, 1)  # its threads would abort the interpreter's own exit
        raise
    thread.join()
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(sut)
