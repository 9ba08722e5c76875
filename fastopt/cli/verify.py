"""``fastopt verify``: every rule on every backend of this machine, against float64.

What is held to what
    Every rule makes the same steps on every backend that can run here, in each format, and on NumPy
    in float64 from the same numbers, which is the reference. Elementwise rules and those with sums
    must end in the same bits on all backends. The reference itself, which a broken NumPy could
    spoil, is held to results of other libraries that come with the package (``recorded.json``).

How far off a result may be
    Nothing is fitted to what the backends give. A step that rounds ``n`` times between its inputs
    and a result is as good as an exact one whose inputs were off by at most ``n`` halves of an eps,
    relative to their own size (``rules.roundings`` counts ``n`` in the rule's text). What so much
    does to the end of a run depends on the rule and the numbers, so it is measured in float64:
    the reference is run again with gradients, parameters and state off by 2^-20 of themselves in
    every step, with random signs, four times. The largest change of an element, in units of 2^-20,
    is how much it moves per unit that the inputs are off; it is taken to be at least the largest
    value that the element had on the way, which is what storing it once more would cost. That times
    ``n`` times eps is allowed: twice the ``n`` halves, since four runs do not find the worst signs.

    What is stored in a narrower format than it is computed in is rounded once more, by half an eps
    of that format. Numbers below the least normal one of a format are as far apart as that is.

    The recorded results may be off by 1e-11 of the largest value on the way, 45 036 eps of float64:
    others work out 1 - beta^t by a power, which loses 1 000 eps where beta is 0.999, in each of ten
    steps, and have roundings of their own beside that.

Errors are in units of eps of the format in which a number is stored, of the largest value that its
element had on the way.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from fastopt import backends
from fastopt.backends.numba import cache
from fastopt.cli.rules import Case, cases, roundings
from fastopt.cli.table import aligned
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Options
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import ArrayRule

FORMATS = ("float32", "float64", "float16", "bfloat16")
USUAL = FORMATS[:2]
"""What is checked unless others are asked for: the rest takes as long again to compile."""

STEPS = 8
OFF = 2.0**-20
"""By how much of themselves numbers are off where the reference is run again."""
AGAIN = 4
RECORDED = 1e-11
"""How far the reference may be from the recorded results, of the largest value on the way."""

# -------------------------------------------------------------------------------------------------
# What a run goes in with.


@dataclass(frozen=True)
class Inputs:
    """First parameters, and what every step is handed: arrays in float64 by name."""

    params: dict[str, Array]
    grads: list[dict[str, Array]]
    values: Sequence[float] = ()
    hessians: Mapping[int, dict[str, Array]] | None = None
    lr_changes: Mapping[int, float] | None = None

    def rounded(self, dtype: Any) -> Inputs:
        """Return the same in numbers that a format holds."""

        def each(some: dict[str, Array]) -> dict[str, Array]:
            return {n: np.asarray(a.astype(dtype).astype(np.float64)) for n, a in some.items()}

        hessians = {k: each(some) for k, some in (self.hessians or {}).items()}
        grads = [each(some) for some in self.grads]
        return Inputs(each(self.params), grads, self.values, hessians, self.lr_changes)


def _drawn(case: Case) -> Inputs:
    """Return inputs of usual sizes: signs change, some gradients are 0, as half the parameters.

    Of what begins at 0 the end is the steps alone, and tells how exact these are. The numbers are
    those of a generator whose bits NumPy has promised to keep.
    """
    rng = np.random.Generator(np.random.PCG64(20))
    shapes = _shapes(case)

    def draw(zeros: float) -> dict[str, Array]:
        made = {}
        for name, shape in shapes.items():
            sizes = 0.25 + 0.75 * rng.random(shape)
            signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
            made[name] = np.where(rng.random(shape) < zeros, 0.0, signs * sizes)
        return made

    params = draw(0.5)
    grads = [draw(1 / 32) for _ in range(STEPS)]
    hessians = {step: draw(0.0) for step in range(0, STEPS, 3)}
    values = [4.0 + 2.0 / (1 + step) for step in range(STEPS)]
    return Inputs(params, grads, values, hessians)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of parameters: odd ones, one of several chunks, or small matrices.

    What is decomposed has full rank from the first step on: in a null space eigenvectors may be
    any, and the results with them.
    """
    if not isinstance(case.rule, ArrayRule):
        return {"scalar": (), "vector": (5,), "matrix": (3, 4), "large": (129, 131)}
    every: dict[str, tuple[int, ...]] = {"scalar": (), "vector": (5,), "square": (4, 4)}
    if not case.rule.decisions:
        every |= {"wide": (4, 6), "high": (6, 3), "cube": (2, 3, 2)}
    return {name: shape for name, shape in every.items() if _takes(case, shape)}


