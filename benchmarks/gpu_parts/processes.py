"""The processes of the parts of `gpu.py`: what they print, and what pytest counts."""

import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def run_part(command: list[str], limit_s: float, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a command and returns the JSON lines that it printed as `rows`, `seconds`, and its `failure`, or None."""
    start, failure = time.monotonic(), None
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # with the processes that it starts
    )
    try:
        printed, errors = process.communicate(timeout=limit_s)
        if process.returncode:
            last = next((line for line in reversed([*printed.splitlines(), *errors.splitlines()]) if line.strip()), "")
            failure = f"exit code {process.returncode}: {last.strip()[:300]}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        failure = f"not finished in {limit_s:.0f} s"
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {"rows": rows, "seconds": time.monotonic() - start, "failure": failure}


def counts_of_tests(junit: Path) -> dict[str, int]:
    """Returns the numbers of tests, failures, errors and skipped tests in pytest's XML; empty if there is none."""
    if not junit.exists():
        return {}
    suite = next(ElementTree.parse(junit).iter("testsuite"))
    junit.unlink()
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
