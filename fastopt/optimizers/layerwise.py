"""LAMB: Adam whose steps are as long as the array that they are for."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    Decay,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import one_minus_power, or_guard, sqrt
from fastopt_kernels import Rule, lamb


class LAMB(Optimizer):
    """LAMB: Adam's direction, rescaled for each array to the length of the array itself.

    ::

        m  <- beta1 * m + (1 - beta1) * grad             m = 0 at first
        v  <- beta2 * v + (1 - beta2) * grad^2           v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t            both 1 without bias_correction
        u  <- (m / c1) / (sqrt(v / c2) + eps) + weight_decay * p
        trust <- |p| / |u|                               norms of the whole array; 1 if one is 0
        p  <- p - lr * trust * u

    The norms are summed in float64 in one order, so that the bits are the same on every backend.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0: the share of its own length that an array moves; a number, or a
            function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        bias_correction: divide the averages by c1 and c2.
        weight_decay: share of the parameter that is added to the direction u, >= 0, before its
            length is taken; or a function of the step number.
        common: what every optimizer takes, see ``Common``: lr_scale, maximize, trainable, bounds,
            reset_at_bounds, max_grad_norm, clip_value, clip_each, on_nonfinite, capturable,
            master_weights, state_dtype, stochastic_rounding, cautious, cautious_decay, l1,
            mask_zero, complex_moment, seed, backend.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
    (ICLR 2020), algorithm 2 with phi(x) = x, as optax 0.2.8 computes it. pytorch_optimizer's
    default has no bias correction, which takes ten times as long a direction in the first step, and
    timm clips the trust ratio and leaves it at 1 where there is no weight decay.
    """

    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "bias_correction": Flag(),
    }
    _lr_scalars = ("lr",)
    _vanishing_scalars = ("weight_decay",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-6,
        bias_correction: bool = True,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return lamb.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        c1: Value = 1.0
        c2: Value = 1.0
        if options["bias_correction"]:
            c1, c2 = one_minus_power(beta1, t), one_minus_power(beta2, t)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "rescale": sqrt(c2) / c1,
            "eps": sqrt(c2) * or_guard(options["eps"], guard),
            "weight_decay": options["weight_decay"],
            "lr": lr,
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        eps: Value = options["eps"]
        return eps
