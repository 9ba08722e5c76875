"""AdamW: Adam with weight decay that acts on the parameter itself."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.optimizer import Scheduled
from fastopt.optimizers.adam import Adam
from fastopt.shared import Shared


class AdamW(Adam):
    """AdamW: Adam with decoupled weight decay.

    ::

        p <- p - lr * weight_decay * p
        p <- p - (the step of Adam for the gradient alone)

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter; it scales the decay too; a number,
            or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1).
        eps: added to the denominator, >= 0, in units of the gradient (of its square if inside the
            root); 0 leaves only a guard that makes 0/0 zero.
        amsgrad: divide by the largest v so far.
        eps_inside_sqrt: where eps stands.
        bias_correction: divide the averages by c1 and c2; without it the first steps are
            (1 - beta1) / sqrt(1 - beta2) times as long, 3.2 times by default.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        shared: what every optimizer takes, see ``Shared``: maximize, trainable,
            bounds, max_grad_norm, on_nonfinite, capturable, master_weights,
            state_dtype, stochastic_rounding, complex_moment, seed, backend.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), algorithm 2,
    as PyTorch 2.13 computes it: the decay is scaled by lr and comes before the update. optax's
    default of weight_decay is 1e-4; chainer scales the decay by eta, not by lr.
    """

    _decoupled = True

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        eps_inside_sqrt: bool = False,
        bias_correction: bool = True,
        weight_decay: Scheduled = 1e-2,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            amsgrad=amsgrad,
            eps_inside_sqrt=eps_inside_sqrt,
            bias_correction=bias_correction,
            weight_decay=weight_decay,
            **shared,
        )
