"""A table with its heading and notes, as plain text, as HTML, and for rich where that is there."""

from __future__ import annotations

import html
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

_STYLE = {
    "box": "font-size:0.9em;line-height:1.4",
    "scroll": "overflow-x:auto",
    "table": "border-collapse:collapse;margin:0.4em 0;color:inherit;background:transparent",
    "cell": "padding:0.15em 0.7em;border-bottom:1px solid rgba(128,128,128,0.35);"
    "vertical-align:top;white-space:nowrap;color:inherit;background:transparent",
}
"""Colours are those of the page around it, so that it can be read on dark and on light ones."""


@dataclass(frozen=True)
class Table:
    """Rows of words under the names of their columns.

    ``heading`` are lines above, ``notes`` lines below. Columns whose numbers are in ``left`` are
    aligned there, all others to the right. The last column may have no name: it has remarks.
    """

    heading: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: tuple[int, ...] = (0,)

    @property
    def text(self) -> str:
        """The table as plain text."""
        lines = [*self.heading]
        if self.rows:
            given = (self.columns, *self.rows)
            widths = [max(map(len, column)) for column in zip(*given, strict=True)]
            lines += ["", *(self._line(row, widths) for row in given)]
        if self.notes:
            lines += ["", *(f"! {note}" for note in self.notes)]
        return "\n".join(lines)

    def _line(self, row: tuple[str, ...], widths: list[int]) -> str:
        cells = [
            cell.ljust(width) if k in self.left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    @property
    def html(self) -> str:
        """The table as HTML: everything in it is escaped."""
        style = {name: f' style="{text}"' for name, text in _STYLE.items()}
        first, *others = self.heading or ("",)
        parts = [f"<div{style['box']}>", f"<strong>{html.escape(first)}</strong>"]
        parts += [f"<div>{html.escape(line)}</div>" for line in others]
        if self.rows:
            parts.append(f"<div{style['scroll']}><table{style['table']}><thead>")
            parts.append(self._html_row("th", self.columns))
            parts.append("</thead><tbody>")
            parts += [self._html_row("td", row) for row in self.rows]
            parts.append("</tbody></table></div>")
        if self.notes:
            items = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
            parts.append(f'<ul style="margin:0.3em 0;padding-left:1.4em">{items}</ul>')
        return "".join([*parts, "</div>"])

    def _html_row(self, tag: str, row: tuple[str, ...]) -> str:
        cells = []
        for k, cell in enumerate(row):
            side = "left" if k in self.left else "right"
            scope = ' scope="col"' if tag == "th" else ""
            style = f"{_STYLE['cell']};text-align:{side}"
            cells.append(f'<{tag}{scope} style="{style}">{html.escape(cell)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    def rich(self) -> Any:
        """The table as rich draws it; ModuleNotFoundError without rich."""
        group = importlib.import_module("rich.console").Group
        text = importlib.import_module("rich.text").Text
        box = importlib.import_module("rich.box").SIMPLE_HEAD
        made = importlib.import_module("rich.table").Table(box=box, padding=(0, 1, 0, 0))
        remarks = self.columns[-1:] == ("",)  # below the table, where there is room for them
        shown = self.columns[:-1] if remarks else self.columns
        for k, name in enumerate(shown):
            title = text(name.replace(" ", "\n").replace("/", "/\n"))
            longest = max((len(row[k]) for row in self.rows), default=0)
            if k in self.left:  # words are broken where the terminal is narrow, numbers are not
                made.add_column(title, overflow="fold", min_width=min(longest, 9))
            else:
                made.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            made.add_row(*map(text, row[: len(shown)]))  # brackets in names are no markup
        said = [f"{row[0]}: {row[-1]}" for row in self.rows if remarks and row[-1]]
        tables = [made] if self.rows else []
        parts = [
            *map(text, self.heading),
            *tables,
            *map(text, said),
            *(text(f"! {one}") for one in self.notes),
        ]
        return group(*parts)


class Shown(ABC):
    """What is shown as a table: printed, in a notebook, and by rich."""

    @property
    @abstractmethod
    def _table(self) -> Table:
        """All of it."""

    def __str__(self) -> str:
        return self._table.text

    def _repr_html_(self) -> str:
        return self._table.html

    def __rich__(self) -> Any:
        """Return what rich draws."""
        return self._table.rich()


def number(value: float | None) -> str:
    """Return a number in two digits; a dash for none."""
    return "-" if value is None else f"{value:.2g}"


def share(value: float | None) -> str:
    """Return a share in percent: 0 and 100 where it is exactly that."""
    if value is None:
        return "-"
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    return f"{min(max(100.0 * value, 0.01), 99.99):.3g} %".replace(" %", "%")


def count_of_bytes(count: int) -> str:
    """Return a number of bytes in a unit that fits."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024.0:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024.0
    return f"{size:.3g} TiB"
