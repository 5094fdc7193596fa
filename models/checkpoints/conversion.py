"""Between the tensors of a PyTorch checkpoint and a ResNet's variables: names, layouts, the architecture they imply.

No file format is known here: `models.checkpoints.tensor_files` gives tensors by name, whatever the file.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from cambrian.models.checkpoints.naming import NAMINGS, Naming, hugging_face_name
from cambrian.models.resnet.architecture import STEM_KERNELS, Architecture
from cambrian.models.resnet.variables import Variables, check_variables, expected_shapes
from cambrian.sharding import UsageError

_FLOATS = ("float64", "float32", "float16", "bfloat16")
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # by number of dimensions
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_BATCH_COUNTER = "num_batches_tracked"  # of a batch norm, which nothing here depends on


def import_tensors(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Turns the tensors of a PyTorch checkpoint into an architecture and its variables.

    Args:
      tensors: name → array in PyTorch's layouts, under the names of torchvision, timm or Hugging Face;
        `num_batches_tracked` of a batch norm is dropped.
      source: where they come from, for messages.

    Returns:
      The architecture and all its variables (see `models.resnet.variables`), float32. Depth, stem kernel, width and
      number of classes are read from the tensors; a 7×7 stem is taken to be `imagenet`, a 3×3 one `cifar`.

    Raises:
      UsageError: naming source and key, if the naming isn't recognised, or a tensor is missing, left over, of the wrong
        shape, or holds no floating-point numbers.
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
            left_over.pop(key.replace("running_var", _BATCH_COUNTER), None)
    if left_over:
        more = f" and {len(left_over) - 1} more" if len(left_over) > 1 else ""
        raise UsageError(f"every tensor must belong to {architecture.name}, {source} also has {min(left_over)}{more}")
    return architecture, variables


def export_tensors(architecture: Architecture, variables: Variables) -> dict[str, np.ndarray]:
    """The inverse of `import_tensors` under the names of Hugging Face, as `ResNetForImageClassification` loads them.

    Returns:
      Name → contiguous float32 array in PyTorch's layouts; for each batch norm a `num_batches_tracked` of 0, int64.

    Raises:
      UsageError: naming the variable, if one is missing, left over, or of the wrong shape.
    """
    check_variables(architecture, variables)
    tensors: dict[str, np.ndarray] = {}
    for variable in expected_shapes(architecture):
        key, value = hugging_face_name(variable), np.asarray(variables[variable], np.float32)
        tensors[key] = np.ascontiguousarray(value.transpose(_TO_TORCH[value.ndim]))
        if variable.endswith(".var"):
            tensors[key.replace("running_var", _BATCH_COUNTER)] = np.zeros((), np.int64)
    return tensors


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
    from_torch = _FROM_TORCH[len(shape)]
    needed = tuple(shape[from_torch.index(axis)] for axis in range(len(shape)))
    if tensor.shape != needed:
        raise UsageError(f"{what} needs shape {needed}, got {tensor.shape}")
    if tensor.dtype.name not in _FLOATS:
        raise UsageError(f"{what} needs floating-point numbers ({', '.join(_FLOATS)}), got {tensor.dtype}")
    return np.ascontiguousarray(tensor.transpose(from_torch), np.float32)
