"""DAdaptAdam and DAdaptSGD: the distance to the solution is estimated from below on the way."""

from __future__ import annotations

import math
from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    GROWTH,
    POSITIVE,
    Decay,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, one_minus_power, or_guard, sqrt
from fastopt_kernels import Rule, dadapt_adam, dadapt_sgd

# -------------------------------------------------------------------------------------------------
# DAdaptAdam


class DAdaptAdam(Optimizer):
    """Adam with D-Adaptation: in units of d, an estimate of the distance to the solution.

    ::

        g  <- d * lr * grad
        a  <- sum(g * s / (sqrt(v) + eps))               over all arrays, before s and v change
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * grad^2           v = 0 at first
        b  <- sqrt(beta2)
        s  <- b * s + (1 - b) * g                        s = 0 at first
        r  <- b * r + (1 - b) * a                        r = 0 at first
        dhat <- r / ((1 - b) * sum(|s|))                 over all arrays
        p  <- p - d * lr * weight_decay * p              if decoupled_weight_decay
        p  <- p - m / (sqrt(v) + eps)
        d  <- max(d, min(dhat, growth_rate * d))         d = d0 at first

    Here p is the parameter, grad its gradient, g that in units of d, m the average of g, v that of
    the squared gradients, s a slower average of g, r that of the numbers a, dhat the new estimate
    of the distance, d the one that is used, and t the number of the step, from 1; b is the share of
    the old in s and r. beta1 and beta2 are ``betas``.

    With ``bias_correction`` lr is everywhere lr * sqrt(1 - beta2^t) / (1 - beta1^t). The sums are
    made in float64 in one order; d and r are float64, are the same for all groups, and are saved
    with the state: ``opt.d`` reads d. lr is inside m: what is there still moves p when lr is 0.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of the step, >= 0, without a unit; 1 is meant, and schedules go from 1 down; a
            number, or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1); the first may be a function
            of the step number.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        d0: first estimate of the distance, > 0, in units of the parameter; small.
        growth_rate: how much d may grow in a step, >= 1; inf for any.
        bias_correction: correct the averages as Adam does.
        weight_decay: coefficient of the L2 term, >= 0; with ``decoupled_weight_decay`` the share of
            the parameter that is taken off per step and unit of d * lr; or a function of the step
            number.
        decoupled_weight_decay: whether weight decay acts on the parameter.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in d0, growth_rate or betas[1], and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation" (ICML 2023),
    algorithm 5, as the authors' package dadaptation 3.2 computes it, where lr is 0 in no step;
    pytorch_optimizer agrees, where sums are made in float64.
    """

    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "d0": POSITIVE,
        "growth_rate": GROWTH,
        "bias_correction": Flag(),
        "decoupled_weight_decay": Flag(),
    }
    _lr_scalars = ("decay", "lr")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        betas: tuple[Scheduled, float] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        bias_correction: bool = False,
        weight_decay: Scheduled = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            d0=d0,
            growth_rate=growth_rate,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )

    @property
    def d(self) -> float:
        """The estimate of the distance that the next step begins with."""
        return self._alone(self._remembered)["d"]

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule" if options["decoupled_weight_decay"] else "gradient"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return dadapt_adam.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        share = 1.0 - sqrt(beta2)
        if options["bias_correction"]:
            lr = lr * sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "one_minus_root": share,
            "eps": or_guard(options["eps"], guard),
            "decay": lr * options["weight_decay"] if options["decoupled_weight_decay"] else 0.0,
            "lr": lr,
            "share": share,
            "growth_rate": options["growth_rate"],
        }

    @staticmethod
    def _review(options: Options) -> None:
        if callable(options["betas"][1]):
            raise ValueError(
                "DAdaptAdam: betas[1] must be a number, since what d is estimated from is kept by "
                f"one share in all groups and steps; got betas[1]={options['betas'][1]!r}"
            )

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {"d": options["d0"]}

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# DAdaptSGD


class DAdaptSGD(Optimizer):
    """SGD with D-Adaptation: in units of d, an estimate of the distance to the solution.

    ::

        g  <- grad + weight_decay * p
        g0 <- |g|                                        in the first step; over all arrays
        r  <- r + d / g0 * lr * sum(g * s)               over all arrays; r = 0 at first
        s  <- s + d / g0 * lr * g                        s = 0 at first
        dhat <- 2 * r / |s|                              over all arrays
        p  <- momentum * p + (1 - momentum) * (p0 - s)   p0 is the first p
        d  <- max(d, min(dhat, growth_rate * d))         d = d0 at first

    Here p is the parameter, grad its gradient, g that with the decay, g0 the norm of the first g, s
    the weighted sum of g, r what it says of the distance, dhat the new estimate of that, and d the
    one that is used.

    The sums are made in float64 in one order; d, g0 and r are float64, are the same for all groups,
    and are saved with the state: ``opt.d`` reads d. As lr is inside s, p still moves towards p0 - s
    when lr is 0, unless momentum is.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of the step, >= 0, without a unit; 1 is meant, and schedules go from 1 down; a
            number, or a function of the step number (0 for the first step).
        momentum: share of the way to p0 - s that is left after a step, in [0, 1), or a function of
            the step number.
        d0: first estimate of the distance, > 0, in units of the parameter; small.
        growth_rate: how much d may grow in a step, >= 1; inf for any.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    Parameters are worked out anew from p0 in every step: what is written into them from outside
    (``rebind`` to other values, Lookahead, weights that are loaded by hand) is lost with the next.
    With ``state_dtype`` "bfloat16" or "int8" p0 is rounded too, by more than small steps are long.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in d0 or growth_rate, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation" (ICML 2023),
    algorithm 4 with momentum, as the authors' package dadaptation 3.2 computes it; its g0 is made
    without weight decay, and is NaN if the first gradients are 0.
    """

    _checks = {"momentum": BETA, "d0": POSITIVE, "growth_rate": GROWTH}
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        momentum: Scheduled = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            d0=d0,
            growth_rate=growth_rate,
            weight_decay=weight_decay,
            **common,
        )

    @property
    def d(self) -> float:
        """The estimate of the distance that the next step begins with."""
        return self._alone(self._remembered)["d"]

    @staticmethod
    def _rule(options: Options) -> Rule:
        return dadapt_sgd.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "first": 1.0 if t == 1 else 0.0,
            "one_minus_momentum": 1.0 - options["momentum"],
            "lr": lr,
            "growth_rate": options["growth_rate"],
        }

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {"d": options["d0"]}
