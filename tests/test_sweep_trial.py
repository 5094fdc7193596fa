"""How trials end: every way is a result with its reason, and the sweep goes on."""

import time

import pytest

from cambrian.commands.sweep import process
from sweep_stand_in import SCRIPT, make_grid, make_sweep, run

GRID = make_grid(threads=(1, 2))
REPORT = """echo '{"status": "%s", "failure_reason": "%s"}' > "$1/report.json"; exit %d"""
# The end of a run → status, overflow, reason.
ENDS = {
    REPORT % ("out_of_memory", "OutOfMemory: a device must hold 9 MiB, got a limit of 8 MiB", 1): (
        ("out_of_memory", "predicted", "OutOfMemory: a device must hold 9 MiB, got a limit of 8 MiB")
    ),
    REPORT % ("out_of_memory", "JaxRuntimeError: RESOURCE_EXHAUSTED: no 8 GiB", 1): (
        ("out_of_memory", "observed", "JaxRuntimeError: RESOURCE_EXHAUSTED: no 8 GiB")
    ),
    REPORT % ("failed", "ParityError: too far", 1): ("failed", None, "ParityError: too far"),
    REPORT % ("failed", "UsageError: no", 2): ("refused", None, "UsageError: no"),
    "echo 'error: batch_size must be even' >&2; exit 2": ("refused", None, "batch_size must be even"),
    "echo 'error: MemoryError: no room' >&2; exit 1": ("out_of_memory", "observed", "MemoryError: no room"),
    "exit 7": ("failed", None, "exit code 7"),
    "exit 0": ("failed", None, "exit code 0 without an ok in report.json"),
    "kill -SEGV $$": ("crashed", None, "ended by SIGSEGV"),
    "echo terminate called: std::bad_alloc >&2; kill -ABRT $$": (
        ("out_of_memory", "observed", "ended by SIGABRT after std::bad_alloc")
    ),
    "echo Check failed: rendezvous >&2; kill -ABRT $$": (
        ("crashed", None, "ended by SIGABRT: Check failed: rendezvous")
    ),
    "sleep 100 & wait": ("timeout", None, "not done after 0.3 s"),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_is_a_result_and_the_sweep_goes_on(tmp_path, end):
    script = f"if [ $3 = 1 ]; then {end}; fi\n{SCRIPT}"
    started = time.perf_counter()
    outcome = run(make_sweep(tmp_path / "sweep", GRID, script=script, timeout_s=0.3, repeats=2))
    assert time.perf_counter() - started < 30  # not the 100 s that something sleeps
    good, bad = outcome.standings
    assert (good.cell["threads"], good.status, len(good.reports)) == (2, "ok", 2)
    assert (bad.cell["threads"], bad.status, bad.overflow, bad.reason) == (1, *ENDS[end])
    assert len(outcome.results) == 3  # what has failed isn't run in the second round


@pytest.mark.parametrize(
    ("kills", "status", "overflow", "reason"),
    [
        (None, "out_of_memory", "observed", "killed by the system, as it does where memory is short"),
        (1, "out_of_memory", "observed", "killed by the system for want of memory"),
        (0, "crashed", None, "killed by SIGKILL, not for want of memory by the system's count"),
    ],
)
def test_a_kill_is_told_apart_by_the_systems_count(tmp_path, monkeypatch, kills, status, overflow, reason):
    counts = iter([5, 5 + kills] if kills is not None else [None, None])
    monkeypatch.setattr(process, "oom_kills", lambda: next(counts, 6))
    script = f"[ $3 = 1 ] && kill -KILL $$\n{SCRIPT}"
    outcome = run(make_sweep(tmp_path / "sweep", make_grid(threads=(1,)), script=script, repeats=1))
    (standing,) = outcome.standings
    assert (standing.status, standing.overflow) == (status, overflow)
    assert standing.reason is not None and standing.reason.startswith(reason)


def test_an_executable_is_built_once_for_all_thread_counts_and_before_them(tmp_path):
    built = tmp_path / "built.txt"
    script = f"""echo "$1" >> {built}; [ "$1" != 2x2 ] || {{ echo 'error: MemoryError: no room' >&2; exit 1; }}"""
    grid = make_grid(mesh=("1x2", "2x1", "2x2"), threads=(1, 2, 4))
    sweep = make_sweep(
        tmp_path / "sweep", grid, build_command=lambda cell: ["sh", "-c", script, "sh", cell["mesh"]], repeats=2
    )
    outcome = run(sweep)
    assert sorted(built.read_text().split()) == ["1x2", "2x1", "2x2"]
    seen = set()
    for result in outcome.results:
        assert (result.trial.stage == "build") == (result.trial.cell.executable not in seen)
        seen.add(result.trial.cell.executable)
    failed = [standing for standing in outcome.standings if standing.cell["mesh"] == "2x2"]
    assert {(standing.status, standing.overflow, standing.reason) for standing in failed} == {
        ("out_of_memory", "observed", "MemoryError: no room")
    }
    assert len(outcome.results) == 3 + 2 * 6
