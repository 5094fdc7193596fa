import dataclasses
import errno
import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from cambrian.engine.artifact import load as load_module
from cambrian.engine.artifact.fingerprint import versions
from cambrian.engine.artifact.layout import PORTABLE, rebuild_mesh
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord, read_manifest
from cambrian.engine.artifact.portable import load_portable
from cambrian.engine.artifact.save import save
from cambrian.engine.artifact.serialization import without_lapack
from cambrian.engine.artifact.signing import load_key
from cambrian.engine.errors import DamagedArtifact, ParityError
from cambrian.engine.runtime.compile import compile_program
from cambrian.engine.runtime.parity import probe_inputs
from cambrian.sharding import UsageError
from run_script import run_script
from toy_program import BATCH_SIZE, toy_program


def edit(artifact, key, **changes):
    """Changes fields of the manifest and signs it again."""
    manifest, is_signed = read_manifest(artifact, load_key(key))
    assert is_signed
    (artifact / MANIFEST).write_bytes(dataclasses.replace(manifest, **changes).signed(load_key(key)))


def edit_fingerprint(artifact, key, **changes):
    edit(artifact, key, fingerprint=read_manifest(artifact, None)[0].fingerprint | changes)


def native_file(artifact):
    (path,) = artifact.glob("native-*.bin")
    return path


