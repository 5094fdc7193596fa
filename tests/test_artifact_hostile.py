"""Artefacts made to do harm, with digests that fit: refused in one line, and without harm to this process."""

import errno
import json
import os
import pathlib
import signal
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from cambrian.engine.artifact import layout, quarantine
from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import MANIFEST, FileRecord
from cambrian.engine.artifact.portable import load_portable
from cambrian.engine.artifact.signing import read_key
from cambrian.engine.artifact.tensor_file import write_tensors
from cambrian.engine.errors import DamagedArtifact, ParityError
from cambrian.sharding import UsageError


@pytest.fixture
def no_key(tmp_path):
    return tmp_path / "absent"


def make_fit(artifact, **changes):
    """Makes the manifest's digests fit the files, as anyone can who has no key."""
    values = json.loads((artifact / MANIFEST).read_bytes()) | changes
    for name in values["files"]:
        record = FileRecord.of((artifact / name).read_bytes())
        values["files"][name] = {"sha256": record.sha256, "num_bytes": record.num_bytes}
    (artifact / MANIFEST).write_text(json.dumps(values))


def put_program(artifact, online, apply):
    """Makes `apply(params, inputs)` the artefact's portable program."""
    exported = export.export(jax.jit(apply))(*online.program.abstract_arguments())
    (artifact / PORTABLE).write_bytes(exported.serialize())
    make_fit(artifact)


def test_an_unsigned_program_is_loaded_in_a_child_and_a_signed_one_is_not(saved, artifact, no_key, monkeypatch):
    proved = []
    monkeypatch.setattr("cambrian.engine.artifact.load.prove", lambda *arguments: proved.append(arguments))
    monkeypatch.setattr("cambrian.engine.artifact.portable.prove", lambda *arguments: proved.append(arguments))
    load(artifact, signing_key=saved / "key")
    load_portable(artifact, signing_key=saved / "key")
    assert proved == []
    load(artifact, signing_key=no_key)
    load_portable(artifact, signing_key=no_key)
    assert [path for path, _ in proved] == [artifact, artifact]


@pytest.mark.slow
def test_a_program_that_never_returns_is_given_up(artifact, online, no_key, monkeypatch):
    def apply(params, images):
        count = jax.lax.while_loop(lambda n: n >= 0, lambda n: (n + 1) % 1000, jnp.int32(0))
        return jnp.zeros((images.shape[0], 10)) + count.astype(jnp.float32)

    put_program(artifact, online, apply)
    monkeypatch.setattr(quarantine, "TIME_LIMIT_S", 3.0)
    with pytest.raises(DamagedArtifact, match=f"{artifact / PORTABLE} must load in .*got no result in 3 s"):
        load(artifact, signing_key=no_key)


@pytest.mark.slow
def test_a_program_that_takes_all_memory_is_refused(artifact, online, no_key):
    def apply(params, images):
        huge = jnp.broadcast_to(images.reshape(-1)[:1].astype(jnp.float32), (2**45,))
        return jnp.zeros((images.shape[0], 10)) + jnp.cumsum(huge)[-1]

    put_program(artifact, online, apply)
    with pytest.raises(DamagedArtifact, match=f"{artifact / PORTABLE} must load in a process of its own"):
        load(artifact, signing_key=no_key)


def test_a_child_that_crashes_is_damage(artifact, no_key, monkeypatch):
    monkeypatch.setattr(quarantine, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(DamagedArtifact, match=f"{artifact / PORTABLE} must load in .* got an end by SIGSEGV"):
        load(artifact, signing_key=no_key)
    monkeypatch.setattr(quarantine, "_CHILD", "raise SystemExit('out of\\nwords')")
    with pytest.raises(DamagedArtifact, match="got exit code 1 words"):
        load(artifact, signing_key=no_key)


@pytest.mark.slow
def test_the_child_uses_the_bytes_that_the_manifest_states(artifact, online, no_key, monkeypatch):
    """A file replaced between the proof and the load isn't loaded."""

    def prove_then_replace(path, manifest):
        quarantine.prove(path, manifest)
        put_program(artifact, online, lambda params, images: jnp.zeros((images.shape[0], 10)))

    monkeypatch.setattr("cambrian.engine.artifact.load.prove", prove_then_replace)
    with pytest.raises(DamagedArtifact, match=f"{artifact / PORTABLE} must have"):
        load(artifact, signing_key=no_key)


@pytest.mark.slow
def test_wrong_outputs_are_told_by_the_child(artifact, online, no_key):
    put_program(artifact, online, lambda params, images: jnp.ones((images.shape[0], 10)))
    with pytest.raises(ParityError, match="toy .portable.") as caught:
        load(artifact, signing_key=no_key)
    assert caught.value.parity.max_relative_error > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", [PORTABLE, PARAMETERS, PROBE])
@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 4096, b"[" * 100_000])
def test_nonsense_with_a_digest_that_fits_is_named(artifact, no_key, monkeypatch, name, content):
    if name != PORTABLE:  # which nothing but a child may read
        monkeypatch.setattr("cambrian.engine.artifact.load.prove", lambda *_: None)
    (artifact / name).write_bytes(content)
    make_fit(artifact)
    with pytest.raises(DamagedArtifact, match=str(artifact / name)) as caught:
        load(artifact, signing_key=no_key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{}",
        b"null",
        b'{"format_version": 3}',
        b"9" * 10_000,
        b"{" + b'"a": 1,' * 1000,
    ],
)
def test_a_manifest_of_nonsense_is_named(artifact, no_key, content):
    (artifact / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedArtifact, match=f"{artifact / MANIFEST} must be a readable manifest: ") as caught:
        load(artifact, signing_key=no_key)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


