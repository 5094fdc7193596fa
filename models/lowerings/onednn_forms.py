"""Which activations oneDNN's call fuses, tried once for each version of jaxlib on each kind of CPU.

An unknown name in a call ends the process. So a child process tries them one by one, and the user's cache folder keeps
the answer.
"""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np

from cambrian.models.lowerings.activations import ACTIVATIONS
from cambrian.models.lowerings.lowering import Window
from cambrian.models.lowerings.onednn import Convolution
from cambrian.sharding.host import cache_dir, cpu_model

_TIME_LIMIT_S = 60.0
_CHILD = "from cambrian.models.lowerings.onednn_forms import try_here; try_here()"


@functools.cache
def fused_activations() -> frozenset[str]:
    """Returns the names in ACTIVATIONS that oneDNN computes correctly after a convolution."""
    path = _path()
    with contextlib.suppress(OSError, ValueError):
        return frozenset(json.loads(path.read_text())) & ACTIVATIONS.keys()
    found = _tried(list(ACTIVATIONS))
    # Without a cache folder that can be written, the next process tries again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sorted(found)))
    return found


def _path() -> Path:
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"jaxlib {jaxlib.__version__} {cpu_model()}")
    return cache_dir() / "onednn" / f"{name}.json"


def _tried(names: list[str]) -> frozenset[str]:
    """Tries names in child processes: the next child leaves out what ended the one before."""
    found: set[str] = set()
    while names:
        try:
            child = subprocess.run(
                [sys.executable, "-P", "-c", _CHILD],
                input=json.dumps(names),
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT_S,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)},
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        answers = dict(json.loads(line) for line in child.stdout.splitlines())
        found.update(name for name, is_right in answers.items() if is_right)
        names = names[len(answers) + 1 :]
    return frozenset(found)


def try_here() -> None:
    """Does what `fused_activations` asks for on standard input: prints for each name whether its result is right."""
    jax.config.update("jax_platforms", "cpu")
    window = Window.square(3, 1, ((1, 1), (1, 1)))
    random = np.random.default_rng(0)
    for name in json.load(sys.stdin):
        call = Convolution((1, 6, 6, 16), 16, window, "float32", "float32", following=("BIAS", name))
        plain = Convolution((1, 6, 6, 16), 16, window, "float32", "float32", following=("BIAS",))
        images = random.standard_normal(call.in_shape, np.float32)
        kernel = random.standard_normal(call.kernel_shape, np.float32) / 6
        bias = random.standard_normal(16, np.float32)
        try:
            got, products = (jax.jit(each.__call__)(images, kernel, [bias]) for each in (call, plain))
            is_right = bool(np.allclose(got, ACTIVATIONS[name](products), rtol=1e-4, atol=1e-4))
        except jax.errors.JaxRuntimeError:  # XLA rejects the call
            is_right = False
        print(json.dumps([name, is_right]), flush=True)
    os._exit(0)
