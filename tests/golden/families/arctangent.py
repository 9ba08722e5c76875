"""AdamAtan2, after adam-atan2-pytorch and a formula whose arctangents have 50 digits."""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "adam-atan2-pytorch")
DEFAULTS: dict[str, Hyper] = {
    "AdamAtan2": {"lr": 1e-3, "betas": [0.9, 0.999], "a": 1.27, "b": 1.0, "weight_decay": 0.0}
}
HALF_PI = Decimal("1.5707963267948966192313216916397514420985846996875529")


def arctangent(x: Decimal) -> Decimal:
    """Return the arctangent of what is not negative, by half angles and then a series."""
    if x > 1:
        return HALF_PI - arctangent(1 / x)
    for _ in range(8):
        x = x / (1 + (1 + x * x).sqrt())
    series = sum((-1) ** k * x ** (2 * k + 1) / (2 * k + 1) for k in range(14))
    return 256 * Decimal(series)


def angle(y: Decimal, x: Decimal) -> Decimal:
    size = HALF_PI if x == 0 else arctangent(abs(y) / x)
    return Decimal(0) if y == 0 else size.copy_sign(y)


def adam_atan2(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    m = blend(state, "m", b1, g) / (ONE - b1**t)
    v = blend(state, "v", b2, g * g) / (ONE - b2**t)
    pairs = zip(m, hyper["b"] * np.sqrt(v), strict=True)
    step = np.array([angle(y, x) for y, x in pairs], dtype=object)
    return p - hyper["lr"] * (hyper["a"] * step + hyper["weight_decay"] * p)


def by_package(groups: Any, **arguments: Any) -> Any:
    from adam_atan2_pytorch.adam_atan2 import AdamAtan2

    return AdamAtan2(groups, **arguments)


def arguments_of(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("adam_atan2_pytorch cannot maximize")
    return {name: hyper[name] for name in ("lr", "betas", "a", "b", "weight_decay")}


ORACLES: dict[str, dict[str, Oracle]] = {
    "AdamAtan2": {
        "package": by_class(by_package, arguments_of, {"exp_avg": "m", "exp_avg_sq": "v"}),
        "closed": by_formula(adam_atan2, decoupled=True),
    },
}
PC, C = ("package", "closed"), ("closed",)
CASES: dict[str, tuple[Case, ...]] = {
    "AdamAtan2": cases_of(
        "AdamAtan2",
        DEFAULTS["AdamAtan2"],
        ("default", PC, {}),
        ("odd", PC, {"lr": 0.02, "betas": [0.6, 0.85], "a": 0.7, "b": 3.5}),
        ("narrow", PC, {"lr": 0.01, "b": 0.05}),
        ("longer", PC, {"lr": 0.01, "betas": [0.95, 0.9], "a": 2.5}),
        ("weight_decay", PC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", C, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", PC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", PC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", PC, {}, {"groups": GROUPS}),
        ("lr_change", PC, {}, {"lr_changes": LATER}),
    ),
}