def _takes(case: Case, shape: tuple[int, ...]) -> bool:
    try:
        case.optimizer._check_array("params", shape, "float32")
    except (ValueError, TypeError):
        return False
    return True


@functools.cache
def _recorded() -> dict[str, Any]:
    """Return recorded runs and their inputs, as ``tests/golden/make_recorded.py`` wrote them."""
    text = files("fastopt.cli").joinpath("recorded.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def options_of(case: Case) -> Options:
    """Return what a case is made with: the options of its recorded run, or else its own."""
    run = _recorded()["runs"].get(str(case))
    if run is None:
        return dict(case.given)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in run["options"].items()}


def _recorded_run(case: Case) -> tuple[Inputs, dict[str, Array]] | None:
    """Return the inputs of a case's recorded run, and where its parameters are at its end."""
    run = _recorded()["runs"].get(str(case))
    if run is None:
        return None
    given = _recorded()["inputs"][run["inputs"]]
    shapes = [tuple(shape) for shape in given["shapes"]]

    def named(lists: Sequence[Sequence[float]], dtype: Any = np.float32) -> dict[str, Array]:
        pairs = enumerate(zip(lists, shapes, strict=True))
        # Inputs are written in as many digits as float32 needs.
        return {
            f"{k}": np.array(one, dtype).astype(np.float64).reshape(shape)
            for k, (one, shape) in pairs
        }

    inputs = Inputs(
        named(given["params"]),
        [named(one) for one in given["grads"]],
        run.get("values", ()),
        {int(step): named(one) for step, one in run.get("hessians", {}).items()},
        {int(step): lr for step, lr in run.get("lr_changes", {}).items()},
    )
    return inputs, named(run["ends"], np.float64)


# -------------------------------------------------------------------------------------------------
# One run.


@dataclass(frozen=True)
class End:
    """Where a run ended: parameters, state and memory by name, in the format they are stored in."""

    arrays: dict[str, Array]

    @property
    def bits(self) -> str:
        """A hash of all bits, the same on every backend for rules that promise that."""
        told = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            told.update(f"{name} {array.dtype} {array.shape}".encode())
            told.update(np.ascontiguousarray(array).tobytes())
        return told.hexdigest()[:16]


def _run(
    case: Case,
    inputs: Inputs,
    dtype: Any,
    backend: str,
    after: Callable[[Optimizer], None] = lambda opt: None,
    grads_of: Callable[[dict[str, Array]], dict[str, Array]] = lambda grads: grads,
) -> End:
    """Make all steps; ``after`` is called after each, ``grads_of`` changes gradients before."""
    with backends.use_backend(backend):
        xp = backends.array_namespace()

    def placed(some: dict[str, Array]) -> dict[str, Any]:
        return {name: xp.asarray(array.astype(dtype)) for name, array in some.items()}

    opt = case.optimizer(placed(inputs.params), backend=backend, **options_of(case))
    for step, grads in enumerate(inputs.grads):
        handed: dict[str, Any] = {}
        if opt._takes_value:
            handed["value"] = inputs.values[step]
        if opt._estimate is not None and inputs.hessians and step in inputs.hessians:
            handed["hessian"] = placed(inputs.hessians[step])
        if inputs.lr_changes and step in inputs.lr_changes:
            opt.lr = inputs.lr_changes[step]
        opt.step(placed(grads_of(grads)), **handed)
        after(opt)
    return End(_ends(opt))


