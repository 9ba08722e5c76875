"""QHM and QHAdam: steps by weighted means of averages and of what has just come into them."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    SHARE,
    SHARES,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, one_minus_power, or_guard
from fastopt_kernels import Rule, qhadam, qhm

# -------------------------------------------------------------------------------------------------
# QHM: between plain gradient descent and momentum.


class QHM(Optimizer):
    """QHM: steps by a weighted mean of the gradient and its average.

    ::

        g <- grad + weight_decay * p
        m <- momentum * m + (1 - momentum) * g           m = 0 at first
        p <- p - lr * (nu * m + (1 - nu) * g)

    Here p is the parameter, grad its gradient, g that with the decay, and m the average of g.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter over those of the gradient; a number, or
            a function of the step number (0 for the first step).
        momentum: share of the average that is kept, in [0, 1), or a function of the step number.
        nu: weight of the average, in [0, 1], or a function of the step number: with 0 it is plain
            gradient descent, with 1 fastopt.Momentum, with the same number as momentum Nesterov's.
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

    Source: Ma and Yarats, "Quasi-Hyperbolic Momentum and Adam for Deep Learning" (ICLR 2019),
    section 3, with the momentum and nu that its appendix recommends; pytorch_optimizer agrees,
    whose defaults of 0 and 1 are plain gradient descent.
    """

    _checks = {"momentum": BETA, "nu": SHARE}

    _lr_scalars = ("of_m", "of_grad")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        momentum: Scheduled = 0.999,
        nu: Scheduled = 0.7,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, nu=nu, weight_decay=weight_decay, **common
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return qhm.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        nu: Value = options["nu"]
        return {
            "one_minus_momentum": 1.0 - options["momentum"],
            "of_m": lr * nu,
            "of_grad": lr * (1.0 - nu),
        }


# -------------------------------------------------------------------------------------------------
# QHAdam: the same with both averages of Adam.


class QHAdam(Optimizer):
    """QHAdam: Adam with weighted means of each average and what has just come into it.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        up <- nu1 * m / c1 + (1 - nu1) * g
        p  <- p - lr * up / (sqrt(nu2 * v / c2 + (1 - nu2) * g^2) + eps)

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, up the numerator, and t the number of the step, from 1. c1 and c2 make up for the
    beginning of the averages at 0. beta1 and beta2 are ``betas``, nu1 and nu2 ``nus``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; a number, or a function of the step
            number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        nus: weights of the two averages, each in [0, 1], or a function of the step number; with 1
            and 1 it is fastopt.Adam.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
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

    Source: Ma and Yarats, "Quasi-Hyperbolic Momentum and Adam for Deep Learning" (ICLR 2019),
    section 4, with the betas and nus that its appendix recommends. pytorch_optimizer 4.1.0 agrees
    where its weights are made float64; as it is they are float32, which puts it 6e-8 to 3e-7 off
    after 30 steps in float64.
    """

    _checks = {"betas": BETAS, "nus": SHARES, "eps": Schedulable(EPS)}

    _lr_scalars = ("lr",)
    _vanishing_scalars = ("of_m", "of_v")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.995, 0.999),
        nus: tuple[Scheduled, Scheduled] = (0.7, 1.0),
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, nus=nus, eps=eps, weight_decay=weight_decay, **common
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return qhadam.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        nu1, nu2 = options["nus"]
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "of_m": nu1 / one_minus_power(beta1, t),
            "of_grad": 1.0 - nu1,
            "of_v": nu2 / one_minus_power(beta2, t),
            "of_square": 1.0 - nu2,
            "eps": or_guard(options["eps"], guard),
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_alone)
