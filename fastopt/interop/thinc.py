"""Optimizers for thinc: ``model.finish_update(optimizer)`` makes the steps of this package.

thinc hands over one parameter after another, by a key; each key has an optimizer of this package of
its own, whose step counts are that parameter's, as in thinc. Learning rate, betas, eps, decay and
clipping are schedules of thinc, asked at each call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastopt import optimizers
from fastopt.core.arrays import Array
from fastopt.optimizers import base
from fastopt.optimizers.adam import Adam
from fastopt.optimizers.adam_relatives import RAdam
from fastopt.optimizers.sgd import SGD

try:
    from thinc.backends import get_array_ops
except ImportError as _error:
    raise ImportError(
        "fastopt.thinc has optimizers for thinc, and thinc is not installed here; install it "
        "(pip install thinc)"
    ) from _error

from thinc.config import registry
from thinc.optimizers import Optimizer as ThincOptimizer

__all__ = ["Optimizer"]

_ITS_OWN = {"L2": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "use_radam": False}
"""What thinc calls its optimizers' own numbers, with thinc's defaults."""


class Optimizer(ThincOptimizer):  # type: ignore[misc]  # thinc is not looked into
    """An optimizer of thinc whose steps any optimizer of fastopt makes.

    With thinc's arguments alone it is what these name in thinc: Adam (eps is added before the
    correction), RAdam, or SGD where both betas are 0::

        optimizer = fastopt.thinc.Optimizer(0.001, beta1=0.9, L2=0.01)

    and with ``optimizer`` any other::

        optimizer = fastopt.thinc.Optimizer(3e-4, optimizer="lion", options={"weight_decay": 0.1})

    It works on NumPy and CuPy arrays of any floating dtype and layout. The gradient is 0 when it
    comes back, as in thinc. In configurations it is ``@optimizers = "fastopt.v1"``.

    Args:
        learn_rate: a number, a list, a generator, or a Schedule of thinc. It is that of every key.
        optimizer: the name (``fastopt.optimizers.names()``) or class; None for what thinc's
            arguments say.
        options: a dict of what that takes, such as ``{"betas": (0.9, 0.99)}``; numbers may be
            functions of the parameter's step number.
        L2: decay, 0 or more; a schedule like learn_rate, as beta1, beta2, eps and grad_clip are.
        L2_is_weight_decay: whether it is decoupled: ``p <- p - lr * L2 * p``, here before the
            update, in thinc after it; otherwise it is added to the gradient (here after clipping,
            in thinc before).
        beta1, beta2, eps: of Adam and RAdam.
        grad_clip: the norm to which each parameter's gradient is clipped; 0 for none.
        use_averages: whether ``averages`` holds thinc's moving averages.
        use_radam: whether thinc's arguments mean RAdam, with its paper's step number. (thinc
            counts one more.)

    Raises:
        ValueError: for thinc's own arguments beside ``optimizer``, and for an optimizer that needs
            the loss or the Hessian.
        Whatever the optimizer raises, at the first call with a parameter.
    """

    def __init__(
        self,
        learn_rate: Any,
        *,
        optimizer: str | type[base.Optimizer] | None = None,
        options: Mapping[str, Any] | None = None,
        L2: Any = 0.0,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        eps: Any = 1e-8,
        grad_clip: Any = 1.0,
        use_averages: bool = True,
        use_radam: bool = False,
        L2_is_weight_decay: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            grad_clip=grad_clip,
            use_averages=use_averages,
            use_radam=use_radam,
            L2_is_weight_decay=L2_is_weight_decay,
        )
        given = {"L2": L2, "beta1": beta1, "beta2": beta2, "eps": eps, "use_radam": use_radam}
        self._formula = None if optimizer is None else _formula_of(optimizer, given)
        self._options = {} if options is None else dict(options)
        if optimizer is None and self._options:
            raise ValueError(
                "options are those of an optimizer, and there is none; name it: "
                f"Optimizer(..., optimizer='adam', options={self._options!r:.200})"
            )
        if "lr" in self._options:
            raise ValueError("options must not hold 'lr': learn_rate is the learning rate")
        self._made: dict[Any, base.Optimizer] = {}

    def __call__(
        self, key: tuple[int, str], weights: Array, gradient: Array, *, lr_scale: float = 1.0
    ) -> tuple[Array, Array]:
        """Make a step of one parameter, in place; return it and its gradient, which is 0 now."""
        if len(gradient) < 1:
            return weights, gradient
        args = {"key": key, "last_score": self.last_score}
        rate = float(self.learn_rate(self.step, **args))
        now = self._settings(args)
        limit = self.grad_clip(self.step, **args) or math.inf
        opt = self._made.get(key)
        if opt is None:
            formula, fixed = self._kind(now)
            clip = {"max_grad_norm": limit}
            opt = formula([weights], lr=rate, lr_scale=lr_scale, **{**clip, **fixed, **now})
            self._made[key] = opt
        else:
            self._set(opt, {"lr": rate, "lr_scale": lr_scale, **now})
            if "max_grad_norm" not in self._options and opt.max_grad_norm != limit:
                opt.max_grad_norm = limit
        opt.step([gradient], params=[weights])
        gradient.fill(0)
        self.nr_update[key] += 1
        if self.averages is not None:
            ops = get_array_ops(weights)
            if key not in self.averages:
                self.averages[key] = ops.alloc(weights.shape, dtype="float32")
            ops.update_averages(self.averages[key], weights, self.nr_update[key])
        return weights, gradient

    def _settings(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the numbers of thinc's own optimizers as they are now, by our names."""
        if self._formula is not None:
            return {}
        decay = {"weight_decay": float(self.L2(self.step, **args))}
        betas = float(self.b1(self.step, **args)), float(self.b2(self.step, **args))
        if not self.use_radam and betas == (0.0, 0.0):
            return decay
        return {**decay, "betas": betas, "eps": float(self.eps(self.step, **args))}

    def _kind(self, now: Mapping[str, Any]) -> tuple[type[base.Optimizer], dict[str, Any]]:
        """Return the class of new optimizers, and the options that stay as they are."""
        if self._formula is not None:
            return self._formula, self._options
        decoupled = {"decoupled_weight_decay": bool(self.L2_is_weight_decay)}
        if self.use_radam:
            return RAdam, decoupled
        if "betas" in now:
            return Adam, {**decoupled, "eps_hat": True}
        return SGD, decoupled

    @staticmethod
    def _set(opt: base.Optimizer, now: Mapping[str, Any]) -> None:
        """Set what has changed."""
        (group,) = opt.param_groups
        for name, value in now.items():
            if group[name] != value:
                group[name] = value


