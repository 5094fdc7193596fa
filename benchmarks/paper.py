"""Runs the paper's grid with partitions intra_sample and auto, and rewrites the results in docs/paper.md.

    python benchmarks/paper.py --images FOLDER

Both are sweeps in runs/paper-PARTITION, which the same command resumes. The script copies their figures to docs/paper/
and writes the comparison with the paper's findings, the ranking, machine and command between the markers of
docs/paper.md.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from absl import app, flags

from benchmarks.findings import findings
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing, rank
from cambrian.commands.sweep.result import RESULTS, ResultLog
from cambrian.commands.sweep.tables import markdown

_IMAGES = flags.DEFINE_string("images", None, "Folder of images.", required=True)
_PARTITIONS = flags.DEFINE_list("partitions", ["intra_sample", "auto"], "Partitions, each a sweep.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs per configuration.", lower_bound=1)
_NUM_IMAGES = flags.DEFINE_integer("num_images", 512, "Images per run.")
_CONFIG = flags.DEFINE_string("config", "configs/cambricon_grid.py", "Config file of the grid.")
_DOCUMENT = flags.DEFINE_string("document", "docs/paper.md", "Document with the markers.")
_ROOT = Path(__file__).parent.parent
_PICTURES = {"time_against_threads": "Time against host threads", "throughput": "Throughput"}


def sweep(partition: str) -> Path:
    """Runs or resumes the sweep and returns its directory."""
    directory = Path("runs") / f"paper-{partition}"
    command = [sys.executable, "main.py", "--config", _CONFIG.value, "--partition", partition]
    command += ["--data", _IMAGES.value, "--num_images", str(_NUM_IMAGES.value)]
    command += ["--repeats", str(_REPEATS.value), "--output_dir", str(directory)]
    subprocess.run(command, check=True, cwd=_ROOT)
    return _ROOT / directory


def section(partition: str, directory: Path, document: Path) -> str:
    """Returns the text between two markers; copies the figures to a folder beside the document."""
    pictures = document.with_suffix("")
    pictures.mkdir(exist_ok=True)
    text = ""
    for name, caption in _PICTURES.items():
        copied = pictures / f"{name}_{partition}.svg"
        shutil.copyfile(directory / "figures" / f"{name}.svg", copied)
        text += f"![{caption}, partition {partition}]({pictures.name}/{copied.name})\n\n"
    made = json.loads((directory / "sweep.json").read_text())
    facts = made["environment"]
    machine = ", ".join(f"{name} {facts[name]}" for name in ("processor", "cores", "memory", "jax"))
    found = findings(*_ranked(directory))
    compared = markdown(("the paper", "here"), [(finding.paper, finding.here) for finding in found])
    ranking = (directory / "ranking.md").read_text()
    command = made["command"].replace(_IMAGES.value, "FOLDER")
    return f"{text}{compared}\nMeasured by `{command}` on {machine}:\n\n{ranking}"


def _ranked(directory: Path) -> tuple[Grid, list[Standing]]:
    results = ResultLog(directory / RESULTS).results
    flags_of = [result.trial.cell.flags for result in results]
    grid = Grid.of({flag: list(dict.fromkeys(cell[flag] for cell in flags_of)) for flag in flags_of[0]})
    return grid, rank(grid, results, Objective(), {}, {})


def measure(_: list[str]) -> None:
    document = _ROOT / _DOCUMENT.value
    for partition in _PARTITIONS.value:
        made = section(partition, sweep(partition), document)
        marked = re.compile(rf"(<!-- {partition} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = marked.subn(lambda match, made=made: match[1] + made + match[2], document.read_text())
        if count != 1:
            raise ValueError(f"{document} must hold the marker <!-- {partition} --> once, got {count}")
        document.write_text(text)
        print(f"partition {partition} written to {document}")


if __name__ == "__main__":
    app.run(measure)
