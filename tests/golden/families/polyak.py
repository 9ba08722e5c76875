"""MoMo and MoMoAdam after optax, and after the paper in decimal arithmetic: all arrays together."""

from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from ..kind_files import WithMemory
from ..oracle_closed_form import CONTEXT, ONE, exact, exact_array, to_float64
from ..oracles import Inputs, Oracle, counts_of
from ..vector_cases import LATER, MISSING, Array, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("optax", "jax")
DEFAULTS: dict[str, Hyper] = {
    "MoMo": {"lr": 1.0, "beta": 0.9, "lower_bound": 0.0, "adapt_lower_bound": False},
    "MoMoAdam": {
        "lr": 1e-2,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "lower_bound": 0.0,
        "adapt_lower_bound": False,
    },
}
ZERO = Decimal(0)


def by_optax(make: str) -> Oracle:
    """Return what runs a transformation of optax.contrib, all parameters together."""
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)

    def build(hyper: Hyper, lr: float) -> Any:
        names = ("lower_bound", "weight_decay", "adapt_lower_bound")
        given = {name: hyper[name] for name in names}
        if make == "momo":
            given["beta"] = hyper["beta"]
        else:
            given |= {"b1": hyper["betas"][0], "b2": hyper["betas"][1], "eps": hyper["eps"]}
        return getattr(optax.contrib, make)(learning_rate=lr, **given)

    def run(case: Case, inputs: Inputs) -> WithMemory:
        assert not case.missing, "optax has no missing gradients"
        assert not case.groups
        hyper, sign = case.base(), -1.0 if case.base()["maximize"] else 1.0
        params = [jax.numpy.asarray(p) for p in inputs["p"]]
        lr = hyper["lr"]
        kept = build(hyper, lr).init(params)
        path: list[list[Array]] = [[] for _ in params]
        memory: dict[str, list[float]] = {"average": [], "gamma": [], "bound": []}
        for at in range(case.steps):
            lr = case.lr_changes.get(at, lr)
            grads = [sign * jax.numpy.asarray(g[at]) for g in inputs["g"]]
            value = sign * case.values[at]
            update, kept = build(hyper, lr).update(grads, kept, params, value=value)
            params = optax.apply_updates(params, update)
            for own, param in zip(path, params, strict=True):
                own.append(np.asarray(param))
            for name, theirs in (("average", "barf"), ("gamma", "gamma"), ("bound", "lb")):
                memory[name].append(float(getattr(kept, theirs)))
        slots = {"m": kept.exp_avg} | ({"v": kept.exp_avg_sq} if make == "momo_adam" else {})
        state = {letter: [np.asarray(x) for x in arrays] for letter, arrays in slots.items()}
        return WithMemory([np.stack(p) for p in path], state, counts_of(case), memory)

    return run


def dot(a: Any, b: Any) -> Decimal:
    return sum((a * b).reshape(-1), ZERO)


def closed(adam: bool) -> Oracle:
    """Return what works the paper's algorithm 1 or 2 out in 50 digits.

    Each group has its own lr and weight_decay: the model is minimised in the metric of 1 / lr.
    """

    def run(case: Case, inputs: Inputs) -> WithMemory:
        with localcontext(CONTEXT):
            return work_out(case, inputs)

    def work_out(case: Case, inputs: Inputs) -> WithMemory:
        everyone = range(len(inputs["p"]))
        hypers = [{k: exact(x) for k, x in case.hyper(i).items()} for i in everyone]
        one = hypers[0]
        b1 = one["betas"][0] if adam else one["beta"]
        sign = -1 if one["maximize"] else 1
        p = [exact_array(x) for x in inputs["p"]]
        m, v = [0 * x for x in p], [0 * x for x in p]
        counts = [0] * len(p)
        low = one["lower_bound"]
        f = gamma = weight = ZERO
        bound, begun = low, False
        path: list[list[Array]] = [[] for _ in p]
        memory: dict[str, list[float]] = {"average": [], "gamma": [], "bound": []}
        for at in range(case.steps):
            for hyper in hypers:
                hyper["lr"] = exact(case.lr_changes.get(at, hyper["lr"]))
            there = [i for i in everyone if not case.is_missing(i, at)]
            if there:
                keep = b1 if begun or adam else ZERO
                begun = True
                slope, u = ZERO, {}
                for i in there:
                    g = sign * exact_array(inputs["g"][i][at, ...])
                    own = b1 if counts[i] or adam else ZERO
                    counts[i] += 1
                    slope += dot(g, p[i])
                    m[i] = own * m[i] + (ONE - own) * g
                    u[i] = m[i]
                    if adam:
                        b2 = hypers[i]["betas"][1]
                        v[i] = b2 * v[i] + (ONE - b2) * g * g
                        root = np.sqrt(v[i] / (ONE - b2 ** counts[i]))
                        u[i] = m[i] / (ONE - b1 ** counts[i]) / (root + hypers[i]["eps"])
                f = keep * f + (ONE - keep) * sign * Decimal(case.values[at])
                gamma = keep * gamma + (ONE - keep) * slope
                weight = keep * weight + (ONE - keep)
                growth = {i: ONE + hypers[i]["lr"] * hypers[i]["weight_decay"] for i in there}
                inner = sum((dot(m[i], p[i]) for i in there), ZERO)
                shrunk = sum((dot(m[i], p[i]) / growth[i] for i in there), ZERO)
                spans = {i: hypers[i]["lr"] * dot(m[i], u[i]) for i in there}
                span = sum(spans.values(), ZERO)
                shrunk_span = sum((spans[i] / growth[i] for i in there), ZERO)
                above = f - gamma + shrunk
                if one["adapt_lower_bound"] and above < weight * bound:
                    bound = max(low, above / (2 * weight))
                share = ZERO
                if shrunk_span:
                    share = min(ONE, max(ZERO, (above - weight * bound) / shrunk_span))
                if one["adapt_lower_bound"]:
                    bound = max(low, (f + inner - gamma - share * span / 2) / weight)
                for i in there:
                    p[i] = p[i] / growth[i] - share * hypers[i]["lr"] * u[i]
            for own_path, x, like in zip(path, p, inputs["p"], strict=True):
                own_path.append(to_float64(x, like.shape))
            for name, number in (("average", f), ("gamma", gamma), ("bound", bound)):
                memory[name].append(float(number))
        slots = {"m": m} | ({"v": v} if adam else {})
        state = {
            letter: [to_float64(x, like.shape) for x, like in zip(xs, inputs["p"], strict=True)]
            for letter, xs in slots.items()
        }
        return WithMemory([np.stack(x) for x in path], state, counts, memory)

    return run


