"""AdaBound: Adam that becomes SGD."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    POSITIVE,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
    as_float,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import adam_scalars, eps_alone, or_guard
from fastopt_kernels import Rule, adabound, adabound_amsbound


class AdaBound(Optimizer):
    """AdaBound: Adam whose rates are cut off by bounds that close in on the rate of SGD.

    ::

        g  <- grad + weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        vmax <- max(vmax, v)                             if amsbound; it then stands for v below
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        rate  <- lr * sqrt(c2) / c1 / (sqrt(v) + eps)
        final <- final_lr * lr / base_lr
        lower <- final * (1 - 1 / (gamma * t + 1)),  upper <- final * (1 + 1 / (gamma * t))
        p  <- p - min(max(rate, lower), upper) * m

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, vmax the largest v so far, and t the number of the step, from 1. c1 and c2 make up
    for the beginning of the averages at 0; rate is Adam's for each element, which is kept between
    lower and upper, and final is what both of these come to. beta1 and beta2 are ``betas``.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate of the first steps, >= 0, in units of the parameter; a number, or a
            function of the step number (0 for the first step), which scales the bounds too.
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        final_lr: the rate of SGD in the end, > 0, in units of the parameter over the gradient,
            while lr is base_lr.
        gamma: how fast the bounds close in, > 0, per step: after 1 / gamma steps they are final / 2
            and 2 * final.
        eps: added to the denominator before v is corrected, >= 0, in units of the gradient; 0
            leaves only a guard that makes 0/0 zero. Or a function of the step number, whose values
            are > 0.
        amsbound: divide by the largest v so far.
        base_lr: the lr with which final_lr is meant, > 0; None for lr as it is given here, which
            must be a number then, and > 0. A group with an lr of its own gives its own base_lr.
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

    Source: Luo et al., "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR 2019),
    algorithms 1 and 3, as the authors' code computes it, with its corrections and without the
    paper's lr / sqrt(t). pytorch_optimizer adds 1e-15 under the root, which is 8e-9 of the
    parameter where gradients are tiny; it counts the steps of a group, which is 2 % of the way in
    ten steps where some gradients are None.
    """

    _checks = {
        "betas": BETAS,
        "final_lr": POSITIVE,
        "gamma": POSITIVE,
        "eps": Schedulable(EPS),
        "amsbound": Flag(),
        "base_lr": POSITIVE,
    }

    _lr_scalars = ("step_size", "lower", "upper")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: Scheduled = 1e-8,
        amsbound: bool = False,
        base_lr: float | None = None,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        if base_lr is None and callable(lr):
            raise ValueError(
                "AdaBound: base_lr must be a number if lr is a function: the lr with which "
                f"final_lr is meant, such as its first or largest value; got lr={lr!r}"
            )
        if base_lr is None and as_float(lr) == 0.0:
            raise ValueError(
                "AdaBound: base_lr must be given if lr is 0: the lr with which final_lr is meant, "
                "such as its largest value; got lr=0"
            )
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            final_lr=final_lr,
            gamma=gamma,
            eps=eps,
            amsbound=amsbound,
            base_lr=lr if base_lr is None else base_lr,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adabound_amsbound.RULE if options["amsbound"] else adabound.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        final = lr * (options["final_lr"] / options["base_lr"])
        way = options["gamma"] * t
        return {
            **adam_scalars(options["betas"], options["eps"], lr, t, guard),
            "eps": or_guard(options["eps"], guard),  # beside the root of v as it is
            "lower": final * (way / (way + 1.0)),
            "upper": final * (1.0 + 1.0 / way),
        }

    _smallest_denominator = staticmethod(eps_alone)
