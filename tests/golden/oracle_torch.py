"""The oracle PyTorch: runs a case with the class of torch.optim, one tensor at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .vector_cases import DECOUPLED, Array, Case, Hyper, Result

Inputs = dict[str, list[Array]]

# class -> (torch's class, our names of arguments -> torch's, torch's names of state -> our letters)
ADAM_STATE = {"exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "vmax"}
CLASSES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, str], dict[str, str]]] = {
    "SGD": (torch.optim.SGD, {}, {"momentum_buffer": "buf"}),
    "Adagrad": (torch.optim.Adagrad, {}, {"sum": "s"}),
    "RMSprop": (
        torch.optim.RMSprop,
        {"beta": "alpha"},
        {"square_avg": "v", "grad_avg": "a", "momentum_buffer": "buf"},
    ),
    "Adadelta": (torch.optim.Adadelta, {}, {"square_avg": "v", "acc_delta": "u"}),
    "Adam": (torch.optim.Adam, {}, ADAM_STATE),
    "AdamW": (torch.optim.AdamW, {}, ADAM_STATE),
}
OF_ADAM = {
    "eps_inside_sqrt": (False,),
    "eps_hat": (False, True),
    "bias_correction": (True, False),
}
# Options torch does not have, with the values at which it can be made to agree.
ABSENT: dict[str, dict[str, tuple[bool, ...]]] = {
    "SGD": {"lr_inside": (False,)},
    "Adagrad": {"eps_inside_sqrt": (False,)},
    "RMSprop": {
        "eps_inside_sqrt": (False,),
        "bias_correction": (False,),
        "lr_inside": (False,),
    },
    "Adam": OF_ADAM,
    "AdamW": OF_ADAM,
}


def arguments(optimizer: str, hyper: Hyper) -> Hyper:
    """Translate our hyperparameters into torch's."""
    absent = ABSENT.get(optimizer, {})
    if any(hyper[key] not in values for key, values in absent.items()):
        raise ValueError(f"torch.optim has no {optimizer} with {hyper}")
    names = CLASSES[optimizer][1]
    return {names.get(key, key): hyper[key] for key in hyper if key not in absent}


def build(case: Case, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Construct the optimizer, every hyperparameter written out in each group."""
    groups = [
        {"params": [params[i] for i in indices]} | arguments(case.optimizer, hyper)
        for indices, hyper in case.parts()
    ]
    make: Any = CLASSES[case.optimizer][0]
    # Adagrad reads initial_accumulator_value from the constructor's argument only.
    base = arguments(case.optimizer, case.base())
    built: torch.optim.Optimizer = make(groups, **base, foreach=False)
    return built


def without_correction(optimizer: str, hyper: Hyper, t: int) -> Hyper:
    """Return the lr, eps and decay of step t that cancel torch's bias corrections c1 and c2.

    lr' / c1 * m / (sqrt(v) / sqrt(c2) + eps') = lr * m / (sqrt(v) + eps)
    """
    b1, b2 = hyper["betas"]
    root2 = math.sqrt(1.0 - b2**t)
    lr = hyper["lr"] * (1.0 - b1**t) / root2
    decay = hyper["weight_decay"] * (hyper["lr"] / lr if optimizer in DECOUPLED else 1.0)
    return {"lr": lr, "eps": hyper["eps"] / root2, "weight_decay": decay}


def set_step(case: Case, opt: torch.optim.Optimizer, step: int) -> None:
    """Write into the groups what changes from step to step."""
    for group, (_, hyper) in zip(opt.param_groups, case.parts(), strict=True):
        group["lr"] = case.lr_changes.get(step, group["lr"])
        if case.optimizer not in ("Adam", "AdamW"):
            continue
        if hyper["bias_correction"] and not hyper["eps_hat"]:
            continue
        if case.missing or case.lr_changes:
            raise ValueError("steps and lr must be those of the whole optimizer here")
        if hyper["bias_correction"]:
            # sqrt(v) / sqrt(c2) + eps / sqrt(c2) is the corrected root of v with eps added before.
            group["eps"] = hyper["eps"] / math.sqrt(1.0 - hyper["betas"][1] ** (step + 1))
        else:
            group.update(without_correction(case.optimizer, hyper, step + 1))


def own_count(case: Case, opt: torch.optim.Optimizer, index: int, param: torch.Tensor) -> int:
    """Return torch's step count of a parameter; SGD has none and counts the gradients given."""
    given = sum(not case.is_missing(index, step) for step in range(case.steps))
    return int(opt.state[param].get("step", given))


def final_state(
    case: Case, opt: torch.optim.Optimizer, params: list[torch.Tensor]
) -> dict[str, list[Array]]:
    """Return torch's state under our letters."""
    return {
        letter: [opt.state[p][name].numpy().copy() for p in params]
        for name, letter in CLASSES[case.optimizer][2].items()
        if opt.state[params[0]].get(name) is not None
    }


def run(
    case: Case,
    inputs: Inputs,
    dtype: torch.dtype = torch.float64,
    around: Callable[[torch.optim.Optimizer], None] = lambda _: None,
) -> Result:
    """Run the case and return all that torch shows of it; ``around`` may hook into the steps."""
    params = [torch.tensor(p, dtype=dtype, requires_grad=True) for p in inputs["p"]]
    opt = build(case, params)
    around(opt)
    path: list[list[Array]] = [[] for _ in params]
    for step in range(case.steps):
        set_step(case, opt, step)
        for i, param in enumerate(params):
            grad = torch.tensor(inputs["g"][i][step], dtype=dtype)
            param.grad = None if case.is_missing(i, step) else grad
        opt.step()
        for i, param in enumerate(params):
            path[i].append(param.detach().numpy().copy())
    counts = [own_count(case, opt, i, param) for i, param in enumerate(params)]
    return Result([np.stack(p) for p in path], final_state(case, opt, params), counts)