def test_round_trip(online, artifact, key):
    loaded = load(artifact, signing_key=key)
    assert loaded.kind == "native" and loaded.program is None
    for name in ("name", "param_specs", "input_spec", "output_spec", "mesh", "analysis", "plan", "metadata", "notes"):
        assert getattr(loaded, name) == getattr(online, name), name
    assert loaded.parity and loaded.parity.max_relative_error < 1e-5 and loaded.parity.top1_agreement == 1
    inputs = np.random.default_rng(1).integers(0, 256, (BATCH_SIZE + 3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(loaded(inputs), online(inputs), strict=True)
    np.testing.assert_allclose(loaded(inputs), online.program.reference(inputs), rtol=1e-4, atol=1e-4)
    manifest, _ = read_manifest(artifact, None)
    assert manifest.rules == online.program.rules and manifest.versions == versions() and manifest.cache_key == ""


FRESH_PROCESS = """
import importlib.util, json, pathlib, sys
import jax
from jax import monitoring

events = []
monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: events.append(event))
monitoring.register_event_listener(lambda event, **_: events.append(event))

def count():
    kinds = ("jaxpr_trace", "jaxpr_to_mlir", "backend_compile", "compile_requests")
    found = {kind: sum(kind in event for event in events) for kind in kinds}
    events.clear()
    return found

import numpy as np
from cambrian.engine.artifact.load import load
results = []
for key in sys.argv[2:]:
    executable = load(pathlib.Path(sys.argv[1]), signing_key=pathlib.Path(key))
    logits = executable(np.arange(11 * 192).reshape(11, 8, 8, 3).astype(np.uint8))
    results.append({"kind": executable.kind, "logits": logits.tolist(), **count()})
print(json.dumps({
    "results": results,
    "flax_installed": importlib.util.find_spec("flax") is not None,
    "loaded": [package for package in ("flax", "scipy") if package in sys.modules],
}))
"""


@pytest.mark.slow
def test_a_fresh_process_loads_no_flax_or_scipy_and_neither_traces_nor_compiles(online, artifact, key, tmp_path):
    report = json.loads(run_script(FRESH_PROCESS, artifact, key, tmp_path / "no key"))
    native, portable = report["results"]
    assert report["flax_installed"] and not report["loaded"]
    counts = ("jaxpr_trace", "jaxpr_to_mlir", "backend_compile", "compile_requests")
    assert native["kind"] == "native" and [native[kind] for kind in counts] == [0, 0, 0, 0]
    assert portable["kind"] == "portable" and all(portable[kind] > 0 for kind in counts)
    logits = online(np.arange(11 * 192).reshape(11, 8, 8, 3).astype(np.uint8))
    np.testing.assert_array_equal(np.array(native["logits"], np.float32), logits)
    np.testing.assert_allclose(np.array(portable["logits"], np.float32), logits, rtol=1e-5, atol=1e-5)


def test_a_program_that_calls_lapack_is_lowered_as_it_is():
    inputs = np.eye(3, dtype=np.float32)
    cholesky, sine = (export.export(jax.jit(function))(inputs) for function in (jnp.linalg.cholesky, jnp.sin))
    assert without_lapack(cholesky) is cholesky
    assert without_lapack(sine).platforms != ("cpu",)
    np.testing.assert_allclose(jax.jit(without_lapack(sine).call)(inputs), np.sin(inputs), rtol=1e-6)


def assert_portable(executable, online, reason):
    assert executable.kind == "portable"
    assert [note for note in executable.notes if note.startswith("portable program compiled: ") and reason in note]
    inputs = probe_inputs(executable.input_spec)
    np.testing.assert_allclose(executable(inputs), online(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_another_users_artifact(online, artifact, tmp_path):
    load_key(tmp_path / "other key")
    before = (artifact / MANIFEST).read_bytes()
    loaded = load(artifact, signing_key=tmp_path / "other key", refresh=True)
    assert_portable(loaded, online, "not signed with this user's key")
    assert_portable(load(artifact, signing_key=tmp_path / "absent"), online, "not signed with this user's key")
    assert not (tmp_path / "absent").exists()
    assert (artifact / MANIFEST).read_bytes() == before


@pytest.mark.slow
def test_an_altered_manifest_is_not_trusted_nor_signed(online, artifact, key):
    values = json.loads((artifact / MANIFEST).read_text())
    values["fingerprint"]["jax"] = "0.1.0"
    (artifact / MANIFEST).write_text(json.dumps(values))
    before = (artifact / MANIFEST).read_bytes()
    assert_portable(load(artifact, signing_key=key, refresh=True), online, "not signed")
    assert (artifact / MANIFEST).read_bytes() == before
    del values["hmac_sha256"]
    (artifact / MANIFEST).write_text(json.dumps(values))
    assert_portable(load(artifact, signing_key=key), online, "not signed")


def make_foreign(artifact, key, **entries) -> pathlib.Path:
    """Makes the machine code of another machine; returns its file."""
    edit_fingerprint(artifact, key, **entries)
    old = native_file(artifact)
    old.rename(foreign := artifact / "native-000000000000.bin")
    manifest, _ = read_manifest(artifact, None)
    files = {foreign.name if name == old.name else name: record for name, record in manifest.files.items()}
    edit(artifact, key, files=files)
    return foreign


def test_machine_code_that_another_process_replaces_meanwhile_is_read_again(artifact, key, monkeypatch):
    foreign = make_foreign(artifact, key, jax="0.9.0")

    def replaced_meanwhile(*arguments):
        monkeypatch.setattr(load_module, "rebuild_mesh", rebuild_mesh)
        load(artifact, signing_key=key, refresh=True)
        return rebuild_mesh(*arguments)

    monkeypatch.setattr(load_module, "rebuild_mesh", replaced_meanwhile)
    assert load(artifact, signing_key=key).kind == "native" and not foreign.exists()


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("jax", "0.9.0", f"artefact built with jax 0.9.0, here {jax.__version__}"),
        ("CPU model", "Pentium", "artefact built with CPU model Pentium, here "),
        ("CPU features", ["quantum"], "artefact built with CPU features quantum, here "),
    ],
)
def test_another_version_or_cpu_is_refreshed_on_request(online, artifact, key, entry, value, reason):
    foreign = make_foreign(artifact, key, **{entry: value})
    before = (artifact / MANIFEST).read_bytes()
    assert_portable(load(artifact, signing_key=key), online, reason)
    assert (artifact / MANIFEST).read_bytes() == before and native_file(artifact) == foreign

    assert_portable(load(artifact, signing_key=key, refresh=True), online, reason)
    assert native_file(artifact) != foreign
    refreshed = load(artifact, signing_key=key)
    assert refreshed.kind == "native" and refreshed.notes == online.notes
    np.testing.assert_allclose(refreshed(probe := probe_inputs(online.input_spec)), online(probe), rtol=1e-5, atol=1e-5)


def test_a_refresh_that_can_not_be_written_is_a_note(online, artifact, key, monkeypatch):
    def fail(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(load_module, "replace_file", fail)
    edit_fingerprint(artifact, key, jax="0.9.0")
    loaded = load(artifact, signing_key=key, refresh=True)
    assert_portable(loaded, online, "built with jax 0.9.0")
    assert "was not refreshed" in loaded.notes[-1] and "Read-only" in loaded.notes[-1]


def test_other_devices(online, artifact, key):
    others = jax.devices()[8:16]
    loaded = load(artifact, devices=others, signing_key=key)
    assert_portable(loaded, online, "device ids")
    assert list(loaded.mesh.devices.flat) == others
    assert load(artifact, devices=jax.devices()[:8], signing_key=key).kind == "native"
    for count in (0, 7):
        with pytest.raises(UsageError, match=f"mesh 2x4: expected at least 8 devices, got {count}"):
            load(artifact, devices=jax.devices()[:count], signing_key=key)
    edit(artifact, key, platform="tpu")
    with pytest.raises(UsageError, match="expected tpu devices for the artefact, got cpu"):
        load(artifact, devices=jax.devices()[:8], signing_key=key)


def test_parameters_are_loaded_while_the_machine_code_is_linked(artifact, key, monkeypatch):
    met = threading.Barrier(2, timeout=20)

    def meeting(function):
        def wrapped(*arguments):
            met.wait()
            return function(*arguments)

        return wrapped

    for name in ("read_params", "from_native"):
        monkeypatch.setattr(load_module, name, meeting(getattr(load_module, name)))
    assert load(artifact, signing_key=key).kind == "native"


def test_machine_code_that_xla_refuses_is_replaced(online, artifact, key):
    native_file(artifact).write_bytes(data := b"no pickle")
    manifest, _ = read_manifest(artifact, None)
    edit(artifact, key, files=manifest.files | {native_file(artifact).name: FileRecord.of(data)})
    assert_portable(load(artifact, signing_key=key, refresh=True), online, "XLA could not load its native executable: ")
    assert load(artifact, signing_key=key).kind == "native"


CALLBACK = "xla_ffi_python_cpu_callback"  # what jax.pure_callback calls


def put_callback(artifact, key, executable):
    """Makes the portable program one that calls into Python, which `jax.export` refuses to write unless it is told."""

    def apply(params, images):
        return jax.ffi.ffi_call(CALLBACK, jax.ShapeDtypeStruct(executable.output_spec.shape, np.float32))(images)

    checks = [export.DisabledSafetyCheck.custom_call(CALLBACK)]
    arguments = executable.program.abstract_arguments()
    exported = export.export(jax.jit(apply), disabled_checks=checks)(*arguments)
    (artifact / PORTABLE).write_bytes(data := bytes(exported.serialize()))
    manifest, _ = read_manifest(artifact, None)
    edit(artifact, key, files=manifest.files | {PORTABLE: FileRecord.of(data)})


@pytest.mark.slow
def test_what_others_made_may_not_call_into_this_process(online, artifact, key, tmp_path):
    put_callback(artifact, key, online)
    refused = pytest.raises(DamagedArtifact, match=f"{artifact / PORTABLE} must .* calls '{CALLBACK}'")
    with refused:
        load(artifact, signing_key=tmp_path / "absent")
    with refused:
        load_portable(artifact, signing_key=tmp_path / "absent")
    assert load(artifact, signing_key=key).kind == "native"


@pytest.mark.slow
@pytest.mark.parametrize("shardy", [True, False])
def test_marks_of_shardings_are_no_harm(key, tmp_path, shardy):
    before = getattr(jax.config, "jax_use_shardy_partitioner")  # noqa: B009 (unknown to pyright)
    jax.config.update("jax_use_shardy_partitioner", shardy)
    try:
        save(compile_program(toy_program()), tmp_path / "artifact", key)
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)
    text = load_portable(tmp_path / "artifact", signing_key=tmp_path / "absent").exported.mlir_module()
    assert ("custom_call @SPMDFullToShardShape" in text) != shardy


def test_outputs_too_far_from_the_reference_are_an_error_and_not_kept(artifact, key):
    edit(artifact, key, tolerance=1e-12)
    with pytest.raises(ParityError, match="toy .native. .* 1e-12, got") as caught:
        load(artifact, signing_key=key)
    assert 1e-12 < caught.value.parity.max_relative_error < 1e-5 and caught.value.parity.top1_agreement == 1
    edit_fingerprint(artifact, key, jax="0.9.0")
    before = (artifact / MANIFEST).read_bytes()
    with pytest.raises(ParityError, match="toy .portable. .* 1e-12, got"):
        load(artifact, signing_key=key, refresh=True)
    assert (artifact / MANIFEST).read_bytes() == before


def test_a_portable_program_inside_other_code(online, artifact, key):
    portable = load_portable(artifact, signing_key=key)

    @jax.jit
    def probabilities(params, images):
        return jax.nn.softmax(portable.exported.call(params, 255 - images))

    images = probe_inputs(portable.input_spec)
    on_devices = jax.device_put(images, portable.input_spec.sharding(portable.mesh))
    expected = jax.nn.softmax(online(255 - images))
    np.testing.assert_allclose(probabilities(portable.params, on_devices), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probabilities(portable.params, images), expected, rtol=1e-4, atol=1e-6)
    assert portable.metadata == online.metadata
