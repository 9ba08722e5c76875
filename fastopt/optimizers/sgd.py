"""SGD: plain, with momentum, with Nesterov's; and Momentum: along an average of the gradients."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    FINITE,
    NONNEGATIVE,
    Decay,
    Flag,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import acts, one_minus_power
from fastopt_kernels import (
    Rule,
    momentum,
    sgd,
    sgd_lr_inside,
    sgd_lr_inside_nesterov,
    sgd_momentum,
    sgd_nesterov,
)

_BUFFERED = {
    (False, False): sgd_momentum.RULE,
    (True, False): sgd_nesterov.RULE,
    (False, True): sgd_lr_inside.RULE,
    (True, True): sgd_lr_inside_nesterov.RULE,
}

# -------------------------------------------------------------------------------------------------
# Gradient descent, plain, with momentum, or with Nesterov's momentum.


class SGD(Optimizer):
    """Gradient descent with optional (Nesterov) momentum, as PyTorch computes it.

    ::

        g   <- grad + weight_decay * p                   or grad, and p <- p - lr * weight_decay * p
        buf <- g                                         at a parameter's first step
        buf <- momentum * buf + (1 - dampening) * g      later
        d   <- g + momentum * buf                        if nesterov
        d   <- buf                                       if not (g itself without momentum)
        p   <- p - lr * d

    Here p is the parameter, grad its gradient, g that with the decay, buf the sum of g, of which
    old ones fade, and d the step that lr multiplies.

    With ``lr_inside`` the buffer is a velocity in units of the parameter::

        v   <- momentum * v - lr * g                     v = 0 at first
        p   <- p + v                                     or + momentum * v - lr * g if nesterov

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> x = np.array([1.0, -2.0])
        >>> opt = fastopt.SGD(x, lr=0.5, momentum=0.9)
        >>> for _ in range(2):
        ...     outcome = opt.step(np.array([1.0, 2.0]))
        >>> x
        array([-0.45, -4.9 ])

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter squared per unit of the loss; a number,
            or a function of the step number (0 for the first step).
        momentum: share of the buffer that is kept, >= 0, usually below 1; 0 keeps none. Or a
            function of the step number, with which there is a buffer whatever its values.
        dampening: share of the gradient that is left out of the buffer; any number, usually in
            [0, 1], or a function of the step number.
        nesterov: look ahead along the buffer; needs momentum > 0 and dampening = 0.
        lr_inside: whether the learning rate is inside the buffer; needs dampening = 0. With a
            constant lr both are one; when it changes, what has been gathered goes on at the old
            one. State is ``v`` then, and ``buf`` otherwise.
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number; if
            decoupled, the share of the parameter that is taken off per step and unit of lr.
        decoupled_weight_decay: whether weight decay acts on the parameter, before the update, and
            not on the gradient; without momentum both are one.
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

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods" (1964);
    Sutskever et al., "On the importance of initialization and momentum in deep learning" (ICML
    2013), in the form of PyTorch 2.13: lr is outside the buffer, so a schedule acts at once, and
    the buffer begins as the first gradient, not as (1 - dampening) of it. optax agrees. keras and
    scikit-learn have lr_inside=True. HIPS autograd's ``sgd`` is ``Momentum`` here.
    Decoupled decay is SGDW of Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR
    2019), algorithm 1, as torch-optimi computes it; PyTorch has none.
    """

    _checks = {
        "momentum": Schedulable(NONNEGATIVE),
        "dampening": Schedulable(FINITE),
        "nesterov": Flag(),
        "lr_inside": Flag(),
        "decoupled_weight_decay": Flag(),
    }

    _lr_scalars = ("lr",)
    _vanishing_scalars = ("momentum", "keep")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.0,
        dampening: Scheduled = 0.0,
        nesterov: bool = False,
        lr_inside: bool = False,
        weight_decay: Scheduled = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            lr_inside=lr_inside,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        if not acts(options["momentum"]):
            return sgd.RULE
        return _BUFFERED[options["nesterov"], options["lr_inside"]]

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter" if options["decoupled_weight_decay"] else "gradient"

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            "lr": lr,
            "momentum": options["momentum"],
            "keep": options["momentum"],
            "take": 1.0 if t == 1 else 1.0 - options["dampening"],
        }

    @staticmethod
    def _review(options: Options) -> None:
        acting = acts(options["momentum"]), acts(options["dampening"])
        if options["nesterov"] and acting != (True, False):
            raise ValueError(
                "SGD: nesterov=True needs momentum > 0 and dampening = 0; got momentum="
                f"{options['momentum']}, dampening={options['dampening']}"
            )
        if options["lr_inside"] and acting[1]:
            raise ValueError(
                "SGD: lr_inside=True needs dampening = 0, for those who compute so damp nothing; "
                f"got dampening={options['dampening']}"
            )


# -------------------------------------------------------------------------------------------------
# Descent along the exponentially weighted average of the gradients.


class Momentum(Optimizer):
    """Gradient descent along an exponentially weighted average of the gradients.

    ::

        g <- grad + weight_decay * p
        v <- beta * v + (1 - beta) * g                   v = 0 at first
        p <- p - lr * v                                  or v / (1 - beta^t) with bias_correction

    Here p is the parameter, grad its gradient, g that with the decay, v the average of g (the
    velocity, which other formulas call m), and t the number of the step, from 1.

    The average forgets over about 1 / (1 - beta) steps. Components of the gradient that change
    sign from step to step cancel in it; those that stay add up to their full size.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter squared per unit of the loss; a number,
            or a function of the step number (0 for the first step).
        beta: share of the average that is kept, in [0, 1), or a function of the step number.
        bias_correction: divide by 1 - beta^t, with the step's own beta, so that the first steps are
            not too small.
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

    Source: the form taught in Ng's "Improving Deep Neural Networks" (week 2) and used by HIPS
    autograd's ``sgd``; with bias correction it is Adam's numerator (Kingma and Ba, 2015, algorithm
    1). ``SGD(momentum=beta)`` adds the whole gradient instead of (1 - beta) of it: there the same
    lr makes steps up to 1 / (1 - beta) times as long.
    """

    _checks = {"beta": BETA, "bias_correction": Flag()}

    _lr_scalars = ("step_size",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-2,
        *,
        beta: Scheduled = 0.9,
        bias_correction: bool = False,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta=beta,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        return momentum.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta = options["beta"]
        corrected = one_minus_power(beta, t) if options["bias_correction"] else 1.0
        return {"one_minus_beta": 1.0 - beta, "step_size": lr / corrected}
