"""What results are shown with: facts under labels, tables, sizes; on a terminal or in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 100
"""Columns where the output is no terminal: enough for every table, and the same everywhere."""


def show(*parts: RenderableType) -> None:
    """Print to stdout."""
    # Names of a model's nodes may look like markup or emoji codes; they are neither.
    if sys.stdout.isatty():
        Console(highlight=False, markup=False, emoji=False).print(*parts)
        return
    console = Console(width=_PLAIN_WIDTH, highlight=False, markup=False, emoji=False, color_system=None)
    with console.capture() as captured:
        console.print(*parts)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def facts(rows: Sequence[tuple[str, str]]) -> RenderableType:
    """Values beside their labels, a line each or more."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, Text(value))
    return table


def new_table(*columns: str, numbers: Sequence[str] | None = None) -> Table:
    """A table with a heading rule; number columns are flush right (by default all with a unit or ratio)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns:
        is_number = column in numbers if numbers is not None else column not in ("", "outputs")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    return table


def size(count: float) -> str:
    """A number of bytes, as people write it (1 MB = 1,000,000 bytes)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
