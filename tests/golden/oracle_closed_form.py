"""The oracle "closed": the formulas of the papers in decimal arithmetic with 50 digits.

Each rule gets the gradient (after sign and coupled decay), its state (a dict it fills), the
number of the step from 1 and the hyperparameters, and returns u of p <- p - lr u (where lr is
inside the state, of p <- p - u).
Arrays are flat NumPy arrays of decimal.Decimal; the result is rounded to float64 once.
"""

import decimal
from collections.abc import Callable
from typing import Any

import numpy as np

from .vector_cases import DECOUPLED, Array, Case, Hyper, Result

Inputs = dict[str, list[Array]]
Numbers = Any  # a flat array of Decimal
State = dict[str, Numbers]

CONTEXT = decimal.Context(prec=50)
ONE = decimal.Decimal(1)


def exact(value: Any) -> Any:
    """Turn floats, alone or in lists, into the Decimal of the same value."""
    if isinstance(value, list):
        return [exact(x) for x in value]
    return value if value is None or isinstance(value, bool | str) else decimal.Decimal(value)


def exact_array(array: Array) -> Numbers:
    flat = np.empty(array.size, dtype=object)
    flat[:] = [decimal.Decimal(x) for x in array.ravel().tolist()]
    return flat


def to_float64(numbers: Numbers, shape: tuple[int, ...]) -> Array:
    return np.array([float(x) for x in numbers], dtype=np.float64).reshape(shape)


def blend(state: State, letter: str, beta: decimal.Decimal, new: Numbers) -> Numbers:
    """Move an exponential average that began at zero: x <- beta x + (1 - beta) new."""
    state[letter] = beta * state.get(letter, 0 * new) + (ONE - beta) * new
    return state[letter]


def over_root(g: Numbers, v: Numbers, hyper: Hyper) -> Numbers:
    """Return g / (sqrt(v) + eps), or g / sqrt(v + eps)."""
    eps = hyper["eps"]
    return g / np.sqrt(v + eps) if hyper["eps_inside_sqrt"] else g / (np.sqrt(v) + eps)


def sgd(g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    mu, tau = hyper["momentum"], hyper["dampening"]
    if mu == 0:
        return g
    if hyper["lr_inside"]:
        lr = hyper["lr"]
        state["v"] = mu * state.get("v", 0 * g) - lr * g
        return lr * g - mu * state["v"] if hyper["nesterov"] else -state["v"]
    state["buf"] = g if t == 1 else mu * state["buf"] + (ONE - tau) * g
    return g + mu * state["buf"] if hyper["nesterov"] else state["buf"]


def momentum(g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    v = blend(state, "v", hyper["beta"], g)
    return v / (ONE - hyper["beta"] ** t) if hyper["bias_correction"] else v


def adagrad(g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    state["s"] = state.get("s", hyper["initial_accumulator_value"]) + g * g
    return over_root(g, state["s"], hyper) / (ONE + (t - 1) * hyper["lr_decay"])


def rmsprop(g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    beta = hyper["beta"]
    correction = ONE - beta**t if hyper["bias_correction"] else ONE
    variance = blend(state, "v", beta, g * g) / correction
    if hyper["centered"]:
        mean = blend(state, "a", beta, g) / correction
        variance = variance - mean * mean
    u = over_root(g, variance, hyper)
    if hyper["momentum"] == 0:
        return u
    if hyper["lr_inside"]:
        state["u"] = hyper["momentum"] * state.get("u", 0 * g) + hyper["lr"] * u
        return state["u"]
    state["buf"] = hyper["momentum"] * state.get("buf", 0 * g) + u
    return state["buf"]


def adadelta(g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    rho, eps = hyper["rho"], hyper["eps"]
    v = blend(state, "v", rho, g * g)
    delta = np.sqrt(state.get("u", 0 * g) + eps) / np.sqrt(v + eps) * g
    blend(state, "u", rho, delta * delta)
    return delta


def adam(g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    m, v = blend(state, "m", b1, g), blend(state, "v", b2, g * g)
    if hyper["amsgrad"]:
        v = state["vmax"] = np.maximum(state.get("vmax", 0 * g), v)
    c1, c2 = (ONE - b1**t, ONE - b2**t) if hyper["bias_correction"] else (ONE, ONE)
    if hyper["eps_hat"]:
        return np.sqrt(c2) / c1 * over_root(m, v, hyper)
    return over_root(m / c1, v / c2, hyper)


RULES: dict[str, Callable[[Numbers, State, int, Hyper], Numbers]] = {
    "SGD": sgd,
    "Momentum": momentum,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adam,
}


def step_one(case: Case, p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    """Return the parameter after one step, with sign and decay."""
    g = -g if hyper["maximize"] else g
    decay, lr = hyper["weight_decay"], hyper["lr"]
    if hyper.get("lr_inside") and hyper["momentum"] != 0:
        return p - RULES[case.optimizer](g + decay * p, state, t, hyper)
    if case.optimizer not in DECOUPLED:
        return p - lr * RULES[case.optimizer](g + decay * p, state, t, hyper)
    return p - lr * decay * p - lr * RULES[case.optimizer](g, state, t, hyper)


def run_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    """Run one parameter alone; a missing gradient is a step not taken."""
    hyper = {key: exact(value) for key, value in case.hyper(index).items()}
    shape = inputs["p"][index].shape
    p, state, count = exact_array(inputs["p"][index]), State(), 0
    path = []
    for step in range(case.steps):
        hyper["lr"] = exact(case.lr_changes.get(step, hyper["lr"]))
        if not case.is_missing(index, step):
            count += 1
            grad = exact_array(inputs["g"][index][step, ...])
            p = step_one(case, p, grad, state, count, hyper)
        path.append(to_float64(p, shape))
    return np.stack(path), {k: to_float64(x, shape) for k, x in state.items()}, count


def run(case: Case, inputs: Inputs) -> Result:
    """Run the case and return parameters and state."""
    with decimal.localcontext(CONTEXT):
        done = [run_one(case, inputs, index) for index in range(len(inputs["p"]))]
    state = {letter: [slots[letter] for _, slots, _ in done] for letter in done[0][1]}
    return Result([path for path, _, _ in done], state, [count for _, _, count in done])
