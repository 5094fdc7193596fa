"""Damages what Cambrian reads, one case at a time, and counts what becomes of it.

    python benchmarks/faults.py --parts artifacts --cases 1000

Artefacts: a bit, byte, length, truncation or swap of files, in every file and in the manifest, half of the cases with
digests that fit, as an attacker would make them. A case is *right* if the artefact loads and its probe's outputs agree
with the original reference, *refused* if `load` raises what its docstring promises, *lost* if it loads and its outputs
are wrong, *crashed* if the process ends or another error is raised, and *hung* if it takes longer than its limits.
"""

import collections
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from absl import app, flags

from benchmarks.output import make_table, print_table

_PARTS = flags.DEFINE_multi_enum("parts", ["artifacts"], ["artifacts"], "What is damaged.")
_CASES = flags.DEFINE_integer("cases", 1000, "Number of cases of each part.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the damage.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that load.", lower_bound=1)
_OUTCOMES = ("right", "refused", "lost", "crashed", "hung")
_CHILD_LIMIT_S, _HUNG_AFTER_S = 30.0, 90.0


def save_original(folder: Path) -> None:
    """Saves a small network on mesh 2x4, its key, and the probe's reference outputs."""
    import jax
    from jax.sharding import PartitionSpec as P

    import cambrian
    from cambrian.engine.runtime.parity import probe_inputs

    chance = np.random.default_rng(0)
    params = {name: chance.standard_normal((32, 32), np.float32) / 8 for name in ("first", "second")}

    def network(params, inputs):
        return jax.nn.relu(inputs @ params["first"]) @ params["second"]

    spec, rules = jax.ShapeDtypeStruct((32,), "float32"), [("first", P(None, "model")), (".*", P("model"))]
    executable = cambrian.compile(
        network, params, spec, mesh="2x4", batch_size=8, rules=rules, name="network", platform="cpu"
    )
    executable.save(folder / "artifact", signing_key=folder / "key")
    assert executable.program is not None
    inputs = probe_inputs(executable.input_spec)
    np.savez(folder / "probe.npz", inputs=inputs, outputs=executable.program.reference(inputs))


def damage(artifact: Path, chance: random.Random) -> str:
    """Damages one file of an artefact; returns what was done."""
    names = sorted(path.name for path in artifact.iterdir())
    name, fits = chance.choice(names), chance.random() < 0.5
    kind = chance.choice(("bit", "byte", "length", "truncation", "swap"))
    path = artifact / name
    data = bytearray(path.read_bytes())
    position = chance.randrange(len(data))
    match kind:
        case "bit":
            data[position] ^= 1 << chance.randrange(8)
        case "byte":
            data[position] = chance.randrange(256)
        case "length" if chance.random() < 0.5:
            del data[position : position + chance.randint(1, 64)]
        case "length":
            data[position:position] = chance.randbytes(chance.randint(1, 64))
        case "truncation":
            del data[position:]
        case "swap":
            data = (artifact / chance.choice([other for other in names if other != name])).read_bytes()
    path.write_bytes(data)
    if fits and name != "manifest.json":
        _make_fit(artifact)
    return f"{kind} of {name}, {'fitting' if fits else 'other'} digest"


def _make_fit(artifact: Path) -> None:
    from cambrian.engine.artifact.manifest import FileRecord

    manifest = artifact / "manifest.json"
    values = json.loads(manifest.read_bytes())
    for name in values["files"]:
        record = FileRecord.of((artifact / name).read_bytes())
        values["files"][name] = {"sha256": record.sha256, "num_bytes": record.num_bytes}
    manifest.write_text(json.dumps(values))


def load_cases(connection: Connection, folder: Path, seed: int) -> None:
    """Loads the cases whose numbers arrive, in a process of its own, and sends the outcome of each."""
    import cambrian
    from cambrian.engine.artifact import quarantine
    from cambrian.engine.runtime.parity import compare

    quarantine.TIME_LIMIT_S = _CHILD_LIMIT_S
    probe = np.load(folder / "probe.npz")
    while (number := connection.recv()) is not None:
        with tempfile.TemporaryDirectory() as directory:
            artifact = Path(shutil.copytree(folder / "artifact", Path(directory) / "artifact"))
            what = damage(artifact, random.Random(f"{seed} {number}"))
            connection.send(what)
            try:
                executable = cambrian.load(artifact, signing_key=folder / "key")
                parity = compare(executable(probe["inputs"]), probe["outputs"])
                outcome = "right" if parity.max_relative_error <= 1e-4 else "lost"
            except (cambrian.UsageError, cambrian.ParityError, cambrian.OutOfMemory):
                outcome = "refused"
            except Exception as error:
                outcome, what = "crashed", f"{what}: {type(error).__name__}: {error}"
        connection.send((outcome, what))


class Worker:
    """A process that loads cases; replaced when it crashes or hangs."""

    def __init__(self, folder: Path, seed: int):
        self._arguments = (folder, seed)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=load_cases, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()

    def outcome(self, number: int) -> tuple[str, str]:
        """Returns the outcome of a case, and what was done to it."""
        what = f"case {number}"
        try:
            self._connection.send(number)
            for _ in range(2):
                if not self._connection.poll(_HUNG_AFTER_S):
                    self._replace()
                    return "hung", what
                message = self._connection.recv()
                if isinstance(message, tuple):
                    return message
                what = message
        except (EOFError, OSError):
            self._replace()
        return "crashed", what

    def _replace(self) -> None:
        self._process.kill()
        self._process.join()
        self._start()

    def stop(self) -> None:
        self._connection.send(None)
        self._process.join()


def artifacts(num_cases: int, seed: int, num_workers: int) -> collections.Counter[str]:
    """Returns how many damaged artefacts came to which end."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        saving = multiprocessing.get_context("spawn").Process(target=save_original, args=(folder,))
        saving.start()
        saving.join()
        workers = [Worker(folder, seed) for _ in range(num_workers)]

        def share(index: int) -> list[tuple[str, str]]:
            return [workers[index].outcome(number) for number in range(index, num_cases, num_workers)]

        with ThreadPoolExecutor(num_workers) as pool:
            outcomes = [outcome for part in pool.map(share, range(num_workers)) for outcome in part]
        for worker in workers:
            worker.stop()
    for outcome, what in outcomes:
        if outcome in ("lost", "crashed", "hung"):
            print(f"{outcome}: {what}")
    return collections.Counter(outcome for outcome, _ in outcomes)


_RUN = {"artifacts": artifacts}


def measure(_: list[str]) -> None:
    table = make_table("", ("part",), ("cases", *_OUTCOMES))
    for part in _PARTS.value:
        counts = _RUN[part](_CASES.value, _SEED.value, _WORKERS.value)
        table.add_row(part, str(counts.total()), *(str(counts[outcome]) for outcome in _OUTCOMES))
    print_table(table)


if __name__ == "__main__":
    app.run(measure)
