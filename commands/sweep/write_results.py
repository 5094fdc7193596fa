"""Writes a sweep's ranking, pictures and page, and prints its answer."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cambrian.commands.console import counted, print_note
from cambrian.commands.sweep.directory import FIGURES
from cambrian.commands.sweep.figures import draw_figures
from cambrian.commands.sweep.ranking import Standing, best_group
from cambrian.commands.sweep.result import BUILD, OK
from cambrian.commands.sweep.sweep import Outcome, Sweep
from cambrian.commands.sweep.tables import headers, markdown, print_ranking, rows, summary_csv
from cambrian.commands.sweep.text import duration, with_spread
from cambrian.sharding.host.files import replace_file

_PAGE = Path(__file__).parent / "page.html.jinja"


def write_results(sweep: Sweep, outcome: Outcome) -> bool:
    """Writes summary.csv, ranking.md, figures/ and report.html, and prints ranking and answer.

    Returns:
      Whether at least one configuration succeeded.
    """
    standings, objective = outcome.standings, sweep.objective
    best = best_group(standings, objective)
    sentences = answer(standings, best, sweep)
    winner = sweep.answer(best[0].cell) if best else ""
    figures = draw_figures(sweep.grid, standings, best, objective, sweep.path / FIGURES)
    table = rows(standings, best, objective)
    page = _page(
        title=f"Sweep over {', '.join(sweep.grid.varied)}: {len(standings)} configurations",
        answer=sentences,
        winner=winner,
        headers=headers(objective),
        rows=table,
        figures=_encoded(figures),
        environment=_environment(sweep, outcome),
        commands={"Continue this sweep:": sweep.resume}
        | ({"The best configuration:": winner} if winner else {})
        | {f"{sweep.grid.name(cell)}:": sweep.answer(cell) for cell in sweep.grid.cells},
    )
    for name, text in (
        ("summary.csv", summary_csv(sweep.grid, standings, objective)),
        ("ranking.md", markdown(headers(objective), table)),
        ("report.html", page),
    ):
        replace_file(sweep.path / name, text.encode(errors="backslashreplace"))  # file names needn't be Unicode
    for note in _notes(standings):
        print_note(note)
    print_ranking(standings, best, objective)
    for sentence in sentences:
        print(sentence)
    if winner:
        print(winner)
    print(f"report.html, summary.csv and figures in {sweep.path}")
    return any(standing.status == OK for standing in standings)


def answer(standings: Sequence[Standing], best: Sequence[Standing], sweep: Sweep) -> list[str]:
    """Returns the answer in sentences: the best, its equals, and what is unstable or failed."""
    key = sweep.objective.key
    sentences = []
    if best:
        sentences.append(f"best: {best[0].name}: {with_spread(best[0], key)}")
        if others := [standing.name for standing in best[1:]]:
            sentences.append(f"can't be told from it: {'; '.join(others)}")
    else:
        sentences.append("best: none; no configuration ran well within the constraints")
    if unstable := [standing.name for standing in standings if standing.is_unstable(key)]:
        sentences.append(f"unstable, spread above 10%: {'; '.join(unstable)}")
    if failed := [standing for standing in standings if standing.failed is not None]:
        overflowed = sum(standing.overflow is not None for standing in failed)
        sentences.append(f"without a result: {len(failed)}, {overflowed} of them for want of memory; see their remarks")
    return sentences


def _page(**values: Any) -> str:
    """report.html, in one file that needs no network."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE.read_text())
    return template.render(values)


def _encoded(figures: Mapping[str, Path]) -> dict[str, str]:
    """Caption → content of the SVG file in base64, as the page embeds it."""
    return {caption: base64.b64encode(path.read_bytes()).decode() for caption, path in figures.items()}


def _environment(sweep: Sweep, outcome: Outcome) -> dict[str, str]:
    took_s = sum(result.elapsed_s for result in outcome.results)
    builds = [result for result in outcome.results if result.trial.stage == BUILD]
    facts = {name: str(value) for name, value in sweep.identity["environment"].items()}
    for key in ("model", "data", "weights"):
        if outcome.standings and (value := outcome.standings[0].fact(key)):
            facts[key] = str(value)
    return facts | {
        "search": f"{sweep.search}, {counted(sweep.repeats, 'run')} each, order of seed {sweep.seed}",
        "took": f"{duration(took_s)} in {len(outcome.results)} processes, {len(builds)} of them builds",
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        **({"notes": "; ".join(notes)} if (notes := _notes(outcome.standings)) else {}),
    }


def _notes(standings: Sequence[Standing]) -> list[str]:
    """Returns the notes of all runs, each once."""
    notes = (note for standing in standings for report in standing.reports for note in report.get("notes", ()))
    return list(dict.fromkeys(notes))
