"""Deliberately wrong optimizers: the recorded vectors catch every one of them.

Each mutant is a mistake that somebody has published or shipped. A mutant that passes would mean
that the vectors do not see such a mistake in our own code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import families
import fastopt
from helpers import vectors
from helpers.mutants import (
    Make,
    arguments,
    common_clock,
    each,
    given,
    remembering,
    rule,
    rule_named,
    scalars,
    stepping,
)
from helpers.variants import public_optimizers

MUTANTS: dict[str, tuple[Make, Make]] = dict(families.MUTANTS)
"""Per name: the right optimizer, and the wrong one."""

NAMES = {optimizer.__name__: optimizer for optimizer in public_optimizers()}
ALL = list(NAMES.values())


def vectors_of(optimizer: Make) -> list[vectors.Vector]:
    return [v for v in vectors.FULL if NAMES[v.info["optimizer"]] is optimizer]


def meets(vector: vectors.Vector, make: Make) -> bool:
    """Return whether a vector is met by what ``make`` constructs."""
    try:
        return vectors.worst(vector, vectors.run(vector, np.float64, "numpy", make)) <= 1e-11
    except (AssertionError, TypeError):  # a wrong step count; a step that lacks what it needs
        return False


def passes(optimizer: Make, make: Make) -> bool:
    """Return whether all of an optimizer's vectors are met by what ``make`` constructs."""
    return all(meets(vector, make) for vector in vectors_of(optimizer))


def decay_of(right: Any) -> Callable[[Any], str]:
    return lambda options: "gradient" if right._decay(options) == "parameter" else "parameter"


def mutant(name: str, base: Any, make: Make) -> None:
    assert name not in MUTANTS
    MUTANTS[name] = base, make


# Of every optimizer ------------------------------------------------------------------------------


def stale(self: Any, grads: Any, step: Callable[[Any], None]) -> None:
    before = getattr(
        self, "_before", each(lambda g: None if g is None else np.zeros_like(g), grads)
    )
    self._before = grads
    step(each(lambda g: None if g is None else g, before))


def without_tail(self: Any, grads: Any, step: Callable[[Any], None]) -> None:
    def cut(grad: Any) -> Any:
        if grad is None or grad.size < 2:
            return grad
        grad = grad.copy()
        grad.reshape(-1)[-1] = 0
        return grad

    step(each(cut, grads))


def none_as_zero(self: Any, grads: Any, step: Callable[[Any], None]) -> None:
    leaves = [leaf for group in self.param_groups for leaf in group["params"]]
    zeros = iter([np.zeros_like(leaf) for leaf in leaves])
    step(each(lambda g: next(zeros) if g is None else (next(zeros), g)[1], grads))


for right in ALL:
    own = right.__name__
    mutant(f"{own}_one_step_stale", right, stepping(right, stale))
    mutant(f"{own}_last_element_dropped", right, stepping(right, without_tail))
    mutant(f"{own}_missing_gradient_is_zero", right, stepping(right, none_as_zero))
    mutant(f"{own}_maximize_ignored", right, arguments(right, lambda o: {**o, "maximize": False}))
    mutant(
        f"{own}_maximize_sign_turned_twice",
        right,
        arguments(right, lambda o: {**o, "maximize": not o.get("maximize", False)}),
    )
    mutant(
        f"{own}_weight_decay_ignored",
        right,
        arguments(right, lambda o: {**o, "weight_decay": 0.0}),
    )
    mutant(
        f"{own}_decay_coupled_for_decoupled_and_back",
        right,
        type("Mutant", (right,), {"_decay": staticmethod(decay_of(right))}),
    )
    mutant(
        f"{own}_scalars_rounded_to_float32",
        right,
        scalars(right, lambda made, *_: {name: float(np.float32(x)) for name, x in made.items()}),
    )
    if right is not fastopt.Adadelta:  # no recorded vector of it changes lr
        kept = property(right.lr.fget, lambda self, value: None)
        mutant(f"{own}_lr_of_the_first_step_kept", right, type("Mutant", (right,), {"lr": kept}))


