"""Who takes part: only those that are installed, work here, and compute the same Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from contenders import LR, Array, Contender, NumpyLoop

CLOSE = 1e-5
"""How far parameters of about 1 may be off after a few steps."""


Kind = TypeVar("Kind", bound=Contender)


def taking_part(
    classes: Sequence[type[Kind]], sure: type[Contender] = NumpyLoop
) -> tuple[list[type[Kind]], dict[str, str]]:
    """Return those that work here and compute what ``sure`` does in float64.

    Of the others the reason why not, by name.
    """
    ready: list[type[Kind]] = []
    absent: dict[str, str] = {}
    for contender in classes:
        reason = contender.reason_against() or _trial(contender, sure)
        if reason:
            absent[contender.name] = reason
        else:
            ready.append(contender)
    return ready, absent


def _trial(contender: type[Contender], sure: type[Contender]) -> str | None:
    """Return what is wrong with its steps on small arrays, if anything."""
    rng = np.random.default_rng(0)
    shapes = [(7,), (33, 5), (1000,)]
    params = [rng.standard_normal(shape, np.float32) for shape in shapes]
    grads = [away_from_zero(rng.standard_normal(shape, np.float32)) for shape in shapes]
    try:
        # Adam does not notice a factor that stays the same, be it a wrong one or from clipping.
        return wrong_steps(contender(params, 0.1), params, grads, 0.1, (1.0, 10.0, 0.3, 3.0), sure)
    except Exception as error:  # a broken installation, a compiler that is missing
        return f"{type(error).__name__}: {error}".splitlines()[0]


def away_from_zero(grad: Array) -> Array:
    """Return gradients that are so large that nobody's eps matters."""
    return np.copysign(np.abs(grad) + np.float32(0.1), grad)


def wrong_steps(
    made: Contender,
    params: Sequence[Array],
    grads: Sequence[Array],
    lr: float = LR,
    factors: Sequence[float] = (1.0, 1.0, 1.0),
    same_as: type[Contender] = NumpyLoop,
) -> str | None:
    """Make the first steps; say so if they are off by more than CLOSE from another's in float64.

    The gradients of each step are those given, times the step's factor.
    """
    norm = sum(float(np.vdot(grad, grad)) for grad in grads) ** 0.5 if made.clips else 0.0
    ends = {0: params[0], len(params) - 1: params[-1]}  # the first and the last stand for all
    sure = same_as([end(param) for param in ends.values()], lr)
    for factor in factors:
        made.hand_in([np.float32(factor) * grad for grad in grads])
        made.step()
        scale = min(factor, 1.0 / norm) if made.clips else factor
        sure.hand_in([scale * end(grads[index]) for index in ends])
        sure.step()
    off = max(np.abs(end(made.result(i)) - sure.result(k)).max() for k, i in enumerate(ends))
    what = "Adam" if same_as is NumpyLoop else same_as.__name__
    return None if off < CLOSE else f"off by {off:.1e} after {len(factors)} steps: not {what}"


def end(array: Array) -> Array:
    """Return the last elements, which stand for all: a step treats every element alike."""
    return array.ravel()[-1000:].astype(np.float64)
