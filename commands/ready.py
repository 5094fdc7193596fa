"""A configuration's executable, ready to run: in this process, on cards, or on a mesh over several processes."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

from cambrian.commands.configuration import Configuration
from cambrian.commands.executables import Made, make_executable
from cambrian.commands.shared_mesh import joined, make_shared
from cambrian.engine.artifact.layout import read_artifact
from cambrian.engine.cards import Cards
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.memory import (
    check_device_memory,
    loaded_host_memory_bytes,
    predicted_host_memory_bytes,
)
from cambrian.sharding.host import Share, divide_host, return_freed_memory


@dataclasses.dataclass(frozen=True, slots=True)
class StartCosts:
    """What an executable took to make ready, and what it will take to run.

    Attributes:
      build_ms: None where nothing was built.
      load_ms: of loading, in which several cards load at once.
      device_memory_bytes: predicted for each device.
      host_memory_bytes: predicted for the process, or for all cards together.
    """

    build_ms: float | None
    load_ms: float
    device_memory_bytes: int
    host_memory_bytes: int


@contextlib.contextmanager
def ready(configuration: Configuration) -> Iterator[tuple[Executable | Cards, StartCosts]]:
    """Makes the configuration's executable, and checks that its launches fit the memory; ends its cards on exit.

    Where several processes share the mesh, joins them first, and tells them on exit how this one ends.

    Raises:
      UsageError: if the host has fewer cores or GPUs than the cards need, or as `make_executable`.
      OutOfMemory: if the launches don't fit.
      CardsEnded: if the processes of all cards died.
      ProcessEnded: if a process that shares the mesh ended.
      DamagedArtifact, ParityError: as `make_executable`.
    """
    if configuration.num_processes > 1:
        with joined(configuration) as group:
            yield _with_costs(make_shared(configuration, group), configuration)
    elif configuration.cards == 1:
        yield _make(configuration, defer_probe=True)
    else:
        cards, costs = _start_cards(configuration)
        with cards:
            yield cards, costs


def _make(
    configuration: Configuration, defer_probe: bool = False, may_build: bool = True, cards: int = 1
) -> tuple[Executable, StartCosts]:
    return_freed_memory(_mesh_of(configuration)[0])
    return _with_costs(make_executable(configuration, defer_probe, may_build), configuration, cards)


def _with_costs(made: Made, configuration: Configuration, cards: int = 1) -> tuple[Executable, StartCosts]:
    threads = configuration.threads
    return made.executable, StartCosts(
        made.build_ms,
        made.load_ms,
        check_device_memory(made.executable, threads, configuration.device_memory_limit_bytes, cards),
        predicted_host_memory_bytes(made.executable, threads, loaded_host_memory_bytes(made.executable)),
    )


def _start_cards(configuration: Configuration) -> tuple[Cards, StartCosts]:
    start = time.perf_counter()
    card, shares, notes = divided(configuration)
    make = functools.partial(_make, card, cards=configuration.cards)
    load, build = (functools.partial(make, may_build=may_build) for may_build in (False, True))
    cards, costs = Cards.start(shares, load, None if configuration.artifact else build, notes)
    build_ms = max((cost.build_ms for cost in costs if cost.build_ms is not None), default=None)
    return cards, StartCosts(
        build_ms,
        1e3 * (time.perf_counter() - start) - (build_ms or 0.0),
        max(cost.device_memory_bytes for cost in costs),
        sum(cost.host_memory_bytes for cost in costs),
    )


def divided(configuration: Configuration) -> tuple[Configuration, list[Share], list[str]]:
    """Returns what each card runs, its share of the host, and notes.

    Raises:
      UsageError: if the host has fewer cores or GPUs than the cards need.
    """
    platform, shares, notes = divide_host(configuration.cards, *_mesh_of(configuration))
    return dataclasses.replace(configuration.of_a_card, platform=platform), shares, notes


def _mesh_of(configuration: Configuration) -> tuple[int, str]:
    """The number of devices of the mesh, and the platform that is asked for."""
    if configuration.artifact:
        manifest, _ = read_artifact(Path(configuration.artifact), None)
        return manifest.mesh.num_devices, manifest.platform
    return configuration.mesh.num_devices, configuration.platform
