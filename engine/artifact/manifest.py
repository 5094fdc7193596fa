"""The manifest: what an artefact holds, readable by people, and sufficient to verify and rebuild it.

The file contains its own HMAC-SHA256, over the canonical JSON of everything else, so that one atomic replacement of the
file changes both. The manifest states the digest of every other file; the HMAC thereby covers them all.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec as P

from cambrian.engine.artifact.fingerprint import Fingerprint
from cambrian.engine.artifact.json_form import check_form
from cambrian.engine.artifact.signing import sign, verify
from cambrian.engine.errors import damage_named
from cambrian.engine.runtime.executable import Analysis
from cambrian.sharding import DATA_AXIS, MODEL_AXIS, MeshShape, Specs, TensorSpec, named_arrays
from cambrian.sharding.host.files import open_regular
from cambrian.sharding.rules import check_partition_spec

MANIFEST = "manifest.json"
FORMAT_VERSION = 3
_HMAC = "hmac_sha256"
_MAX_BYTES = 64 * 2**20  # a thousand times that of ResNet101

_Spec = dict[str, Any]
_FORMS = {
    "format_version": int,
    "name": str,
    "cache_key": str,
    "created": str,
    "mesh": str,
    "platform": str,
    "input_spec": _Spec,
    "output_spec": _Spec,
    "plan": dict[str, dict[str, str | int]],
    "rules": list[list[str]],
    "custom_calls": list[str],
    "metadata": dict[str, Any],
    "notes": list[str],
    "versions": dict[str, str],
    "fingerprint": dict[str, str | int | list[str | int]],
    "analysis": dict[str, int | float] | None,
    "tolerance": int | float,
    "files": dict[str, dict[str, str | int]],
    "param_specs": list[_Spec],
}
_ANALYSIS_FORMS = {"argument_bytes": int, "output_bytes": int, "temporary_bytes": int, "flops": int | float}
_RECORD_FORMS = {"sha256": str, "num_bytes": int}
_SPEC_FORMS = {"name": str, "shape": list[int], "dtype": str, "partition_spec": list[str | list[str] | None]}


@dataclasses.dataclass(frozen=True, slots=True)
class FileRecord:
    """The SHA-256 of a file of the artefact, in hexadecimal, and its size in bytes."""

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, data: bytes) -> "FileRecord":
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """The content of manifest.json, less format version and HMAC.

    Attributes:
      name: name of the model.
      cache_key: key under which a cache keeps the artefact; empty outside of one.
      created: time in UTC, ISO 8601.
      mesh: mesh that the program is compiled for.
      platform: cpu, gpu or tpu.
      input_spec: spec of the inputs, or pytree of specs; likewise in JSON, where dicts, lists and tuples are
        `{"dict": {…}}`, `{"list": […]}` and `{"tuple": […]}`.
      output_spec: spec of the outputs, or pytree of specs.
      plan: layer name → partition, lowering, micro_batch and precision; empty for a function that isn't rewritten.
      rules: (pattern, partition spec) pairs of a user's function, as text.
      custom_calls: targets that the program calls, internal to the jaxlib and CPU that it was built with.
      metadata: facts of the program, such as preprocessing and labels.
      notes: human-readable deviations from the request, and parts that the artefact lacks.
      versions: package → version, in the process that built the artefact.
      fingerprint: what the native executable depends on.
      analysis: memory and arithmetic of the executable, per device; None where only the load compiles one.
      tolerance: largest relative error of the probe's outputs.
      files: file name → digest and size, of every other file.
      param_specs: specs of the parameters.
    """

    name: str
    cache_key: str
    created: str
    mesh: MeshShape
    platform: str
    input_spec: Specs
    output_spec: Specs
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
        """Returns JSON-compatible values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "format_version": FORMAT_VERSION,
            **fields,
            "mesh": str(self.mesh),
            "input_spec": _specs_to_json(self.input_spec),
            "output_spec": _specs_to_json(self.output_spec),
            "analysis": self.analysis and dataclasses.asdict(self.analysis),
            "files": {name: dataclasses.asdict(record) for name, record in self.files.items()},
            "param_specs": [_spec_to_json(spec) for spec in self.param_specs],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Manifest":
        """Returns the manifest that `to_json` gave `values` of.

        Raises:
          ValueError: if the format version differs, or a field is missing, unknown or of the wrong form. Other errors
            mean values too odd to be checked one by one.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"expected format version {FORMAT_VERSION}, got {values.get('format_version')!r}")
        check_form(values, _FORMS)
        if values["tolerance"] < 0:
            raise ValueError(f"tolerance must be at least 0, got {values['tolerance']}")
        if values["platform"] not in ("cpu", "gpu", "tpu"):
            raise ValueError(f"platform must be cpu, gpu or tpu, got {values['platform']!r}")
        mesh = MeshShape.parse(values["mesh"])
        input_spec, output_spec = (_specs_from_json(values[name], mesh) for name in ("input_spec", "output_spec"))
        for name, specs in (("inputs", input_spec), ("outputs", output_spec)):
            named_arrays(name, specs)  # refuses empty structures and equal names
        fields = {name: value for name, value in values.items() if name != "format_version"}
        return cls(
            **fields
            | {
                "mesh": mesh,
                "input_spec": input_spec,
                "output_spec": output_spec,
                "rules": tuple((pattern, spec) for pattern, spec in values["rules"]),
                "custom_calls": tuple(values["custom_calls"]),
                "notes": tuple(values["notes"]),
                "analysis": values["analysis"] and _analysis_from_json(values["analysis"]),
                "tolerance": float(values["tolerance"]),
                "files": {name: _record_from_json(record) for name, record in values["files"].items()},
                "param_specs": tuple(_spec_from_json(spec, mesh) for spec in values["param_specs"]),
            }
        )

    def signed(self, key: bytes) -> bytes:
        """Returns the content of manifest.json, with its HMAC under `key`."""
        values = self.to_json()
        values[_HMAC] = sign(canonical_json(values), key)
        return _readable_json(values).encode()


def read_manifest(artifact: Path, key: bytes | None) -> tuple[Manifest, bool]:
    """Reads manifest.json of an artefact's directory, once.

    Returns:
      The manifest, and whether its HMAC verifies with `key`.

    Raises:
      DamagedArtifact: naming the file, and what it lacks.
    """
    path = artifact / MANIFEST
    with damage_named(path, "a readable manifest"):
        with open_regular(path) as file:
            if (num_bytes := file.seek(0, 2)) > _MAX_BYTES:
                raise ValueError(f"expected at most {_MAX_BYTES} bytes, got {num_bytes}")
            file.seek(0)
            values = json.loads(file.readall())
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
        signature = values.pop(_HMAC, None)
        signed = canonical_json(values)  # refuses numbers that aren't finite
        is_signed = key is not None and isinstance(signature, str) and verify(signed, key, signature)
        return Manifest.from_json(values), is_signed


def canonical_json(value: Any) -> bytes:
    """Returns the JSON text of a value that doesn't depend on the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _readable_json(value: Any) -> str:
    # One line for each list of plain values. Strings never contain raw line breaks.
    return re.sub(
        r"\[\n([^\[\]{}]*)\n *\]",
        lambda match: "[" + " ".join(line.strip() for line in match[1].split("\n")) + "]",
        json.dumps(value, indent=1),
    )


