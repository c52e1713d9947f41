"""`report.html` of a sweep: its table, its plot, what each parameter changes, and its runs."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from litcam.files import write_whole

__all__ = ["SweepPage", "write_sweep_report"]

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><p class="brand">litcam</p><h1>{title}</h1><p class="about">{about}</p></header>
<main>
<section><figure class="plot"><img src="{plot}" alt="{metric} of every setting"></figure></section>
<section><h2>Settings</h2>{table}</section>
<section{no_effects}><h2>What each parameter changes</h2><ul>{effects}</ul></section>
<section><h2>Runs</h2>{runs}</section>
<section><h2>What made it</h2>
<details><summary>The sweep's file</summary><pre>{described}</pre></details></section>
</main>
</body>
</html>
"""


@dataclass(frozen=True)
class SweepPage:
    """What the page of a sweep shows.

    Args:
        title: its name.
        about: a line below it.
        metric: what is compared.
        plot: a PNG.
        table: a Markdown table.
        effects: lines in plain words.
        runs: a row for each, with a header; the first cell is the folder's name.
        described: the text of its file.
    """

    title: str
    about: str
    metric: str
    plot: bytes
    table: str
    effects: Sequence[str]
    runs: Sequence[Sequence[str]]
    described: str


def write_sweep_report(folder: Path, page: SweepPage) -> Path:
    """Writes the page into the folder of a sweep; each run's name leads to its own report.

    Raises:
        OSError: it cannot be written to.
    """
    style = (files("litcam.report") / "page" / "report.css").read_text(encoding="utf-8")
    header, *runs = page.runs
    linked = [[_link(folder, run[0]), *map(html.escape, run[1:])] for run in runs]
    rows = [line.strip("| ").split(" | ") for line in page.table.splitlines()]
    cells = [[_bold(html.escape(cell)) for cell in row] for row in (rows[0], *rows[2:])]
    text = PAGE.format(
        title=html.escape(page.title),
        about=html.escape(page.about),
        style=style,
        metric=html.escape(page.metric),
        plot=f"data:image/png;base64,{base64.b64encode(page.plot).decode()}",
        table=_table(cells),
        no_effects="" if page.effects else " hidden",
        effects="".join(f"<li>{html.escape(line)}</li>" for line in page.effects),
        runs=_table([[html.escape(cell) for cell in header], *linked]),
        described=html.escape(page.described),
    )
    file = folder / "report.html"
    write_whole(file, text)
    return file


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    heads = "".join(f"<th>{cell}</th>" for cell in header)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f'<div class="scroll"><table><tr>{heads}</tr>{lines}</table></div>'


def _bold(cell: str) -> str:
    return f"<b>{cell[2:-2]}</b>" if cell.startswith("**") else cell


def _link(folder: Path, name: str) -> str:
    shown = html.escape(name)
    if not (folder / name / "report.html").exists():
        return shown
    return f'<a href="{html.escape(name, quote=True)}/report.html">{shown}</a>'