# Adam and AdamW ----------------------------------------------------------------------------------


def squared(u: SimpleNamespace) -> None:
    """Adam without the square of the gradient."""
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (np.abs(u.grad) - u.v)
    top = np.maximum(u.vmax, u.v, out=u.vmax) if hasattr(u, "vmax") else u.v
    adam(u, u.m, top)


def adam(u: SimpleNamespace, m: Any, top: Any) -> None:
    if hasattr(u, "eps"):
        u.param -= u.step_size * (m / (np.sqrt(top) + u.eps))
    else:
        u.param -= u.step_size * (m / (np.sqrt(top + u.eps_inside) + u.eps_outside))


def old_m(u: SimpleNamespace) -> None:
    adam(u, u.m.copy(), u.v + u.one_minus_beta2 * (u.grad * u.grad - u.v))
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)


def old_v(u: SimpleNamespace) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    adam(u, u.m, u.v.copy())
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)


def max_forgotten(u: SimpleNamespace) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)
    if hasattr(u, "vmax"):
        u.vmax[...] = u.v
    adam(u, u.m, u.v)


def decay_after(base: Any) -> Make:
    """Return what decays after the update instead of before it."""

    def make(params: Any, weight_decay: float = 0.01, **options: Any) -> Any:
        def step(self: Any, grads: Any) -> None:
            base.step(self, grads)
            for param, grad in zip(params, grads, strict=True):
                if grad is not None:
                    param *= 1 - self.lr * weight_decay

        if isinstance(params[0], dict):
            return base(params, weight_decay=weight_decay, **options)
        return type("Mutant", (base,), {"step": step})(params, weight_decay=0.0, **options)

    return make


def decay_without_lr(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "weight_decay": options.get("weight_decay", 0.01) / options.get("lr", 1e-3)}


def corrected_maximum(base: Any) -> Make:
    """Return AMSGrad with the maximum of the corrected average, as in optax."""
    now = SimpleNamespace(c2=1.0, first=1.0)

    def note(made: dict[str, float], options: dict[str, Any], t: int) -> dict[str, float]:
        now.c2 = 1 - options["betas"][1] ** t if options["bias_correction"] else 1.0
        eps = options["eps"]
        inside = options["eps_inside_sqrt"]
        where = (
            {"eps_inside": eps, "eps_outside": 0.0} if inside else {"eps_outside": eps, "eps": eps}
        )
        return {"step_size": made["step_size"] / math.sqrt(now.c2), **where}

    def update(u: SimpleNamespace) -> None:
        u.m += u.one_minus_beta1 * (u.grad - u.m)
        u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)
        top = u.v / now.c2
        if hasattr(u, "vmax"):
            top = np.maximum(u.vmax, top, out=u.vmax)
        adam(u, u.m, top)

    return scalars(rule(base, update), note)


