"""SOAP, after pytorch_optimizer (po) with its QR in float64, and by Jacobi and Gram-Schmidt."""

import math
from functools import reduce
from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np

from ..oracles import Inputs, Oracle, by_class, counts_of
from ..vector_cases import GROUPS, MISSING, Array, Case, Hyper, Result
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "SOAP": {
        "lr": 3e-3,
        "betas": [0.95, 0.95],
        "shampoo_beta": None,
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "precondition_frequency": 10,
        "max_precondition_dim": 10000,
        "normalize_grads": False,
        "correct_bias": True,
    },
}
NOTHING = np.empty(0)


def of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import SOAP

    return SOAP(groups, **arguments)


def arguments_of_po(hyper: Hyper) -> Hyper:
    same = set(hyper) - {"normalize_grads", "maximize"}
    return {name: hyper[name] for name in same} | {
        "normalize_gradient": hyper["normalize_grads"],
        "maximize": hyper["maximize"],
    }


def in_float64(optimizer: Any, t: int) -> None:
    """Make a step whose QR decomposition is in float64, where it is in float32 otherwise."""
    import torch

    with patch.object(torch, "float32", torch.float64):
        optimizer.step()


def of_axis(found: list[Any], k: int) -> Any:
    return found[k] if k < len(found) and len(found[k]) else NOTHING


def state_of(optimizer: Any, param: Any, name: str) -> Any:
    state = optimizer.state[param]
    return of_axis(state["GG"], int(name[-1])) if name[:2] == "GG" else state[name]


def eigenvectors(gram: Array) -> Array:
    """Return them in columns, those of the largest eigenvalues first, by Jacobi's rotations."""
    a, q = gram.copy(), np.eye(len(gram))
    for _ in range(30):
        for i, j in combinations(range(len(a)), 2):
            if a[i, j] != 0.0:
                angle = 0.5 * math.atan2(2 * a[i, j], a[j, j] - a[i, i])
                turn = np.eye(len(a))
                turn[i, i] = turn[j, j] = math.cos(angle)
                turn[i, j], turn[j, i] = math.sin(angle), -math.sin(angle)
                a, q = turn.T @ a @ turn, q @ turn
    return q[:, sorted(range(len(a)), key=lambda k: -a[k, k])]


def orthonormal(columns: Array) -> Array:
    """Return columns made orthonormal one after another, each twice."""
    found: list[Array] = []
    for column in columns.T:
        for _ in range(2):
            for other in found:
                column = column - (other @ column) * other
        found.append(column / math.sqrt(column @ column))
    return np.array(found).T


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array]]:
    """Return a parameter's path, and its state at the end.

    The basis of all axes is one matrix, the Kronecker product of those of each.
    """
    p, hyper = inputs["p"][index], case.hyper(index)
    shape, (beta1, beta2), eps = p.shape, hyper["betas"], hyper["eps"]
    longest = hyper["max_precondition_dim"] if len(shape) > 1 else 0
    kept = beta2 if hyper["shampoo_beta"] is None else hyper["shampoo_beta"]
    grams = [np.zeros((n, n)) if n <= longest else None for n in shape]
    bases: list[Array] = [np.eye(n) for n in shape]
    m, v, lr = np.zeros(p.size), np.zeros(shape), hyper["lr"]
    path, t = [], 0
    for at in range(case.steps):
        lr = case.lr_changes.get(at, lr)
        if not case.is_missing(index, at):
            g = inputs["g"][index][at] * (-1.0 if hyper["maximize"] else 1.0)
            if t > 0:
                whole = reduce(np.kron, bases, np.eye(1))
                m = beta1 * m + (1 - beta1) * g.ravel()
                v = beta2 * v + (1 - beta2) * (whole.T @ g.ravel()).reshape(shape) ** 2
                u = whole @ (whole.T @ m / (np.sqrt(v).ravel() + eps))
                if hyper["normalize_grads"]:
                    u = u / (math.sqrt(u @ u / u.size) + eps)
                c = math.sqrt(1 - beta2**t) / (1 - beta1**t) if hyper["correct_bias"] else 1.0
                p = (p - lr * c * u.reshape(shape)) * (1 - lr * hyper["weight_decay"])
            for k, gram in enumerate(grams):
                if gram is None:
                    continue
                rows = np.array([g.take(i, axis=k).ravel() for i in range(shape[k])])
                new = grams[k] = kept * gram + (1 - kept) * np.einsum("ia,ja->ij", rows, rows)
                if t == 0:
                    bases[k] = eigenvectors(new)
                elif t % hyper["precondition_frequency"] == 0:
                    sizes = [q @ new @ q for q in bases[k].T]
                    order = sorted(range(shape[k]), key=lambda one: -sizes[one])
                    v = v.take(order, axis=k)
                    bases[k] = orthonormal((new @ bases[k])[:, order])
            t += 1
        path.append(p)
    state = {"m": m.reshape(shape), "v": v}
    two = [*grams, None, None]
    return np.stack(path), state | {
        f"gram{k}": NOTHING if two[k] is None else np.array(two[k]) for k in range(2)
    }


