"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

For every axis of an array of two or more that is no longer than ``max_precondition_dim``:

G <- G + (1 - shampoo_beta) * (products of grad with itself over all other axes - G)
Q: the eigenvectors of G by columns, those of the largest eigenvalues first

The first step sets G and Q and moves nothing. All others, with x' for x in the basis of all Q:

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad'^2 - v)
u <- m' / (sqrt(v) + eps), back in the parameter's own axes; divided by rms(u) + eps if normalized
param <- param - step_size * u, and then param - decay * param

Then G takes the gradient in; where ``refresh`` is not 0, Q becomes that of the QR decomposition of
G @ Q, whose columns, and what of v belongs to them, are sorted before by the diagonal of
Q.T @ G @ Q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import prod
from typing import Any

from fastopt_kernels.adafactor import rms
from fastopt_kernels.rule import ArrayRule, Shape

AXES = 8
"""How many axes an array may have: each has two slots of its own."""


@cache
def square_of(axis: int, longest: int, fewest: int) -> Callable[[Shape], Shape | None]:
    """Return what gives the shape of an axis's matrices; None where it has none.

    That is where it is longer than ``longest``, or there are not so many axes as ``fewest``.
    """

    def shape_of(shape: Shape) -> Shape | None:
        has_one = len(shape) >= fewest and axis < len(shape) and shape[axis] <= longest
        return (shape[axis], shape[axis]) if has_one else None

    return shape_of


def along(xp: Any, values: Any, axis: int, matrix: Any) -> Any:
    """Return arrays multiplied by matrices along one axis; the first counts both."""
    turned = xp.moveaxis(values, axis + 1, -1)
    shape = turned.shape
    rows = xp.ascontiguousarray(turned).reshape(shape[0], prod(shape[1:-1]), shape[-1])
    return xp.moveaxis((rows @ matrix).reshape(shape), -1, axis + 1)


def products(xp: Any, values: Any, axis: int) -> Any:
    """Return the products of arrays with themselves over all axes but one and the first."""
    turned = xp.moveaxis(values, axis + 1, 1)
    rows = xp.ascontiguousarray(turned).reshape(*turned.shape[:2], prod(turned.shape[2:]))
    return rows @ rows.swapaxes(-1, -2)


def turned_on(xp: Any, values: Any, gram: Any, basis: Any, axis: int) -> tuple[Any, Any]:
    """Return squares in the order of the coming basis, and that basis: one power iteration."""
    product = gram @ basis
    order = xp.argsort(-xp.sum(basis * product, axis=-2), axis=-1)
    there = order.reshape(len(order), *[-1 if k == axis else 1 for k in range(values.ndim - 1)])
    sorted_values = xp.take_along_axis(values, there, axis=axis + 1)
    columns = xp.take_along_axis(product, order[:, None, :], axis=-1)
    return sorted_values, xp.linalg.qr(columns)[0]


def compute(
    xp: Any,
    param: Any,
    grad: Any,
    state: Mapping[str, Any],
    scalars: Mapping[str, Any],
    normalized: bool,
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and state after a step."""
    axes = [k for k in range(param.ndim - 1) if f"gram{k}" in state]
    share = scalars["one_minus_shampoo_beta"]
    made = dict(state)
    for k in axes:
        made[f"gram{k}"] = state[f"gram{k}"] + share * (products(xp, grad, k) - state[f"gram{k}"])
    if scalars["begins"]:
        for k in axes:
            made[f"basis{k}"] = xp.linalg.eigh(made[f"gram{k}"])[1][..., ::-1]
        return param, made
    m = state["m"] + scalars["one_minus_beta1"] * (grad - state["m"])
    turned_grad, u = grad, m
    for k in axes:
        turned_grad = along(xp, turned_grad, k, state[f"basis{k}"])
        u = along(xp, u, k, state[f"basis{k}"])
    v = state["v"] + scalars["one_minus_beta2"] * (turned_grad * turned_grad - state["v"])
    u = u / (xp.sqrt(v) + scalars["eps"])
    for k in axes:
        u = along(xp, u, k, state[f"basis{k}"].swapaxes(-1, -2))
    if normalized:
        u = u / (rms(xp, u) + scalars["eps"])
    if scalars["refresh"]:
        for k in axes:
            v, made[f"basis{k}"] = turned_on(xp, v, made[f"gram{k}"], state[f"basis{k}"], k)
    param = param - scalars["step_size"] * u
    return param - scalars["decay"] * param, made | {"m": m, "v": v}


@cache
def rule(longest: int, normalized: bool) -> ArrayRule:
    """Return the rule that leaves longer axes alone, and normalizes its steps or not."""
    grams, bases = ([f"{name}{k}" for k in range(AXES)] for name in ("gram", "basis"))
    squares = [square_of(k, longest, 2) for k in range(AXES)]
    return ArrayRule(
        name="soap",
        state=("m", "v", *grams, *bases),
        signed=("m", *grams, *bases),
        scalars=(
            "one_minus_beta1",
            "one_minus_beta2",
            "one_minus_shampoo_beta",
            "eps",
            "step_size",
            "decay",
            "begins",
            "refresh",
        ),
        compute=compute,
        settings=(("normalized", normalized),),
        shapes=(*zip(grams, squares, strict=True), *zip(bases, squares, strict=True)),
        averages_squares=True,
        decisions=("begins", "refresh"),
    )
