"""OptimisticAdam: steps that guess the next one, for games of two players."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    NONNEGATIVE,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, one_minus_power, or_guard, sqrt
from fastopt_kernels import Rule, optimistic_adam


class OptimisticAdam(Optimizer):
    """OptimisticAdam: the steps of Adam, each led on by how much it differs from the one before.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        u' <- (m / c1) / (sqrt(v / c2) + eps)
        p  <- p - lr * (u' + optimism * (u' - u))        u = u' at first
        u  <- u'

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, u' the step of Adam, u the one before, and t the number of the step, from 1. c1 and
    c2 make up for the beginning of the averages at 0. beta1 and beta2 are ``betas``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; a number, or a function of the step
            number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        optimism: how far a step is led on, >= 0, or a function of the step number; with 0 it is
            fastopt.Adam, with 1 a step is 2 * u' - u.
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

    Source: Daskalakis, Ilyas, Syrgkanis and Zeng, "Training GANs with Optimism" (ICLR 2018),
    algorithm 1, with the first step of u' alone, as optax 0.2.8 computes it (optimistic_adam_v2,
    whose alpha is a factor of lr, and whose beta is optimism * alpha) with nesterov=False. Its
    default of nesterov=True looks ahead in m, and ends 9 to 14 % of the way off after 30 steps.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS), "optimism": Schedulable(NONNEGATIVE)}

    _lr_scalars = ("lr",)
    _vanishing_scalars = ("lead",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        optimism: Scheduled = 1.0,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            optimism=optimism,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return optimistic_adam.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        root = sqrt(one_minus_power(beta2, t))
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps": root * or_guard(options["eps"], guard),
            "correct": root / one_minus_power(beta1, t),
            "lead": options["optimism"] if t > 1 else 0.0,
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_alone)
