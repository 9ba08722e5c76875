"""LAMB after optax, after pytorch_optimizer where it can be made to agree, and after the paper."""

from decimal import Decimal, localcontext
from typing import Any

import jax
import numpy as np
import optax
import torch
from pytorch_optimizer import Lamb

from .oracle_closed_form import CONTEXT, ONE, State, blend, exact, exact_array, to_float64
from .oracles import gathered
from .vector_cases import Array, Case, Result

jax.config.update("jax_enable_x64", True)
Inputs = dict[str, list[Array]]


def by_optax(case: Case, inputs: Inputs) -> Result:
    return gathered([optax_one(case, inputs, index) for index in range(len(inputs["p"]))])


def optax_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    hyper = case.hyper(index)
    if not hyper["bias_correction"]:
        raise ValueError("optax.lamb corrects its averages")
    sign, lr = (-1.0 if hyper["maximize"] else 1.0), hyper["lr"]
    param = jax.numpy.asarray(inputs["p"][index])
    state: Any = None
    path, count = [], 0
    for step in range(case.steps):
        lr = case.lr_changes.get(step, lr)
        transform = optax.lamb(
            lr, *hyper["betas"], hyper["eps"], weight_decay=hyper["weight_decay"]
        )
        state = transform.init(param) if state is None else state
        if not case.is_missing(index, step):
            grad = sign * jax.numpy.asarray(inputs["g"][index][step])
            update, state = transform.update(grad, state, param)
            param = optax.apply_updates(param, update)
            count += 1
        path.append(np.asarray(param))
    slots = {"m": optax.tree.get(state, "mu"), "v": optax.tree.get(state, "nu")}
    return np.stack(path), {k: np.asarray(x) for k, x in slots.items()}, count


def by_po(case: Case, inputs: Inputs) -> Result:
    """Run pytorch_optimizer: without its limit of 10 on the norm, and eps = 0 in both places."""
    hyper = case.hyper(0)
    if hyper["bias_correction"] or hyper["eps"] or case.missing or case.groups or case.lr_changes:
        raise ValueError("pytorch_optimizer agrees only without eps and without correction")
    params = [torch.tensor(p, requires_grad=True) for p in inputs["p"]]
    opt = Lamb(
        params,
        lr=hyper["lr"],
        betas=tuple(hyper["betas"]),
        eps=0.0,
        weight_decay=hyper["weight_decay"],
        weight_decouple=False,
        maximize=hyper["maximize"],
        foreach=False,
        adam_debias=True,  # lr as it is; by default po divides it by 1 - beta1^t, and m by nothing
    )
    opt.clamp = float("inf")
    path: list[list[Array]] = [[] for _ in params]
    for step in range(case.steps):
        for i, param in enumerate(params):
            param.grad = torch.tensor(inputs["g"][i][step])
        opt.step()
        for i, param in enumerate(params):
            path[i].append(param.detach().numpy().copy())
    names = {"m": "exp_avg", "v": "exp_avg_sq"}
    state = {k: [opt.state[p][name].numpy().copy() for p in params] for k, name in names.items()}
    return Result([np.stack(p) for p in path], state, [case.steps] * len(params))


def norm(numbers: Any) -> Decimal:
    return sum((x * x for x in numbers), Decimal(0)).sqrt()


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    hyper = {key: exact(value) for key, value in case.hyper(index).items()}
    (b1, b2), shape = hyper["betas"], inputs["p"][index].shape
    p, state, t = exact_array(inputs["p"][index]), State(), 0
    path = []
    for step in range(case.steps):
        lr = hyper["lr"] = exact(case.lr_changes.get(step, hyper["lr"]))
        if not case.is_missing(index, step):
            t += 1
            g = exact_array(inputs["g"][index][step, ...]) * (-1 if hyper["maximize"] else 1)
            m, v = blend(state, "m", b1, g), blend(state, "v", b2, g * g)
            if hyper["bias_correction"]:
                m, v = m / (ONE - b1**t), v / (ONE - b2**t)
            denominator = np.sqrt(v) + hyper["eps"]
            u = m / denominator + hyper["weight_decay"] * p
            there = norm(p) and norm(u)
            p = p - lr * (norm(p) / norm(u) if there else ONE) * u
        path.append(to_float64(p, shape))
    return np.stack(path), {k: to_float64(x, shape) for k, x in state.items()}, t


def closed(case: Case, inputs: Inputs) -> Result:
    """Compute algorithm 2 of the paper, with phi(z) = z, in 50 digits."""
    with localcontext(CONTEXT):
        return gathered([closed_one(case, inputs, index) for index in range(len(inputs["p"]))])
