"""Host threads: order, contents and what is read ahead."""

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cambrian.engine.runtime.executable import Computed, Executable
from cambrian.engine.runtime.metrics import Timeline
from cambrian.engine.runtime.stream import Turns, stream
from cambrian.sharding import MeshShape, UsageError
from tiny_executable import NUM_FEATURES, GatedOutputs, host_threads, inputs_of, make_executable, outputs_of
from waiting import settle


@pytest.fixture(scope="module")
def executable() -> Executable:
    return make_executable(MeshShape(2, 4), batch_size=8)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert host_threads() == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_input_order_whatever_the_order_of_completion(executable, threads):
    num_batches = 20
    finished = [threading.Event() for _ in range(num_batches)]

    def postprocess(index, outputs):
        # As many as there are threads finish in reverse.
        if index + 1 < num_batches and (index + 1) % threads:
            assert finished[index + 1].wait(timeout=10)
        finished[index].set()
        return outputs

    results = stream(executable, range(num_batches), threads=threads, decode=inputs_of, postprocess=postprocess)
    for index, outputs in zip(range(num_batches), results, strict=True):
        np.testing.assert_array_equal(outputs, outputs_of(index))


@pytest.mark.parametrize("num_samples", [1, 7, 8])
def test_a_partial_batch_is_padded_and_cut(executable, num_samples):
    (outputs,) = stream(executable, [inputs_of(5, num_samples)], threads=2)
    np.testing.assert_array_equal(outputs, outputs_of(5, num_samples))


def test_an_empty_batch_is_not_launched(executable):
    batches = [inputs_of(1), inputs_of(2, 0), inputs_of(3)]
    timeline = Timeline()
    lengths = stream(executable, batches, threads=2, postprocess=lambda _, outputs: outputs.shape, timeline=timeline)
    assert list(lengths) == [(8, NUM_FEATURES), (0, NUM_FEATURES), (8, NUM_FEATURES)]
    times = {batch.num_samples: batch for batch in timeline._batches}
    assert times[0].decoded == times[0].launched == times[0].ready == times[0].fetched
    assert times[8].decoded < times[8].launched < times[8].ready < times[8].fetched


def test_no_batches_give_no_results(executable):
    assert list(stream(executable, [], threads=3)) == []


def test_decoding_and_postprocessing_happen_in_host_threads(executable):
    decoded_in, postprocessed_in = [], []

    def decode(item):
        decoded_in.append(threading.current_thread())
        return inputs_of(item["value"])

    def postprocess(item, outputs):
        postprocessed_in.append(threading.current_thread())
        return item["name"], outputs[0, 0]

    items = [{"name": "a", "value": 1}, {"name": "b", "value": 2}]
    assert list(stream(executable, items, threads=2, decode=decode, postprocess=postprocess)) == [("a", 2), ("b", 4)]
    assert len(decoded_in) == len(postprocessed_in) == 2
    assert threading.main_thread() not in decoded_in + postprocessed_in


def test_the_executable_streams_and_is_called_through_the_same_path(executable):
    inputs = np.arange(20 * NUM_FEATURES, dtype=np.float32).reshape(20, NUM_FEATURES)
    np.testing.assert_array_equal(executable(inputs), inputs * np.array([2, 4, 6], np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_endless_iterator_is_read_only_a_window_ahead(executable, threads):
    num_read = 0

    def endless():
        nonlocal num_read
        for index in itertools.count():
            num_read += 1
            yield inputs_of(index)

    with contextlib.closing(stream(executable, endless(), threads=threads)) as results:
        for consumed in range(1, 30):
            np.testing.assert_array_equal(next(results), outputs_of(consumed - 1))
            assert num_read <= consumed + 2 * threads
        settle(lambda: num_read == 29 + 2 * threads)
    assert num_read == 29 + 2 * threads


def test_a_result_does_not_wait_for_the_next_item(executable):
    received = threading.Event()

    def items():
        yield inputs_of(0)
        assert received.wait(timeout=10)
        yield inputs_of(1)

    results = stream(executable, items(), threads=2)
    np.testing.assert_array_equal(next(results), outputs_of(0))
    received.set()
    np.testing.assert_array_equal(next(results), outputs_of(1))
    assert list(results) == []


def test_the_next_launch_is_enqueued_while_one_executes():
    launched: list[GatedOutputs] = []

    def compute(inputs, thread, turn):
        launched.append(GatedOutputs(len(launched)))
        return Computed(np.asarray(launched[-1].block_until_ready()), 0.0, 0.0, 0.0)

    fake = cast(Any, SimpleNamespace(compute=compute, in_this_process=True, pending_probe=None))
    received: list[np.ndarray] = []
    consumer = threading.Thread(target=lambda: received.extend(stream(fake, [np.zeros((1, 1))] * 4, threads=2)))
    consumer.start()
    for finished in range(3):
        settle(lambda finished=finished: len(launched) == finished + 2)
        launched[finished].gate.set()
    launched[3].gate.set()
    consumer.join(timeout=10)
    assert [outputs.item() for outputs in received] == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused_at_once(executable, threads):
    with pytest.raises(UsageError, match=f"at least 1, got {threads}"):
        stream(executable, [], threads=threads)


def test_the_timeline_has_every_batch(executable):
    timeline = Timeline()

    def decode(index):
        time.sleep(0.01)
        return inputs_of(index, 5 if index == 9 else 8)

    def postprocess(index, outputs):
        time.sleep(0.005)

    before = time.perf_counter()
    list(stream(executable, range(10), threads=2, decode=decode, postprocess=postprocess, timeline=timeline))
    elapsed_ms = 1e3 * (time.perf_counter() - before)
    summary = timeline.summary()
    assert summary.wall_ms is not None and summary.images_per_second is not None
    assert 50 <= summary.wall_ms <= elapsed_ms
    assert summary.images_per_second == pytest.approx(77 / summary.wall_ms * 1e3)
    assert summary.decode_ms is not None and summary.decode_ms >= 100
    assert summary.postprocess_ms is not None and summary.postprocess_ms >= 50
    assert summary.execute_ms is not None and 0 < summary.execute_ms < 2 * elapsed_ms


def test_turns_are_taken_in_order():
    turns, taken = Turns(), []

    def take(number: int) -> None:
        with turns.taken(number):
            taken.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [5, 3, 1, 7, 0, 2, 6, 4]))
    assert taken == list(range(8))
