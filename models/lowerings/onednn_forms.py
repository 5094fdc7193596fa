"""Which forms oneDNN's call takes, tried once for each version of jaxlib and set of CPU features.

The forms are the activations that it fuses, and products of 8-bit integers.

An unknown name in a call ends the process. So a child process tries them one by one, and the user's cache folder keeps
the answer.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np

from cambrian.models.lowerings.activations import ACTIVATIONS
from cambrian.models.lowerings.lowering import Call, Finish, Window
from cambrian.models.lowerings.onednn import Convolution
from cambrian.sharding.host import cache_dir, child_environment, cpu_features, cpu_model
from cambrian.sharding.host.files import replace_file

_TIME_LIMIT_S = 60.0
_INT8 = "INT8"
_FORMS = (*ACTIVATIONS, _INT8)
# Without these instructions oneDNN adds products of 8-bit integers in 16 bits, which saturate.
_INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE}
_CHILD = "from cambrian.models.lowerings.onednn_forms import try_here; try_here()"


def fused_activations() -> frozenset[str]:
    """Returns the names in ACTIVATIONS that oneDNN computes correctly after a convolution."""
    return _forms() & ACTIVATIONS.keys()


def int8_obstacle(platform: str) -> str | None:
    """Returns why oneDNN can't multiply 8-bit integers on this platform with this version of jaxlib; None if it can."""
    if platform != "cpu":
        return f"oneDNN runs on cpu, not on {platform}"
    if not _INT8_FEATURES & cpu_features():
        return f"{cpu_model()} has none of the instructions {', '.join(sorted(_INT8_FEATURES))}"
    if _INT8 not in _forms():
        return f"oneDNN's call of jaxlib {jaxlib.__version__} doesn't compute them correctly"
    return None


@functools.cache
def _forms() -> frozenset[str]:
    path = _path()
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        if (answers := dict(json.loads(path.read_text()))).keys() == {*_FORMS}:  # else of another version, or damaged
            return frozenset(name for name, is_right in answers.items() if is_right is True)
    found, is_complete = _tried(list(_FORMS))
    # Otherwise, and without a cache folder that can be written, the next process tries again.
    if is_complete:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps({name: name in found for name in _FORMS}).encode())
    return found


def _path() -> Path:
    features = hashlib.sha256(" ".join(sorted(cpu_features())).encode()).hexdigest()[:12]
    return cache_dir() / "onednn" / f"forms-jaxlib-{jaxlib.__version__}-{features}.json"


def _tried(names: list[str]) -> tuple[frozenset[str], bool]:
    """Tries names in child processes: the next child leaves out what crashed the one before.

    Returns:
      The names that are right; and whether all were tried: a child that doesn't start, hangs or ends in another way, as
      for want of memory, tells nothing about the names that are left.
    """
    found: set[str] = set()
    answered = False  # otherwise all may have aborted for want of memory, as XLA does
    while names:
        try:
            child = subprocess.run(
                [sys.executable, "-P", "-c", _CHILD],
                input=json.dumps(names),
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT_S,
                env=child_environment(),
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        answers = dict(re.findall(r"^(\w+) (right|wrong)$", child.stdout, re.MULTILINE))
        answered |= bool(answers)
        found.update(name for name in names if answers.get(name) == "right")
        names = [name for name in names if name not in answers]
        if names and -child.returncode not in _CRASHES:
            break
        names = names[1:]
    return frozenset(found), answered and not names


def try_here() -> None:
    """Tries the forms named on standard input, and prints for each whether its result is right."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what crashes is no news: no file in the user's folder
    jax.config.update("jax_platforms", "cpu")
    for name in json.load(sys.stdin):
        try:
            is_right = _multiplies_int8() if name == _INT8 else _fuses(name)
        except jax.errors.JaxRuntimeError:  # XLA rejects the call
            is_right = False
        print(name, "right" if is_right else "wrong", flush=True)
    os._exit(0)


_WINDOW = Window.square(3, 1, ((1, 1), (1, 1)))


def _fuses(activation: str) -> bool:
    random = np.random.default_rng(0)
    call = Convolution((1, 6, 6, 16), 16, _WINDOW, "float32", "float32", following=("BIAS", activation))
    plain = Convolution((1, 6, 6, 16), 16, _WINDOW, "float32", "float32", following=("BIAS",))
    images = random.standard_normal(call.in_shape, np.float32)
    kernel = random.standard_normal(call.kernel_shape, np.float32) / 6
    bias = random.standard_normal(16, np.float32)
    got, products = (jax.jit(each.__call__)(images, kernel, [bias]) for each in (call, plain))
    return bool(np.allclose(got, ACTIVATIONS[activation](products), rtol=1e-4, atol=1e-4))


def _multiplies_int8() -> bool:
    """Whether products, a residual and two scales give what `Finish` gives, up to a rounding that is a tie."""
    random = np.random.default_rng(0)
    plain = Convolution((1, 6, 6, 64), 64, _WINDOW, "uint8", "int32")
    images = random.integers(128, 256, plain.in_shape).astype(np.uint8)
    kernel = random.integers(-128, 128, plain.kernel_shape).astype(np.int8)
    kernel[..., 0] = 127  # the largest sums
    bias = random.normal(0, 1e4, 64).astype(np.float32)
    scales = (2.0**-12, 0.75)
    products = jax.jit(plain.__call__)(images, kernel)
    exact = jax.lax.conv_general_dilated(
        images.astype(np.int32),
        kernel.astype(np.int32),
        (1, 1),
        _WINDOW.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    is_right = bool((products == exact).all())
    for residual in (random.integers(0, 256, plain.out_shape).astype(np.uint8), random.normal(0, 64, plain.out_shape)):
        residual = residual if residual.dtype == np.uint8 else residual.astype(np.float32)
        following = ("BIAS", "LINEAR", "BINARY_ADD", "LINEAR", "RELU")
        call = Convolution(plain.in_shape, 64, _WINDOW, "uint8", "uint8", following=following, factors=scales)
        described = Call(plain.in_shape, 64, _WINDOW, "uint8", "uint8", residual=True, activation="RELU", scales=scales)
        got = np.asarray(jax.jit(call.__call__)(images, kernel, [bias, residual]), np.int32)
        finish = Finish(described, bias, jax.numpy.asarray(residual))
        is_right &= bool((abs(got - np.asarray(finish(exact), np.int32)) <= 1).all())
    return is_right