for right in (fastopt.Adam, fastopt.AdamW):
    own = right.__name__
    swapped = given(right, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t))
    uncorrected = given(right, lambda o, lr, t: ({**o, "bias_correction": False}, lr, t))
    elsewhere = given(
        right, lambda o, lr, t: ({**o, "eps_inside_sqrt": not o["eps_inside_sqrt"]}, lr, t)
    )
    mutant(f"{own}_betas_swapped", right, swapped)
    mutant(f"{own}_no_bias_correction", right, uncorrected)
    mutant(f"{own}_correction_one_step_late", right, given(right, lambda o, lr, t: (o, lr, t + 1)))
    mutant(
        f"{own}_correction_one_step_early",
        right,
        given(right, lambda o, lr, t: (o, lr, max(t - 1, 1))),
    )
    mutant(
        f"{own}_corrected_by_beta_and_not_its_power",  # ODL, Tike
        right,
        given(right, lambda o, lr, t: (o, lr, 1)),
    )
    mutant(f"{own}_eps_on_the_other_side_of_the_root", right, elsewhere)
    mutant(
        f"{own}_eps_before_the_bias_correction",  # keras, chainer
        right,
        scalars(
            right,
            lambda made, o, t: (
                {} if o["eps_inside_sqrt"] else {"eps_outside": o["eps"], "eps": o["eps"]}
            ),
        ),
    )
    mutant(
        f"{own}_only_v_corrected",
        right,
        scalars(
            right,
            lambda made, o, t: {
                "step_size": made["step_size"]
                * (1 - o["betas"][0] ** t if o["bias_correction"] else 1)
            },
        ),
    )
    mutant(
        f"{own}_eps_hat_ignored",
        right,
        given(right, lambda o, lr, t: ({**o, "eps_hat": False}, lr, t)),
    )
    mutant(
        f"{own}_eps_hat_always",
        right,
        given(right, lambda o, lr, t: ({**o, "eps_hat": True}, lr, t)),
    )
    mutant(
        f"{own}_eps_hat_leaves_v_uncorrected",
        right,
        scalars(
            right,
            lambda made, o, t: (
                {"step_size": made["step_size"] / math.sqrt(1 - o["betas"][1] ** t)}
                if o["eps_hat"]
                else {}
            ),
        ),
    )
    mutant(
        f"{own}_eps_hat_multiplied_by_the_root",  # the correction on the wrong side
        right,
        scalars(
            right,
            lambda made, o, t: (
                {"eps": o["eps"] / math.sqrt(1 - o["betas"][1] ** t)} if o["eps_hat"] else {}
            ),
        ),
    )
    mutant(
        f"{own}_eps_hat_ignored_with_amsgrad",
        right,
        given(
            right,
            lambda o, lr, t: ({**o, "eps_hat": o["eps_hat"] and not o["amsgrad"]}, lr, t),
        ),
    )
    mutant(
        f"{own}_eps_hat_ignored_inside_the_root",
        right,
        given(
            right,
            lambda o, lr, t: ({**o, "eps_hat": o["eps_hat"] and not o["eps_inside_sqrt"]}, lr, t),
        ),
    )
    mutant(f"{own}_square_missing", right, rule(right, squared))
    mutant(f"{own}_step_with_the_old_m", right, rule(right, old_m))
    mutant(f"{own}_step_with_the_old_v", right, rule(right, old_v))
    mutant(f"{own}_amsgrad_forgets_the_maximum", right, rule(right, max_forgotten))
    mutant(f"{own}_amsgrad_of_the_corrected_v", right, corrected_maximum(right))
    mutant(f"{own}_one_clock_for_all_parameters", right, common_clock(right))
    mutant(
        f"{own}_m_without_one_minus_beta",
        right,
        scalars(right, lambda made, o, t: {"one_minus_beta1": 1.0}),
    )
mutant("AdamW_decay_after_the_update", fastopt.AdamW, decay_after(fastopt.AdamW))
mutant("AdamW_decay_not_times_lr", fastopt.AdamW, arguments(fastopt.AdamW, decay_without_lr))

# SGD and Momentum --------------------------------------------------------------------------------


def sgd_forms(
    u: SimpleNamespace, lr_inside: bool = False, old_ahead: bool = False, ahead: bool = True
) -> None:
    """SGD in all its forms, with a mistake where the learning rate is outside the buffer."""
    if "lr_inside" in u.rule:
        velocity(u, ahead=look_ahead if "nesterov" in u.rule else None)
        return
    if not hasattr(u, "buf"):
        u.param -= u.lr * u.grad
        return
    nesterov = hasattr(u, "momentum")
    keep, take = (u.momentum, 1.0) if nesterov else (u.keep, u.take)
    inside, outside = (u.lr, 1.0) if lr_inside else (1.0, u.lr)
    old = u.buf.copy()
    u.buf *= keep
    u.buf += inside * take * u.grad
    d = inside * u.grad + keep * (old if old_ahead else u.buf) if nesterov and ahead else u.buf
    u.param -= outside * d


