"""Scion, after pytorch_optimizer (po) in float64, and by singular values."""

import math
from typing import Any
from unittest.mock import patch

import numpy as np

from ..oracles import Inputs, Oracle, by_class, counts_of
from ..vector_cases import GROUPS, LATER, MISSING, Array, Case, Hyper, Result
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "Scion": {
        "lr": 1e-3,
        "momentum": 0.9,
        "norm": "auto",
        "radius": 1.0,
        "constrained": False,
        "ns_coefficients": [3.4445, -4.775, 2.0315],
        "ns_steps": 5,
        "eps": 1e-8,
    },
}
NORMS = {"auto": 1, "rms": 5}


def of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import SCION

    return SCION(groups, **arguments, foreach=False)


def arguments_of_po(hyper: Hyper) -> Hyper:
    known = DEFAULTS["Scion"]
    if any(hyper[name] != known[name] for name in ("ns_coefficients", "ns_steps", "eps")):
        raise ValueError("pytorch_optimizer has no arguments for these")
    return {
        "lr": hyper["lr"],
        "momentum": 1 - hyper["momentum"],
        "norm_type": NORMS[hyper["norm"]],
        "scale": hyper["radius"],
        "constraint": hyper["constrained"],
        "weight_decay": hyper["weight_decay"],
        "maximize": hyper["maximize"],
    }


def in_float64(optimizer: Any, t: int) -> None:
    """Make a step whose iteration is in float64, where it is in bfloat16 otherwise."""
    from functools import partial

    import torch
    from pytorch_optimizer.optimizer import scion

    iterate = partial(scion.zero_power_via_newton_schulz_5, dtype=torch.float64)
    with patch.object(scion, "zero_power_via_newton_schulz_5", iterate):
        optimizer.step()


def direction(m: Array, hyper: Hyper) -> Array:
    """Return the direction of an average, element by element or by singular values."""
    from ..oracle_muon import iterated

    norm, eps = hyper["norm"], hyper["eps"]
    if norm == "rms" or (norm == "auto" and m.ndim < 2):
        return m / (math.sqrt(float((m**2).sum()) / m.size) + eps)
    rows = m.shape[0] if m.ndim else 1
    matrix = m.reshape(rows, -1)
    columns = matrix.shape[1]
    if norm in ("auto", "spectral"):
        made = iterated(matrix, {**hyper, "eps": 1e-7}) * math.sqrt(rows / columns)
    elif norm == "sign":
        made = np.array([[int(x > 0) - int(x < 0) for x in row] for row in matrix]) / columns
    elif norm == "row":
        made = np.array([row / (math.sqrt(columns) * math.hypot(*row) + eps) for row in matrix])
    else:
        made = np.array(
            [column / (math.hypot(*column) / math.sqrt(rows) + eps) for column in matrix.T]
        ).T
    return made.reshape(m.shape)


def closed(case: Case, inputs: Inputs) -> Result:
    paths, averages = [], []
    for index, p in enumerate(inputs["p"]):
        hyper = case.hyper(index)
        sign, lr = (-1 if hyper["maximize"] else 1), hyper["lr"]
        m, path = np.zeros_like(p), []
        for step in range(case.steps):
            lr = case.lr_changes.get(step, lr)
            if not case.is_missing(index, step):
                g = sign * inputs["g"][index][step]
                m = hyper["momentum"] * m + (1 - hyper["momentum"]) * g
                p = p * (1 - lr * hyper["weight_decay"])
                p = p * (1 - lr if hyper["constrained"] else 1)
                p = p - lr * hyper["radius"] * direction(m, hyper)
            path.append(p)
        paths.append(np.stack(path))
        averages.append(m)
    return Result(paths, {"m": averages}, counts_of(case))


ORACLES: dict[str, dict[str, Oracle]] = {
    "Scion": {
        "po": by_class(of_po, arguments_of_po, {"d": "m"}, step=in_float64),
        "closed": closed,
    },
}
PC, C = ("po", "closed"), ("closed",)
ODD: Hyper = {"lr": 0.05, "momentum": 0.6, "radius": 3.0}
CASES: dict[str, tuple[Case, ...]] = {
    "Scion": cases_of(
        "Scion",
        DEFAULTS["Scion"],
        *(
            (*row[:3], {"inputs": "pull", **(row[3] if len(row) > 3 else {})})
            for row in (
                ("default", PC, {}),
                ("odd", PC, ODD),
                ("momentum_0", PC, ODD | {"momentum": 0.0}),
                ("constrained", PC, ODD | {"constrained": True}),
                ("iteration", C, ODD | {"ns_steps": 3, "ns_coefficients": [2.0, -1.5, 0.5]}),
                ("row", C, ODD | {"norm": "row"}),
                ("column", C, ODD | {"norm": "column"}),
                ("sign", C, ODD | {"norm": "sign"}),
                ("rms", C, ODD | {"norm": "rms"}),
                ("spectral", C, ODD | {"norm": "spectral"}),
                ("eps", C, ODD | {"norm": "row", "eps": 0.3}),
                ("weight_decay", PC, ODD | {"weight_decay": 0.3}),
                ("maximize", PC, ODD | {"weight_decay": 0.1, "maximize": True}),
                ("missing", PC, ODD | {"weight_decay": 0.1}, {"missing": MISSING}),
                ("groups", PC, ODD, {"groups": GROUPS}),
                ("lr_change", PC, ODD, {"lr_changes": LATER}),
            )
        ),
    ),
}