def _ends(opt: Optimizer) -> dict[str, Array]:
    """Return parameters, state and memory of an optimizer, on the host."""
    found = {name: arrays.on_host(param) for name, param in opt.params.items()}
    saved = opt.state_dict()
    for name, entry in saved["state"].items():
        found |= {f"{slot} of {name}": np.asarray(x) for slot, x in entry.items() if slot != "step"}
    memory = saved.get("memory", {}).items()
    return found | {f"{name} of all": np.asarray(number) for name, number in memory}


# -------------------------------------------------------------------------------------------------
# The reference, and how far from it others may be.


@dataclass(frozen=True)
class Reference:
    """NumPy's run in float64: its end, the largest values on the way, and how much moves it.

    ``moved`` is by how much each element moves per unit that the inputs are off, relatively.
    """

    end: End
    largest: dict[str, Array]
    moved: dict[str, Array]


def _reference(case: Case, inputs: Inputs) -> Reference:
    largest: dict[str, Array] = {}

    def watch(opt: Optimizer) -> None:
        for name, array in _ends(opt).items():
            now = np.asarray(np.abs(array))
            largest[name] = np.maximum(largest[name], now) if name in largest else now

    end = _run(case, inputs, np.float64, "numpy", after=watch)
    for name, param in inputs.params.items():
        largest[name] = np.asarray(np.maximum(largest[name], np.abs(param)))
    moved = {name: array.copy() for name, array in largest.items()}
    for seed in range(AGAIN):
        again = _run_off(case, inputs, np.random.Generator(np.random.PCG64(seed)))
        for name, array in again.arrays.items():
            moved[name] = np.maximum(moved[name], np.abs(array - end.arrays[name]) / OFF)
    return Reference(end, largest, moved)


def _run_off(case: Case, inputs: Inputs, rng: np.random.Generator) -> End:
    """Run the reference with gradients, parameters and state off by ``OFF`` in every step."""

    def off(array: Array) -> Array:
        signs = np.where(rng.random(array.shape) < 0.5, -1.0, 1.0)
        return np.asarray(array * (1.0 + OFF * signs))  # without axes it would be no array

    def after(opt: Optimizer) -> None:
        for param in opt.params.values():
            param[...] = off(param)
        saved = opt.state_dict()
        for entry in saved["state"].values():
            entry |= {k: off(x) for k, x in entry.items() if isinstance(x, np.ndarray)}
        opt.load_state_dict(saved)

    def grads_of(grads: dict[str, Array]) -> dict[str, Array]:
        return {name: off(grad) for name, grad in grads.items()}

    return _run(case, inputs, np.float64, "numpy", after, grads_of)


@dataclass(frozen=True)
class Distance:
    """How far an end is from the reference, where it uses up most of what is allowed there."""

    error: float
    allowed: float
    where: str


def _distance(end: End, reference: Reference, rounds: int, dtype: np.dtype[Any]) -> Distance:
    """Return the distance of an end whose parameters are of this dtype."""
    computed = _Format.of(np.dtype(np.float64) if dtype.itemsize == 8 else np.dtype(np.float32))
    worst = Distance(0.0, 0.0, "")
    used = -1.0
    for name, twin in _twins(end, reference):
        got = end.arrays[name]
        stored = _Format.of(got.dtype)
        allowed = rounds * computed.eps * np.maximum(reference.moved[twin], computed.least)
        if stored.eps > computed.eps:
            allowed += stored.eps / 2 * np.maximum(reference.largest[twin], stored.least)
        else:
            stored = computed
        unit = stored.eps * np.maximum(reference.largest[twin], stored.least)
        off = np.abs(got.astype(np.float64) - reference.end.arrays[twin])
        off = np.where(np.isfinite(off), off, np.inf)
        if not off.size:
            continue
        share, unit = np.asarray(off / allowed), np.broadcast_to(unit, off.shape)
        at = np.unravel_index(int(share.argmax()), share.shape)
        if share[at] > used:
            used = float(share[at])
            place = f"{name}{[int(k) for k in at] if at else ''}"
            worst = Distance(float(off[at] / unit[at]), float(allowed[at] / unit[at]), place)
    return worst


