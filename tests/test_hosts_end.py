"""The end of one of several processes reaches the others, whatever it is doing."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import pytest

from cambrian.commands import shared_mesh
from cambrian.commands.configuration import Configuration
from cambrian.commands.model import default_model
from cambrian.engine.hosts import Group, ProcessEnded, connection, group as group_module, share_artifact
from cambrian.sharding import MeshShape
from host_processes import connect, in_all
from waiting import settle

pytestmark = pytest.mark.usefixtures("ended")


def vanish(group: Group) -> None:
    """Ends the connection as the kernel does for a process that is killed."""
    group._connections[0]._socket.shutdown(socket.SHUT_RDWR)


def test_the_end_of_a_process_reaches_all_others(address):
    def work(group: Group):
        group.exchange(None)
        if group.process_id == 1:
            raise ValueError("a broken disk")
        group.gather(None)
        group.finish()

    first, _, last = in_all(address, [0, 1, 2], work)
    assert isinstance(first, ProcessEnded) and isinstance(last, ProcessEnded)
    assert str(first) == str(last) == "process 1: a broken disk"


def test_a_collective_that_fails_first_is_blamed_on_the_process_that_ended(address):
    def work(group: Group):
        group.exchange(None)
        if group.process_id == 0:
            raise ValueError("Gloo all-reduce failed: connection reset by peer")
        time.sleep(0.1)
        vanish(group)

    error, _ = in_all(address, [0, 1], work)
    assert isinstance(error, ProcessEnded) and str(error).startswith("process 1 on 127.0.0.1 has ended: ")


def test_an_end_without_a_word_is_noticed_by_check_too(address):
    def work(group: Group):
        group.exchange(None)
        if group.process_id == 1:
            return vanish(group)
        while True:
            group.check()

    error, _ = in_all(address, [0, 1], work)
    assert isinstance(error, ProcessEnded)
    assert str(error).startswith("process 1 on 127.0.0.1 has ended: ")


def test_a_process_without_a_sign_of_life_has_ended(address, monkeypatch):
    monkeypatch.setattr(connection, "_BEAT_S", 0.125)
    monkeypatch.setattr(connection, "SILENT_S", 0.5)

    def work(group: Group):
        if group.process_id == 1:
            time.sleep(1)  # which keeps no other thread from running
        return group.exchange(group.process_id)

    assert in_all(address, [0, 1], work) == [[0, 1]] * 2
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(in_all, address, [0], lambda group: group.exchange(0), num_processes=2)
        with contextlib.closing(connect(address)) as silent:
            connection.send_message(silent, {"cambrian": {"process_id": 1, "num_processes": 2}})
            connection.send_message(silent, {})
            (error,) = first.result()
    assert str(error) == "process 1 on 127.0.0.1 has given no sign of life for 0.5 s"


def test_a_process_that_hangs_in_a_collective_is_ended(address, ended, monkeypatch):
    monkeypatch.setattr(group_module, "_PATIENCE_S", 0.1)

    def work(group: Group):
        group.exchange(None)
        assert group.process_id == 1 or ended.wait(10)

    assert in_all(address, [0, 1], work) == [None, None]


def test_a_process_that_is_ended_while_it_loads_leaves_no_copy_of_the_artefact(address, ended, artifact, monkeypatch):
    monkeypatch.setattr(share_artifact, "_has", lambda path, digest: False)
    copied = threading.Event()

    def work(group: Group):
        with share_artifact.shared_artifact(group, None if group.process_id else artifact) as copy:
            if group.process_id == 0:
                assert copied.wait(10)
                return vanish(group)
            assert copy.is_dir()
            copied.set()
            assert ended.wait(10)
            return copy.exists()

    assert in_all(address, [0, 1], work) == [None, False]


def test_the_others_learn_which_process_ended_from_a_process_0_that_hangs(address, ended, monkeypatch):
    monkeypatch.setattr(group_module, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(group_module, "LAST_S", 0.0)

    def work(group: Group):
        group.exchange(None)
        if group.process_id == 0:
            assert ended.wait(10)
        if group.process_id == 2:
            group.exchange(None)

    *_, error = in_all(address, [0, 1, 2], work)
    assert isinstance(error, ProcessEnded) and str(error).startswith("process 1 on 127.0.0.1 has ended: ")


def test_a_process_that_still_receives_parts_is_not_ended(address, ended, monkeypatch):
    monkeypatch.setattr(group_module, "LAST_S", 0.0)
    received = []

    def work(group: Group):
        def receive_one(_):
            if len(received) < 3:
                received.append(group.gather(""))

        monkeypatch.setattr(group._closed, "wait", receive_one if group.process_id == 0 else group._closed.wait)
        group.exchange(None)
        if group.process_id == 0:
            assert ended.wait(10)
        else:
            for launch in range(3):
                group.gather(launch)

    in_all(address, [0, 1], work)
    assert received == [["", 0], ["", 1], ["", 2]]


def test_a_process_0_that_ends_behind_its_last_answer_ends_no_other(address, ended, monkeypatch):
    def work(group: Group):
        exchange = group.exchange

        def exchange_late(value):
            values = exchange(value)
            settle(lambda: group._connections[0]._socket.fileno() < 0)  # its end was noticed
            return values

        if group.process_id:
            monkeypatch.setattr(group, "exchange", exchange_late)
        group.finish()

    assert in_all(address, [0, 1], work) == [None, None] and not ended.is_set()


def test_process_0_tells_the_others_where_joining_is_interrupted(monkeypatch):
    told = []
    group = SimpleNamespace(agree=lambda facts: None, exchange=lambda value: [1], fail=told.append)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shared_mesh, "meet", lambda *_: contextlib.nullcontext(group))
    monkeypatch.setattr(shared_mesh, "join_mesh", interrupted)
    monkeypatch.setattr(shared_mesh, "LAST_S", 0.0)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    configuration = Configuration(default_model("cifar"), MeshShape(1, 2), coordinator="127.0.0.1:1", num_processes=2)
    with pytest.raises(KeyboardInterrupt), shared_mesh.joined(configuration):
        pass
    assert len(told) == 1 and isinstance(told[0], KeyboardInterrupt)
