"""RMSprop, in all the forms that are written down under this name."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    EPS,
    NONNEGATIVE,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import acts, eps_floor, eps_scalars, one_minus_power, sqrt
from fastopt_kernels import (
    Rule,
    rmsprop,
    rmsprop_centered,
    rmsprop_centered_lr_inside,
    rmsprop_centered_momentum,
    rmsprop_lr_inside,
    rmsprop_momentum,
)

_PLAIN = {False: rmsprop.RULE, True: rmsprop_centered.RULE}
_BUFFERED = {
    (False, False): rmsprop_momentum.RULE,
    (True, False): rmsprop_centered_momentum.RULE,
    (False, True): rmsprop_lr_inside.RULE,
    (True, True): rmsprop_centered_lr_inside.RULE,
}


class RMSprop(Optimizer):
    """RMSprop: the gradient over the root of the averaged squared gradient; beta is 0.9 by default.

    PyTorch, cs231n and many ports keep 0.99 instead: ``beta=0.99`` gives their numbers.

    ::

        g <- grad + weight_decay * p
        v <- beta * v + (1 - beta) * g^2                 v = 0 at first
        a <- beta * a + (1 - beta) * g                   if centered; a = 0 at first
        c <- 1 - beta^t                                  with bias_correction, else 1
        w <- v / c                                       or |v / c - (a / c)^2| if centered
        d <- g / (sqrt(w) + eps)                         or g / sqrt(w + eps) if eps_inside_sqrt
        buf <- momentum * buf + d                        buf = 0 at first
        p <- p - lr * buf                                or lr * d without momentum
        u <- momentum * u + lr * d,  p <- p - u          with lr_inside; u = 0 at first

    Here p is the parameter, grad its gradient, g that with the decay, v the average of the squares
    of g, a that of g, c what makes up for their beginning at 0, w the average that is divided by, d
    the gradient over its root, buf and u sums of d, of which old ones fade, and t the number of the
    step, from 1.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter (a step has about this length); a
            number, or a function of the step number (0 for the first step).
        beta: share of the averages that is kept, in [0, 1); PyTorch calls it alpha. Or a function
            of the step number, with which c is that of the step's own beta.
        eps: added to the denominator, >= 0, in units of the gradient (of its square if inside the
            root); 0 leaves only a guard that makes 0/0 zero. Or a function of the step number,
            whose values are > 0.
        momentum: share of the buffer of scaled gradients that is kept, >= 0; 0 keeps none. Or a
            function of the step number, with which there is a buffer whatever its values.
        centered: divide by the estimated standard deviation instead of the root mean square.
        lr_inside: whether the learning rate is inside the momentum buffer. With a constant lr both
            are one; when it changes, what has been gathered goes on at the old one. State is ``u``
            then, and ``buf`` otherwise.
        eps_inside_sqrt: whether eps stands inside the root.
        bias_correction: divide the averages by 1 - beta^t, so that the first steps are not
            1 / sqrt(1 - beta) times too long.
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

    Source: Hinton, Srivastava and Swersky, "Neural Networks for Machine Learning" (2012), lecture
    6e; centred: Graves, "Generating Sequences With Recurrent Neural Networks" (2013), equations 38
    to 41. The default form is PyTorch 2.13's, whose alpha is 0.99 where beta is 0.9. optax's
    default is eps_inside_sqrt=True, and keras' too; with momentum both have lr_inside=True. HIPS
    autograd begins with v = 1. The absolute value in the centred form replaces the NaN that PyTorch
    gives where rounding makes the variance negative.
    """

    _checks = {
        "beta": BETA,
        "eps": Schedulable(EPS),
        "momentum": Schedulable(NONNEGATIVE),
        "centered": Flag(),
        "lr_inside": Flag(),
        "eps_inside_sqrt": Flag(),
        "bias_correction": Flag(),
    }

    _lr_scalars = ("step_size", "lr")
    _vanishing_scalars = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        beta: Scheduled = 0.9,
        eps: Scheduled = 1e-8,
        momentum: Scheduled = 0.0,
        centered: bool = False,
        lr_inside: bool = False,
        eps_inside_sqrt: bool = False,
        bias_correction: bool = False,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta=beta,
            eps=eps,
            momentum=momentum,
            centered=centered,
            lr_inside=lr_inside,
            eps_inside_sqrt=eps_inside_sqrt,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        if not acts(options["momentum"]):
            return _PLAIN[options["centered"]]
        return _BUFFERED[options["centered"], options["lr_inside"]]

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta = options["beta"]
        c = one_minus_power(beta, t) if options["bias_correction"] else 1.0
        root = sqrt(c)
        inside, outside = eps_scalars(options, guard, c, root)
        return {
            "one_minus_beta": 1.0 - beta,
            "factor": 1.0 / c,  # of a^2: v / c - (a / c)^2 = (v - a^2 / c) / c
            "momentum": options["momentum"],
            "rescale": root,
            "eps_inside": inside,
            "eps_outside": outside,
            "step_size": lr * root,
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_floor)