def _twins(end: End, reference: Reference) -> Iterator[tuple[str, str]]:
    """Yield the names of what is held to what: masters, which float64 lacks, to parameters."""
    for name in reference.end.arrays:
        yield name, name
        if f"master of {name}" in end.arrays:
            yield f"master of {name}", name


class _Format(NamedTuple):
    """How far numbers of a format are apart: ``eps`` of their size, or of the ``least`` normal."""

    eps: float
    least: float

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> _Format:
        import ml_dtypes

        known: Any = ml_dtypes.finfo  # of NumPy's formats, and of its own
        found = known(dtype)
        return cls(float(found.eps), float(found.smallest_normal))


# -------------------------------------------------------------------------------------------------
# All of it.


@dataclass(frozen=True)
class Row:
    """What came of one rule on one backend, in one format.

    ``check`` is "error", against the reference, or "recorded", the reference against other
    libraries' results. ``error`` and ``allowed`` are in units of eps, at the element that uses up
    most of what is allowed (``where``). ``bits`` is a hash of all that the run ended with,
    ``same_bits`` whether it is that of the first backend, None where that is not promised, or where
    there is no other. ``problem`` says what is wrong, None if nothing is.
    """

    name: str
    optimizer: str
    options: Options
    rule: str
    check: str
    format: str
    backend: str
    error: float | None
    allowed: float | None
    where: str
    bits: str | None
    same_bits: bool | None
    problem: str | None


@dataclass(frozen=True)
class Report:
    """What came of all rules, and the backends that did not take part, with the reasons."""

    rows: list[Row]
    backends: list[str]
    left_out: dict[str, str]

    @property
    def failed(self) -> list[Row]:
        """The rows with a problem."""
        return [row for row in self.rows if row.problem is not None]

    def as_data(self) -> dict[str, Any]:
        """Return it in plain values: dicts, lists, text and numbers, for JSON."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            row["error"] = None if row["error"] == np.inf else row["error"]
        left_out, failed = self.left_out, len(self.failed)
        return {"backends": self.backends, "left_out": left_out, "failed": failed, "rows": rows}


def verify(
    names: list[str] | None = None,
    formats: Sequence[str] = USUAL,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Hold every rule on every backend that can run here to float64, and that to recorded results.

    Args:
        names: those of optimizers, as ``fastopt.optimizers.names()`` has them; None for all.
        formats: of ``FORMATS``; parameters of half precision have masters in float32.
        tell: is called with the name of each rule before it is checked.
    """
    reasons = backends.available_backends()
    usable = [name for name, reason in reasons.items() if reason is None]
    left_out = {name: _why(name, reason) for name, reason in reasons.items() if reason is not None}
    chosen = cases(names)
    rows: list[Row] = []
    for k, case in enumerate(chosen, 1):
        tell(f"{k} of {len(chosen)}: {case}")
        rows += _rows(case, usable, formats)
    return Report(rows, usable, left_out)


def _why(name: str, reason: str) -> str:
    return "not installed" if find_spec(name) is None else " ".join(reason.split())


def _rows(case: Case, usable: Sequence[str], formats: Sequence[str]) -> Iterator[Row]:
    if (recorded := _recorded_run(case)) is not None:
        yield _held_to_recorded(case, *recorded)
    references: dict[str, Reference] = {}
    for name in formats:
        dtype = _dtype(name)
        inputs = _drawn(case).rounded(np.float32 if dtype.itemsize == 8 else dtype)
        shared = "float32" if name == "float64" else name  # both go in with the same numbers
        try:
            if shared not in references:
                references[shared] = _reference(case, inputs)
        except Exception as error:  # whatever a fault raises is what is looked for
            yield _row(case, "error", name, "numpy", problem=f"reference: {_said(error)}")
            continue
        yield from _in_format(case, inputs, references[shared], usable, name)