def without_one_minus_beta(u: SimpleNamespace) -> None:
    u.v *= 1 - u.one_minus_beta
    u.v += u.grad
    u.param -= u.step_size * u.v


sgd = fastopt.SGD
mutant("SGD_lr_in_the_buffer", sgd, rule(sgd, lambda u: sgd_forms(u, lr_inside=True)))
mutant("SGD_nesterov_with_the_old_buffer", sgd, rule(sgd, lambda u: sgd_forms(u, old_ahead=True)))
mutant("SGD_nesterov_ignored", sgd, rule(sgd, lambda u: sgd_forms(u, ahead=False)))
mutant(
    "SGD_dampening_at_the_first_step",
    sgd,
    scalars(sgd, lambda made, o, t: {"take": 1 - o["dampening"]}),
)
mutant("SGD_dampening_ignored", sgd, scalars(sgd, lambda made, o, t: {"take": 1.0}))


def velocity(
    u: SimpleNamespace,
    keep: Any = None,
    rate: Any = None,
    sign: float = -1.0,
    ahead: Callable[[SimpleNamespace, Any, Any, Any], Any] | None = None,
) -> None:
    """SGD with the learning rate inside, in both forms, with a mistake.

    ``ahead`` makes the step of the arguments, the old velocity, the new one, and lr * grad.
    """
    keep, rate = u.momentum if keep is None else keep, u.lr if rate is None else rate
    old, taken = u.v.copy(), rate * u.grad
    u.v[...] = keep * old + sign * taken
    u.param += u.v if ahead is None else ahead(u, old, u.v, taken)


def look_ahead(u: SimpleNamespace, old: Any, new: Any, taken: Any) -> Any:
    return u.momentum * new - taken


Ahead = Callable[[SimpleNamespace, Any, Any, Any], Any]
VELOCITY: dict[str, tuple[dict[str, Any], Ahead | None, Ahead | None]] = {
    "rate_missing": ({"rate": 1.0}, None, look_ahead),
    "rate_squared": ({}, lambda u, old, new, taken: u.lr * new, lambda u, o, n, g: u.lr * n),
    "gradient_added": ({"sign": 1.0}, None, look_ahead),
    "nothing_kept": ({"keep": 0.0}, None, look_ahead),
    "all_kept": ({"keep": 1.0}, None, look_ahead),
    "step_with_the_old_velocity": (
        {},
        lambda u, old, new, taken: old,
        lambda u, old, new, taken: u.momentum * old - taken,
    ),
    "step_back": ({}, lambda u, old, new, taken: -new, lambda u, old, new, taken: taken - new),
    "step_of_the_gradient_alone": ({}, lambda u, o, n, taken: -taken, lambda u, o, n, g: -g),
    "momentum_twice": (
        {},
        lambda u, old, new, taken: u.momentum * new,
        lambda u, o, n, g: u.momentum * (u.momentum * n - g),
    ),
    "looks_ahead_where_it_must_not_and_back": ({}, look_ahead, None),
    "gradient_twice": (
        {},
        lambda u, old, new, taken: new - taken,
        lambda u, old, new, taken: u.momentum * new - 2.0 * taken,
    ),
}
for name, (changed, plainly, ahead) in VELOCITY.items():
    for form, step in (("sgd_lr_inside", plainly), ("sgd_lr_inside_nesterov", ahead)):
        mutant(
            f"SGD_{form}_{name}",
            sgd,
            rule_named(sgd, form, partial(velocity, ahead=step, **changed)),
        )
