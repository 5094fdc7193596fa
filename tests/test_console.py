"""What is shown while something takes long: on standard error, and only if that is a terminal; times in a table."""

import io
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.table import Table

import cambrian
from cambrian.commands.console import elapsed_time, progress_bar, show_table
from cambrian.commands.report import Report
from cambrian.commands.run.table import print_table
from cambrian.engine.runtime.metrics import Summary

SHOWN = {"progress bar": lambda: progress_bar(3, "busy"), "elapsed time": lambda: elapsed_time("busy [x]")}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch) -> Terminal:
    """Makes standard error a terminal; in the test itself, as pytest replaces the streams after each fixture."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    return stream


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_what_is_printed_meanwhile_gets_where_it_belongs(monkeypatch, show):
    terminal = on_terminal(monkeypatch)
    for stdout, on_stdout, on_stderr in ((io.StringIO(), "line\n", False), (Terminal(), "", True)):
        monkeypatch.setattr(sys, "stdout", stdout)
        with show():
            print("line")
        assert stdout.getvalue() == on_stdout and ("line" in terminal.getvalue()) == on_stderr
    assert "busy" in terminal.getvalue()


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["no terminal", "none"])
def test_without_a_terminal_nothing_is_shown(monkeypatch, show, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with show():
        pass
    assert stream is None or stream.getvalue() == ""


def sine(params, x):
    return jnp.sin(x * params)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cambrian.optimize(sine, np.ones(4, np.float32))(np.ones((2, 4), np.float32)),
        lambda: cambrian.compile(sine, np.ones(4, np.float32), jax.ShapeDtypeStruct((4,), "float32"), batch_size=2),
    ],
    ids=["optimize", "compile"],
)
def test_who_waits_for_a_function_sees_which(monkeypatch, call):
    terminal = on_terminal(monkeypatch)
    call()
    assert "optimising sine" in terminal.getvalue()


def test_a_latency_below_a_millisecond_is_no_zero(capsys):
    print_table(Report({}, summary=Summary(latency_ms_p50=0.364, latency_ms_p90=9.96, latency_ms_p99=5226.4)))
    assert "batch latency ms  p50 0.36, p90 10, p99 5226\n" in capsys.readouterr().out


def test_a_narrow_terminal_breaks_long_words_and_shows_them_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    table = Table("configuration", "images/s", box=None)
    table.add_row("precision bfloat16, partition intra_sample", "12345")
    show_table(table)
    words = re.sub(r"\x1b\[\d+m|\s", "", shown.getvalue())
    assert "…" not in words and "intra_sample" in words
