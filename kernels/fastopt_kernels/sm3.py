"""SM3: sums of squares kept for the places along each axis, as the largest of those there.

v <- grad^2 + the least of a0, a1, ... at an element's place along each axis
m <- m + (1 - momentum) * (grad / sqrt(v + eps) - m)
a0, a1, ... <- the largest v at each place along the axis
param <- param - lr * m

A number and a vector have a0 alone, with a place for each element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastopt_kernels.rule import ArrayRule, Shape

AXES = 8
"""How many axes a parameter can have."""

SLOTS = tuple(f"a{axis}" for axis in range(AXES))


def along(axis: int, shape: Shape) -> Shape | None:
    """Return the shape of what is kept along an axis."""
    if axis < len(shape):
        return (shape[axis],)
    return () if axis == len(shape) == 0 else None


def compute(
    xp: Any, param: Any, grad: Any, state: Mapping[str, Any], scalars: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return parameters, momentum and sums after a step."""
    made = dict(state)
    slots = [slot for slot in SLOTS if slot in state]
    axes = range(1, grad.ndim)
    shapes = [[n if k in (0, axis) else 1 for k, n in enumerate(grad.shape)] for axis in axes]
    least = state["a0"].reshape(shapes[0] if shapes else grad.shape)
    for slot, shape in zip(slots[1:], shapes[1:], strict=True):
        least = xp.minimum(least, state[slot].reshape(shape))
    v = least + grad * grad
    made["m"] = state["m"] + scalars["one_minus_momentum"] * (
        grad / xp.sqrt(v + scalars["eps"]) - state["m"]
    )
    if v.size:
        for slot, axis in zip(slots, axes or [0], strict=True):
            made[slot] = xp.max(v, axis=tuple(k for k in axes if k != axis))
    return param - scalars["lr"] * made["m"], made


SHAPES: tuple[tuple[str, Callable[[Shape], Shape | None]], ...] = tuple(
    (slot, partial(along, axis)) for axis, slot in enumerate(SLOTS)
)
RULE = ArrayRule(
    name="sm3",
    state=("m", *SLOTS),
    signed=("m",),
    scalars=("one_minus_momentum", "eps", "lr"),
    compute=compute,
    shapes=SHAPES,
    averages_squares=True,
)
