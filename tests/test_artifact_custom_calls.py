"""Artefacts of plans with oneDNN: no machine code, and bound to jaxlib and CPU."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from cambrian.engine.artifact import layout
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import MANIFEST, read_manifest
from cambrian.engine.artifact.save import compute_parts, save, write_artifact
from cambrian.engine.artifact.signing import load_key
from cambrian.engine.errors import DamagedArtifact
from cambrian.engine.runtime.compile import compile_program
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.build_program import build_program
from cambrian.models.resnet.network import network
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import Kind, LayerPlan, MeshShape, Partition, Plan, make_mesh
from cambrian.sharding.host import host_cores


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    if obstacle := LOWERINGS["onednn"].obstacle("cpu"):
        pytest.skip(f"onednn: {obstacle}")
    architecture = Architecture("cifar", (1,), bottleneck=True, num_classes=4, width=16)
    layers = tuple(
        (layer.name, LayerPlan(Partition.WHOLE, "onednn" if layer.kind == Kind.CONV else "native", 2))
        for layer in network(architecture, 8)
    )
    program = build_program(
        architecture,
        random_variables(architecture),
        Plan(layers),
        make_mesh(MeshShape(1, 1), jax.devices()),
        image_size=8,
        batch_size=4,
    )
    assert program.custom_calls == ("__onednn$convolution",)
    folder = tmp_path_factory.mktemp("onednn")
    executable = compile_program(program)
    save(executable, folder / "artifact", folder / "key")
    return folder, executable


@pytest.mark.slow
def test_the_portable_program_is_compiled_at_load_and_gives_the_same(saved):
    folder, executable = saved
    loaded = load(folder / "artifact", signing_key=folder / "key")
    assert (loaded.kind, loaded.notes) == ("portable", ())
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(loaded(images), executable(images), rtol=1e-5, atol=1e-5)


def test_a_program_is_saved_without_being_compiled(saved, tmp_path):
    folder, executable = saved
    write_artifact(compute_parts(executable.program), tmp_path / "artifact", folder / "key")
    assert read_manifest(tmp_path / "artifact", None)[0].analysis is None
    loaded, compiled_before = (load(at / "artifact", signing_key=folder / "key") for at in (tmp_path, folder))
    assert (loaded.kind, loaded.analysis) == ("portable", compiled_before.analysis)


def test_the_note_of_a_passed_probe_holds_for_the_same_result_of_the_compiler(saved, tmp_path, monkeypatch):
    artifact = shutil.copytree(saved[0] / "artifact", tmp_path / "artifact")

    def start():
        return load(artifact, signing_key=saved[0] / "key", defer_probe=True)

    assert start().probe is None
    assert start().probe is not None
    monkeypatch.setattr(jax.stages.Compiled, "as_text", lambda self: "ENTRY another")
    assert start().probe is None


@pytest.mark.skipif(host_cores() < 2, reason="one core is the least")
def test_on_fewer_cores_a_launch_keeps_its_threads(saved, monkeypatch):
    folder, _ = saved
    threads = read_manifest(folder / "artifact", None)[0].fingerprint["CPU threads"]
    monkeypatch.setattr(layout, "host_cores", lambda: threads - 1)
    loaded = load(folder / "artifact", signing_key=folder / "key")
    assert loaded.notes == (f"a launch was compiled for {threads} cores and runs on {threads - 1}",)


def test_what_calls_into_this_process_is_refused_unsigned(saved, tmp_path):
    with pytest.raises(DamagedArtifact, match="unless .*, got one that calls '__onednn.convolution'"):
        load(saved[0] / "artifact", signing_key=tmp_path / "another key")


@pytest.mark.parametrize("entry, value", [("jaxlib", "0.9.9"), ("CPU model", "Z80")])
def test_another_jaxlib_or_cpu_is_refused(saved, entry, value):
    folder, _ = saved
    path = folder / "artifact" / MANIFEST
    original = path.read_bytes()
    key = load_key(folder / "key")
    manifest, _ = read_manifest(folder / "artifact", key)
    path.write_bytes(dataclasses.replace(manifest, fingerprint=manifest.fingerprint | {entry: value}).signed(key))
    with pytest.raises(
        DamagedArtifact, match=f"orders weights for one CPU: artefact built with {entry} {value}, here "
    ):
        load(folder / "artifact", signing_key=folder / "key")
    path.write_bytes(original)
