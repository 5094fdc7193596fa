import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec as P

from cambrian.engine.artifact.layout import read_verified
from cambrian.engine.artifact.manifest import FileRecord
from cambrian.engine.artifact.tensor_file import parse_tensors, write_tensors
from cambrian.engine.errors import DamagedArtifact
from cambrian.engine.runtime.compile import put_params
from cambrian.sharding import TensorSpec, aligned, make_mesh
from cambrian.sharding.host import acquire_devices
from toy_program import MESH

TENSORS = [
    ("scalar", np.float32(3.5).reshape(())),
    ("odd", np.arange(7, dtype=np.int8)),
    ("empty", np.zeros((0, 4), np.float64)),
    ("half", np.linspace(-2, 2, 33).astype(ml_dtypes.bfloat16)),
    ("flags", np.array([True, False, True])),
    ("transposed", np.arange(12, dtype=np.int64).reshape(3, 4).T),
    ("whole lines", np.arange(32, dtype=np.float32)),
]


def read_tensors(path):
    return parse_tensors(read_verified(path, FileRecord.of(path.read_bytes())), path)


@pytest.fixture
def mesh():
    return make_mesh(MESH, acquire_devices(MESH.num_devices, "cpu")[0])


def test_round_trip(tmp_path):
    path = tmp_path / "tensors.safetensors"
    digest = write_tensors(path, TENSORS)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    tensors = read_tensors(path)
    assert list(tensors) == [name for name, _ in TENSORS]
    for name, array in TENSORS:
        np.testing.assert_array_equal(tensors[name], array, strict=True)
        assert not tensors[name].flags.writeable


def test_every_tensor_is_aligned_in_the_file(tmp_path):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS)
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    starts = {name: 8 + header_bytes + entry["data_offsets"][0] for name, entry in header.items()}
    assert [name for name, _ in TENSORS if starts[name] % 64] == []
    assert [array.ctypes.data % 64 for array in read_tensors(path).values()] == [0] * len(TENSORS)


def test_the_safetensors_library_reads_it(tmp_path):
    path = tmp_path / "tensors.safetensors"
    tensors = [(name, array) for name, array in TENSORS if array.dtype != ml_dtypes.bfloat16]
    write_tensors(path, tensors)
    found = safetensors.numpy.load_file(path)
    for name, array in tensors:
        np.testing.assert_array_equal(found.pop(name), array, strict=True)
    assert all(name.startswith("_pad.") and array.dtype == np.uint8 for name, array in found.items())
    write_tensors(tmp_path / "half.safetensors", TENSORS)
    with safetensors.safe_open(tmp_path / "half.safetensors", "np") as file:
        assert file.get_slice("half").get_dtype() == "BF16"


def test_it_reads_what_the_safetensors_library_writes(tmp_path):
    path = tmp_path / "foreign.safetensors"
    tensors = {name: np.ascontiguousarray(array) for name, array in TENSORS}
    safetensors.numpy.save_file(tensors, path, metadata={"format": "np"})
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("name", ["twice", "_pad.0"])
def test_names_that_would_be_lost_are_refused(tmp_path, name):
    tensors = [("twice", np.zeros(16, np.float32)), (name, np.zeros(16, np.float32))]
    with pytest.raises(ValueError, match=name):
        write_tensors(tmp_path / "tensors.safetensors", tensors)


