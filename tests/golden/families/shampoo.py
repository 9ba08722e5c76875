"""Shampoo, after pytorch_optimizer (po), and by Jacobi's rotations."""

import math
from typing import Any

import numpy as np

from ..oracles import Inputs, Oracle, by_class, counts_of
from ..vector_cases import GROUPS, LATER, MISSING, Array, Case, Hyper, Result
from . import cases_of
from .eigenbasis import NOTHING, eigenvectors

FOLDER = "sums"
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "Shampoo": {
        "lr": 1e-3,
        "momentum": 0.0,
        "eps": 1e-6,
        "power": None,
        "precondition_frequency": 1,
        "max_precondition_dim": 10000,
        "grafting": "none",
    },
}


def of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import Shampoo

    return Shampoo(groups, **arguments)


def arguments_of_po(hyper: Hyper) -> Hyper:
    known = DEFAULTS["Shampoo"]
    if any(hyper[name] != known[name] for name in set(known) - {"lr", "eps"}):
        raise ValueError("pytorch_optimizer does something else, or has no argument for it")
    return {
        "lr": hyper["lr"],
        "matrix_eps": hyper["eps"],
        "weight_decay": hyper["weight_decay"],
        "maximize": hyper["maximize"],
    }


def state_of(optimizer: Any, param: Any, name: str) -> Any:
    """Return a state of theirs by our letter; their sums begin with eps."""
    import torch

    found = optimizer.state[param].get(name)
    if not name.startswith("pre_cond"):
        return found
    if found is None:
        return NOTHING
    eps = optimizer.param_groups[0]["matrix_eps"]
    return found - eps * torch.eye(len(found), dtype=found.dtype)


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array]]:
    """Return a parameter's path, and its state at the end."""
    p, hyper = inputs["p"][index], case.hyper(index)
    shape = p.shape
    grams = [np.zeros((n, n)) if n <= hyper["max_precondition_dim"] else None for n in shape]
    roots: list[Array] = [np.eye(n) for n in shape]
    m, lr, path, t = np.zeros(shape), hyper["lr"], [], 0
    for at in range(case.steps):
        lr = case.lr_changes.get(at, lr)
        if not case.is_missing(index, at):
            sign = -1.0 if hyper["maximize"] else 1.0
            g = sign * inputs["g"][index][at] + hyper["weight_decay"] * p
            u = g
            for k, gram in enumerate(grams):
                if gram is None:
                    continue
                rows = np.array([g.take(i, axis=k).ravel() for i in range(shape[k])])
                new = grams[k] = gram + np.einsum("ia,ja->ij", rows, rows)
                if t % hyper["precondition_frequency"] == 0:
                    power = hyper["power"] or 1 / (2 * len(shape))
                    vectors = eigenvectors(new)
                    sizes = [math.pow(q @ new @ q + hyper["eps"], -power) for q in vectors.T]
                    roots[k] = sum(
                        (s * np.outer(q, q) for s, q in zip(sizes, vectors.T, strict=True)),
                        np.zeros((shape[k], shape[k])),
                    )
                u = np.moveaxis(np.tensordot(roots[k], u, (1, k)), 0, k)
            if hyper["grafting"] == "sgd" and any(one is not None for one in grams):
                u = u * (math.hypot(*g.ravel()) / math.hypot(*u.ravel()))
            m = hyper["momentum"] * m + u
            p = p - lr * m
            t += 1
        path.append(p)
    state = {"m": m}
    for k in range(2):
        there = k < len(shape) and grams[k] is not None
        state[f"gram{k}"] = np.array(grams[k]) if there else NOTHING
        state[f"root{k}"] = roots[k] if there else NOTHING
    return np.stack(path), state


LETTERS = ("m", "gram0", "gram1")


def closed(case: Case, inputs: Inputs, letters: tuple[str, ...] = LETTERS) -> Result:
    paths, states = zip(*(closed_one(case, inputs, k) for k in range(3)), strict=True)
    return Result([*paths], {k: [s[k] for s in states] for k in letters}, counts_of(case))


def closed_with_roots(case: Case, inputs: Inputs) -> Result:
    """Return the roots too, which two ways to compute them have less of in common than the steps.

    That is so where there are eigenvalues of 0, along which there are no gradients either.
    """
    return closed(case, inputs, (*LETTERS, "root0", "root1"))


ORACLES: dict[str, dict[str, Oracle]] = {
    "Shampoo": {
        "po": by_class(
            of_po,
            arguments_of_po,
            {"momentum_buffer": "m", "pre_cond_0": "gram0", "pre_cond_1": "gram1"},
            read=state_of,
        ),
        "closed": closed,
        "closed_with_roots": closed_with_roots,
    },
}
CP, C = ("closed", "po"), ("closed_with_roots",)
ODD: Hyper = {"lr": 0.05, "eps": 0.1}
CASES: dict[str, tuple[Case, ...]] = {
    "Shampoo": cases_of(
        "Shampoo",
        DEFAULTS["Shampoo"],
        *(
            (*row[:3], {"inputs": "pull", **(row[3] if len(row) > 3 else {})})
            for row in (
                ("default", CP, {}),
                ("odd", CP, ODD),
                ("weight_decay", CP, ODD | {"weight_decay": 0.3}),
                ("maximize", CP, ODD | {"weight_decay": 0.1, "maximize": True}),
                ("momentum", C, ODD | {"momentum": 0.7}),
                ("interval", C, ODD | {"precondition_frequency": 4}),
                ("power", C, ODD | {"power": 0.4}),
                ("grafting", C, ODD | {"grafting": "sgd", "lr": 0.01}),
                ("longest", C, ODD | {"max_precondition_dim": 3}),
                ("none_preconditioned", C, ODD | {"max_precondition_dim": 2}),
                ("missing", C, ODD | {"precondition_frequency": 3}, {"missing": MISSING}),
                ("groups", CP, ODD, {"groups": GROUPS}),
                ("lr_change", CP, ODD, {"lr_changes": LATER}),
            )
        ),
    ),
}
