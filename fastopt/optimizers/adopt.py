"""LaProp and ADOPT: gradients that are divided first and averaged then."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    NONNEGATIVE,
    Decay,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, one_minus_power, or_guard, power, sqrt
from fastopt_kernels import Rule, adopt, laprop

# -------------------------------------------------------------------------------------------------
# LaProp: momentum of what RMSprop makes of gradients.


class LaProp(Optimizer):
    """LaProp: gradients over the root of their averaged squares, and then their average.

    ::

        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first; g is the gradient
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t
        m  <- beta1 * m + (1 - beta1) * g / (sqrt(v / c2) + eps)     m = 0 at first
        p  <- p - lr * m / c1
        p  <- p - lr * weight_decay * p

    Here p is the parameter, g its gradient, v the average of its squares, m that of the gradients
    after they were divided, and t the number of the step, from 1. c1 and c2 make up for the
    beginning of the averages at 0. beta1 and beta2 are ``betas``.

    The division comes first, so that any two betas go together: no step is longer than
    lr / sqrt(1 - beta2), where those of Adam have no bound if beta1^2 > beta2.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, and never above lr / sqrt(1 - beta2)); a number, or a function of
            the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        weight_decay: share of the parameter that is taken off after each step, per unit of lr,
            >= 0, or a function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, members, capturable, master_weights, state_dtype, stochastic_rounding,
            cautious, l1, mask_zero, complex_moment, seed, backend. It has no cautious_decay.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Ziyin, Wang and Ueda, "LaProp: Separating Momentum and Adaptivity in Adam" (2020),
    algorithm 1, as timm computes it while lr stays the same. timm, as the authors' code, has each
    step's lr in m, and divides by the same average of lr: after a rise of lr to 50 times, what came
    before counts for less than here, and ten steps later it is 95 % of the way away. Its correction
    of v is in float32 unless that is not PyTorch's default (3e-8). pytorch_optimizer adds 1e-15
    under the root, has step sizes in float32 and eps before the correction: 6e-9 by default, 72 %
    with eps=0.1.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS)}

    _lr_scalars = ("step_size", "decay")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 4e-4,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-15,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return laprop.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "rule"  # after the step

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        root = sqrt(one_minus_power(beta2, t))
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps": root * or_guard(options["eps"], guard),
            "root": root,
            "step_size": lr / one_minus_power(beta1, t),
            "decay": lr * options["weight_decay"],
        }

    _smallest_denominator = staticmethod(eps_alone)


# -------------------------------------------------------------------------------------------------
# ADOPT: a denominator that does not know the gradient that it divides.


class ADOPT(Optimizer):
    """ADOPT: gradients over the root of the average of squares before them, and then averaged.

    ::

        p  <- p - lr * weight_decay * p
        u  <- g / max(sqrt(v), eps)                      g is the gradient
        c  <- (t - 1)^clip_exponent
        u  <- min(max(u, -c), c)
        v  <- beta2 * v + (1 - beta2) * g^2
        m  <- beta1 * m + (1 - beta1) * u                m = 0 at first
        p  <- p - lr * m

    Here p is the parameter, g its gradient, v the average of its squares, u the gradient over the
    root of the v before it, c the limit that u is clipped to, m the average of u, and t the number
    of the step, from 1. beta1 and beta2 are ``betas``.

    The first step only decays p and sets v to g^2.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, and never above c times it); a number, or a function of the step
            number (0 for the first step).
        betas: shares of the averages m and v that are kept, each in [0, 1), or a function of the
            step number.
        eps: the smallest denominator, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are > 0.
        clip_exponent: power of the steps made before by which the bound c of u grows, >= 0; 0 keeps
            it at 1.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, members, capturable, master_weights, state_dtype,
            stochastic_rounding, cautious, cautious_decay, l1, mask_zero, complex_moment, seed,
            backend.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal
    Rate" (NeurIPS 2024), algorithm 2 with the bound of the authors' code, as optax 0.2.8 computes
    it, which has no weight decay; the authors' code and timm do not decay in the first step. In ten
    steps of gradients around 0.7 pytorch_optimizer, whose bound is t^0.25, is 5 % of the way away,
    and timm, whose exponent is 0.333, 1.5 %.
    """

    _checks = {"betas": BETAS, "eps": Schedulable(EPS), "clip_exponent": NONNEGATIVE}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.9999),
        eps: Scheduled = 1e-6,
        clip_exponent: float = 0.25,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            clip_exponent=clip_exponent,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adopt.RULE

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        first = t == 1
        return {
            "one_minus_beta1": 0.0 if first else 1.0 - beta1,
            "one_minus_beta2": 1.0 if first else 1.0 - beta2,
            "eps": or_guard(options["eps"], guard),
            "clip": power(float(t - 1), options["clip_exponent"]),
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_alone)
