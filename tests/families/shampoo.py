"""Shampoo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fastopt
from fastopt_kernels import ArrayRule
from fastopt_kernels import shampoo as kernel
from helpers.mutants import arguments, common_clock, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant(
        "shampoo",
        fastopt.Shampoo,
        {"lr": 0.05, "eps": 0.1, "momentum": 0.6, "precondition_frequency": 2},
    ),
    Variant(
        "shampoo_grafted",
        fastopt.Shampoo,
        {"lr": 0.01, "eps": 0.1, "grafting": "sgd", "max_precondition_dim": 4},
    ),
]
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "power": [(0.0, ValueError), (-0.25, ValueError), ("a", TypeError), (True, TypeError)],
    "grafting": [("adam", ValueError), (None, TypeError), (True, TypeError)],
}
BAD_HERE: dict[Any, Any] = {
    (fastopt.Shampoo, "eps"): [(0.0, ValueError), (-1.0, ValueError), ("a", TypeError)],
}

right = fastopt.Shampoo


def wrong(**mistakes: bool) -> Any:
    """Return a class that makes some mistakes, named as in ``compute``."""

    def compute(
        xp: Any, param: Any, grad: Any, state: Any, scalars: Any, power: Any, grafting: Any
    ) -> Any:
        axes = [k for k in range(param.ndim - 1) if f"gram{k}" in state]
        made, u = dict(state), grad
        for k in axes:
            product = kernel.products(xp, u if mistakes.get("of_turned") else grad, k)
            gram = state[f"gram{k}"] + product
            if mistakes.get("forgets"):
                gram = product
            made[f"gram{k}"] = gram
            if scalars["refresh"]:
                exponent = 1 / (2 * (param.ndim - 1)) if power is None else power
                if mistakes.get("one_axis"):
                    exponent = 0.5 if power is None else power
                seen = state[f"gram{k}"] if mistakes.get("old") else gram
                made[f"root{k}"] = kernel.root_of(xp, seen, scalars["eps"], exponent)
            if not (mistakes.get("first_axis") and k > 0):
                u = kernel.along(xp, u, k, made[f"root{k}"])
        if grafting == "sgd" and axes and not mistakes.get("ungrafted"):
            u = u * (kernel.length(xp, grad) / kernel.length(xp, u))
        m = scalars["momentum"] * state["m"] + u
        if mistakes.get("average"):
            m = scalars["momentum"] * state["m"] + (1 - scalars["momentum"]) * u
        return param - scalars["lr"] * m, made | {"m": m}

    def rule(options: Any) -> ArrayRule:
        names = ("max_precondition_dim", "power", "grafting")
        return replace(kernel.rule(*(options[name] for name in names)), compute=compute)

    return (right, type("Mutant", (right,), {"_rule": staticmethod(rule)}))


def ignored(name: str, value: Any) -> Any:
    return (right, arguments(right, lambda o: {**o, name: value}))


MUTANTS = {
    "Shampoo_products_of_what_is_turned_already": wrong(of_turned=True),
    "Shampoo_forgets": wrong(forgets=True),
    "Shampoo_as_for_one_axis": wrong(one_axis=True),
    "Shampoo_roots_of_before": wrong(old=True),
    "Shampoo_first_axis_alone": wrong(first_axis=True),
    "Shampoo_never_grafted": wrong(ungrafted=True),
    "Shampoo_momentum_is_an_average": wrong(average=True),
    "Shampoo_momentum_ignored": ignored("momentum", 0.0),
    "Shampoo_eps_ignored": ignored("eps", 1e-6),
    "Shampoo_power_ignored": ignored("power", None),
    "Shampoo_frequency_ignored": ignored("precondition_frequency", 1),
    "Shampoo_longest_axis_ignored": ignored("max_precondition_dim", 10000),
    "Shampoo_roots_a_step_late": (
        right,
        scalars(
            right,
            lambda made, o, t: {"refresh": float(t == 1 or t % o["precondition_frequency"] == 0)},
        ),
    ),
    "Shampoo_one_clock_for_all_parameters": (right, common_clock(right)),
}
RIGHT = [wrong()]
