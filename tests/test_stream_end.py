"""How a run ends: failures, closing, interruption, exit; no thread is left."""

import _thread
import gc
import itertools
import re
import signal
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from cambrian.engine.runtime import stream as stream_module
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import MeshShape, UsageError
from run_script import run_script
from tiny_executable import host_threads, inputs_of, make_executable
from waiting import settle


@pytest.fixture(scope="module")
def executable() -> Executable:
    return make_executable(MeshShape(2, 4), batch_size=8)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert host_threads() == []


class Failure(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("where", ["batches", "decode", "postprocess"])
def test_a_failure_reaches_the_consumer_after_the_results_before_it(executable, where, threads):
    failure, failed = Failure("of item 5"), threading.Event()

    def fail_at_5(stage, index):
        if stage == where and index == 5:
            failed.set()
            raise failure

    def batches():
        for index in itertools.count():
            fail_at_5("batches", index)
            yield index

    def decode(index):
        if index == 4 and threads > 1:
            assert failed.wait(timeout=10)  # the failure comes before the result of an earlier item
        fail_at_5("decode", index)
        return inputs_of(index)

    def postprocess(index, outputs):
        fail_at_5("postprocess", index)
        return index

    received = []
    with pytest.raises(Failure) as raised:
        received.extend(stream(executable, batches(), threads=threads, decode=decode, postprocess=postprocess))
    assert raised.value is failure
    assert received == [0, 1, 2, 3, 4]
    assert host_threads() == []


def test_of_two_failures_the_first_by_input_order_is_raised(executable):
    second_failed = threading.Event()

    def decode(index):
        if index == 0:
            assert second_failed.wait(timeout=10)
        else:
            second_failed.set()
        raise Failure(str(index))

    with pytest.raises(Failure, match="0"):
        list(stream(executable, range(2), threads=2, decode=decode))


def test_inputs_that_do_not_fit_are_refused(executable):
    with pytest.raises(UsageError, match=r"inputs must have shape \(1…8, 3\)"):
        list(stream(executable, [inputs_of(0, 9)], threads=2))


@pytest.mark.parametrize("shape", [(20, 4), (3,), (0, 4)])
def test_a_call_names_the_shape_of_its_inputs(executable, shape):
    message = f"inputs must have shape (N, 3) and dtype float32, got {shape} and float32"
    with pytest.raises(UsageError, match=re.escape(message)):
        executable(np.zeros(shape, np.float32))


def test_closing_stops_within_a_batch(executable):
    decoded = []

    def decode(index):
        decoded.append(index)
        return inputs_of(index)

    results = stream(executable, itertools.count(), threads=2, decode=decode)
    next(results)
    results.close()
    assert host_threads() == []
    assert len(decoded) <= 1 + 2 * 2


def test_leaving_the_loop_stops_the_threads(executable):
    for _ in stream(executable, map(inputs_of, itertools.count()), threads=3):
        break
    assert host_threads() == []


def test_a_stream_that_was_never_started_has_no_threads(executable):
    results = stream(executable, map(inputs_of, itertools.count()), threads=3)
    assert host_threads() == []
    del results


def test_keyboard_interrupt_ends_the_consumers_wait(executable):
    main_thread, interrupted = threading.get_ident(), threading.Event()

    def decode(index):
        assert interrupted.wait(timeout=10)
        return inputs_of(index)

    def waits_for_a_result() -> bool:
        waiting = sys._current_frames()[main_thread].f_back
        return waiting is not None and waiting.f_code is Future.result.__code__

    def interrupt():
        settle(waits_for_a_result)
        signal.pthread_kill(main_thread, signal.SIGINT)

    def on_interrupt(*_):
        interrupted.set()
        raise KeyboardInterrupt

    interrupter = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            list(stream(executable, itertools.count(), threads=2, decode=decode))
    finally:
        signal.signal(signal.SIGINT, before)
    assert host_threads() == []
    interrupter.join()


class Blocking:
    """An iterator that blocks before its third item, until the test opens the gate."""

    def __init__(self):
        self.gate, self.blocks, self.num_read = threading.Event(), threading.Event(), 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.num_read == 2:
            self.blocks.set()
            self.gate.wait()
        self.num_read += 1
        return self.num_read - 1


@pytest.fixture
def blocking():
    iterator = Blocking()
    yield iterator
    iterator.gate.set()
    settle(lambda: host_threads() == [])
    assert iterator.num_read <= 3  # what it still gave was dropped, and no more was read


@pytest.mark.parametrize("threads", [1, 3])
def test_leaving_the_loop_abandons_an_iterator_that_blocks(executable, blocking, threads):
    decoded, received = [], []

    def decode(index):
        decoded.append(index)
        return inputs_of(index)

    for outputs in stream(executable, blocking, threads=threads, decode=decode):
        received.append(outputs)
        if len(received) == 2:
            assert blocking.blocks.wait(timeout=10)
            start = time.monotonic()
            break
    assert time.monotonic() - start < 1
    assert decoded == [0, 1]
    blocking.gate.set()
    settle(lambda: host_threads() == [])
    assert decoded == [0, 1]


@pytest.mark.parametrize("wakes", [True, False], ids=["in the wait", "just before the wait"])
def test_one_interrupt_ends_the_wait_for_an_iterator_that_blocks(executable, blocking, wakes):
    main_thread, received = threading.get_ident(), []
    waiting = Future()

    def interrupt():
        assert blocking.blocks.wait(timeout=10)
        settle(lambda: len(received) == 2)
        waiting.set_result(time.monotonic())
        if wakes:
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            _thread.interrupt_main()  # the handler is due, but no system call ends

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        received.extend(stream(executable, map(inputs_of, blocking), threads=2))  # keeps what is finished
    assert time.monotonic() - waiting.result() < 1
    interrupter.join()


def test_a_thread_that_computes_is_joined_however_long_it_takes(executable, monkeypatch):
    monkeypatch.setattr(stream_module, "_PATIENCE_S", 0.01)
    decoding, finished = threading.Event(), []

    def decode(index):
        decoding.set()
        time.sleep(0.2)
        finished.append(index)
        return inputs_of(index)

    results = stream(executable, itertools.count(), threads=1, decode=decode)
    next(results)
    decoding.clear()
    assert decoding.wait(timeout=10)
    results.close()
    assert host_threads() == [] and len(finished) >= 2


def test_a_generator_that_its_own_thread_collects_ends_the_threads(executable):
    reads_on = threading.Event()

    def decode(index):
        if index:
            assert reads_on.wait(timeout=10)
            gc.collect()
        return inputs_of(index)

    results: list[Any] = [stream(executable, itertools.count(), threads=2, decode=decode)]
    results.append(results)  # only the collector frees it
    next(results[0])
    del results
    reads_on.set()
    settle(lambda: host_threads() == [])


@pytest.mark.slow
def test_an_open_stream_does_not_keep_the_interpreter_from_exiting():
    script = """
import itertools, types
import numpy as np
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import TensorSpec
output_spec = TensorSpec("outputs", (8, 3), "float32")
executable = types.SimpleNamespace(output_spec=output_spec, in_this_process=True, pending_probe=None)
results = stream(executable, itertools.count(), threads=2, decode=lambda item: np.empty((0, 3)))
print(next(results).shape)
"""
    assert run_script(script) == "(0, 3)\n"
