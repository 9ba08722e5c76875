"""Prodigy after its authors' package, after pytorch_optimizer, and after the paper."""

import contextlib
import io
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import prodigyopt
import pytorch_optimizer
import torch

from .kind_files import WithMemory
from .oracle_closed_form import CONTEXT, ONE, exact, exact_array, to_float64
from .vector_cases import Array, Case, Hyper

Inputs = dict[str, list[Array]]
LETTERS = {"exp_avg": "m", "exp_avg_sq": "v", "s": "s", "p0": "p0"}
INFINITE = float("inf")


def letters(case: Case) -> dict[str, str]:
    """Return what is recorded of the state; with beta1 = 0 the authors have no m."""
    return {k: x for k, x in LETTERS.items() if x != "m" or case.base()["betas"][0]}


def of_authors(hyper: Hyper) -> Hyper:
    names = {"bias_correction": "use_bias_correction", "decoupled_weight_decay": "decouple"}
    made = {names.get(key, key): value for key, value in hyper.items() if key != "maximize"}
    return made | {"growth_rate": hyper["growth_rate"] or INFINITE}


def of_po(hyper: Hyper) -> Hyper:
    names = {"decoupled_weight_decay": "weight_decouple"}
    made = {names.get(key, key): value for key, value in hyper.items() if key != "maximize"}
    return made | {"growth_rate": hyper["growth_rate"] or INFINITE}


def run_torch(case: Case, inputs: Inputs, make: Any, arguments: Any) -> WithMemory:
    """Run one of the two packages; both have the same names of state."""
    params = [torch.tensor(p, requires_grad=True) for p in inputs["p"]]
    groups = [
        {"params": [params[i] for i in indices]} | arguments(hyper)
        for indices, hyper in case.parts()
    ]
    torch.set_default_dtype(torch.float64)  # in which pytorch_optimizer keeps its sums
    with contextlib.redirect_stdout(io.StringIO()):  # the authors' tells that it decays
        opt = make(groups, **arguments(case.base()))
    sign = -1.0 if case.base()["maximize"] else 1.0
    path: list[list[Array]] = [[] for _ in params]
    memory: dict[str, list[float]] = {"d": [], "d_max": [], "numerator": []}
    for step in range(case.steps):
        for group in opt.param_groups:
            group["lr"] = case.lr_changes.get(step, group["lr"])
        for i, param in enumerate(params):
            grad = torch.tensor(sign * inputs["g"][i][step])
            param.grad = None if case.is_missing(i, step) else grad
        opt.step()
        for i, param in enumerate(params):
            path[i].append(param.detach().numpy().copy())
        group = opt.param_groups[0]
        for name, theirs in (("d", "d"), ("d_max", "d_max"), ("numerator", "d_numerator")):
            memory[name].append(float(group[theirs]))
    torch.set_default_dtype(torch.float32)
    state = {}
    for name, letter in letters(case).items():
        slots = [opt.state[p][name].numpy() for p in params]
        shaped = [np.broadcast_to(x.ravel(), p.numel()) for x, p in zip(slots, params, strict=True)]
        state[letter] = [x.reshape(p.shape).copy() for x, p in zip(shaped, params, strict=True)]
    given = [sum(not case.is_missing(i, s) for s in range(case.steps)) for i in range(len(params))]
    return WithMemory([np.stack(p) for p in path], state, given, memory)


def by_authors(case: Case, inputs: Inputs) -> WithMemory:
    return run_torch(case, inputs, prodigyopt.Prodigy, of_authors)


def by_po(case: Case, inputs: Inputs) -> WithMemory:
    return run_torch(case, inputs, pytorch_optimizer.Prodigy, of_po)


def closed(case: Case, inputs: Inputs) -> WithMemory:
    """Compute algorithm 4 of the paper with the options of the package, in 50 digits."""
    with localcontext(CONTEXT):
        return run_closed(case, inputs)


def run_closed(case: Case, inputs: Inputs) -> WithMemory:
    everyone = range(len(inputs["p"]))
    hypers = [{k: x if x is None else exact(x) for k, x in case.hyper(i).items()} for i in everyone]
    one = hypers[0]
    (b1, b2), d0 = one["betas"], one["d0"]
    # The root as a float64, which is what both packages take.
    b3 = Decimal(float(b2) ** 0.5) if one["beta3"] is None else one["beta3"]
    p = [exact_array(x) for x in inputs["p"]]
    p0 = [x.copy() for x in p]
    m, v, s = ([0 * x for x in p] for _ in range(3))
    d, d_max, numerator, t = d0, d0, Decimal(0), 0
    path: list[list[Array]] = [[] for _ in everyone]
    memory: dict[str, list[float]] = {"d": [], "d_max": [], "numerator": []}
    for step in range(case.steps):
        lr = exact(case.lr_changes.get(step, one["lr"]))
        one["lr"] = lr
        rate = d * lr
        if one["bias_correction"]:
            rate = rate * (ONE - b2 ** (t + 1)).sqrt() / (ONE - b1 ** (t + 1))
        present = [i for i in everyone if not case.is_missing(i, step)]
        added = Decimal(0)
        for i in present:
            g = exact_array(inputs["g"][i][step, ...]) * (-1 if one["maximize"] else 1)
            if not one["decoupled_weight_decay"]:
                g = g + hypers[i]["weight_decay"] * p[i]
            added += d / d0 * rate * sum(g * (p0[i] - p[i]), Decimal(0))
            m[i] = b1 * m[i] + (ONE - b1) * d * g
            v[i] = b2 * v[i] + (ONE - b2) * d * d * g * g
            s[i] = b3 * s[i] + d / d0 * (d if one["safeguard_warmup"] else rate) * g
        length = sum((sum(abs(s[i]), Decimal(0)) for i in present), Decimal(0))
        if length:  # else it is no step at all
            t += 1
            numerator = b3 * numerator + added
            estimate = one["d_coef"] * numerator / length
            grown = max(d, estimate) if d == d0 else d
            d_max = max(d_max, estimate)
            d = d_max if one["growth_rate"] is None else min(d_max, grown * one["growth_rate"])
            for i in present:
                if one["decoupled_weight_decay"]:
                    p[i] = p[i] - hypers[i]["weight_decay"] * rate * p[i]
                p[i] = p[i] - rate * m[i] / (np.sqrt(v[i]) + d * one["eps"])
        for i in everyone:
            path[i].append(to_float64(p[i], inputs["p"][i].shape))
        for name, value in (("d", d), ("d_max", d_max), ("numerator", numerator)):
            memory[name].append(float(value))
    state = {
        letter: [to_float64(x, y.shape) for x, y in zip(slots, inputs["p"], strict=True)]
        for letter, slots in (("m", m), ("v", v), ("s", s), ("p0", p0))
        if letter in letters(case).values()
    }
    given = [sum(not case.is_missing(i, s) for s in range(case.steps)) for i in everyone]
    return WithMemory([np.stack(x) for x in path], state, given, memory)
