"""Cards: order, one answer for each batch, and what becomes of the batches of processes that end."""

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest

import cambrian
from cambrian.engine.cards import Cards, CardsEnded, card as card_module
from cambrian.engine.runtime.metrics import Timeline
from cambrian.engine.runtime.stream import stream
from cambrian.sharding import OutOfMemory, UsageError
from cambrian.sharding.host import Share
from card_stand_in import BATCH_SIZE, FAILS, build, die, load, make
from waiting import settle

ROOT = Path(__file__).parents[1]


def start(count: int, load: Any = make, build: Any = None) -> tuple[Cards, list[int]]:
    return Cards.start([Share()] * count, load, build)


@pytest.mark.slow
def test_a_part_of_a_batch_whose_samples_mix_is_refused_and_ends_no_card(tmp_path):
    spec = jax.ShapeDtypeStruct((3,), "float32")
    executable = cambrian.compile(lambda p, x: x - x.mean(axis=0), {}, spec, batch_size=4)
    executable.save(tmp_path / "mixing")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    with cambrian.load(tmp_path / "mixing", cards=1) as cards:
        with pytest.raises(UsageError, match="takes 4 at a time, got 3"):
            cards(x[:3])
        np.testing.assert_allclose(cards(x), x - x.mean(axis=0), atol=1e-6)


@pytest.mark.slow
def test_cards_have_64_bit_types_where_this_process_has_them(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 3))
    with jax.enable_x64(True):
        spec = jax.ShapeDtypeStruct((3,), "float64")
        cambrian.compile(lambda p, x: x * 2, {}, spec, batch_size=4).save(tmp_path / "wide")
        # Without the key, each card proves the program in a process of its own.
        with cambrian.load(tmp_path / "wide", cards=1, signing_key=tmp_path / "absent") as cards:
            np.testing.assert_array_equal(cards(x), x * 2, strict=True)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Cards, list[int]]]:
    cards, processes = start(2)
    with cards:
        yield cards, processes
    assert not any(map(psutil.pid_exists, processes))


def batches(count: int, last: int = BATCH_SIZE) -> list[np.ndarray]:
    """Batches of consecutive numbers, the last one of `last` samples."""
    sizes = [BATCH_SIZE] * (count - 1) + [last]
    values = np.arange(3 * sum(sizes), dtype=np.float32).reshape(-1, 3)
    return np.split(values, np.cumsum(sizes)[:-1])


