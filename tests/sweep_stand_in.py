"""A sweep whose runs are a shell script of milliseconds; as a script, one that is killed again and again.

python sweep_stand_in.py FOLDER KILLS: runs the sweep in forked processes, of which the first KILLS are killed at random
moments, and prints how many of them the kill has met at work.
"""

import contextlib
import io
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cambrian.commands.sweep.display import Display
from cambrian.commands.sweep.grid import Cell, Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.sweep import Outcome, Sweep, run_sweep

# Arguments: output folder, images, then the flags' values. It notes that it ran, and reports a speed that depends on
# its mesh and threads alone.
SCRIPT = """
out=$1; mesh=$2; threads=$3
echo "$mesh $threads" >> "$RAN"
speed=$((1000 / (${mesh%x*} + threads)))
echo "{\\"status\\": \\"ok\\", \\"images_per_second\\": $speed, \\"wall_ms\\": $((512000 / speed)), \
\\"latency_ms_p99\\": $threads, \\"num_images\\": 512}" > "$out/report.json"
"""
ENVIRONMENT = {"processor": "stand-in"}


def make_grid(**axes: tuple[Any, ...]) -> Grid:
    single = {
        "mesh": ("1x2",),
        "threads": (2,),
        "cards": (1,),
        "batch_size": (0,),
        "precision": ("auto",),
        "partition": ("auto",),
        "execution": ("offline",),
        "platform": ("auto",),
        "image_size": (0,),
        "num_images": (0,),
    }
    return Grid.of(single | axes)


def make_sweep(path: Path, grid: Grid, script: str = SCRIPT, **changes: Any) -> Sweep:
    """A sweep that runs `script` by sh with output folder, mesh and threads; builds are not run."""

    def run_command(cell: Cell, num_images: int, output_dir: Path) -> list[str]:
        return ["sh", "-c", script, "sh", str(output_dir), cell["mesh"], str(cell["threads"]), str(num_images)]

    os.environ["RAN"] = str(path.parent / "ran.txt")
    options: dict[str, Any] = {
        "identity": {"command": "python main.py --mesh 1x2", "model": {}, "environment": ENVIRONMENT},
        "build_command": None,
        "resume": "python main.py --mesh 1x2",
        "answer": lambda cell: f"python main.py --mesh {cell['mesh']} --threads {cell['threads']}",
        "refused": {},
        "predictions": {},
        "num_images": dict.fromkeys(grid.cells, 512),
        "objective": Objective(),
    }
    return Sweep(grid=grid, path=path, run_command=run_command, **options | changes)


def run(sweep: Sweep) -> Outcome:
    return run_sweep(sweep, Display(sweep.objective))


def counted(results: Any) -> dict[Any, Any]:
    """Trial → what must be equal in any order and however often the sweep was cut short."""
    return {result.trial: (result.status, result.reason, sorted(result.report.items())) for result in results}


def ran(sweep: Sweep) -> Mapping[str, int]:
    """How often the script has run, by mesh and threads."""
    lines = Path(os.environ["RAN"]).read_text().splitlines()
    return {line: lines.count(line) for line in lines}


KILLED_GRID = make_grid(mesh=("1x2", "2x1", "2x2", "4x1"), threads=(1, 2, 3, 4, 5))
KILLED_REPEATS = 5


def _run_and_kill(folder: Path, kills: int) -> None:
    chance = random.Random(7)
    met = 0
    for attempt in range(kills + 1):
        child = os.fork()
        if child == 0:
            with contextlib.redirect_stdout(io.StringIO()):
                run(make_sweep(folder, KILLED_GRID, repeats=KILLED_REPEATS))
            os._exit(0)
        if attempt < kills:
            time.sleep(chance.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        met += os.WIFSIGNALED(status)
    print(met)


if __name__ == "__main__":
    _run_and_kill(Path(sys.argv[1]), int(sys.argv[2]))
