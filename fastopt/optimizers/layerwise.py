"""LAMB, StableAdamW, LARS and NovoGrad: steps that depend on the whole array they are for."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    POSITIVE,
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
from fastopt_kernels import Rule, lamb, lars, novograd, stable_adamw

# -------------------------------------------------------------------------------------------------
# LAMB: steps as long as the array.


class LAMB(Optimizer):
    """LAMB: Adam's direction, rescaled for each array to the length of the array itself.

    ::

        m  <- beta1 * m + (1 - beta1) * grad             m = 0 at first
        v  <- beta2 * v + (1 - beta2) * grad^2           v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t            both 1 without bias_correction
        u  <- (m / c1) / (sqrt(v / c2) + eps) + weight_decay * p
        trust <- |p| / |u|                               norms of the whole array; 1 if one is 0
        p  <- p - lr * trust * u

    Here p is the parameter, grad its gradient, m the average of gradients, v that of their squares,
    u Adam's step with the decay, trust what its length is multiplied by, and t the number of the
    step, from 1. c1 and c2 make up for the beginning of the averages at 0. beta1 and beta2 are
    ``betas``.

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
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

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

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# StableAdamW: shorter steps where the gradient outgrows its average.


class StableAdamW(Optimizer):
    """StableAdamW: AdamW whose step in an array is shorter where the gradient outgrows its average.

    ::

        m  <- averaged gradient, corrected               as below; m = v = 0 at first
        v  <- averaged squared gradient, corrected
        surprise <- sqrt(mean(grad^2 / max(v, eps^2)))   over the whole array
        rate <- lr / max(1, surprise)
        p  <- p - rate * weight_decay * p
        p  <- p - rate * m / (sqrt(v) + eps)

    Here p is the parameter, grad its gradient, m and v the averages of gradients and of their
    squares, surprise how much larger the gradient's squares are than usual, and rate the lr that is
    left.

    The averages are kept as they are after their correction: x <- x + share * (new - x), where the
    share is (1 - beta) / (1 - beta^t). The mean is summed in float64 in one order, so that the bits
    are the same on every backend; the parts of a complex number count as two elements.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, and up to 2.35 times it behind sudden large ones with the default
            betas); it scales the decay too; a number, or a function of the step number (0 for the
            first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number.
        eps: added to the denominator, and the least of sqrt(v) in the surprise, >= 0, in units of
            the gradient; 0 leaves only a guard that makes 0/0 zero. Or a function of the step
            number, whose values are above 0.
        weight_decay: share of the parameter that is taken off per step and unit of the array's
            rate, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, stochastic_rounding, cautious,
            l1, mask_zero, complex_moment, seed, backend. It has no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language
    models" (NeurIPS 2023), algorithm 2, as optimi (torch-optimi) computes it; pytorch_optimizer
    agrees at equal eps, whose default there is 1e-8.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS)}
    _lr_scalars = ("decay", "lr")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.99),
        eps: Scheduled = 1e-6,
        weight_decay: Scheduled = 1e-2,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return stable_adamw.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        return {
            "take1": (1.0 - beta1) / one_minus_power(beta1, t),
            "take2": (1.0 - beta2) / one_minus_power(beta2, t),
            "eps": or_guard(options["eps"], guard),
            "decay": lr * options["weight_decay"],
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# LARS: momentum whose steps are as long as a share of the array.


class LARS(Optimizer):
    """LARS: momentum of gradients that are rescaled to a share of the length of their array.

    ::

        trust <- trust_coefficient * |p| / (|grad| + weight_decay * |p| + eps)
        step <- lr * trust * (grad + weight_decay * p)
        v  <- momentum * v + step                        v = 0 at first
        p  <- p - v                                      or p - (momentum * v + step) if nesterov

    Here p is the parameter, grad its gradient, trust what brings that to a share of the length of
    p, step what is added, and v the sum of such steps, of which old ones fade.

    The norms are those of the whole array; trust is 1 if that of p, or the denominator, is 0. They
    are summed in float64 in one order, so that the bits are the same on every backend.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, without a unit: a factor of the share; a number, or a function of
            the step number (0 for the first step).
        momentum: share of v that is kept, in [0, 1), or a function of the step number.
        nesterov: look ahead by one step of momentum.
        trust_coefficient: share of its own length that an array moves by a step at lr = 1, > 0.
        eps: added to the denominator, >= 0, in units of the gradient's norm.
        weight_decay: coefficient of the L2 term, >= 0, which is rescaled with the gradient; or a
            function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (2017),
    algorithm 1: lr is inside v. It acts on every array. timm agrees with always_adapt=True, where
    neither lr changes nor a gradient is 0 (it decays by lr then), and optax 0.2.8 without weight
    decay: with it optax divides by |grad + weight_decay * p|. pytorch_optimizer leaves vectors
    alone.
    """

    _checks = {
        "momentum": BETA,
        "nesterov": Flag(),
        "trust_coefficient": POSITIVE,
        "eps": EPS,
    }
    _lr_scalars = ("lr",)
    _vanishing_scalars = ("weight_decay", "momentum", "ahead")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        momentum: Scheduled = 0.9,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            trust_coefficient=trust_coefficient,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return lars.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        nesterov = options["nesterov"]
        return {
            "weight_decay": options["weight_decay"],
            "momentum": options["momentum"],
            "ahead": options["momentum"] if nesterov else 1.0,
            "fresh": 1.0 if nesterov else 0.0,
            "lr": lr,
            "coefficient": options["trust_coefficient"],
            "norm_decay": options["weight_decay"],
            "eps": options["eps"],
        }


# -------------------------------------------------------------------------------------------------
# NovoGrad: one second moment for the whole array.


class NovoGrad(Optimizer):
    """NovoGrad: momentum of gradients over the root of one averaged squared norm for each array.

    ::

        v  <- beta2 * v + (1 - beta2) * |grad|^2         v = |grad|^2 at first; one number
        u  <- grad / (sqrt(v) + eps) + weight_decay * p
        m  <- beta1 * m + u                              m = u at first
        p  <- p - lr * m

    Here p is the parameter, grad its gradient, v the average of its squared norm, u the gradient
    over the root of v, with the decay, and m the sum of u, of which old ones fade. beta1 and beta2
    are ``betas``.

    With ``grad_averaging`` it is m <- beta1 * m + (1 - beta1) * u. The norm is that of the whole
    array; it is summed in float64 in one order, so that the bits are the same on every backend. v
    is float64, and is saved with the state.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter: the length of an array's step is about
            lr / (1 - beta1), or lr with grad_averaging; a number, or a function of the step number
            (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number.
        eps: added to the denominator, >= 0, in units of the gradient's norm; 0 leaves only a guard
            that makes 0/0 zero. Or a function of the step number, whose values are above 0.
        grad_averaging: take the share 1 - beta1 of what is new, from the second step on.
        weight_decay: share of the parameter that is added to the gradient after its division, >= 0,
            or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for
    Training of Deep Networks" (2019), algorithm 1, as optax 0.2.8 computes it, with its defaults;
    pytorch_optimizer agrees at equal betas, and has the same grad_averaging.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS), "grad_averaging": Flag()}
    _lr_scalars = ("lr",)
    _vanishing_scalars = ("weight_decay", "keep")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.25),
        eps: Scheduled = 1e-8,
        grad_averaging: bool = False,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            grad_averaging=grad_averaging,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return novograd.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        averaged = options["grad_averaging"] and t > 1
        return {
            "keep": beta1,
            "take": 1.0 - beta1 if averaged else 1.0,
            "weight_decay": options["weight_decay"],
            "lr": lr,
            "weight": 1.0 - beta2 if t > 1 else 1.0,
            "eps": or_guard(options["eps"], guard),
        }

    _smallest_denominator = staticmethod(eps_alone)
