"""Decay that does not follow the learning rate but its schedule, by torch-optimi and in 50 digits.

There ``max_lr`` is that of all groups unless a group names one, so each is given its own here.
"""

from decimal import localcontext
from typing import Any

import numpy as np

from .oracle_closed_form import CONTEXT, RULES, State, exact, exact_array, to_float64
from .oracles import Inputs, by_class, gathered
from .vector_cases import Array, Case, Hyper, Result

STATE: dict[str, dict[str, str]] = {
    "AdamW": {},  # its averages are corrected where they are stored
    "SGD": {"exp_avg": "buf"},
    "Lion": {"exp_avg": "m"},
    "StableAdamW": {"exp_avg": "m", "exp_avg_sq": "v"},
}


def base_of(hyper: Hyper) -> Any:
    return hyper["lr"] if hyper["decoupled_lr"] is True else hyper["decoupled_lr"]


def by_optimi(case: Case, inputs: Inputs) -> Result:
    import optimi

    def make(groups: Any, **arguments: Any) -> Any:
        made = getattr(optimi, case.optimizer)
        return made(groups, foreach=False, triton=False, **arguments)

    def arguments(hyper: Hyper) -> Hyper:
        names = ("lr", "betas", "momentum", "eps", "weight_decay")
        own = {name: hyper[name] for name in names if name in hyper}
        return own | {"decouple_lr": True, "max_lr": base_of(hyper)}

    return by_class(make, arguments, STATE[case.optimizer])(case, inputs)


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    hyper = {key: exact(value) for key, value in case.hyper(index).items()}
    base, rule = base_of(hyper), RULES[case.optimizer]
    shape = inputs["p"][index].shape
    p, state, count, path = exact_array(inputs["p"][index]), State(), 0, []
    for at in range(case.steps):
        hyper["lr"] = lr = exact(case.lr_changes.get(at, hyper["lr"]))
        if not case.is_missing(index, at):
            count += 1
            g = exact_array(inputs["g"][index][at, ...])
            p = p - hyper["weight_decay"] * lr / base * p - lr * rule(g, state, count, hyper)
        path.append(to_float64(p, shape))
    known = STATE[case.optimizer].values()
    return np.stack(path), {k: to_float64(state[k], shape) for k in known}, count


def closed(case: Case, inputs: Inputs) -> Result:
    with localcontext(CONTEXT):
        return gathered([closed_one(case, inputs, index) for index in range(len(inputs["p"]))])