def closed(case: Case, inputs: Inputs) -> Result:
    paths, states = zip(*(closed_one(case, inputs, k) for k in range(3)), strict=True)
    letters = ("m", "v", "gram0", "gram1")
    return Result([*paths], {k: [s[k] for s in states] for k in letters}, counts_of(case))


ORACLES: dict[str, dict[str, Oracle]] = {
    "SOAP": {
        "po": by_class(
            of_po,
            arguments_of_po,
            {"exp_avg": "m", "exp_avg_sq": "v", "GG0": "gram0", "GG1": "gram1"},
            step=in_float64,
            read=state_of,
        ),
        "closed": closed,
    },
}
PC, C = ("po", "closed"), ("closed",)
ODD: Hyper = {"lr": 0.02, "betas": [0.6, 0.9], "precondition_frequency": 3}
# Matrices whose Gram matrices have distinct eigenvalues: where two are close, as with the other
# inputs, their vectors have fewer digits in common than the parameters are recorded with.
CASES: dict[str, tuple[Case, ...]] = {
    "SOAP": cases_of(
        "SOAP",
        DEFAULTS["SOAP"],
        ("default", PC, {}, {"inputs": "pull"}),
        ("odd", PC, ODD, {"inputs": "pull"}),
        ("every_step", PC, ODD | {"precondition_frequency": 1}, {"inputs": "pull"}),
        ("forgets", PC, ODD | {"betas": [0.0, 0.5]}, {"inputs": "pull"}),
        ("shampoo_beta", PC, ODD | {"shampoo_beta": 0.5}, {"inputs": "pull"}),
        ("max_precondition_dim", PC, ODD | {"max_precondition_dim": 3}, {"inputs": "pull"}),
        ("none_preconditioned", PC, ODD | {"max_precondition_dim": 2}, {"inputs": "pull"}),
        ("normalize_grads", PC, ODD | {"normalize_grads": True, "eps": 0.1}, {"inputs": "pull"}),
        ("not_corrected", PC, ODD | {"correct_bias": False}, {"inputs": "pull"}),
        ("eps", PC, ODD | {"eps": 0.3}, {"inputs": "pull"}),
        ("weight_decay", PC, ODD | {"weight_decay": 0.3}, {"inputs": "pull"}),
        ("maximize", PC, ODD | {"maximize": True}, {"inputs": "pull"}),
        ("missing", C, ODD, {"inputs": "pull", "missing": MISSING}),
        ("groups", PC, ODD, {"inputs": "pull", "groups": GROUPS}),
        (
            "lr_change",
            PC,
            ODD | {"lr": 0.005},
            {"inputs": "pull", "lr_changes": {8: 0.02, 20: 0.01}},
        ),
    ),
}
