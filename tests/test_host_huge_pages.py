"""The restart with huge pages: when it happens, and what it leaves as it is."""

import os
import platform
import sys

import pytest

from cambrian.sharding.host import huge_pages, restart_with_huge_pages
from cambrian.sharding.host.settings import HostSettings


@pytest.fixture
def host():
    host = HostSettings()
    host.permit("malloc")
    return host


@pytest.fixture
def restarts(host, monkeypatch, tmp_path):
    """The environments of the restarted commands, on a system that leaves huge pages to the process."""
    environments = []
    monkeypatch.setattr(huge_pages, "host", host)
    monkeypatch.setattr(huge_pages, "_POLICY", tmp_path / "enabled")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    (tmp_path / "enabled").write_text("always [madvise] never\n")

    def exec_(path, command, environment):
        assert (path, command) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
        environments.append(environment)
        monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])

    monkeypatch.setattr(os, "execve", exec_)
    return environments


def test_it_restarts_once_and_records_it(host, restarts):
    before = dict(os.environ)
    restart_with_huge_pages()
    restart_with_huge_pages()
    assert restarts == [before | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}]
    assert list(host.changes) == ["malloc"]


def test_a_variable_of_the_user_stays(host, restarts, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    restart_with_huge_pages()
    assert (restarts, host.changes) == ([], {})


def test_it_can_be_declined(host, restarts):
    host.decline("malloc")
    restart_with_huge_pages()
    assert (restarts, host.changes) == ([], {})


@pytest.mark.parametrize("policy", ["[always] madvise never", "always madvise [never]", None])
def test_the_kernel_must_leave_the_choice_to_the_process(restarts, tmp_path, policy):
    (tmp_path / "enabled").unlink() if policy is None else (tmp_path / "enabled").write_text(policy)
    restart_with_huge_pages()
    assert restarts == []


@pytest.mark.parametrize("library", [("glibc", "2.34"), ("", "")])
def test_the_c_library_must_know_the_variable(restarts, monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    restart_with_huge_pages()
    assert restarts == []
