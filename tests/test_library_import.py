"""What importing the library does, and does not do, to a process; each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cambrian

ROOT = Path(__file__).parent.parent


def run_script(script: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_starts_no_backend_and_loads_nothing_heavy():
    script = """
import os, sys
import cambrian
for name in cambrian.__all__:
    getattr(cambrian, name)
import jax
jax.config.update("jax_num_cpu_devices", 3)
print(len(jax.devices()), os.environ.get("XLA_FLAGS"), cambrian.host.changes)
heavy = ("flax", "optax", "PIL", "tensorflow_datasets", "rich", "safetensors", "matplotlib", "orbax")
print([name for name in heavy if name in sys.modules])
"""
    assert run_script(script) == "3 None {}\n[]\n"


@pytest.mark.slow
def test_the_names_of_models_are_there():
    script = """
from cambrian import models
for name in models._MODULES:
    assert callable(getattr(models, name)), name
"""
    assert run_script(script) == ""


def test_every_public_name_is_there_documented_and_in_the_document():
    for name in cambrian.__all__:
        value = getattr(cambrian, name)
        assert isinstance(value, (str, cambrian.HostSettings)) or value.__doc__, name
    document = (ROOT / "docs" / "library.md").read_text()
    table = document.partition("## Names")[2]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(cambrian.__all__)
    assert dir(cambrian) == sorted(cambrian.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    assert not hasattr(cambrian, "nothing")
