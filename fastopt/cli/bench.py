"""``fastopt bench``: Adam's time per step against this machine's own memory bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastopt import backends
from fastopt.cli.table import aligned
from fastopt.cli.timing import FULL, QUICK, Times, Turn, take_turns
from fastopt.core.hyperparameters import Options, Value
from fastopt.optimizers.adam import Adam
from fastopt_kernels import Rule

# -------------------------------------------------------------------------------------------------
# Adam's memory traffic without its arithmetic: what a step would take if computing were free.

ADAM_ARRAYS_MOVED = 7
"""Adam reads the gradient, the parameter, m and v, and writes the last three."""


def _numpy(param: Any, grad: Any, m: Any, v: Any, step_size: float) -> None:
    m += grad
    v += grad
    param -= step_size * grad


def _numba(param: Any, grad: Any, m: Any, v: Any, step_size: Any) -> tuple[Any, Any, Any]:
    return param - step_size * grad, m + grad, v + grad


RULE = Rule(
    name="traffic",
    state=("m", "v"),
    signed=("m", "v"),
    scalars=("step_size",),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + grad;
        v = v + grad;
        param = param - step_size * grad;
    """,
)


class Traffic(Adam):
    """No optimizer: it moves the bytes that Adam moves, by the same compiled call and threads.

    ::

        m <- m + g,  v <- v + g,  p <- p - lr * g
    """

    @staticmethod
    def _rule(options: Options) -> Rule:
        return RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {"step_size": lr}


# -------------------------------------------------------------------------------------------------
# ``python -m fastopt bench``: Adam's time per step against this machine's own memory bandwidth.

SIZES = (
    (1, 10),
    (10, 10),
    (1, 100),
    (10, 1_000),
    (200, 1_000),
    (1, 100_000),
    (1_000, 10_000),
    (1, 20_000_000),
)
"""Arrays, and elements of each. The last is far larger than caches: it gives the bandwidth."""

QUICK_SIZES = ((1, 10), (10, 1_000), (200, 1_000), (1, 4_000_000))

# Adam against the traffic ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One backend at one size; times are medians, of so many steps."""

    backend: str
    arrays: int
    elements: int
    seconds: float
    seconds_low: float
    seconds_high: float
    steps: int
    nanoseconds_per_parameter: float
    bytes_per_second: float
    of_bandwidth: float


def measure(quick: bool = False, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time Adam on every backend that can run here, and its bare traffic at the largest size.

    Returns ``{"bandwidth": {backend: bytes per second}, "rows": [...]}`` of plain values. Each
    row's ``of_bandwidth`` is its share of the highest bandwidth that backends of its kind of arrays
    reach: that of the processor, or of the GPU.
    """
    names = [name for name, reason in backends.available_backends().items() if reason is None]
    sizes = QUICK_SIZES if quick else SIZES
    found: dict[tuple[int, int], dict[str, Times]] = {}
    for arrays, elements in sizes:
        tell(f"{arrays} x {elements:_} on {', '.join(names)}".replace("_", " "))
        formulas = [Adam, Traffic] if (arrays, elements) == sizes[-1] else [Adam]
        turns = {
            f"{formula.__name__} {name}": _turn(formula, name, arrays, elements)
            for formula in formulas
            for name in names
        }
        found[arrays, elements] = take_turns(turns, QUICK if quick else FULL)
    moved = ADAM_ARRAYS_MOVED * _DTYPE.itemsize
    traffic = {name: found[sizes[-1]][f"Traffic {name}"].median for name in names}
    bandwidth = {name: moved * sizes[-1][0] * sizes[-1][1] / traffic[name] for name in names}
    return {
        "bandwidth": bandwidth,
        "rows": [
            asdict(_row(name, *size, times[f"Adam {name}"], _highest(bandwidth, name)))
            for size, times in found.items()
            for name in names
        ],
    }


_DTYPE = np.dtype(np.float32)


def _turn(formula: type[Adam], backend: str, arrays: int, elements: int) -> Turn:
    """Return steps with the same gradient arrays each time, on a device until it is done."""
    with backends.use_backend(backend):
        xp = backends.array_namespace()
        rng = np.random.default_rng(0)
        grads = [xp.asarray(rng.standard_normal(elements, _DTYPE)) for _ in range(arrays)]
        params = [xp.ones(elements, _DTYPE) for _ in range(arrays)]
        opt = formula(params)
    if backends.ARRAY_KIND[backend] == "numpy":
        return Turn(lambda: opt.step(grads))

    def step_on_device() -> None:
        opt.step(grads)
        xp.cuda.get_current_stream().synchronize()

    return Turn(step_on_device)


def _highest(bandwidth: Mapping[str, float], name: str) -> float:
    kind = backends.ARRAY_KIND
    return max(value for other, value in bandwidth.items() if kind[other] == kind[name])


def _row(name: str, arrays: int, elements: int, times: Times, bandwidth: float) -> Row:
    parameters = arrays * elements
    rate = ADAM_ARRAYS_MOVED * _DTYPE.itemsize * parameters / times.median
    return Row(
        backend=name,
        arrays=arrays,
        elements=elements,
        seconds=times.median,
        seconds_low=times.low,
        seconds_high=times.high,
        steps=times.count,
        nanoseconds_per_parameter=times.median / parameters * 1e9,
        bytes_per_second=rate,
        of_bandwidth=rate / bandwidth,
    )


# What is printed --------------------------------------------------------------------------------


def report(measured: Mapping[str, Any]) -> str:
    """Return what was measured as text."""
    lines = [
        f"memory bandwidth for Adam's traffic, {name}: {rate / 1e9:.1f} GB/s"
        for name, rate in measured["bandwidth"].items()
    ]
    header = ("arrays", "elements", "backend", "us/step", "ns/parameter", "GB/s", "of bandwidth")
    cells = [
        (
            f"{row['arrays']}",
            f"{row['elements']}",
            row["backend"],
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['nanoseconds_per_parameter']:.3f}",
            f"{row['bytes_per_second'] / 1e9:.2f}",
            f"{row['of_bandwidth']:.1%}",
        )
        for row in measured["rows"]
    ]
    return "\n".join([*lines, "", *aligned(header, cells), "", _NOTE])


_NOTE = """\
Adam, float32, medians; the same gradient arrays in every step. 28 bytes per parameter: gradient,
parameter, m and v are read, the last three are written. Small sizes are in the cache, so they can
exceed the memory's bandwidth; the smallest are the time of the call itself."""
