"""Optimizers that need more than gradients, as they are where steps are given nothing else.

What is tested of every optimizer steps by gradients alone. A class here is the right one in all
else, has its name, and can be pickled. Where a loss is needed it is always the same one; where a
first estimate of the Hessian is needed it is not here. ``tests/engine/test_extra.py`` hands in
both.
"""

from __future__ import annotations

from typing import Any

from fastopt.engine.extra import NOTHING, Extra
from fastopt.optimizers.base import Optimizer

LOSS = Extra(value=16.0)


def handing(optimizer: type[Optimizer]) -> type[Optimizer]:
    """Return an optimizer's class, or if it needs more than gradients one that does without."""
    if not (optimizer._takes_value or optimizer._estimate_first):
        return optimizer
    name = optimizer.__name__
    if name not in globals():
        body = {"_estimate_first": False, "__module__": __name__, "__doc__": optimizer.__doc__}
        if optimizer._takes_value:
            body["_step"] = _step_of(optimizer)
        globals()[name] = type(name, (optimizer,), body)
    found: type[Optimizer] = globals()[name]
    return found


def _step_of(optimizer: type[Optimizer]) -> Any:
    def step(
        self: Any,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: Any,
        around: Any = None,
        extra: Extra = NOTHING,
    ) -> Any:
        handed = LOSS if extra is NOTHING else extra
        return optimizer._step(self, grads, grad_scale, on_nonfinite, around, handed)

    return step
