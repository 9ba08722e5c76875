"""Schedule-free SGD and AdamW, after the authors' package schedulefree and optax."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper, Result
from . import cases_of

FOLDER = ""
PACKAGES = ("schedulefree", "torch", "optax", "jax")
COUNTS: Hyper = {"warmup_steps": 0, "weight_lr_power": 2.0, "r": 0.0}
DEFAULTS: dict[str, Hyper] = {
    "ScheduleFreeSGD": {"lr": 1.0, "momentum": 0.9, **COUNTS},
    "ScheduleFreeAdamW": {"lr": 2.5e-3, "betas": [0.9, 0.999], "eps": 1e-8, **COUNTS},
}


def averaged(y: Numbers, u: Numbers, beta: Decimal, s: State, t: int, hyper: Hyper) -> Numbers:
    """Return y after a step of z along u, from the three sequences of the paper."""
    lr, warmup = hyper["lr"], hyper["warmup_steps"]
    lr = lr * t / warmup if t < warmup else lr
    z, x = s.get("_z", y), s.get("_x", y)
    s["_largest"] = max(s.get("_largest", lr), lr)
    # In the context's arithmetic 0^0 is an error; a power of 0 counts all steps alike.
    power = hyper["weight_lr_power"]
    weight = Decimal(t) ** hyper["r"] * (s["_largest"] ** power if power else ONE)
    s["_sum"] = s.get("_sum", Decimal(0)) + weight
    c = weight / s["_sum"] if s["_sum"] else Decimal(0)
    z = s["_z"] = z - lr * u
    x = s["_x"] = (ONE - c) * x + c * z
    return beta * x + (ONE - beta) * z


def sgd(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    return averaged(p, g, hyper["momentum"], state, t, hyper)


def adamw(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    v = blend(state, "v", b2, g * g) / (ONE - b2**t)
    u = g / (np.sqrt(v) + hyper["eps"]) + hyper["weight_decay"] * p
    return averaged(p, u, b1, state, t, hyper)


def with_all_state(step: Any) -> Any:
    """Return the step of a formula that records what ours remembers: d = z - y, peak and total."""

    def stepping(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
        y = step(p, g, state, t, hyper)
        state["d"] = state["_z"] - y
        every = np.full(y.shape, ONE)
        state["peak"] = every * state["_largest"] ** hyper["weight_lr_power"]
        state["total"] = every * state["_sum"]
        return y

    return stepping


def with_numbers(oracle: Oracle) -> Oracle:
    """Return an oracle whose peak and total are numbers of each parameter, without axes."""

    def run(case: Case, inputs: Any) -> Result:
        result = oracle(case, inputs)
        numbers = {
            name: [np.array(values.flat[0]) for values in result.state[name]]
            for name in ("peak", "total")
        }
        return replace(result, state={**result.state, **numbers})

    return run


class Apart:
    """A class of the package, in train mode, that leaves the counts alone without a gradient.

    Each parameter has a group of its own, since the package counts by group.
    """

    def __init__(self, name: str, groups: Any, **arguments: Any) -> None:
        import schedulefree

        single = [{**group, "params": [p]} for group in groups for p in group["params"]]
        self.inner = getattr(schedulefree, name)(single, foreach=False, **arguments)
        self.inner.train()
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def step(self) -> None:
        absent = [g for g in self.param_groups if g["params"][0].grad is None]
        before = [{k: g[k] for k in ("k", "weight_sum", "lr_max")} for g in absent]
        self.inner.step()
        for group, counts in zip(absent, before, strict=True):
            group.update(counts)


def sgd_arguments(hyper: Hyper) -> Hyper:
    return {"momentum": hyper["momentum"], **common_arguments(hyper)}


def adamw_arguments(hyper: Hyper) -> Hyper:
    return {"betas": tuple(hyper["betas"]), "eps": hyper["eps"], **common_arguments(hyper)}


def common_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("schedulefree cannot maximize")
    return {name: hyper[name] for name in ("lr", "weight_decay", *COUNTS)}


def sgd_of_optax(hyper: Hyper) -> Any:
    import optax

    decay = optax.add_decayed_weights(hyper["weight_decay"])
    return of_optax(optax.chain(decay, optax.sgd(hyper["lr"])), hyper["momentum"], hyper)


def adamw_of_optax(hyper: Hyper) -> Any:
    import optax

    b1, b2 = hyper["betas"]
    base = optax.chain(
        optax.scale_by_rms(decay=b2, eps=hyper["eps"], eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(hyper["weight_decay"]),
        optax.scale_by_learning_rate(hyper["lr"]),
    )
    return of_optax(base, b1, hyper)


def of_optax(base: Any, beta: float, hyper: Hyper) -> Any:
    import optax

    if hyper["warmup_steps"] or hyper["r"]:
        raise ValueError("optax begins its warm-up elsewhere, and does not weigh by the count")
    return optax.contrib.schedule_free(
        base, hyper["lr"], b1=beta, weight_lr_power=hyper["weight_lr_power"]
    )


ORACLES: dict[str, dict[str, Oracle]] = {
    "ScheduleFreeSGD": {
        "schedulefree": by_class(
            lambda groups, **arguments: Apart("SGDScheduleFree", groups, **arguments),
            sgd_arguments,
            {},
        ),
        "optax": by_optax(sgd_of_optax, {}, with_rate=True),
        "closed": by_formula(sgd),
        "state": with_numbers(by_formula(with_all_state(sgd))),
    },
    "ScheduleFreeAdamW": {
        "schedulefree": by_class(
            lambda groups, **arguments: Apart("AdamWScheduleFree", groups, **arguments),
            adamw_arguments,
            {"exp_avg_sq": "v"},
        ),
        "optax": by_optax(adamw_of_optax, {"nu": "v"}, with_rate=True),
        "closed": by_formula(adamw, decoupled=True),
        "state": with_numbers(by_formula(with_all_state(adamw), decoupled=True)),
    },
}
SO, SC, OC = ("schedulefree", "optax"), ("schedulefree", "closed"), ("optax", "closed")
STATE = ("state",)
ODD: Hyper = {"warmup_steps": 7, "weight_lr_power": 1.5, "r": 0.5, "weight_decay": 0.03}


def cases(name: str, small: Hyper, odd: Hyper, other: Hyper) -> tuple[Case, ...]:
    """Return the cases of one class, with a small learning rate, odd ones and other betas."""
    return cases_of(
        name,
        DEFAULTS[name],
        ("default", (*SO, "closed"), {}),
        ("odd", SC, {**ODD, **odd}),
        ("other", (*SO, "closed"), other),
        ("warmup", SC, {**small, "warmup_steps": 12}),
        ("count_power", SC, {**small, "r": 2.0}),
        ("alike", SO, {**small, "weight_lr_power": 0.0}, {"lr_changes": {9: 0.2, 17: 0.0}}),
        ("weight_decay", (*SO, "closed"), {**small, "weight_decay": 0.1}),
        ("maximize", OC, {**small, "weight_decay": 0.1, "maximize": True}),
        ("long", SC, small, {"inputs": "long", "steps": 200}),
        ("missing", SC, {**small, "warmup_steps": 5}, {"missing": MISSING}),
        ("groups", SC, small, {"groups": GROUPS}),
        ("lr_change", (*SO, "closed"), small, {"lr_changes": LATER}),
        ("from_zero", SC, {**small, "lr": 0.0}, {"lr_changes": {3: 0.01, 12: 0.04}}),
        ("state", STATE, {**small, **ODD}, {"inputs": "dense", "missing": MISSING}),
    )


CASES: dict[str, tuple[Case, ...]] = {
    "ScheduleFreeSGD": cases(
        "ScheduleFreeSGD",
        {"lr": 0.01},
        {"lr": 0.3, "momentum": 0.37},
        {"lr": 0.05, "momentum": 0.98},
    ),
    "ScheduleFreeAdamW": cases(
        "ScheduleFreeAdamW",
        {"lr": 0.01},
        {"lr": 0.2, "betas": [0.6, 0.9], "eps": 1e-3},
        {"lr": 0.05, "betas": [0.98, 0.95]},
    ),
}
