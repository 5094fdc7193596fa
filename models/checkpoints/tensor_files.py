"""Files of tensors: safetensors, and PyTorch's own, of which nothing but tensors is ever unpickled."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cambrian.sharding import UsageError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, by name: of PyTorch if its suffix is .pth, .pt or .bin, else safetensors.

    Raises:
      UsageError: if there is no such file, it has another format, or it needs the extra `torch`, which isn't installed.
    """
    if not path.is_file():
        raise UsageError(f"weights need to be a safetensors file or a model folder, got {path}, which is no file")
    return read_torch(path) if path.suffix in TORCH_SUFFIXES else read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name.

    Raises:
      UsageError: if it isn't a safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"weights need to be a readable safetensors file, got {path}: {error}") from None


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that PyTorch saved, by name; bfloat16 and float16 become float32.

    Raises:
      UsageError: if PyTorch isn't installed, or the file holds anything but a state dict.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            f"a file of PyTorch needs the extra torch (pip install 'cambrian[torch]'), got {path} without it"
        ) from None
    try:
        # A free pickle could run any code: weights_only allows tensors and plain containers.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and others, by the kind of damage
        raise UsageError(
            f"weights need to be tensors only, in a file of PyTorch, got {path}, which its weights_only reader "
            f"refuses: {type(error).__name__}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        got = f"a dict with {', '.join(map(str, list(state)[:3]))}" if isinstance(state, dict) else type(state).__name__
        raise UsageError(f"weights need to be a state dict (name → tensor), {path} holds {got}")
    return {
        str(name): (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()
        for name, tensor in state.items()
    }
