"""What all benchmarks take from the command line, and write, alike."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser(description: str | None, picture: bool = True) -> argparse.ArgumentParser:
    """Return a parser of where the numbers go, and the ``picture`` if there is one."""
    made = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    made.add_argument("--json", "--out", type=Path, metavar="PATH", help="write the numbers there")
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


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Let the number of threads be given."""
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="2 unless given")


def use_threads(number: int) -> None:
    """Give every library that many threads, before any of them starts its own."""
    if number < 1:
        raise SystemExit(f"--threads must be at least 1, not {number}")
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < number:
            raise SystemExit(f"give --threads {len(usable)}: there are no {number} processors here")
        os.sched_setaffinity(0, usable[:number])  # JAX goes by this
    os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(number)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("FASTOPT_BACKEND", None)


_BEGIN = time.monotonic()


def tell(text: str) -> None:
    """Say on the way what is being done, and after how many seconds."""
    print(f"{time.monotonic() - _BEGIN:4.0f} s  {text}", file=sys.stderr, flush=True)


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the numbers, if that is asked for."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
