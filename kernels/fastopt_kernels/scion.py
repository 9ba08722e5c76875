"""Scion: steps of one length, in the norm that suits the array's place in a network.

m <- m + (1 - momentum) * (grad - m)
u <- the direction of m, by ``norm``:
  spectral: m with its singular values brought near 1 (``muon.py``), times sqrt(rows / columns)
  row: m / (the root of the row's sum of squares * sqrt(columns) + eps)
  column: m / (the root of the column's mean square + eps)
  sign: the sign of m / columns
  rms: m / (the root of the mean square + eps)
param <- param - shrink * param - step * u

Rows are the places of the first axis, columns those of all others together, of which a vector has
one. Spectral counts as columns those of the second axis, and divides by the number of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod, sqrt
from typing import Any, Literal

from fastopt_kernels.adafactor import rms
from fastopt_kernels.muon import orthogonalized
from fastopt_kernels.rule import ArrayRule

Norm = Literal["auto", "spectral", "row", "column", "sign", "rms"]


def norm_of(norm: Norm, axes: int) -> Norm:
    """Return the norm for an array of so many axes."""
    if norm != "auto":
        return norm
    return "spectral" if axes > 1 else "rms"


def direction(xp: Any, m: Any, norm: Norm, scalars: Mapping[str, Any], iterations: int) -> Any:
    """Return steps of length 1 in a norm, along the arrays that the first axis counts."""
    shape = m.shape[1:]
    norm = norm_of(norm, len(shape))
    real, eps = m.dtype.type, scalars["eps"]
    if norm == "rms":
        return m / (rms(xp, m) + eps)
    rows, columns, second = prod(shape[:1]), prod(shape[1:]), prod(shape[1:2])
    if norm == "sign":
        return xp.sign(m) / real(max(columns, 1))
    matrices = m.reshape(len(m), rows, columns)
    if norm == "spectral":
        coefficients = (scalars["a"], scalars["b"], scalars["c"])
        u = orthogonalized(xp, matrices, coefficients, scalars["least_norm"], iterations)
        places = prod(shape[2:])
        u = u * real(sqrt(rows / max(second, 1)) / max(places, 1))
    elif norm == "row":
        size = xp.sqrt(xp.sum(matrices * matrices, axis=-1, keepdims=True))
        u = matrices / (size * real(sqrt(columns)) + eps)
    else:
        size = xp.sqrt(xp.sum(matrices * matrices, axis=-2, keepdims=True))
        u = matrices / (size / real(sqrt(max(rows, 1))) + eps)
    return u.reshape(m.shape)


def compute(
    xp: Any,
    param: Any,
    grad: Any,
    state: Mapping[str, Any],
    scalars: Mapping[str, Any],
    norm: Norm,
    iterations: int,
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and momentum after a step."""
    m = state["m"] + scalars["one_minus_momentum"] * (grad - state["m"])
    u = direction(xp, m, norm, scalars, iterations)
    return param - scalars["shrink"] * param - scalars["step"] * u, {"m": m}


@cache
def rule(norm: Norm, iterations: int) -> ArrayRule:
    """Return the rule of a norm, that iterates so often where it is spectral."""
    return ArrayRule(
        name="scion",
        state=("m",),
        signed=("m",),
        scalars=(
            "one_minus_momentum",
            "a",
            "b",
            "c",
            "least_norm",
            "eps",
            "shrink",
            "step",
        ),
        compute=compute,
        settings=(("norm", norm), ("iterations", iterations)),
    )
