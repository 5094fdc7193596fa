"""`--tune`: measures the costs that planning a configuration needs on this machine."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from cambrian import models
from cambrian.commands.configuration import Configuration
from cambrian.commands.console import progress_bar
from cambrian.commands.executables import devices_of, resolve
from cambrian.commands.model import read_model
from cambrian.commands.program.build import check_int8
from cambrian.models.costs.machine import own_table_path
from cambrian.sharding import UsageError, make_mesh
from cambrian.sharding.host import keep_freed_memory, low_cpu_latency


def tune_table(configuration: Configuration) -> None:
    """Measures missing costs; an interrupted run resumes.

    Raises:
      UsageError: if the cost table can't be written, or the platform doesn't compute in int8 as asked.
    """
    keep_freed_memory()
    devices, _ = devices_of(configuration)
    configuration = resolve(dataclasses.replace(configuration, platform=devices[0].platform))
    if configuration.precision == "int8":
        check_int8(configuration.platform)
    model = read_model(configuration)
    path = own_table_path(configuration.platform)
    print(f"measuring into the cost table {path}", file=sys.stderr, flush=True)
    try:
        with low_cpu_latency(configuration.platform):
            models.tune(
                models.read_table(path, configuration.platform),
                path,
                models.network(model.architecture, model.image_size, configuration.precision),
                make_mesh(configuration.mesh, devices),
                configuration.batch_size,
                configuration.precision,
                launches_at_once=configuration.launches_at_once,
                progress=_with_progress_bar,
            )
    except OSError as error:
        raise UsageError(f"the cost table must be writable, got {path}: {error.strerror}") from None


def _with_progress_bar(parts: list[Any]) -> Iterator[Any]:
    with progress_bar(len(parts), "measuring", unit="layers and transitions") as show_progress:
        for done, part in enumerate(parts):
            show_progress(done)
            yield part