for form, ahead in (("sgd_lr_inside", None), ("sgd_lr_inside_nesterov", look_ahead)):
    mutant(
        f"SGD_{form}_velocity_of_the_first_rate",
        sgd,
        rule_named(sgd, form, partial(velocity, ahead=ahead, rate=1e-3)),
    )
    mutant(
        f"SGD_{form}_is_outside",
        sgd,
        rule_named(
            sgd,
            form,
            partial(
                velocity,
                rate=1.0,
                ahead=lambda u, o, n, g, a=ahead: u.lr * (n if a is None else a(u, o, n, g)),
            ),
        ),
    )
# One clock for all parameters: no recorded vector of SGD has dampening and a missing first
# gradient; test_formulas.py has, under f8.
momentum = fastopt.Momentum
mutant("Momentum_without_one_minus_beta", momentum, rule(momentum, without_one_minus_beta))
mutant(
    "Momentum_bias_correction_ignored",
    momentum,
    given(momentum, lambda o, lr, t: ({**o, "bias_correction": False}, lr, t)),
)
mutant(
    "Momentum_always_corrected",
    momentum,
    given(momentum, lambda o, lr, t: ({**o, "bias_correction": True}, lr, t)),
)
mutant("Momentum_one_clock_for_all_parameters", momentum, common_clock(momentum))

# Adagrad, RMSprop and Adadelta -------------------------------------------------------------------


def adagrad_squared(u: SimpleNamespace) -> None:
    u.s += np.abs(u.grad)
    root = np.sqrt(u.s) + u.eps if hasattr(u, "eps") else np.sqrt(u.s + u.eps_inside)
    u.param -= u.step_size * (u.grad / root)


def adagrad_eps_inside(u: SimpleNamespace) -> None:
    u.s += u.grad * u.grad
    eps = u.eps if hasattr(u, "eps") else u.eps_inside
    u.param -= u.step_size * (u.grad / np.sqrt(u.s + eps))


INSIDE: dict[str, Callable[[SimpleNamespace], Any]] = {
    "outside": lambda u: np.sqrt(u.s) + u.eps_inside,
    "both": lambda u: np.sqrt(u.s + u.eps_inside) + u.eps_inside,
    "ignored": lambda u: np.sqrt(u.s) + np.finfo(float).tiny,
    "of_the_root": lambda u: np.sqrt(u.s + u.eps_inside**2),
    "its_root_outside": lambda u: np.sqrt(u.s) + np.sqrt(u.eps_inside),
    "subtracted": lambda u: np.sqrt(np.abs(u.s - u.eps_inside) + np.finfo(float).tiny),
    "as_the_least": lambda u: np.sqrt(np.maximum(u.s, u.eps_inside)),
    "gathered": lambda u: np.sqrt(np.add(u.s, u.eps_inside, out=u.s)),
    "no_root": lambda u: u.s + u.eps_inside,
    "without_this_gradient": lambda u: np.sqrt(u.s - u.grad * u.grad + u.eps_inside),
    "this_gradient_twice": lambda u: np.sqrt(u.s + u.grad * u.grad + u.eps_inside),
}


def adagrad_inside(u: SimpleNamespace, denominator: Callable[[SimpleNamespace], Any]) -> None:
    u.s += u.grad * u.grad
    u.param -= u.step_size * (u.grad / denominator(u))


for name, denominator in INSIDE.items():
    mutant(
        f"Adagrad_inside_{name}",
        fastopt.Adagrad,
        rule_named(
            fastopt.Adagrad,
            "adagrad_eps_inside",
            partial(adagrad_inside, denominator=denominator),
        ),
    )
adagrad = fastopt.Adagrad
mutant("Adagrad_square_missing", adagrad, rule(adagrad, adagrad_squared))
mutant("Adagrad_eps_inside_the_root", adagrad, rule(adagrad, adagrad_eps_inside))
mutant(
    "Adagrad_lr_decay_one_step_early",
    adagrad,
    given(adagrad, lambda o, lr, t: (o, lr, t + 1)),
)
mutant("Adagrad_begins_at_zero", adagrad, type("M", (adagrad,), {"_fill": lambda options: {}}))
mutant("Adagrad_one_clock_for_all_parameters", adagrad, common_clock(adagrad))


