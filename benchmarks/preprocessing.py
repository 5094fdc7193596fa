"""Our preprocessing against timm's, torchvision's and transformers' own, pixel by pixel.

    python benchmarks/preprocessing.py

Needs the extra `bench`. Each library prepares pictures of 20 sizes, generated so that every filter overshoots, under
many configurations; transformers by the processor that AutoImageProcessor makes of the file. Outputs are compared after
normalisation, in 255ths of the scale before it. Fails if any pixel is off by more than 2.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from absl import app, flags
from PIL import Image as PillowImage
from timm.data.config import resolve_data_config  # pyright: ignore[reportMissingImports]
from timm.data.transforms_factory import create_transform  # pyright: ignore[reportMissingImports]
from torchvision.models import get_model_weights  # pyright: ignore[reportMissingImports]

from benchmarks.tables import make_table, print_table
from cambrian.commands.images.preprocess import preprocess
from cambrian.models.checkpoints.hugging_face_processor import hugging_face_preprocessing, hugging_face_processor
from cambrian.models.checkpoints.preprocessing import timm_preprocessing, torchvision_preprocessing
from cambrian.sharding import Preprocessing

_LIBRARIES = flags.DEFINE_list("libraries", ["timm", "torchvision", "transformers"], "Libraries to compare with.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Print every comparison.")
_MOST = 2.0
# (width, height): landscape, portrait, square, tiny, very wide and very high ones, and the sizes that a crop leaves.
_PICTURES = (
    *((720, 477), (723, 473), (500, 375), (375, 500), (1023, 767), (2000, 1500)),
    *((640, 641), (224, 224), (256, 256), (235, 231)),
    *((64, 48), (33, 40), (7, 5), (2, 3), (1, 1)),
    *((1200, 300), (3000, 20), (20, 3000), (8000, 30), (300, 31000)),
)
Compute = Callable[[PillowImage.Image], np.ndarray]  # → (height, width, 3), normalised


def make_picture(width: int, height: int) -> PillowImage.Image:
    """Waves, hard edges and noise."""
    random = np.random.default_rng(width * 100_003 + height)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 127 * np.sin(x / a + y / b) for a, b in ((9.1, 31.0), (47.0, 5.3), (23.0, 17.0))]
    pixels = np.stack(waves, axis=-1) * 0.7 + random.normal(0, 25, (height, width, 3)) + 30
    edges = ((x // 13 + y // 7) % 5 == 0)[..., None]
    pixels = np.where(edges, random.choice([0, 255], (height, width, 1)), pixels)
    return PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8))


def timm_cases() -> Iterator[tuple[str, Preprocessing, Compute]]:
    configs: list[dict[str, Any]] = [
        {"architecture": "resnet50"},
        {"crop_pct": 0.95},
        {"crop_pct": 0.9, "interpolation": "bilinear"},
        {"crop_pct": 0.96, "interpolation": "lanczos", "mean": [0.5] * 3, "std": [0.5] * 3},
        {"crop_pct": 0.875, "interpolation": "nearest"},
        {"crop_pct": 0.95, "interpolation": "box"},
        {"crop_pct": 0.95, "interpolation": "hamming"},
        {"crop_pct": 1.0, "input_size": [3, 288, 288]},
        {"crop_pct": 1.1, "input_size": [3, 160, 160]},
        {"crop_pct": 1.0, "crop_mode": "squash", "input_size": [3, 384, 384]},
        {"crop_pct": 0.9, "crop_mode": "squash"},
        {"crop_pct": 1.0, "crop_mode": "border"},
        {"crop_pct": 0.9, "crop_mode": "border", "interpolation": "bilinear", "mean": [0.5] * 3},
        {"crop_pct": 0.95, "input_size": [3, 224, 160]},
        {"crop_pct": 0.875, "input_size": [3, 160, 257], "interpolation": "bilinear"},
        {"crop_pct": 0.9, "input_size": [3, 192, 256], "crop_mode": "squash"},
        {"crop_pct": 0.9, "input_size": [3, 192, 256], "crop_mode": "border"},
        {"crop_pct": 0.9, "input_size": [3, 32, 33]},
    ]
    for config in configs:
        transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
        yield str(config), timm_preprocessing(config, "config.json"), partial(_call, transform)


def torchvision_cases() -> Iterator[tuple[str, Preprocessing, Compute]]:
    for depth in (18, 34, 50, 101, 152):
        for weights in get_model_weights(f"resnet{depth}"):
            name = weights.url.rpartition("/")[2]
            preprocessing = torchvision_preprocessing(name)
            assert preprocessing is not None, name
            yield name, preprocessing, partial(_call, weights.transforms())


def transformers_cases() -> Iterator[tuple[str, Preprocessing, Compute]]:
    kind = "image_processor_type"
    microsoft = {"crop_pct": 0.875, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    height, width = {"height": 224, "width": 160}, {"height": 161, "width": 223}
    configs: list[dict[str, Any]] = [
        {"feature_extractor_type": "ConvNextFeatureExtractor", "resample": 3, "size": 224, **microsoft},
        {kind: "ConvNextImageProcessor"},
        {kind: "ConvNextImageProcessorFast", "size": {"shortest_edge": 224}},
        {kind: "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 2},
        {kind: "ConvNextImageProcessor", "size": 288, "crop_pct": 1.0, "resample": 1},
        {kind: "ConvNextImageProcessor", "size": 224, "resample": 0},
        {kind: "ConvNextImageProcessor", "size": 384, "resample": 0},
        {kind: "ConvNextImageProcessor", "size": {"shortest_edge": 223}, "do_normalize": False},
        {kind: "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "do_rescale": False},
        {kind: "ConvNextImageProcessor", "size": 224, "do_rescale": False, "do_normalize": False},
        {kind: "ConvNextImageProcessor", "size": 224, "rescale_factor": 1 / 127.5},
        {kind: "ConvNextImageProcessor", "size": 224, "rescale_factor": 1 / 127.5, "do_normalize": False},
        {kind: "ConvNextImageProcessor", "do_resize": False, "do_center_crop": True, "crop_size": 224},
        {kind: "ViTImageProcessor"},
        {kind: "ViTImageProcessor", "size": 384},
        {kind: "ViTImageProcessorFast", "size": height, "resample": 3},
        {kind: "ViTImageProcessor", "size": [200, 260], "do_center_crop": True, "crop_size": width},
        {kind: "ViTImageProcessor", "size": 256, "default_to_square": False, "do_center_crop": True, "crop_size": 224},
        {kind: "CLIPImageProcessor"},
        {kind: "CLIPImageProcessor", "size": {"shortest_edge": 235}, "resample": 2},
        {kind: "CLIPImageProcessor", "size": 256, "crop_size": width},
        {kind: "CLIPImageProcessor", "size": 336, "crop_size": 336, "resample": 1},
        {kind: "CLIPImageProcessor", "size": 160, "crop_size": 225},
        {kind: "CLIPImageProcessor", "size": 256, "crop_size": 224, "resample": 4},
        {kind: "CLIPImageProcessor", "size": 256, "crop_size": 224, "resample": 5},
        {kind: "CLIPImageProcessor", "do_resize": False},
        {kind: "CLIPImageProcessor", "size": {"height": 256, "width": 256}, "do_center_crop": False},
        {kind: "BitImageProcessor"},
        {kind: "BitImageProcessor", "size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}},
        {kind: "DeiTImageProcessor"},
        {kind: "DeiTImageProcessor", "size": 438, "crop_size": 384},
        {kind: "MobileNetV1ImageProcessor"},
        {kind: "MobileNetV2ImageProcessor", "size": {"shortest_edge": 232}, "resample": 3},
        {kind: "MobileViTImageProcessor"},
        {kind: "MobileViTImageProcessor", "size": {"shortest_edge": 288}, "resample": 2},
        {kind: "MobileViTImageProcessor", "size": {"shortest_edge": 288}, "do_flip_channel_order": False},
        {kind: "BeitImageProcessor", "size": 256, "do_center_crop": True},
        {kind: "PvtImageProcessor"},
        {kind: "SiglipImageProcessor"},
        # Our export.
        hugging_face_processor(Preprocessing((224, 224), (256, 256), resampler="torch", offset_rounding="floor")),
    ]
    for config in configs:
        preprocessing = hugging_face_preprocessing(config, "preprocessor_config.json")
        # transformers' torchvision backend lacks the filters "box" and "hamming".
        backend = {"backend": "pil"} if preprocessing.resampler == "pillow" else {}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "preprocessor_config.json").write_text(json.dumps(config))
            (Path(folder) / "config.json").write_text(json.dumps({"model_type": "resnet"}))
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **backend)
        name = f"{type(processor).__name__} { {k: v for k, v in config.items() if not k.endswith('_type')} }"
        yield name, preprocessing, partial(_call_processor, processor)


def _call(transform: Any, image: PillowImage.Image) -> np.ndarray:
    return transform(image).permute(1, 2, 0).numpy().astype(np.float64)


def _call_processor(processor: Any, image: PillowImage.Image) -> np.ndarray:
    return _call(lambda image: processor(image, return_tensors="pt").pixel_values[0], image)


_CASES = {"timm": timm_cases, "torchvision": torchvision_cases, "transformers": transformers_cases}


def difference(theirs: np.ndarray, pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Absolute difference, in 255ths of the scale before normalising."""
    std, mean = np.array(preprocessing.std), np.array(preprocessing.mean)
    return np.abs((pixels / 255 - mean) / std - theirs) * std * 255


