"""AdamAtan2: Adam without an eps."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    POSITIVE,
    Decay,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import one_minus_power, sqrt
from fastopt_kernels import Rule, adam_atan2


class AdamAtan2(Optimizer):
    """AdamAtan2: Adam with an arctangent in the place of the division, and so without an eps.

    ::

        p <- p - lr * weight_decay * p
        m <- beta1 * m + (1 - beta1) * grad              m = 0 at first
        v <- beta2 * v + (1 - beta2) * grad^2            v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        p <- p - lr * a * atan2(m / c1, b * sqrt(v / c2))

    Here p is the parameter, grad its gradient, m the average of gradients, v that of their squares,
    and t the number of the step, from 1. c1 and c2 make up for the beginning of the averages at 0.
    beta1 and beta2 are ``betas``.

    Its steps are the same whatever the gradients are multiplied by, and no longer than
    lr * a * pi / 2. The arctangent is written out of + - * / and roots, the same on all backends,
    and 6 ulp off at most; atan2(0, 0) = 0.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; it scales the decay too; a number, or a
            function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        a: factor of the step, > 0, or a function of the step number; 1.27 is 4 / pi, with which a
            step by gradients that are all alike is as long as that of Adam.
        b: factor of the average's root, > 0, or a function of the step number: the larger it is,
            the longer steps grow in proportion to m.
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

    Source: Everett et al., "Scaling Exponents Across Parameterizations and Optimizers" (ICML 2024),
    section 4.3, with the decay and the factors a and b of adam-atan2-pytorch, which agrees; its
    defaults are lr=1e-4 and betas=(0.9, 0.99).
    """

    _checks = {"betas": BETAS, "a": Schedulable(POSITIVE), "b": Schedulable(POSITIVE)}

    _lr_scalars = ("step_size",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        a: Scheduled = 1.27,
        b: Scheduled = 1.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, a=a, b=b, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adam_atan2.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        c1, root = one_minus_power(beta1, t), sqrt(one_minus_power(beta2, t))
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "width": options["b"] * c1 / root,
            "step_size": lr * options["a"],
            **adam_atan2.CONSTANTS,
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> float:
        return 0.0  # the smallest averages make as long a step as the largest
