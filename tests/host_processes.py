"""Processes that share a mesh, as threads of a test."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cambrian.engine.hosts import meet


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


def connect(address) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(address, 10)
