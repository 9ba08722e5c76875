"""Adam and AdamW with elements left out, around optax's Adam and in 50 digits."""

from decimal import localcontext
from typing import Any

import jax
import numpy as np
import optax

from .oracle_closed_form import CONTEXT, State, adam, exact, exact_array, to_float64
from .oracles import gathered
from .vector_cases import DECOUPLED, Array, Case, Result

jax.config.update("jax_enable_x64", True)
Inputs = dict[str, list[Array]]
LEAST = 1e-3
"""The share of agreeing elements is taken for no less, as its authors' code does."""


def optax_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    hyper, np_ = case.hyper(index), jax.numpy
    transform = optax.scale_by_adam(*hyper["betas"], hyper["eps"])
    lr, decay = hyper["lr"], hyper["weight_decay"]
    p = np_.asarray(inputs["p"][index])
    state: Any = transform.init(p)
    path = []
    for given in inputs["g"][index]:
        coupled = case.optimizer not in DECOUPLED
        g = np_.asarray(given) + decay * p if coupled else np_.asarray(given)
        u, new = transform.update(g, state)
        moved = p if coupled else p * (1.0 - lr * decay)
        if hyper.get("cautious"):
            mask = (u * g > 0).astype(np_.float64)
            u = u * mask / np_.maximum(mask.mean(), LEAST)
        moved = moved - lr * u
        if hyper.get("mask_zero"):
            there = given != 0.0
            moved = np_.where(there, moved, p)
            mu, nu = np_.where(there, new.mu, state.mu), np_.where(there, new.nu, state.nu)
            new = new._replace(mu=mu, nu=nu)
        p, state = moved, new
        path.append(np.asarray(p))
    return np.stack(path), {"m": np.asarray(state.mu), "v": np.asarray(state.nu)}, case.steps


def by_optax(case: Case, inputs: Inputs) -> Result:
    return gathered([optax_one(case, inputs, index) for index in range(len(inputs["p"]))])


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    """Go element by element: where nothing is given, m, v and p are not touched at all."""
    hyper = {key: exact(value) for key, value in case.hyper(index).items()}
    shape, wd, lr = inputs["p"][index].shape, hyper["weight_decay"], hyper["lr"]
    p, state = exact_array(inputs["p"][index]), State()
    state["m"], state["v"] = 0 * p, 0 * p
    path = []
    for step in range(case.steps):
        given = exact_array(inputs["g"][index][step, ...])
        chosen = np.arange(p.size)
        if case.base().get("mask_zero"):
            chosen = np.array([i for i in chosen if given[i]], dtype=int)
        old, part = p[chosen], State(m=state["m"][chosen], v=state["v"][chosen])
        g = given[chosen] if case.optimizer in DECOUPLED else given[chosen] + wd * old
        u = adam(g, part, step + 1, hyper)
        if case.base().get("cautious"):
            agrees = [x * y > 0 for x, y in zip(u, g, strict=True)]
            share = max(exact(LEAST), exact(sum(agrees)) / len(agrees))
            u = np.array([x / share if yes else 0 * x for x, yes in zip(u, agrees, strict=True)])
        kept = old - lr * wd * old if case.optimizer in DECOUPLED else old
        p = p.copy()
        p[chosen] = kept - lr * u
        state["m"][chosen], state["v"][chosen] = part["m"], part["v"]
        path.append(to_float64(p, shape))
    return np.stack(path), {k: to_float64(state[k], shape) for k in ("m", "v")}, case.steps


def closed(case: Case, inputs: Inputs) -> Result:
    with localcontext(CONTEXT):
        return gathered([closed_one(case, inputs, index) for index in range(len(inputs["p"]))])
