"""The command line: ``fastopt info``, ``verify``, ``bench`` and ``race``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastopt import backends
from fastopt.backends.numba import cache as code_cache
from fastopt.cli import race
from fastopt.version import __version__

LIBRARIES = ("numpy", "numba", "llvmlite", "optree", "cupy")
DISTRIBUTIONS = {"cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy")}
"""What a library is installed as, where that is not its own name."""


@dataclass(frozen=True)
class Command:
    """A subcommand: its name, its line in the help, its arguments, and what it does.

    ``run`` returns the exit code. What a command needs is imported when it runs.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 for success, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="fastopt", description="Optimizers for plain arrays.")
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    choice = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        added = choice.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    given = parser.parse_args(argv)
    code: int = given.run(given)
    return code


# info -------------------------------------------------------------------------------------------


def _info(given: argparse.Namespace) -> int:
    reasons = backends.available_backends()  # loads what can be loaded, so it comes first
    lines = [
        *_versions(),
        *_machine_lines(machine()),
        ("FASTOPT_BACKEND", _asked()),
        *((f"backend {name}", _one_line(why or "can run")) for name, why in reasons.items()),
        ("compiled code", str(code_cache.folder() or "not kept: no folder that is only yours")),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines))
    return 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _versions() -> Iterator[tuple[str, str]]:
    yield "fastopt", __version__
    yield "python", platform.python_version()
    for name in LIBRARIES:
        yield name, _version(name) or "not installed"


def _version(name: str) -> str | None:
    """Return a library's version, None if it is not installed."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return str(loaded.__version__)
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None


def _asked() -> str:
    try:
        return backends.requested()
    except ValueError as error:
        return str(error)


def machine() -> dict[str, Any]:
    """Return what times depend on; of Numba and CuPy only what is loaded already."""
    numba = sys.modules.get("numba")
    versions = {name: _version(name) for name in LIBRARIES if name in sys.modules}
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": int(numba.config.NUMBA_NUM_THREADS) if numba else backends.most_threads(),
        "gpu": _gpu(),
        "system": platform.platform(terse=True),
        "versions": {"fastopt": __version__, "python": platform.python_version(), **versions},
    }


def _machine_lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "system", found["system"]
    yield "processor", f"{found['processor']}, {found['cores']} cores for this process"
    yield "threads", f"{found['threads']} in a step"
    yield "GPU", found["gpu"] or "none that CuPy finds"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu() -> str | None:
    cupy = sys.modules.get("cupy")
    try:
        return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()) if cupy else None
    except cupy.cuda.runtime.CUDARuntimeError:  # type: ignore[union-attr]  # only raised if loaded
        return None


# verify -----------------------------------------------------------------------------------------


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    from fastopt.cli.verify import FORMATS, USUAL

    parser.add_argument("--json", type=_new_file, metavar="PATH", help="write the results there")
    parser.add_argument("--quick", action="store_true", help=f"in {USUAL[0]} alone")
    parser.add_argument(
        "--optimizer",
        type=_optimizers,
        action="extend",
        metavar="NAME",
        help="this one alone, or those of a pattern such as 'adam*'; may be given again",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        action="append",
        help=f"in this format alone; may be given again; {' and '.join(USUAL)} by default",
    )


def _verify(given: argparse.Namespace) -> int:
    from fastopt.cli import verify

    formats = given.format or (verify.USUAL[:1] if given.quick else verify.USUAL)
    names = None if given.optimizer is None else list(dict.fromkeys(given.optimizer))
    # One line, written over again, where somebody looks at it.
    start, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")
    with verify.compiled_ahead(names, formats):
        report = verify.verify(
            names,
            formats,
            tell=lambda text: print(start + text, end=end, file=sys.stderr, flush=True),
        )
    print(start, end="", file=sys.stderr, flush=True)
    verify.show(report)
    if given.json is not None and not _write(
        given.json, {"machine": machine(), **report.as_data()}
    ):
        return 2
    return 1 if report.failed else 0


def _optimizers(text: str) -> list[str]:
    """Return the names that a name or a pattern stands for."""
    from fastopt import optimizers

    if found := optimizers.names(text):
        return found
    try:
        return [optimizers.named(text).__name__]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# bench ------------------------------------------------------------------------------------------


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=_new_file, metavar="PATH", help="write the numbers there")
    parser.add_argument("--quick", action="store_true", help="four sizes, in a few seconds")


def _bench(given: argparse.Namespace) -> int:
    from fastopt.cli import bench

    measured = bench.measure(given.quick, tell=lambda text: print(text, file=sys.stderr))
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(f"{found['processor']}, {found['cores']} cores, {found['threads']} threads; {versions}")
    print(bench.report(measured))
    written = given.json is None or _write(given.json, {"machine": found, **measured})
    return 0 if written else 2


def _write(path: Path, found: dict[str, Any]) -> bool:
    """Write results to a file; where that fails say why, and return False."""
    try:
        path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        print(f"fastopt: {path} cannot be written: {error.strerror}", file=sys.stderr)
        return False
    return True


def _new_file(text: str) -> Path:
    """Return a path that can be written, so that no measurement is lost for want of a folder."""
    path = Path(text)
    folder = path.parent
    may = folder.is_dir() and os.access(path if path.exists() else folder, os.W_OK)
    if not may or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written; name a file in a folder")
    return path


COMMANDS = (
    Command("info", "say what runs here: versions, backends, threads, GPU", lambda _: None, _info),
    Command(
        "verify",
        "hold every rule on every backend of this machine to float64, and that to other libraries",
        _verify_arguments,
        _verify,
    ),
    Command(
        "bench",
        "time Adam on every backend against the machine's memory bandwidth",
        _bench_arguments,
        _bench,
    ),
    Command("race", race.HELP, race.add_arguments, race.run),
)
