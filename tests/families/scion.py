"""Scion: steps of one length in a norm."""

from __future__ import annotations

from dataclasses import replace
from math import prod, sqrt
from typing import Any

import numpy as np

import fastopt
from fastopt_kernels import ArrayRule
from fastopt_kernels import scion as kernel
from helpers.mutants import arguments, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant("scion", fastopt.Scion, {"lr": 0.01, "radius": 3.0}),
    Variant("scion_row", fastopt.Scion, {"lr": 0.01, "norm": "row", "momentum": 0.5}),
]
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "norm": [("frobenius", ValueError), (None, TypeError), (2, TypeError)],
    "radius": [(0.0, ValueError), (-1.0, ValueError), ("a", TypeError), (None, TypeError)],
    "constrained": [("yes", TypeError), (1, TypeError), (None, TypeError)],
}

right = fastopt.Scion


def wrong(**mistakes: bool) -> Any:
    """Return a class that makes some mistakes, named as in ``compute``."""

    def compute(
        xp: Any, param: Any, grad: Any, state: Any, scalars: Any, norm: Any, iterations: Any
    ) -> Any:
        m = state["m"] + scalars["one_minus_momentum"] * (grad - state["m"])
        seen = m
        if mistakes.get("old"):
            seen = state["m"]
        if mistakes.get("looks"):
            seen = m + scalars["one_minus_momentum"] * (grad - m)
        u = kernel.direction(xp, seen, norm, scalars, iterations)
        kind = kernel.norm_of(norm, param.ndim - 1)
        if kind == "spectral" and mistakes.get("square"):
            u = u / sqrt(param.shape[1] / prod(param.shape[2:3]))
        if kind == "rms" and mistakes.get("sum"):
            u = u / sqrt(prod(param.shape[1:]))
        if kind == "sign" and mistakes.get("long"):
            u = np.sign(seen)
        shrunk = u if mistakes.get("of_step") else param
        return param - scalars["shrink"] * shrunk - scalars["step"] * u, {"m": m}

    def rule(options: Any) -> ArrayRule:
        return replace(kernel.rule(options["norm"], options["ns_steps"]), compute=compute)

    return (right, type("Mutant", (right,), {"_rule": staticmethod(rule)}))


def ignored(name: str, value: Any) -> Any:
    return (right, arguments(right, lambda o: {**o, name: value}))


MUTANTS = {
    "Scion_steps_by_the_last_average": wrong(old=True),
    "Scion_looks_ahead": wrong(looks=True),
    "Scion_vectors_by_their_sum": wrong(sum=True),
    "Scion_matrices_of_any_shape_alike": wrong(square=True),
    "Scion_signs_of_any_width_alike": wrong(long=True),
    "Scion_constrained_shrinks_the_step": wrong(of_step=True),
    "Scion_radius_ignored": ignored("radius", 1.0),
    "Scion_norm_ignored": ignored("norm", "auto"),
    "Scion_never_constrained": ignored("constrained", False),
    "Scion_eps_ignored": ignored("eps", 1e-8),
    "Scion_coefficients_ignored": ignored("ns_coefficients", (3.4445, -4.775, 2.0315)),
    "Scion_iterations_ignored": ignored("ns_steps", 5),
    "Scion_share_of_the_new_gradient": (
        right,
        scalars(right, lambda made, o, t: {"one_minus_momentum": o["momentum"]}),
    ),
    "Scion_shrinks_by_all": (
        right,
        scalars(right, lambda made, o, t: {"shrink": o["lr"] * o["radius"] * made["shrink"]}),
    ),
}
RIGHT = [wrong()]