def measure(_: list[str]) -> None:
    torch.set_num_threads(1)
    pictures = [make_picture(width, height) for width, height in _PICTURES]
    table = make_table("preprocessing", ("library",), ("configurations", "comparisons", "equal", "mean", "largest"))
    failures = 0
    for library in _LIBRARIES.value:
        largest, means, num_cases = [], [], 0
        for name, preprocessing, compute in _CASES[library]():
            num_cases += 1
            for picture in pictures:
                try:
                    theirs = compute(picture)
                except Exception as error:  # transformers can't crop some of the tiny pictures
                    print(f"{library} fails on {picture.size}, {name}: {type(error).__name__}: {error!s:.100}")
                    continue
                off = difference(theirs, preprocess(picture, preprocessing), preprocessing)
                largest.append(float(off.max()))
                means.append(float(off.mean()))
                failed = largest[-1] > _MOST + 1e-2  # transformers normalises in float32
                failures += failed
                if failed or _VERBOSE.value:
                    print(
                        f"{library} {picture.size}: largest {off.max():.3f}, mean {off.mean():.5f}, {name}", flush=True
                    )
        equal = sum(value < 1e-2 for value in largest) / len(largest)
        shown = f"{equal:.0%}", f"{np.mean(means):.4f}", f"{max(largest):.2f}"
        table.add_row(library, str(num_cases), str(len(largest)), *shown)
    print_table(table)
    if failures:
        sys.exit(f"{failures} comparisons differ by more than {_MOST:g} of 255")


if __name__ == "__main__":
    app.run(measure)
