"""What importing the packages does, and does not do, to a process; each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_script(script: str, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],  # the folder it runs in comes first on its path
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_starts_no_backend_and_loads_nothing_heavy():
    script = """
import os, sys
import engine, models, sharding
import jax
jax.config.update("jax_num_cpu_devices", 3)
print(len(jax.devices()), os.environ.get("XLA_FLAGS"))
print([name for name in ("flax", "optax", "PIL", "tensorflow_datasets", "rich", "safetensors") if name in sys.modules])
"""
    assert run_script(script) == "3 None\n[]\n"


def test_every_name_the_packages_export_is_there():
    script = """
import engine, models, sharding
assert callable(engine.compile_program) and callable(engine.run_configuration) and callable(sharding.match_rules)
for name in models._MODULES:
    assert callable(getattr(models, name)), name
"""
    assert run_script(script) == ""


def test_a_project_with_folders_called_models_and_configs_can_use_the_library(tmp_path):
    for package in ("models", "configs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("MINE = True\n")
    script = """
import jax, numpy as np
import models, configs
assert models.MINE and configs.MINE
from jax.sharding import PartitionSpec as P
import engine
from sharding import MeshShape, acquire_devices, make_mesh, program_from_function

mesh = make_mesh(MeshShape(2, 1), acquire_devices(2)[0])
program = program_from_function(
    lambda kernel, x: x @ kernel, np.eye(4, dtype=np.float32), jax.ShapeDtypeStruct((2, 4), "float32"), mesh,
    [(".*", P(None, "model"))], name="mine",
)
print(engine.compile_program(program)(np.ones((3, 4), np.float32)).sum())
assert models.MINE and configs.MINE
"""
    assert run_script(script, tmp_path) == "12.0\n"
