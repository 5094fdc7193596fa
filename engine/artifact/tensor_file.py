"""Tensor files: safetensors with every tensor aligned to 64 bytes, so that its content is used where it was read to.

XLA uses host memory in place, and shares it between virtual devices, only where it is aligned. The format
(https://github.com/huggingface/safetensors#format) allows no holes: spaces pad the header, and a filler tensor of
uint8 follows each tensor that doesn't end on a multiple of 64 bytes.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cambrian.engine.errors import damage_named
from cambrian.sharding import ALIGNMENT, UsageError
from cambrian.sharding.host.files import path_named

_FILLER = "_pad."
_LENGTH_BYTES = 8
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def write_tensors(path: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    """Writes a new safetensors file through to the disk, in the order given.

    Returns:
      The file's SHA-256, in hexadecimal.

    Raises:
      ValueError: if a name occurs twice or is reserved for fillers.
      UsageError: if safetensors has no such dtype.
      OSError: if the file can't be written; it names `path`.
    """
    header: dict[str, Any] = {}
    parts: list[np.ndarray] = []
    end = 0

    def append(name: str, array: np.ndarray) -> None:
        nonlocal end
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": array.shape,
            "data_offsets": [end, end + array.nbytes],
        }
        parts.append(array)
        end += array.nbytes

    for name, array in tensors:
        if name in header or name.startswith(_FILLER):
            raise ValueError(f"tensors must have distinct names that don't start with {_FILLER!r}, got {name!r}")
        if array.dtype not in _CODES:
            raise UsageError(f"{name} must have one of the dtypes {', '.join(map(str, _CODES))}, got {array.dtype}")
        append(name, array)
        if end % ALIGNMENT:
            append(f"{_FILLER}{len(parts)}", np.zeros(-end % ALIGNMENT, np.uint8))

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    with path_named(path), open(path, "xb") as file:
        for data in (len(text).to_bytes(_LENGTH_BYTES, "little"), text, *map(_bytes_of, parts)):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _bytes_of(array: np.ndarray) -> memoryview:
    # bfloat16 has no buffer protocol of its own.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def parse_tensors(data: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Args:
      data: the file's content, (num_bytes,) uint8.
      path: where it was read from, for errors.

    Returns:
      Name → array, views of `data`.

    Raises:
      DamagedArtifact: naming the file, if it isn't a safetensors file.
    """
    with damage_named(path, "a valid safetensors file"):
        start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
        if start > len(data):
            raise ValueError(f"its header ends at byte {start} of {len(data)}")
        header = json.loads(data[_LENGTH_BYTES:start].tobytes())
        return {
            name: _view(name, entry, data[start:])
            for name, entry in header.items()
            if name != "__metadata__" and not name.startswith(_FILLER)
        }


def _view(name: str, entry: dict[str, Any], data: np.ndarray) -> np.ndarray:
    dtype, shape, (first, last) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError(f"{name} must have a shape and offsets of whole numbers, got {shape} at {first} to {last}")
    if not first <= last <= len(data) or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} lies at bytes {first} to {last} of {len(data)}")
    return data[first:last].view(dtype).reshape(shape)
