"""The command of a sweep: lists, builds or runs its configurations."""

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from cambrian.commands.configuration import parse_bytes
from cambrian.commands.console import counted, print_note, show_table
from cambrian.commands.flags import Flags
from cambrian.commands.sweep.display import Display
from cambrian.commands.sweep.process import STDERR, STDOUT, run_process
from cambrian.commands.sweep.result import BUILD, OK, Trial
from cambrian.commands.sweep.setup import sweep_of_flags
from cambrian.commands.sweep.sweep import Sweep, halving_search, run_sweep
from cambrian.commands.sweep.text import number
from cambrian.commands.sweep.verdict import judge
from cambrian.commands.sweep.write_results import write_results


def sweep_command(flags: Flags, program: Sequence[str]) -> int:
    """Runs the sweep that flags describe, see `sweep_of_flags`.

    Returns:
      The exit code: 0 if at least one configuration succeeded (in mode compile: if all were built), else 1.

    Raises:
      UsageError, KeyboardInterrupt, OSError: as `sweep_of_flags` and `run_sweep`.
    """
    sweep = sweep_of_flags(flags, program)
    if flags["dry_run"]:
        _list(sweep, flags["device_memory_limit"])
        return 0
    if flags["mode"] == "compile":
        return 0 if _build(sweep) else 1
    try:
        outcome = run_sweep(sweep, Display(sweep.objective))
    except KeyboardInterrupt:
        again = "the same command without --fresh" if sweep.fresh else "the same command"
        print(f"finished results are in {sweep.path}; {again} resumes", file=sys.stderr)
        raise
    return 0 if write_results(sweep, outcome) else 1


def _list(sweep: Sweep, limit: str) -> None:
    predicted = any(sweep.predictions.values())
    headers = ("ms a launch", "images a launch", "images/s", "MiB a device") if predicted else ()
    table = Table("configuration", *headers, "", box=None)
    for column in table.columns[1:-1]:
        column.justify = "right"
    search = halving_search(sweep) if sweep.search == "auto" else None
    cells = sweep.grid.cells if search is None else (*search.candidates(), *sweep.refused)
    for cell in cells:
        prediction = sweep.predictions.get(cell)
        if prediction is None:
            remark = f"refused: {sweep.refused[cell]}" if cell in sweep.refused else "no prediction"
            table.add_row(sweep.grid.name(cell), *("" for _ in headers), remark)
            continue
        over = bool(limit) and prediction.bytes_per_device > parse_bytes(limit)
        table.add_row(
            sweep.grid.name(cell),
            number(prediction.launch_ms),
            str(prediction.batch_size),
            number(1e3 / prediction.ms_per_image),
            number(prediction.bytes_per_device / 2**20),
            f"above the limit of {limit}" if over else "",
        )
    show_table(table, width=160)
    executables = len({cell.executable for cell in sweep.predictions})
    configurations = counted(len(sweep.grid.cells), "configuration")
    print(
        f"{configurations}, {counted(executables, 'executable')}{', predicted' if predicted else ''}; nothing was run"
    )
    if search is not None:
        print(
            f"the search starts with the first; it leaves out {len(search.pruned())} that are predicted to be too slow"
        )


def _build(sweep: Sweep) -> bool:
    """Builds each executable once and prints its artefact's path, as `--mode compile` does for one."""
    cells = {cell.executable: cell for cell in reversed(sweep.grid.cells) if cell not in sweep.refused}
    all_built = not sweep.refused
    for cell, reason in sweep.refused.items():
        print_note(f"{sweep.grid.name(cell)} refused: {reason}")
    for cell in reversed(cells.values()):
        assert sweep.build_command is not None
        with tempfile.TemporaryDirectory() as folder:
            ended = run_process(sweep.build_command(cell), Path(folder), timeout_s=sweep.timeout_s, owner="")
            result = judge(Trial(cell, BUILD), ended, Path(folder), sweep.timeout_s)
            said = (Path(folder) / STDERR).read_text(errors="replace")
            sys.stderr.write(re.sub("^note: ", f"note: {sweep.grid.name(cell)}: ", said, flags=re.MULTILINE))
            print((Path(folder) / STDOUT).read_text(), end="", flush=True)
        if result.status != OK:
            all_built = False
            print_note(f"{sweep.grid.name(cell)} not built: {result.reason}")
    return all_built
