"""Sophia after pytorch_optimizer (po), AdaHessian after timm and po, and both after the papers.

Every ``hessian_every``-th step is handed an estimate: the gradients, last one first.
"""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend, exact_array
from ..oracles import Inputs, Oracle, by_class, by_formula, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Array, Case, Hyper, Result
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "pytorch_optimizer", "timm")
DEFAULTS: dict[str, Hyper] = {
    "Sophia": {"lr": 6e-4, "betas": [0.96, 0.99], "gamma": 0.01, "eps": 1e-12},
    "AdaHessian": {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8},
}


def estimate(case: Case, inputs: Inputs, i: int, at: int) -> Array | None:
    """Return the estimate that a parameter is handed in a step, if it is."""
    if at % case.hessian_every or case.is_missing(i, at):
        return None
    return inputs["g"][i][case.steps - 1 - at, ...]


def sophia_of_po(case: Case, inputs: Inputs) -> Result:
    import torch
    from pytorch_optimizer import SophiaH

    sign = -1.0 if case.base()["maximize"] else 1.0

    def step(optimizer: Any, t: int) -> None:
        optimizer.update_period = 10**9
        given = [estimate(case, inputs, i, t - 1) for i in range(3)]
        if all(one is None for one in given):
            if t == 1:
                raise ValueError("SophiaH estimates by itself in its first step")
            optimizer.step()
            return
        optimizer.step(hessian=[torch.tensor(sign * one) for one in given])

    def arguments(hyper: Hyper) -> Hyper:
        gamma = hyper["gamma"]
        return {
            "lr": hyper["lr"] / gamma,
            "betas": hyper["betas"],
            "eps": hyper["eps"] / gamma,
            "p": gamma,
            "weight_decay": hyper["weight_decay"] * gamma,
            "maximize": hyper["maximize"],
            "foreach": False,
        }

    letters = {"momentum": "m", "hessian_moment": "h"}
    return by_class(SophiaH, arguments, letters, step)(case, inputs)


def adahessian_of_po(case: Case, inputs: Inputs) -> Result:
    import torch
    from pytorch_optimizer import AdaHessian

    def step(optimizer: Any, t: int) -> None:
        optimizer.update_period = 10**9
        given = [estimate(case, inputs, i, t - 1) for i in range(3)]
        if all(one is None for one in given):
            optimizer.step()
            return
        optimizer.step(hessian=[torch.tensor(one) for one in given])

    def arguments(hyper: Hyper) -> Hyper:
        return {k: hyper[k] for k in ("lr", "betas", "eps", "weight_decay", "maximize")}

    letters = {"exp_avg": "m", "exp_hessian_diag_sq": "v"}
    return by_class(AdaHessian, arguments, letters, step)(case, inputs)


def adahessian_of_timm(case: Case, inputs: Inputs) -> Result:
    import torch

    base = of_timm("adahessian", "Adahessian")

    class Handed(base):  # type: ignore[misc,valid-type]
        """The class of timm, with estimates from outside."""

        def zero_hessian(self) -> None:
            pass

        def set_hessian(self) -> None:
            pass

    def step(optimizer: Any, t: int) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for i, param in enumerate(params):
            given = estimate(case, inputs, i, t - 1)
            param.hess = None if given is None else torch.tensor(given)
        with torch.no_grad():
            optimizer.step()

    def arguments(hyper: Hyper) -> Hyper:
        if hyper["maximize"] or case.hessian_every != 1:
            raise ValueError("timm cannot maximize, and averages an estimate again")
        return {k: hyper[k] for k in ("lr", "betas", "eps", "weight_decay")}

    letters = {"exp_avg": "m", "exp_hessian_diag_sq": "v"}
    return by_class(Handed, arguments, letters, step)(case, inputs)


def at_most(numbers: Numbers, limit: Decimal) -> Numbers:
    return np.array([min(x, limit) for x in numbers], dtype=object)


def at_least(numbers: Numbers, limit: Decimal) -> Numbers:
    return np.array([max(x, limit) for x in numbers], dtype=object)


def sophia(p: Numbers, g: Numbers, h: Numbers | None, state: State, t: int, o: Hyper) -> Numbers:
    (b1, b2), sign = o["betas"], -1 if o["maximize"] else 1
    m = blend(state, "m", b1, g)
    average = state.get("h", 0 * g) if h is None else blend(state, "h", b2, sign * h)
    state["h"] = average
    u = m / at_least(o["gamma"] * average, o["eps"])
    u = at_least(at_most(u, ONE), -ONE)
    return p * (ONE - o["lr"] * o["weight_decay"]) - o["lr"] * u


