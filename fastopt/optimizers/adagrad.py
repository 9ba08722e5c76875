"""Adagrad: steps shrink with squares of gradients; and Adadelta: no learning rate to tune."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    EPS,
    NONNEGATIVE,
    POSITIVE,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import acts, eps_floor, eps_scalars, sqrt
from fastopt_kernels import Rule, adadelta, adagrad, adagrad_eps_inside

# -------------------------------------------------------------------------------------------------
# Adagrad: every parameter's steps shrink with the squared gradients it has seen.


class Adagrad(Optimizer):
    """Adagrad: steps divided by the root of the sum of all squared gradients.

    ::

        g <- grad + weight_decay * p
        s <- s + g^2                                     s = initial_accumulator_value at first
        p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)
                                                         or / sqrt(s + eps) if eps_inside_sqrt

    Here p is the parameter, grad its gradient, g that with the decay, s the sum of the squares of
    g, and t the number of the step, from 1.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (a first step has about this length); a
            number, or a function of the step number (0 for the first step).
        lr_decay: how fast lr shrinks with a parameter's own step count t, >= 0, per step.
        initial_accumulator_value: what s begins with, >= 0, in units of the squared gradient.
        eps: added to the denominator, >= 0, in units of the gradient (of its square if inside the
            root); 0 leaves only a guard that makes 0/0 zero. Or a function of the step number,
            whose values are > 0.
        eps_inside_sqrt: whether eps stands inside the root.
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

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods" (JMLR 2011), figure 1, diagonal
    form, as PyTorch 2.13 computes it (chainer agrees). optax and keras have
    eps_inside_sqrt=True, and begin with initial_accumulator_value=0.1 and eps=1e-7: their first
    step is 2.3 times shorter for gradients around 0.15.
    """

    _checks = {
        "lr_decay": NONNEGATIVE,
        "initial_accumulator_value": NONNEGATIVE,
        "eps": Schedulable(EPS),
        "eps_inside_sqrt": Flag(),
    }

    _lr_scalars = ("step_size",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Scheduled = 1e-10,
        eps_inside_sqrt: bool = False,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            eps_inside_sqrt=eps_inside_sqrt,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        inside = options["eps_inside_sqrt"] and acts(options["eps"])
        return adagrad_eps_inside.RULE if inside else adagrad.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        step_size = lr / (1.0 + (t - 1) * options["lr_decay"])
        inside, outside = eps_scalars(options, guard, 1.0, 1.0)
        return {
            "step_size": step_size,
            "eps_inside": inside,
            "eps_outside": outside,
            "eps": outside,
        }

    _smallest_denominator = staticmethod(eps_floor)

    @staticmethod
    def _fill(options: Options) -> dict[str, Value]:
        return {"s": options["initial_accumulator_value"]}


# -------------------------------------------------------------------------------------------------
# Adadelta: steps in the parameter's own units, without a learning rate to tune.


class Adadelta(Optimizer):
    """Adadelta: the root of averaged squared steps over that of averaged squared gradients.

    ::

        g <- grad + weight_decay * p
        v <- rho * v + (1 - rho) * g^2                   v = 0 at first
        d <- sqrt(u + eps) / sqrt(v + eps) * g           u = 0 at first
        u <- rho * u + (1 - rho) * d^2
        p <- p - lr * d

    Here p is the parameter, grad its gradient, g that with the decay, v the average of the squares
    of g, d the step that lr multiplies, and u the average of the squares of d.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of every step, >= 0, without a unit; a number, or a function of the step number
            (0 for the first step).
        rho: share of the averages that is kept, in [0, 1), or a function of the step number.
        eps: added inside both roots, > 0; with 0 the first step, and so all, would be zero. Or a
            function of the step number.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            seed, backend. It has no decoupled_lr, no cautious_decay and no complex_moment.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012), algorithm 1, as PyTorch
    2.13 computes it; optax agrees. keras has eps = 1e-7 and lr = 0.001 as defaults.
    """

    _checks = {"rho": BETA, "eps": Schedulable(POSITIVE)}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        rho: Scheduled = 0.9,
        eps: Scheduled = 1e-6,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adadelta.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        eps = options["eps"]
        return {"one_minus_rho": 1.0 - options["rho"], "eps_steps": eps, "eps": eps, "lr": lr}

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return sqrt(options["eps"])
