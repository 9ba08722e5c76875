"""Adafactor, after PyTorch, CAME, after its authors, SM3, after optax; pytorch_optimizer is po."""

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax
from ..vector_cases import GROUPS, LATER, MISSING, SHAPES, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch", "pytorch_optimizer", "came-pytorch", "optax", "jax")
DEFAULTS: dict[str, Hyper] = {
    "Adafactor": {"lr": 1e-2, "beta2_decay": -0.8, "eps1": None, "eps2": 1e-3, "d": 1.0},
    "CAME": {
        "lr": 2e-4,
        "betas": [0.9, 0.999],
        "beta3": 0.9999,
        "eps1": 1e-30,
        "eps2": 1e-16,
        "clip_threshold": 1.0,
    },
    "SM3": {"lr": 0.1, "momentum": 0.9, "eps": 1e-8},
}
NOTHING = np.empty(0)
SHAPE_OF = {math.prod(shape): shape for shape in SHAPES}  # flat arrays tell them by their sizes


def mean(numbers: Numbers) -> Numbers:
    return sum(numbers.ravel().tolist(), Decimal(0)) / numbers.size


def rms(numbers: Numbers) -> Decimal:
    return mean(numbers * numbers).sqrt()


def by_row_and_column(state: State, beta: Decimal, squares: Numbers, names: Sequence[str]) -> None:
    """Average what every row and every column of a matrix has as its mean."""
    matrix = squares.reshape(SHAPE_OF[squares.size])
    rows = np.array([[mean(row)] for row in matrix], dtype=object)
    columns = np.array([[mean(column) for column in matrix.T]], dtype=object)
    r, c = (state.get(name) for name in names)
    state[names[0]] = (ONE - beta) * rows + (0 if r is None else beta * r)
    state[names[1]] = (ONE - beta) * columns + (0 if c is None else beta * c)


