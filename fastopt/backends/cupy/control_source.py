"""The CUDA C++ of norms, of the decision on a step, and of the scale of a loss; imports no CuPy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends.cupy.shapes import SHAPES
from fastopt.backends.cupy.source import (
    ONCE,
    OPTIONS,
    TYPE,
    Addresses,
    block_struct,
    constants,
    fixed,
    in_namespace,
    indices,
    number_format,
)
from fastopt.core.buckets import NOT_MEASURED
from fastopt.core.dtypes import wide
from fastopt.core.norms import CLIP_EPS, LANES, SMALLER, SQUARES_OVERFLOW, TOO_SMALL

# -------------------------------------------------------------------------------------------------
# Sums of squares of gradients.

FACTORS = (1.0, SMALLER, 1.0 / SMALLER)
"""What gradients are multiplied by before they are squared, where the device chooses among them."""


def squares(dtype: np.dtype[Any], addresses: Addresses) -> dict[str, Any]:
    """Return the arguments of the kernel that sums tiles, ``tiles_at_once`` in a block.

    It takes ``addresses`` and ``blocks`` as an update does, a row for each tile; ``first`` (the
    tiles before those), ``own`` (how many those are), ``factor``, and ``sums``, which it writes.
    """
    text = ("float64 factor", ["factor"], "0", "fastopt_squares")
    return _squares(dtype, addresses, *text)


def squares_to_decide(dtype: np.dtype[Any], addresses: Addresses, scaled: bool) -> dict[str, Any]:
    """Return the arguments of the kernel that sums tiles where the device decides, in one pass.

    In place of ``factor`` it takes ``tiles``, how many there are in all. It writes the sums of
    all tiles for the first of FACTORS, and with ``scaled`` then for the others.
    """
    factors = [repr(factor) for factor in FACTORS[: None if scaled else 1]]
    name = f"fastopt_{'all_' if scaled else ''}squares_to_decide"
    return _squares(dtype, addresses, "int64 tiles", factors, "tiles", name)


def tiles_at_once(dtype: np.dtype[Any]) -> int:
    """Return how many tiles a block of threads sums: as many as a thread loads numbers at once."""
    return SHAPES["squares"].load // dtype.itemsize


def _squares(
    dtype: np.dtype[Any],
    addresses: Addresses,
    last: str,
    factors: Sequence[str],
    tiles: str,
    name: str,
) -> dict[str, Any]:
    real = wide(dtype).name
    types = [
        f"typedef {TYPE[real]} real;",
        f"typedef {number_format(dtype.name, real)} Gradient;",
        "typedef Gradient::type gradient;",
    ]
    preamble = [
        in_namespace(block_struct()),
        in_namespace(
            constants(
                CAPACITY=addresses.capacity,
                LANES=LANES,
                WIDTH=tiles_at_once(dtype),
            )
        ),
        *(fixed("numbers"), in_namespace("\n".join(types)), fixed("total"), fixed("norms")),
    ]
    return {
        "in_params": f"{addresses.declared}, raw int64 blocks, int64 first, int64 own, {last}",
        "out_params": "raw float64 sums",
        "operation": f"""
    const double factors[] = {{{", ".join(factors)}}};
    fastopt::sum_squares({addresses.pointer}, &blocks[0], factors, &sums[0], first, own, {tiles});
{ONCE}""",
        "preamble": "\n".join(preamble),
        "name": name,
        "no_return": True,
        "options": (*OPTIONS, *SHAPES["squares"].options),
    }


# -------------------------------------------------------------------------------------------------
# The decision on a step.

COUNTS = ("row", "steps", "skipped", "overrun")
"""What is counted on the device: the row of this step (NO_ROW: there is none, SKIPPED_ROW: the step
is skipped), how many steps were made, how many were skipped, and how many were left out because the
tables had no row for them. Kernels that take all of it want the row, its first element."""

NO_ROW, SKIPPED_ROW = -1, -2

FETCHED, MANY_TILES = 4_096, 2_048
"""How many sums of tiles are fetched at once, by many threads, where there are so many tiles."""

MEASURED = ("norm", "scale")
"""The norm of the last step's gradients (NOT_MEASURED: nothing asked for it), and their scale."""


class Settings(NamedTuple):
    """What the device decides by, as the host sets it: all int64, and in the last place a float64.

    The tables hold ``length`` rows, from that of step count ``base`` on; of these the last
    ``period`` come again and again after the end, if it is not 0. ``clips``: the norm is brought
    down to ``limit``. ``skips``: a step is left out if a gradient is not finite, or squares
    overflow (see ``core.norms``).
    """

    base: int
    length: int
    period: int
    clips: bool
    skips: bool
    limit: float


