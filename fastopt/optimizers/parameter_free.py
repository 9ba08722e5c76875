"""Prodigy, DoG and DoWG: steps whose length follows from the way so far."""

from __future__ import annotations

import math
from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    FRACTION,
    GROWTH,
    POSITIVE,
    Decay,
    Flag,
    Maybe,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import one_minus_power, or_guard, sqrt
from fastopt_kernels import Rule, dog, dowg, prodigy

# -------------------------------------------------------------------------------------------------
# Prodigy: Adam that estimates by itself how far the solution is.


class Prodigy(Optimizer):
    """Prodigy: Adam in units of d, an estimate of the distance from the start to the solution.

    ::

        g  <- d * grad
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        s  <- beta3 * s + (d / d0) * lr * g              s = 0 at first; p0 is the first p
        r  <- beta3 * r + (d / d0) * lr * sum(g * (p0 - p))          over all arrays
        dhat <- d_coef * r / sum(|s|)                                over all arrays
        d  <- max(d, dhat) while d = d0
        dmax <- max(dmax, dhat);  d <- min(dmax, growth_rate * d)
        p  <- p - d_old * lr * weight_decay * p
        p  <- p - d_old * lr * m / (sqrt(v) + d * eps)

    Here p is the parameter, grad its gradient, g that in units of d, m the average of g, v that of
    its squares, s and r weighted sums of g and of how far it points back to the start, dhat the
    estimate of the distance that they give, dmax the largest so far, d the one that is used, d_old
    that before the step, and t the number of the step, from 1. beta1 and beta2 are ``betas``.

    With ``bias_correction`` lr is everywhere lr * sqrt(1 - beta2^t) / (1 - beta1^t). The sums are
    made in float64 in one order; d, dmax and r are float64, are the same for all groups, and are
    saved with the state: ``opt.d`` reads d.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of the step, >= 0, without a unit; 1 is meant, and schedules go from 1 down; a
            number, or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number.
        beta3: share of the sums that estimate d that is kept, in [0, 1); None for sqrt(beta2),
            which must be a number then.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        d0: first estimate of the distance, > 0, in units of the parameter; small.
        d_coef: factor of the estimate, > 0; 0.5 or 2 make steps shorter or longer.
        growth_rate: how much d may grow in a step, >= 1; inf for any.
        bias_correction: correct the averages as Adam does.
        safeguard_warmup: leave lr out of s, so that a warm-up does not bring d up too far.
        weight_decay: share of the parameter that is taken off per step and unit of d * lr, >= 0;
            with ``decoupled_weight_decay=False`` the coefficient of an L2 term; or a function of
            the step number.
        decoupled_weight_decay: whether weight decay acts on the parameter.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    With ``state_dtype`` "bfloat16" or "int8" p0 is rounded too, and the distance from it is too
    long by that: leave it out where steps are short beside the parameters.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in d0, d_coef, growth_rate or beta3, and for arrays that cannot be updated in
            place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"
    (ICML 2024), algorithm 4, as the authors' package prodigyopt computes it, with lr of the group
    in its sums; optax corrects the bias by default and pytorch_optimizer agrees with prodigyopt.
    """

    _checks = {
        "betas": BETAS,
        "beta3": Maybe(FRACTION),
        "eps": Schedulable(EPS),
        "d0": POSITIVE,
        "d_coef": POSITIVE,
        "growth_rate": GROWTH,
        "bias_correction": Flag(),
        "safeguard_warmup": Flag(),
        "decoupled_weight_decay": Flag(),
    }
    _lr_scalars = ("take", "rate", "decay", "lr")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        beta3: float | None = None,
        eps: Scheduled = 1e-8,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        bias_correction: bool = False,
        safeguard_warmup: bool = False,
        weight_decay: Scheduled = 0.0,
        decoupled_weight_decay: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            beta3=beta3,
            eps=eps,
            d0=d0,
            d_coef=d_coef,
            growth_rate=growth_rate,
            bias_correction=bias_correction,
            safeguard_warmup=safeguard_warmup,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )

    @property
    def d(self) -> float:
        """The estimate of the distance that the next step begins with."""
        return self._alone(self._remembered)["d"]

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule" if options["decoupled_weight_decay"] else "gradient"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return prodigy.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        d0, decays = options["d0"], options["decoupled_weight_decay"]
        if options["bias_correction"]:
            lr = lr * sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "beta3": sqrt(beta2) if options["beta3"] is None else options["beta3"],
            "take": 1.0 / d0 if options["safeguard_warmup"] else lr / d0,
            "rate": lr / d0,
            "first": 1.0 if t == 1 else 0.0,
            "eps": or_guard(options["eps"], guard),
            "decay": lr * options["weight_decay"] if decays else 0.0,
            "lr": lr,
            "d0": d0,
            "d_coef": options["d_coef"],
            "growth_rate": options["growth_rate"],
        }

    @staticmethod
    def _review(options: Options) -> None:
        if options["beta3"] is None and callable(options["betas"][1]):
            raise ValueError(
                "Prodigy: beta3=None stands for sqrt(beta2), and what d is estimated from must be "
                "kept by one share in all groups; give beta3 a number, such as sqrt(0.999), if "
                f"betas[1] is a function; got betas[1]={options['betas'][1]!r}"
            )

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {"d": options["d0"], "d_max": options["d0"]}

    @staticmethod
    def _smallest_denominator(options: Options) -> float:
        eps: float = options["eps"]
        d0: float = options["d0"]
        return eps * d0


