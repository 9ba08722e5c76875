"""FTRL, after keras, pytorch_optimizer (po) and the paper's formula.

z of keras and po is ours over lr. po has no initial value of n, and twice keras' l2. Where lr
changes, both multiply the parameter by its ratio, and only our words of the formula compute it.
"""

import os
from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State
from ..oracles import Inputs, One, Oracle, by_class, by_formula, gathered
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper, Result
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "keras", "pytorch_optimizer")
L1, L2 = "l1_regularization_strength", "l2_regularization_strength"
SHRINK = "l2_shrinkage_regularization_strength"
BEGIN, POWER = "initial_accumulator_value", "learning_rate_power"
DEFAULTS: dict[str, Hyper] = {
    "FTRL": {"lr": 1e-3, POWER: -0.5, BEGIN: 0.1, L1: 0.0, L2: 0.0, SHRINK: 0.0, "beta": 0.0}
}


def ftrl(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    """Work out the minimum of z p + (1 / rate + lr l2) p^2 + lr l1 |p|, all times lr."""
    lr, power = hyper["lr"], -hyper[POWER]
    old = state.get("n", 0 * g + hyper[BEGIN])
    new = old + g * g
    roots = [np.array([x**power if x else x for x in each], dtype=object) for each in (old, new)]
    change = (roots[1] - roots[0]) * p
    state["z"] = state.get("z", 0 * g) + lr * g + 2 * lr * hyper[SHRINK] * p - change
    state["n"] = new
    below = roots[1] + hyper["beta"] + 2 * lr * hyper[L2]
    rest = [max(abs(x) - lr * hyper[L1], Decimal(0)).copy_sign(-x) for x in state["z"]]
    return np.array(rest, dtype=object) * (ONE / below)


def by_keras(case: Case, inputs: Inputs) -> Result:
    """Run keras' Ftrl in float64, parameter by parameter."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    keras.config.set_floatx("float64")
    if case.lr_changes:
        raise ValueError("it multiplies parameters where lr changes")

    def one(index: int) -> One:
        hyper = case.hyper(index)
        if hyper["weight_decay"]:
            raise ValueError("its weight decay is decoupled")
        sign = -1.0 if hyper["maximize"] else 1.0
        param = keras.Variable(inputs["p"][index], dtype="float64")
        names = (POWER, BEGIN, L1, L2, SHRINK, "beta")
        opt: Any = keras.optimizers.Ftrl(hyper["lr"], **{name: hyper[name] for name in names})
        opt.build([param])
        path, count = [], 0
        for at in range(case.steps):
            if not case.is_missing(index, at):
                opt.apply([keras.ops.convert_to_tensor(sign * inputs["g"][index][at])], [param])
                count += 1
            path.append(np.array(keras.ops.convert_to_numpy(param)))
        z, n = opt._linears[0], opt._accumulators[0]
        z, n = (np.array(keras.ops.convert_to_numpy(x)) for x in (z, n))
        return np.stack(path), {"z": hyper["lr"] * z, "n": n}, count

    return gathered([one(index) for index in range(len(inputs["p"]))])


def by_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import FTRL

    return FTRL(groups, **arguments)


def of_po(hyper: Hyper) -> Hyper:
    if hyper[POWER] != -0.5 or hyper[BEGIN] or hyper[SHRINK] or hyper["weight_decay"]:
        raise ValueError("it has none of these")
    return {
        "lr": hyper["lr"],
        "beta": hyper["beta"],
        "lambda_1": hyper[L1],
        "lambda_2": 2 * hyper[L2],
        "maximize": hyper["maximize"],
    }


def read_po(optimizer: Any, param: Any, name: str) -> Any:
    """Look its state up; z times lr, which is that of all groups."""
    (lr,) = {group["lr"] for group in optimizer.param_groups}
    return optimizer.state[param][name] * (lr if name == "z" else 1.0)


ORACLES: dict[str, dict[str, Oracle]] = {
    "FTRL": {
        "keras": by_keras,
        "po": by_class(by_po, of_po, {"z": "z", "n": "n"}, read=read_po),
        "closed": by_formula(ftrl),
    },
}
KC, ALL, C = ("keras", "closed"), ("keras", "po", "closed"), ("closed",)
# Where gradients are 1e-9 beside a parameter of 300, the difference of roots has no digits left.
MILD = {"inputs": "mild"}
MUCH = {L1: 0.4, L2: 0.3, "beta": 0.7, "lr": 0.3}
STRENGTHS: tuple[Hyper, ...] = (
    {"params": [0], L1: 0.1},
    {"params": [1], L2: 0.1, "lr": 0.1},
    {"params": [2], SHRINK: 0.1, "lr": 1e-2},
)
CASES: dict[str, tuple[Case, ...]] = {
    "FTRL": cases_of(
        "FTRL",
        DEFAULTS["FTRL"],
        ("default", KC, {}, MILD),
        ("odd", KC, {**MUCH, SHRINK: 0.2, BEGIN: 0.35}, MILD),
        ("from_0", ALL, {**MUCH, BEGIN: 0.0}, MILD),
        ("l1", KC, {L1: 2.0, "lr": 0.1}, MILD),
        ("l2", KC, {L2: 2.0, "lr": 0.1}, MILD),
        ("shrinkage", KC, {SHRINK: 0.5, "lr": 0.1}, MILD),
        ("beta", KC, {"beta": 2.0}, MILD),
        ("begin", KC, {BEGIN: 0.6}, MILD),
        ("one_rate", KC, {**MUCH, POWER: 0.0, SHRINK: 0.2}, MILD),
        ("weight_decay", C, {"weight_decay": 0.1, "lr": 0.1}, MILD),
        ("maximize", KC, {**MUCH, "maximize": True}, MILD),
        ("missing", KC, MUCH, MILD | {"missing": MISSING}),
        ("groups", C, {}, MILD | {"groups": GROUPS}),
        ("strengths", KC, {}, MILD | {"groups": STRENGTHS}),
        ("lr_change", C, {L1: 0.1, L2: 0.1}, MILD | {"lr_changes": LATER}),
    ),
}
