"""Reads other people's weights.

A checkpoint is read in two steps: a reader of its file format gives tensors by name (`read_safetensors`), then
`import_tensors`, which knows no format, recognises the naming, finds the architecture in the shapes and converts the
layouts. Another format needs another reader and nothing else.
"""

import os
from collections.abc import Iterator, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open

from models.architecture import STEM_KERNELS, Architecture
from models.naming import NAMINGS, Naming
from models.variables import expected_shapes
from sharding import UsageError

_FLOATS = ("float64", "float32", "float16", "bfloat16")


def read_weights(path: str | os.PathLike) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Reads a safetensors file with a ResNet under the names of torchvision, timm or Hugging Face.

    Depth, stem, width and number of classes are read from the tensors; a 7×7 stem is taken to be `imagenet`, a 3×3 one
    `cifar`.

    Returns:
      The architecture and all its variables (see `models.variables`), float32.

    Raises:
      UsageError: naming file and key, if the file can't be read, its naming isn't recognised, or a tensor is missing,
        left over, of the wrong shape, or holds no floating-point numbers.
    """
    return import_tensors(read_safetensors(path), source=str(path))


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name.

    Raises:
      UsageError: if there is no such file, or it isn't a safetensors file.
    """
    if not os.path.isfile(path):
        raise UsageError(f"weights need to be a safetensors file, got {path}, which is no file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"weights need to be a readable safetensors file, got {path}: {error}") from None


def import_tensors(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Turns the tensors of a PyTorch checkpoint into an architecture and its variables.

    Args:
      tensors: name → array in PyTorch's layouts; `num_batches_tracked` of a batch norm is dropped.
      source: where they come from, for messages.

    Returns, raises: as `read_weights`.
    """
    naming = _recognise_naming(tensors, source)
    architecture = _find_architecture(tensors, naming, source)
    left_over = dict(tensors)
    variables = {}
    for variable, shape in expected_shapes(architecture).items():
        key = naming(variable)
        tensor = _require(left_over, key, source)
        variables[variable] = _convert(tensor, shape, f"{key} of {source}")
        del left_over[key]
        if variable.endswith(".var"):
            left_over.pop(key.replace("running_var", "num_batches_tracked"), None)
    if left_over:
        more = f" and {len(left_over) - 1} more" if len(left_over) > 1 else ""
        raise UsageError(f"every tensor must belong to {architecture.name}, {source} also has {min(left_over)}{more}")
    return architecture, variables


def _recognise_naming(tensors: Mapping[str, np.ndarray], source: str) -> Naming:
    stems = {naming("conv1.kernel"): naming for naming in NAMINGS.values()}
    found = [naming for key, naming in stems.items() if key in tensors]
    if len(found) != 1:
        got = f"keys such as {min(tensors)}" if tensors else "no tensors"
        raise UsageError(f"weights need exactly one of the keys {' or '.join(stems)}, {source} has {got}")
    return found[0]


def _find_architecture(tensors: Mapping[str, np.ndarray], naming: Naming, source: str) -> Architecture:
    stem_key, head_key = naming("conv1.kernel"), naming("fc.kernel")
    stem, head = _require(tensors, stem_key, source), _require(tensors, head_key, source)
    stem_of_kernel = {kernel: name for name, kernel in STEM_KERNELS.items()}
    if stem.ndim != 4 or stem.shape[3] not in stem_of_kernel:
        kernels = " or ".join(f"{kernel}×{kernel}" for kernel in stem_of_kernel)
        raise UsageError(f"{stem_key} of {source} needs a kernel of {kernels}, got shape {stem.shape}")
    _require(tensors, naming("layer1.0.conv1.kernel"), source)
    if head.ndim != 2:
        raise UsageError(f"{head_key} of {source} needs shape (classes, channels), got {head.shape}")
    return Architecture(
        stem=stem_of_kernel[stem.shape[3]],
        blocks=tuple(_count_blocks(tensors, naming)),
        bottleneck=any(naming(f"layer1.0.{part}") in tensors for part in ("conv3.kernel", "bn3.scale")),
        num_classes=head.shape[0],
        width=stem.shape[0],
    )


def _count_blocks(tensors: Mapping[str, np.ndarray], naming: Naming) -> Iterator[int]:
    # Two tensors of a block are looked for, so that a block that lacks one is reported as such, not as its end.
    def has_block(stage: int, block: int) -> bool:
        return any(naming(f"layer{stage}.{block}.{part}") in tensors for part in ("conv1.kernel", "conv2.kernel"))

    stage = 1
    while has_block(stage, 0):
        count = 1
        while has_block(stage, count):
            count += 1
        yield count
        stage += 1


def _require(tensors: Mapping[str, np.ndarray], key: str, source: str) -> np.ndarray:
    if key not in tensors:
        raise UsageError(f"weights need the tensor {key}, which {source} lacks")
    return tensors[key]


def _convert(tensor: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """From PyTorch's layout to ours, whose shape is `shape`."""
    from_torch = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[len(shape)]
    needed = tuple(shape[from_torch.index(axis)] for axis in range(len(shape)))
    if tensor.shape != needed:
        raise UsageError(f"{what} needs shape {needed}, got {tensor.shape}")
    if tensor.dtype.name not in _FLOATS:
        raise UsageError(f"{what} needs floating-point numbers ({', '.join(_FLOATS)}), got {tensor.dtype}")
    return np.ascontiguousarray(tensor.transpose(from_torch), np.float32)
