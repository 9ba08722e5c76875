"""Adafactor, CAME and SM3."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt
from helpers.mutants import common_clock, computing, given, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant("adafactor", fastopt.Adafactor, {"weight_decay": 0.1}),
    Variant("adafactor_eps1", fastopt.Adafactor, {"lr": 1.0, "eps1": 1e-3, "beta2_decay": -0.5}),
    Variant("came", fastopt.CAME, {"lr": 0.01, "weight_decay": 0.1}),
    Variant("sm3", fastopt.SM3, {"weight_decay": 0.1}),
]
SMOOTH = ["Adafactor", "CAME", "SM3"]
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
    "clip_threshold": [*NOT_NEGATIVE, (0.0, ValueError), (None, TypeError)],
    "d": [(0.99, ValueError), (np.inf, ValueError), (None, TypeError), (True, TypeError)],
}

BAD_HERE = {
    ("CAME", "beta3"): [(None, TypeError)],
    ("CAME", "eps1"): [(None, TypeError), (0.0, ValueError)],
    ("CAME", "eps2"): [(0.0, ValueError)],
    ("SM3", "momentum"): [(1.0, ValueError)],
}
adafactor, came, sm3 = fastopt.Adafactor, fastopt.CAME, fastopt.SM3


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


def came_compute(
    xp: Any,
    p: Any,
    g: Any,
    state: Any,
    s: Any,
    averages_steps: bool = True,
    of_gradients: bool = False,
    confidence: bool = True,
    old_average: bool = False,
    step: str = "m",
    clips: bool = True,
) -> Any:
    """Compute as the rule does, or with one of the mistakes that are made."""

    def rms(x: Any) -> Any:
        return np.sqrt((x * x).mean(axis=tuple(range(1, x.ndim)), keepdims=True))

    def averages(names: tuple[str, str], values: Any, share: Any) -> Any:
        return {
            name: state[name] + share * (values.mean(axis=axis, keepdims=True) - state[name])
            for name, axis in zip(names, (-1, -2), strict=True)
        }

    def root(r: Any, c: Any) -> Any:
        return np.sqrt(r * c / r.mean(axis=-2, keepdims=True))

    squares = g * g + s["eps1"]
    if "v" in state:
        made = {"v": state["v"] + s["one_minus_beta2"] * (squares - state["v"])}
        u = g / np.sqrt(made["v"])
    else:
        made = averages(("r", "c"), squares, s["one_minus_beta2"])
        u = g / root(made["r"], made["c"])
    u = u / np.maximum(1.0, rms(u) / s["clip_threshold"]) if clips else u
    m = state["m"] + s["one_minus_beta1"] * ((u if averages_steps else g) - state["m"])
    moved = m if step == "m" else u
    if "v" not in state:
        seen = state["m"] if old_average else m
        away = ((g if of_gradients else u) - seen) ** 2 + s["eps2"]
        made |= averages(("sr", "sc"), away, s["one_minus_beta3"])
        moved = moved / root(made["sr"], made["sc"]) if confidence else moved
    return p - s["lr"] * moved, made | {"m": m}


def came_with(**mistake: Any) -> Any:
    return (came, computing(came, lambda *values: came_compute(*values, **mistake)))


def sm3_compute(
    xp: Any,
    p: Any,
    g: Any,
    state: Any,
    s: Any,
    largest: bool = False,
    adds: bool = False,
    eps_outside: bool = False,
    of_gradients: bool = False,
    old_sums: bool = False,
    swapped: bool = False,
) -> Any:
    """Compute as the rule does, or with one of the mistakes that are made."""
    sums, is_matrix = state["a0"], g.ndim == 3
    if is_matrix:
        one, two = state["a0"][:, :, None], state["a1"][:, None, :]
        sums = (np.maximum if largest else np.minimum)(one, two)
    v = sums + g * g
    seen = sums if old_sums else v
    root = np.sqrt(seen) + s["eps"] if eps_outside else np.sqrt(seen + s["eps"])
    mean = state["m"] + s["one_minus_momentum"] * ((g if of_gradients else g / root) - state["m"])
    made = {"m": mean, "a0": v}
    if is_matrix:
        made |= {"a0": v.max(axis=2), "a1": v.max(axis=1)}
        if adds:
            made |= {"a0": state["a0"] + (g * g).max(axis=2)}
        if swapped:
            made |= {"a0": v.min(axis=2), "a1": v.min(axis=1)}
    return p - s["lr"] * (mean / root if of_gradients else mean), made


def sm3_with(**mistake: bool) -> Any:
    return (sm3, computing(sm3, lambda *values: sm3_compute(*values, **mistake)))


MUTANTS = {
    "CAME_momentum_of_gradients": came_with(averages_steps=False),
    "CAME_distance_of_gradients": came_with(of_gradients=True),
    "CAME_no_confidence": came_with(confidence=False),
    "CAME_distance_from_the_average_before": came_with(old_average=True),
    "CAME_step_without_its_average": came_with(step="u"),
    "CAME_not_clipped": came_with(clips=False),
    "CAME_betas_swapped": (
        came,
        given(came, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "CAME_beta3_is_beta2": (
        came,
        given(came, lambda o, lr, t: ({**o, "beta3": o["betas"][1]}, lr, t)),
    ),
    "CAME_eps_swapped": (
        came,
        given(came, lambda o, lr, t: ({**o, "eps1": o["eps2"], "eps2": o["eps1"]}, lr, t)),
    ),
    "SM3_largest_along_the_axes": sm3_with(largest=True),
    "SM3_sum_of_largest_squares": sm3_with(adds=True),  # the paper's SM3-I
    "SM3_eps_outside_the_root": sm3_with(eps_outside=True),
    "SM3_momentum_of_gradients": sm3_with(of_gradients=True),
    "SM3_sums_before_the_step": sm3_with(old_sums=True),
    "SM3_least_along_the_axes": sm3_with(swapped=True),
    "SM3_momentum_swapped": (
        sm3,
        given(sm3, lambda o, lr, t: ({**o, "momentum": 1 - o["momentum"]}, lr, t)),
    ),
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

RIGHT = [
    adafactor_with(),
    came_with(),
    sm3_with(),
]
"""The functions that mistakes are made in, without any: they meet the vectors."""
