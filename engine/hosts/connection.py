"""A connection of two processes: JSON messages over TCP, each behind its length in 4 bytes.

Nothing is unpickled: whoever reaches the port can send messages, but no code. A thread reads ahead, so that the end of
the other process is noticed at once, whatever this one does. Another one sends a sign of life every `_BEAT_S`, so that
a process that is stopped, or whose host or network is gone, is noticed after `SILENT_S`.
"""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from cambrian.engine.errors import one_line
from cambrian.sharding import UsageError

JOIN_S = 120.0  # in which all processes must come
SILENT_S = 30.0  # far above the time for which a compilation holds the GIL, or a busy host runs other processes
_BEAT_S = 2.0
_MAX_BYTES = 2**27
_WAKE_S = 0.2  # a signal that arrives just before a wait doesn't end it


class ProcessEnded(RuntimeError):
    """Another process that shares the mesh has ended; the message says which, and how."""


class ProcessRefused(UsageError):
    """Another process that shares the mesh has refused its flags or input; the message says which, and why."""


def send_message(connected: socket.socket, message: Any) -> None:
    """Sends a JSON-compatible value."""
    data = json.dumps(message).encode()
    connected.sendall(len(data).to_bytes(4, "big") + data)


def receive_message(receive: Callable[[int], bytes]) -> Any:
    """Receives a value.

    Args:
      receive: as a socket's `recv`.

    Raises:
      OSError: if the connection ended or stayed silent for too long.
      ValueError: if what came isn't a message.
    """
    num_bytes = int.from_bytes(_receive(receive, 4), "big")
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"expected a message of at most {_MAX_BYTES} bytes, got {num_bytes}")
    return json.loads(_receive(receive, num_bytes))


def _receive(receive: Callable[[int], bytes], num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        part = receive(min(num_bytes - len(data), 2**20))
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
        self._silent_s = JOIN_S + SILENT_S  # until the first message: process 0 waits for others
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for work in (self._read, self._beat):
            threading.Thread(target=work, name=f"cambrian-{peer}", daemon=True).start()

    def send(self, value: Any) -> None:
        """Sends a JSON-compatible value; the end of the other process is for `receive` to report."""
        self._send({"value": value})

    def fail(self, error: BaseException, text: str) -> None:
        """Tells the other process that this one ends with an error."""
        self._send({"error": text, "usage": isinstance(error, UsageError)})

    def _send(self, message: Any) -> bool:
        with contextlib.suppress(OSError), self._sending:
            send_message(self._socket, message)
            return True
        return False

    def _beat(self) -> None:
        while self._send({}):
            time.sleep(_BEAT_S)

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
            while "error" not in (message := receive_message(self._receive_bytes)):
                self._silent_s = SILENT_S
                if "value" in message:
                    self._received.put(message["value"])
            self.error = (ProcessRefused if message["usage"] else ProcessEnded)(message["error"])
            told = True
        except ProcessEnded as error:
            self.error = error
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.error = ProcessEnded(f"{self.peer} has ended: {one_line(error)}")
        self._ended(self.error, told)
        self._socket.close()

    def _receive_bytes(self, most: int) -> bytes:
        # Adds up waits instead of reading a clock, which would count the time in which this process was stopped.
        silent_s = 0.0
        while not wait([self._socket], _BEAT_S):
            silent_s += _BEAT_S
            if silent_s >= self._silent_s:
                raise ProcessEnded(f"{self.peer} has given no sign of life for {silent_s:g} s")
        return self._socket.recv(most)

    def close(self) -> None:
        """Closes the connection behind what was sent; the other process takes that for the end of this one."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
