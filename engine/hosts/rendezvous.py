"""How the processes of a group find each other: process 0 listens, the others connect to it."""

import contextlib
import errno
import select
import socket
import time
from typing import NamedTuple

from cambrian.engine.errors import one_line
from cambrian.engine.hosts.connection import JOIN_S, receive_message, send_message
from cambrian.engine.hosts.group import Group
from cambrian.sharding import UsageError

_RETRY_S = 0.2
_HELLO_S = 10.0  # for a greeting, which whatever else connects or listens never sends
_PROGRAM = "cambrian"


class _Joined(NamedTuple):
    process_id: int
    num_processes: int
    connected: socket.socket
    host: str


def meet(address: tuple[str, int], num_processes: int, process_id: int, timeout_s: float = JOIN_S) -> Group:
    """Waits until all processes are there; all but process 0 do so in their first exchange.

    Args:
      address: host and port where process 0 listens.
      num_processes: number of processes.
      process_id: number of this one, from 0.
      timeout_s: for how long to wait.

    Raises:
      UsageError: if a process is missing then, an id is used twice, or the numbers of processes differ; in each process
        that is there.
    """
    try:
        family, *_, resolved = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"coordinator must name a host that is known here, got {_shown(address)}: {one_line(error)}"
        ) from None
    if process_id:
        return _connect(address, num_processes, process_id, timeout_s)
    try:
        server = socket.create_server(resolved[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # perhaps by another process 0, which then learns of this one
            with _connect(address, num_processes, process_id, timeout_s=0) as group:
                group.exchange(None)
        raise UsageError(
            f"coordinator must be a free port of the host of process 0, got {_shown(address)}: {one_line(error)}"
        ) from None
    with server:
        return _accept(server, num_processes, time.monotonic() + timeout_s, timeout_s)


def _accept(server: socket.socket, num_processes: int, deadline: float, timeout_s: float) -> Group:
    joined: list[_Joined] = []
    try:
        while len(joined) < num_processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            connected, (host, *_) = server.accept()
            if (hello := _greeted(connected)) is None:
                connected.close()
                continue
            for gone in [each for each in joined if _has_ended(each)]:  # such as one that was interrupted
                gone.connected.close()
                joined.remove(gone)
            joined.append(_Joined(*hello, connected, host))
        refusal = _refusal(joined, num_processes)
    except TimeoutError:
        missing = sorted(set(range(1, num_processes)) - {each.process_id for each in joined})
        refusal = _refusal(joined, num_processes) or (
            f"expected {num_processes} processes in {timeout_s:g} s, got none with process_id {_listed(missing)}"
        )
    if refusal:
        for each in joined:
            with contextlib.suppress(OSError):
                send_message(each.connected, {"error": refusal, "usage": True})
            each.connected.close()
        raise UsageError(refusal)
    joined.sort()
    return Group(0, num_processes, [(each.connected, f"process {each.process_id} on {each.host}") for each in joined])


def _greeted(connected: socket.socket) -> tuple[int, int] | None:
    """Greets a process that connects; returns its id and number of processes, None if it isn't Cambrian."""
    connected.settimeout(_HELLO_S)
    try:
        hello = receive_message(connected.recv)
        send_message(connected, _PROGRAM)
        return int(hello[_PROGRAM]["process_id"]), int(hello[_PROGRAM]["num_processes"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _has_ended(joined: _Joined) -> bool:
    """Whether a process has closed its connection; what it sent before is unread."""
    poll = select.poll()
    poll.register(joined.connected, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def _refusal(joined: list[_Joined], num_processes: int) -> str:
    """What is wrong with the processes that came; empty if nothing is."""
    for each in joined:
        if each.num_processes != num_processes:
            return (
                f"num_processes must be the same in all processes, got {num_processes} in process 0 and "
                f"{each.num_processes} in process {each.process_id}"
            )
    ids = [0, *(each.process_id for each in joined)]
    twice = sorted({number for number in ids if ids.count(number) > 1})
    return f"each process must have a process_id of its own, got {_listed(twice)} more than once" if twice else ""


def _connect(address: tuple[str, int], num_processes: int, process_id: int, timeout_s: float) -> Group:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connected = socket.create_connection(address, max(deadline - time.monotonic(), _RETRY_S))
            if connected.getsockname() != connected.getpeername():
                break
            connected.close()  # a free port of this host, which happened to connect to itself
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"expected process 0 at {_shown(address)} to wait for process {process_id} within {timeout_s:g} s, "
                    f"got {one_line(error)}"
                ) from None
            time.sleep(_RETRY_S)
    connected.settimeout(_HELLO_S)
    got = "another program that listens there"
    try:
        send_message(connected, {_PROGRAM: {"process_id": process_id, "num_processes": num_processes}})
        if receive_message(connected.recv) == _PROGRAM:
            return Group(process_id, num_processes, [(connected, f"process 0 at {_shown(address)}")])
    except ConnectionError as error:  # such as the end of process 0
        got = one_line(error)
    except (OSError, ValueError):
        pass
    connected.close()
    raise UsageError(f"expected process 0 at {_shown(address)}, got {got}")


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