def _specs_to_json(specs: Specs) -> dict[str, Any]:
    if isinstance(specs, TensorSpec):
        return _spec_to_json(specs)
    if isinstance(specs, dict):
        return {"dict": {key: _specs_to_json(value) for key, value in specs.items()}}
    return {type(specs).__name__: [_specs_to_json(value) for value in specs]}


def _specs_from_json(values: dict[str, Any], mesh: MeshShape) -> Specs:
    match values:
        case {"dict": dict(items), **rest} if not rest:
            return {key: _specs_from_json(value, mesh) for key, value in items.items()}
        case {"list": list(items), **rest} if not rest:
            return [_specs_from_json(value, mesh) for value in items]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_specs_from_json(value, mesh) for value in items)
    return _spec_from_json(values, mesh)


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "partition_spec": [list(entry) if isinstance(entry, tuple) else entry for entry in spec.partition_spec],
    }


def _spec_from_json(values: dict[str, Any], mesh: MeshShape) -> TensorSpec:
    check_form(values, _SPEC_FORMS)
    name, shape, dtype = values["name"], tuple(values["shape"]), values["dtype"]
    if not all(size >= 0 for size in shape):
        raise ValueError(f"{name} must have a shape of whole numbers, got {shape}")
    is_numeric = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    if not is_numeric or jnp.dtype(dtype).name != dtype:
        raise ValueError(f"{name} must have a dtype of numbers or bool, got {dtype!r}")
    partition_spec = P(*(tuple(entry) if isinstance(entry, list) else entry for entry in values["partition_spec"]))
    abstract_mesh = AbstractMesh((mesh.model, mesh.data), (MODEL_AXIS, DATA_AXIS))
    check_partition_spec(name, shape, partition_spec, abstract_mesh)
    return TensorSpec(name, shape, dtype, partition_spec)


def _record_from_json(values: dict[str, Any]) -> FileRecord:
    check_form(values, _RECORD_FORMS)
    return FileRecord(**values)


def _analysis_from_json(values: dict[str, Any]) -> Analysis:
    check_form(values, _ANALYSIS_FORMS)
    return Analysis(**values)
