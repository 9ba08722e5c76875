"""Signum and Lion: steps of one length, whose direction is a sign."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import BETA, BETAS, Decay, Options, Scheduled, Value
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import Rule, lion, signum

# -------------------------------------------------------------------------------------------------
# Signum: the sign of the averaged gradient.


class Signum(Optimizer):
    """Signum: steps of length lr in the direction of the averaged gradient's signs.

    ::

        g <- grad + weight_decay * p
        m <- momentum * m + (1 - momentum) * g           m = 0 at first
        p <- p - lr * sign(m)                            sign(0) = 0

    Here p is the parameter, grad its gradient, g that with the decay, and m the average of g.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter: every element moves by it in every
            step; a number, or a function of the step number (0 for the first step).
        momentum: share of the average that is kept, in [0, 1), or a function of the step number;
            with 0 it is sign SGD.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    The parts of a complex number have a sign each.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Bernstein, Wang, Azizzadenesheli and Anandkumar, "signSGD: Compressed Optimisation for
    Non-Convex Problems" (ICML 2018), algorithm 2. optax computes its signs from an average that
    is not multiplied by 1 - momentum, which are the same; pytorch_optimizer's SignSGD agrees.
    """

    _checks = {"momentum": BETA}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.9,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return signum.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {"one_minus_momentum": 1.0 - options["momentum"], "lr": lr}

    @staticmethod
    def _smallest_denominator(options: Options) -> float:
        return 0.0  # the smallest average makes as long a step as the largest


# -------------------------------------------------------------------------------------------------
# Lion: the sign of an average that forgets faster than the one it keeps.


class Lion(Optimizer):
    """Lion: steps of length lr by the signs of an average that leans towards the last gradient.

    ::

        p <- p - lr * weight_decay * p
        c <- beta1 * m + (1 - beta1) * grad              m = 0 at first
        m <- beta2 * m + (1 - beta2) * grad
        p <- p - lr * sign(c)                            sign(0) = 0

    Here p is the parameter, grad its gradient, m the average of gradients, and c the average whose
    sign is the step: of m and the newest gradient. beta1 and beta2 are ``betas``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter: every element moves by it in every
            step, so that it is 3 to 10 times smaller than for Adam; a number, or a function of the
            step number (0 for the first step).
        betas: shares of the average that are kept, in the step and from step to step, each in
            [0, 1), or a function of the step number; equal ones are Tiger.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number; 3 to 10 times larger than for AdamW.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, members, capturable, master_weights, state_dtype,
            stochastic_rounding, cautious, cautious_decay, l1, mask_zero, complex_moment, seed,
            backend.

    The parts of a complex number have a sign each.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (NeurIPS 2023), program 1,
    as optax 0.2.8 computes it, whose default of weight_decay is 1e-3; the authors' lion-pytorch
    agrees, with 0.
    """

    _checks = {"betas": BETAS}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-4,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.99),
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return lion.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        return {"one_minus_beta1": 1.0 - beta1, "one_minus_beta2": 1.0 - beta2, "lr": lr}

    @staticmethod
    def _smallest_denominator(options: Options) -> float:
        return 0.0  # the smallest average makes as long a step as the largest
