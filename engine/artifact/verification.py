"""The note in an artefact that this machine has passed the whole probe: signed, and bound to all that decided it.

A start that finds it compares a part of the probe, in the launch of its first inputs (see `DeferredProbe`). The note
holds for one manifest, whose digests cover all files, and one fingerprint; and, where the program is compiled at each
start, for one result of XLA's compiler. It keeps the parity of the whole probe.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import jax

from cambrian.engine.artifact.fingerprint import Fingerprint
from cambrian.engine.artifact.manifest import Manifest, canonical_json
from cambrian.engine.artifact.signing import sign, verify
from cambrian.engine.runtime.parity import Parity
from cambrian.sharding.host.files import open_regular, replace_file

VERIFICATION = "verification.json"
_HMAC = "hmac_sha256"
_MAX_BYTES = 2**16


def facts_of(manifest: Manifest, here: Fingerprint, kind: str, compiled: jax.stages.Compiled) -> dict[str, str]:
    """Returns what the note is bound to; `kind` is native or portable."""
    code = _instructions(compiled) if kind == "portable" else None
    parts = {"manifest": manifest.to_json(), "fingerprint": here, "compiled": code}
    return {name: hashlib.sha256(canonical_json(part)).hexdigest() for name, part in parts.items()}


def _instructions(compiled: jax.stages.Compiled) -> list[str]:
    """Returns the lines of the optimised HLO, less what names the source code."""
    text = re.sub(r", metadata=\{[^{}]*\}", "", compiled.as_text() or "")
    return [line for line in text.splitlines() if line.startswith(("HloModule", "ENTRY", "%", " ", "}"))]


def read_note(path: Path, facts: dict[str, str], key: bytes) -> Parity | None:
    """Returns the parity of the whole probe, if the artefact holds a note of exactly these facts, signed with `key`."""
    # Whatever is wrong with a note, the whole probe is run instead.
    with contextlib.suppress(Exception), open_regular(path / VERIFICATION) as file:
        note = json.loads(file.read(_MAX_BYTES))
        signature = note.pop(_HMAC)
        if note["facts"] == facts and verify(canonical_json(note), key, signature):
            return Parity(**note["parity"])
    return None


def write_note(path: Path, facts: dict[str, str], parity: Parity, key: bytes) -> None:
    """Writes the note, where the directory can be written; without it each start runs the whole probe."""
    note = {"facts": facts, "parity": dataclasses.asdict(parity)}
    signed = note | {_HMAC: sign(canonical_json(note), key)}
    with contextlib.suppress(OSError):
        replace_file(path / VERIFICATION, json.dumps(signed, indent=1).encode())
