"""What importing the library does, and does not do, to a process; each in a process of its own."""

import os
from pathlib import Path

import pytest

import cambrian
from run_script import run_script

ROOT = Path(__file__).parent.parent


def run(script: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return run_script(script, environment=environment | {"JAX_PLATFORMS": "cpu"})


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
    assert run(script) == "3 None {}\n[]\n"


@pytest.mark.slow
def test_the_names_of_models_are_there():
    script = """
from cambrian import models
for name in models._MODULES:
    assert callable(getattr(models, name)), name
"""
    assert run(script) == ""


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
