"""Adan and AdEMAMix: Adam with one more average of gradients, or of their changes."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    EPS,
    NONNEGATIVE,
    THREE_BETAS,
    Decay,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import adam_scalars, eps_alone, one_minus_power, or_guard, sqrt
from fastopt_kernels import Rule, adan, ademamix

# -------------------------------------------------------------------------------------------------
# Adan: a look ahead by the change of gradients.


class Adan(Optimizer):
    """Adan: Nesterov's look ahead, made of the change from one gradient to the next.

    ::

        d  <- g - last                                   0 at first; last is the gradient before g
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * d                v = 0 at first
        n  <- beta3 * n + (1 - beta3) * (g + beta2 * d)^2            n = 0 at first
        c1, c2, c3 <- 1 - beta1^t, 1 - beta2^t, 1 - beta3^t
        p  <- p - lr * (m / c1 + beta2 * v / c2) / (sqrt(n / c3) + eps)
        p  <- p / (1 + lr * weight_decay)

    Here p is the parameter, g its gradient, last the one before, d the change from that to g, m the
    average of g, v that of d, n that of the squares of both together, and t the number of the step,
    from 1. c1, c2 and c3 make up for the beginning of the averages at 0. beta1, beta2 and beta3 are
    ``betas``.

    The paper's betas are what is new, 1 minus these. A gradient that is None changes nothing, so
    that the next change is from the last one that was there.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, and never above 1.21 times it with the default betas); a number,
            or a function of the step number (0 for the first step).
        betas: shares of the three averages that are kept, each in [0, 1), or a function of the step
            number; c1 to c3 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        weight_decay: the parameter is divided by 1 + lr * weight_decay after the step, >= 0, or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, members, capturable, master_weights, state_dtype, stochastic_rounding,
            cautious, l1, mask_zero, seed, backend. It has no cautious_decay and no complex_moment.

    Three averages and a gradient are kept: 16 bytes for each element of float32.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
    Models" (TPAMI 2024), algorithm 1, as timm and pytorch_optimizer compute it. They count the
    steps of a group, which is 1.9 % of the way in ten steps where some gradients are None, and with
    maximize pytorch_optimizer's first change is -2 g (0.3 %). optax 0.2.8 weights the change by
    1 - beta2, 0.08 for 0.92: it is 54 % of the way away after ten steps of gradients around 0.7 and
    75 % after thirty.
    """

    _checks = {"betas": THREE_BETAS, "eps": Schedulable(EPS)}

    _lr_scalars = ("lr_gradient", "lr_change", "decay")
    _vanishing_scalars = ("beta2",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled, Scheduled] = (0.98, 0.92, 0.99),
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adan.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"  # by a division, after the step

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2, beta3 = options["betas"]
        c1, c2 = one_minus_power(beta1, t), one_minus_power(beta2, t)
        root = sqrt(one_minus_power(beta3, t))
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "beta2": beta2,
            "one_minus_beta3": 1.0 - beta3,
            "later": 0.0 if t == 1 else 1.0,
            "eps": root * or_guard(options["eps"], guard),
            "lr_gradient": lr * root / c1,
            "lr_change": lr * root * beta2 / c2,
            "decay": lr * options["weight_decay"],
            "one": 1.0,
        }

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# AdEMAMix: a fast average, and one that remembers tens of thousands of steps.


class AdEMAMix(Optimizer):
    """AdEMAMix: AdamW with the mixture of a fast and a slow average of gradients.

    ::

        p  <- p - lr * weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first; g is the gradient
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        slow <- beta3 * slow + (1 - beta3) * g           slow = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        p  <- p - lr * (m / c1 + alpha * slow) / (sqrt(v / c2) + eps)

    Here p is the parameter, g its gradient, m and slow its averages over a short and a long time, v
    that of its squares, and t the number of the step, from 1. c1 and c2 make up for the beginning
    of m and v at 0. beta1, beta2 and beta3 are ``betas``.

    Early gradients stay in the slow average for long, and the paper brings both alpha and beta3 up
    to their values over the run, of T steps::

        alpha = lambda t: min((t + 1) / T, 1) * 5
        a, b = log(0.9), log(0.9999)                     of beta1 and of the final beta3
        beta3 = lambda t: exp(a * b / (b + min((t + 1) / T, 1) * (a - b)))
        fastopt.AdEMAMix(params, betas=(0.9, 0.999, beta3), alpha=alpha)

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (a step is up to 1 + alpha times as
            long); a number, or a function of the step number (0 for the first step).
        betas: shares of the averages m, v and slow that are kept, each in [0, 1), or a function of
            the step number; c1 and c2 are those of the step's own betas.
        alpha: weight of the slow average, >= 0, that of the fast one is 1; 0 makes it AdamW. Or a
            function of the step number.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, members, capturable, master_weights, state_dtype,
            stochastic_rounding, cautious, cautious_decay, l1, mask_zero, complex_moment, seed,
            backend.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older" (ICLR
    2025), algorithm 1, as optax 0.2.8 computes it; pytorch_optimizer agrees, where weight_decouple
    is set, with t_alpha_beta3 = T for the two schedules; it counts the steps of a group, which is
    1.5 % of the way in ten steps where some gradients are None. optax.contrib.scale_by_ademamix
    alone has alpha=6 as default.
    """

    _checks = {
        "betas": THREE_BETAS,
        "alpha": Schedulable(NONNEGATIVE),
        "eps": Schedulable(EPS),
    }

    _lr_scalars = ("step_size",)
    _vanishing_scalars = ("mix",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled, Scheduled] = (0.9, 0.999, 0.9999),
        alpha: Scheduled = 5.0,
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return ademamix.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2, beta3 = options["betas"]
        c1 = one_minus_power(beta1, t)
        return {
            **adam_scalars((beta1, beta2), options["eps"], lr, t, guard),
            "one_minus_beta3": 1.0 - beta3,
            "mix": c1 * options["alpha"],  # m / c1 + alpha * slow = (m + mix * slow) / c1
        }

    _smallest_denominator = staticmethod(eps_alone)
