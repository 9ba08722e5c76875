"""SGD with momentum whose radial part is left out where the gradient has hardly any.

m <- momentum * m + (1 - dampening) * grad
u <- m, or grad + momentum * m (Nesterov): grad * of_grad + m * of_m
u, share <- u without its part along the parameter, and decay_share, if the gradient is nearly at a
            right angle to it; else u and 1 (``projected``)
param <- param - decay * share * param - lr * u
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from typing import Any

from fastopt_kernels.rule import ArrayRule


def _norm(xp: Any, x: Any) -> Any:
    return xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))


def _without_radial(xp: Any, p: Any, g: Any, u: Any, delta: Any, eps: Any) -> tuple[Any, Any]:
    """Return u without its part along p, row by row, and whether all rows' angles are right."""
    inner = xp.abs(xp.sum(g * p, axis=-1, keepdims=True))
    sizes = xp.maximum(_norm(xp, g), eps) * xp.maximum(_norm(xp, p), eps)
    right = inner / sizes < delta * p.dtype.type(1.0 / sqrt(p.shape[-1]))
    along = p / (_norm(xp, p) + eps)
    return u - along * xp.sum(along * u, axis=-1, keepdims=True), xp.all(right, axis=1)[:, :, None]


def projected(
    xp: Any, param: Any, grad: Any, u: Any, delta: Any, eps: Any, decay_share: Any
) -> tuple[Any, Any]:
    """Return u without its radial part where the gradient is at a right angle; and decay's share.

    The angles are those of the rows (the first of the parameter's own axes), if all of them are
    right, or else that of the whole array. Vectors and numbers are left alone.
    """
    own = param.shape[1:]
    if len(own) < 2 or not prod(param.shape):
        return u, param.dtype.type(1.0)
    ones, found = param.dtype.type(1.0), []
    for shape in ((param.shape[0], own[0], -1), (param.shape[0], 1, -1)):
        p, g, whole_u = (x.reshape(shape) for x in (param, grad, u))
        without, right = _without_radial(xp, p, g, whole_u, delta, eps)
        each = (param.shape[0], *[1] * len(own))
        found.append((without.reshape(param.shape), right.reshape(each)))
    (by_row, rows), (by_all, whole) = found
    u = xp.where(rows, by_row, xp.where(whole, by_all, u))
    return u, xp.where(rows | whole, decay_share, ones)


def compute(
    xp: Any, param: Any, grad: Any, state: Mapping[str, Any], scalars: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and momentum after a step."""
    m = scalars["momentum"] * state["m"] + scalars["take"] * grad
    u = scalars["of_grad"] * grad + scalars["of_m"] * m
    limits = (scalars["delta"], scalars["eps"], scalars["decay_share"])
    u, share = projected(xp, param, grad, u, *limits)
    return param - scalars["decay"] * share * param - scalars["lr"] * u, {"m": m}


RULE = ArrayRule(
    name="sgdp",
    state=("m",),
    signed=("m",),
    scalars=(
        "momentum",
        "take",
        "of_grad",
        "of_m",
        "delta",
        "eps",
        "decay_share",
        "decay",
        "lr",
    ),
    compute=compute,
)