def _held_to_recorded(case: Case, inputs: Inputs, ends: dict[str, Array]) -> Row:
    largest = {name: np.maximum(np.abs(inputs.params[name]), np.abs(ends[name])) for name in ends}

    def watch(opt: Optimizer) -> None:
        for name, param in opt.params.items():
            largest[name] = np.maximum(largest[name], np.abs(param))

    try:
        end = _run(case, inputs, np.float64, "numpy", after=watch)
    except Exception as error:
        return _row(case, "recorded", "float64", "numpy", problem=_said(error))
    kept = End({name: end.arrays[name] for name in ends})
    allowed = {
        name: array * (RECORDED / np.finfo(np.float64).eps) for name, array in largest.items()
    }
    found = _distance(kept, Reference(End(ends), largest, allowed), 1, np.dtype(np.float64))
    problem = None if found.error <= found.allowed else "is not what other libraries computed"
    return _row(case, "recorded", "float64", "numpy", found, problem=problem)


def _in_format(
    case: Case, inputs: Inputs, reference: Reference, usable: Sequence[str], name: str
) -> Iterator[Row]:
    dtype = _dtype(name)
    longest = max(max(shape, default=1) for shape in _shapes(case).values())
    rounds = roundings(case, options_of(case), longest)
    first: str | None = None
    for backend in usable:
        try:
            end = _run(case, inputs, dtype, backend)
        except Exception as error:
            yield _row(case, "error", name, backend, problem=_said(error))
            continue
        found = _distance(end, reference, rounds, dtype)
        same = end.bits == first if first is not None and case.promises_bits else None
        first = first or end.bits
        problems = [] if found.error <= found.allowed else ["is further off than rounding explains"]
        problems += ["has other bits than " + usable[0]] if same is False else []
        yield _row(case, "error", name, backend, found, end.bits, same, "; ".join(problems) or None)


def _row(
    case: Case,
    check: str,
    name: str,
    backend: str,
    found: Distance | None = None,
    bits: str | None = None,
    same: bool | None = None,
    problem: str | None = None,
) -> Row:
    return Row(
        name=str(case),
        optimizer=case.optimizer.__name__,
        options=options_of(case),
        rule=case.rule.name,
        check=check,
        format=name,
        backend=backend,
        error=found.error if found else None,
        allowed=found.allowed if found else None,
        where=found.where if found else "",
        bits=bits,
        same_bits=same,
        problem=problem,
    )


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    named: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16}
    found: np.dtype[Any] = np.dtype(named.get(name, name))
    return found


def _said(error: Exception) -> str:
    return " ".join(f"raised {type(error).__name__}: {error}".split())[:300]


# -------------------------------------------------------------------------------------------------
# Compiling for Numba, which takes most of the time where no code is kept yet.

MANY = 20
"""From so many rules on others compile too: a process of its own takes a second to begin."""
MOST = 4
_COMPILE = """
import json, sys
from fastopt.cli import verify
verify.compile_share(*json.loads(sys.argv[1]))
"""