def adafactor(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    lr, eps1 = hyper["lr"], hyper["eps1"]
    eps1 = Decimal(float(np.finfo(float).eps)) if eps1 is None else eps1
    beta = ONE - Decimal(t) ** hyper["beta2_decay"]
    if len(SHAPE_OF[g.size]) > 1:
        by_row_and_column(state, beta, g * g, "rc")
        r, c = state["r"], state["c"]
        s, state["v"] = (r @ c / max(mean(r), eps1)).ravel(), NOTHING
    else:
        s = blend(state, "v", beta, g * g)
        state["r"] = state["c"] = NOTHING
    u = g / np.sqrt(np.maximum(s, eps1 * eps1))
    u = u / max(ONE, rms(u) / hyper["d"])
    step = max(hyper["eps2"], rms(p)) * min(lr, ONE / Decimal(t).sqrt())
    return p - lr * hyper["weight_decay"] * p - step * u


def root_of_both(r: Numbers, c: Numbers) -> Numbers:
    return np.sqrt((r @ c / mean(r)).ravel())


def came(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    (beta1, beta2), lr = hyper["betas"], hyper["lr"]
    is_matrix = len(SHAPE_OF[g.size]) > 1
    squares = g * g + hyper["eps1"]
    if is_matrix:
        by_row_and_column(state, beta2, squares, "rc")
        root, state["v"] = root_of_both(state["r"], state["c"]), NOTHING
    else:
        root = np.sqrt(blend(state, "v", beta2, squares))
        state["r"] = state["c"] = state["sr"] = state["sc"] = NOTHING
    u = g / root
    u = u / max(ONE, rms(u) / hyper["clip_threshold"])
    step = m = blend(state, "m", beta1, u)
    if is_matrix:
        away = (u - m) ** 2 + hyper["eps2"]
        by_row_and_column(state, hyper["beta3"], away, ("sr", "sc"))
        step = m / root_of_both(state["sr"], state["sc"])
    return p - lr * hyper["weight_decay"] * p - lr * step


def sm3(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    shape = SHAPE_OF[g.size]
    zero = Decimal(0)
    state.setdefault("a0", np.array([zero] * (shape[0] if shape else 1)))
    state.setdefault("a1", np.array([zero] * shape[1]) if len(shape) > 1 else NOTHING)
    if len(shape) > 1:
        v = np.array([[min(a, b) for b in state["a1"]] for a in state["a0"]]) + (g * g).reshape(
            shape
        )
        state["a0"], state["a1"] = v.max(axis=1), v.max(axis=0)
    else:
        v = state["a0"] = state["a0"] + g * g
    u = g / np.sqrt(v.ravel() + hyper["eps"])
    return p - hyper["lr"] * blend(state, "m", hyper["momentum"], u)


def came_of_authors(groups: Any, **arguments: Any) -> Any:
    from came_pytorch import CAME

    return CAME(groups, **arguments)


def came_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("came_pytorch cannot maximize")
    return {
        "lr": hyper["lr"],
        "betas": (*hyper["betas"], hyper["beta3"]),
        "eps": (hyper["eps1"], hyper["eps2"]),
        "clip_threshold": hyper["clip_threshold"],
        "weight_decay": hyper["weight_decay"],
    }


def came_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import CAME

    return CAME(groups, **arguments, foreach=False)


def came_arguments_of_po(hyper: Hyper) -> Hyper:
    same = ("lr", "eps1", "eps2", "clip_threshold", "weight_decay", "maximize")
    return {name: hyper[name] for name in same} | {"betas": (*hyper["betas"], hyper["beta3"])}


def came_state(optimizer: Any, param: Any, name: str) -> Any:
    """Return some state, with the axis that it is the mean over."""
    found = state_of(optimizer, param, name)
    if name.endswith("_row") and found is not NOTHING:
        return found[..., None]
    return found[..., None, :] if name.endswith("_col") and found is not NOTHING else found


CAME_STATE = {
    "exp_avg": "m",
    "exp_avg_sq_row": "r",
    "exp_avg_sq_col": "c",
    "exp_avg_sq": "v",
    "exp_avg_res_row": "sr",
    "exp_avg_res_col": "sc",
}


def sm3_of_optax(hyper: Hyper) -> Any:
    """Return optax's, which takes numbers as vectors alone."""
    import jax
    import optax

    inner = optax.scale_by_sm3(hyper["momentum"], 1.0, hyper["eps"])

    def update(grad: Any, state: Any, param: Any = None) -> Any:
        step, state = inner.update(jax.numpy.atleast_1d(grad), state)
        return step.reshape(grad.shape), state

    return optax.GradientTransformation(lambda p: inner.init(jax.numpy.atleast_1d(p)), update)


def sm3_state(kept: Any, name: str) -> Any:
    found = kept[1]  # behind that of the decay
    sums = [np.asarray(each).squeeze() for each in found.mu]  # a number was a vector of one
    return np.asarray(found.nu).squeeze() if name == "m" else [*sums, NOTHING][int(name[1])]


def sm3_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import SM3

    return SM3(groups, **arguments, foreach=False)


def sm3_arguments(hyper: Hyper) -> Hyper:
    if hyper["weight_decay"]:
        raise ValueError("pytorch_optimizer's has no weight decay")
    return {name: hyper[name] for name in ("lr", "momentum", "eps", "maximize")}


def sm3_state_of_po(optimizer: Any, param: Any, name: str) -> Any:
    found = state_of(optimizer, param, name)
    return found if name == "momentum_buffer" else np.asarray(found).squeeze()


def adafactor_of_torch(groups: Any, **arguments: Any) -> Any:
    import torch

    return torch.optim.Adafactor(groups, **arguments)


def adafactor_arguments(hyper: Hyper) -> Hyper:
    same = ("lr", "beta2_decay", "d", "weight_decay", "maximize")
    return {name: hyper[name] for name in same} | {"eps": (hyper["eps1"], hyper["eps2"])}


def state_of(optimizer: Any, param: Any, name: str) -> Any:
    """Return some state, an empty array where a parameter has none such."""
    found = optimizer.state[param].get(name)
    return NOTHING if found is None else found


ORACLES: dict[str, dict[str, Oracle]] = {
    "Adafactor": {
        "torch": by_class(
            adafactor_of_torch,
            adafactor_arguments,
            {"row_var": "r", "col_var": "c", "variance": "v"},
            read=state_of,
        ),
        "closed": by_formula(adafactor, decoupled=True),
    },
    "CAME": {
        "authors": by_class(came_of_authors, came_arguments, CAME_STATE, read=came_state),
        "po": by_class(came_of_po, came_arguments_of_po, CAME_STATE, read=came_state),
        "closed": by_formula(came, decoupled=True),
    },
    "SM3": {
        "optax": by_optax(sm3_of_optax, {"m": "m", "a0": "a0", "a1": "a1"}, read=sm3_state),
        "po": by_class(
            sm3_of_po,
            sm3_arguments,
            {"momentum_buffer": "m", "accumulator_0": "a0", "accumulator_1": "a1"},
            read=sm3_state_of_po,
        ),
        "closed": by_formula(sm3),
    },
}
TC, AP, PC = ("torch", "closed"), ("authors", "po", "closed"), ("po", "closed")
OP, OC = ("optax", "po", "closed"), ("optax", "closed")
ADAFACTOR: Hyper = {"lr": 0.05, "eps1": 1e-3}
CAME: Hyper = {"lr": 0.02, "betas": [0.9, 0.95], "beta3": 0.97, "eps2": 1e-3}
CASES: dict[str, tuple[Case, ...]] = {
    "Adafactor": cases_of(
        "Adafactor",
        DEFAULTS["Adafactor"],
        ("default", TC, {}, {"inputs": "zeros"}),
        ("relative_step", TC, ADAFACTOR | {"lr": 1.0}),
        ("beta2_decay", TC, ADAFACTOR | {"beta2_decay": -0.3}),
        ("no_average", TC, ADAFACTOR | {"beta2_decay": 0.0}, {"inputs": "zeros"}),
        ("eps1", TC, ADAFACTOR | {"eps1": 0.5}),
        ("eps2", TC, ADAFACTOR | {"eps2": 3.0}),
        ("d", TC, ADAFACTOR | {"d": 1.25}),
        ("weight_decay", TC, ADAFACTOR | {"weight_decay": 0.3}),
        ("maximize", TC, ADAFACTOR | {"weight_decay": 0.1, "maximize": True}),
        ("zeros", TC, ADAFACTOR, {"inputs": "zeros"}),
        ("huge", TC, ADAFACTOR, {"inputs": "huge"}),
        ("missing", TC, ADAFACTOR | {"weight_decay": 0.1}, {"missing": MISSING}),
        ("groups", TC, ADAFACTOR, {"groups": GROUPS}),
        ("lr_change", TC, ADAFACTOR, {"lr_changes": LATER}),
    ),
    "CAME": cases_of(
        "CAME",
        DEFAULTS["CAME"],
        ("default", AP, {}),
        ("odd", AP, CAME | {"betas": [0.6, 0.9], "beta3": 0.95}),
        ("forgets", AP, CAME | {"betas": [0.0, 0.5], "beta3": 0.0, "eps2": 1e-3}),
        ("eps1", AP, CAME | {"eps1": 1e-3}),
        ("eps2", AP, CAME | {"eps2": 0.1}),
        ("clip_threshold", AP, CAME | {"clip_threshold": 0.3}),
        ("weight_decay", AP, CAME | {"weight_decay": 0.3}),
        ("maximize", PC, CAME | {"weight_decay": 0.1, "maximize": True}),
        ("zeros", AP, CAME, {"inputs": "zeros"}),
        ("missing", AP, CAME | {"weight_decay": 0.1}, {"missing": MISSING}),
        ("groups", AP, CAME, {"groups": GROUPS}),
        ("lr_change", AP, CAME, {"lr_changes": LATER}),
    ),
    "SM3": cases_of(
        "SM3",
        DEFAULTS["SM3"],
        ("default", OP, {}),
        ("odd", OP, {"lr": 0.02, "momentum": 0.35, "eps": 1e-3}),
        ("no_momentum", OC, {"momentum": 0.0, "eps": 1e-6}),
        ("eps_zero", OC, {"eps": 0.0}, {"inputs": "dense"}),
        ("weight_decay", OC, {"lr": 0.05, "weight_decay": 0.1}),
        ("maximize", OC, {"lr": 0.05, "weight_decay": 0.1, "maximize": True}),
        ("zeros", OP, {}, {"inputs": "zeros"}),
        ("huge", OP, {}, {"inputs": "huge"}),
        ("missing", OP, {}, {"missing": MISSING}),
        ("groups", OC, {}, {"groups": GROUPS}),
        ("lr_change", OP, {}, {"lr_changes": LATER}),
    ),
}
