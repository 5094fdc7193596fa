"""Damages what Cambrian reads, and kills what it does, one case at a time, and counts what becomes of it.

    python benchmarks/faults.py --parts artifacts --parts images --parts weights --cases 1000
    python benchmarks/faults.py --parts kill_build --parts kill_run --parts kill_sweep --parts kill_training --cases 25
    python benchmarks/faults.py --parts kill_batch --cases 10  # needs the extra ray
    ray start --head && python benchmarks/faults.py --parts kill_batch_on_cluster --cases 10

A case is *right* if its results are whole, *refused* if it ends with an error that is promised, *lost* if results are
wrong or missing, *crashed* if the process ends or another error is raised, and *hung* if it takes longer than its
limits. Each module of `benchmarks/damage` says what right means there.
"""

import collections
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # command.py runs main.py in folders of its own

from absl import app, flags

from benchmarks.damage.artifacts import Artifacts
from benchmarks.damage.card_kills import CardKill
from benchmarks.damage.disk_full import DiskFull
from benchmarks.damage.images import Images
from benchmarks.damage.jobs import KINDS, OF_RAY
from benchmarks.damage.kills import Kill
from benchmarks.damage.memory_limit import MemoryLimit
from benchmarks.damage.part import OUTCOMES, Part
from benchmarks.damage.weights import Weights
from benchmarks.damage.workers import run_cases
from benchmarks.tables import make_table, print_table

_ALL: dict[str, Part] = {
    "artifacts": Artifacts(),
    "images": Images(),
    "weights": Weights(),
    **{f"kill_{kind}": Kill(kind) for kind in (*KINDS, *OF_RAY)},
    "kill_card": CardKill(),
    **{f"disk_full_{kind}": DiskFull(kind) for kind in KINDS},
    **{f"memory_limit_{kind}": MemoryLimit(kind) for kind in KINDS},
}
_PARTS = flags.DEFINE_multi_enum("parts", ["artifacts"], list(_ALL), "What is damaged.")
_CASES = flags.DEFINE_integer("cases", 1000, "Number of cases of each part.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the damage.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that run cases.", lower_bound=1)


def measure(_: list[str]) -> None:
    table = make_table("", ("part",), ("cases", *OUTCOMES))
    for name in _PARTS.value:
        outcomes = run_cases(_ALL[name], _CASES.value, _SEED.value, _WORKERS.value)
        for outcome, what in outcomes:
            if outcome in ("lost", "crashed", "hung"):
                print(f"{outcome}: {name}, {what}", flush=True)
        counts = collections.Counter(outcome for outcome, _ in outcomes)
        table.add_row(name, str(len(outcomes)), *(str(counts[outcome]) for outcome in OUTCOMES))
    print_table(table)


if __name__ == "__main__":
    app.run(measure)
