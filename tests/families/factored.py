"""Adafactor."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt
from helpers.mutants import common_clock, computing, given, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant("adafactor", fastopt.Adafactor, {"weight_decay": 0.1}),
    Variant("adafactor_eps1", fastopt.Adafactor, {"lr": 1.0, "eps1": 1e-3, "beta2_decay": -0.5}),
]
SMOOTH = ["Adafactor"]
NOT_NEGATIVE: list[tuple[Any, type[Exception]]] = [
    (-1.0, ValueError),
    (np.nan, ValueError),
    (np.inf, ValueError),
    ("a", TypeError),
    (True, TypeError),
]
BAD = {
    "beta2_decay": [(1e-9, ValueError), (-np.inf, ValueError), (None, TypeError), ("a", TypeError)],
    "eps1": NOT_NEGATIVE,
    "eps2": [*NOT_NEGATIVE, (None, TypeError)],
    "d": [(0.99, ValueError), (np.inf, ValueError), (None, TypeError), (True, TypeError)],
}

adafactor = fastopt.Adafactor


def adafactor_compute(
    xp: Any,
    p: Any,
    g: Any,
    state: Any,
    s: Any,
    sums: bool = False,
    by_size: bool = True,
    eps_in_squares: bool = False,
    clips_first: bool = True,
    normalized: bool = True,
    decays_first: bool = False,
) -> Any:
    """Compute as the rule does, or with one of the mistakes that are made."""

    def rms(x: Any) -> Any:
        return np.sqrt((x * x).mean(axis=tuple(range(1, x.ndim)), keepdims=True))

    w, more = s["one_minus_beta2"], s["eps1"] ** 2 if eps_in_squares else 0.0
    squares = g * g + more
    decayed = p - s["decay"] * p
    if "v" in state:
        made = {"v": state["v"] + w * (squares - state["v"])}
        estimate = made["v"]
    else:
        of = np.sum if sums else np.mean
        made = {
            slot: state[slot] + w * (of(squares, axis=axis, keepdims=True) - state[slot])
            for slot, axis in (("r", -1), ("c", -2))
        }
        estimate = made["r"] * made["c"]
        if normalized:
            estimate = estimate / np.maximum(made["r"].mean(axis=-2, keepdims=True), s["eps1"])
    least = 0.0 if eps_in_squares else s["eps1"] ** 2
    u = g / np.sqrt(np.maximum(estimate, least))
    if clips_first:
        u = u / np.maximum(1.0, rms(u) / s["d"])
    size = np.maximum(rms(decayed if decays_first else p), s["eps2"]) if by_size else 1.0
    return decayed - s["rho"] * size * u, made


def adafactor_with(**mistake: bool) -> Any:
    return (adafactor, computing(adafactor, lambda *values: adafactor_compute(*values, **mistake)))


MUTANTS = {
    "Adafactor_sums_of_squares": adafactor_with(sums=True),
    "Adafactor_steps_not_in_the_size_of_the_array": adafactor_with(by_size=False),
    "Adafactor_eps1_in_the_squares": adafactor_with(eps_in_squares=True),  # paper, optax, keras
    "Adafactor_not_clipped": adafactor_with(clips_first=False),
    "Adafactor_not_normalized": adafactor_with(normalized=False),
    "Adafactor_size_after_the_decay": adafactor_with(decays_first=True),
    "Adafactor_rate_not_limited": (
        adafactor,
        scalars(adafactor, lambda made, o, t: {"rho": made["lr"]}),
    ),
    "Adafactor_one_average_for_all_steps": (
        adafactor,
        scalars(adafactor, lambda made, o, t: {"one_minus_beta2": 0.2}),
    ),
    "Adafactor_average_one_step_late": (
        adafactor,
        given(adafactor, lambda o, lr, t: (o, lr, t + 1)),
    ),
    "Adafactor_one_clock_for_all_parameters": (adafactor, common_clock(adafactor)),
}
