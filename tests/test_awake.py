"""Cores are kept from sleeping while launches run, and no longer."""

import sys

import pytest

from engine.awake import awake
from sharding import MeshShape
from tests.tiny_executable import inputs_of, make_executable

awake_module = sys.modules["engine.awake"]


@pytest.fixture
def device(tmp_path, monkeypatch):
    file = tmp_path / "cpu_dma_latency"
    file.write_bytes(b"")
    monkeypatch.setattr(awake_module, "_DEVICE", str(file))
    return file


def held() -> bool:
    return awake_module._file is not None


def test_the_request_holds_from_the_first_to_the_last(device):
    with awake("cpu"):
        assert device.read_bytes() == bytes(4)
        with awake("cpu"):
            assert held()
        assert held()
    assert not held()


def test_it_ends_with_a_failure(device):
    with pytest.raises(ZeroDivisionError), awake("cpu"):
        raise ZeroDivisionError
    assert not held()


def test_nothing_is_asked_for_where_the_host_does_not_compute(device):
    with awake("gpu"):
        assert not held()
    assert device.read_bytes() == b""


def test_nothing_happens_where_the_system_does_not_allow_it(tmp_path, monkeypatch):
    monkeypatch.setattr(awake_module, "_DEVICE", str(tmp_path / "absent"))
    with awake("cpu"):
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
