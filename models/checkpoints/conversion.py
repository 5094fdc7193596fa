"""Between the tensors of a PyTorch checkpoint and a ResNet's variables: names, layouts, the architecture they imply.

No file format is known here: `models.checkpoints.tensor_files` gives tensors by name, whatever the file.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from cambrian.models.checkpoints.naming import NAMINGS, Naming, find_networks, hugging_face_name
from cambrian.models.resnet.architecture import STEM_KERNELS, Architecture
from cambrian.models.resnet.variables import Variables, check_variables, expected_shapes
from cambrian.sharding import UsageError

_INTEGERS = (np.dtype(np.int8), np.dtype(np.uint8))
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # by number of dimensions
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_BATCH_COUNTER = "num_batches_tracked"  # of a batch norm, which nothing here depends on
_AVERAGED = "n_averaged"  # nor on the counter of an average


def import_tensors(
    tensors: Mapping[str, np.ndarray], source: str
) -> tuple[Architecture, dict[str, np.ndarray], tuple[str, ...]]:
    """Turns the tensors of a PyTorch checkpoint into an architecture and its variables.

    Args:
      tensors: name → array in PyTorch's layouts, under the names of torchvision, timm or Hugging Face, perhaps behind
        the prefix of a wrapper such as `module.`. Any floating-point dtype; or int8 or uint8 with a tensor NAME_scale
        (channels, 1, …), as compressed-tensors stores them, which stand for value × scale. `num_batches_tracked` of a
        batch norm is dropped, and so is `n_averaged`, which PyTorch's AveragedModel has beside its `module.`.
      source: where they come from, for messages.

    Returns:
      The architecture, all its variables (see `models.resnet.variables`), float32, and notes. Depth, stem kernel, width
      and number of classes are read from the tensors; a 7×7 stem is taken to be `imagenet`, a 3×3 one `cifar`.

    Raises:
      UsageError: naming source and key, if there isn't exactly one network, or a tensor is missing, left over, of the
        wrong shape or dtype, not finite, or a negative variance.
    """
    prefix, naming = _find_network(tensors, source)
    architecture = _find_architecture(tensors, naming, source)
    left_over = {
        key: tensor for key, tensor in tensors.items() if not prefix.startswith(f"{key.removesuffix(_AVERAGED)}module.")
    }
    variables = {}
    for variable, shape in expected_shapes(architecture).items():
        key = naming(variable)
        tensor = _require(left_over, key, source)
        if tensor.dtype in _INTEGERS:
            tensor = _scaled(tensor, left_over, f"{key}_scale", source)
            del left_over[f"{key}_scale"]
        variables[variable] = _convert(tensor, shape, f"{key} of {source}")
        del left_over[key]
        if variable.endswith(".var"):
            _check_variances(variables[variable], f"{key} of {source}")
            left_over.pop(key.replace("running_var", _BATCH_COUNTER), None)
    if left_over:
        raise UsageError(f"every tensor must belong to {architecture.name}, {source} also has {_listed(left_over)}")
    return architecture, variables, (f"prefix {prefix} stripped from tensor names in {source}",) if prefix else ()


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


def _find_network(tensors: Mapping[str, np.ndarray], source: str) -> tuple[str, Naming]:
    """The prefix of the network's names, and a naming that includes it."""
    networks = find_networks(tensors)
    if len(networks) > 1:
        stems = sorted(prefix + naming("conv1.kernel") for prefix, naming in networks)
        raise UsageError(f"weights must be those of one network, {source} has {_listed(stems)}")
    if not networks:
        stems = [naming("conv1.kernel") for naming in NAMINGS.values()]
        raise UsageError(
            f"weights must be a ResNet's, with one of the keys {', '.join(stems)} and a first block, {source} has "
            f"{_listed(tensors or ['no tensors'])}"
        )
    prefix, naming = networks[0]
    return prefix, lambda variable: prefix + naming(variable)


def _find_architecture(tensors: Mapping[str, np.ndarray], naming: Naming, source: str) -> Architecture:
    stem_key, head_key = naming("conv1.kernel"), naming("fc.kernel")
    stem = tensors[stem_key]
    stem_of_kernel = {kernel: name for name, kernel in STEM_KERNELS.items()}
    if stem.ndim != 4 or stem.shape[3] not in stem_of_kernel:
        kernels = " or ".join(f"{kernel}×{kernel}" for kernel in stem_of_kernel)
        raise UsageError(f"{stem_key} of {source} must have a kernel of {kernels}, got shape {stem.shape}")
    body = Architecture(
        stem=stem_of_kernel[stem.shape[3]],
        blocks=tuple(_count_blocks(tensors, naming)),
        bottleneck=any(naming(f"layer1.0.{part}") in tensors for part in ("conv3.kernel", "bn3.scale")),
        num_classes=1,
        width=stem.shape[0],
    )
    if head_key not in tensors:
        names = {naming(variable) for variable in expected_shapes(body)}
        others = [key for key in tensors if key not in names and not key.endswith(_BATCH_COUNTER)]
        raise UsageError(f"weights must have the last layer {head_key}, {source} has {_listed(others or ['none'])}")
    head = tensors[head_key]
    if head.ndim != 2:
        raise UsageError(f"{head_key} of {source} must have shape (classes, channels), got {head.shape}")
    return dataclasses.replace(body, num_classes=head.shape[0])


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
        raise UsageError(f"weights must have the tensor {key}, which {source} lacks")
    return tensors[key]


def _scaled(tensor: np.ndarray, tensors: Mapping[str, np.ndarray], scale_key: str, source: str) -> np.ndarray:
    """Integers times the scale of their output channel, float32."""
    scale = _require(tensors, scale_key, source)
    shape = (*tensor.shape[:1], *(1 for _ in tensor.shape[1:]))
    if scale.shape != shape:
        raise UsageError(f"{scale_key} of {source} must have shape {shape}, got {scale.shape}")
    scale = _float32(scale, f"{scale_key} of {source}")
    with np.errstate(over="ignore"):  # refused later, as infinite
        return tensor.astype(np.float32) * scale


def _convert(tensor: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """From PyTorch's layout to ours, whose shape is `shape`."""
    from_torch = _FROM_TORCH[len(shape)]
    needed = tuple(shape[from_torch.index(axis)] for axis in range(len(shape)))
    if tensor.shape != needed:
        raise UsageError(f"{what} must have shape {needed}, got {tensor.shape}")
    return np.ascontiguousarray(_float32(tensor, what).transpose(from_torch))


def _float32(tensor: np.ndarray, what: str) -> np.ndarray:
    if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
        raise UsageError(f"{what} must hold floating-point numbers, got {tensor.dtype}")
    with np.errstate(over="ignore"):  # what doesn't fit into float32 becomes infinite
        value = tensor.astype(np.float32)
    finite = np.isfinite(value)
    if not finite.all():
        raise UsageError(
            f"{what} must be finite in float32, got {tensor[~finite][0]} among {np.count_nonzero(~finite)} such values"
        )
    return value


def _check_variances(value: np.ndarray, what: str) -> None:
    if (value < 0).any():
        raise UsageError(f"{what} must hold variances of at least 0, got {value.min()}")


def _listed(keys: Collection[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(sorted(keys)[:3]) + more