def _formula_of(
    optimizer: str | type[base.Optimizer], given: Mapping[str, Any]
) -> type[base.Optimizer]:
    """Return the class; raise for what is none, and for thinc's own arguments beside it."""
    formula = optimizers.named(optimizer) if isinstance(optimizer, str) else optimizer
    if not (isinstance(formula, type) and issubclass(formula, base.Optimizer)):
        raise TypeError(
            f"optimizer must be the name or class of one of fastopt's; got {optimizer!r:.200}"
        )
    named = [name for name, default in _ITS_OWN.items() if given[name] != default]
    if named:
        raise ValueError(
            f"{', '.join(named)} belong to thinc's own optimizers; what {formula.__name__} takes "
            "goes into options={...}, by fastopt's names"
        )
    if formula._takes_value or formula._estimate is not None:
        raise ValueError(
            f"{formula.__name__} steps by the loss or the Hessian, which thinc does not hand over; "
            "take another optimizer"
        )
    return formula


@registry.optimizers("fastopt.v1")  # type: ignore[untyped-decorator]  # likewise
def configured(
    optimizer: str,
    learn_rate: Any,
    grad_clip: Any = 1.0,
    use_averages: bool = True,
    options: dict[str, Any] | None = None,
) -> Optimizer:
    """Return the optimizer of a configuration: ``@optimizers = "fastopt.v1"``."""
    return Optimizer(
        learn_rate,
        optimizer=optimizer,
        options=options,
        grad_clip=grad_clip,
        use_averages=use_averages,
    )
