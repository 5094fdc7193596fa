"""Processes that share a mesh, as threads: how they meet, agree, ship an artefact, and notice each other's end."""

import contextlib
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from cambrian.commands import shared_mesh
from cambrian.commands.configuration import Configuration
from cambrian.commands.flags import read_configuration
from cambrian.commands.model import default_model
from cambrian.engine.artifact.layout import PARAMETERS
from cambrian.engine.hosts import Group, ProcessEnded, connection, group as group_module, meet, share_artifact
from cambrian.engine.hosts.share_artifact import content_digest, shared_artifact
from cambrian.engine.runtime.stream import Turns
from cambrian.sharding import MeshShape, UsageError
from flag_values import parse
from waiting import settle


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    """Set where a process would end itself."""
    ended = threading.Event()
    monkeypatch.setattr(group_module, "_exit", lambda error: ended.set())
    return ended


@pytest.fixture
def address():
    return "127.0.0.1", free_port()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def in_all(address, ids, work, timeout_s=10.0, num_processes=None) -> list[Any]:
    """Has a thread for each id meet the others and do `work(group)`; returns results or exceptions in their order."""

    def process(process_id):
        try:
            with meet(address, num_processes or len(ids), process_id, timeout_s) as group:
                return work(group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(process, ids))


def vanish(group: Group) -> None:
    """Ends the connection as the kernel does for a process that is killed."""
    group._connections[0]._socket.shutdown(socket.SHUT_RDWR)


def messages(errors) -> set[str]:
    assert all(isinstance(error, UsageError) for error in errors), errors
    return set(map(str, errors))


def test_processes_exchange_and_gather_in_order(address):
    def work(group: Group):
        everyone = group.exchange(group.process_id)
        parts = [group.gather([group.process_id, launch]) for launch in range(50)]
        group.finish()
        return everyone, parts

    (everyone, parts), *others = in_all(address, [2, 0, 1], work)[1:2] + in_all(address, [0, 1, 2], work)[1:]
    assert everyone == [0, 1, 2] and parts == [[[i, launch] for i in range(3)] for launch in range(50)]
    assert all(other == ([0, 1, 2], [[]] * 50) for other in others)


def test_a_process_waits_where_it_is_too_far_ahead(address):
    sent, may_gather = [], threading.Event()

    def work(group: Group):
        if group.process_id == 0:
            assert may_gather.wait(10)
        for launch in range(100):
            if group.process_id:
                sent.append(launch)
                if len(sent) == group_module._WINDOW:
                    may_gather.set()
                assert may_gather.is_set() or len(sent) <= group_module._WINDOW
            group.gather(launch)
        group.finish()

    assert in_all(address, [0, 1], work) == [None, None] and len(sent) == 100


@pytest.mark.parametrize("name", ["version of jax", "artifact"])
def test_processes_that_differ_are_refused_by_name_in_all(address, name):
    facts = {"version of jax": "0.10.2", "artifact": "0123"}
    errors = in_all(
        address, [0, 1, 2], lambda group: group.agree(facts | ({name: "other"} if group.process_id == 2 else {}))
    )
    expected = f"all processes must have the same {name}, got {facts[name]} in process 0 and other in process 2"
    assert messages(errors) == {expected}


def test_an_id_that_is_used_twice_is_refused_in_all(address):
    errors = in_all(address, [0, 1, 1], lambda group: group.exchange(None))
    assert messages(errors) == {"each process must have a process_id of its own, got 1 more than once"}


def test_a_second_process_0_is_refused_with_the_first(address):
    errors = in_all(address, [0, 0], lambda group: group.exchange(None))
    assert messages(errors) == {"each process must have a process_id of its own, got 0 more than once"}


def test_a_missing_process_is_named_in_all_that_came(address):
    errors = in_all(address, [0, 2], lambda group: group.exchange(None), timeout_s=0.5, num_processes=4)
    assert messages(errors) == {"expected 4 processes in 0.5 s, got none with process_id 1, 3"}


def test_different_numbers_of_processes_are_refused(address):
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(in_all, address, [1], lambda group: group.exchange(None), num_processes=3)
        errors = in_all(address, [0], lambda group: group.exchange(None), num_processes=2) + other.result()
    assert messages(errors) == {
        "num_processes must be the same in all processes, got 2 in process 0 and 3 in process 1"
    }


def test_where_nothing_or_something_else_listens(address, monkeypatch):
    with pytest.raises(UsageError, match=rf"expected process 0 at 127.0.0.1:{address[1]} in 0.3 s, got Connection"):
        meet(address, 2, 1, timeout_s=0.3)
    with pytest.raises(UsageError, match=r"a host that is known here, got no.invalid:1: "):
        meet(("no.invalid", 1), 2, 1)
    monkeypatch.setattr("cambrian.engine.hosts.rendezvous._HELLO_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UsageError, match="got another program"):
        meet(server.getsockname(), 2, 1)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UsageError, match="got another program"):
        meet(server.getsockname(), 2, 0)
    with pytest.raises(UsageError, match=r"a free port of the host of process 0, got 192.0.2.1:1: "):
        meet(("192.0.2.1", 1), 2, 0)


