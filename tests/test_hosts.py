"""Processes that share a mesh, as threads: how they meet, agree, and ship an artefact."""

import contextlib
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cambrian.engine.artifact.layout import PARAMETERS
from cambrian.engine.hosts import Group, group as group_module, meet, share_artifact
from cambrian.engine.hosts.share_artifact import content_digest, shared_artifact
from cambrian.sharding import UsageError
from host_processes import connect, in_all

pytestmark = pytest.mark.usefixtures("ended")


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


@pytest.mark.parametrize("num_processes", [3, 4])
def test_an_id_that_is_used_twice_is_refused_in_all_that_came(address, num_processes):
    errors = in_all(address, [0, 1, 1], lambda group: group.exchange(None), timeout_s=0.5, num_processes=num_processes)
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
    waits = f"expected process 0 at 127.0.0.1:{address[1]} to wait for process 1 within 0.3 s, got Connection"
    with pytest.raises(UsageError, match=waits):
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


def test_an_artefact_is_taken_from_its_path_or_sent(address, artifact, monkeypatch):
    def work(group: Group):
        with shared_artifact(group, artifact if group.process_id == 0 else None) as path:
            files = {file.name: file.read_bytes() for file in path.iterdir()}
            found = path, content_digest(path), len(files[PARAMETERS])
            group.finish()  # process 0 stays until the other has read what it sent
            return found

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


def test_an_artefact_that_isnt_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="an artefact must be a directory"):
        content_digest(Path(tmp_path / "none"))