def check(inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    """Each batch was answered once, in order."""
    assert len(outputs) == len(inputs)
    for expected, found in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(found[:, :3], expected)


@pytest.mark.parametrize("count", [1, 2, 3, 23, 24, 25])
@pytest.mark.parametrize("last", [1, BATCH_SIZE])
def test_results_come_in_order_whatever_the_number_of_batches(pair, count, last):
    inputs = batches(count, last)
    check(inputs, list(pair[0].stream(inputs, threads=3)))
    np.testing.assert_array_equal(pair[0](np.concatenate(inputs))[:, :3], np.concatenate(inputs))


def test_no_inputs_give_no_outputs(pair):
    assert pair[0](np.empty((0, 3), np.float32)).shape == (0, 4)
    assert list(pair[0].stream([])) == []
    assert [len(outputs) for outputs in pair[0].stream([np.empty((0, 3), np.float32), *batches(1)])] == [0, BATCH_SIZE]


def test_thread_i_feeds_card_i_mod_n(pair):
    cards, processes = pair
    for thread in range(5):
        computed = cards.compute(batches(1)[0], thread)
        assert computed.card == thread % 2
        assert set(computed.outputs[:, 3]) == {processes[thread % 2]}
        assert computed.launched < computed.ready < computed.fetched


def test_the_timeline_tells_cards_apart(pair):
    timeline = Timeline()
    threads = threading.Barrier(2, timeout=10)  # so that each thread takes every other batch

    def decode(inputs: np.ndarray) -> np.ndarray:
        threads.wait()
        return inputs

    list(stream(pair[0], batches(10, last=1), threads=2, decode=decode, timeline=timeline))
    assert sum(timeline.of_card(card).num_samples for card in range(2)) == timeline.num_samples == 9 * BATCH_SIZE + 1
    assert all(timeline.of_card(card).num_samples in (4 * BATCH_SIZE + 1, 5 * BATCH_SIZE) for card in range(2))
    assert timeline.of_card(2).num_samples == 0
    rate = timeline.of_card(1).summary().images_per_second
    assert rate is not None and rate > 0


def test_what_they_are_is_what_their_executable_is(pair):
    cards, _ = pair
    assert (cards.name, cards.kind, cards.platform, cards.batch_size) == ("stand-in", "native", "cpu", BATCH_SIZE)
    assert cards.notes == ("a note",)
    assert cards.peak_host_memory_bytes > 2**20


@pytest.mark.parametrize("inputs", [np.zeros((BATCH_SIZE + 1, 3), np.float32), np.zeros((1, 3), np.float64)])
def test_inputs_that_do_not_fit_are_refused_and_end_no_card(pair, inputs):
    with pytest.raises(UsageError, match="inputs must have shape"):
        list(pair[0].stream([inputs]))
    with pytest.raises(UsageError, match=r"inputs must have shape \(N, 3\) and dtype float32, got \(20, 4\)"):
        pair[0](np.zeros((20, 4), np.float32))
    check(batches(2), list(pair[0].stream(batches(2))))


def test_a_stream_that_is_left_leaves_usable_cards(pair):
    for _ in pair[0].stream(batches(20)):
        break
    check(batches(5), list(pair[0].stream(batches(5))))


def test_the_batches_of_cards_that_end_go_to_the_others(monkeypatch):
    monkeypatch.setattr(card_module, "PATIENCE_S", 3.0)
    monkeypatch.setattr(card_module, "PATIENCE_FACTOR", 0.0)
    cards, processes = start(3, functools.partial(make, 0.01))
    with cards:
        disturb = {10: (processes[1], signal.SIGKILL), 30: (processes[0], signal.SIGSTOP)}
        outputs = []
        for process in processes:  # signals that reach the whole group of processes are for the parent
            os.kill(process, signal.SIGINT)
            os.kill(process, signal.SIGTERM)
        for answer in cards.stream(batches(60, last=3), threads=6):
            outputs.append(answer)
            if len(outputs) in disturb:
                os.kill(*disturb[len(outputs)])
        check(batches(60, last=3), outputs)
        assert [card.ended for card in cards.cards] == ["gave no answer in 3 s", "was killed by SIGKILL", ""]
        assert set(outputs[-1][:, 3]) == {processes[2]}

        outputs = []
        with pytest.raises(CardsEnded, match="got none: card 0 gave no answer in 3 s, card 1 was killed by SIGKILL, c"):
            for answer in cards.stream(batches(1000), threads=6):
                outputs.append(answer)
                if len(outputs) == 5:
                    os.kill(processes[2], signal.SIGABRT)
        assert len(outputs) >= 5 and cards.cards[2].ended == "was killed by SIGABRT"
        check(batches(1000)[: len(outputs)], outputs)
    assert not any(map(psutil.pid_exists, processes))


@pytest.mark.slow
def test_a_batch_that_no_card_can_compute_ends_them_after_the_batches_before_it():
    cards, _ = start(2)
    outputs = []
    with (
        cards,
        pytest.raises(OutOfMemory, match="card 0 failed with MemoryError: no memory for this batch, card 1 fai"),
    ):
        outputs.extend(cards.stream([*batches(3), np.full((1, 3), FAILS, np.float32), *batches(1)], threads=2))
    check(batches(3), outputs[:3])


@pytest.mark.slow
def test_one_card_builds_for_all(tmp_path):
    built = tmp_path / "built"
    cards, processes = start(3, functools.partial(load, built), functools.partial(build, built))
    with cards:
        assert int(built.read_text()) in processes
        computed_by = {cards.compute(batches(1)[0], thread).outputs[0, 3] for thread in range(3)}
        assert computed_by == set(processes) and len(computed_by) == 3
    with pytest.raises(UsageError, match="expected something built, got nothing"):
        start(2, functools.partial(load, tmp_path / "absent"))


@pytest.mark.slow
def test_a_card_that_dies_before_it_is_ready_is_left_out(tmp_path):
    cards, processes = start(2, functools.partial(die, tmp_path / "first"))
    with cards:
        (ended,) = (card for card in cards.cards if card.ended)
        assert cards.notes == ("a note", f"card {ended.index} was killed by SIGKILL before it was ready")
        check(batches(5), list(cards.stream(batches(5))))
        assert len(processes) == 1
    with pytest.raises(CardsEnded, match="card 0 was killed by SIGKILL, card 1 was killed by SIGKILL"):
        start(2, die)


@pytest.fixture(scope="module")
def loaded(saved) -> Iterator[cambrian.Cards]:
    with cambrian.load(saved / "artifact", cards=2, signing_key=saved / "key") as cards:
        yield cards


def test_an_artefact_on_cards_gives_what_it_gives_in_this_process(loaded, saved):
    executable = cambrian.load(saved / "artifact", signing_key=saved / "key")
    images = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(loaded(images), executable(images), rtol=1e-5, atol=1e-6)
    assert loaded.mesh_shape == executable.mesh_shape and loaded.metadata == executable.metadata
    assert loaded.parity is not None and loaded.parity.max_relative_error < 1e-4
    assert "a note of the program" in loaded.notes


def test_what_cards_can_not_do_is_refused(loaded, saved, tmp_path):
    with pytest.raises(UsageError, match="cards were loaded from an artefact, which can be copied: can't save them"):
        loaded.save(tmp_path / "again")
    with pytest.raises(UsageError, match="expected an image classifier"):
        loaded.classify("synthetic")
    for count, message in (
        (0, "cards must be from 1 to 1024, got 0"),
        (1000, "expected at most .* cards, one for each"),
    ):
        with pytest.raises(UsageError, match=message):
            cambrian.load(saved / "artifact", cards=count)
    with pytest.raises(UsageError, match="leave devices out, got 0"):
        cambrian.load(saved / "artifact", cards=2, devices=[])  # pyright: ignore


@pytest.mark.slow
def test_a_damaged_artefact_is_one_error(artifact, key):
    path = artifact / "parameters.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = psutil.Process().children()
    with pytest.raises(cambrian.DamagedArtifact, match="parameters.safetensors must have .* bytes, got"):
        cambrian.load(artifact, cards=2, signing_key=key)
    assert psutil.Process().children() == before


@pytest.mark.slow
def test_a_card_whose_parent_is_gone_before_it_serves_ends_without_a_word():
    ours, theirs = Pipe()
    with theirs:
        card = subprocess.Popen(
            [sys.executable, "-c", card_module._CHILD.format(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
    ours.close()
    assert card.communicate(timeout=60) == (None, b"") and card.returncode == 0


@pytest.mark.slow
def test_a_script_without_a_guard_runs_and_its_cards_end_with_it(saved):
    script = f"""
import signal, numpy as np, cambrian
cards = cambrian.load({str(saved / "artifact")!r}, cards=2, signing_key={str(saved / "key")!r})
print(cards(np.zeros((9, 8, 8, 3), np.uint8)).shape, *(card._process.pid for card in cards.cards), flush=True)
signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("(9, 10) "), line
            processes = [int(word) for word in line.split()[2:]]
            assert all(map(psutil.pid_exists, processes))
        finally:
            process.kill()
    settle(lambda: not any(map(psutil.pid_exists, processes)))


@pytest.mark.slow
def test_a_fork_leaves_the_cards_to_the_process_that_started_them():
    script = """
import os, signal, sys, numpy as np
from cambrian.engine.cards import Cards, CardsEnded
from cambrian.sharding.host import Share
from card_stand_in import make
cards, (process,) = Cards.start([Share()], make)
inputs = np.ones((4, 3), np.float32)
cards(inputs)  # makes lanes
tried, has_tried = os.pipe()
if os.fork() == 0:
    try:
        print(cards(inputs)[0], flush=True)
    except CardsEnded as error:
        print(error, flush=True)
    cards.close()
    os.close(has_tried)
    sys.stdin.read()
    os._exit(0)
os.close(has_tried)
os.read(tried, 1)
print(cards(inputs)[0, 3] == process, process, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT / "tests", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        message = f"got none: card 0 belongs to process {process.pid}, of which this one is a fork"
        assert process.stdout.readline().strip().endswith(message)
        answered, card = process.stdout.readline().split()
        assert answered == "True"
        process.wait(10)
        settle(lambda: not psutil.pid_exists(int(card)))  # while the fork still waits