def buffers(array: jax.Array) -> set[int]:
    return {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_virtual_devices_share_the_memory_that_a_file_was_read_to(tmp_path, mesh, dtype):
    values = np.arange(2 * 4096).reshape(2, 4096).astype(dtype)
    write_tensors(tmp_path / "tensors.safetensors", [("odd", np.zeros(3, np.uint8)), ("values", values)])
    read = read_tensors(tmp_path / "tensors.safetensors")["values"]
    address = read.ctypes.data
    replicated, cut = put_params(
        [read, read], [TensorSpec("a", read.shape, dtype), TensorSpec("b", read.shape, dtype, P("model"))], mesh
    )
    assert buffers(replicated) == {address}
    assert buffers(cut) == {address, address + read[0].nbytes}
    assert buffers(jax.device_put(read, NamedSharding(mesh, P()))) == {address}
    np.testing.assert_array_equal(np.asarray(cut), values, strict=True)


def test_unaligned_and_writable_arrays_are_copied_once(mesh):
    memory = np.zeros(4096 * 4 + 64, np.uint8)
    start = -memory.ctypes.data % 64 + 4
    unaligned = memory[start : start + 4096 * 4].view(np.float32)
    (array,) = put_params([unaligned], [TensorSpec("a", unaligned.shape, "float32")], mesh)
    assert len(buffers(array)) == 1
    unaligned[:] = 1
    assert not np.asarray(array).any()
    copy = aligned(unaligned)
    assert aligned(copy) is copy


def damage(data: bytes, how: str) -> bytes:
    header_bytes = int.from_bytes(data[:8], "little")
    match how:
        case "empty":
            return b""
        case "cut in the length":
            return data[:5]
        case "cut in the header":
            return data[:40]
        case "cut in the data":
            return data[:-200]
        case "not json":
            return data[:8] + b"x" + data[9:]
        case "not an object":
            return data[:8] + b"[]".ljust(header_bytes) + data[8 + header_bytes :]
        case "nested":
            return (depth := 10_000).to_bytes(8, "little") + b"[" * depth
        case "not utf-8":
            return data[:10] + bytes([255]) + data[11:]
        case "unknown dtype":
            return data.replace(b'"F64"', b'"F65"')
        case "wrong shape":
            return data.replace(b'"shape":[32]', b'"shape":[31]')
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut in the length",
        "cut in the header",
        "cut in the data",
        "not json",
        "not an object",
        "nested",
        "not utf-8",
        "unknown dtype",
        "wrong shape",
    ],
)
def test_a_malformed_file_is_named(tmp_path, how):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS)
    data = path.read_bytes()
    assert damage(data, how) != data
    path.write_bytes(damage(data, how))
    with pytest.raises(DamagedArtifact, match=str(path)):
        read_tensors(path)


@pytest.mark.parametrize("num_bytes", [0, 1, 2**20 - 1, 2**20, 2**20 + 1])
def test_what_is_hashed_is_what_is_returned(tmp_path, num_bytes):
    path = tmp_path / "file"
    data = np.random.default_rng(0).bytes(num_bytes)
    path.write_bytes(data)
    record = FileRecord(hashlib.sha256(data).hexdigest(), num_bytes)
    content = read_verified(path, record)
    path.write_bytes(b"changed")
    assert content.tobytes() == data and not content.flags.writeable
    assert not num_bytes or content.ctypes.data % 64 == 0


def test_a_file_that_is_not_what_its_record_states_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    record = FileRecord.of(b"0123456789")
    for damaged, message in ((b"0123456788", "SHA-256"), (b"012345678", "must have 10 bytes, got 9")):
        path.write_bytes(damaged)
        with pytest.raises(DamagedArtifact, match=f"{path} .*{message}"):
            read_verified(path, record)
    with pytest.raises(DamagedArtifact, match="absent must be a readable file: No such file"):
        read_verified(tmp_path / "absent", record)


@pytest.mark.parametrize("entry", ["-1", "1.0", "true", '"7"', "[7]", "1" + "0" * 30])
def test_a_shape_that_is_none_is_named(tmp_path, entry):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS)
    data = path.read_bytes()
    changed = data.replace(b'"shape":[7]', f'"shape":[{entry}]'.encode(), 1)
    header_bytes = int.from_bytes(data[:8], "little") + len(changed) - len(data)
    path.write_bytes(header_bytes.to_bytes(8, "little") + changed[8:])
    with pytest.raises(DamagedArtifact, match=f"{path} must be a valid safetensors file: .*odd"):
        read_tensors(path)
