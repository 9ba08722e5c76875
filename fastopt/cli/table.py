"""A table as text, for what the commands print."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, columns to the right and names to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    plain = [all(not cell[:1].isalpha() for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, plain, strict=True)
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *rows]
    ]
