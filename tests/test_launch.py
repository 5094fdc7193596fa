"""Launches in flight are bounded over the process."""

import threading
from typing import Any, cast

import jax
import numpy as np
import pytest

from cambrian.engine.runtime import executable as executable_module
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.launch import MAX_LAUNCHES_IN_FLIGHT, launch
from cambrian.sharding import MeshShape
from tiny_executable import GatedOutputs, inputs_of, make_executable, outputs_of
from waiting import settle


@pytest.fixture(scope="module")
def executable() -> Executable:
    return make_executable(MeshShape(2, 4), batch_size=8)


def test_a_launch_waits_for_the_oldest_when_all_slots_are_taken():
    launched: list[GatedOutputs] = []
    in_flight: list[int] = []

    def compiled(params, inputs):
        launched.append(GatedOutputs())
        in_flight.append(sum(not outputs.gate.is_set() for outputs in launched))
        return launched[-1]

    def launch_some():
        for _ in range(3):
            launch(cast(Any, compiled), [], cast(Any, None))

    callers = [threading.Thread(target=launch_some) for _ in range(5)]
    for caller in callers:
        caller.start()
    for finished in range(15 - MAX_LAUNCHES_IN_FLIGHT):
        settle(lambda finished=finished: len(launched) == MAX_LAUNCHES_IN_FLIGHT + finished)
        launched[finished].gate.set()
    for caller in callers:
        caller.join(timeout=10)
    assert len(launched) == 15 and max(in_flight) == MAX_LAUNCHES_IN_FLIGHT
    for outputs in launched:  # they still hold slots of the process
        outputs.gate.set()


def test_a_failed_launch_gives_its_slot_back_and_does_not_fail_others(executable):
    class FailedOutputs:
        def block_until_ready(self):
            raise jax.errors.JaxRuntimeError("a device failed")

    for _ in range(MAX_LAUNCHES_IN_FLIGHT + 1):
        launch(cast(Any, lambda params, inputs: FailedOutputs()), [], cast(Any, None))
    np.testing.assert_array_equal(executable(inputs_of(3)), outputs_of(3))


def test_launches_whose_outputs_were_deleted_give_their_slots_back(executable):
    inputs = executable.put(inputs_of(1))
    for _ in range(2 * MAX_LAUNCHES_IN_FLIGHT):
        executable.launch(inputs).delete()
    np.testing.assert_array_equal(executable(inputs_of(3)), outputs_of(3))


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_call_moves_its_inputs_itself_only_where_its_own_thread_computes(executable, side_by_side, monkeypatch):
    launched = []

    def launch_and_keep(self, inputs):
        launched.append(inputs)
        return launch(self.compiled, self.params, inputs)

    monkeypatch.setattr(executable_module, "launches_run_side_by_side", lambda: side_by_side)
    monkeypatch.setattr(Executable, "launch", launch_and_keep)
    np.testing.assert_array_equal(executable(inputs_of(3, 9)), outputs_of(3, 9))
    assert [inputs.shape[0] for inputs in launched] == [8, 8]  # the second one padded
    assert [isinstance(inputs, jax.Array) for inputs in launched] == [side_by_side] * 2


@pytest.fixture(scope="module")
def wide_executable() -> Executable:
    return make_executable(MeshShape(4, 8), batch_size=8)


@pytest.mark.slow
def test_16_threads_stream_over_32_devices_in_order(wide_executable):
    batches = (inputs_of(index, 1 + index % 8) for index in range(500))
    results = wide_executable.stream(batches, threads=16)
    for index, outputs in zip(range(500), results, strict=True):
        np.testing.assert_array_equal(outputs, outputs_of(index, 1 + index % 8, model=4))


@pytest.mark.slow
@pytest.mark.parametrize("num_threads, num_launches", [(1, 500), (16, 2000)])
def test_launches_that_nobody_waits_for_are_bounded(wide_executable, num_threads, num_launches):
    # Without the bound, launches from one thread alone make XLA get stuck and abort the process.
    outputs: list[jax.Array | None] = [None] * num_launches
    inputs = [wide_executable.put(inputs_of(index)) for index in range(20)]

    def launch_share(first):
        for index in range(first, num_launches, num_threads):
            outputs[index] = wide_executable.launch(inputs[index % 20])

    callers = [threading.Thread(target=launch_share, args=(first,)) for first in range(num_threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for index in range(num_launches):
        np.testing.assert_array_equal(np.asarray(outputs[index]), outputs_of(index % 20, model=4))
