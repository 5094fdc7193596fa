"""OpenVINO on the network of the same name in timm or torchvision, with random weights, in a process of its own."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

_NAMES = {  # name in keras.applications → name in timm
    "ConvNeXtTiny": "convnext_tiny",
    "ConvNeXtSmall": "convnext_small",
    "ConvNeXtBase": "convnext_base",
    "DenseNet121": "densenet121",
    "DenseNet169": "densenet169",
    "DenseNet201": "densenet201",
    "EfficientNetB0": "efficientnet_b0",
    "EfficientNetB1": "efficientnet_b1",
    "EfficientNetB2": "efficientnet_b2",
    "EfficientNetB3": "efficientnet_b3",
    "EfficientNetB4": "efficientnet_b4",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3Large": "mobilenetv3_large_100",
    "MobileNetV3Small": "mobilenetv3_small_100",
    "NASNetLarge": "nasnetalarge",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNet152": "resnet152",
    "VGG16": "vgg16",
    "VGG19": "vgg19",
    "Xception": "legacy_xception",
}


_runs: list[Callable[[float], float]] = []  # of this process


def prepare(name: str, batch: int, size: int, precision: str) -> int:
    """Compiles OpenVINO's latency and throughput mode in this process; returns how many modes there are.

    There are none if timm has no such network, or if OpenVINO, timm or PyTorch aren't installed.
    """
    try:
        import openvino  # pyright: ignore[reportMissingImports]
        import timm  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return 0
    if name not in _NAMES:
        return 0
    module = timm.create_model(_NAMES[name], pretrained=False).eval()
    shape = [batch, 3, size, size]
    model = openvino.convert_model(module, example_input=torch.zeros(*shape), input=shape)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    for mode in ("LATENCY", "THROUGHPUT"):
        config = {"PERFORMANCE_HINT": mode, "INFERENCE_PRECISION_HINT": hint}
        compiled = openvino.Core().compile_model(model, "CPU", config)
        requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if mode == "THROUGHPUT" else 1
        queue = openvino.AsyncInferQueue(compiled, requests)

        def run(seconds: float, queue: Any = queue) -> float:
            start, launches = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                queue.start_async([images])
                launches += 1
            queue.wait_all()
            return batch * launches / (time.perf_counter() - start)

        run(0.2)
        _runs.append(run)
    return len(_runs)


def rate(mode: int, seconds: float) -> float:
    """Runs a prepared mode for some seconds and returns images/s."""
    return _runs[mode](seconds)
