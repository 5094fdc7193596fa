"""Scripts in a process of their own, for what only a fresh one shows."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_script(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Runs a Python script to a good end, with warnings as errors, and returns what it prints."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout
