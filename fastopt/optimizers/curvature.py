"""Steps by an estimate of the Hessian's diagonal: Sophia and AdaHessian."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETAS,
    EPS,
    POSITIVE,
    Decay,
    Options,
    Schedulable,
    Scheduled,
    Value,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import adam_scalars, eps_alone, or_guard
from fastopt_kernels import Rule, adahessian, sophia


class Sophia(Optimizer):
    """Sophia: averaged gradients over an average of the Hessian's diagonal, clipped.

    ::

        m <- beta1 * m + (1 - beta1) * grad              m = 0 at first
        h <- beta2 * h + (1 - beta2) * hessian           h = 0 at first; where one is handed in
        u =  m / max(gamma * h, eps), from -1 to 1
        p <- p - lr * weight_decay * p
        p <- p - lr * u

    Here p is the parameter, grad its gradient, m the average of gradients, h that of estimates of
    the Hessian's diagonal, and u the step that lr multiplies. beta1 and beta2 are ``betas``.

    ``hessian`` is an estimate of the Hessian's diagonal, nested as the gradients, that a step is
    handed every now and then: ``opt.step(grads, hessian=estimate)``, every tenth as the paper has
    it, and ``opt.step(grads)`` in between. A step uses the estimate that it is handed. Until the
    first one u is the sign of m wherever that is larger than eps.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: longest step of an element, >= 0, in units of the parameter; a number, or a function of
            the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number; that of the second one counts in steps with an estimate alone.
        gamma: factor of the curvature, > 0; the smaller it is, the more elements are clipped.
        eps: smallest denominator, >= 0, in units of gamma * h; 0 leaves only a guard that makes
            0/0 zero. Or a function of the step number, whose values are above 0.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, members, capturable, master_weights, state_dtype,
            stochastic_rounding, cautious, cautious_decay, l1, mask_zero, complex_moment, seed,
            backend. ``maximize`` turns the sign of estimates too; what clips gradients leaves them
            as they are.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Liu, Li, Hall, Liang and Ma, "Sophia: A Scalable Stochastic Second-order Optimizer for
    Language Model Pre-training" (ICLR 2024), algorithm 3. pytorch_optimizer's SophiaH clips
    m / max(h, eps) to gamma, so that its lr is this one's divided by gamma and its eps likewise;
    it does not turn the sign of estimates. optax divides by the average of before the estimate,
    and corrects the bias of m.
    """

    _estimate = sophia.ESTIMATE
    _checks = {"betas": BETAS, "gamma": POSITIVE, "eps": Schedulable(EPS)}
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 6e-4,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: Scheduled = 1e-12,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, gamma=gamma, eps=eps, weight_decay=weight_decay, **common
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return sophia.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        beta1, beta2 = options["betas"]
        return {
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "gamma": options["gamma"],
            "eps": or_guard(options["eps"], guard),
            "one": 1.0,
            "lr": lr,
        }

    _smallest_denominator = staticmethod(eps_alone)


class AdaHessian(Optimizer):
    """Adam with the Hessian's diagonal in the place of the gradient's squares.

    ::

        m <- beta1 * m + (1 - beta1) * grad              m = 0 at first
        v <- beta2 * v + (1 - beta2) * hessian^2         v = 0 at first; where one is handed in
        p <- p - lr * weight_decay * p
        p <- p - lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Here p is the parameter, grad its gradient, m the average of gradients, v that of the squared
    estimates of the Hessian's diagonal, and t the number of the step, from 1. beta1 and beta2 are
    ``betas``.

    ``hessian`` is an estimate of the Hessian's diagonal, nested as the gradients, that steps are
    handed: ``opt.step(grads, hessian=estimate)``. The first step of a parameter needs one; without
    one a later step leaves v as it is. t counts all steps, so that v is best brought up to date in
    each of the first ones.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place.
        lr: learning rate, >= 0, in units of the curvature times the parameter per gradient; a
            number, or a function of the step number (0 for the first step).
        betas: shares of the two averages that are kept, each in [0, 1), or a function of the step
            number.
        eps: added to the denominator, >= 0, in units of the Hessian; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, or a
            function of the step number.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, members, capturable, master_weights, state_dtype,
            stochastic_rounding, cautious, cautious_decay, l1, mask_zero, complex_moment, seed,
            backend. What clips gradients leaves estimates as they are.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Yao, Gholami, Shen, Mustafa, Keutzer and Mahoney, "ADAHESSIAN: An Adaptive Second Order
    Optimizer for Machine Learning" (AAAI 2021), algorithm 1 with a Hessian power of 1 and without
    its averages over blocks, as timm computes it (eps 1e-8) and pytorch_optimizer (eps 1e-16 by
    default). In steps without an estimate pytorch_optimizer leaves v alone, as is done here; timm
    averages the last one again.
    """

    _estimate = adahessian.ESTIMATE
    _estimate_first = True
    _checks = {"betas": BETAS, "eps": Schedulable(EPS)}
    _lr_scalars = ("step_size",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 0.1,
        *,
        betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _rule(options: Options) -> Rule:
        return adahessian.RULE

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return adam_scalars(options["betas"], options["eps"], lr, t, guard)

    _smallest_denominator = staticmethod(eps_alone)
