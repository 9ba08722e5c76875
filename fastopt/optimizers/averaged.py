"""ASGD: stochastic gradient descent whose result is the mean of the parameters on the way."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    Options,
    Schedulable,
    Scheduled,
    Value,
    learning_rate,
    together,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import power
from fastopt_kernels import Rule, asgd


class ASGD(Optimizer):
    """Averaged SGD: steps that become shorter, and the mean of the parameters on the way.

    ::

        g    <- grad + weight_decay * p
        eta  <- lr / (1 + lambd * lr * (t - 1))^alpha
        p    <- p - eta * lambd * p - eta * g
        mean <- mean + (p - mean) / max(1, t - 1 - t0)

    Here p is the parameter, grad its gradient, g that with the decay, eta the rate of the step, and
    mean the average of p.

    t counts the parameter's own steps. The mean is a copy of the parameter up to step t0 + 2, and
    the mean of what the parameter was from there on later; it is what to evaluate with, and stands
    in ``state_dict()["state"][name]["mean"]``. The parameters that gradients are taken at are p.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter squared per unit of the loss; a number,
            or a function of the step number (0 for the first step). Where elements have an
            ``lr_scale`` of their own, it multiplies eta, and the lr under it is the group's.
        lambd: how fast steps become shorter, and share of the parameter that is taken off per
            step and unit of eta, >= 0; or a function of the step number.
        alpha: power by which steps become shorter, >= 0; or a function of the step number.
        t0: number of steps before the mean begins, >= 0.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992),
    with the steps of Xu, "Towards Optimal One Pass Large Scale Learning with Averaged Stochastic
    Gradient Descent" (2011), as PyTorch 2.13 computes it; there eta is worked out a step early, so
    that an lr that changes acts a step late, and is a float32 unless the default dtype is float64.
    """

    _checks = {
        "lambd": Schedulable(NONNEGATIVE),
        "alpha": Schedulable(NONNEGATIVE),
        "t0": NONNEGATIVE,
    }

    _lr_scalars = ("decay", "eta")  # in the first step, and less in all later ones

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        lambd: Scheduled = 1e-4,
        alpha: Scheduled = 0.75,
        t0: float = 1e6,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lambd=lambd,
            alpha=alpha,
            t0=t0,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return asgd.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        lambd = options["lambd"]
        eta = lr / power(1.0 + lambd * learning_rate(options) * (t - 1.0), options["alpha"])
        return {
            "decay": eta * lambd,
            "eta": eta,
            "keep": together(lambda t0: 1.0 if t - 1.0 - t0 > 1.0 else 0.0, options["t0"]),
            "weight": together(lambda t0: 1.0 / max(1.0, t - 1.0 - t0), options["t0"]),
        }
