"""The oracle scikit-learn: the optimizers of its multilayer perceptrons, parameter by parameter."""

from typing import Any

import numpy as np
from sklearn.neural_network import _stochastic_optimizers as theirs

from .vector_cases import DECOUPLED, Array, Case, Hyper, Result

Inputs = dict[str, list[Array]]
ADAM_STATE = {"ms": "m", "vs": "v"}
STATE = {"SGD": {"velocities": "v"}, "Adam": ADAM_STATE, "AdamW": ADAM_STATE}
"""Their names of state and our letters."""


def need(hyper: Hyper, **values: object) -> None:
    """Refuse what scikit-learn does not compute."""
    if any(hyper[key] != value for key, value in values.items()):
        raise ValueError(f"scikit-learn has {values}, got {hyper}")


def build(case: Case, hyper: Hyper, param: Array) -> Any:
    """Return the optimizer of one parameter."""
    if case.optimizer == "SGD":
        need(hyper, dampening=0.0, lr_inside=True)
        momentum, nesterov = hyper["momentum"], hyper["nesterov"]
        return theirs.SGDOptimizer([param], hyper["lr"], "constant", momentum, nesterov)
    need(hyper, eps_hat=True, eps_inside_sqrt=False, amsgrad=False, bias_correction=True)
    return theirs.AdamOptimizer([param], hyper["lr"], *hyper["betas"], hyper["eps"])


def set_rate(opt: Any, lr: float) -> None:
    """Set the rate; Adam works its own out of the initial one, in every step."""
    opt.learning_rate_init = opt.learning_rate = lr


def run_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    """Run one parameter alone; a missing gradient is a step not taken."""
    hyper = case.hyper(index)
    param = np.array(inputs["p"][index])
    opt = build(case, hyper, param)
    lr, path, count = hyper["lr"], [], 0
    for step in range(case.steps):
        lr = case.lr_changes.get(step, lr)
        if not case.is_missing(index, step):
            grad = (-1.0 if hyper["maximize"] else 1.0) * inputs["g"][index][step, ...]
            decay = hyper["weight_decay"]  # there is none of either kind in theirs
            set_rate(opt, lr)
            if case.optimizer in DECOUPLED:
                param -= lr * decay * param
            else:
                grad = grad + decay * param
            opt.update_params([param], [grad])
            count += 1
        path.append(param.copy())
    names = STATE[case.optimizer]
    slots = {letter: np.array(getattr(opt, name)[0]) for name, letter in names.items()}
    return np.stack(path), slots, count


def run(case: Case, inputs: Inputs) -> Result:
    """Run the case and return parameters and state."""
    done = [run_one(case, inputs, index) for index in range(len(inputs["p"]))]
    state = {letter: [slots[letter] for _, slots, _ in done] for letter in done[0][1]}
    return Result([path for path, _, _ in done], state, [count for _, _, count in done])
