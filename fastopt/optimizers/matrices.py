"""Muon: momentum whose singular values are brought near 1, for matrices; AdamW for the rest."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from fastopt.core.hyperparameters import (
    BETA,
    BETAS,
    EPS,
    NONNEGATIVE,
    Decay,
    Flag,
    Formula,
    Numbers,
    OneOf,
    Options,
    Schedulable,
    Scheduled,
    Value,
    Whole,
)
from fastopt.core.options import Common
from fastopt.optimizers.adam import AdamW
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.common import or_guard
from fastopt_kernels import ArrayRule, muon, normuon


class Muon(Optimizer):
    """Muon: the averaged gradient of a matrix, orthogonalised by Newton and Schulz's iteration.

    ::

        p  <- p - lr * weight_decay * p
        m  <- momentum * m + (1 - momentum) * grad       m = 0 at first
        u  <- momentum * m + (1 - momentum) * grad       if nesterov; else m
        x  <- u / max(|u|, eps)                          transposed if u is higher than wide
        x  <- a * x + (b * G + c * G @ G) @ x            G = x @ x.T; ns_steps times
        p  <- p - lr * factor * x                        x transposed back

    Here p is the parameter, grad its gradient, m the average of gradients, u the matrix that is
    orthogonalised, x what becomes of it, and G the products of the rows of x.

    factor is sqrt(max(1, rows / columns)), or 0.2 * sqrt(max(rows, columns)) to make steps as long
    as AdamW's. a, b and c are ``ns_coefficients``.

    Everything is computed in the precision of the arithmetic. The products of matrices are those of
    NumPy's or CuPy's libraries, so that the last bits differ between processors and devices. CuPy
    does not capture them, so no step can be part of a CUDA graph; with ``capturable`` it waits for
    nothing nevertheless.

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. All of them are matrices, arrays of two axes, and real.
        lr: learning rate, >= 0, in units of the parameter: every singular value of a step is about
            lr * factor; a number, or a function of the step number (0 for the first step).
        momentum: share of the average that is kept, in [0, 1), or a function of the step number.
        nesterov: look ahead along the gradient.
        ns_coefficients: a, b and c of the iteration.
        ns_steps: how often it is repeated, from 1 on.
        eps: the least that u is divided by, >= 0, in units of the gradient's norm; 0 leaves only a
            guard that makes 0/0 zero. Or a function of the step number, whose values are above 0.
        adjust_lr: "original" or "match_rms_adamw", which factor it is.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0; or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, cautious_decay, l1,
            complex_moment, seed, backend. state_dtype is "float64" or None. It has no
            stochastic_rounding, cautious or mask_zero.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for parameters
            that are no matrices (give these to AdamW), and for arrays that cannot be updated in
            place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), as
    PyTorch 2.13 computes it, but in the parameter's precision, where PyTorch and pytorch_optimizer
    iterate in bfloat16; the second factor is that of Liu et al., "Muon is Scalable for LLM
    Training" (2025). timm's default coefficients are others, and it sends matrices with a side
    below 4 to AdamW; optax counts rows and columns the other way round in its factor, and corrects
    the bias of its averages.
    """

    _checks = {
        "momentum": BETA,
        "nesterov": Flag(),
        "ns_coefficients": Numbers(3),
        "ns_steps": Whole(1),
        "eps": Schedulable(EPS),
        "adjust_lr": OneOf(("original", "match_rms_adamw")),
    }
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: Scheduled = 1e-7,
        adjust_lr: muon.Adjust = "original",
        weight_decay: Scheduled = 0.1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            adjust_lr=adjust_lr,
            weight_decay=weight_decay,
            **common,
        )

    @staticmethod
    def _decay(options: Options) -> Decay:
        return "parameter"

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return muon.rule(options["ns_steps"], options["adjust_lr"])

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        kept = 1.0 - options["momentum"]
        a, b, c = options["ns_coefficients"]
        return {
            "one_minus_momentum": kept,
            "one_minus_look": kept if options["nesterov"] else 0.0,
            "a": a,
            "b": b,
            "c": c,
            "eps": or_guard(options["eps"], guard),
            "lr": lr,
        }

    @staticmethod
    def _check_array(path: str, shape: tuple[int, ...], dtype: str) -> None:
        if len(shape) != 2:  # complex ones are refused for all rules on whole arrays
            raise ValueError(
                f"{path} must be a real matrix, an array of two axes; got {dtype} of shape "
                f"{shape}. Give it to an optimizer for all arrays, such as AdamW; MuonWithAdamW "
                "does so with all that are no matrices."
            )


class NorMuon(Optimizer):
    """NorMuon: Muon whose rows are divided by the root of their averaged mean square.

    ::

        p  <- p - lr * weight_decay * p
        x  <- (as in Muon, by momentum, nesterov, ns_coefficients, ns_steps and eps)
        v  <- beta2 * v + (1 - beta2) * (mean of x^2 over each row)     v = 0 at first
        y  <- x / (sqrt(v) + eps2)
        p  <- p - lr * factor * y * |x| / (|y| + eps2)         update_scale = "preserve_norm"
        p  <- p - lr * 0.2 * sqrt(rows * columns) * y / (|y| + eps2)    "match_rms"

    Here p is the parameter, grad its gradient, x the orthogonalised average, v the average of the
    mean square of each of its rows, and y these rows divided by the root of v; rows and columns
    are how many there are.

    |x| is the root of the sum of squares, and factor Muon's, by ``adjust_lr``. v is not corrected
    for its beginning at 0, which |y| takes out again. A matrix of n rows has v of shape (n, 1).

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. All of them are matrices, arrays of two axes, and real.
        lr: learning rate, >= 0, in units of the parameter, see Muon; a number, or a function of the
            step number (0 for the first step).
        momentum: share of the average that is kept, in [0, 1), or a function of the step number.
        beta2: share of v that is kept, in [0, 1), or a function of the step number.
        nesterov: look ahead along the gradient.
        ns_coefficients: a, b and c of the iteration.
        ns_steps: how often it is repeated, from 1 on.
        eps: the least norm that Muon's iteration begins with, >= 0, in units of the gradient's
            norm; 0 leaves only a guard that makes 0/0 zero. Or a function of the step number, whose
            values are above 0.
        eps2: added to the denominators, >= 0, without a unit; 0 leaves only a guard.
        adjust_lr: "original" or "match_rms_adamw", which factor it is.
        update_scale: "preserve_norm", as the authors' code, or "match_rms", as the paper.
        weight_decay: share of the parameter that is taken off per step and unit of lr, >= 0; or a
            function of the step number.
        common: see ``Common``: lr_scale, decoupled_lr, maximize, trainable, bounds,
            reset_at_bounds, adaptive_clip, centralize, max_grad_norm, clip_value, clip_each,
            on_nonfinite, capturable, master_weights, state_dtype, cautious_decay, l1,
            complex_moment, seed, backend. state_dtype is "float64" or None. It has no
            stochastic_rounding, cautious or mask_zero.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for parameters
            that are no matrices, and for arrays that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Li et al., "NorMuon: Making Muon more efficient and scalable" (2025), algorithm 1 and
    its authors' code, as pytorch_optimizer 4.1 computes it, but in the parameter's precision, where
    that iterates in bfloat16.
    """

    _checks = {
        **Muon._checks,
        "beta2": BETA,
        "eps2": NONNEGATIVE,
        "update_scale": OneOf(("preserve_norm", "match_rms")),
    }
    _lr_scalars = ("lr",)

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 0.02,
        *,
        momentum: Scheduled = 0.95,
        beta2: Scheduled = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: Scheduled = 1e-7,
        eps2: float = 1e-10,
        adjust_lr: muon.Adjust = "original",
        update_scale: normuon.Scale = "preserve_norm",
        weight_decay: Scheduled = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            beta2=beta2,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            eps2=eps2,
            adjust_lr=adjust_lr,
            update_scale=update_scale,
            weight_decay=weight_decay,
            **common,
        )

    _decay = staticmethod(Muon._decay)
    _check_array = staticmethod(Muon._check_array)

    @staticmethod
    def _rule(options: Options) -> ArrayRule:
        return normuon.rule(options["ns_steps"], options["adjust_lr"], options["update_scale"])

    @staticmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        return {
            **Muon._scalars(options, lr, t, guard),
            "one_minus_beta2": 1.0 - options["beta2"],
            "eps2": or_guard(options["eps2"], guard),
        }

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        eps2: float = options["eps2"]
        return eps2


class _Rest(Formula):
    """What MuonWithAdamW does to parameters that do not go to Muon: AdamW, with its own options."""

    _lr_scalars = AdamW._lr_scalars
    _rule = staticmethod(AdamW._rule)
    _scalars = staticmethod(AdamW._scalars)
    _decay = staticmethod(AdamW._decay)
    _smallest_denominator = staticmethod(AdamW._smallest_denominator)

    @staticmethod
    def _view(options: Options) -> Options:
        own = {name: options[f"adamw_{name}"] for name in ("lr", "betas", "eps", "weight_decay")}
        flags = dict.fromkeys(("amsgrad", "eps_inside_sqrt", "eps_hat"), False)
        return {**options, **own, **flags, "bias_correction": True}


class MuonWithAdamW(Muon):
    """Muon for matrices and AdamW for everything else, each with its own learning rate.

    ::

        matrices:  (the step of Muon with lr, momentum, nesterov, ..., weight_decay)
        the rest:  (the step of AdamW with adamw_lr, adamw_betas, adamw_eps, adamw_weight_decay)

    A matrix is an array of two axes. Embeddings and the last layer of a network are matrices too,
    for which AdamW is usual: say so by pattern ::

        params = fastopt.groups(params, {"embedding.*": {"rule": "adamw"}})
        opt = fastopt.MuonWithAdamW(params, lr=0.02, adamw_lr=3e-4)
        opt.rules  # {"embedding.table": "adamw", "layers.0.W": "muon", "layers.0.b": "adamw", ...}

    Args:
        params: an array, a tree of arrays, a list of parameter groups, or ``fastopt.groups(...)``;
            updated in place. They are real, of any shape.
        lr: learning rate of Muon, and what ``opt.lr`` is; as for Muon.
        momentum, nesterov, ns_coefficients, ns_steps, eps, adjust_lr, weight_decay: Muon's.
        adamw_lr: learning rate of AdamW, >= 0, in units of the parameter; a number, or a function
            of the step number (0 for the first step). Set it in ``param_groups``.
        adamw_betas, adamw_eps, adamw_weight_decay: AdamW's betas, eps and weight_decay.
        rule: "auto": Muon for matrices, AdamW for the rest; "muon" or "adamw": that one for all
            parameters of the group. It stays as it was at construction.
        common: what every optimizer takes, see ``Common``: lr_scale, decoupled_lr, maximize,
            trainable, bounds, reset_at_bounds, adaptive_clip, centralize, max_grad_norm,
            clip_value, clip_each, on_nonfinite, capturable, master_weights, state_dtype,
            stochastic_rounding, cautious, cautious_decay, l1, mask_zero, complex_moment, seed,
            backend. lr_scale multiplies both learning rates. Groups with arrays that go to AdamW
            have no decoupled_lr. Groups with matrices that go to Muon refuse what Muon does.

    Raises:
        ValueError, TypeError: for hyperparameters out of range or of another type, for parameters
            that are no matrices under rule="muon", for complex ones that go to Muon, and for arrays
            that cannot be updated in place.
        BackendUnavailableError, BackendMismatchError: if the backend asked for cannot run here, or
            does not update such arrays.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), who use
    it so; the numbers are those of PyTorch's Muon and AdamW side by side, see there.
    """

    _checks = {
        **Muon._checks,
        "adamw_lr": Schedulable(NONNEGATIVE),
        "adamw_betas": BETAS,
        "adamw_eps": Schedulable(EPS),
        "adamw_weight_decay": Schedulable(NONNEGATIVE),
        "rule": OneOf(("auto", "muon", "adamw")),
    }

    def __init__(
        self,
        params: Any,
        lr: Scheduled = 1e-3,
        *,
        momentum: Scheduled = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: Scheduled = 1e-7,
        adjust_lr: muon.Adjust = "original",
        weight_decay: Scheduled = 0.1,
        adamw_lr: Scheduled = 1e-3,
        adamw_betas: tuple[Scheduled, Scheduled] = (0.9, 0.999),
        adamw_eps: Scheduled = 1e-8,
        adamw_weight_decay: Scheduled = 1e-2,
        rule: Literal["auto", "muon", "adamw"] = "auto",
        **common: Unpack[Common],
    ) -> None:
        super(Muon, self).__init__(
            params,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            adjust_lr=adjust_lr,
            weight_decay=weight_decay,
            adamw_lr=adamw_lr,
            adamw_betas=adamw_betas,
            adamw_eps=adamw_eps,
            adamw_weight_decay=adamw_weight_decay,
            rule=rule,
            **common,
        )

    @classmethod
    def _parts(cls) -> tuple[type[Formula], ...]:
        return cls, _Rest

    @classmethod
    def _part(cls, options: Options, path: str, shape: tuple[int, ...]) -> type[Formula]:
        rule = options["rule"]
        if rule == "muon" and len(shape) != 2:
            raise ValueError(
                f'{path} must be a matrix, an array of two axes, for rule="muon"; got one of shape '
                f'{shape}. Give it a group with rule="auto" or "adamw"'
            )
        is_muons = rule == "muon" or (rule == "auto" and len(shape) == 2)
        return cls if is_muons else _Rest

    @staticmethod
    def _check_array(path: str, shape: tuple[int, ...], dtype: str) -> None:
        pass  # AdamW takes them all; what goes to Muon is looked at by group

    @property
    def rules(self) -> dict[str, str]:
        """By the name of each parameter that is trained, "muon" or "adamw": what updates it."""
        names = {
            parameter.leaf.name: "adamw" if bucket.formula is _Rest else "muon"
            for bucket in self._state.buckets
            for parameter in bucket.parameters
        }
        return {
            leaf.name: names[leaf.name] for leaf in self._state.tree.leaves if leaf.name in names
        }


_Rest.__name__ = MuonWithAdamW.__name__  # which optimizer errors are about
