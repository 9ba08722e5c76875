"""MADGRAD: parameters that are made anew, in every step, of a sum of all gradients."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    EPS,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, or_guard, sqrt
from fastopt_kernels import Rule, madgrad

# -------------------------------------------------------------------------------------------------
# MADGRAD: the sum over the cube root of that of squares.


class MADGRAD(Optimizer):
    """MADGRAD: a sum of all gradients over the cube root of that of their squares.

    ::

        g <- grad + weight_decay * p
        s <- s + lr * sqrt(t) * g                        s = 0 at first; p0 is the first p
        v <- v + lr * sqrt(t) * g^2                      v = 0 at first
        z <- p0 - s / (cbrt(v) + eps)
        p <- momentum * p + (1 - momentum) * z

    Here p is the parameter, grad its gradient, g that with the decay, s the weighted sum of g, v
    that of its squares, z where p goes to, and t the number of the step, from 1.

    With ``state_dtype`` p0 is kept in fewer bits too, and a parameter cannot be more exact than it.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter^1.5 times those of the gradient^0.5:
            it has to be found anew after another optimizer; a number, or a function of the step
            number (0 for the first step). It weighs the step's gradient, and those before it keep
            their weights.
        momentum: share of the parameter that is kept, in [0, 1), or a function of the step number.
        eps: added to the cube root, >= 0, in its units; 0 leaves only a guard that makes 0/0 zero.
            Or a function of the step number, whose values are > 0.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number; smaller
            than for SGD, and often 0.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    Parameters are worked out anew from p0 in every step: what is written into them from outside
    (``rebind`` to other values, Lookahead, weights that are loaded by hand) is lost with the next.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Defazio and Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual
    Averaged Gradient Method for Stochastic Optimization" (JMLR 2022), algorithm 1. The authors'
    package madgrad, timm, pytorch_optimizer and optax agree with lr - eps, since they add eps to
    lr: by default that makes their steps up to 7e-5 longer. The authors count t for all parameters
    together, timm for each, as here.
    """

    _checks = {"momentum": BETA, "eps": Schedulable(EPS)}

    _lr_scalars = ("weight",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        momentum: Scheduled = 0.9,
        eps: Scheduled = 1e-6,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, eps=eps, weight_decay=weight_decay, **common
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return madgrad.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "weight": lr * sqrt(float(t)),
            "first": 1.0 if t == 1 else 0.0,
            "eps": or_guard(options["eps"], guard),
            "one_minus_momentum": 1.0 - options["momentum"],
            **madgrad.CONSTANTS,
        }

    _smallest_denominator = staticmethod(eps_alone)
