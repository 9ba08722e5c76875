"""Optimizers that keep less than a number per element: averages by row and by column."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    FRACTION,
    NONNEGATIVE,
    POSITIVE,
    Decay,
    Maybe,
    Number,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import at_least, at_most, or_guard, power, sqrt
from fastopt_kernels import ArrayRule, adafactor, came, sm3


class Adafactor(Optimizer):
    """Adafactor: squares of gradients averaged by row and by column, steps in the size of arrays.

    ::

        w <- t^beta2_decay                               1 in the first step
        r <- r + w * (mean of grad^2 by row - r)         r, c = 0 at first
        c <- c + w * (mean of grad^2 by column - c)
        s <- r * c / max(mean of r, eps1)                of vectors and numbers v instead:
        v <- v + w * (grad^2 - v)                        v = 0 at first, s = v
        u <- grad / sqrt(max(s, eps1^2))
        u <- u / max(1, rms(u) / d)
        p <- p - lr * weight_decay * p - min(lr, 1 / sqrt(t)) * max(eps2, rms(p)) * u

    Here p is the parameter, grad its gradient, w the share of the newest square in the averages, r
    and c the averages by row and by column, s what they say of each element's average, and u the
    gradient divided by its root; vectors and numbers have v, the average by element.

    t counts the steps of a parameter from 1, and rms is the root of the mean of squares over the
    whole array; that of p is from before the decay. Of arrays with more than two axes the last two
    are rows and columns, and there is an r and a c for each of the matrices that they make.
    A matrix of n rows and m columns has n + m numbers of state, ``r`` of shape (n, 1) and ``c`` of
    shape (1, m).

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, of any shape.
        lr: the largest relative step, >= 0: a step has at most about lr times the size of the
            parameter; a number, or a function of the step number (0 for the first step).
        beta2_decay: how fast the averages slow down, <= 0; 0 keeps no squares of earlier steps.
        eps1: the least root of s, >= 0, in units of the gradient; None: the spacing of numbers at 1
            in the dtype of the arithmetic (1.2e-7 in float32, 2.2e-16 in float64), and what is too
            small to be squared counts as the smallest that is not.
        eps2: the least size that a parameter is taken to have, >= 0, in units of the parameter.
        d: the largest root mean square of u, >= 1.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0; or a
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

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"
    (2018), algorithm 4 as PyTorch 2.13 computes it: lr in the place of the paper's 0.01, a decay,
    and eps1 in the denominators, where the paper adds it to the squares, as optax and keras do;
    these average in float32 (4e-8 of the way off after 10 steps). optax factors the two longest
    axes, and only where both have 128 elements or more (46 % of the way off for a matrix of 3 rows
    and 4 columns), and does not limit lr by 1 / sqrt(t).
    """

    _checks = {
        "beta2_decay": Number(high=0.0),
        "eps1": Maybe(NONNEGATIVE),
        "eps2": NONNEGATIVE,
        "d": Number(low=1.0),
    }
    _lr_scalars = ("rho",)
    _vanishing_scalars = ("decay",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        beta2_decay: float = -0.8,
        eps1: float | None = None,
        eps2: float = 1e-3,
        d: float = 1.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta2_decay=beta2_decay,
            eps1=eps1,
            eps2=eps2,
            d=d,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return adafactor.rule(options["eps1"] is None)

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        eps1 = options["eps1"]
        return {
            "one_minus_beta2": power(float(t), options["beta2_decay"]),
            "rho": at_most(lr, power(float(t), -0.5)),
            "eps1": guard if eps1 is None else at_least(eps1, guard),
            "eps2": options["eps2"],
            "d": options["d"],
            "decay": lr * options["weight_decay"],
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return 0.0  # the product of two averages is divided by: neither is small beside eps1 alone


class CAME(Optimizer):
    """CAME: Adafactor's steps, averaged, and shorter where they are far from their average.

    ::

        p   <- p - lr * weight_decay * p
        r   <- beta2 * r + (1 - beta2) * (mean of grad^2 + eps1 by row)
        c   <- beta2 * c + (1 - beta2) * (mean of grad^2 + eps1 by column)
        u   <- grad / sqrt(r * c / mean of r)            of vectors and numbers v instead:
        v   <- beta2 * v + (1 - beta2) * (grad^2 + eps1)     u = grad / sqrt(v)
        u   <- u / max(1, rms(u) / clip_threshold)
        m   <- beta1 * m + (1 - beta1) * u
        sr  <- beta3 * sr + (1 - beta3) * (mean of (u - m)^2 + eps2 by row)
        sc  <- beta3 * sc + (1 - beta3) * (mean of (u - m)^2 + eps2 by column)
        p   <- p - lr * m / sqrt(sr * sc / mean of sr)   vectors and numbers: p - lr * m

    Here p is the parameter, grad its gradient, r and c the averages of its squares by row and by
    column, v that by element, u the gradient divided by their root, m the average of u, and sr and
    sc the averages of how far u is from m, squared, by row and by column. beta1 and beta2 are
    ``betas``.

    All averages are 0 at first and not corrected; rms is the root of the mean of squares over the
    whole array. Of arrays with more than two axes the last two are rows and columns, and each of
    the matrices that they make has averages of its own.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, of any shape.
        lr: learning rate, >= 0, in units of the parameter; a number, or a function of the step
            number (0 for the first step).
        betas: shares of m, and of r, c and v, that are kept, in [0, 1); each of them may be a
            function of the step number.
        beta3: share of sr and sc that is kept, in [0, 1).
        eps1: added to squares of gradients, > 0, in units of the gradient squared.
        eps2: added to squares of differences of steps, > 0, without a unit.
        clip_threshold: the largest root mean square of u, > 0.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0; or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, cautious_decay, l1, seed,
            backend. state_dtype is "float64" or None. It has no stochastic_rounding, cautious,
            mask_zero or complex_moment.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Luo et al., "CAME: Confidence-guided Adaptive Memory Efficient Optimization" (2023),
    algorithm 2, as its authors' package came-pytorch 0.1.3 computes it; pytorch_optimizer has the
    same numbers. sr and sc are R and C of the paper.
    """

    _checks = {
        "betas": BETAS,
        "beta3": FRACTION,
        "eps1": POSITIVE,
        "eps2": POSITIVE,
        "clip_threshold": POSITIVE,
    }
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 2e-4,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        beta3: float = 0.9999,
        eps1: float = 1e-30,
        eps2: float = 1e-16,
        clip_threshold: float = 1.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            beta3=beta3,
            eps1=eps1,
            eps2=eps2,
            clip_threshold=clip_threshold,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return came.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "one_minus_beta3": 1.0 - options["beta3"],
            "eps1": options["eps1"],
            "eps2": options["eps2"],
            "clip_threshold": options["clip_threshold"],
            "lr": lr,
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return sqrt(at_most(options["eps1"], options["eps2"]))


class SM3(Optimizer):
    """SM3: Adagrad with a sum for each place along each axis in the place of one per element.

    ::

        v   <- grad^2 + min over the axes k of ak        at an element's place along each axis
        m   <- momentum * m + (1 - momentum) * grad / sqrt(v + eps)      m = 0 at first
        ak  <- max of v over all other axes              ak = 0 at first
        p   <- p - lr * m

    Here p is the parameter, grad its gradient, ak (a0, a1, ...) what is kept for the places along
    axis k, v the bound of the sum of squares that they give each element, and m the average of the
    divided gradients.

    A matrix of n rows and m columns has ``a0`` of n numbers and ``a1`` of m, beside the momentum.
    Vectors and numbers have ``a0`` alone, in their shape: there it is Adagrad.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, and have at most 8 axes.
        lr: learning rate, >= 0, in units of the parameter: no step is longer; a number, or a
            function of the step number (0 for the first step).
        momentum: share of the average of steps that is kept, in [0, 1), or a function of the step
            number.
        eps: added to v, >= 0, in units of the gradient squared; 0 leaves only a guard that makes
            0/0 zero. Or a function of the step number, whose values are above 0.
        weight_decay: coefficient of the L2 term that is added to the gradient, >= 0; or a function
            of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite,
            capturable, master_weights, state_dtype, l1, seed, backend. state_dtype is "float64" or
            None. It has no decoupled_lr, stochastic_rounding, cautious, cautious_decay, mask_zero
            or complex_moment.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Anil et al., "Memory-Efficient Adaptive Optimization" (2019), algorithm SM3-II with the
    momentum of its section 4, as optax computes it, whose momentum and eps these are;
    pytorch_optimizer has the same numbers at equal momentum and eps (its own are 0 and 1e-30).
    optax takes no numbers, arrays of shape ().
    """

    _checks = {"momentum": BETA, "eps": Schedulable(EPS)}
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 0.1,
        *,
        momentum: Scheduled = 0.9,
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, eps=eps, weight_decay=weight_decay, **common
        )

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return sm3.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "one_minus_momentum": 1.0 - options["momentum"],
            "eps": or_guard(options["eps"], guard * guard),
            "lr": lr,
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return sqrt(options["eps"])

    @staticmethod
    def _check_array(path: str, shape: tuple[int, ...], dtype: str) -> None:
        if len(shape) > sm3.AXES:
            raise ValueError(
                f"{path} must have at most {sm3.AXES} axes; got {dtype} of shape {shape}. Join "
                "some of them by a view: array.reshape(...)"
            )
