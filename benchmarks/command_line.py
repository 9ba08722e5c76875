"""What all benchmarks take from the command line, and write, alike."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser(description: str | None, picture: bool = True) -> argparse.ArgumentParser:
    """Return a parser of where the numbers go, and the ``picture`` if there is one."""
    made = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    made.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there")
    if picture:
        made.add_argument(
            "--picture", type=Path, metavar="PATH", help="draw them there (matplotlib)"
        )
    return made


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; exits for a path that nothing can be written to."""
    given = parser.parse_args(argv)
    for path in (given.json, getattr(given, "picture", None)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"{path} cannot be written; name a file in a folder that is there")
    return given


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the numbers, if that is asked for."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
