"""Optimizers that need more than gradients, with something handed to every step that is given none.

What is tested of every optimizer steps by gradients alone. A loss is always the same, and an
estimate of the Hessian is the gradients. A class here is the right one in all
else, has its name, and can be pickled.
"""

from __future__ import annotations

from typing import Any

from fastopt.engine.extra import NOTHING, Extra
from fastopt.optimizers.base import Optimizer

LOSS = 2.0


def handing(optimizer: type[Optimizer]) -> type[Optimizer]:
    """Return an optimizer's class, or if it needs more than gradients one that has it."""
    if not (optimizer._takes_value or optimizer._estimate_first):
        return optimizer
    name = optimizer.__name__
    if name not in globals():

        def step(
            self: Any,
            grads: Any,
            grad_scale: Any,
            on_nonfinite: Any,
            around: Any = None,
            extra: Extra = NOTHING,
        ) -> Any:
            if extra is NOTHING:
                extra = Extra(value=LOSS) if optimizer._takes_value else Extra(hessian=grads)
            return optimizer._step(self, grads, grad_scale, on_nonfinite, around, extra)

        body = {"_step": step, "__module__": __name__, "__doc__": optimizer.__doc__}
        globals()[name] = type(name, (optimizer,), body)
    found: type[Optimizer] = globals()[name]
    return found
