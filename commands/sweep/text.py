"""Text that describes results, the same on the terminal, in Markdown and in HTML."""

from cambrian.commands.console import counted
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import Standing
from cambrian.commands.sweep.result import OK, OVERFLOW

UNITS = {
    "images_per_second": "images/s",
    "latency_ms_p90": "ms latency p90",
    "latency_ms_p99": "ms latency p99",
    "wall_ms": "ms",
}


def number(value: float | None) -> str:
    """Formats a number with one decimal, none from 100 upwards, two digits below 1; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Formats a duration: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def with_spread(standing: Standing, key: str) -> str:
    """Formats a median with unit and spread: `45.1 images/s (spread 3%)`."""
    spread = standing.spread(key)
    seen = "one run" if spread is None else f"spread {spread:.0%}"
    unstable = ", unstable" if standing.is_unstable(key) else ""
    return f"{number(standing.median(key))} {UNITS[key]} ({seen}{unstable})"


def status_text(standing: Standing) -> str:
    """Describes the status."""
    if standing.status == OVERFLOW:
        return f"out of memory, {standing.overflow}"
    return standing.status.replace("_", " ")


def result_text(standing: Standing, objective: Objective) -> str:
    """Describes a configuration's result, or why it has none, in one line."""
    reason = f": {standing.reason}" if standing.reason else ""
    if standing.status != OK:
        return status_text(standing) + reason
    rejected = "" if standing.eligible else f"; left out{reason}"
    images = "" if standing.complete else f", of {counted(standing.reports[0]['num_images'], 'image')} only"
    return f"{with_spread(standing, objective.key)}{images}{rejected}"