def adahessian(
    p: Numbers, g: Numbers, h: Numbers | None, state: State, t: int, o: Hyper
) -> Numbers:
    b1, b2 = o["betas"]
    m = blend(state, "m", b1, g)
    v = state["v"] if h is None else blend(state, "v", b2, h * h)
    root = np.sqrt(v / (ONE - b2**t))
    step = m / (ONE - b1**t) / (root + o["eps"])
    return p * (ONE - o["lr"] * o["weight_decay"]) - o["lr"] * step


def closed(form: Any) -> Oracle:
    """Return what works a formula out in decimal arithmetic that takes an estimate, or None."""

    def run(case: Case, inputs: Inputs) -> Result:
        # Which parameter this is: by_formula runs one after the other, step by step.
        turn = iter(
            (i, at) for i in range(3) for at in range(case.steps) if not case.is_missing(i, at)
        )

        def step(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
            given = estimate(case, inputs, *next(turn))
            h = None if given is None else exact_array(given)
            made: Numbers = form(p, g, h, state, t, hyper)
            return made

        return by_formula(step, decoupled=True)(case, inputs)

    return run


ORACLES: dict[str, dict[str, Oracle]] = {
    "Sophia": {"po": sophia_of_po, "closed": closed(sophia)},
    "AdaHessian": {
        "timm": adahessian_of_timm,
        "po": adahessian_of_po,
        "closed": closed(adahessian),
    },
}
PC, C, TPC = ("po", "closed"), ("closed",), ("timm", "po", "closed")
EACH, SOME, FEW = ({"hessian_every": k} for k in (1, 3, 10))
CASES: dict[str, tuple[Case, ...]] = {
    "Sophia": cases_of(
        "Sophia",
        DEFAULTS["Sophia"],
        ("default", PC, {}, FEW),
        ("often", PC, {"lr": 0.01}, EACH),
        ("odd", PC, {"lr": 0.02, "betas": [0.3, 0.7], "gamma": 2.0, "eps": 0.1}, SOME),
        ("eps_big", PC, {"lr": 0.02, "eps": 10.0}, SOME),
        ("forgets", PC, {"lr": 0.01, "betas": [0.0, 0.0], "gamma": 1.0}, SOME),
        ("weight_decay", PC, {"lr": 0.01, "gamma": 0.5, "weight_decay": 0.1}, SOME),
        ("maximize", PC, {"lr": 0.01, "gamma": 0.5, "maximize": True}, SOME),
        ("long", PC, {"lr": 0.01, "gamma": 0.1}, FEW | {"inputs": "long", "steps": 200}),
        ("missing", C, {"lr": 0.01, "gamma": 0.5}, SOME | {"missing": MISSING}),
        ("groups", C, {"gamma": 0.5}, SOME | {"groups": GROUPS}),
        ("lr_change", C, {"gamma": 0.5}, SOME | {"lr_changes": LATER}),
    ),
    "AdaHessian": cases_of(
        "AdaHessian",
        DEFAULTS["AdaHessian"],
        ("default", TPC, {}, EACH | {"inputs": "dense"}),
        ("sparse", PC, {"eps": 1e-3}, SOME | {"inputs": "dense"}),
        ("odd", TPC, {"lr": 0.02, "betas": [0.3, 0.7], "eps": 0.1}, EACH),
        ("eps_big", TPC, {"lr": 0.5, "eps": 1.0}, EACH),
        ("forgets", TPC, {"lr": 0.01, "betas": [0.0, 0.0], "eps": 0.01}, EACH),
        ("eps_zero", PC, {"lr": 0.01, "eps": 0.0}, EACH | {"inputs": "mild"}),
        ("weight_decay", TPC, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}, EACH),
        ("maximize", PC, {"lr": 0.01, "eps": 1e-3, "maximize": True}, EACH),
        (
            "long",
            TPC,
            {"lr": 0.01, "eps": 1e-3},
            EACH | {"inputs": "long", "steps": 200},
        ),
        ("missing", C, {"lr": 0.01, "eps": 1e-3}, EACH | {"missing": MISSING}),
        ("groups", C, {"eps": 1e-3}, SOME | {"groups": GROUPS}),
        ("lr_change", PC, {"eps": 1e-3}, EACH | {"lr_changes": LATER}),
    ),
}