def test_what_else_connects_and_a_process_that_was_started_again_dont_count(address):
    def start(greeting: bytes) -> None:
        with contextlib.closing(connect(address)) as connected:
            connected.sendall(greeting)
            with contextlib.suppress(ConnectionResetError):
                connected.recv(100)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(in_all, address, [0], lambda group: group.exchange("zero"), num_processes=3)
        start(b"GET / HTTP/1.1\r\n\r\n")
        in_all(address, [1], lambda group: group.gather("its part"), num_processes=3)  # and ends
        others = in_all(address, [1, 2], lambda group: group.exchange("later"), num_processes=3)
    assert [*first.result(), *others] == [["zero", "later", "later"]] * 3


def connect(address) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(address, 10)


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


def test_an_artefact_is_taken_from_its_path_or_sent(address, artifact, monkeypatch):
    def work(group: Group):
        with shared_artifact(group, artifact if group.process_id == 0 else None) as path:
            files = {file.name: file.read_bytes() for file in path.iterdir()}
            return path, content_digest(path), len(files[PARAMETERS])

    assert {path for path, *_ in in_all(address, [0, 1], work)} == {artifact}
    monkeypatch.setattr(share_artifact, "_CHUNK_BYTES", 100)
    (here, *content), (there, *received) = in_all(
        address, [0, 1], lambda group: with_path_hidden(monkeypatch, group, work)
    )
    assert content == received and here == artifact and not there.exists()


def test_an_artefact_that_doesnt_fit_on_the_disk_is_named(address, artifact, monkeypatch, tmp_path):
    (tmp_path / PARAMETERS).symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: contextlib.nullcontext(tmp_path))

    def work(group: Group):
        with shared_artifact(group, artifact if group.process_id == 0 else None):
            pass

    _, error = in_all(address, [0, 1], lambda group: with_path_hidden(monkeypatch, group, work))
    assert str(error) == f"[Errno 28] No space left on device: '{tmp_path / PARAMETERS}'"


def with_path_hidden(monkeypatch, group, work):
    if group.process_id == 1:
        monkeypatch.setattr(share_artifact, "_has", lambda path, digest: threading.current_thread() is not receiver)
        receiver = threading.current_thread()
    group.exchange(None)
    return work(group)


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


@pytest.mark.parametrize(
    ("mesh", "processes", "block"),
    [("4x8", 2, "4x4"), ("4x8", 8, "4x1"), ("4x8", 16, "2x1"), ("4x1", 2, "2x1"), ("6x2", 4, "3x1"), ("3x8", 3, "1x8")],
)
def test_processes_divide_the_data_axis_first(mesh, processes, block):
    assert str(MeshShape.parse(mesh).divided(processes)) == block


@pytest.mark.parametrize(("mesh", "processes"), [("4x8", 3), ("1x2", 4), ("4x8", 64), ("3x4", 8)])
def test_processes_that_dont_divide_the_mesh_are_refused(mesh, processes):
    with pytest.raises(UsageError, match=f"divide mesh {mesh} into equal parts.*, got {processes}"):
        MeshShape.parse(mesh).divided(processes)


def test_turns_are_taken_in_order():
    turns, taken = Turns(), []

    def take(number: int) -> None:
        with turns.taken(number):
            taken.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [5, 3, 1, 7, 0, 2, 6, 4]))
    assert taken == list(range(8))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_processes": 2}, "several processes require --coordinator HOST:PORT"),
        ({"process_id": 1}, "several processes require --coordinator HOST:PORT"),
        ({"coordinator": "a:1"}, "expected --num_processes of at least 2, got 1"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "must be below num_processes of 2, got 2"),
        ({"coordinator": "a", "num_processes": 2}, "HOST:PORT, such as 10.0.0.1:7000, got 'a'"),
        ({"coordinator": "a:70000", "num_processes": 2}, "HOST:PORT, such as 10.0.0.1:7000, got 'a:70000'"),
        ({"coordinator": "a:1", "num_processes": 3}, "divide mesh 4x8 into equal parts"),
        ({"coordinator": "a:1", "num_processes": 2, "cards": 2}, "leave --cards out, got 2"),
        ({"coordinator": "a:1", "num_processes": 2, "execution": "online"}, "must be offline in several processes"),
        ({"coordinator": "a:1", "num_processes": 2, "user_model": "m.py:f"}, "expected --artifact DIRECTORY"),
    ],
)
def test_flags_of_processes_that_make_no_sense(flags, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Configuration(default_model("cifar"), MeshShape(4, 8), **flags)


@pytest.mark.parametrize("mode", ["compile", "plan", "train", "batch", "loadgen"])
def test_other_modes_run_in_one_process(mode):
    with pytest.raises(UsageError, match=f"mode {mode} runs in one process: leave --coordinator out, got 'a:1'"):
        read_configuration(parse("--coordinator", "a:1", "--num_processes", 2, "--mode", mode))


def test_a_sweep_runs_in_processes_of_its_own():
    with pytest.raises(UsageError, match="a sweep starts its own processes: leave --coordinator out, got 'a:1'"):
        parse("--coordinator", "a:1", "--num_processes", 2, "--threads", "1,2")


def test_the_host_of_a_coordinator_may_be_an_ipv6_address():
    configuration = Configuration(default_model("cifar"), MeshShape(1, 2), coordinator="[::1]:7000", num_processes=2)
    assert configuration.coordinator_address == ("::1", 7000)


def test_an_artefact_that_isnt_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="an artefact must be a directory"):
        content_digest(Path(tmp_path / "none"))
