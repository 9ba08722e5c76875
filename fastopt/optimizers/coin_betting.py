"""COCOB: no learning rate, but bets on the next gradient."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    EPS,
    POSITIVE,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, or_guard
from fastopt_kernels import Rule, cocob


class COCOB(Optimizer):
    """COCOB: each element bets on its next gradient, and stands where its stake puts it.

    ::

        g      <- lr * (grad + weight_decay * p)
        peak   <- max(peak, eps, |g|)                    peak = 0 at first
        total  <- total + |g|                            total = 0 at first
        reward <- max(reward - g * (p - p0), 0)          reward = 0 at first; p0 is the first p
        theta  <- theta - g                              theta = 0 at first
        p      <- p0 + theta / max(total + peak, alpha * peak) * (peak + reward) / peak

    Here p is the parameter, grad its gradient, g that with the decay, times lr; peak is the largest
    size of g, total the sum of its sizes, reward what the bets have won, and theta minus the sum of
    g.

    A first step has the length 1 / alpha, whatever the gradient. With ``state_dtype`` p0 is kept in
    fewer bits too, and a parameter cannot be more exact than it.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: factor of the gradient, >= 0, without a unit; a constant one makes no difference unless
            gradients come near eps; a number, or a function of the step number (0 for the first
            step), by which later gradients count less.
        alpha: what the first steps are divided by, > 0, in inverse units of the parameter; or a
            function of the step number.
        eps: smallest scale of gradients, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr, no cautious_decay and no l1.

    Parameters are worked out anew from p0 in every step: what is written into them from outside
    (``rebind`` to other values, Lookahead, weights that are loaded by hand) is lost with the next.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Orabona and Tommasi, "Training Deep Networks without Learning Rates Through Coin
    Betting" (NeurIPS 2017), algorithm 2 (COCOB-Backprop), which has no lr and no eps, as optax
    0.2.8 computes it: its lr, 1 by default, multiplies the gradient too.
    """

    _checks = {"alpha": Schedulable(POSITIVE), "eps": Schedulable(EPS)}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1.0,
        *,
        alpha: Scheduled = 100.0,
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return cocob.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "first": 1.0 if t == 1 else 0.0,
            "alpha": options["alpha"],
            "eps": or_guard(options["eps"], guard),
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_alone)
