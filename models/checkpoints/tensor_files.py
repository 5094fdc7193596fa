"""Files of tensors: safetensors, and PyTorch's own, of which nothing but tensors is ever unpickled."""

import argparse
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cambrian.models.checkpoints.naming import find_networks
from cambrian.sharding import UsageError


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the tensors of a file, which its content shows to be of safetensors or PyTorch, whatever its name.

    Returns:
      Name → array, and notes on what wasn't read.

    Raises:
      UsageError: if there is no such file, it has another format, or it needs the extra `torch`, which isn't installed.
      OSError: if it can't be read.
    """
    if not path.is_file():
        kind = "is neither a file nor a folder" if path.exists() else "doesn't exist"
        raise UsageError(f"weights must be a safetensors or PyTorch file or a model folder, got {path}, which {kind}")
    with path.open("rb") as file:
        start = file.read(512)
    if start[8:9] == b"{":  # after eight bytes for the length of the header
        return read_safetensors(path), ()
    if start.startswith(b"\x93NUMPY") or (start.startswith(b"PK") and b".npy" in start):
        raise UsageError(f"weights must be a safetensors or PyTorch file, got {path}, a file of NumPy")
    if start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive since PyTorch 1.6, a pickle before
        return read_torch(path)
    if start.startswith(b"version https://git-lfs"):
        raise UsageError(f"weights must be a file of tensors, got {path}, a Git LFS pointer: git lfs pull fetches it")
    raise UsageError(f"weights must be a safetensors or PyTorch file, got {path}, which starts with {start[:8]!r}")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file, by name.

    Raises:
      UsageError: if it isn't a safetensors file, or holds floats of 8 bits or fewer.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError, AttributeError) as error:  # AttributeError: a dtype that NumPy lacks
        raise UsageError(f"weights must be a readable safetensors file, got {path}: {error}") from None


def read_torch(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the state dict in a file of PyTorch: the file's own, or one in dicts such as those of training scripts.

    Returns:
      Name → array, where a name starts with the keys that lead to the state dict, as in `model.conv1.weight`; and a
      note on the keys that weren't read. Every state dict with a ResNet is returned. bfloat16 and smaller floats become
      float32, sparse and quantised tensors dense ones.

    Raises:
      UsageError: if PyTorch isn't installed, the file holds objects other than tensors and plain containers, no state
        dict, or a tensor without values.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            f"PyTorch files need the extra torch (pip install 'cambrian[torch]'), got {path} without it"
        ) from None
    try:
        # A free pickle could run any code: weights_only allows tensors and plain containers. A Namespace, in which
        # timm's training keeps its flags, is one too.
        with (
            path.open("rb") as file,  # of a path, PyTorch would take the suffix for the format
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and others, by the kind of damage
        raise UsageError(
            f"weights must be tensors only, in a file of PyTorch, got {path}, which its weights_only reader refuses: "
            f"{_reason(error)}"
        ) from None
    found = {
        where: {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
        for where, state in _dicts(content)
    }
    found = {where: tensors for where, tensors in found.items() if tensors}
    with_networks = {where: tensors for where, tensors in found.items() if find_networks(tensors)}
    if not found:
        raise UsageError(f"weights must be a state dict (name → tensor), {path} holds {_shown(content)}")
    state_dicts = with_networks or found
    tensors = {
        where + name: _array(tensor, where + name, path)
        for where, tensors in state_dicts.items()
        for name, tensor in tensors.items()
    }
    unread = [str(key) for key in content if not any(f"{name}.".startswith(f"{key}.") for name in tensors)]
    return tensors, (f"not read in {path}: {', '.join(unread)}",) if unread else ()


def _dicts(content: object) -> Iterator[tuple[str, Mapping]]:
    """Each dict in nested ones once, after the keys that lead to it, joined by dots."""
    todo, seen = [("", content)], set()
    while todo:
        where, value = todo.pop()
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            yield where, value
            todo += [(f"{where}{key}.", inner) for key, inner in value.items()]


def _array(tensor: Any, name: str, path: Path) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    try:
        tensor = tensor.detach()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()
        return tensor.numpy()
    except Exception as error:  # RuntimeError, TypeError, NotImplementedError: by the kind of tensor
        raise UsageError(f"{name} of {path} must be a tensor with values: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The object that weights_only refuses, else the first line of what PyTorch says."""
    text = str(error)
    if refused := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {refused[1]}"
    return f"{type(error).__name__}: {text.strip().partition(chr(10))[0]:.100}"


def _shown(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {', '.join(map(str, list(content)[:3]))}"
    return type(content).__name__