def decide() -> dict[str, Any]:
    """Return the arguments of the kernel that decides.

    It is launched by many threads where there are MANY_TILES tiles (``decide_by_many``).
    It takes the ``sums`` of squares of all ``tiles`` (-1: not measured) for the first of FACTORS
    or, if ``scaled``, for each; ``in_single``, not 0 if some rule averages squares in float32; the
    gradients' scale as a ``number`` times what stands at an ``address`` in a float of ``width``
    bytes (0: nothing); ``settings`` and ``limit``, the largest norm. It writes ``counts``,
    ``measured``, the scale in single precision, and the outcome (made, norm) at an ``index`` of the
    ``outcomes``.
    """
    text = [
        in_namespace(indices(COUNTS, MEASURED, Settings._fields[:-1])),
        in_namespace(
            constants(
                LANES=LANES,
                FETCHED=FETCHED,
                MANY_THREADS=SHAPES["decide_by_many"].threads,
                NO_ROW=NO_ROW,
                SKIPPED_ROW=SKIPPED_ROW,
                NOT_MEASURED=NOT_MEASURED,
                CLIP_EPS=CLIP_EPS,
                LARGEST=sys.float_info.max,
                TOO_SMALL=TOO_SMALL,
                SMALLER=FACTORS[1],
                LARGER=FACTORS[2],
                SQUARES_OVERFLOW=SQUARES_OVERFLOW,
            )
        ),
        *(fixed("total"), fixed("decide")),
    ]
    return {
        "in_params": "raw float64 sums, int64 tiles, int64 scaled, int64 in_single, "
        "float64 number, int64 address, int64 width, raw int64 settings, raw float64 limit, "
        "int64 index",
        "out_params": "raw int64 counts, raw float64 measured, raw float32 single, "
        "raw float64 outcomes",
        "operation": f"""
    fastopt::decide(
        &sums[0], tiles, scaled, in_single, fastopt::scale_of(number, address, width), &settings[0],
        &limit[0], &counts[0], &measured[0], &single[0], &outcomes[2 * index]);
{ONCE}""",
        "name": "fastopt_decide",
        "preamble": "\n".join(text),
        "no_return": True,
        "options": (*OPTIONS, *SHAPES["decide_by_many"].options),
    }


# -------------------------------------------------------------------------------------------------
# The scale of a loss, which follows the decisions.

SCALES = ("scale", "inverse")
"""What the loss is multiplied by, and what its gradients are; in float64, and in float32 too."""

TALLIES = ("good_steps", "skips", "given_up", "made", "skipped")
"""The updates since the scale last changed, the skips in a row at the smallest one, how many of
those there were when they became too many (0: they have not, since the host last looked); whether a
step was made, and one skipped, since the last update."""


def note() -> dict[str, Any]:
    """Return the arguments of the kernel that notes a decision, to be launched with one thread.

    It takes the ``counts`` of the decision, and writes to ``tallies`` if the step was made or
    skipped.
    """
    return {
        "in_params": "raw int64 counts",
        "out_params": "raw int64 tallies",
        "operation": "fastopt::note(&counts[0], &tallies[0]);",
        "name": "fastopt_note",
        "preamble": _loss_scale(),
        "no_return": True,
        "options": OPTIONS,
    }


def rescale() -> dict[str, Any]:
    """Return the arguments of the kernel that follows what was noted, for one thread.

    It takes the numbers of a ScalePolicy, and whether steps were made or skipped ``elsewhere``.
    ``scales``, ``tallies`` and ``singles``, the scales in single precision, it brings up to date.
    """
    return {
        "in_params": "float64 growth_factor, float64 backoff_factor, int64 growth_interval, "
        "float64 min_scale, float64 max_scale, int64 max_skips, int64 made_elsewhere, "
        "int64 skipped_elsewhere",
        "out_params": "raw float64 scales, raw int64 tallies, raw float32 singles",
        "operation": """
    fastopt::rescale(
        {growth_factor, backoff_factor, growth_interval, min_scale, max_scale, max_skips},
        made_elsewhere, skipped_elsewhere, &scales[0], &tallies[0], &singles[0]);
""",
        "name": "fastopt_rescale",
        "preamble": _loss_scale(),
        "no_return": True,
        "options": OPTIONS,
    }


def _loss_scale() -> str:
    numbers = constants(ROW=COUNTS.index("row"), SKIPPED_ROW=SKIPPED_ROW)
    return in_namespace(f"{indices(SCALES, TALLIES)}\n{numbers}") + fixed("loss_scale")
