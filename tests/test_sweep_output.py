"""What a sweep leaves and shows: table, CSV, Markdown, pictures, the page, and its lines or its live table."""

import contextlib
import csv
import itertools
import os
import pty
import re
import termios

import numpy as np
import pytest
from PIL import Image

from cambrian.commands.predict import PredictedCosts
from cambrian.commands.sweep.display import Display
from cambrian.commands.sweep.figures.mesh_threads import heat_map, time_against_threads
from cambrian.commands.sweep.figures.pareto import pareto, pareto_front
from cambrian.commands.sweep.figures.phases import phase_split
from cambrian.commands.sweep.figures.style import line_style, style
from cambrian.commands.sweep.objective import Objective
from cambrian.commands.sweep.ranking import rank
from cambrian.commands.sweep.result import Result, Trial
from cambrian.commands.sweep.sweep import run_sweep
from cambrian.commands.sweep.tables import headers, rows
from cambrian.commands.sweep.text import number
from cambrian.commands.sweep.write_results import write_results
from sweep_stand_in import SCRIPT, make_grid, make_sweep, run

GRID = make_grid(mesh=("1x2", "2x1", "4x1"), threads=(1, 2, 4))
# Mesh 4x1 overflows from 2 threads on.
OVERFLOWING = """
if [ $2 = 4x1 ] && [ $3 -ge 2 ]; then
  echo '{"status": "out_of_memory", "failure_reason": "OutOfMemory: too much <b>"}' > "$1/report.json"; exit 1
fi
"""
FIGURES = ("time_against_threads", "throughput", "pareto", "phases")


@pytest.fixture(scope="module")
def concluded(tmp_path_factory):
    """A finished sweep's folder, what it printed, and whether something ran well."""
    folder = tmp_path_factory.mktemp("home") / "sweep"
    sweep = make_sweep(folder, GRID, script=OVERFLOWING + SCRIPT, repeats=2)
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        good = write_results(sweep, run(sweep))
    return folder, "\n".join(printed), good


def test_the_answer(concluded):
    folder, printed, good = concluded
    assert good
    assert "best: mesh 1x2, threads 1: 500 images/s (spread 0%)" in printed
    assert "\npython main.py --mesh 1x2 --threads 1\n" in printed
    assert "without a result: 2, 2 of them for want of memory; see their remarks" in printed
    assert printed.splitlines()[-1] == f"report.html, summary.csv and figures in {folder}"


def test_a_line_for_each_configuration_where_it_is_no_terminal(concluded):
    _, printed, _ = concluded
    lines = [line for line in printed.splitlines() if re.match(r"mesh \dx\d, threads \d: ", line)]
    assert len(lines) == len(GRID.cells) == len({line.partition(":")[0] for line in lines})
    assert "mesh 4x1, threads 2: out of memory, predicted: OutOfMemory: too much <b>" in lines


def test_the_summary(concluded):
    folder, _, _ = concluded
    with (folder / "summary.csv").open(newline="") as file:
        text = file.read()
    header, *_ = text.split("\n")
    assert "\r" not in text and len(set(header.split(","))) == header.count(",") + 1
    lines = list(csv.DictReader(text.splitlines()))
    assert len(lines) == 9
    first, last = lines[0], lines[-1]
    assert (first["rank"], first["mesh"], first["threads"], first["status"], first["runs"]) == (
        "1",
        "1x2",
        "1",
        "ok",
        "2",
    )
    assert (first["images_per_second"], first["wall_ms"], first["images_per_second_min"]) == ("500.0", "1024.0", "500")
    assert (last["rank"], last["status"], last["overflow"]) == ("", "out_of_memory", "predicted")
    assert (folder / "ranking.md").read_text().splitlines()[2].startswith("| 1 | mesh 1x2, threads 1 | 500 | 0% |")


@pytest.mark.parametrize(
    ("key", "shown"),
    [("latency_ms_p90", ("p90 ms", "7.0")), ("latency_ms_p99", ("p99 ms", "9.0")), ("wall_ms", ("p99 ms", "9.0"))],
)
def test_the_ranking_shows_the_latency_by_which_it_ranks(key, shown):
    grid, objective = make_grid(threads=(1, 2)), Objective(key)
    report = {"latency_ms_p90": 7.0, "latency_ms_p99": 9.0, "wall_ms": 5.0}
    standings = rank(grid, [Result(Trial(cell), "ok", report=report) for cell in grid.cells], objective, {}, {})
    assert [(headers(objective)[4], row[4]) for row in rows(standings, standings, objective)] == [shown, shown]


