"""AggMo."""

from __future__ import annotations

from types import SimpleNamespace

import fastopt
from helpers.bad_values import FRACTIONS, number
from helpers.mutants import given, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("aggmo", fastopt.AggMo, {"lr": 0.02, "betas": (0.3, 0.9, 0.95)}, close=True),
    Variant("aggmo_of_one", fastopt.AggMo, {"lr": 0.02, "betas": (0.9,)}, close=True),
    Variant(
        "aggmo_of_four",
        fastopt.AggMo,
        {"lr": 0.02, "betas": (0.0, 0.5, 0.9, 0.95), "weight_decay": 0.1},
        close=True,
    ),
]
SMOOTH = ["AggMo"]
ALIKE = {"AggMo": lambda size: {"lr": 2.0**-10 / size}}
BAD_INSTEAD = {
    ("AggMo", "betas"): [
        *((value, TypeError) for value in (0.9, (), [], "ab", None, {0.9}, lambda t: (0.9,))),
        *(((0.9, value), kind) for value, kind in number(*FRACTIONS)),
        *(((value,), kind) for value, kind in number(*FRACTIONS)),
    ]
}


def aggmo(u: SimpleNamespace, wrong: str) -> None:
    names = [name for name in vars(u) if name.startswith("b")]
    keeps = [getattr(u, f"keep{name[1:]}") for name in names]
    if wrong == "order":
        keeps = keeps[::-1]
    buffers = [getattr(u, name) for name in names]
    before = sum(buffers)
    for b, keep in zip(buffers, keeps, strict=True):
        b *= keep
        b += (1 - keep) * u.grad if wrong == "averages" else u.grad
    u.param -= u.lr * (before if wrong == "old" else sum(buffers))


MUTANTS = {
    f"AggMo_{name}": (fastopt.AggMo, rule(fastopt.AggMo, lambda u, name=name: aggmo(u, name)))
    for name in ("order", "averages", "old")
} | {
    "AggMo_sum_for_the_mean": (
        fastopt.AggMo,
        scalars(fastopt.AggMo, lambda s, o, t: {"lr": s["lr"] * len(o["betas"])}),
    ),
    "AggMo_one_momentum": (
        fastopt.AggMo,
        given(fastopt.AggMo, lambda o, lr, t: ({**o, "betas": (0.9,) * len(o["betas"])}, lr, t)),
    ),
}
