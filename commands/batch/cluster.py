"""The Ray cluster of a batch job: one of this machine alone, or a running one."""

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator

from cambrian.engine.artifact.manifest import Manifest
from cambrian.sharding import UsageError
from cambrian.sharding.host import host_cores

_OBJECT_STORE_BYTES = 512 * 2**20  # of a cluster of this machine: parts and their rows are small
_REACH_S = 5.0
# What opens a connection of gRPC, which Ray speaks: the client's preface and an empty frame of settings; the server
# answers with its settings (RFC 9113, sections 3.4 and 4.1).
_HTTP2_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # what still runs after an error starts no other cluster
}


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerShare:
    """What each worker has of its machine.

    Attributes:
      num_cpus: cores that Ray counts.
      num_gpus: GPUs, or the fraction of one.
      cores: cores to run on; 0 for all, where the artefact was compiled for more cores than a worker has.
    """

    num_cpus: int
    num_gpus: float
    cores: int


def require_ray() -> None:
    """Raises UsageError with the command that installs Ray Data, if it can't be imported."""
    try:
        with warnings.catch_warnings(action="ignore"):
            import ray.data  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"Ray Data needs the extra ray (pip install 'cambrian[ray]'), got {type(error).__name__}: {error}"
        ) from None


def set_environment() -> None:
    """Makes Ray quieter, here and in the cluster that it starts, unless the user decided. Before its import."""
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connects this process to a Ray cluster inside this context; without an address, starts one of this machine.

    What Ray prints meanwhile goes to standard error, and warnings of its own are ignored.

    Raises:
      UsageError: if nothing listens at the address, or it is no Ray cluster that this machine belongs to.
    """
    import ray  # pyright: ignore[reportMissingImports]

    if address and address != "auto":
        check_reachable(address)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    options = {"logging_level": logging.CRITICAL, "log_to_driver": False, "include_dashboard": False}
    if not address:
        options |= {"num_cpus": host_cores(), "object_store_memory": _OBJECT_STORE_BYTES}
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
        try:
            with _silent_descriptor():
                ray.init(address=address or "local", **options)
        except SystemExit:  # of Ray's own handler of SIGTERM
            raise KeyboardInterrupt from None
        except Exception as error:  # Ray raises errors of many types
            if not address:
                raise UsageError(f"Ray must start on this machine, got {type(error).__name__}: {error}") from None
            raise UsageError(
                f"ray_address must be that of a running Ray cluster with this machine in it, got {address}: {error}"
            ) from None
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has set its own
        try:
            yield
        except KeyboardInterrupt:
            raise  # this process ends now, and with it a cluster that it started: nothing waits for Ray Data
        except BaseException:
            ray.shutdown()
            raise
        ray.shutdown()


@contextlib.contextmanager
def _silent_descriptor() -> Iterator[None]:
    """Sends what native code prints on standard error to nowhere: Ray says which log level the environment asks for."""
    sys.stderr.flush()
    descriptor, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)
        os.close(nowhere)


def check_reachable(address: str) -> None:
    """Raises UsageError unless a server of gRPC listens at HOST:PORT: Ray itself would wait for minutes."""
    name, _, port = address.rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in name:
        raise UsageError(f"ray_address must be HOST:PORT, or auto for a cluster of this machine, got {address!r}")
    try:
        with socket.create_connection((name.strip("[]"), int(port)), _REACH_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_HTTP2_GREETING)
            if connection.recv(4)[3:] == _HTTP2_SETTINGS:
                return
            reason = "something else listens there"
    except OSError as error:
        reason = error.strerror or str(error)
    raise UsageError(f"ray_address must be that of a running Ray cluster, got {address}: {reason}")


def share_cluster(workers: int, manifest: Manifest) -> WorkerShare:
    """Divides the cluster's cores, or the accelerators that the artefact needs, among workers.

    Raises:
      UsageError: if it has too few.
    """
    import ray  # pyright: ignore[reportMissingImports]

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if workers > sum(cores):
        raise UsageError(f"workers must be at most the {sum(cores)} cores of the cluster, got {workers}")
    num_cpus = next(count for count in range(max(cores), 0, -1) if sum(c // count for c in cores) >= workers)
    stated = manifest.fingerprint.get("CPU threads")
    is_restricted = manifest.platform == "cpu" and isinstance(stated, int) and stated <= num_cpus
    if manifest.platform != "gpu":
        return WorkerShare(num_cpus, 0, num_cpus if is_restricted else 0)
    per_worker, gpus = manifest.mesh.num_devices, [int(node.get("GPU", 0)) for node in nodes]
    if sum(count // per_worker for count in gpus) >= workers:
        return WorkerShare(num_cpus, per_worker, 0)
    if per_worker > 1 or not sum(gpus):
        raise UsageError(
            f"workers must have {per_worker} of the cluster's {sum(gpus)} GPUs each, got {workers} workers"
        )
    on_each = next(count for count in range(1, workers + 1) if sum(gpus) * count >= workers)
    return WorkerShare(num_cpus, 1 / on_each, 0)
