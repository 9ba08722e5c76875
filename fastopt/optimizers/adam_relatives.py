"""Relatives of Adam that change one thing in it: Adamax, NAdam and RAdam."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    NONNEGATIVE,
    Decay,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import (
    eps_alone,
    one_minus_power,
    one_minus_risen,
    or_guard,
    rectification,
    risen,
    sqrt,
)
from fastopt_kernels import Rule, adamax, nadam, radam

# -------------------------------------------------------------------------------------------------
# Adamax: the largest recent gradient in the place of the root of the averaged squares.


class Adamax(Optimizer):
    """Adamax: the averaged gradient over a decaying maximum of the gradient.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        u  <- max(beta2 * u, |g| + eps)                  u = 0 at first
        p  <- p - lr / (1 - beta1^t) * m / u

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, u the
    maximum of its sizes, of which old ones fade, and t the number of the step, from 1. beta1 and
    beta2 are ``betas``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (no step is more than 1 % longer with the
            default betas); a number, or a function of the step number (0 for the first step).
        betas: shares of the average and of the maximum that are kept, each in [0, 1), or a
            function of the step number; the correction is that of the step's own beta1.
        eps: added to the gradient's size, >= 0, in units of the gradient; 0 leaves only a guard
            that makes 0/0 zero. Or a function of the step number, whose values are > 0.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    The parts of a complex number have a maximum each.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), algorithm 2,
    with eps added to the gradient as PyTorch 2.13 has it (the paper has none); optax agrees.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS)}

    _lr_scalars = ("step_size",)
    _vanishing_scalars = ("beta2",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 2e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adamax.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        return {
            "one_minus_beta1": 1.0 - beta1,
            "beta2": beta2,
            "eps": or_guard(options["eps"], guard),
            "step_size": lr / one_minus_power(beta1, t),
        }

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# NAdam: Nesterov's momentum in Adam.


class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum, which rises to beta1.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        mu_t <- beta1 * (1 - 0.5 * 0.96^(t * momentum_decay))
        M_t  <- M_(t-1) * mu_t                           M_0 = 1
        n  <- (1 - mu_t) / (1 - M_t) * g + mu_(t+1) / (1 - M_(t+1)) * m
        p  <- p - lr * n / (sqrt(v / (1 - beta2^t)) + eps)

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, mu_t the momentum of step t, M_t the product of those so far, and n the average
    with its look ahead. beta1 and beta2 are ``betas``.

    t counts the parameter's own steps.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; a number, or a function of the step
            number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; the corrections, M_t among them, are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        momentum_decay: how fast mu rises from about beta1 / 2 to beta1, >= 0, per step; with 0 it
            stays at beta1 / 2.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number; if
            decoupled, the share of the parameter that is taken off per step and unit of lr.
        decoupled_weight_decay: whether weight decay acts on the parameter, before the update, and
            not on the gradient.
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

    Source: Dozat, "Incorporating Nesterov Momentum into Adam" (ICLR 2016 workshop), as PyTorch
    2.13 computes it, where M_t is the product of what the steps had if beta1 changes on the way,
    and a float32 unless the default dtype is float64. optax has no schedule of mu: in
    ten steps of lr 0.01 it is 53 % of the way away.
    """

    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "momentum_decay": NONNEGATIVE,
        "decoupled_weight_decay": Flag(),
    }

    _lr_scalars = ("of_grad", "of_m")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 2e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        momentum_decay: float = 4e-3,
        weight_decay: Scheduled = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            momentum_decay=momentum_decay,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return nadam.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter" if options["decoupled_weight_decay"] else "gradient"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        rise = options["momentum_decay"]
        # As in Adam, v is not divided by its correction, but eps and the step multiplied by root.
        root = sqrt(one_minus_power(beta2, t))
        mu, next_mu = risen(beta1, rise, t), risen(beta1, rise, t + 1)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps": root * or_guard(options["eps"], guard),
            "of_grad": lr * root * (1.0 - mu) / one_minus_risen(beta1, rise, t),
            "of_m": lr * root * next_mu / one_minus_risen(beta1, rise, t + 1),
        }

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# RAdam: no adaptive step before enough squares have been averaged.


class RAdam(Optimizer):
    """RAdam: Adam that steps along the average alone until its averaged squares can be trusted.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        rho  <- 2 / (1 - beta2) - 1
        rho_t <- rho - 2 * t * beta2^t / c2
        r  <- sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t))
        p  <- p - lr * r * sqrt(c2) / c1 * m / (sqrt(v) + eps)       if rho_t > 5
        p  <- p - lr / c1 * m                                        if not

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, rho_t the number of gradients that v is made of in effect, rho what that comes to,
    and r what makes up for there being few. c1 and c2 make up for the beginning of the averages at
    0. beta1 and beta2 are ``betas``.

    t counts the parameter's own steps. With beta2 = 0.999 steps are adaptive from the sixth on, and
    with beta2 <= 2/3 never.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter where steps are adaptive, and of the
            parameter per gradient before; a number, or a function of the step number (0 for the
            first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1, c2 and rho are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number; if
            decoupled, the share of the parameter that is taken off per step and unit of lr.
        decoupled_weight_decay: whether weight decay acts on the parameter, before the update, and
            not on the gradient.
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

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (ICLR 2020),
    algorithm 2, as PyTorch 2.13 computes it, which adds eps before v is corrected and needs
    rho_t > 5 (the paper: > 4); its rho_t has lost five digits in the first adaptive steps, 2e-11
    of a parameter at most. optax adds eps after the correction, which is 3e-9 of the way away in
    ten steps. pytorch_optimizer makes no step at all before rho_t is above 5.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS), "decoupled_weight_decay": Flag()}

    _lr_scalars = ("plain", "adapted")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return radam.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter" if options["decoupled_weight_decay"] else "gradient"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        rate = lr / one_minus_power(beta1, t)
        share = rectification(beta2, t)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps": or_guard(options["eps"], guard),
            "plain": rate * (share == 0.0),
            "adapted": rate * share * sqrt(one_minus_power(beta2, t)),
        }

    _smallest_denominator = staticmethod(eps_alone)
