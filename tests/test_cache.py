import dataclasses
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from cambrian.commands.images.prepared import data_dir
from cambrian.commands.program.digests import source_digest
from cambrian.engine.artifact import cache as cache_module, save as save_module
from cambrian.engine.artifact.cache import artifact_key, default_artifact_dir, load_or_build
from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import MANIFEST, read_manifest
from cambrian.engine.artifact.save import write_artifact
from cambrian.engine.artifact.signing import load_key
from cambrian.sharding import UsageError
from toy_program import toy_program


@pytest.fixture
def signing_key(tmp_path):
    return tmp_path / "key"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def no_build():
    raise AssertionError("the artefact is there: nothing is to be built")


def test_the_key_depends_on_every_fact_and_not_on_their_order():
    facts = {"model": "resnet101", "mesh": "4x8", "plan": {"conv1": ["rows", "im2col"]}}
    key = artifact_key(facts)
    assert key == artifact_key(dict(reversed(facts.items()))) and len(key) == 64
    changed = [facts | {"model": "resnet50"}, facts | {"plan": {}}, facts | {"batch_size": 64}]
    assert len({key, *map(artifact_key, changed)}) == 4
    with pytest.raises(TypeError):
        artifact_key({"path": pathlib.Path()})


def test_the_source_digest_follows_content_and_names(tmp_path):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("x = 1")
    (folder / "sub" / "b.py").write_text("y = 2")
    digests = [source_digest(folder)]
    (folder / "notes.txt").write_text("not a source")
    assert source_digest(folder) == digests[0]
    (folder / "a.py").write_text("x = 2")
    digests.append(source_digest(folder))
    (folder / "a.py").rename(folder / "c.py")
    digests.append(source_digest(folder))
    (folder / "sub" / "b.py").rename(folder / "b.py")
    digests.append(source_digest(folder))
    digests.append(source_digest(folder, folder / "sub"))
    (folder / "sub" / "d.py").touch()
    digests.append(source_digest(folder))
    assert len(set(digests)) == 5 and digests[3] == digests[4]


def test_the_default_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_artifact_dir() == pathlib.Path("/somewhere/cambrian/artifacts")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/kept")  # as Docker's ENV sets it
    assert default_artifact_dir() == pathlib.Path.home() / "kept/cambrian/artifacts"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, artifact):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", no_home)
    for variable, folder in (
        ("XDG_CACHE_HOME", default_artifact_dir),
        ("XDG_CONFIG_HOME", lambda: load(artifact)),
        ("TFDS_DATA_DIR", data_dir),
    ):
        monkeypatch.delenv(variable)
        with pytest.raises(UsageError, match=f"HOME or {variable} must be set, as this user has no home folder"):
            folder()


def test_built_once_then_loaded(cache, signing_key):
    built, build_ms = load_or_build(cache, "key", toy_program, signing_key=signing_key)
    assert built.kind == "native" and built.program is None and build_ms is not None and build_ms > 0
    loaded, build_ms = load_or_build(cache, "key", no_build, signing_key=signing_key)
    assert loaded.kind == "native" and build_ms is None
    assert [path.name for path in cache.iterdir()] == ["key"]


@pytest.mark.parametrize("name", [PARAMETERS, PORTABLE, MANIFEST, "native"])
def test_a_damaged_artifact_is_named_and_rebuilt(cache, signing_key, name):
    load_or_build(cache, "key", toy_program, signing_key=signing_key)
    path = next((cache / "key").glob("native*")) if name == "native" else cache / "key" / name
    path.write_bytes(path.read_bytes()[:-20])
    rebuilt, build_ms = load_or_build(cache, "key", toy_program, signing_key=signing_key)
    assert build_ms is not None and rebuilt.kind == "native"
    assert rebuilt.notes[0].startswith(f"artefact rebuilt: {path} must")
    loaded, build_ms = load_or_build(cache, "key", no_build, signing_key=signing_key)
    assert build_ms is None and not any("rebuilt" in note for note in loaded.notes)
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_what_another_process_has_rebuilt_meanwhile_stays(cache, signing_key):
    def load_or_rebuild(build):
        return load_or_build(cache, "key", build, signing_key=signing_key)

    load_or_rebuild(toy_program)
    (cache / "key" / MANIFEST).write_text("damaged")
    left_by_the_other = []

    def build_after_the_other():
        load_or_rebuild(toy_program)
        left_by_the_other.append((cache / "key").stat().st_ino)
        return toy_program()

    loaded, build_ms = load_or_rebuild(build_after_the_other)
    assert loaded.kind == "native" and build_ms is not None and loaded.notes[0].startswith("artefact rebuilt")
    assert [(cache / "key").stat().st_ino] == left_by_the_other
    assert [path.name for path in cache.iterdir()] == ["key"]


