"""Limits of the process's memory: what exceeds them is refused before XLA aborts."""

import resource

import pytest

from cambrian.engine.runtime import memory
from cambrian.sharding import MeshShape, OutOfMemory
from cambrian.sharding.host import process_limits
from tiny_executable import make_executable


def test_the_address_space_left_is_the_limit_less_what_is_mapped():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, limits[1]))
    try:
        left = process_limits.address_space_left()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert left is not None and 2**39 < left < 2**40 - 2**27
    assert limits[0] != resource.RLIM_INFINITY or process_limits.address_space_left() is None


def test_devices_must_fit_the_address_space(monkeypatch):
    monkeypatch.setattr(process_limits, "use_one_heap", lambda: None)  # this process has threads already
    monkeypatch.setattr(process_limits, "permitted_cores", lambda: 2)
    monkeypatch.setattr(process_limits, "_stack_bytes", lambda: 8 * 2**20)
    needed = (640 + 8 * (2 * 32 + 4 * 2)) * 2**20
    for left in (None, needed):
        monkeypatch.setattr(process_limits, "address_space_left", lambda left=left: left)
        process_limits.check_address_space(32)
    monkeypatch.setattr(process_limits, "address_space_left", lambda: needed - 1)
    with pytest.raises(OutOfMemory, match="expected at least 1216 MiB of address space for 32 devices, got 1216 MiB"):
        process_limits.check_address_space(32)
    process_limits.check_address_space(31)


@pytest.mark.parametrize("limit", ["address_space_left", "control_group_bytes"])
def test_launches_in_flight_must_fit_the_process(monkeypatch, limit):
    executable = make_executable(MeshShape(2, 4), batch_size=8)
    in_flight = memory.predicted_host_memory_bytes(executable, 2, loaded_bytes=0)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0)
    for name in ("address_space_left", "control_group_bytes"):
        monkeypatch.setattr(memory, name, lambda: None)
    monkeypatch.setattr(memory, limit, lambda: in_flight)
    memory.check_device_memory(executable, 2, None)
    monkeypatch.setattr(memory, limit, lambda: in_flight - 1)
    with pytest.raises(OutOfMemory, match="for 2 launches in flight, got .* left by the limits of this process"):
        memory.check_device_memory(executable, 2, None)


def test_the_launches_of_all_cards_must_fit_the_control_group(monkeypatch):
    executable = make_executable(MeshShape(2, 4), batch_size=8)
    in_flight = memory.predicted_host_memory_bytes(executable, 2, loaded_bytes=0)
    monkeypatch.setattr(memory, "address_space_left", lambda: None)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 1000)  # 400 of them for libraries
    monkeypatch.setattr(memory, "_private_bytes", lambda: 600)
    needed = 3 * in_flight + 1000 + 2 * 600
    monkeypatch.setattr(memory, "control_group_bytes", lambda: needed)
    memory.check_device_memory(executable, 2, None, cards=3)
    monkeypatch.setattr(memory, "control_group_bytes", lambda: needed - 1)
    memory.check_device_memory(executable, 2, None)
    with pytest.raises(OutOfMemory, match="control group, 2 other cards"):
        memory.check_device_memory(executable, 2, None, cards=3)
