"""Properties: any manifest and any tensor file is read in full, or refused by an error that names the file."""

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from cambrian.engine.artifact.manifest import MANIFEST, Manifest, read_manifest
from cambrian.engine.artifact.save import save
from cambrian.engine.artifact.tensor_file import parse_tensors, write_tensors
from cambrian.engine.errors import DamagedArtifact
from cambrian.engine.runtime.compile import compile_program
from cambrian.models.checkpoints.tensor_files import read_tensors
from cambrian.sharding import UsageError
from strategies import BOUNDED, JSON, NUMBERS, TEXTS, mutated
from toy_program import toy_program

DTYPES = st.sampled_from(["F32", "BF16", "I8", "BOOL", "F8_E4M3", "F4", "f32", ""])
OFFSETS = st.one_of(st.lists(st.integers(0, 64), min_size=2, max_size=2), st.lists(NUMBERS, max_size=3))
SHAPES = st.one_of(st.lists(st.integers(0, 8), max_size=3), st.lists(NUMBERS, max_size=3))
ENTRIES = st.fixed_dictionaries({}, optional={"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS, "more": JSON})
HEADERS = st.dictionaries(st.one_of(TEXTS, st.just("__metadata__")), st.one_of(ENTRIES, JSON), max_size=3)


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """Keys that lead to every value within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in inner for found in places(item, (*place, key)))]


def replaced(value: Any, place: tuple, new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def tensor_file(header: bytes, content: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + content


def check_tensor_file(folder, content: bytes) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(DamagedArtifact):
        check_tensors(parse_tensors(np.frombuffer(content, np.uint8), path), content)
    with contextlib.suppress(UsageError):
        check_tensors(read_tensors(path)[0], content)


def check_tensors(tensors: dict[str, np.ndarray], content: bytes) -> None:
    for array in tensors.values():
        assert array.nbytes == math.prod(array.shape) * array.itemsize <= len(content)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("saved")
    save(compile_program(toy_program()), folder / "artifact", folder / "key")
    return json.loads((folder / "artifact" / MANIFEST).read_bytes())


@BOUNDED
@given(data=st.data(), value=JSON)
def test_any_value_in_any_field_of_a_manifest(manifest, tmp_path, data, value):
    place = data.draw(st.sampled_from(places(manifest)))
    (tmp_path / MANIFEST).write_text(json.dumps(replaced(manifest, place, value)))
    with contextlib.suppress(DamagedArtifact):
        read, is_signed = read_manifest(tmp_path, None)
        assert not is_signed and Manifest.from_json(json.loads(json.dumps(read.to_json()))) == read


@BOUNDED
@given(data=st.data())
def test_any_damage_to_a_manifest(manifest, tmp_path, data):
    (tmp_path / MANIFEST).write_bytes(data.draw(mutated(json.dumps(manifest).encode())))
    with contextlib.suppress(DamagedArtifact):
        assert not read_manifest(tmp_path, bytes(32))[1]


@BOUNDED
@given(header=HEADERS, content=st.binary(max_size=64))
def test_any_header_of_a_tensor_file(tmp_path, header, content):
    check_tensor_file(tmp_path, tensor_file(json.dumps(header).encode(), content))


@BOUNDED
@given(content=st.one_of(st.binary(max_size=200), st.builds(tensor_file, st.binary(max_size=99), st.binary())))
def test_any_bytes_as_a_tensor_file(tmp_path, content):
    check_tensor_file(tmp_path, content)


@BOUNDED
@given(data=st.data())
def test_any_damage_to_a_tensor_file(tmp_path, data):
    path = tmp_path / "whole.safetensors"
    if not path.exists():
        write_tensors(path, [("a", np.arange(6, dtype=np.float32).reshape(2, 3)), ("b", np.ones(3, np.int8))])
    check_tensor_file(tmp_path, data.draw(mutated(path.read_bytes())))
