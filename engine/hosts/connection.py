"""A connection of two processes: JSON messages over TCP, each behind its length in 4 bytes.

Nothing is unpickled: whoever reaches the port can send messages, but no code. A thread reads ahead, so that the end of
the other process is noticed at once, whatever this one does. The kernel probes a silent connection, so that the end of
a host, or of the network, is noticed within `_SILENT_S`.
"""

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from cambrian.engine.errors import one_line
from cambrian.sharding import UsageError

_MAX_BYTES = 2**27
_SILENT_S = 20
_PROBES = 3
_WAKE_S = 0.2  # a signal that arrives just before a wait doesn't end it


class ProcessEnded(RuntimeError):
    """Another process that shares the mesh has ended; the message says which, and how."""


class ProcessRefused(UsageError):
    """Another process that shares the mesh has refused its flags or input; the message says which, and why."""


def send_message(connected: socket.socket, message: Any) -> None:
    """Sends a JSON-compatible value."""
    data = json.dumps(message).encode()
    connected.sendall(len(data).to_bytes(4, "big") + data)


def receive_message(connected: socket.socket) -> Any:
    """Receives a value.

    Raises:
      OSError: if the connection ended or, with a timeout, stayed silent.
      ValueError: if what came isn't a message.
    """
    num_bytes = int.from_bytes(_receive(connected, 4), "big")
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"expected a message of at most {_MAX_BYTES} bytes, got {num_bytes}")
    return json.loads(_receive(connected, num_bytes))


def _receive(connected: socket.socket, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        part = connected.recv(min(num_bytes - len(data), 2**20))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return bytes(data)


class Connection:
    """The connection to another process.

    Attributes:
      peer: the other process, in words.
      error: how it ended; None while it runs.
    """

    def __init__(self, connected: socket.socket, peer: str, ended: Callable[[Exception, bool], None]):
        """Takes over `connected`; calls `ended(error, told)`, in a thread of its own, when the other process has ended.

        `told` is whether that said so itself.
        """
        self.peer, self.error = peer, None
        self._socket, self._ended = connected, ended
        self._sending = threading.Lock()
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _SILENT_S // _PROBES),
            ("TCP_KEEPINTVL", _SILENT_S // _PROBES),
            ("TCP_KEEPCNT", _PROBES - 1),
            ("TCP_USER_TIMEOUT", 1000 * _SILENT_S),  # of data that nobody acknowledges
        ):
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=self._read, name=f"cambrian-{peer}", daemon=True).start()

    def send(self, value: Any) -> None:
        """Sends a JSON-compatible value; the end of the other process is for `receive` to report."""
        self._send({"value": value})

    def fail(self, error: BaseException, text: str) -> None:
        """Tells the other process that this one ends with an error."""
        self._send({"error": text, "usage": isinstance(error, UsageError)})

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError), self._sending:
            send_message(self._socket, message)

    def receive(self, check: Callable[[], None]) -> Any:
        """Waits for a value; calls `check` meanwhile, which may raise."""
        while True:
            try:
                return self._received.get(timeout=_WAKE_S)
            except queue.Empty:
                check()

    def check(self) -> None:
        """Raises ProcessRefused or ProcessEnded if the other process has ended and all that it sent was received."""
        if self.error is not None and self._received.empty():
            raise type(self.error)(str(self.error))

    def _read(self) -> None:
        told = False
        try:
            while "value" in (message := receive_message(self._socket)):
                self._received.put(message["value"])
            self.error = (ProcessRefused if message["usage"] else ProcessEnded)(message["error"])
            told = True
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.error = ProcessEnded(f"{self.peer} has ended: {one_line(error)}")
        self._ended(self.error, told)
        self._socket.close()

    def close(self) -> None:
        """Closes the connection behind what was sent; the other process takes that for the end of this one."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