ODD_VALUES = [None, True, -1, 1e300, "", "\ud800", "x" * 10_000, [], [[]], [None], {}, {"": {}}, 2**70]


@pytest.mark.slow
def test_each_field_of_the_manifest_may_be_odd(saved, artifact, no_key, monkeypatch):
    monkeypatch.setattr("cambrian.engine.artifact.load.prove", lambda *_: None)
    values = json.loads((saved / "artifact" / MANIFEST).read_bytes())
    refused = 0
    for field in values:
        for odd in ODD_VALUES:
            (artifact / MANIFEST).write_text(json.dumps(values | {field: odd}))
            try:
                load(artifact, signing_key=no_key)
            except (UsageError, ParityError):
                refused += 1
    assert refused > 0.7 * len(values) * len(ODD_VALUES)


def test_a_manifest_of_endless_size_is_not_read(artifact, no_key):
    with (artifact / MANIFEST).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedArtifact, match=f"{MANIFEST} must .* at most 67108864 bytes, got 1099511627776"):
        load(artifact, signing_key=no_key)


@pytest.mark.slow
def test_a_file_larger_than_the_memory_is_refused(artifact, no_key):
    with (artifact / PARAMETERS).open("r+b") as file:
        file.truncate(2**43)
    values = json.loads((artifact / MANIFEST).read_bytes())
    values["files"][PARAMETERS]["num_bytes"] = 2**43
    (artifact / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DamagedArtifact, match=f"{artifact / PARAMETERS} must fit the memory"):
        load(artifact, signing_key=no_key)


@pytest.mark.slow
def test_a_probe_without_outputs_is_named(artifact, no_key):
    (artifact / PROBE).unlink()
    write_tensors(artifact / PROBE, [("inputs", np.zeros((8, 8, 8, 3), np.uint8))])
    make_fit(artifact)
    with pytest.raises(DamagedArtifact, match=f"{artifact / PROBE} must hold .* 'outputs' of shape .* got none"):
        load(artifact, signing_key=no_key)


def special_files(folder):
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    (folder / "directory").mkdir()
    return [folder / "fifo", folder / "socket", folder / "directory", pathlib.Path("/dev/zero")]


@pytest.mark.parametrize("name", [MANIFEST, PARAMETERS, PORTABLE, PROBE])
def test_what_is_no_regular_file_is_refused_at_once(saved, artifact, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    signal.alarm(20)
    for special in special_files(pathlib.Path()):
        (artifact / name).unlink()
        (artifact / name).symlink_to(special.absolute())
        with pytest.raises(DamagedArtifact, match=f"{artifact / name} must be a readable"):
            load(artifact, signing_key=saved / "key")
    signal.alarm(0)


def test_a_key_that_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "key", 0o600)
    signal.alarm(20)
    with pytest.raises(UsageError, match=f"must be a readable file, got {tmp_path / 'key'}: Not a regular file"):
        read_key(tmp_path / "key")
    signal.alarm(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", ["truncated", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("overwritten", "removed"))]
)
def test_once_loaded_nothing_of_the_folder_is_needed(saved, artifact, harm):
    images = np.random.default_rng(2).integers(0, 256, (8, 8, 8, 3), np.uint8)
    native, portable = (load(artifact, signing_key=saved / key) for key in ("key", "absent"))
    expected = native(images), portable(images)
    for path in list(artifact.iterdir()):
        if harm == "removed":
            path.unlink()
        else:
            with path.open("r+b") as file:
                if harm == "truncated":
                    file.truncate(0)
                else:
                    file.write(b"\x55" * path.stat().st_size)
    for executable, outputs in zip((native, portable), expected, strict=True):
        np.testing.assert_array_equal(executable(images), outputs)


def test_an_error_of_reading_is_told_in_words(artifact, no_key, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(layout, "open_regular", fail)
    with pytest.raises(DamagedArtifact, match=f"{PARAMETERS} must be a readable file: Input/output error"):
        layout.read_verified(artifact / PARAMETERS, FileRecord.of(b""))
