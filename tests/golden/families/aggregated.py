"""AggMo, after pytorch_optimizer (po) and the paper's formula."""

from typing import Any

from ..oracle_closed_form import Numbers, State
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {"AggMo": {"lr": 1e-1, "betas": [0.0, 0.9, 0.99]}}


def aggmo(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    for k, beta in enumerate(hyper["betas"]):
        state[f"b{k}"] = beta * state.get(f"b{k}", 0 * g) + g
    return p - hyper["lr"] * sum(state[f"b{k}"] for k in range(len(state))) / len(state)


def by_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import AggMo

    return AggMo(groups, **arguments)


def of_po(hyper: Hyper) -> Hyper:
    return {name: hyper[name] for name in ("lr", "betas", "weight_decay", "maximize")}


def buffer(optimizer: Any, param: Any, name: str) -> Any:
    """Return a buffer, if there is one of this number."""
    buffers, k = optimizer.state[param]["momentum_buffer"], int(name)
    buffers = list(buffers.values()) if isinstance(buffers, dict) else buffers
    return buffers[k] if k < len(buffers) else None


ORACLES: dict[str, dict[str, Oracle]] = {
    "AggMo": {
        "po": by_class(by_po, of_po, {str(k): f"b{k}" for k in range(5)}, read=buffer),
        "closed": by_formula(aggmo),
    },
}
PC = ("po", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "AggMo": cases_of(
        "AggMo",
        DEFAULTS["AggMo"],
        ("default", PC, {}),
        ("odd", PC, {"lr": 0.02, "betas": [0.37, 0.8, 0.1, 0.95, 0.6]}),
        ("one", ("closed",), {"lr": 0.01, "betas": [0.9]}),
        ("two", PC, {"lr": 0.01, "betas": [0.0, 0.95]}),
        ("weight_decay", PC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", PC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", PC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", PC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", PC, {"lr": 0.01}, {"groups": GROUPS}),
        ("lr_change", PC, {}, {"lr_changes": LATER}),
    ),
}