def rmsprop(u: SimpleNamespace, square: Any, centred: bool = True, lr_inside: bool = False) -> None:
    """RMSprop in all its forms, with a mistake where the learning rate is outside the buffer."""
    if "lr_inside" in u.rule:
        rmsprop_inside(u)
        return
    u.v += u.one_minus_beta * (square - u.v)
    w = u.v
    if hasattr(u, "a"):
        u.a += u.one_minus_beta * (u.grad - u.a)
        w = np.abs(u.v - u.factor * (u.a * u.a)) if centred else u.v
    d = u.grad / (np.sqrt(w + u.eps_inside) + u.eps_outside)
    if not hasattr(u, "buf"):
        u.param -= u.step_size * d
        return
    u.buf *= u.momentum
    u.buf += (u.lr if lr_inside else 1.0) * u.rescale * d
    u.param -= (1.0 if lr_inside else u.lr) * u.buf


def rmsprop_inside(
    u: SimpleNamespace,
    square: Callable[[Any], Any] = np.square,
    rate: float = 1.0,
    keep: float | None = None,
    old_v: bool = False,
    old_a: bool = False,
    eps: Callable[[Any, Any, Any], Any] = lambda w, i, o: np.sqrt(w + i) + o,
    of_gradient: bool = False,
    step: Callable[[SimpleNamespace, Any, Any], Any] = lambda u, old, d: u.u,
) -> None:
    """RMSprop with the learning rate inside, in both forms, with a mistake.

    ``step`` makes the step of the arguments, the old buffer, and what was added to it.
    """
    seen, mean = u.v.copy(), u.a.copy() if hasattr(u, "a") else None
    u.v += u.one_minus_beta * (square(u.grad) - u.v)
    w = seen if old_v else u.v
    if hasattr(u, "a"):
        u.a += u.one_minus_beta * (u.grad - u.a)
        centre = mean if old_a else u.a
        w = np.abs(w - u.factor * (centre * centre))
    scaled = u.grad / eps(w, u.eps_inside, u.eps_outside)
    added = rate * u.step_size * (u.grad if of_gradient else scaled)
    old = u.u.copy()
    u.u[...] = (u.momentum if keep is None else keep) * old + added
    u.param -= step(u, old, added)


RATE_INSIDE: dict[str, dict[str, Any]] = {
    "square_missing": {"square": np.abs},
    "rate_halved": {"rate": 0.5},
    "sign_turned": {"rate": -1.0},
    "nothing_kept": {"keep": 0.0},
    "all_kept": {"keep": 1.0},
    "old_average": {"old_v": True, "eps": lambda w, i, o: np.sqrt(w + i) + o + 1e-30},
    "eps_inside_outside": {"eps": lambda w, i, o: np.sqrt(w) + i + o},
    "eps_outside_ignored": {"eps": lambda w, i, o: np.sqrt(w + i) + 1e-30},
    "gradient_not_scaled": {"of_gradient": True},
    "step_with_the_old_buffer": {"step": lambda u, old, added: old},
    "step_without_the_buffer": {"step": lambda u, old, added: added},
    "looks_ahead": {"step": lambda u, old, added: u.momentum * u.u + added},
    "rate_outside_too": {"step": lambda u, old, added: u.step_size * u.u},
    "no_root": {"eps": lambda w, i, o: w + i + o},
}
for name, wrong in RATE_INSIDE.items():
    for form in ("rmsprop_lr_inside", "rmsprop_centered_lr_inside"):
        mutant(
            f"RMSprop_{form}_{name}",
            fastopt.RMSprop,
            rule_named(fastopt.RMSprop, form, partial(rmsprop_inside, **wrong)),
        )
