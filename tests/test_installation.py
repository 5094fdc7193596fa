"""What a user installs: a wheel that holds `cambrian` alone, and works beside a project's own folders."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from command import TINY_CONFIG

ROOT = Path(__file__).parent.parent
OURS = ("commands", "configs", "engine", "models", "sharding")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, because setuptools builds within the tree
    for part in (*OURS, "src", "weights"):
        if (ROOT / part).exists():
            shutil.copytree(
                ROOT / part, source / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder, source]
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, capture_output=True)
    return next(folder.glob("cambrian-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts of a fresh environment with the wheel; dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)],
        check=True,
        capture_output=True,
    )
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


@pytest.fixture
def project(tmp_path) -> Path:
    """A user's project with folders and files called as ours."""
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "main.py").write_text("raise SystemExit('the project\\'s own main.py')\n")
    return tmp_path


def run_in(project: Path, *command: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    environment |= {"XDG_CACHE_HOME": str(project / "cache"), "XDG_CONFIG_HOME": str(project / "config")}
    outcome = subprocess.run(
        [*map(str, command)], cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_the_wheel_holds_cambrian_alone_with_its_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"cambrian"}
    packages = {name.split("/")[1] for name in names if name.startswith("cambrian/") and name.count("/") > 1}
    assert packages == {*OURS, "weights"}
    weights = (f"weights/resnet101_cifar10/{name}" for name in ("model.safetensors", "config.json", "README.md"))
    sample = "commands/images/cifar10_sample/cifar10_test_sample.zip"
    for name in ("py.typed", "commands/sweep/page.html.jinja", "models/costs/shipped/amd_epyc.jsonl", sample, *weights):
        assert f"cambrian/{name}" in names
    in_checkout = {path.relative_to(ROOT).as_posix() for part in OURS for path in (ROOT / part).rglob("*.py")}
    in_wheel = {name.removeprefix("cambrian/") for name in names if name.endswith(".py")}
    assert in_wheel == in_checkout | {path.name for path in (ROOT / "src" / "cambrian").glob("*.py")}


def test_the_library_works_beside_folders_of_the_same_names(installed, project):
    script = """
import commands, configs, engine, models, sharding
assert all(module.MINE for module in (commands, configs, engine, models, sharding))
import jax, numpy as np, cambrian
from jax.sharding import PartitionSpec as P
executable = cambrian.compile(
    lambda kernel, x: x @ kernel, np.eye(4, dtype=np.float32), jax.ShapeDtypeStruct((4,), "float32"),
    mesh="2x1", batch_size=2, rules=[(".*", P(None, "model"))],
)
print(executable(np.ones((3, 4), np.float32)).sum(), cambrian.resnet().trained, cambrian.__file__)
"""
    total, trained, file = run_in(project, installed / "python", "-W", "error", "-c", script).split()
    assert (total, trained) == ("12.0", "True") and Path(file).is_relative_to(installed.parent)


def test_the_command_works_beside_a_main_of_the_same_name(installed, project):
    (project / "tiny.py").write_text(TINY_CONFIG)
    flags = ("--config", "tiny.py", "--mesh", "1x2", "--batch_size", "8", "--num_images", "8", "--output_dir", "out")
    printed = run_in(project, installed / "cambrian", *flags, "--precision", "float32", "--calibrate_s", "0")
    assert "report and predictions in out" in printed
    assert (project / "out" / "report.json").exists()
    listed = run_in(project, installed / "cambrian", *flags[:2], "--mesh", "1x1,1x2", "--dry_run")
    assert "2 configurations" in listed