# -------------------------------------------------------------------------------------------------
# DoG: the distance so far over the root of all squared gradients.


class DoG(Optimizer):
    """DoG: gradient descent whose rate is the distance from the start over all gradients so far.

    ::

        g  <- grad + weight_decay * p
        distance <- max(distance, |p - p0|)              p0 is the first p
        total <- total + |g|^2                           total = 0 at first
        p  <- p - lr * distance / sqrt(total + eps) * g

    Here p is the parameter, grad its gradient, g that with the decay, distance the furthest that p
    has been from its start, and total the sum of the squared norms of g.

    The norms are over all arrays that have a gradient. distance begins with d0, or with
    d0_relative * (1 + |p0|). The sums are made in float64 in one order; distance and total are
    float64, are the same for all groups, and are saved with the state: ``opt.distance`` reads
    the first.

    The authors recommend the average of the parameters on the way (``EMA``) for use.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of the step, >= 0, without a unit; 1 is meant, and schedules go from 1 down; a
            number, or a function of the step number (0 for the first step).
        d0: distance to begin with, > 0, in units of the parameter; small. None for
            d0_relative * (1 + |p0|).
        d0_relative: share of the parameters' norm, plus one, to begin with, > 0; 1e-4 where
            parameters are normalized in batches.
        eps: added to the sum of squares, >= 0, in units of the gradient's square.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    With ``state_dtype`` "bfloat16" or "int8" p0 is rounded too, and the distance from it is too
    long by that: leave it out where steps are short beside the parameters.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in d0, d0_relative or eps, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Ivgi, Hinder and Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size
    Schedule" (ICML 2023), the tuning-free algorithm of section 2, as optax 0.2.8 computes it.
    """

    _checks = {"d0": Maybe(POSITIVE), "d0_relative": POSITIVE, "eps": EPS}
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        d0: float | None = None,
        d0_relative: float = 1e-6,
        eps: float = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            d0=d0,
            d0_relative=d0_relative,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )

    @property
    def distance(self) -> float:
        """The largest distance from the start so far; 0 before the first step without a d0."""
        return self._alone(self._remembered)["distance"]

    @staticmethod
    def _rule(options: Options) -> Rule:
        return dog.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "first": 1.0 if t == 1 else 0.0,
            "lr": lr,
            "relative": options["d0_relative"],
            "eps": options["eps"],
        }

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {} if options["d0"] is None else {"distance": options["d0"]}


# -------------------------------------------------------------------------------------------------
# DoWG: the same, with gradients that weigh as much as the distance at their time.


class DoWG(Optimizer):
    """DoWG: gradient descent whose rate is the squared distance over weighted gradients so far.

    ::

        g  <- grad + weight_decay * p
        area <- max(area, |p - p0|^2)                    area = d0^2 at first; p0 is the first p
        total <- total + area * |g|^2                    total = 0 at first
        p  <- p - lr * area / (sqrt(total) + eps) * g

    Here p is the parameter, grad its gradient, g that with the decay, area the square of the
    furthest that p has been from its start, and total the sum of the squared norms of g, each times
    the area of its step.

    The norms are over all arrays that have a gradient. The sums are made in float64 in one order;
    area and total are float64, are the same for all groups, and are saved with the state:
    ``opt.distance`` reads the root of the first.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of the step, >= 0, without a unit; 1 is meant, and schedules go from 1 down; a
            number, or a function of the step number (0 for the first step).
        d0: distance to begin with, > 0, in units of the parameter; small.
        eps: added to the denominator, >= 0, in units of the parameter times the gradient.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    With ``state_dtype`` "bfloat16" or "int8" p0 is rounded too, and the distance from it is too
    long by that: leave it out where steps are short beside the parameters.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in d0 or eps, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Khaled, Mishchenko and Jin, "DoWG Unleashed: An Efficient Universal Parameter-Free
    Gradient Descent Method" (NeurIPS 2023), algorithm 1, with the eps of optax 0.2.8, which begins
    with area = eps = 1e-4 and is equal.
    """

    _checks = {"d0": POSITIVE, "eps": EPS}
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        d0: float = 1e-2,
        eps: float = 1e-4,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, d0=d0, eps=eps, weight_decay=weight_decay, **common)

    @property
    def distance(self) -> float:
        """The largest distance from the start so far, or d0."""
        return math.sqrt(self._alone(self._remembered)["area"])

    @staticmethod
    def _rule(options: Options) -> Rule:
        return dowg.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {"first": 1.0 if t == 1 else 0.0, "lr": lr, "eps": options["eps"]}

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {"area": options["d0"] * options["d0"]}
