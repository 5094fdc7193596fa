"""A command that runs short of something must say so in one line, and succeed once there is enough."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.damage.jobs import failed_trials, find_fault, repeat
from command import Command, Outcome


def judge(
    kind: str, command: Command, outcome: Outcome, expected: Path, about: re.Pattern[str], tell: Callable[[str], None]
) -> str:
    """Returns `lost`, `crashed`, or nothing if a command that ran short either succeeded or ended as promised.

    Args:
      outcome: how it ended.
      expected: home of an undisturbed command.
      about: what its error line must match; so must the reasons of a sweep's failed trials.
    """
    reasons = failed_trials(command.home) if kind == "sweep" else []
    if outcome.exit_code and not (reasons and _error_line(outcome) is None):
        if fault := _error_fault(outcome, about):
            tell(f"{fault}: {outcome.stderr.strip()[:300]} … {outcome.stderr.strip()[-300:]}")
            return "crashed"
    elif not reasons and (fault := find_fault(kind, command.home, expected)):
        tell(f"exit code 0 with {fault}")
        return "lost"
    if others := [reason for reason in reasons if not about.search(reason)]:
        tell(f"a trial failed: {others[0]}")
        return "crashed"
    return ""


def judge_repeated(kind: str, command: Command, outcome: Outcome, expected: Path, tell: Callable[[str], None]) -> str:
    """Runs the command again, when there is enough, and returns the outcome of the case."""
    refused = outcome.exit_code or (kind == "sweep" and failed_trials(command.home))
    return repeat(kind, command, expected, tell) or ("refused" if refused else "right")


def _error_fault(outcome: Outcome, about: re.Pattern[str]) -> str:
    """What a failed command lacks of one last line that says why, and exit code 1 or 2; empty if nothing."""
    if outcome.exit_code not in (1, 2):
        return f"exit code {outcome.exit_code}"
    line = _error_line(outcome)
    if line is None:
        return "other than one error line"
    return "" if about.search(line) else "another error"


def _error_line(outcome: Outcome) -> str | None:
    *others, last = outcome.stderr.splitlines() or [""]
    is_one = last.startswith("error: ") and not any(line.startswith(("error: ", "Traceback")) for line in others)
    return last if is_one else None
