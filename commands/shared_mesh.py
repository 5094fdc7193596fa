"""`--coordinator`: a configuration's executable on a mesh over several processes, of which this is one."""

import contextlib
import dataclasses
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from cambrian.commands.configuration import Configuration
from cambrian.commands.executables import Made, cache_entry, devices_of, key_path, milliseconds_since
from cambrian.commands.images import ModelImages, UnreadableImage
from cambrian.engine.artifact.cache import build_if_absent
from cambrian.engine.artifact.fingerprint import relevant_xla_flags
from cambrian.engine.artifact.layout import read_artifact
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import canonical_json
from cambrian.engine.hosts import JOIN_S, LAST_S, Group, SharedExecutable, meet
from cambrian.engine.hosts.share_artifact import content_digest, shared_artifact
from cambrian.sharding import crosses_model_axis, make_mesh
from cambrian.sharding.host import join_mesh, return_freed_memory

# What decides the program and the images; paths may differ, what they lead to is compared.
_AGREED_FLAGS = (
    *("mesh", "batch_size", "precision", "partition", "platform", "image_size", "resize"),
    *("split", "num_images", "seed", "skip_bad_images"),
)
_DIGITS = 12  # of a digest, in messages


@contextlib.contextmanager
def joined(configuration: Configuration) -> Iterator[Group]:
    """Joins the processes that share the mesh, and JAX's distributed runtime; tells the others how this one ends.

    Raises:
      UsageError: if the processes don't divide the mesh, one of them is missing, or they differ.
      ProcessEnded: if another process has ended.
    """
    artifact, mesh = "none", configuration.mesh
    if configuration.artifact:
        path = Path(configuration.artifact)
        artifact, mesh = content_digest(path)[:_DIGITS], read_artifact(path, None)[0].mesh
    processes, process_id = configuration.num_processes, configuration.process_id
    return_freed_memory(mesh.divided(processes).num_devices)
    host, port = configuration.coordinator_address
    waits_for = f"process 0 at {configuration.coordinator}" if process_id else f"{processes - 1} more at port {port}"
    print(f"process {process_id} of {processes} waits for {waits_for}", file=sys.stderr, flush=True)
    with meet((host, port), processes, process_id, JOIN_S) as group:
        group.agree(
            {"version of jax": jax.__version__, "version of jaxlib": jaxlib.version.__version__}
            | {"code of Cambrian": _code_digest()[:_DIGITS], "XLA_FLAGS": relevant_xla_flags(), "artifact": artifact}
            | {f"--{name}": str(getattr(configuration, name)) for name in _AGREED_FLAGS if not configuration.artifact}
        )
        port = group.exchange(None if process_id else _free_port(host))[0]
        try:
            join_mesh(processes, process_id, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", JOIN_S)
            yield group
        except BaseException as error:
            if process_id == 0 and jax.distributed.is_initialized():  # it aborts the others as soon as this one is gone
                group.fail(error)
                time.sleep(LAST_S)
            raise


def _code_digest() -> str:
    from cambrian.commands.program.digests import code_digest  # models, which an artefact doesn't need otherwise

    return code_digest()


def _free_port(host: str) -> int:
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family) as server:
        return server.getsockname()[1]


def make_shared(configuration: Configuration, group: Group) -> Made:
    """Makes the executable ready to launch in all processes; process 0 builds the artefact if there is none.

    Raises:
      UsageError, DamagedArtifact, ParityError: as `cambrian.engine.load`.
      ProcessEnded: if another process has ended.
    """
    start = time.perf_counter()
    with _output_on_stderr():
        shared, build_ms, path = _make(configuration, group)
    jax.distributed.shutdown()
    return Made(shared, build_ms, milliseconds_since(start) - (build_ms or 0.0), path)


@contextlib.contextmanager
def _output_on_stderr() -> Iterator[None]:
    """Sends standard output, on which Gloo prints its connections, to standard error."""
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        yield
    finally:
        os.dup2(output, sys.stdout.fileno())
        os.close(output)


def _make(configuration: Configuration, group: Group) -> tuple[SharedExecutable, float | None, Path | None]:
    build_ms, notes, key = None, [], key_path(configuration)
    if configuration.artifact:
        path = Path(configuration.artifact)
        executable = load(path, signing_key=key)
    else:
        path, devices, notes = None, *devices_of(configuration)
        # Measuring for a plan takes launches, which the other processes would have to make, too.
        configuration = dataclasses.replace(configuration, platform=devices[0].platform, calibrate_s=0.0)
        if group.process_id == 0:
            directory, name, build = cache_entry(configuration, make_mesh(configuration.mesh, devices))
            path, build_ms, rebuilt = build_if_absent(directory, name, build, key)
            notes += rebuilt
        with shared_artifact(group, path) as found:
            executable = load(found, devices=devices, signing_key=key)
    if crosses_model_axis(executable.mesh):
        notes.append("the model axis runs over several processes, which exchange activations over the network")
    shared = SharedExecutable.of(executable, group)
    return dataclasses.replace(shared, notes=(*notes, *executable.notes)), build_ms, path


def check_images(images: ModelImages, group: Group) -> None:
    """Raises UsageError unless all processes have the same images, by their number, classes and samples of them."""
    samples: list[Any] = []
    for index in sorted({0, len(images) // 2, len(images) - 1}):
        try:
            image = images[index]
            samples.append([image.name, image.label, hashlib.sha256(image.pixels.tobytes()).hexdigest()])
        except UnreadableImage as error:
            samples.append(error.name.rpartition("/")[2])
    digest = hashlib.sha256(canonical_json([images.class_names, samples])).hexdigest()
    group.agree({"number of images": len(images), "images (digest of samples)": digest[:_DIGITS]})