def test_the_pictures(concluded):
    folder, _, _ = concluded
    for name in FIGURES:
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert picture.width > 400 and len(picture.convert("L").getcolors(256) or ()) > 10
        svg = (folder / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<?xml") and svg.rstrip().endswith("</svg>")
    # The words of a picture stand in its SVG as comments.
    assert (folder / "figures" / "time_against_threads.svg").read_text().count("<!-- OOM -->") == 2
    assert (folder / "figures" / "throughput.svg").read_text().count("<!-- overflow -->") == 2


def test_the_page_is_one_file_without_network(concluded):
    folder, _, _ = concluded
    page = (folder / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|url\(", page)
    assert page.count("data:image/svg+xml;base64,") == len(FIGURES)
    assert "too much &lt;b&gt;" in page and "too much <b>" not in page
    for text in (
        "best: mesh 1x2, threads 1",
        "stand-in",
        "python main.py --mesh 4x1 --threads 4",
    ):
        assert text in page


def test_nothing_that_ran_well_is_said_and_drawn(tmp_path, capsys):
    sweep = make_sweep(tmp_path / "sweep", make_grid(threads=(1, 2)), script="exit 1", repeats=1)
    assert not write_results(sweep, run(sweep))
    assert "best: none; no configuration ran well within the constraints" in capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "sweep" / "figures").iterdir()} == {"time_against_threads", "throughput"}


def test_the_front_is_what_nothing_beats_in_both(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", make_grid(threads=(1, 2, 3, 4)), repeats=1)
    standings = run(sweep).standings
    for standing, (speed, latency) in zip(standings, ((10, 5), (12, 6), (11, 7), (9, 4)), strict=True):
        standing.reports[0].update(images_per_second=speed, latency_ms_p99=latency)
    speeds = [standing.median("images_per_second") for standing in pareto_front(standings)]
    assert speeds == [9, 10, 12]


def test_words_of_failures_keep_clear_of_each_other_and_lines_run_from_few_to_many_threads(tmp_path):
    grid = make_grid(mesh=("1x2", "2x1"), threads=(4, 1, 2))
    script = "[ $3 = 4 ] && kill -SEGV $$\n" + SCRIPT
    sweep = make_sweep(tmp_path / "sweep", grid, script=script, repeats=1)
    figure = time_against_threads(grid, run(sweep).standings, sweep.objective)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    words = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == ["1x2", "2x1", "crashed", "crashed"]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(words, 2))
    lines = [line.get_xdata() for line in axes.lines if line.get_linestyle() != "None"]
    np.testing.assert_array_equal(lines, [[1, 2], [1, 2]])


def test_long_names_leave_room_and_stay_within_the_picture(tmp_path):
    axes = {"threads": (8, 16), "precision": ("bfloat16", "int8"), "partition": ("auto", "intra_sample")}
    grid = make_grid(mesh=("128x256", "256x128"), execution=("offline", "online"), image_size=(224, 384), **axes)
    trials = [Result(Trial(cell), "ok", report={"latency_ms_p99": 9, "execute_ms": 1}) for cell in grid.cells]
    standings = rank(grid, trials, Objective(), {}, {})
    for figure, least_inches in ((pareto(standings, standings[:1]), 5), (phase_split(standings), 2.5)):
        with style():
            figure.set_layout_engine("constrained")
            figure.draw_without_rendering()
        (axes,) = figure.axes
        assert axes.get_window_extent().width > least_inches * figure.dpi
        texts = [*axes.texts, *figure.legends[0].get_texts(), *axes.get_yticklabels()]
        inside = figure.bbox.padded(1)
        assert all(inside.containsx(end) for text in texts for end in text.get_window_extent().intervalx)


def test_many_series_look_different():
    looks = [line_style(number) for number in range(49)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 49


def test_a_number_has_two_digits_however_small():
    assert [number(value) for value in (None, 0.024, 0.5, 1.26, 99.9, 512.4)] == [
        "",
        "0.024",
        "0.5",
        "1.3",
        "99.9",
        "512",
    ]


def test_the_cheaper_search_names_what_it_left_out_and_draws_no_time_of_fewer_images(tmp_path, capsys):
    grid = make_grid(threads=tuple(range(1, 41)))
    predictions = {cell: PredictedCosts(10.0 if cell["threads"] <= 20 else 30.0, 64, 0) for cell in grid.cells}
    sweep = make_sweep(tmp_path / "sweep", grid, search="auto", repeats=2, predictions=predictions)
    outcome = run(sweep)
    complete = [standing for standing in outcome.standings if standing.complete]
    statuses = [standing.status for standing in outcome.standings]
    assert len(complete) == 3 and outcome.standings[:3] == complete
    assert (statuses.count("ok"), statuses.count("pruned")) == (20, 20)
    lines = capsys.readouterr().out.splitlines()
    assert sum(": pruned: predicted to take 3.00 times as long as the fastest" in line for line in lines) == 20
    words = [text.get_text() for text in heat_map(grid, outcome.standings, sweep.objective).axes[0].texts]
    assert words.count("left out") == 20
    figure = time_against_threads(grid, outcome.standings, sweep.objective)
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() != "None"]
    assert sorted(np.asarray(line.get_xdata()).tolist()) == sorted(standing.cell["threads"] for standing in complete)


def test_a_live_table_on_a_terminal(tmp_path, monkeypatch):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(end, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        sweep = make_sweep(tmp_path / "sweep", GRID, repeats=1)
        run_sweep(sweep, Display(Objective()))
        monkeypatch.undo()
    shown = b""
    with contextlib.suppress(OSError):  # how Linux ends the reading of a terminal that its writers have closed
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    shown = shown.decode()
    for text in ("done", "9 runs, 9 configurations", "best so far", "mesh 1x2, threads 1: 500 images/s", "time left"):
        assert text in shown
    assert "\x1b[" in shown and "threads 1: 500 images/s (one run)\r\n" not in shown.partition("best so far")[0]
