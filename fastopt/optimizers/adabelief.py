"""AdaBelief and Yogi: Adam with other averages in the denominator."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    NONNEGATIVE,
    Decay,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import adam_scalars, eps_alone, sqrt
from fastopt_kernels import Rule, adabelief, yogi

# -------------------------------------------------------------------------------------------------
# AdaBelief: long steps where gradients are as expected.


class AdaBelief(Optimizer):
    """AdaBelief: the averaged gradient over the root of how far gradients are from it.

    ::

        p  <- p - lr * weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first; g is the gradient
        v  <- beta2 * v + (1 - beta2) * (g - m)^2 + eps_root         v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        p  <- p - lr * (m / c1) / (sqrt(v / c2) + eps)

    Here p is the parameter, g its gradient, m the average of g, v that of the square of how far g
    is from m, and t the number of the step, from 1. c1 and c2 make up for the beginning of the
    averages at 0. beta1 and beta2 are ``betas``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; where gradients stay the same, steps
            are much longer; a number, or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        eps_root: added to v in every step, >= 0, in units of the squared gradient; where gradients
            stay the same, v / c2 goes to eps_root / (1 - beta2), and with 0 to 0. Or a function of
            the step number, whose values are > 0.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, members, capturable, master_weights, state_dtype, stochastic_rounding,
            cautious, cautious_decay, l1, mask_zero, seed, backend. It has no complex_moment.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
    Gradients" (NeurIPS 2020), algorithm 2, as optax 0.2.8 computes it; timm and
    pytorch_optimizer agree, with one eps for both, where timm has rectify=False. With its default,
    which rectifies as RAdam does, it is 63 % of the way away in ten steps of gradients around 0.7;
    pytorch_optimizer counts the steps of a group, which is 1.5 % where some gradients are None.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS), "eps_root": Schedulable(NONNEGATIVE)}

    _lr_scalars = ("step_size",)
    _vanishing_scalars = ("beta1",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-16,
        eps_root: Scheduled = 1e-16,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            eps_root=eps_root,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adabelief.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            **adam_scalars(options["betas"], options["eps"], lr, t, guard),
            "beta1": options["betas"][0],
            "eps_root": options["eps_root"],
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        smallest: Value = options["eps"] + sqrt(options["eps_root"])
        return smallest


# -------------------------------------------------------------------------------------------------
# Yogi: an average of squares that grows and shrinks slowly.


class Yogi(Optimizer):
    """Yogi: Adam whose average of squares moves by no more than the new square, up or down.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = initial_accumulator_value at first
        v  <- v - (1 - beta2) * sign(v - g^2) * g^2      v = initial_accumulator_value at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        p  <- p - lr * (m / c1) / (sqrt(v / c2) + eps)

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, which moves by no more than the newest of them, and t the number of the step, from
    1. c1 and c2 make up for the beginning of the averages at 0. beta1 and beta2 are ``betas``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, about 7 times it where they grow after a quiet time with the
            default betas); a number, or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        initial_accumulator_value: what m and v begin with, >= 0, in units of the gradient and of
            its square. The initial m moves what has no gradient yet: by default the first step is
            lr / 3.3 there.
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

    Source: Zaheer et al., "Adaptive Methods for Nonconvex Optimization" (NeurIPS 2018), algorithm
    2, as optax 0.2.8 computes it, with corrections and the initial values that the paper does not
    have. pytorch_optimizer agrees, with weight_decouple=False; it counts the steps of a group,
    which is 1.5 % of the way in ten steps where some gradients are None.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS), "initial_accumulator_value": NONNEGATIVE}

    _lr_scalars = ("step_size",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-3,
        initial_accumulator_value: float = 1e-6,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            initial_accumulator_value=initial_accumulator_value,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return yogi.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return adam_scalars(options["betas"], options["eps"], lr, t, guard)

    _smallest_denominator = staticmethod(eps_alone)

    @staticmethod
    def _fill(options: Options) -> dict[str, Value]:
        initial: Value = options["initial_accumulator_value"]
        return {"m": initial, "v": initial}
