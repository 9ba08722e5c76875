"""Muon after PyTorch and pytorch_optimizer, iterated in float64, and after what iterating does."""

import math
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.muon import base as po_base

from .vector_cases import Array, Case, Hyper, Result

Inputs = dict[str, list[Array]]


def of_torch(hyper: Hyper) -> Hyper:
    made = {key: value for key, value in hyper.items() if key not in ("maximize", "adjust_lr")}
    return made | {"adjust_lr_fn": hyper["adjust_lr"]}


def of_po(hyper: Hyper) -> Hyper:
    if hyper["eps"] != 1e-7:
        raise ValueError("pytorch_optimizer has eps = 1e-7")
    same = ("lr", "momentum", "nesterov", "ns_steps", "weight_decay")
    return {key: hyper[key] for key in same} | {
        "ns_coeffs": tuple(hyper["ns_coefficients"]),
        "use_adjusted_lr": hyper["adjust_lr"] == "match_rms_adamw",
        "use_muon": True,
    }


def run_torch(case: Case, inputs: Inputs, make: Any, arguments: Any) -> Result:
    params = [torch.tensor(p, requires_grad=True) for p in inputs["p"]]
    groups = [
        {"params": [params[i] for i in indices]} | arguments(hyper)
        for indices, hyper in case.parts()
    ]
    opt = make(groups)
    sign = -1.0 if case.base()["maximize"] else 1.0
    path: list[list[Array]] = [[] for _ in params]
    for step in range(case.steps):
        for group in opt.param_groups:
            group["lr"] = case.lr_changes.get(step, group["lr"])
        for i, param in enumerate(params):
            grad = torch.tensor(sign * inputs["g"][i][step])
            param.grad = None if case.is_missing(i, step) else grad
        opt.step()
        for i, param in enumerate(params):
            path[i].append(param.detach().numpy().copy())
    state = {"m": [opt.state[p]["momentum_buffer"].numpy().copy() for p in params]}
    return Result([np.stack(p) for p in path], state, counts_of(case))


def counts_of(case: Case) -> list[int]:
    return [sum(not case.is_missing(i, step) for step in range(case.steps)) for i in range(3)]


def by_torch(case: Case, inputs: Inputs) -> Result:
    # A copy, as the cast to bfloat16 makes one: what follows writes into it.
    with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        return run_torch(case, inputs, torch.optim.Muon, of_torch)


def by_po(case: Case, inputs: Inputs) -> Result:
    iterate = partial(po_base.zero_power_via_newton_schulz_5, dtype=torch.float64)
    with patch.object(po_base, "zero_power_via_newton_schulz_5", iterate):
        make = partial(pytorch_optimizer.Muon, foreach=False)
        return run_torch(case, inputs, make, of_po)


def iterated(u: Array, hyper: Hyper) -> Array:
    """Return what the iteration makes of a matrix: the polynomial, of each singular value."""
    a, b, c = hyper["ns_coefficients"]
    left, values, right = np.linalg.svd(u, full_matrices=False)
    values = values / max(math.sqrt((u * u).sum()), hyper["eps"])
    for _ in range(hyper["ns_steps"]):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


def factor(hyper: Hyper, rows: int, columns: int) -> float:
    if hyper["adjust_lr"] == "original":
        return math.sqrt(rows / columns) if rows > columns else 1.0
    return 0.2 * math.sqrt(rows if rows > columns else columns)


def closed(case: Case, inputs: Inputs) -> Result:
    """Compute in float64 by singular values, which no implementation does."""
    paths, buffers = zip(*(closed_one(case, inputs, k) for k in range(3)), strict=True)
    return Result([*paths], {"m": [*buffers]}, counts_of(case))


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, Array]:
    """Return the path of one parameter, and its momentum at the end."""
    start, hyper = inputs["p"][index], case.hyper(index)
    sign, mu, decay = (-1 if hyper["maximize"] else 1), hyper["momentum"], hyper["weight_decay"]
    p, m, lr, path = start, np.zeros_like(start), hyper["lr"], []
    for step in range(case.steps):
        lr = case.lr_changes.get(step, lr)
        if not case.is_missing(index, step):
            g = sign * inputs["g"][index][step]
            m = mu * m + (1 - mu) * g
            u = mu * m + (1 - mu) * g if hyper["nesterov"] else m
            p = (1 - lr * decay) * p - lr * factor(hyper, *p.shape) * iterated(u, hyper)
        path.append(p)
    return np.stack(path), m
