"""Limits of the control groups of this process, such as those of its container: memory, and time on the cores."""

import math
from collections.abc import Iterator
from pathlib import Path

_CONTROL_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def control_group_bytes() -> int | None:
    """Returns the smallest memory limit of the control groups of this process; None if there is none."""
    limits = [*_numbers(1, "memory", "memory.max"), *_numbers(1, "memory", "memory.limit_in_bytes")]
    return min((limit for (limit,) in limits), default=None)


def control_group_cores() -> int | None:
    """Returns how many cores the control groups of this process leave it the time of, rounded up; None for all."""
    quotas = [*_numbers(2, "cpu", "cpu.max"), *_numbers(2, "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return min((math.ceil(quota / period) for quota, period in quotas if quota > 0 and period > 0), default=None)


def _numbers(count: int, controller: str, *names: str) -> Iterator[list[int]]:
    """Yields the numbers in the named files of each group, of version 2 or 1, that has `count` in all."""
    for folder in _groups(controller):
        try:
            numbers = [int(word) for name in names for word in (folder / name).read_text().split()]
        except (OSError, ValueError):  # the file is missing or says `max`
            continue
        if len(numbers) == count:
            yield numbers


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's groups that a controller may be of, and of those around them."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except (OSError, ValueError):  # no Linux
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = _CONTROL_GROUPS / controller if controllers else _CONTROL_GROUPS
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
