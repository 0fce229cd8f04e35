"""Tables of reports: one printer for calibration, post-training methods, search and benchmarks.

It is part of `calib`, which `tfquant` imports and which never imports `tfquant`.
"""

from __future__ import annotations

import html
import io
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Log files and pipes: wide enough never to cut an address.
UNLIMITED = 400


def build(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str],
) -> Table:
    """Return a table whose columns hold numbers, right-justified, except those named in `left`.

    Args:
        title: line above the table; None for one without title and borders.
        columns: headings.
        rows: one text for each column.
        left: headings of the columns of text.
    """
    if title is None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    else:
        table = Table(title=escape(title))
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    return table


def render(table: Table, width: int = UNLIMITED) -> str:
    """Return a table as plain text, fitted to the terminal if stdout is one.

    Args:
        table: a rich table.
        width: characters in a line where stdout is no terminal.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())


def as_html(text: str) -> str:
    """Return a rendered report as HTML for notebooks; its lines do not wrap."""
    return f'<pre style="white-space: pre; line-height: normal">{html.escape(text)}</pre>'
