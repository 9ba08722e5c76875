"""DoG and DoWG, after optax; DAdaptAdam and DAdaptSGD, after their authors' package dadaptation.

Their sums go over all parameters, so that the oracles here run all of them together. dadaptation
wants one lr in all groups, and takes g0 without weight decay; pytorch_optimizer (po) makes its sums
in the default dtype, which is set to float64 here, and its DAdaptSGD is 1e-5 off. Where a parameter
has no gradient it is in no sum of that step, which is so in dadaptation, and not in optax.
Inputs are small, since p - p0 loses digits beside a large p0.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from ..kind_files import WithMemory
from ..oracle_closed_form import CONTEXT, ONE, Numbers, State, exact, exact_array, to_float64
from ..oracles import Inputs, Oracle, counts_of
from ..vector_cases import GROUPS, MISSING, Array, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("optax", "jax", "torch", "dadaptation", "pytorch_optimizer")
INFINITE = float("inf")
D: Hyper = {"lr": 1.0, "d0": 1e-6, "growth_rate": INFINITE}
DEFAULTS: dict[str, Hyper] = {
    "DoG": {"lr": 1.0, "d0": None, "d0_relative": 1e-6, "eps": 1e-8},
    "DoWG": {"lr": 1.0, "d0": 1e-2, "eps": 1e-4},
    "DAdaptAdam": D
    | {
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "bias_correction": False,
        "decoupled_weight_decay": False,
    },
    "DAdaptSGD": D | {"momentum": 0.0},
}

Together = Callable[[list[Numbers], dict[int, Numbers], list[State], State, list[Hyper], int], None]


def together(step: Together, names: tuple[str, ...]) -> Oracle:
    """Return what works a formula of all parameters out in decimal arithmetic.

    ``step(p, g, states, memory, hypers, t)`` changes the parameters, given the gradients by index,
    their states (what begins with ``_`` is not recorded), and the numbers of all, of which those in
    ``names`` are recorded after each step; t counts all steps, and ``_t`` of a state its own.
    """

    def run(case: Case, inputs: Inputs) -> WithMemory:
        with localcontext(CONTEXT):
            everyone = range(len(inputs["p"]))
            hypers = [
                {k: x if x is None else exact(x) for k, x in case.hyper(i).items()}
                for i in everyone
            ]
            p = [exact_array(x) for x in inputs["p"]]
            states: list[State] = [{"_t": 0} for _ in everyone]
            memory = State()
            path: list[list[Array]] = [[] for _ in everyone]
            kept: dict[str, list[float]] = {name: [] for name in names}
            for at in range(case.steps):
                for hyper in hypers:
                    hyper["lr"] = exact(case.lr_changes.get(at, hyper["lr"]))
                g = {}
                for i in everyone:
                    if case.is_missing(i, at):
                        continue
                    states[i]["_t"] += 1
                    given = exact_array(inputs["g"][i][at, ...])
                    g[i] = -given if hypers[i]["maximize"] else given
                    if not hypers[i].get("decoupled_weight_decay"):
                        g[i] = g[i] + hypers[i]["weight_decay"] * p[i]
                if g:
                    step(p, g, states, memory, hypers, at + 1)
                for i in everyone:
                    path[i].append(to_float64(p[i], inputs["p"][i].shape))
                for name in names:
                    kept[name].append(float(memory[name]))
            state = {
                letter: [
                    to_float64(s[letter], x.shape) for s, x in zip(states, inputs["p"], strict=True)
                ]
                for letter in states[0]
                if not letter.startswith("_")
            }
            return WithMemory([np.stack(x) for x in path], state, counts_of(case), kept)

    return run


def squares(all_numbers: Any) -> Decimal:
    return sum((x * x for numbers in all_numbers for x in numbers), Decimal(0))


def begin(p: list[Numbers], g: dict[int, Numbers], states: list[State]) -> None:
    for i in g:
        states[i].setdefault("p0", p[i].copy())


def dog(p: Any, g: Any, states: Any, memory: Any, hypers: Any, t: int) -> None:
    begin(p, g, states)
    hyper = hypers[0]
    if "distance" not in memory:
        start = hyper["d0_relative"] * (ONE + squares(states[i]["p0"] for i in g).sqrt())
        memory |= {"distance": hyper["d0"] or start, "total": Decimal(0)}
    moved = squares(p[i] - states[i]["p0"] for i in g).sqrt()
    memory["distance"] = max(memory["distance"], moved)
    memory["total"] += squares(g.values())
    rate = memory["distance"] / (memory["total"] + hyper["eps"]).sqrt()
    for i in g:
        p[i] = p[i] - hypers[i]["lr"] * rate * g[i]


def dowg(p: Any, g: Any, states: Any, memory: Any, hypers: Any, t: int) -> None:
    begin(p, g, states)
    if "area" not in memory:
        memory |= {"area": hypers[0]["d0"] ** 2, "total": Decimal(0)}
    memory["area"] = max(memory["area"], squares(p[i] - states[i]["p0"] for i in g))
    memory["total"] += memory["area"] * squares(g.values())
    rate = memory["area"] / (memory["total"].sqrt() + hypers[0]["eps"])
    for i in g:
        p[i] = p[i] - hypers[i]["lr"] * rate * g[i]


def adam(p: Any, g: Any, states: Any, memory: Any, hypers: Any, t: int) -> None:
    one = hypers[0]
    (b1, b2), share = one["betas"], ONE - Decimal(float(one["betas"][1]) ** 0.5)
    if "d" not in memory:
        memory |= {"d": one["d0"], "numerator": Decimal(0)}
    d, along, length = memory["d"], Decimal(0), Decimal(0)
    for i in g:
        state, hyper = states[i], hypers[i]
        rate = d * hyper["lr"]
        if one["bias_correction"]:
            rate = rate * (ONE - b2 ** state["_t"]).sqrt() / (ONE - b1 ** state["_t"])
        m, v, s = (state.get(name, 0 * g[i]) for name in "mvs")
        along += sum(rate * g[i] * s / (np.sqrt(v) + hyper["eps"]), Decimal(0))
        state["m"] = b1 * m + (ONE - b1) * rate * g[i]
        state["v"] = b2 * v + (ONE - b2) * g[i] * g[i]
        state["s"] = (ONE - share) * s + share * rate * g[i]
        length += sum(abs(state["s"]), Decimal(0))
        state["_rate"] = rate
    if not length:
        return
    memory["numerator"] = (ONE - share) * memory["numerator"] + share * along
    estimate = memory["numerator"] / (share * length)
    memory["d"] = max(d, min(estimate, d * one["growth_rate"]))
    for i in g:
        state, hyper = states[i], hypers[i]
        decay = hyper["weight_decay"] if hyper["decoupled_weight_decay"] else 0
        step = state["m"] / (np.sqrt(state["v"]) + hyper["eps"])
        p[i] = p[i] - state["_rate"] * decay * p[i] - step


def sgd(p: Any, g: Any, states: Any, memory: Any, hypers: Any, t: int) -> None:
    begin(p, g, states)
    if "d" not in memory:
        memory |= {"d": hypers[0]["d0"], "numerator": Decimal(0), "g0": Decimal(0)}
    d = memory["d"]
    memory["g0"] = memory["g0"] or squares(g.values()).sqrt()
    for i in g:
        states[i].setdefault("s", 0 * g[i])
    if memory["g0"]:
        for i in g:
            state, pull = states[i], d * hypers[i]["lr"] / memory["g0"] * g[i]
            memory["numerator"] += sum(pull * state["s"], Decimal(0))
            state["s"] = state["s"] + pull
        length = squares(states[i]["s"] for i in g).sqrt()
        if length:
            estimate = 2 * memory["numerator"] / length
            memory["d"] = max(d, min(estimate, d * hypers[0]["growth_rate"]))
            for i in g:
                momentum = hypers[i]["momentum"]
                p[i] = momentum * p[i] + (ONE - momentum) * (states[i]["p0"] - states[i]["s"])
    memory["unit"] = memory["d"] / memory["g0"] if memory["g0"] else Decimal(0)


def of_optax(make: Callable[[Hyper], Any], names: Mapping[str, str]) -> Oracle:
    """Return what runs a transformation of optax that scales all gradients together."""

    def run(case: Case, inputs: Inputs) -> WithMemory:
        import jax
        import optax

        jax.config.update("jax_enable_x64", True)
        if case.missing or case.groups:
            raise ValueError("optax wants all gradients, and has no groups")
        hyper = case.base()
        sign = -1.0 if hyper["maximize"] else 1.0
        decay = optax.add_decayed_weights(hyper["weight_decay"])
        rule = optax.chain(decay, make(hyper))
        params = [jax.numpy.asarray(p) for p in inputs["p"]]
        kept = rule.init(params)
        path: list[list[Array]] = [[] for _ in params]
        memory: dict[str, list[float]] = {name: [] for name in names.values()}
        lr = hyper["lr"]
        for at in range(case.steps):
            lr = case.lr_changes.get(at, lr)
            grads = [sign * jax.numpy.asarray(g[at]) for g in inputs["g"]]
            updates, kept = rule.update(grads, kept, params)
            params = [p - lr * u for p, u in zip(params, updates, strict=True)]
            for i, param in enumerate(params):
                path[i].append(np.asarray(param))
            for theirs, name in names.items():
                memory[name].append(float(optax.tree.get(kept, theirs)))
        state = {"p0": [np.asarray(p) for p in optax.tree.get(kept, "init_params")]}
        return WithMemory([np.stack(x) for x in path], state, counts_of(case), memory)

    return run


def dog_of_optax(hyper: Hyper) -> Any:
    from optax.contrib import _dog

    first = ("heuristic", hyper["d0_relative"])
    if hyper["d0"] is not None:
        first = ("distance", hyper["d0"])
    return _dog.scale_by_dog(first, hyper["eps"])


def dowg_of_optax(hyper: Hyper) -> Any:
    from optax.contrib import _dog

    return _dog.scale_by_dowg(hyper["d0"] ** 2, hyper["eps"])


def of_torch(
    make: Callable[..., Any],
    arguments: Callable[[Hyper], Hyper],
    letters: Mapping[str, str],
    names: Mapping[str, str],
) -> Oracle:
    """Return what runs a class with PyTorch's interface whose first group remembers ``names``."""

    def run(case: Case, inputs: Inputs) -> WithMemory:
        import torch

        torch.set_default_dtype(torch.float64)
        params = [torch.tensor(p, requires_grad=True) for p in inputs["p"]]
        groups = [
            {"params": [params[i] for i in indices]} | arguments(hyper)
            for indices, hyper in case.parts()
        ]
        optimizer = make(groups, **arguments(case.base()))
        sign = -1.0 if case.base()["maximize"] else 1.0
        path: list[list[Array]] = [[] for _ in params]
        memory: dict[str, list[float]] = {name: [] for name in names.values()}
        for at in range(case.steps):
            for group in optimizer.param_groups:
                group["lr"] = case.lr_changes.get(at, group["lr"])
            for i, param in enumerate(params):
                grad = torch.tensor(sign * inputs["g"][i][at])
                param.grad = None if case.is_missing(i, at) else grad
            optimizer.step()
            for i, param in enumerate(params):
                path[i].append(param.detach().numpy().copy())
            for theirs, name in names.items():
                memory[name].append(float(optimizer.param_groups[-1][theirs]))
        torch.set_default_dtype(torch.float32)
        state = {
            letter: [optimizer.state[p][name].numpy().copy() for p in params]
            for name, letter in letters.items()
        }
        return WithMemory([np.stack(x) for x in path], state, counts_of(case), memory)

    return run


