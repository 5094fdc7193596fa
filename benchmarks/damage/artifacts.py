"""Damaged artefacts: a place in any file or the manifest, half of the cases with digests that fit.

Digests that fit are what an attacker would make. *Right* is an artefact whose probe's outputs agree with the original
reference.
"""

import dataclasses
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.damage.part import mutate

_CHILD_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Artifacts:
    hung_after_s: float = 90.0

    def prepare(self, folder: Path) -> None:
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

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        import cambrian
        from cambrian.engine.artifact import quarantine
        from cambrian.engine.runtime.parity import compare

        quarantine.TIME_LIMIT_S = _CHILD_LIMIT_S
        probe = np.load(folder / "probe.npz")
        with tempfile.TemporaryDirectory() as directory:
            artifact = Path(shutil.copytree(folder / "artifact", Path(directory) / "artifact"))
            tell(_damage(artifact, chance))
            try:
                executable = cambrian.load(artifact, signing_key=folder / "key")
            except (cambrian.UsageError, cambrian.ParityError, cambrian.OutOfMemory):
                return "refused"
            parity = compare(executable(probe["inputs"]), probe["outputs"])
            return "right" if parity.max_relative_error <= 1e-4 else "lost"


def _damage(artifact: Path, chance: random.Random) -> str:
    names = sorted(path.name for path in artifact.iterdir())
    name, fits = chance.choice(names), chance.random() < 0.5
    others = [(artifact / other).read_bytes() for other in names if other != name]
    what, data = mutate((artifact / name).read_bytes(), chance, others=others)
    (artifact / name).write_bytes(data)
    if fits and name != "manifest.json":
        _make_fit(artifact)
    return f"{what} of {name}, {'fitting' if fits else 'other'} digest"


def _make_fit(artifact: Path) -> None:
    from cambrian.engine.artifact.manifest import FileRecord

    manifest = artifact / "manifest.json"
    values = json.loads(manifest.read_bytes())
    for name in values["files"]:
        record = FileRecord.of((artifact / name).read_bytes())
        values["files"][name] = {"sha256": record.sha256, "num_bytes": record.num_bytes}
    manifest.write_text(json.dumps(values))
