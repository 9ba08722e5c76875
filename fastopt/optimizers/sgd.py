"""Gradient descent, plain, with momentum, or with Nesterov's momentum."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.hyperparameters import FINITE, NONNEGATIVE, Flag, Schedulable
from fastopt.optimizer import Optimizer, Scheduled
from fastopt.param_group import Options
from fastopt.shared import Shared
from fastopt_kernels import Rule, sgd, sgd_momentum, sgd_nesterov


class SGD(Optimizer):
    """Gradient descent with optional (Nesterov) momentum, as PyTorch computes it.

    ::

        g   <- grad + weight_decay * p
        buf <- g                                         at a parameter's first step
        buf <- momentum * buf + (1 - dampening) * g      later
        d   <- g + momentum * buf                        if nesterov
        d   <- buf                                       if not (g itself without momentum)
        p   <- p - lr * d

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
        weight_decay: coefficient of the L2 term, >= 0, or a function of the step number.
        shared: what every optimizer takes, see ``Shared``: maximize, trainable,
            bounds, max_grad_norm, on_nonfinite, capturable, master_weights,
            state_dtype, stochastic_rounding, complex_moment, seed, backend.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods" (1964);
    Sutskever et al., "On the importance of initialization and momentum in deep learning" (ICML
    2013), in the form of PyTorch 2.13: lr is outside the buffer, so a schedule acts at once (in
    keras it is inside), and the buffer begins as the first gradient, not as (1 - dampening) of it.
    optax agrees. HIPS autograd's ``sgd`` is ``Momentum`` here.
    """

    _checks = {
        "momentum": Schedulable(NONNEGATIVE),
        "dampening": Schedulable(FINITE),
        "nesterov": Flag(),
    }

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.0,
        dampening: Scheduled = 0.0,
        nesterov: bool = False,
        weight_decay: Scheduled = 0.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=weight_decay,
            **shared,
        )

    @staticmethod
    def _rule(options: Options) -> Rule:
        if options["nesterov"]:
            return sgd_nesterov.RULE
        return sgd_momentum.RULE if options["momentum"] else sgd.RULE

    @staticmethod
    def _scalars(options: Options, lr: float, t: int, guard: float) -> dict[str, float]:
        return {
            "lr": lr,
            "momentum": options["momentum"],
            "keep": options["momentum"],
            "take": 1.0 if t == 1 else 1.0 - options["dampening"],
        }

    @staticmethod
    def _review(options: Options) -> None:
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov=True needs momentum > 0 and dampening = 0; got momentum="
                f"{options['momentum']}, dampening={options['dampening']}"
            )
