"""Cores are kept from sleeping while launches run, and no longer."""

import pytest

from cambrian.sharding import MeshShape
from cambrian.sharding.host import cpu_latency, host, low_cpu_latency
from tiny_executable import inputs_of, make_executable


@pytest.fixture(autouse=True)
def permitted():
    host.permit("cpu_latency")


@pytest.fixture
def device(tmp_path, monkeypatch):
    file = tmp_path / "cpu_dma_latency"
    file.write_bytes(b"")
    monkeypatch.setattr(cpu_latency, "_DEVICE", str(file))
    return file


def held() -> bool:
    return cpu_latency._file is not None


def test_the_request_holds_from_the_first_to_the_last(device):
    with low_cpu_latency("cpu"):
        assert device.read_bytes() == bytes(4)
        with low_cpu_latency("cpu"):
            assert held()
        assert held()
    assert not held()


def test_it_ends_with_a_failure(device):
    with pytest.raises(ZeroDivisionError), low_cpu_latency("cpu"):
        raise ZeroDivisionError
    assert not held()


def test_nothing_is_asked_for_where_the_host_does_not_compute(device):
    with low_cpu_latency("gpu"):
        assert not held()
    assert device.read_bytes() == b""


def test_nothing_happens_where_the_system_does_not_allow_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_latency, "_DEVICE", str(tmp_path / "absent"))
    with low_cpu_latency("cpu"):
        assert not held()


@pytest.mark.parametrize("way", ["call", "stream"])
def test_launches_ask_for_it(way, device, monkeypatch):
    executable = make_executable(MeshShape(2, 4), 8)
    seen = []
    launch = type(executable).launch
    monkeypatch.setattr(type(executable), "launch", lambda *args: seen.append(held()) or launch(*args))
    if way == "call":
        executable(inputs_of(0, 16))
    else:
        list(executable.stream([inputs_of(0), inputs_of(1)]))
    assert seen == [True, True] and not held()


def test_nothing_is_asked_for_where_it_is_declined(device):
    host.decline("cpu_latency")
    with low_cpu_latency("cpu"):
        assert not held()
    assert device.read_bytes() == b""
