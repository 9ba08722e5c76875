"""Steps as long as the loss is above its bound: MoMo, and Adam with such steps."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    FINITE,
    FRACTION,
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
from fastopt_kernels import Rule, momo, momo_adam


def _inputs(options: Options, beta: Value, corrects: float) -> dict[str, Value]:
    """Return what the model of the loss is given, and the scalars of proximal decay."""
    return {
        "beta": beta,
        "corrects": corrects,
        "lower_bound": options["lower_bound"],
        "adapts": float(options["adapt_lower_bound"]),
        "one": 1.0,
    }


class MoMo(Optimizer):
    """MoMo: momentum whose steps go where a model of the loss meets its lower bound.

    ::

        m      <- beta * m + (1 - beta) * grad                m = grad at first
        f      <- beta * f + (1 - beta) * value               f = value at first
        gamma  <- beta * gamma + (1 - beta) * sum(grad * p)   over all arrays; likewise
        c      =  1 + lr * weight_decay
        above  =  f - gamma - bound + sum(m * p / c)          over all arrays
        share  =  above / sum(lr * m^2 / c), from 0 to 1      over all arrays; 0 where m is 0
        p      <- p / c - share * lr * m

    Here p is the parameter, grad its gradient, m the average of gradients, f that of the losses,
    gamma that of the products of gradient and parameter, c what decays p, above how far the model
    of the loss is above the bound, and share the part of lr that the step takes (above0 is above
    without a bound).

    ``value`` is the loss, which every step is handed: ``opt.step(grads, value=loss)``. ``bound`` is
    ``lower_bound``; with ``adapt_lower_bound`` it follows the model, and never falls below that::

        bound  <- max(lower_bound, above0 / 2)  where above0 = above + bound is below the bound
        bound  <- max(lower_bound, f + sum(m * p) - gamma - share / 2 * sum(lr * m^2))    then

    The sums are made in float64 in one order; f, gamma and the bound are float64, are the same for
    all groups, and are saved with the state. Groups may differ in lr and weight_decay: with one lr
    for all, share * lr is the step that the paper calls tau.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: longest step, >= 0, in units of the parameter per gradient; rather large. A number, or a
            function of the step number (0 for the first step).
        beta: share of the averages that is kept, in [0, 1).
        lower_bound: what the loss cannot fall below, in its units; 0 for most losses.
        adapt_lower_bound: whether to estimate a higher bound on the way.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0; or a
            function of the step number. It is part of the model.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. With ``maximize`` lower_bound is that of -value; where
            groups differ in it, as players of a game do, value is the loss of the first. What clips
            gradients leaves the loss as it is, so the model is that of a loss with these gradients.
            A step that is handed a value cannot be captured in a CUDA graph. It has no
            decoupled_lr, no cautious_decay and no l1.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in beta, lower_bound or adapt_lower_bound, and for arrays that cannot be updated
            in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for Adaptive
    Learning Rates" (ICML 2024), algorithm 1, as optax 0.2.8 computes it, but for one thing: optax
    makes no step where sum(m^2) is below 2.2e-16, however long the step would be.
    """

    _takes_value = True
    _checks = {"beta": FRACTION, "lower_bound": FINITE, "adapt_lower_bound": Flag()}
    _lr_scalars = ("lr", "decay")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        beta: float = 0.9,
        lower_bound: float = 0.0,
        adapt_lower_bound: bool = False,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta=beta,
            lower_bound=lower_bound,
            adapt_lower_bound=adapt_lower_bound,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return momo.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta: Value = options["beta"]
        return _inputs(options, beta, 0.0) | {
            "one_minus_beta": 1.0 if t == 1 else 1.0 - beta,
            "decay": lr * options["weight_decay"],
            "lr": lr,
        }

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {"bound": options["lower_bound"]}


class MoMoAdam(Optimizer):
    """Adam whose steps go where a model of the loss meets its lower bound.

    ::

        m      <- beta1 * m + (1 - beta1) * grad                m = 0 at first
        v      <- beta2 * v + (1 - beta2) * grad^2              v = 0 at first
        f      <- beta1 * f + (1 - beta1) * value               f = 0 at first
        gamma  <- beta1 * gamma + (1 - beta1) * sum(grad * p)   over all arrays; likewise
        w      <- beta1 * w + (1 - beta1)                       w = 0 at first: 1 - beta1^t
        u      =  m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        c      =  1 + lr * weight_decay
        above  =  f - gamma - w * bound + sum(m * p / c)        over all arrays
        share  =  above / sum(lr * m * u / c), from 0 to 1      over all arrays; 0 where m is 0
        p      <- p / c - share * lr * u

    Here p is the parameter, grad its gradient, m the average of gradients, v that of their squares,
    f that of the losses, gamma that of the products of gradient and parameter, w how full the
    averages are, u Adam's step, c what decays p, above how far the model of the loss is above the
    bound, share the part of lr that the step takes, and t the number of the step, from 1 (above0 is
    above without a bound). beta1 and beta2 are ``betas``.

    ``value`` is the loss, which every step is handed: ``opt.step(grads, value=loss)``. ``bound`` is
    ``lower_bound``; with ``adapt_lower_bound`` it follows the model, and never falls below that::

        bound  <- max(lower_bound, above0 / (2 * w))  where above0 = above + w * bound < w * bound
        bound  <- max(lower_bound, (f + sum(m * p) - gamma - share / 2 * sum(lr * m * u)) / w)

    the latter after the step. The sums are made in float64 in one order; f, gamma, w and the bound
    are float64, are the same for all groups, and are saved with the state.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: longest step, >= 0, in units of the parameter; rather large. A number, or a function of
            the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1); the second one may be a
            function of the step number.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        lower_bound: what the loss cannot fall below, in its units; 0 for most losses.
        adapt_lower_bound: whether to estimate a higher bound on the way.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0; or a
            function of the step number. It is part of the model.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. With ``maximize`` lower_bound is that of -value; where
            groups differ in it, as players of a game do, value is the loss of the first. What clips
            gradients leaves the loss as it is, so the model is that of a loss with these gradients.
            A step that is handed a value cannot be captured in a CUDA graph. It has no
            decoupled_lr, no cautious_decay and no l1.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for groups that
            differ in betas[0], lower_bound or adapt_lower_bound, and for arrays that cannot be
            updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for Adaptive
    Learning Rates" (ICML 2024), algorithm 2, as optax 0.2.8 computes it, but for one thing: optax
    makes no step where sum(m * u) is below 2.2e-16, however long the step would be.
    """

    _takes_value = True
    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "lower_bound": FINITE,
        "adapt_lower_bound": Flag(),
    }
    _lr_scalars = ("lr", "decay")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        lower_bound: float = 0.0,
        adapt_lower_bound: bool = False,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            lower_bound=lower_bound,
            adapt_lower_bound=adapt_lower_bound,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return momo_adam.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        root = sqrt(one_minus_power(beta2, t))
        return _inputs(options, beta1, 1.0) | {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps": root * or_guard(options["eps"], guard),
            "decay": lr * options["weight_decay"],
            "lr": lr * root / one_minus_power(beta1, t),
        }

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        return {"bound": options["lower_bound"]}

    _smallest_denominator = staticmethod(eps_alone)

    @staticmethod
    def _review(options: Options) -> None:
        if callable(options["betas"][0]):
            raise ValueError(
                "MoMoAdam: the loss is averaged by one share in all groups, so betas[0] must be a "
                f"number; got betas[0]={options['betas'][0]!r}"
            )