@contextmanager
def compiled_ahead(names: list[str] | None, formats: Sequence[str]) -> Iterator[None]:
    """Have other processes compile rules while the block checks them, from the last one on.

    What they compile is found on disk. There are none where nothing is kept there, for few rules,
    and on one processor. They end with the block.
    """
    count = min(backends.most_threads() - 1, MOST)
    if find_spec("numba") is None or cache.folder() is None or len(cases(names)) < MANY:
        count = 0
    command = [sys.executable, "-c", _COMPILE]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    others = [
        subprocess.Popen([*command, json.dumps([names, formats, k, count])], **quiet)
        for k in range(count)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def compile_share(names: list[str] | None, formats: Sequence[str], number: int, count: int) -> None:
    """Compile every ``count``-th rule, from the last one on; what fails is found elsewhere."""
    for case in cases(names)[::-1][number::count]:
        whole = _drawn(case)
        one_step = replace(whole, grads=whole.grads[:1])
        for name in formats:
            with suppress(Exception):
                _run(case, one_step, _dtype(name), "numba")


# -------------------------------------------------------------------------------------------------
# What is printed.


def lines_of(report: Report) -> list[tuple[str, ...]]:
    """Return the table: a line for each rule and format, a column for each backend."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in report.rows:
        found.setdefault((row.name, row.check, row.format), []).append(row)
    return [
        (name, "recorded" if check == "recorded" else form, *_cells(rows, report.backends))
        for (name, check, form), rows in found.items()
    ]


def _cells(rows: Sequence[Row], usable: Sequence[str]) -> Iterator[str]:
    by = {row.backend: row for row in rows}
    for backend in usable:
        yield _cell(by[backend]) if backend in by else "-"
    yield _number(min((row.allowed for row in rows if row.allowed is not None), default=None))
    same = [row.same_bits for row in rows if row.same_bits is not None]
    yield "-" if not same else "yes" if all(same) else "NO"


def _cell(row: Row) -> str:
    is_reference = (row.check, row.format, row.backend) == ("error", "float64", "numpy")
    return "reference" if is_reference and row.problem is None else _number(row.error)


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.3g}"


def header_of(report: Report) -> tuple[str, ...]:
    """Return the heads of the columns."""
    return ("rule", "format", *report.backends, "allowed", "same bits")


def show(report: Report) -> None:
    """Print the table and what came of it: with rich where it is installed, on a terminal."""
    header, lines = header_of(report), lines_of(report)
    if find_spec("rich") is None or not sys.stdout.isatty():
        print("\n".join(aligned(header, lines)))
    else:
        _show_rich(header, lines)
    print(summary(report))


def _show_rich(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k < 2 else "right", no_wrap=True)
    for line in lines:
        wrong = {"NO", "failed"} & set(line)
        table.add_row(*(Text(cell, style="bold red" if wrong else "") for cell in line))
    console = Console()
    # A name that is cut short says nothing: a narrow terminal breaks the lines itself.
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    Console(width=max(console.width, needed)).print(table)


def summary(report: Report) -> str:
    """Return what came of it: what was checked, what was left out, and what failed."""
    count = len({row.name for row in report.rows})
    lines = [
        f"Errors in units of eps of the format, beside what rounding explains. {count} rules on "
        f"{', '.join(report.backends)}."
    ]
    lines += [f"Left out: {name}: {reason}" for name, reason in report.left_out.items()]
    if not report.failed:
        return "\n".join([*lines, "All is as it should be."])
    lines.append(f"FAILED: {len(report.failed)} of {len(report.rows)}")
    for row in report.failed:
        size = "" if row.error is None else f" ({row.error:.3g} eps, {row.allowed:.3g} allowed"
        size += f", at {row.where})" if size else ""
        lines.append(f"  {row.name}, {row.format} on {row.backend}: {row.problem}{size}")
    return "\n".join([*lines, *_advice(report)])


def _advice(report: Report) -> Iterator[str]:
    checks = {row.check for row in report.failed}
    if "recorded" in checks:
        yield (
            "NumPy itself is off: another build of it (pip install --force-reinstall numpy) may "
            "be right; until then no backend is held to anything here."
        )
    else:
        names = [name for name in report.backends if name in {r.backend for r in report.failed}]
        good = [name for name in report.backends if name not in names]
        yield (
            f"Until it is mended, ask for another backend: backend={good[0]!r}."
            if good
            else "No backend here gives the right results for these rules."
        )
    yield "Report it with these lines and what `fastopt info` prints."
