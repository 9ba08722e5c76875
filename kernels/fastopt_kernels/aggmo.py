"""AggMo: steps by the mean of several momentum buffers, each of which forgets at its own rate.

b0 <- keep0 * b0 + grad, and so on for b1, b2, ...
param <- param - lr * (b0 + b1 + b2 + ...)               lr is divided by their number already

There is a rule for every number of buffers. Their sum is made from the first to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from fastopt_kernels.rule import Rule

_NUMPY = """
def numpy_form(param, grad, {arguments}, lr):
    {updates}
    param -= lr * ({sum})
"""
_NUMBA = """
def numba_form(param, grad, {arguments}, lr):
    {updates}
    return (param - lr * ({sum}), {state})
"""


def _form(text: str, update: str, count: int) -> Callable[..., Any]:
    """Return the function that a text becomes for so many buffers."""
    state, keep = [f"b{k}" for k in range(count)], [f"keep{k}" for k in range(count)]
    updates = [update.format(b=b, keep=one) for b, one in zip(state, keep, strict=True)]
    parts = {
        "arguments": ", ".join([*state, *keep]),
        "updates": "; ".join(updates),
        "sum": " + ".join(state),
        "state": ", ".join(state),
    }
    made: dict[str, Any] = {}
    exec(text.format(**parts), made)
    (form,) = (value for name, value in made.items() if name.endswith("_form"))
    return form  # type: ignore[no-any-return]  # exec tells nothing of what it makes


@cache
def rule(count: int) -> Rule:
    """Return the rule of so many buffers."""
    state = tuple(f"b{k}" for k in range(count))
    keep = tuple(f"keep{k}" for k in range(count))
    updates = " ".join(f"{b} = {one} * {b} + grad;" for b, one in zip(state, keep, strict=True))
    return Rule(
        name="aggmo",
        state=state,
        signed=state,
        scalars=(*keep, "lr"),
        numpy=_form(_NUMPY, "{b} *= {keep}; {b} += grad", count),
        numba=_form(_NUMBA, "{b} = {keep} * {b} + grad", count),
        cupy=f"{updates} param = param - lr * ({' + '.join(state)});",
    )


RULE = rule(3)
