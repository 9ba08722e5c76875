"""Mars: Adam of gradients that are corrected by how they change."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    NONNEGATIVE,
    POSITIVE_OR_INF,
    Decay,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import adam_scalars, eps_alone
from fastopt_kernels import Rule, mars


class Mars(Optimizer):
    """Mars in the form of AdamW: Adam of a gradient that is corrected by how it changed.

    ::

        p  <- p - lr * weight_decay * p
        c  <- grad + gamma * beta1 / (1 - beta1) * (grad - last)     c = grad at first
        c  <- c * min(1, max_norm / |c|)                 norm of the whole array
        m  <- beta1 * m + (1 - beta1) * c                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * c^2              v = 0 at first
        last <- grad
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        p  <- p - lr * (m / c1) / (sqrt(v / c2) + eps)

    Here p is the parameter, grad its gradient, last the one before, c the gradient corrected by its
    change, m the average of c, v that of its squares, and t the number of the step, from 1. c1 and
    c2 make up for the beginning of the averages at 0. beta1 and beta2 are ``betas``.

    The norm is summed in float64 in one order, so that the bits are the same on every backend.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, up to 2.35 times it where they grow after a quiet time with the
            default betas); it scales the decay too; a number, or a function of the step number (0
            for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        gamma: how much of the change is added, >= 0.
        max_norm: the longest that an array's corrected gradient may be, > 0, in units of the
            gradient; inf for any. gamma=0 with max_norm=inf is AdamW, in a group of vectors, say.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, stochastic_rounding, cautious,
            cautious_decay, l1, mask_zero, seed, backend. It has no complex_moment.

    The squares are those of each part of a complex number.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large
    Models" (ICML 2025), algorithm 2 with the gradient of the step before in its approximate form,
    as timm computes it for matrices: it sends vectors to AdamW by default, and here all arrays are
    alike. The authors' first step takes 0 for the last gradient, which only matters where the
    corrected one is not cut. pytorch_optimizer adds eps before
    the bias correction (6e-6 of the way off; equal with eps = 0).
    """

    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "gamma": NONNEGATIVE,
        "max_norm": POSITIVE_OR_INF,
    }
    _lr_scalars = ("step_size",)
    _vanishing_scalars = ("look",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 3e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.99),
        eps: Scheduled = 1e-8,
        gamma: float = 0.025,
        max_norm: float = 1.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            gamma=gamma,
            max_norm=max_norm,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return mars.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, _ = options["betas"]
        return {
            **adam_scalars(options["betas"], options["eps"], lr, t, guard),
            "look": options["gamma"] * beta1 / (1.0 - beta1) if t > 1 else 0.0,
            "max_norm": options["max_norm"],
        }

    _smallest_denominator = staticmethod(eps_alone)
