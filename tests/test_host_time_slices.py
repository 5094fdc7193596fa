"""Threads started within `long_time_slices` keep a core for longer; others don't change."""

import platform
import sys
import threading

import pytest

from cambrian.sharding.host.time_slices import RUNTIME, get_attributes, long_time_slices
from run_script import run_script

LONG_NS = 100_000_000


@pytest.fixture
def attributes():
    found = get_attributes()
    version = tuple(int(part) for part in platform.release().split(".")[:2]) if sys.platform == "linux" else (0, 0)
    if found is None or version < (6, 12):
        pytest.skip("time slices of one's own need Linux 6.12")
    return found


def of_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(get_attributes()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_started_within_have_long_slices_and_others_as_before(attributes):
    with long_time_slices():
        inside = of_new_thread()
    assert inside[RUNTIME] == LONG_NS
    assert attributes[RUNTIME] < LONG_NS
    assert inside[:RUNTIME] + inside[RUNTIME + 1 :] == attributes[:RUNTIME] + attributes[RUNTIME + 1 :]
    assert get_attributes() == of_new_thread() == attributes


def test_the_slice_is_given_back_after_a_failure(attributes):
    with pytest.raises(ZeroDivisionError), long_time_slices():
        _ = 1 / 0
    assert get_attributes() == attributes


@pytest.mark.slow
def test_threads_of_virtual_devices_have_long_slices(attributes):
    script = """
import os, jax
from cambrian.sharding.host import acquire_devices
from cambrian.sharding.host.time_slices import RUNTIME, get_attributes
acquire_devices(2, "cpu")
print(get_attributes()[RUNTIME], max(get_attributes(int(thread))[RUNTIME] for thread in os.listdir("/proc/self/task")))
"""
    assert run_script(script).split() == [str(attributes[RUNTIME]), str(LONG_NS)]


def test_where_the_system_has_no_such_call_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert get_attributes() is None
    with long_time_slices():
        pass
