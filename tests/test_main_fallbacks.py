"""Artefacts that are damaged, foreign or not of this command: what it falls back to, and what it says."""

import dataclasses
import shutil
from typing import NamedTuple

import pytest

from cambrian.engine.artifact.manifest import MANIFEST, read_manifest
from cambrian.engine.artifact.save import save
from cambrian.engine.artifact.signing import default_key_path, load_key
from cambrian.engine.runtime.compile import compile_program
from command import CommandHere
from toy_program import toy_program


class Built(NamedTuple):
    """A command that has built its artefact, the flags with which it did, and that run's predictions."""

    command: CommandHere
    flags: list[str]
    predictions: list[dict[str, str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A home in which an artefact was built."""
    command = CommandHere(tmp_path_factory.mktemp("home"))
    flags = [*command.small_flags(), "--mesh", "1x2", "--num_images", "10"]
    return Built(command, flags, command.run(*flags).predictions)


@pytest.fixture
def command(built, tmp_path):
    """The command in a copy of that home."""
    home = tmp_path / "home"
    shutil.copytree(built.command.home, home)
    return CommandHere(home)


@pytest.fixture
def artifact(command):
    (path,) = command.artifacts
    return path


@pytest.fixture
def key(command, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", command.environment["XDG_CONFIG_HOME"])
    return default_key_path()


@pytest.mark.slow
def test_a_damaged_artifact_is_rebuilt_in_the_cache_and_refused_as_a_flag(built, command, artifact):
    path, reason = artifact / "parameters.safetensors", " must have the SHA-256 that the manifest states, "
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused = command("--artifact", artifact)
    assert refused.exit_code == 2
    assert refused.error.startswith(f"{path}{reason}")

    rebuilt = command.run(*built.flags)
    report = rebuilt.report
    assert report["build_ms"] > 0 and report["executable"] == "native"
    assert any(note.startswith(f"artefact rebuilt: {path}{reason}") for note in report["notes"])
    assert report["notes"] == rebuilt.outcome.notes
    assert rebuilt.predictions == built.predictions


def assert_portable(run, reason, built):
    report = run.report
    (note,) = [note for note in report["notes"] if note.startswith("portable program compiled: ")]
    assert reason in note
    assert run.outcome.notes == report["notes"]
    assert (report["executable"], report["build_ms"]) == ("portable", None)
    assert [row["predicted"] for row in run.predictions] == [row["predicted"] for row in built.predictions]


@pytest.mark.slow
def test_an_artifact_signed_by_another_key(built, command, artifact):
    manifest = (artifact / MANIFEST).read_bytes()
    foreign_key = command.home / "foreign" / "key"
    load_key(foreign_key)
    received = command.run("--artifact", artifact, "--signing_key", foreign_key, "--num_images", 10)
    assert_portable(received, "the artefact is not signed with this user's key", built)
    assert (artifact / MANIFEST).read_bytes() == manifest


@pytest.mark.slow
def test_another_version_is_refreshed(built, command, artifact, key):
    manifest, is_signed = read_manifest(artifact, load_key(key))
    assert is_signed
    foreign = dataclasses.replace(manifest, fingerprint=manifest.fingerprint | {"jax": "0.9.0"})
    (artifact / MANIFEST).write_bytes(foreign.signed(load_key(key)))
    assert_portable(command.run(*built.flags), "artefact built with jax 0.9.0, here ", built)
    assert command.run(*built.flags).report["executable"] == "native"


def test_an_artifact_of_another_function_is_refused(tmp_path):
    command = CommandHere(tmp_path)
    save(compile_program(toy_program()), tmp_path / "artifact", tmp_path / "key")
    outcome = command("--artifact", tmp_path / "artifact", "--signing_key", tmp_path / "key")
    assert outcome.exit_code == 2
    assert outcome.error == (
        "expected an image classifier, with labels, preprocessing and trained in its metadata, "
        "got toy without preprocessing, trained"
    )
