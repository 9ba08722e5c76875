"""AggMo: several momenta at once, so that slow ones need not be damped."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import FRACTION, OneOrMore, Options, Scheduled, Value
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import Rule, aggmo


class AggMo(Optimizer):
    """AggMo: steps by the mean of several momentum buffers, each of which forgets at its own rate.

    ::

        g  <- grad + weight_decay * p
        bk <- betas[k] * bk + g                          bk = 0 at first; k = 0, 1, ..., K - 1
        p  <- p - lr / K * (b0 + b1 + ... )

    Here p is the parameter, grad its gradient, g that with the decay, b0, b1, ... (bk) the buffers,
    one for each k of the betas, and K how many there are.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the parameter over those of the gradient; a number, or
            a function of the step number (0 for the first step).
        betas: shares of the buffers that are kept, as many as there are to be, each in [0, 1); the
            authors recommend 0, 0.9, 0.99 and so on. A single one is SGD with that momentum.
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

    Source: Lucas, Sun, Zemel and Grosse, "Aggregated Momentum: Stability Through Passive Damping"
    (ICLR 2019), equation 4; pytorch_optimizer agrees, whose default of lr is 1e-3.
    """

    _checks = {"betas": OneOrMore(FRACTION)}

    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-1,
        *,
        betas: tuple[float, ...] = (0.0, 0.9, 0.99),
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, **common)

    @staticmethod
    def _rule(options: Options) -> Rule:
        return aggmo.rule(len(options["betas"]))

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        betas: tuple[float, ...] = options["betas"]
        kept: dict[str, Value] = {f"keep{k}": beta for k, beta in enumerate(betas)}
        return {**kept, "lr": lr / len(betas)}