mutant(
    "RMSprop_rmsprop_centered_lr_inside_old_mean",
    fastopt.RMSprop,
    rule_named(fastopt.RMSprop, "rmsprop_centered_lr_inside", partial(rmsprop_inside, old_a=True)),
)

rms = fastopt.RMSprop
mutant("RMSprop_square_missing", rms, rule(rms, lambda u: rmsprop(u, np.abs(u.grad))))
mutant("RMSprop_not_centred", rms, rule(rms, lambda u: rmsprop(u, u.grad * u.grad, centred=False)))
mutant(
    "RMSprop_lr_in_the_buffer",  # keras, optax
    rms,
    rule(rms, lambda u: rmsprop(u, u.grad * u.grad, lr_inside=True)),
)
mutant("RMSprop_begins_at_one", rms, type("M", (rms,), {"_fill": lambda options: {"v": 1.0}}))
mutant(
    "RMSprop_eps_on_the_other_side_of_the_root",
    rms,
    given(rms, lambda o, lr, t: ({**o, "eps_inside_sqrt": not o["eps_inside_sqrt"]}, lr, t)),
)
mutant(
    "RMSprop_bias_correction_ignored",
    rms,
    given(rms, lambda o, lr, t: ({**o, "bias_correction": False}, lr, t)),
)
mutant("RMSprop_one_clock_for_all_parameters", rms, common_clock(rms))


def adadelta(u: SimpleNamespace, of: Callable[[Any], Any], new_u: bool = False) -> None:
    u.v += u.one_minus_rho * (u.grad * u.grad - u.v)
    top = u.u + u.one_minus_rho * (u.grad * u.grad - u.u) if new_u else u.u
    d = np.sqrt(top + u.eps_steps) / np.sqrt(u.v + u.eps) * u.grad
    u.u += u.one_minus_rho * (of(d) ** 2 - u.u)
    u.param -= u.lr * d


def adadelta_eps_outside(u: SimpleNamespace) -> None:
    u.v += u.one_minus_rho * (u.grad * u.grad - u.v)
    d = (np.sqrt(u.u) + u.eps) / (np.sqrt(u.v) + u.eps) * u.grad
    u.u += u.one_minus_rho * (d * d - u.u)
    u.param -= u.lr * d


delta = fastopt.Adadelta
mutant(
    "Adadelta_gathers_scaled_steps", delta, rule(delta, lambda u: adadelta(u, lambda d: u.lr * d))
)
mutant("Adadelta_gathers_gradients", delta, rule(delta, lambda u: adadelta(u, lambda d: u.grad)))
mutant(
    "Adadelta_one_step_ahead", delta, rule(delta, lambda u: adadelta(u, lambda d: d, new_u=True))
)
mutant("Adadelta_eps_outside_the_roots", delta, rule(delta, adadelta_eps_outside))
mutant(
    "Adadelta_rho_and_one_minus_rho_swapped",
    delta,
    given(delta, lambda o, lr, t: ({**o, "rho": 1 - o["rho"]}, lr, t)),
)


# LAMB, Prodigy and Muon --------------------------------------------------------------------------


