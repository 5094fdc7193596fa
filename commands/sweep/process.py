"""Runs the process of a trial to its end."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from cambrian.sharding.host import oom_kills

STDOUT, STDERR = "stdout.txt", "stderr.txt"
_MARK = "CAMBRIAN_SWEEP"  # environment variable of each trial that names its sweep
_GRACE_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
      exit_code: the process's exit code; negative for the signal that ended it.
      timed_out: whether it exceeded its time limit.
      elapsed_s: seconds from start to end.
      oom_kills: number of out-of-memory kills on this machine in that time; None if unknown.
    """

    exit_code: int
    timed_out: bool
    elapsed_s: float
    oom_kills: int | None


def run_process(command: Sequence[str], folder: Path, *, timeout_s: float, owner: str) -> Ended:
    """Runs a command to its end, with its output in `folder`.

    The command and its children form a session, so that none outlives this call and Ctrl-C at the terminal reaches only
    this process.

    Args:
      timeout_s: seconds after which it is killed.
      owner: value of an environment variable by which `kill_leftovers` finds it.

    Raises:
      OSError: if it can't be started.
      KeyboardInterrupt: after the command was terminated, with time to write its report.
    """
    kills_before = oom_kills()
    start = time.perf_counter()
    timed_out = False
    with (folder / STDOUT).open("wb") as stdout, (folder / STDERR).open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | {_MARK: owner},
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    elapsed_s = time.perf_counter() - start
    kills = oom_kills()
    rise = None if kills is None or kills_before is None else kills - kills_before
    return Ended(process.returncode, timed_out, elapsed_s, rise)


def kill_leftovers(owner: str) -> int:
    """Kills processes of a killed sweep, which would disturb measurements; returns their number."""
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == owner:
                process.kill()
                process.wait(_GRACE_S)
                killed += 1
    return killed
