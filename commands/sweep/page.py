"""report.html: the results of a sweep in one file that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from cambrian.commands.sweep.text import HEADERS

_TEMPLATE = Path(__file__).parent / "page.html.jinja"


def html_page(
    *,
    title: str,
    answer: Sequence[str],
    winner: str,
    rows: Sequence[Sequence[str]],
    figures: Mapping[str, Path],
    environment: Mapping[str, str],
    commands: Mapping[str, str],
) -> str:
    """Renders the page.

    Args:
      answer: sentences that name the best configuration.
      winner: the command line that runs it; empty if there is none.
      rows: the ranked table under `HEADERS`.
      figures: caption → SVG file to embed.
      commands: description → command line.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE.read_text())
    return template.render(
        title=title,
        answer=answer,
        winner=winner,
        headers=HEADERS,
        rows=rows,
        figures={caption: base64.b64encode(path.read_bytes()).decode() for caption, path in figures.items()},
        environment=environment,
        commands=commands,
    )
