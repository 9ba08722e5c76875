"""FTRL: parameters that are the minimum of what all gradients so far ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    Number,
    Options,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import or_guard, sqrt
from fastopt_kernels import Rule, ftrl, ftrl_fixed

POWERS = (-0.5, 0.0)
"""Those whose n^-power is the same bits everywhere: a root, and 1."""


@dataclass(frozen=True)
class Power:
    """One of the powers that there are rules for."""

    def __call__(self, name: str, value: Any) -> float:
        """Return the power as a float."""
        power = Number(-math.inf, math.inf)(name, value)
        if power not in POWERS:
            raise ValueError(
                f"{name} must be -0.5 (a root, each element has its own rate) or 0 (one rate for "
                f"all); got {value!r}. Other powers do not have the same bits on every backend"
            )
        return power + 0.0  # no -0.0


class FTRL(Optimizer):
    """FTRL-Proximal: follow the leader of all gradients so far, with L1 that makes zeros.

    ::

        g <- grad + weight_decay * p
        s <- sqrt(n + g^2) - sqrt(n)                     n = initial_accumulator_value at first
        n <- n + g^2
        z <- z + lr * (g + 2 * l2_shrinkage * p) - s * p                   z = 0 at first
        p <- (clip(z, -lr * l1, lr * l1) - z) / (beta + sqrt(n) + 2 * lr * l2)

    Here p is the parameter, grad its gradient, g that with the decay, n the sum of the squares of
    g, s by how much its root grows, and z the sum of the gradients, less what leads back to the p
    of each step.

    where l1, l2 and l2_shrinkage are the ..._regularization_strength below. Elements whose |z| is
    at most lr * l1 are exactly 0. With learning_rate_power=0 all roots are 1, and s is 0.

    z begins at 0, as in the paper, which begins at p = 0: what the parameter is at first is mostly
    forgotten in the first step (all of it with learning_rate_power=0; with
    initial_accumulator_value=0, beta=0, l1=0 and l2=0 none where the gradient is not 0). So it is
    for new rows after ``resize``. Parameters are worked out anew from z and n in every step: what
    is written into them from outside (``rebind`` to other values, Lookahead, weights that are
    loaded by hand) is mostly lost with the next; and ``l1``, the option of all optimizers, is
    refused: l1_regularization_strength is what FTRL has for it. Bounds are kept, and
    reset_at_bounds changes nothing.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; a number, or a function of the step
            number (0 for the first step). It weighs the step's gradient, and those before it keep
            their weights; lr * l1 and lr * l2 follow it, so that where it falls elements become
            other than 0 again.
        learning_rate_power: -0.5, a rate of lr / sqrt(n) for each element, or 0, lr for all.
        initial_accumulator_value: what n begins with, >= 0, in units of the squared gradient.
        l1_regularization_strength: coefficient of the penalty l1 * sum(|p|) in the minimum, >= 0,
            in units of the gradient.
        l2_regularization_strength: coefficient of the penalty l2 * sum(p^2) in the minimum, >= 0,
            in units of the gradient over the parameter.
        l2_shrinkage_regularization_strength: half the coefficient of an L2 term that is added to
            the gradient, >= 0, and not to that whose squares n adds up, as weight_decay is.
        beta: added to the root, >= 0, in units of the gradient.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: what every optimizer takes, see ``Common``: lr_scale, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, members, capturable, master_weights, state_dtype, stochastic_rounding,
            cautious, mask_zero, complex_moment, seed, backend.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: McMahan et al., "Ad Click Prediction: a View from the Trenches" (KDD 2013), algorithm 1,
    with the penalties of keras 3.15, whose numbers these are at a constant lr; z is theirs times
    lr. Where lr changes, keras and pytorch_optimizer divide the whole root by the new lr, which
    multiplies all parameters by its ratio to the old one. pytorch_optimizer 4.1.0 begins with
    n = 0, has l2 where keras has 2 * l2 and no shrinkage, and takes the root in the denominator
    whatever the power is.
    """

    _checks = {
        "learning_rate_power": Power(),
        "initial_accumulator_value": NONNEGATIVE,
        "l1_regularization_strength": NONNEGATIVE,
        "l2_regularization_strength": NONNEGATIVE,
        "l2_shrinkage_regularization_strength": NONNEGATIVE,
        "beta": NONNEGATIVE,
    }

    _lr_scalars = ("lr", "threshold", "stretch")
    _vanishing_scalars = ("shrinkage",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            learning_rate_power=learning_rate_power,
            initial_accumulator_value=initial_accumulator_value,
            l1_regularization_strength=l1_regularization_strength,
            l2_regularization_strength=l2_regularization_strength,
            l2_shrinkage_regularization_strength=l2_shrinkage_regularization_strength,
            beta=beta,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return ftrl.RULE if options["learning_rate_power"] else ftrl_fixed.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta: Value = options["beta"]
        rooted = bool(options["learning_rate_power"])
        return {
            "lr": lr,
            "shrinkage": 2.0 * options["l2_shrinkage_regularization_strength"],
            "threshold": lr * options["l1_regularization_strength"],
            "beta": or_guard(beta, guard) if rooted else 1.0 + beta,
            "stretch": lr * 2.0 * options["l2_regularization_strength"],
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        beta: Value = options["beta"]
        if not options["learning_rate_power"]:
            return 1.0 + beta
        return sqrt(options["initial_accumulator_value"]) + beta

    @staticmethod
    def _fill(options: Options) -> dict[str, Value]:
        return {"n": options["initial_accumulator_value"]}