lamb, prodigy, muon = fastopt.LAMB, fastopt.Prodigy, fastopt.Muon
for right in (lamb, prodigy):
    own = right.__name__
    mutant(
        f"{own}_betas_swapped",
        right,
        given(right, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    )
    mutant(
        f"{own}_bias_correction_ignored",
        right,
        given(right, lambda o, lr, t: ({**o, "bias_correction": False}, lr, t)),
    )
    mutant(f"{own}_one_clock_for_all_parameters", right, common_clock(right))
mutant("LAMB_trust_ignored", lamb, remembering(lamb, lambda host, *rest: ({}, {"trust": 1.0})))
mutant(
    "LAMB_trust_at_most_1",
    lamb,
    remembering(lamb, lambda host, *rest: ({}, {"trust": min(host(*rest)[1]["trust"], 1.0)})),
)
mutant(
    "LAMB_trust_of_squares",
    lamb,
    remembering(lamb, lambda host, *rest: ({}, {"trust": host(*rest)[1]["trust"] ** 2})),
)
mutant(
    "LAMB_eps_before_the_bias_correction",  # keras, chainer
    lamb,
    scalars(lamb, lambda made, o, t: {"eps": o["eps"]}),
)
mutant(
    "Prodigy_beta3_is_beta2",
    prodigy,
    scalars(prodigy, lambda made, o, t: {"beta3": o["beta3"] or o["betas"][1]}),
)
mutant(
    "Prodigy_warmup_never_safe",
    prodigy,
    given(prodigy, lambda o, lr, t: ({**o, "safeguard_warmup": False}, lr, t)),
)
mutant(
    "Prodigy_growth_not_limited",
    prodigy,
    scalars(prodigy, lambda made, o, t: {"growth_rate": math.inf}),
)
mutant("Prodigy_factor_ignored", prodigy, scalars(prodigy, lambda made, o, t: {"d_coef": 1.0}))
mutant(
    "Prodigy_largest_estimate_forgotten",
    prodigy,
    remembering(
        prodigy, lambda host, s, memory, sums: host(s, {**memory, "d_max": memory["d"]}, sums)
    ),
)
mutant(
    "Prodigy_eps_in_units_of_the_old_distance",
    prodigy,
    remembering(
        prodigy,
        lambda host, s, memory, sums: (
            (made := host(s, memory, sums))[0],
            {**made[1], "next_d": memory["d"]},
        ),
    ),
)
mutant("Muon_nesterov_ignored", muon, scalars(muon, lambda m, o, t: {"one_minus_look": 0.0}))
mutant(
    "Muon_coefficients_ignored",
    muon,
    scalars(muon, lambda made, o, t: dict(zip("abc", (3.4445, -4.775, 2.0315), strict=True))),
)
mutant("Muon_gradient_not_averaged", muon, scalars(muon, lambda m, o, t: {"one_minus_momentum": 1}))
mutant("Muon_eps_ignored", muon, scalars(muon, lambda made, o, t: {"eps": 1e-300}))
mutant(
    "Muon_one_iteration_less",
    muon,
    arguments(muon, lambda o: {**o, "ns_steps": o.get("ns_steps", 5) - 1}),
)
mutant("Muon_steps_never_matched", muon, arguments(muon, lambda o: {**o, "adjust_lr": "original"}))


# The tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ALL)
def test_the_right_optimizer_made_like_a_mutant_passes(optimizer: Any) -> None:
    one = vectors_of(optimizer)[-1]  # with its own vectors it is met in test_vectors
    assert meets(one, type("Same", (optimizer,), {}))
    assert meets(one, scalars(optimizer, lambda made, options, t: {}))
    assert meets(one, given(optimizer, lambda options, lr, t: (options, lr, t)))
    assert meets(one, arguments(optimizer, lambda options: options))
    assert meets(one, stepping(optimizer, lambda self, grads, step: step(grads)))


@pytest.mark.parametrize(
    ("optimizer", "update"),
    [
        (sgd, sgd_forms),
        (rms, lambda u: rmsprop(u, u.grad * u.grad)),
        (delta, lambda u: adadelta(u, lambda d: d)),
    ],
)
def test_the_forms_that_mutants_are_written_from_pass(optimizer: Any, update: Any) -> None:
    assert passes(optimizer, rule(optimizer, update))


@pytest.mark.parametrize(("optimizer", "make"), families.RIGHT)
def test_what_mutants_of_a_family_are_written_from_passes(optimizer: Any, make: Any) -> None:
    assert passes(optimizer, make)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_optimizer_is_caught(name: str) -> None:
    optimizer, make = MUTANTS[name]
    assert not passes(optimizer, make)
