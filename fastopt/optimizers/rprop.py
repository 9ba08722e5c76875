"""Rprop: steps by signs alone, each element with a length of its own."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    POSITIVE,
    Number,
    Options,
    Pair,
    Schedulable,
    Scheduled,
    Value,
    exceeds,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import Rule, rprop

_SHRINK = Schedulable(Number(low=0.0, high=1.0, low_open=True, high_open=True))
_GROW = Schedulable(Number(low=1.0, low_open=True))


class Rprop(Optimizer):
    """Rprop: steps that grow while the gradient keeps its sign, and become short where it turns.

    ::

        g    <- grad + weight_decay * p
        length <- lr                                     at a parameter's first step
        length <- etas[1] * length                       where g and prev have the same sign
        length <- etas[0] * length                       where they have different ones
        length <- min(max(length, step_sizes[0]), step_sizes[1])
        prev <- g, and 0 where the signs differed        prev = 0 at first
        p    <- p - length * sign(prev)                  sign(0) = 0

    Here p is the parameter, grad its gradient, g that with the decay, length the step of each
    element, and prev the g of the step before.

    An element whose gradient has turned waits for a step, and then goes on with the shorter one. It
    is meant for gradients of all data: noise turns signs.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: length of a parameter's first step, >= 0, in units of the parameter; a number, or a
            function of the step number (0 for the first step). What it is later changes nothing.
        etas: what lengths are multiplied by, less than 1 and > 0 where the sign has turned, and
            above 1 where it has not; or functions of the step number.
        step_sizes: the smallest, >= 0, and the largest length, > 0 and not less, in units of the
            parameter; or functions of the step number.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number; signs
            turn with it. PyTorch has none.
        common: see ``Common``: lr_scale, maximize, trainable, bounds, reset_at_bounds,
            adaptive_clip, centralize, max_grad_norm, clip_value, clip_each, on_nonfinite, members,
            capturable, master_weights, state_dtype, stochastic_rounding, cautious, l1, mask_zero,
            complex_moment, seed, backend. It has no decoupled_lr and no cautious_decay.

    The parts of a complex number have a sign and a length each.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Riedmiller and Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The
    RPROP Algorithm" (ICNN 1993), without the way back after a turn and with prev = 0 there: iRprop-
    of Igel and Huesken (2000), as PyTorch 2.13 computes it. PyTorch multiplies gradients, so that
    two below 1e-162 (1e-23 in float32) have no common sign; here they have. optax is 43 % of
    the way away after ten steps.
    """

    _checks = {
        "etas": Pair(_SHRINK, _GROW),
        "step_sizes": Pair(Schedulable(NONNEGATIVE), Schedulable(POSITIVE)),
    }

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        etas: tuple[Scheduled, Scheduled] = (0.5, 1.2),
        step_sizes: tuple[Scheduled, Scheduled] = (1e-6, 50.0),
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, etas=etas, step_sizes=step_sizes, weight_decay=weight_decay, **common
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return rprop.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        shrink, grow = options["etas"]
        smallest, largest = options["step_sizes"]
        return {
            "first": 1.0 if t == 1 else 0.0,
            "shrink": shrink,
            "grow": grow,
            "smallest": smallest,
            "largest": largest,
            "lr": lr,
        }

    @staticmethod
    def _review(options: Options) -> None:
        smallest, largest = options["step_sizes"]
        if not callable(smallest) and not callable(largest) and exceeds(smallest, largest):
            raise ValueError(
                "Rprop: step_sizes must be a pair of which the first is at most the second; got "
                f"{options['step_sizes']}"
            )

    @staticmethod
    def _smallest_denominator(options: Options) -> float:
        return 0.0  # the smallest gradient makes as long a step as the largest
