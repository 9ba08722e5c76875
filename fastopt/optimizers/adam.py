"""Adam with its variants (AMSGrad, where eps stands), and AdamW with decoupled weight decay."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    Decay,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import acts, eps_floor, eps_scalars, one_minus_power, sqrt
from fastopt_kernels import Rule, adam, adam_amsgrad, adam_eps_inside

DECOUPLED = "decoupled_weight_decay"
"""The option that AdamW, of which it is the whole difference, does not have."""

# -------------------------------------------------------------------------------------------------
# Adam, and the variants of it that differ in where eps and the corrections stand.


class Adam(Optimizer):
    """Adam: the averaged gradient over the root of the averaged squared gradient.

    ::

        g  <- grad + weight_decay * p                    or grad, and p <- p - lr * weight_decay * p
        m  <- beta1 * m + (1 - beta1) * g                m = 0 at first
        v  <- beta2 * v + (1 - beta2) * g^2              v = 0 at first
        vmax <- max(vmax, v)                             if amsgrad; it then stands for v below
        c1 <- 1 - beta1^t,  c2 <- 1 - beta2^t            both 1 without bias_correction
        p  <- p - lr * (m / c1) / (sqrt(v / c2) + eps)   or / sqrt(v / c2 + eps)
        p  <- p - lr * sqrt(c2) / c1 * m / (sqrt(v) + eps)     if eps_hat; or / sqrt(v + eps)

    Here p is the parameter, grad its gradient, g that with the decay, m the average of g, v that of
    its squares, vmax the largest v so far, and t the number of the step, from 1. c1 and c2 make up
    for the beginning of the averages at 0. beta1 and beta2 are ``betas``.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> params = {"w": np.array([1.0, -2.0]), "b": np.array(0.5)}
        >>> opt = fastopt.Adam(params, lr=0.1, eps=1e-12)
        >>> opt.step({"w": np.array([0.3, -0.1]), "b": np.array(2.0)})
        <Outcome: made>
        >>> params["w"], params["b"]  # the first step is lr long, whatever the gradient is
        (array([ 0.9, -1.9]), array(0.4))

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (about the length of a step where
            gradients are steady, up to 7.3 times it where they grow after a quiet time with the
            default betas); a number, or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient (of its square if inside the
            root); 0 leaves only a guard that makes 0/0 zero. Or a function of the step number,
            whose values are > 0.
        amsgrad: divide by the largest v so far.
        eps_inside_sqrt: whether eps stands inside the root.
        eps_hat: add eps before v is corrected and not after, so that it weighs 1 / sqrt(c2) as
            much, 32 times in the first step by default; without bias_correction both are one.
        bias_correction: divide the averages by c1 and c2; without it the first steps are
            (1 - beta1) / sqrt(1 - beta2) times as long, 3.2 times by default.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number; if
            decoupled, the share of the parameter that is taken off per step and unit of lr.
        decoupled_weight_decay: whether weight decay acts on the parameter, before the update, and
            not on the gradient; then it is AdamW.
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

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), algorithm 1;
    AMSGrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (ICLR 2018), algorithm
    2, with the maximum of the raw v as PyTorch 2.13 takes it (optax takes that of v / c2).
    PyTorch and optax agree otherwise. keras, chainer, thinc and scikit-learn add eps before the
    correction, as the paper does in its second form (the end of section 2, whose epsilon has a
    hat): that is eps_hat=True. Codes that divide by 1 - beta instead of 1 - beta^t (ODL, Tike) go
    61 % too far in ten steps.
    """

    _checks = {
        "betas": BETAS,
        "eps": Schedulable(EPS),
        "amsgrad": Flag(),
        "eps_inside_sqrt": Flag(),
        "eps_hat": Flag(),
        "bias_correction": Flag(),
        "decoupled_weight_decay": Flag(),
    }

    _lr_scalars = ("step_size",)  # proportional to lr, and so may become 0 with it

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        amsgrad: bool = False,
        eps_inside_sqrt: bool = False,
        eps_hat: bool = False,
        bias_correction: bool = True,
        weight_decay: Scheduled = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            amsgrad=amsgrad,
            eps_inside_sqrt=eps_inside_sqrt,
            eps_hat=eps_hat,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        if options["amsgrad"]:
            return adam_amsgrad.RULE
        inside = options["eps_inside_sqrt"] and acts(options["eps"])
        return adam_eps_inside.RULE if inside else adam.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        c1: Value = 1.0
        c2: Value = 1.0
        if options["bias_correction"]:
            c1, c2 = one_minus_power(beta1, t), one_minus_power(beta2, t)
        # v is not divided by c2: with root = sqrt(c2) and no eps inside the root,
        #   lr * (m / c1) / (sqrt(v / c2) + eps) = (lr * root / c1) * m / (sqrt(v) + root * eps).
        # Each of Adam's rules picks its scalars out of these by name.
        root = sqrt(c2)
        corrects = (1.0, 1.0) if options["eps_hat"] else (c2, root)
        inside, outside = eps_scalars(options, guard, *corrects)
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "eps_inside": inside,
            "eps_outside": outside,
            "eps": outside,
            "step_size": lr * root / c1,
        }

    @staticmethod
    def _decay(options: Options) -> Decay:
        # Either is done before the rule: the L2 term, or what is taken off the parameter.
        return "parameter" if options["decoupled_weight_decay"] else "gradient"

    _smallest_denominator = staticmethod(eps_floor)  # how small state may be flushed


# -------------------------------------------------------------------------------------------------
# AdamW: Adam with weight decay that acts on the parameter itself.


class AdamW(Adam):
    """AdamW: Adam with decoupled weight decay.

    ::

        p <- p - lr * weight_decay * p
        p <- p - (the step of Adam for the gradient alone)

    Here p is the parameter; ``Adam`` says what the symbols of its step are.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; it scales the decay too; a number,
            or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; c1 and c2 are those of the step's own betas.
        eps: added to the denominator, >= 0, in units of the gradient (of its square if inside the
            root); 0 leaves only a guard that makes 0/0 zero. Or a function of the step number,
            whose values are > 0.
        amsgrad: divide by the largest v so far.
        eps_inside_sqrt: whether eps stands inside the root.
        eps_hat: add eps before v is corrected and not after, so that it weighs 1 / sqrt(c2) as
            much, 32 times in the first step by default; without bias_correction both are one.
        bias_correction: divide the averages by c1 and c2; without it the first steps are
            (1 - beta1) / sqrt(1 - beta2) times as long, 3.2 times by default.
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

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), algorithm 2,
    as PyTorch 2.13 computes it: the decay is scaled by lr and comes before the update. optax's
    default of weight_decay is 1e-4; chainer scales the decay by eta, not by lr.
    """

    _checks = {name: check for name, check in Adam._checks.items() if name != DECOUPLED}

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        amsgrad: bool = False,
        eps_inside_sqrt: bool = False,
        eps_hat: bool = False,
        bias_correction: bool = True,
        weight_decay: Scheduled = 1e-2,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(
            self,
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            amsgrad=amsgrad,
            eps_inside_sqrt=eps_inside_sqrt,
            eps_hat=eps_hat,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"
