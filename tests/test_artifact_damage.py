import dataclasses
import json
import pathlib
import shutil

import pytest
from jax.sharding import PartitionSpec as P

from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, Manifest, read_manifest
from cambrian.engine.artifact.signing import load_key
from cambrian.engine.errors import DamagedArtifact
from cambrian.sharding import TensorSpec, UsageError


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip, pathlib.Path.unlink])
@pytest.mark.parametrize("name", ["native", PARAMETERS, PORTABLE, PROBE, MANIFEST])
def test_damage_is_named(artifact, key, name, harm):
    path = next(artifact.glob("native-*")) if name == "native" else artifact / name
    if name == MANIFEST and harm == flip:
        path.write_bytes(path.read_bytes().replace(b'"tolerance"', b'"tolerancf"'))
    else:
        harm(path)
    with pytest.raises(DamagedArtifact, match=f"{path} must") as caught:
        load(artifact, signing_key=key)
    assert "\n" not in str(caught.value)


def test_machine_code_without_its_analysis_is_damaged(artifact, key):
    manifest, _ = read_manifest(artifact, None)
    (artifact / MANIFEST).write_bytes(dataclasses.replace(manifest, analysis=None).signed(load_key(key)))
    with pytest.raises(DamagedArtifact, match=f"{artifact / MANIFEST} must hold the analysis of native-.*, got none"):
        load(artifact, signing_key=key)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"format_version": 3', b'"format_version": 1', "expected format version 3, got 1"),
        (b'"mesh": "2x4"', b'"mesh": "2y4"', "MODELxDATA"),
        (b'"platform": "cpu"', b'"platform": "auto"', "platform must be cpu, gpu or tpu, got .auto."),
        (b'"mesh": "2x4"', b'"mash": "2x4"', "mesh"),
        (b'"analysis": {', b'"analysis": {"more": 1,', "unknown fields .'more'."),
        (b'"files": {', b'"files": {"../other": {"sha256": "", "num_bytes": 0},', "unknown .*other"),
        (b'"portable.bin"', b'"native-0123456789ab.bin"', "missing .*portable.bin"),
        (b"{", b"[{", "Expecting"),
        (b'"labels"', b'"more": NaN, "labels"', "not JSON compliant"),
        (b'"labels"', b'"more": 1e999, "labels"', "not JSON compliant"),
        (b'"name": "images"', b'"name": ["images"]', "field name has the wrong form, expected str"),
        (b'"shape": [8, 8, 8, 3]', b'"shape": [8, 8.5, 8, 3]', "field shape has the wrong form"),
        (b'"shape": [8, 8, 8, 3]', b'"shape": [8, true, 8, 3]', "field shape has the wrong form"),
        (b'"shape": [8, 8, 8, 3]', b'"shape": [6, 8, 8, 3]', "images of shape .* divisible by 4"),
        (b'"shape": [8, 8, 8, 3]', b'"shape": []', "images of shape .* at most 0 dimensions"),
        (b'"dtype": "uint8"', b'"dtype": "uint9"', "uint9"),
        (b'"dtype": "uint8"', b'"dtype": "object"', "images must have a dtype of numbers or bool, got 'object'"),
        (b'"dtype": "uint8"', b'"dtype": null', "field dtype has the wrong form"),
        (b'"partition_spec": ["data"]', b'"partition_spec": ["date"]', "images of shape .* got 'date'"),
        (
            b'"partition_spec": ["data"]',
            b'"partition_spec": ["data", "data"]',
            "images of shape .* got 'data' 2 times",
        ),
        (b'"partition_spec": ["data"]', b'"partition_spec": [1]', "field partition_spec has the wrong form"),
    ],
)
def test_a_manifest_of_another_form_is_refused(artifact, key, old, new, reason):
    path = artifact / MANIFEST
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(DamagedArtifact, match=f"{path} must .*{reason}") as caught:
        load(artifact, signing_key=key)
    assert "\n" not in str(caught.value)


def test_parameters_other_than_the_manifests_are_refused(artifact, key):
    manifest, _ = read_manifest(artifact, None)
    manifest = dataclasses.replace(manifest, files=manifest.files | {PARAMETERS: manifest.files[PROBE]})
    (artifact / MANIFEST).write_bytes(manifest.signed(load_key(key)))
    shutil.copy(artifact / PROBE, artifact / PARAMETERS)
    with pytest.raises(
        DamagedArtifact, match=f"{PARAMETERS} must hold the tensors of the manifest, 'fc.kernel' of shape .* got none"
    ):
        load(artifact, signing_key=key)


def test_what_is_no_artifact_is_refused(tmp_path):
    (tmp_path / "file").touch()
    # The system refuses to look at the last one, as at what is in another user's folder.
    for path in (tmp_path / "absent", tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=str(path)):
            load(path)
    with pytest.raises(DamagedArtifact, match=MANIFEST):
        load(tmp_path)


def test_manifest_round_trip(artifact):
    manifest, _ = read_manifest(artifact, None)
    specs = tuple(
        TensorSpec(f"t{i}", (8, 4, 2), "bfloat16", spec)
        for i, spec in enumerate([P(), P(None, "model"), P(("model", "data"), None, None), P("data", "model")])
    )
    manifest = dataclasses.replace(manifest, param_specs=specs, plan={"b": {"partition": "rows"}, "a": {}})
    manifest = dataclasses.replace(manifest, files={"x": FileRecord.of(b"[ {")}, notes=("[", "a\n b", "[\n", "]"))
    written = json.loads(manifest.signed(b"key"))
    del written["hmac_sha256"]
    restored = Manifest.from_json(written)
    assert restored == manifest and list(restored.plan) == ["b", "a"]
    assert '"shape": [8, 4, 2]' in manifest.signed(b"key").decode()
