"""Scion: steps of one length in a norm that is chosen by the array."""

from __future__ import annotations

from typing import Any, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    EPS,
    POSITIVE,
    Decay,
    Flag,
    Numbers,
    OneOf,
    Options,
    Schedulable,
    Scheduled,
    Value,
    Whole,
)
from fastopt.core.options import Common
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import eps_alone, or_guard
from fastopt_kernels import ArrayRule, scion

NORMS = ("auto", "spectral", "row", "column", "sign", "rms")


class Scion(Optimizer):
    """Scion: steps of one length, in the norm that suits the array's place in a network.

    ::

        p  <- p - lr * weight_decay * p
        m  <- momentum * m + (1 - momentum) * grad                    m = 0 at first
        u  <- (by norm)
              "spectral"  orthogonalised m * sqrt(rows / columns)     as Muon iterates, see there
              "row"       m / (sqrt(columns) * |row of m| + eps)
              "column"    m / (|column of m| / sqrt(rows) + eps)
              "sign"      sign(m) / columns
              "rms"       m / (sqrt(mean(m^2)) + eps)
              "auto"      "spectral" for two axes and more, "rms" for vectors and numbers
        p  <- p - lr * radius * u
        p  <- (1 - lr) * p - lr * radius * u                          with constrained=True

    Here p is the parameter, grad its gradient, m the average of gradients, and u the direction of
    the step.

    Each u is the step of length 1, in its norm, along which a linear function falls most, times -1;
    radius is the length. The paper has "spectral" for hidden layers, "sign" for the last one,
    "column" or "row" for embeddings, each with a radius of its own: by groups, as in ::

        params = fastopt.groups(params, {"head.*": {"norm": "sign", "radius": 3000.0}})
        opt = fastopt.Scion(params, lr=2e-4, radius=50.0, constrained=True)

    With ``constrained=True`` parameters that begin within ``radius``, in their norm, stay there.
    Rows are the places of the first axis, columns those of all others together, of which a vector
    has one. Of arrays of three axes and more (convolutions) "spectral" counts as columns those of
    the second axis alone, and divides u by the number of places of the others. Everything is
    computed in the precision of the arithmetic, by the products of NumPy's or CuPy's libraries, so
    that the last bits differ between processors and devices; no step can be part of a CUDA graph.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real.
        lr: learning rate, >= 0: the share of ``radius`` that a step goes; a number, or a function
            of the step number (0 for the first step).
        momentum: share of the average that is kept, in [0, 1), or a function of the step number.
        norm: "auto", "spectral", "row", "column", "sign" or "rms".
        radius: length of steps at lr = 1, > 0, in units of the parameter; or a function of the step
            number.
        constrained: shrink parameters by lr in each step, which keeps them within ``radius``.
        ns_coefficients: a, b and c of Muon's iteration.
        ns_steps: how often it is repeated, from 1 on.
        eps: added to the denominators, >= 0, in units of the gradient; 0 leaves only a guard that
            makes 0/0 zero. Or a function of the step number, whose values are above 0. The
            iteration begins with a norm of at least 1e-7.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0, before
            the step; or a function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, cautious_decay, l1,
            complex_moment, seed, backend. state_dtype is "float64" or None. It has no
            stochastic_rounding, cautious or mask_zero.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for complex
            parameters, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Pethick et al., "Training Deep Learning Models with Norm-Constrained LMOs" (2025), as
    pytorch_optimizer 4.1 computes it, but in the parameter's precision, where that iterates in
    bfloat16. Its momentum is the share of the new gradient, 1 - momentum here, and it leaves
    weight_decay out where steps are constrained.
    """

    _checks = {
        "momentum": BETA,
        "norm": OneOf(NORMS),
        "radius": Schedulable(POSITIVE),
        "constrained": Flag(),
        "ns_coefficients": Numbers(3),
        "ns_steps": Whole(1),
        "eps": Schedulable(EPS),
    }
    _lr_scalars = ("step", "shrink")

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.9,
        norm: scion.Norm = "auto",
        radius: Scheduled = 1.0,
        constrained: bool = False,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: Scheduled = 1e-8,
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            norm=norm,
            radius=radius,
            constrained=constrained,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return scion.rule(options["norm"], options["ns_steps"])

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        a, b, c = options["ns_coefficients"]
        return {
            "one_minus_momentum": 1.0 - options["momentum"],
            "a": a,
            "b": b,
            "c": c,
            "least_norm": 1e-7,
            "eps": or_guard(options["eps"], guard),
            "shrink": lr if options["constrained"] else 0.0,
            "step": lr * options["radius"],
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        return eps_alone(options)
