"""SGDP and AdamP: steps without the part that only makes scale-invariant weights longer."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    FRACTION,
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
from fastopt.optimizers.common import eps_alone, one_minus_power, or_guard, sqrt
from fastopt_kernels import ArrayRule, adamp, sgdp

# -------------------------------------------------------------------------------------------------
# SGDP


class SGDP(Optimizer):
    """SGDP: momentum without its radial part where the gradient is at a right angle to p.

    ::

        m  <- momentum * m + (1 - dampening) * grad      m = 0 at first
        u  <- grad + momentum * m                        if nesterov; else m
        u, share <- u without its part along p           where the gradient has hardly any
        p  <- p - lr * weight_decay * share / (1 - momentum) * p
        p  <- p - lr * u

    Here p is the parameter, grad its gradient, m the sum of gradients, of which old ones fade, u
    the step that lr multiplies, and share that of the decay which is left.

    Of arrays with two and more axes, the cosine of gradient and parameter is taken for each row
    (all elements at one place of the first axis); if all of them are below delta / sqrt(elements
    of a row), u <- u - r * sum(r * u) by row, with r = p / (|p| + eps). Otherwise the same is done
    with the whole array as one row. share is decay_share if either was done, else 1. Vectors and
    numbers are left alone.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, of any shape.
        lr: learning rate, >= 0, in units of the parameter over that of the gradient; a number, or a
            function of the step number (0 for the first step).
        momentum: share of m that is kept, in [0, 1), or a function of the step number.
        dampening: share of the gradient that is left out of m, in [0, 1).
        nesterov: look ahead along the momentum.
        eps: least norm in the cosine, and added to |p|, >= 0; 0 leaves only a guard that makes 0/0
            zero.
        delta: how near to a right angle the gradient must be, >= 0: its cosine below
            delta / sqrt(elements); 0 leaves every step as it is.
        decay_share: share of the weight decay, >= 0, that acts where the radial part is left out.
        weight_decay: share of the parameter that is taken off per step and unit of
            lr / (1 - momentum), >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, l1, complex_moment, seed,
            backend. state_dtype is "float64" or None. It has no stochastic_rounding, cautious,
            cautious_decay or mask_zero.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
    Weights" (ICLR 2021), algorithm 1, as the authors and timm compute it.
    """

    _checks = {
        "momentum": BETA,
        "dampening": FRACTION,
        "nesterov": Flag(),
        "eps": EPS,
        "delta": NONNEGATIVE,
        "decay_share": NONNEGATIVE,
    }
    _lr_scalars = ("decay", "lr")
    _vanishing_scalars = ("momentum", "of_m", "delta", "decay_share")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        momentum: Scheduled = 0.9,
        dampening: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        decay_share: float = 0.1,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            eps=eps,
            delta=delta,
            decay_share=decay_share,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return sgdp.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        momentum, nesterov = options["momentum"], options["nesterov"]
        return {
            "momentum": momentum,
            "take": 1.0 - options["dampening"],
            "of_grad": 1.0 if nesterov else 0.0,
            "of_m": momentum if nesterov else 1.0,
            "delta": options["delta"],
            "eps": or_guard(options["eps"], guard),
            "decay_share": options["decay_share"],
            "decay": lr * options["weight_decay"] / (1.0 - momentum),
            "lr": lr,
        }


# -------------------------------------------------------------------------------------------------
# AdamP


class AdamP(Optimizer):
    """AdamP: AdamW without the radial part of its step where the gradient is at a right angle to p.

    ::

        m  <- beta1 * m + (1 - beta1) * grad             m = 0 at first
        v  <- beta2 * v + (1 - beta2) * grad^2           v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        n  <- beta1 * m + (1 - beta1) * grad             if nesterov; else m
        u  <- (n / c1) / (sqrt(v / c2) + eps)
        u, share <- u without its part along p           where the gradient has hardly any
        p  <- p - lr * weight_decay * share * p
        p  <- p - lr * u

    Here p is the parameter, grad its gradient, m the average of gradients, v that of their squares,
    n the numerator, u the step that lr multiplies, share that of the decay which is left, and t the
    number of the step, from 1. c1 and c2 make up for the beginning of the averages at 0. beta1 and
    beta2 are ``betas``.

    Of arrays with two and more axes, the cosine of gradient and parameter is taken for each row
    (all elements at one place of the first axis); if all of them are below delta / sqrt(elements
    of a row), u <- u - r * sum(r * u) by row, with r = p / (|p| + eps). Otherwise the same is done
    with the whole array as one row. share is decay_share if either was done, else 1. Vectors and
    numbers are left alone.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, of any shape.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, up to 7.3 times it where they grow after a quiet time with the
            default betas); it scales the decay too; a number, or a function of the step number (0
            for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; also the least norm in the
            cosine, and added to |p|; 0 leaves only a guard that makes 0/0 zero. Or a function of
            the step number, whose values are above 0.
        nesterov: look ahead along the gradient.
        delta: how near to a right angle the gradient must be, >= 0: its cosine below
            delta / sqrt(elements); 0 leaves every step as it is.
        decay_share: share of the weight decay, >= 0, that acts where the radial part is left out.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, l1, seed, backend. state_dtype is
            "float64" or None. It has no stochastic_rounding, cautious, cautious_decay, mask_zero or
            complex_moment.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
    Weights" (ICLR 2021), algorithm 2, as the authors and timm compute it.
    pytorch_optimizer adds eps before the bias correction (6e-6 of the way off; equal with eps = 0).
    """

    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "nesterov": Flag(),
        "delta": NONNEGATIVE,
        "decay_share": NONNEGATIVE,
    }
    _lr_scalars = ("decay", "step_size")
    _vanishing_scalars = ("delta", "decay_share")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        nesterov: bool = False,
        delta: float = 0.1,
        decay_share: float = 0.1,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            nesterov=nesterov,
            delta=delta,
            decay_share=decay_share,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return adamp.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "ahead": 1.0 - beta1 if options["nesterov"] else 0.0,
            "root": sqrt(one_minus_power(beta2, t)),
            "eps": or_guard(options["eps"], guard),
            "delta": options["delta"],
            "decay_share": options["decay_share"],
            "decay": lr * options["weight_decay"],
            "step_size": lr / one_minus_power(beta1, t),
        }

    _smallest_denominator = staticmethod(eps_alone)
