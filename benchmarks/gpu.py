"""Tests Cambrian on a GPU and measures it, in one run of at most eight minutes.

    pip install -e '.[test]' 'jax[cuda13]' torch
    python benchmarks/gpu.py

Parts, each in processes of its own, which share the time:
- tests: those marked `gpu`, on one GPU and on more where there are more;
- peak: the rate of bfloat16 matrix products;
- ours, stock, pytorch: ResNet101, 10,000 images of 32×32 (CIFAR stem) and 2,000 of 224×224 (ImageNet stem), from uint8
  images in host memory to logits in host memory. Ours is saved as an artefact and loaded; stock JAX is the Flax model
  under `jax.jit`; PyTorch is compiled, channels last. Each has its best batch size;
- training: three epochs of the recipe in configs/train_resnet101_cifar10.py on random images, to time it.

A part that fails or takes too long is reported; the rows that it had finished count. All rows are written as JSON after
each part. The exit code is 0 if every part succeeded, else 1; 2 without a GPU.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from absl import app, flags

from benchmarks.gpu_parts.processes import counts_of_tests, run_part
from benchmarks.gpu_parts.result_table import result_table
from benchmarks.machine import circumstances
from benchmarks.tables import print_table

_PLATFORM = flags.DEFINE_enum("platform", "gpu", ["gpu", "cpu"], "Where to run; cpu tries the script on few images.")
_SECONDS = flags.DEFINE_float("seconds", 480.0, "Limit of the whole run.", lower_bound=1.0)
_PARTS = flags.DEFINE_list("parts", [], "Parts to run; default: all.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file; default: a new one under runs/.")

_ROOT = Path(__file__).parent.parent
_CIFAR = {"size": 32, "num_images": 10_000, "batches": [1000, 2500, 5000], "precisions": ["bfloat16", "float32"]}
_IMAGENET = {"size": 224, "num_images": 2000, "batches": [250, 500], "precisions": ["bfloat16"]}
_TRAINING = {"epochs": 3, "training_images": 50_000, "training_batch": 512}
# Name → part of benchmarks/gpu_parts, its settings, and the share of the time left that it may take.
PARTS: dict[str, tuple[str, dict[str, Any], float]] = {
    "tests": ("tests", {}, 0.25),
    "peak": ("peak", {"rows": 8192}, 0.2),
    "ours 32": ("ours", _CIFAR, 0.4),
    "stock 32": ("stock", _CIFAR, 0.25),
    "pytorch 32": ("pytorch", _CIFAR, 0.25),
    "training": ("training", _TRAINING, 0.4),
    "ours 224": ("ours", _IMAGENET, 0.5),
    "stock 224": ("stock", _IMAGENET, 0.5),
    "pytorch 224": ("pytorch", _IMAGENET, 1.0),
}
_ON_CPU = {"num_images": 16, "batches": [8], "rows": 512, "epochs": 2, "training_images": 16, "training_batch": 8}


def measure(_: list[str]) -> None:
    if unknown := set(_PARTS.value) - set(PARTS):
        sys.exit(_refuse(f"--parts must be among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "src")]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "CAMBRIAN_TEST_PLATFORM": _PLATFORM.value,
    }
    if (missing := _missing_platform(_PLATFORM.value, environment)) is not None:
        sys.exit(_refuse(f"expected a {_PLATFORM.value} that JAX can use, got none: {missing}"))
    output = Path(_OUTPUT.value or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-gpu.json").absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = circumstances(["torch", "flax"]) | {"parts": {}}
    deadline = time.monotonic() + _SECONDS.value
    for name in _PARTS.value or PARTS:
        part, settings, share = PARTS[name]
        limit = share * (deadline - time.monotonic())
        print(f"{name}, at most {limit:.0f} s", flush=True)
        settings = settings | (_ON_CPU if _PLATFORM.value == "cpu" else {}) | {"platform": _PLATFORM.value}
        command = [sys.executable, "-m", "benchmarks.gpu_parts", part, json.dumps(settings)]
        if part == "tests":
            junit = output.with_suffix(".xml")
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", f"--junitxml={junit}"]
        report["parts"][name] = run_part(command, limit, environment)
        if part == "tests":
            report["parts"][name]["rows"] = [counts_of_tests(junit)]
        output.write_text(json.dumps(report, indent=1))
    print_table(result_table(report["parts"]))
    for name, part in report["parts"].items():
        if part["failure"]:
            print(f"{name}: {part['failure']}")
    print(f"all measurements in {output}")
    sys.exit(int(any(part["failure"] for part in report["parts"].values())))


def _missing_platform(platform: str, environment: dict[str, str]) -> str | None:
    """Why JAX can't start the platform, in one line; None if it can. Asked in a process that holds no memory later."""
    code = f"import jax; jax.local_devices(backend={platform!r})"
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return None if asked.returncode == 0 else asked.stderr.strip().splitlines()[-1][:200]


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    app.run(measure)
