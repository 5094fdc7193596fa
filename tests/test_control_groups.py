"""Limits of control groups, versions 1 and 2, read from folders as Linux lays them out."""

import os
from collections.abc import Callable

import pytest

from cambrian.sharding.host import control_groups, default_threads, host_cores

Lay = Callable[[str | None, dict[str, str]], None]


@pytest.fixture
def lay(tmp_path, monkeypatch) -> Lay:
    """Lays out the groups of this process, None for no Linux, and their files."""

    def lay_out(groups: str | None, files: dict[str, str]) -> None:
        if groups is not None:
            (tmp_path / "own").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(control_groups, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "own")
    return lay_out


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"memory.max": "max\n", "a/memory.max": "4096\n", "a/b/memory.max": "8192\n"}, 4096),
        ("0::/a\n", {"a/memory.max": "max\n"}, None),
        ("4:cpu,memory:/gone\n0::/\n", {"memory/memory.limit_in_bytes": "12288\n"}, 12288),
        ("5:devices:/\n", {"memory.max": "4096\n"}, None),
        (None, {}, None),
    ],
)
def test_the_smallest_limit_of_memory_counts(lay, groups, files, expected):
    lay(groups, files)
    assert control_groups.control_group_bytes() == expected


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),  # more than there are
        (
            "3:cpuacct,cpu:/docker/7\n2:cpuset:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000\n"}, 8),
        ("5:cpuset:/\n", {"cpu.max": "100000 100000\n"}, 8),
        ("strange\n", {}, 8),
        *[("0::/\n", {"cpu.max": text}, 8) for text in ("", "max\n", "100000\n", "100000 0\n", "1 2 3\n", "0.5 1\n")],
        ("0::/\n", {}, 8),
        (None, {}, 8),
    ],
)
def test_the_smallest_quota_bounds_the_cores(lay, monkeypatch, groups, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.delenv("NPROC", raising=False)
    lay(groups, files)
    assert (host_cores(), default_threads()) == (expected, 8)  # XLA doesn't know quotas