@pytest.mark.parametrize("num_loads_before", [0, 1])
def test_an_artifact_that_is_gone_before_it_is_loaded_is_built_again(cache, signing_key, monkeypatch, num_loads_before):
    calls = []

    def vanish(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1 + num_loads_before:
            shutil.rmtree(cache / "key")
        return load(*arguments, **options)

    if num_loads_before == 0:
        load_or_build(cache, "key", toy_program, signing_key=signing_key)
    monkeypatch.setattr(cache_module, "load", vanish)
    loaded, build_ms = load_or_build(cache, "key", toy_program, signing_key=signing_key)
    assert loaded.kind == "native" and build_ms is not None and len(calls) == 2 + num_loads_before


def test_a_cache_that_is_cleared_during_a_build_holds_its_artifact_afterwards(cache, signing_key, monkeypatch):
    def build():
        shutil.rmtree(cache)
        return toy_program()

    load_or_build(cache, "key", build, signing_key=signing_key)
    assert [path.name for path in cache.iterdir()] == ["key"]
    calls = []

    def write_then_vanish(parts, path, *arguments):
        write_artifact(parts, path, *arguments)
        calls.append(path)
        if len(calls) == 1:
            shutil.rmtree(cache)

    monkeypatch.setattr(cache_module, "write_artifact", write_then_vanish)
    loaded, _ = load_or_build(cache, "other", toy_program, signing_key=signing_key)
    assert loaded.kind == "native" and len(calls) == 2


def test_an_artifact_of_another_key_is_rebuilt(cache, signing_key):
    load_or_build(cache, "a", toy_program, signing_key=signing_key)
    shutil.copytree(cache / "a", cache / "b")
    rebuilt, build_ms = load_or_build(cache, "b", lambda: toy_program(1), signing_key=signing_key)
    assert build_ms is not None
    assert rebuilt.notes[0] == f"artefact rebuilt: {cache / 'b' / MANIFEST} must be of the cache key b, got 'a'"
    assert read_manifest(cache / "b", None)[0].cache_key == "b"


def test_where_only_the_fingerprint_differs_the_native_part_is_refreshed(cache, signing_key):
    load_or_build(cache, "key", toy_program, signing_key=signing_key)
    key = load_key(signing_key)
    manifest, _ = read_manifest(cache / "key", key)
    manifest = dataclasses.replace(manifest, fingerprint=manifest.fingerprint | {"jaxlib": "0.9.0"})
    (cache / "key" / MANIFEST).write_bytes(manifest.signed(key))
    first, build_ms = load_or_build(cache, "key", no_build, signing_key=signing_key)
    assert build_ms is None and first.kind == "portable" and "jaxlib 0.9.0" in first.notes[-1]
    second, _ = load_or_build(cache, "key", no_build, signing_key=signing_key)
    assert second.kind == "native"


BUILD_IN_STEP = """
import json, pathlib, sys
cache, key, own, other = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, "tests")
import jax
jax.config.update("jax_num_cpu_devices", 8)
from cambrian.engine.artifact.cache import load_or_build
from toy_program import toy_program
from waiting import settle

def build():
    # Both processes have found no artefact when either goes on.
    own.touch()
    settle(other.exists, timeout_s=30)
    return toy_program()

executable, build_ms = load_or_build(cache, "key", build, signing_key=key)
print(json.dumps([executable.kind, build_ms is not None, executable.parity.max_relative_error]))
"""


@pytest.mark.slow
def test_two_processes_build_at_once(cache, signing_key, tmp_path):
    marks = [tmp_path / "a", tmp_path / "b"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_IN_STEP, cache, signing_key, *order],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[1],
        )
        for order in (marks, marks[::-1])
    ]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        kind, built, error = json.loads(output)
        assert kind == "native" and built and error < 1e-5
    assert [path.name for path in cache.iterdir()] == ["key"]
    assert load(cache / "key", signing_key=signing_key).parity is not None


