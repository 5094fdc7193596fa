"""Tensor files: safetensors with every tensor aligned to 64 bytes, so that a memory map of it is used as it lies.

XLA uses host memory in place, and shares it between virtual devices, only where it is aligned. The format
(https://github.com/huggingface/safetensors#format) allows no holes: the header is padded with spaces, and filler
tensors of uint8 stand after a tensor that doesn't end on a multiple of 64.
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

from cambrian.engine.errors import DamagedArtifact
from cambrian.sharding import ALIGNMENT

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
      ValueError: if two tensors have the same name, one has a filler's, or a dtype that safetensors doesn't know.
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
            raise ValueError(f"tensors need distinct names that don't start with {_FILLER!r}, got {name!r}")
        if array.dtype not in _CODES:
            raise ValueError(f"tensors need one of the dtypes {', '.join(map(str, _CODES))}, got {name}: {array.dtype}")
        append(name, array)
        if end % ALIGNMENT:
            append(f"{_FILLER}{len(parts)}", np.zeros(-end % ALIGNMENT, np.uint8))

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for data in (len(text).to_bytes(_LENGTH_BYTES, "little"), text, *map(_bytes_of, parts)):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _bytes_of(array: np.ndarray) -> memoryview:
    # bfloat16 has no buffer protocol of its own.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def map_tensors(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Maps a safetensors file into memory.

    Args:
      sha256: what the file must hash to; checked on the very mapping that is returned.

    Returns:
      Name → read-only array, views of one mapping; nothing is copied, and pages are read as they are used.

    Raises:
      DamagedArtifact: naming the file, if it can't be read, isn't a safetensors file or has another hash.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
        raise DamagedArtifact(f"{path} must be a readable tensor file: {error}") from None
    if sha256 is not None and hashlib.sha256(data.data).hexdigest() != sha256:
        raise DamagedArtifact(f"{path} must have the SHA-256 that the manifest states, {sha256}, but has another")
    try:
        return _views(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(f"{path} must be a valid safetensors file: {error}") from None


def _views(data: np.ndarray) -> dict[str, np.ndarray]:
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    if start > len(data):
        raise ValueError(f"its header says {start} bytes, the file has {len(data)}")
    header = json.loads(data[_LENGTH_BYTES:start].tobytes())
    views = {}
    for name, entry in header.items():
        if name == "__metadata__" or name.startswith(_FILLER):
            continue
        dtype, shape, (first, last) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not 0 <= first <= last <= len(data) - start or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} lies at bytes {first} to {last} of {len(data) - start}")
        views[name] = data[start + first : start + last].view(dtype).reshape(shape)
    return views
