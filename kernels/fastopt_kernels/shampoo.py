"""Shampoo: the gradient, multiplied along every axis by the root of what was seen along it.

For every axis that is no longer than ``longest``, where the array has ``k`` axes:

G <- G + (products of grad with itself over all other axes)
R <- (G + eps * 1)^(-power), where ``refresh`` is not 0; power is 1 / (2 * k) unless it is given

u <- grad multiplied by R along each of these axes; with grafting as long as grad
m <- momentum * m + u
param <- param - lr * m
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from fastopt_kernels.rule import ArrayRule
from fastopt_kernels.soap import AXES, along, products, square_of

Grafting = Literal["none", "sgd"]


def root_of(xp: Any, gram: Any, eps: Any, power: float) -> Any:
    """Return (gram + eps * 1)^-power of symmetric matrices, by their eigenvalues."""
    values, vectors = xp.linalg.eigh(gram)
    sizes = (xp.maximum(values, gram.dtype.type(0)) + eps) ** gram.dtype.type(-power)
    return (vectors * sizes[..., None, :]) @ vectors.swapaxes(-1, -2)


def length(xp: Any, values: Any) -> Any:
    """Return the root of the sum of squares of every array; the first axis counts."""
    return xp.sqrt(xp.sum(values * values, axis=tuple(range(1, values.ndim)), keepdims=True))


def compute(
    xp: Any,
    param: Any,
    grad: Any,
    state: Mapping[str, Any],
    scalars: Mapping[str, Any],
    power: float | None,
    grafting: Grafting,
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and state after a step."""
    axes = [k for k in range(param.ndim - 1) if f"gram{k}" in state]
    made = dict(state)
    u = grad
    for k in axes:
        made[f"gram{k}"] = state[f"gram{k}"] + products(xp, grad, k)
        if scalars["refresh"]:
            exponent = 1 / (2 * (param.ndim - 1)) if power is None else power
            made[f"root{k}"] = root_of(xp, made[f"gram{k}"], scalars["eps"], exponent)
        u = along(xp, u, k, made[f"root{k}"])
    if grafting == "sgd" and axes:
        own = length(xp, u)
        u = u * (length(xp, grad) / xp.where(own > 0, own, own.dtype.type(1)))
    m = scalars["momentum"] * state["m"] + u
    return param - scalars["lr"] * m, made | {"m": m}


@cache
def rule(longest: int, power: float | None, grafting: Grafting) -> ArrayRule:
    """Return the rule that leaves longer axes alone, with this power and grafting."""
    grams, roots = ([f"{name}{k}" for k in range(AXES)] for name in ("gram", "root"))
    squares = [square_of(k, longest, 1) for k in range(AXES)]
    return ArrayRule(
        name="shampoo",
        state=("m", *grams, *roots),
        signed=("m", *grams, *roots),
        scalars=("momentum", "eps", "lr", "refresh"),
        compute=compute,
        settings=(("power", power), ("grafting", grafting)),
        shapes=(*zip(grams, squares, strict=True), *zip(roots, squares, strict=True)),
        averages_squares=True,
        decisions=("refresh",),
    )