def adam_of_authors(groups: Any, **arguments: Any) -> Any:
    from contextlib import redirect_stdout
    from io import StringIO

    from dadaptation import DAdaptAdam

    with redirect_stdout(StringIO()):  # it tells that it decays
        return DAdaptAdam(groups, **arguments)


ADAM_NAMES = ("lr", "d0", "growth_rate", "betas", "eps", "weight_decay")


def adam_of_authors_arguments(hyper: Hyper) -> Hyper:
    made = {name: hyper[name] for name in ADAM_NAMES}
    flags = ("bias_correction", "decoupled_weight_decay")
    return made | dict(zip(("use_bias_correction", "decouple"), map(hyper.get, flags), strict=True))


def adam_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import DAdaptAdam

    return DAdaptAdam(groups, foreach=False, **arguments)


def adam_of_po_arguments(hyper: Hyper) -> Hyper:
    made = {name: hyper[name] for name in (*ADAM_NAMES, "bias_correction")}
    return made | {"weight_decouple": hyper["decoupled_weight_decay"]}


def sgd_of_authors(groups: Any, **arguments: Any) -> Any:
    from dadaptation import DAdaptSGD

    return DAdaptSGD(groups, **arguments)


def sgd_arguments(hyper: Hyper) -> Hyper:
    if hyper["weight_decay"]:
        raise ValueError("dadaptation makes g0 without weight decay")
    return {name: hyper[name] for name in ("lr", "d0", "growth_rate", "momentum")}


