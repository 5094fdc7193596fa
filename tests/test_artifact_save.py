"""What saving an artefact leaves, and what it refuses."""

import dataclasses
import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import PartitionSpec as P

from cambrian.engine.artifact import save as save_module
from cambrian.engine.artifact.load import load
from cambrian.engine.artifact.manifest import MANIFEST
from cambrian.engine.artifact.save import compute_parts, save, write_artifact
from cambrian.engine.artifact.serialization import NotSerializable
from cambrian.engine.errors import ArtifactExists, DamagedArtifact
from cambrian.engine.runtime.compile import compile_program
from cambrian.sharding import UsageError, jit_program, make_mesh
from toy_program import MESH, toy_program


@pytest.fixture
def key(tmp_path):
    return tmp_path / "key"


def test_jaxs_compilation_cache_does_not_spoil_the_native_part(key, tmp_path):
    options = {
        "jax_compilation_cache_dir": str(tmp_path / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        reset_cache()
        program = toy_program()
        jit_program(program).lower(*program.abstract_arguments()).compile()
        assert list((tmp_path / "jax").glob("*apply*"))
        save(compile_program(toy_program()), tmp_path / "artifact", key)
        assert getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009 (unknown to pyright)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
    assert load(tmp_path / "artifact", signing_key=key).kind == "native"


def test_without_native_serialization_the_portable_part_remains(online, key, tmp_path, monkeypatch):
    def refuse(compiled):
        raise NotSerializable("MemoryError std::bad_alloc")

    monkeypatch.setattr(save_module, "to_native", refuse)
    save(online, tmp_path / "artifact", key)
    assert not list((tmp_path / "artifact").glob("native*"))
    loaded = load(tmp_path / "artifact", signing_key=key, refresh=True)
    assert loaded.kind == "portable"
    reason = "the artefact holds no native executable, XLA could not serialize it: MemoryError std::bad_alloc"
    assert loaded.notes == (*online.notes, reason)


def test_an_artifact_of_another_cache_key_is_refused(online, key, tmp_path):
    write_artifact(compute_parts(online.program, online.compiled), tmp_path / "artifact", key, cache_key="a")
    with pytest.raises(
        DamagedArtifact, match=f"{tmp_path / 'artifact' / MANIFEST} must be of the cache key b, got 'a'"
    ):
        load(tmp_path / "artifact", signing_key=key, cache_key="b")
    for cache_key in ("a", None):
        assert load(tmp_path / "artifact", signing_key=key, cache_key=cache_key).kind == "native"


def test_save_refuses_what_it_can_not_do(online, key, tmp_path):
    artifact = tmp_path / "artifact"
    save(online, artifact, key)
    with pytest.raises(ArtifactExists, match=str(artifact)):
        save(online, artifact, key)
    with pytest.raises(UsageError, match="got a native one"):
        save(load(artifact, signing_key=key), tmp_path / "again", key)
    assert not (tmp_path / "again").exists()


def callback(params, images):
    shape = jax.ShapeDtypeStruct((len(images), 10), "float32")
    return jax.pure_callback(lambda x: np.zeros((len(x), 10), np.float32), shape, images)


def effect(params, images):
    jax.debug.print("{}", images.sum())
    return jnp.zeros((len(images), 10))


def over_other_devices(params, images):
    others = make_mesh(MESH, jax.devices()[8:16])
    local = jax.shard_map(lambda x: x * 1.0, mesh=others, in_specs=P("data"), out_specs=P("data"))
    return local(jnp.zeros((len(images), 10)))


@pytest.mark.parametrize(
    ("apply", "reason"),
    [(callback, "callbacks"), (effect, "callbacks"), (over_other_devices, "device")],
)
def test_a_program_that_can_not_be_exported_is_refused_before_anything_is_written(online, key, tmp_path, apply, reason):
    executable = dataclasses.replace(online, program=dataclasses.replace(online.program, apply=apply))
    expected = f"a program must be one that JAX can export to be saved, got toy: .*{reason}"
    with pytest.raises(UsageError, match=expected) as caught:
        save(executable, tmp_path / "new" / "artifact", key)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("part", ["write_tensors", "write_file"])
def test_a_failed_save_leaves_nothing_and_names_the_path(online, key, tmp_path, monkeypatch, part):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, part, fail)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'new' / 'artifact'}'"):
        save(online, tmp_path / "new" / "artifact", key)
    assert list((tmp_path / "new").iterdir()) == []
