"""Quantises the float ResNet101 for CIFAR-10 into the int8 model folder that ships with the package.

    python quantise.py SOURCE.safetensors FOLDER

Kernels become int8 with a float32 scale for each output channel, stored beside them as `weight_scale`; all else is
float32. Names and config.json follow compressed-tensors (format `int-quantized`).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save_file

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Conv2d", "Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": [],
}
CONFIG = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 23, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "stem_kernel_size": 3,
    "stem_stride": 1,
    "stem_pooling": False,
    "id2label": {str(number): label for number, label in enumerate(LABELS)},
    "label2id": {label: number for number, label in enumerate(LABELS)},
    "quantization_config": QUANTIZATION,
}
PREPROCESSOR_CONFIG = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 2,  # bilinear
    "do_normalize": True,
    "image_mean": [0.4914, 0.4822, 0.4465],
    "image_std": [0.2470, 0.2435, 0.2616],
}


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a kernel to int8, symmetric for each output channel, half to even.

    Args:
      weight: float32, output channels first.

    Returns:
      int8 values from -127 to 127, and float32 scales of shape (channels, 1, …): their product approximates `weight`.
    """
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    return np.rint(weight / scale).astype(np.int8), scale


def quantise_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Quantises every tensor of two or more dimensions and adds its `weight_scale`; keeps the others."""
    quantised = {}
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            quantised[name], quantised[f"{name}_scale"] = quantise(tensor)
        else:
            quantised[name] = tensor
    return quantised


def read_float32(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file of float32 and bfloat16 as float32."""
    return {
        name: _float32(tensor["data"], tensor["dtype"]).reshape(tensor["shape"])
        for name, tensor in deserialize(path.read_bytes())
    }


def _float32(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32; NumPy has no such type
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if dtype == "F32":
        return np.frombuffer(data, "<f4")
    raise ValueError(f"expected tensors of float32 or bfloat16, got {dtype}")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="safetensors file, kernels in float32 or bfloat16")
    parser.add_argument("folder", type=Path, help="model folder to write")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    tensors = quantise_tensors(read_float32(arguments.source))
    save_file(tensors, arguments.folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(arguments.folder / "config.json", CONFIG)
    _write_json(arguments.folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)


if __name__ == "__main__":
    main()
