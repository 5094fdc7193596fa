"""The manifest: what an artefact holds, readable by people, and sufficient to verify and rebuild it.

The HMAC-SHA256 stands in the file itself, over the canonical JSON of everything else, so that one atomic replacement
of the file changes both. The manifest states the digest of every other file; the HMAC thereby covers them all.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from cambrian.engine.artifact.fingerprint import Fingerprint
from cambrian.engine.artifact.signing import sign, verify
from cambrian.engine.errors import DamagedArtifact
from cambrian.engine.runtime.executable import Analysis
from cambrian.sharding import DATA_AXIS, MODEL_AXIS, MeshShape, TensorSpec

MANIFEST = "manifest.json"
FORMAT_VERSION = 3
_HMAC = "hmac_sha256"


@dataclasses.dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of the artefact must be: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, data: bytes) -> "FileRecord":
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json, less format version and HMAC.

    Attributes:
      name: of the model.
      cache_key: the key under which a cache keeps the artefact; empty outside of one.
      created: time in UTC, ISO 8601.
      mesh, platform: what it runs on.
      plan: layer name → partition, lowering and micro_batch; empty for a user's function.
      rules: (pattern, partition spec) pairs of a user's function, as text.
      custom_calls: targets that the program calls, which are internal to the jaxlib and CPU that it was built with.
      metadata: facts of the program: preprocessing, labels, weights.
      notes: in words, where the program differs from what was asked, or the artefact lacks a part.
      versions: package → version, of the process that built the artefact.
      fingerprint: what the native executable depends on.
      analysis: memory and arithmetic of the executable, per device; None where only the load compiles one.
      tolerance: largest relative error of the probe's outputs.
      files: file name → digest and size, of every other file.
    """

    name: str
    cache_key: str
    created: str
    mesh: MeshShape
    platform: str
    input_spec: TensorSpec
    output_spec: TensorSpec
    plan: dict[str, dict[str, str | int]]
    rules: tuple[tuple[str, str], ...]
    custom_calls: tuple[str, ...]
    metadata: dict[str, Any]
    notes: tuple[str, ...]
    versions: dict[str, str]
    fingerprint: Fingerprint
    analysis: Analysis | None
    tolerance: float
    files: dict[str, FileRecord]
    param_specs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON-compatible values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "format_version": FORMAT_VERSION,
            **fields,
            "mesh": str(self.mesh),
            "input_spec": _spec_to_json(self.input_spec),
            "output_spec": _spec_to_json(self.output_spec),
            "analysis": self.analysis and dataclasses.asdict(self.analysis),
            "files": {name: dataclasses.asdict(record) for name, record in self.files.items()},
            "param_specs": [_spec_to_json(spec) for spec in self.param_specs],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
          ValueError: if the format version is another, or a field is missing, unknown or of the wrong form.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format version {FORMAT_VERSION} is needed, got {values.get('format_version')!r}")
        known = {field.name for field in dataclasses.fields(cls)} | {"format_version"}
        if set(values) != known:
            raise ValueError(
                f"missing fields {sorted(known - set(values))}, unknown fields {sorted(set(values) - known)}"
            )
        fields = {name: value for name, value in values.items() if name != "format_version"}
        try:
            mesh = MeshShape.parse(values["mesh"])
            return cls(
                **fields
                | {
                    "mesh": mesh,
                    "input_spec": _spec_from_json(values["input_spec"], mesh),
                    "output_spec": _spec_from_json(values["output_spec"], mesh),
                    "rules": tuple((pattern, spec) for pattern, spec in values["rules"]),
                    "custom_calls": tuple(values["custom_calls"]),
                    "metadata": dict(values["metadata"]),
                    "notes": tuple(values["notes"]),
                    "fingerprint": dict(values["fingerprint"]),
                    "analysis": None if values["analysis"] is None else Analysis(**values["analysis"]),
                    "tolerance": float(values["tolerance"]),
                    "files": {name: FileRecord(**record) for name, record in values["files"].items()},
                    "param_specs": tuple(_spec_from_json(spec, mesh) for spec in values["param_specs"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a field has the wrong form ({type(error).__name__}: {error})") from None

    def signed(self, key: bytes) -> bytes:
        """The content of manifest.json, with its HMAC under `key`."""
        values = self.to_json()
        values[_HMAC] = sign(canonical_json(values), key)
        return _readable_json(values).encode()


def read_manifest(artifact: Path, key: bytes | None) -> tuple[Manifest, bool]:
    """Reads manifest.json of an artefact's directory, once.

    Returns:
      The manifest, and whether its HMAC verifies with `key`.

    Raises:
      DamagedArtifact: naming the file and what it lacks.
    """
    path = artifact / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError(f"a JSON object is needed, got {type(values).__name__}")
        signature = values.pop(_HMAC, None)
        signed = canonical_json(values)  # refuses numbers that aren't finite
        is_signed = key is not None and isinstance(signature, str) and verify(signed, key, signature)
        manifest = Manifest.from_json(values)
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{path} must be a readable manifest: {error}") from None
    return manifest, is_signed


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _readable_json(value: Any) -> str:
    # Lists of plain values stand on one line each. Raw line breaks are never inside of strings.
    return re.sub(
        r"\[\n([^\[\]{}]*)\n *\]",
        lambda match: "[" + " ".join(line.strip() for line in match[1].split("\n")) + "]",
        json.dumps(value, indent=1),
    )


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "partition_spec": [list(entry) if isinstance(entry, tuple) else entry for entry in spec.partition_spec],
    }


def _spec_from_json(values: Mapping[str, Any], mesh: MeshShape) -> TensorSpec:
    name, shape, dtype = values["name"], tuple(values["shape"]), values["dtype"]
    if not isinstance(name, str):
        raise ValueError(f"a tensor's name must be text, got {name!r}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name} needs a shape of whole numbers, got {values['shape']}")
    if not isinstance(dtype, str) or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        raise ValueError(f"{name} needs a dtype of numbers or bool, got {dtype!r}")
    partition_spec = P(*(tuple(entry) if isinstance(entry, list) else entry for entry in values["partition_spec"]))
    if not _fits(partition_spec, shape, mesh):
        raise ValueError(
            f"{name} of shape {shape} needs a partition spec that fits it and {mesh}, got {partition_spec}"
        )
    return TensorSpec(name, shape, dtype, partition_spec)


def _fits(partition_spec: P, shape: tuple[int, ...], mesh: MeshShape) -> bool:
    """Whether the spec cuts dimensions that there are, by known axes, each at most once, into equal parts."""
    sizes = {MODEL_AXIS: mesh.model, DATA_AXIS: mesh.data}
    cuts = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in partition_spec]
    axes = [axis for cut in cuts for axis in cut]
    return (
        len(cuts) <= len(shape)
        and len(axes) == len(set(axes))
        and sizes.keys() >= set(axes)
        and all(size % math.prod(sizes[axis] for axis in cut) == 0 for size, cut in zip(shape, cuts, strict=False))
    )