def test_equal_parameters_are_stored_once(cache, signing_key):
    def inode(key):
        return (cache / key / PARAMETERS).stat().st_ino

    for key, batch_size, seed in [("a", 8, 0), ("b", 16, 0), ("c", 8, 1)]:
        load_or_build(cache, key, lambda n=batch_size, s=seed: toy_program(s, n), signing_key=signing_key)
    assert inode("a") == inode("b") != inode("c")
    assert sorted(path.name for path in (cache / "b").iterdir()) == sorted(read_files(cache / "b"))
    (cache / "a" / PARAMETERS).write_bytes(b"damaged, and so is b, which shares it")
    rebuilt, _ = load_or_build(cache, "b", lambda: toy_program(0, 16), signing_key=signing_key)
    assert inode("a") != inode("b") and rebuilt.notes[0].startswith("artefact rebuilt")


def test_a_manifest_whose_signature_does_not_hold_is_damage(cache, signing_key):
    load_or_build(cache, "key", toy_program, signing_key=signing_key)
    path = cache / "key" / MANIFEST
    for old, new in ((b"class 0", b"class 9"), (b"hmac_sha256", b"hmac_sha257")):
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new))
        rebuilt, build_ms = load_or_build(cache, "key", toy_program, signing_key=signing_key)
        assert build_ms is not None and rebuilt.kind == "native" and rebuilt.metadata["labels"][0] == "class 0"
        (note,) = [note for note in rebuilt.notes if "rebuilt" in note]
        assert note.startswith(f"artefact rebuilt: {path} must be ")
    loaded, build_ms = load_or_build(cache, "key", no_build, signing_key=signing_key)
    assert build_ms is None and loaded.metadata["labels"][0] == "class 0"


BUILD_UNTIL_KILLED = """
import pathlib, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, "tests")
from toy_program import toy_program
from cambrian.engine.artifact import save
from cambrian.engine.artifact.cache import load_or_build

def wait(*arguments):
    print("building", flush=True)
    time.sleep(60)

save.write_tensors = wait
load_or_build(pathlib.Path(sys.argv[1]), "other", toy_program, signing_key=pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_what_a_killed_build_left_is_removed_by_a_later_one(cache, signing_key):
    command = [sys.executable, "-c", BUILD_UNTIL_KILLED, cache, signing_key]
    long_ago = time.time() - 3600
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=pathlib.Path(__file__).parents[1]) as process:
        assert process.stdout is not None and process.stdout.readline() == b"building\n"
        (left,) = cache.iterdir()
        assert left.name.startswith(".other.")
        os.utime(left, (long_ago, long_ago))
        load_or_build(cache, "a", toy_program, signing_key=signing_key)
        assert left.exists()  # its process lives
        process.kill()
        process.wait()
    os.utime(left)
    load_or_build(cache, "b", toy_program, signing_key=signing_key)
    assert left.exists()  # it may be new
    os.utime(left, (long_ago, long_ago))
    load_or_build(cache, "c", toy_program, signing_key=signing_key)
    assert sorted(path.name for path in cache.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("where", ["build", "reference"])
def test_an_error_of_the_program_is_none_of_the_folder(cache, signing_key, where):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    build = fail if where == "build" else lambda: dataclasses.replace(toy_program(), reference=fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_or_build(cache, "key", build, signing_key=signing_key)
    assert list(cache.iterdir()) == []


def read_files(artifact):
    return [MANIFEST, *read_manifest(artifact, None)[0].files]


def test_a_folder_that_can_not_be_made_is_refused_before_building(tmp_path, signing_key):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    with pytest.raises(UsageError, match=f"must be writable and have space, got {cache}: Not a directory"):
        load_or_build(cache, "key", no_build, signing_key=signing_key)


def test_a_full_disk_is_one_line_and_leaves_nothing(cache, signing_key, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, "write_tensors", fail)
    with pytest.raises(UsageError, match=f"got {cache}: No space left on device"):
        load_or_build(cache, "key", toy_program, signing_key=signing_key)
    assert list(cache.iterdir()) == []