def losses(first: float, last: float, wave: float) -> tuple[float, ...]:
    """Return a loss that falls in waves, some of which go below 0."""
    falls = [last + (first - last) * 0.85**t for t in range(30)]
    return tuple(fall + wave * (t % 4 - 1.5) for t, fall in enumerate(falls))


ORACLES: dict[str, dict[str, Oracle]] = {
    "MoMo": {"optax": by_optax("momo"), "closed": closed(adam=False)},
    "MoMoAdam": {"optax": by_optax("momo_adam"), "closed": closed(adam=True)},
}
OC, C = ("optax", "closed"), ("closed",)
FALLS = losses(3.0, 0.5, 0.25)
DEEP = losses(2.0, -0.5, 0.75)
PULL = {"inputs": "pull", "values": FALLS}
GROUPS_OF_RATES = (
    {"params": [0]},
    {"params": [1], "lr": 0.05, "weight_decay": 0.3},
    {"params": [2], "weight_decay": 0.02},
)
ADAPTS = {"adapt_lower_bound": True}
CASES: dict[str, tuple[Case, ...]] = {
    "MoMo": cases_of(
        "MoMo",
        DEFAULTS["MoMo"],
        ("default", OC, {}, {"inputs": "small", "values": FALLS}),
        ("pull", OC, {"lr": 0.3}, PULL),
        ("odd", OC, {"lr": 0.2, "beta": 0.35, "lower_bound": 0.25}, PULL),
        ("short", OC, {"lr": 0.02, "lower_bound": -2.0}, PULL),
        ("no_momentum", OC, {"lr": 0.2, "beta": 0.0}, PULL),
        ("adapts", OC, ADAPTS | {"lr": 0.2}, {"inputs": "pull", "values": DEEP}),
        ("adapts_deep", OC, ADAPTS | {"lr": 0.1, "lower_bound": -1.0, "weight_decay": 0.1}, PULL),
        ("weight_decay", OC, {"lr": 0.2, "weight_decay": 0.5}, PULL),
        (
            "maximize",
            OC,
            {"lr": 0.1, "maximize": True, "lower_bound": -4.0, "weight_decay": 0.1},
            PULL,
        ),
        ("missing", C, {"lr": 0.2, "weight_decay": 0.1}, PULL | {"missing": MISSING}),
        ("groups", C, {"lr": 0.2}, PULL | {"groups": GROUPS_OF_RATES}),
        ("lr_change", OC, {"lr": 0.2}, PULL | {"lr_changes": {10: 0.02, 20: 0.5}}),
    ),
    "MoMoAdam": cases_of(
        "MoMoAdam",
        DEFAULTS["MoMoAdam"],
        ("default", OC, {}, {"inputs": "small", "values": FALLS}),
        ("pull", OC, {"lr": 0.3}, PULL),
        ("odd", OC, {"lr": 0.2, "betas": [0.35, 0.8], "eps": 0.1, "lower_bound": 0.25}, PULL),
        ("short", OC, {"lr": 0.02, "lower_bound": -2.0}, PULL),
        ("no_momentum", OC, {"lr": 0.2, "betas": [0.0, 0.9]}, PULL),
        ("adapts", OC, ADAPTS | {"lr": 0.2}, {"inputs": "pull", "values": DEEP}),
        ("adapts_deep", OC, ADAPTS | {"lr": 0.1, "lower_bound": -1.0, "weight_decay": 0.1}, PULL),
        ("weight_decay", OC, {"lr": 0.2, "weight_decay": 0.5}, PULL),
        (
            "maximize",
            OC,
            {"lr": 0.1, "maximize": True, "lower_bound": -4.0, "weight_decay": 0.1},
            PULL,
        ),
        ("missing", C, {"lr": 0.2, "weight_decay": 0.1}, PULL | {"missing": MISSING}),
        ("groups", C, {"lr": 0.2}, PULL | {"groups": GROUPS_OF_RATES}),
        ("lr_change", OC, {"lr": 0.2}, PULL | {"lr_changes": LATER}),
    ),
}
