"""Shampoo, and SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    FRACTION,
    POSITIVE,
    Decay,
    Flag,
    Maybe,
    OneOf,
    Options,
    Schedulable,
    Scheduled,
    Value,
    Whole,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, one_minus_power, or_guard, sqrt
from fastopt_kernels import ArrayRule, shampoo, soap


class Shampoo(Optimizer):
    """Shampoo: gradients multiplied along every axis by a root of what was seen along it.

    ::

        g  <- grad + weight_decay * p
        Gk <- Gk + g_k @ g_k.T                          Gk = 0 at first
        Rk <- (Gk + eps * 1)^-power                     at an interval, and in the first step
        u  <- g multiplied by Rk along each axis        R0 @ g @ R1 for a matrix
        u  <- u * |g| / |u|                             with grafting="sgd"
        m  <- momentum * m + u                          m = 0 at first
        p  <- p - lr * m

    Here p is the parameter, grad its gradient, g that with the decay, u the gradient after the
    multiplications, and m the sum of u, of which old ones fade.

    There is a Gk for every axis: g_k is the gradient with that axis in rows and all others in
    columns. power is 1 / (2 * axes): 1/4 for a matrix, and 1/2 for a vector, for which this is
    Adagrad with a whole matrix. Axes longer than ``max_precondition_dim`` have neither Gk nor Rk,
    which take 2 * n * n numbers of state for n places; where no axis has them, and for arrays
    without axes, steps are those of the gradient. |g| is the root of the sum of squares.

    Everything is computed in the precision of the arithmetic, Rk by the eigenvalues of Gk: in
    float32 an eps below 1e-7 of the largest eigenvalue is lost. The host decides what is
    decomposed, on CuPy too: ``capturable`` is refused there and elsewhere, ``grad_scale`` is a
    number, and a step with ``max_grad_norm`` or on_nonfinite="skip" waits for the device.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, and have at most 8 axes.
        lr: learning rate, >= 0, in units of the parameter, or as SGD's with grafting; a number, or
            a function of the step number (0 for the first step).
        momentum: share of m that is kept, in [0, 1), or a function of the step number.
        eps: added to every eigenvalue, > 0, in units of the squared gradient; or a function of the
            step number.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        power: what the matrices are raised to, times -1, > 0; None: 1 / (2 * axes).
        precondition_frequency: number of steps between roots, from 1 on.
        max_precondition_dim: the longest axis that has matrices, from 1 on; it stays as it is.
        grafting: "none", or "sgd": each array's step is as long as its gradient.
        common: what every optimizer takes, see ``Common``: lr_scale, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, master_weights, state_dtype, l1, seed, backend. state_dtype is "float64"
            or None.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        numpy.linalg.LinAlgError: from a step whose eigenvalues NumPy does not find; it has changed
            nothing.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization" (ICML 2018),
    algorithm 2; the numbers are those of pytorch_optimizer 4.1 without momentum and with roots in
    every step. At an interval it moves nothing before the first root; its momentum mixes the last
    step into the gradient before that is preconditioned.
    """

    _checks = {
        "momentum": BETA,
        "eps": Schedulable(POSITIVE),
        "power": Maybe(POSITIVE),
        "precondition_frequency": Whole(1),
        "max_precondition_dim": Whole(1),
        "grafting": OneOf(("none", "sgd")),
    }
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.0,
        eps: Scheduled = 1e-6,
        weight_decay: Scheduled = 0.0,
        power: float | None = None,
        precondition_frequency: int = 1,
        max_precondition_dim: int = 10000,
        grafting: shampoo.Grafting = "none",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            eps=eps,
            weight_decay=weight_decay,
            power=power,
            precondition_frequency=precondition_frequency,
            max_precondition_dim=max_precondition_dim,
            grafting=grafting,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return shampoo.rule(options["max_precondition_dim"], options["power"], options["grafting"])

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "momentum": options["momentum"],
            "eps": options["eps"],
            "lr": lr,
            "refresh": float((t - 1) % options["precondition_frequency"] == 0),
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return sqrt(options["eps"])

    @staticmethod
    def _check_array(path: str, shape: tuple[int, ...], dtype: str) -> None:
        SOAP._check_array(path, shape, dtype)


class SOAP(Optimizer):
    """SOAP: Adam in Shampoo's eigenbasis, which is brought up to date at an interval.

    ::

        Gk <- shampoo_beta * Gk + (1 - shampoo_beta) * grad_k @ grad_k.T     Gk = 0 at first
        Q  <- eigenvectors of the Gk                   in the first step, which moves nothing
        m  <- beta1 * m + (1 - beta1) * grad           m = v = 0 at first
        v  <- beta2 * v + (1 - beta2) * (grad in Q)^2
        u  <- ((m in Q) / (sqrt(v) + eps)) out of Q
        u  <- u / (rms(u) + eps)                       if normalize_grads
        p  <- p - lr * c * u                           c = sqrt(1 - beta2^s) / (1 - beta1^s)
        p  <- p - lr * weight_decay * p                or 1 without correct_bias

    Here p is the parameter, grad its gradient, Gk the averages of products along the axes, Q their
    eigenvectors, m the average of gradients, v that of the squares of gradients seen in Q, u Adam's
    step, and c what makes up for the beginning of m and v at 0. beta1 and beta2 are ``betas``.

    t counts the steps of a parameter from 1, and s = t - 1. There is a Gk for every axis: grad_k is
    the gradient with that axis in rows and all others in columns, so that a matrix has
    grad @ grad.T and grad.T @ grad, and "in Q" is multiplied by the eigenvectors along each axis:
    Q0.T @ grad @ Q1. In the first step a parameter is given Gk and Q, and nothing else: neither it
    nor m and v change. In all others Gk is updated last; where ``precondition_frequency`` divides s
    each Q then becomes that of the QR decomposition of Gk @ Q, one power iteration, with columns
    sorted by the size of their eigenvalues, and v with them.

    Vectors and numbers, and axes longer than ``max_precondition_dim``, have neither Gk nor Q: where
    no axis has them this is Adam, a step later. An axis of n places takes 2 * n * n numbers of
    state, ``gram0`` and ``basis0`` for the first one.

    Everything is computed in the precision of the arithmetic. Eigenvectors have no sign of their
    own, and those of equal eigenvalues (0 in particular: a gradient that is no more than a few
    outer products) are any basis of their space: there the path depends on the last bits, and on
    the library and device. The host decides what is decomposed, on CuPy too: ``capturable`` is
    refused there and elsewhere, ``grad_scale`` is a number, and a step with ``max_grad_norm`` or
    on_nonfinite="skip" waits for the device.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, and have at most 8 axes.
        lr: learning rate, >= 0, in units of the parameter; a number, or a function of the step
            number (0 for the first step).
        betas: shares of m and v that are kept, in [0, 1); each may be a function of the step
            number.
        shampoo_beta: share of Gk that is kept, in [0, 1); None: that of v.
        eps: added to the denominators, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, after
            the step; or a function of the step number.
        precondition_frequency: number of steps between updates of the eigenvectors, from 1 on.
        max_precondition_dim: the longest axis that has eigenvectors, from 1 on; it stays as it is.
        normalize_grads: divide each step by its root mean square.
        correct_bias: correct m and v for their beginning at 0.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, master_weights, state_dtype, l1, seed, backend.
            state_dtype is "float64" or None.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        numpy.linalg.LinAlgError: from a step whose eigenvectors NumPy does not find, as it can be
            with NaN in the first gradient (under ``on_nonfinite="propagate"``); it has changed
            nothing.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024), algorithm 3,
    as pytorch_optimizer 4.1 computes it, but for the QR decomposition, which is in float32 there.
    It counts the steps of a group: a parameter whose first gradient comes later than others' begins
    and moves in one step there. Its options to merge axes and to precondition vectors are not here.
    """

    _checks = {
        "betas": BETAS,
        "shampoo_beta": Maybe(FRACTION),
        "eps": Schedulable(EPS),
        "precondition_frequency": Whole(1),
        "max_precondition_dim": Whole(1),
        "normalize_grads": Flag(),
        "correct_bias": Flag(),
    }
    _lr_scalars = ("step_size",)
    _vanishing_scalars = ("decay",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 3e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.01,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10000,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            shampoo_beta=shampoo_beta,
            eps=eps,
            weight_decay=weight_decay,
            precondition_frequency=precondition_frequency,
            max_precondition_dim=max_precondition_dim,
            normalize_grads=normalize_grads,
            correct_bias=correct_bias,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return soap.rule(options["max_precondition_dim"], options["normalize_grads"])

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        shampoo_beta = options["shampoo_beta"]
        made = max(t - 1, 1)  # the first step makes none
        step_size = lr
        if options["correct_bias"]:
            step_size = lr * sqrt(one_minus_power(beta2, made)) / one_minus_power(beta1, made)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "one_minus_shampoo_beta": 1.0 - (beta2 if shampoo_beta is None else shampoo_beta),
            "eps": or_guard(options["eps"], guard),
            "step_size": step_size,
            "decay": lr * options["weight_decay"],
            "begins": float(t == 1),
            "refresh": float(t > 1 and (t - 1) % options["precondition_frequency"] == 0),
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return eps_alone(options)

    @staticmethod
    def _check_array(path: str, shape: tuple[int, ...], dtype: str) -> None:
        if len(shape) > soap.AXES:
            raise ValueError(
                f"{path} must have at most {soap.AXES} axes; got {dtype} of shape {shape}. Join "
                "some of them by a view: array.reshape(...)"
            )
