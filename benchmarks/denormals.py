"""Parameters without gradients: averages decay towards zero, and denormal numbers are slow.

A million parameters get one gradient and then zeros. Two copies of each contender take turns: one
has had 50 steps of zeros when the timing begins, the other 1100, when what began at 1 is at 1e-50
and has long been denormal in float32, unless it was flushed to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from contenders import Classes, Contender

from fastopt.cli.timing import Effort, Turn, take_turns

EARLY, LATE = 50, 1100
BRIEFLY = Effort(0.024, rounds=12)
"""Few steps in all, so that early stays early: nothing is denormal before step 700."""


def measure(
    classes: Classes, tell: Callable[[str], None], parameters: int = 1_000_000
) -> dict[str, dict[str, float]]:
    """Return of every contender the time of a step early and late, and their ratio, by name."""
    turns: dict[str, Turn] = {}
    for contender in classes:
        tell(f"{contender.name}, {LATE} steps without gradient")
        for steps in (EARLY, LATE):
            turns[f"{contender.name} {steps}"] = Turn(_after(contender, parameters, steps).step)
    times = take_turns(turns, BRIEFLY)
    found = {}
    for contender in classes:
        early, late = (times[f"{contender.name} {steps}"] for steps in (EARLY, LATE))
        found[contender.name] = {
            "early": early.median,
            "late": late.median,
            "ratio": late.median / early.median,
            "spread": max(early.high / early.low, late.high / late.low),
        }
    return found


def _after(contender: type[Contender], parameters: int, steps: int) -> Contender:
    """Return a contender that has made a step, and then so many with gradients of zero."""
    grads: list[Any] = [np.random.default_rng(0).standard_normal(parameters, np.float32)]
    made = contender([np.ones(parameters, np.float32)])
    made.hand_in(grads)
    made.step()
    made.hand_in([np.zeros_like(grad) for grad in grads])
    for _ in range(steps):
        made.step()
    return made