ADAM_LETTERS = {"exp_avg": "m", "exp_avg_sq": "v", "s": "s"}
ADAM_MEMORY = {"d": "d", "numerator_weighted": "numerator"}
SGD_MEMORY = {"d": "d", "numerator_weighted": "numerator"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "DoG": {
        "optax": of_optax(dog_of_optax, {"max_dist": "distance", "sum_sq_norm_grads": "total"}),
        "closed": together(dog, ("distance", "total")),
    },
    "DoWG": {
        "optax": of_optax(
            dowg_of_optax, {"estim_sq_dist": "area", "weighted_sq_norm_grads": "total"}
        ),
        "closed": together(dowg, ("area", "total")),
    },
    "DAdaptAdam": {
        "authors": of_torch(adam_of_authors, adam_of_authors_arguments, ADAM_LETTERS, ADAM_MEMORY),
        "po": of_torch(adam_of_po, adam_of_po_arguments, ADAM_LETTERS, ADAM_MEMORY),
        "closed": together(adam, ("d", "numerator")),
    },
    "DAdaptSGD": {
        "authors": of_torch(sgd_of_authors, sgd_arguments, {"s": "s", "x0": "p0"}, SGD_MEMORY),
        "closed": together(sgd, ("d", "numerator")),
    },
}
OC, C, AC, APC = (
    ("optax", "closed"),
    ("closed",),
    ("authors", "closed"),
    ("authors", "po", "closed"),
)
PULL, SMALL = {"inputs": "pull"}, {"inputs": "small"}
LATER_FACTORS = {10: 0.3, 20: 2.0}
SOME = {0: [0, 1, 12], 1: [4, 5], 2: [20, 29]}
DECAYS: tuple[Hyper, ...] = (
    {"params": [0]},
    {"params": [1], "weight_decay": 0.3},
    {"params": [2], "weight_decay": 0.02},
)
WITH_DECAY = {"d0": 1e-3, "weight_decay": 0.05}
SLOW = WITH_DECAY | {"growth_rate": 1.2}  # or decay would outgrow the parameter
CASES: dict[str, tuple[Case, ...]] = {
    "DoG": cases_of(
        "DoG",
        DEFAULTS["DoG"],
        ("default", OC, {}, PULL),
        ("odd", OC, {"lr": 0.5, "d0_relative": 1e-2, "eps": 0.1}, PULL),
        ("distance", OC, {"d0": 0.03}, PULL),
        ("distance_odd", OC, {"d0": 0.5, "lr": 2.0, "eps": 1.0}),
        ("weight_decay", OC, {"d0": 0.1, "weight_decay": 0.1}, PULL),
        ("maximize", OC, {"d0": 0.1, "weight_decay": 0.1, "maximize": True}, PULL),
        ("eps_zero", OC, {"eps": 0.0, "d0": 0.02}, SMALL),
        ("large", OC, {"d0_relative": 1e-3}, {"inputs": "large"}),
        ("missing", C, {"d0": 0.1}, PULL | {"missing": MISSING}),
        ("missing_first", C, {"d0_relative": 1e-2}, PULL | {"missing": SOME}),
        ("groups", C, {"d0": 0.1}, {"groups": GROUPS}),
        ("lr_change", OC, {"d0": 0.1}, PULL | {"lr_changes": LATER_FACTORS}),
    ),
    "DoWG": cases_of(
        "DoWG",
        DEFAULTS["DoWG"],
        ("default", OC, {}, SMALL),
        ("pull", OC, {}, PULL),
        ("odd", OC, {"lr": 0.5, "d0": 0.3, "eps": 0.1}, PULL),
        ("distance", OC, {"d0": 1e-3}, PULL),
        ("weight_decay", OC, {"weight_decay": 0.1}, PULL),
        ("maximize", OC, {"weight_decay": 0.1, "maximize": True}, PULL),
        ("eps_zero", OC, {"eps": 0.0, "d0": 0.02}, SMALL),
        ("large", OC, {"d0": 1.0}, {"inputs": "large"}),
        ("missing", C, {"d0": 0.1}, PULL | {"missing": MISSING}),
        ("groups", C, {"d0": 0.1}, {"groups": GROUPS}),
        ("lr_change", OC, {}, PULL | {"lr_changes": LATER_FACTORS}),
    ),
    "DAdaptAdam": cases_of(
        "DAdaptAdam",
        DEFAULTS["DAdaptAdam"],
        ("default", APC, {}, SMALL),
        ("pull", APC, {}, PULL),
        ("odd", APC, {"lr": 0.5, "betas": [0.6, 0.9], "eps": 1e-3, "d0": 1e-3}, PULL),
        ("beta1_zero", APC, {"betas": [0.0, 0.99], "d0": 1e-3}, PULL),
        ("corrected", APC, {"bias_correction": True, "d0": 1e-3}, PULL),
        ("growth", APC, {"growth_rate": 1.05, "d0": 1e-3}, PULL),
        ("weight_decay", APC, WITH_DECAY, PULL),
        ("decoupled", APC, SLOW | {"decoupled_weight_decay": True}, PULL),
        (
            "decoupled_corrected",
            APC,
            SLOW | {"decoupled_weight_decay": True, "bias_correction": True},
            PULL,
        ),
        ("maximize", APC, {"maximize": True, "d0": 1e-4}, SMALL),
        ("zeros", AC, {"d0": 1e-3}, {"inputs": "zeros"}),
        ("missing", APC, {"d0": 1e-3}, PULL | {"missing": SOME}),
        ("missing_all", AC, {"d0": 1e-3}, PULL | {"missing": MISSING}),
        ("missing_corrected", C, SLOW | {"bias_correction": True}, PULL | {"missing": SOME}),
        ("groups", AC, {"d0": 1e-3}, PULL | {"groups": DECAYS}),
        ("lr_change", APC, {"d0": 1e-3}, PULL | {"lr_changes": LATER_FACTORS}),
    ),
    "DAdaptSGD": cases_of(
        "DAdaptSGD",
        DEFAULTS["DAdaptSGD"],
        ("default", AC, {}, SMALL),
        ("pull", AC, {}, PULL),
        ("odd", AC, {"lr": 0.5, "momentum": 0.6, "d0": 1e-3}, PULL),
        ("momentum", AC, {"momentum": 0.9, "d0": 1e-2}, PULL),
        ("growth", AC, {"growth_rate": 1.05, "d0": 1e-3}, PULL),
        ("weight_decay", C, WITH_DECAY, PULL),
        ("maximize", AC, {"maximize": True, "d0": 1e-4}, SMALL),
        ("zeros", AC, {"d0": 1e-3}, {"inputs": "zeros"}),
        ("huge", AC, {"d0": 1.0}, {"inputs": "huge"}),
        ("missing", C, {"d0": 1e-3}, PULL | {"missing": SOME}),
        ("groups", C, {"d0": 1e-3}, PULL | {"groups": DECAYS}),
        ("lr_change", AC, {"d0": 1e-3}, PULL | {"lr_changes": LATER_FACTORS}),
    ),
}
