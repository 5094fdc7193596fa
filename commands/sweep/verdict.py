"""Judges how a trial ended, from its process and report."""

import json
import re
import signal
from pathlib import Path
from typing import Any

from cambrian.commands.output import REPORT
from cambrian.commands.sweep.process import STDERR, Ended
from cambrian.commands.sweep.result import BUILD, CRASHED, FAILED, OK, OVERFLOW, REFUSED, TIMEOUT, Result, Trial

PREDICTED, OBSERVED = "predicted", "observed"
_LONG = ("flags", "plan", "skipped_images")
# Messages of XLA, C++ and Python about a failed allocation.
_EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|std::bad_alloc|\bMemoryError\b")


def judge(trial: Trial, ended: Ended, folder: Path, timeout_s: float) -> Result:
    """Returns the result of a trial, from its process's end and the standard error and report in `folder`."""
    report = _read_report(folder)
    kept = {name: value for name, value in report.items() if name not in _LONG}

    def result(status: str, reason: str | None = None, overflow: str | None = None) -> Result:
        return Result(trial, status, overflow, reason, ended.elapsed_s, kept)

    if ended.timed_out:
        return result(TIMEOUT, f"not done after {timeout_s:g} s")
    stderr = (folder / STDERR).read_text(errors="replace")
    if ended.exit_code < 0:
        return result(*_signalled(ended, stderr))
    if ended.exit_code == 0:
        if trial.stage == BUILD or report.get("status") == "ok":
            return result(OK)
        return result(FAILED, f"exit code 0 without an ok in {REPORT}")
    reason = report.get("failure_reason") or _last_line(stderr) or f"exit code {ended.exit_code}"
    if ended.exit_code == 2:
        return result(REFUSED, reason)
    # The engine raises OutOfMemory before it launches; later failures come from an allocator.
    if reason.startswith("OutOfMemory: "):
        return result(OVERFLOW, reason, PREDICTED)
    if report.get("status") == "out_of_memory" or _EXHAUSTED.search(reason):
        return result(OVERFLOW, reason, OBSERVED)
    return result(FAILED, reason)


def _signalled(ended: Ended, stderr: str) -> tuple[str, str, str | None]:
    name = signal.Signals(-ended.exit_code).name
    if (found := _EXHAUSTED.search(stderr)) is not None:
        return OVERFLOW, f"ended by {name} after {found[0]}", OBSERVED
    if ended.exit_code != -signal.SIGKILL:
        last = _last_line(stderr)
        return CRASHED, f"ended by {name}{f': {last}' if last else ''}", None
    if ended.oom_kills is None:
        return OVERFLOW, "killed by the system, as it does where memory is short (it keeps no count)", OBSERVED
    if ended.oom_kills:
        return OVERFLOW, "killed by the system for want of memory", OBSERVED
    return CRASHED, "killed by SIGKILL, not for want of memory by the system's count", None


def _read_report(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / REPORT).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("error: ") if lines else ""
