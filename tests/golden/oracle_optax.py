"""The oracle optax: runs a case with optax's transformations in float64, parameter by parameter."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from .vector_cases import DECOUPLED, Array, Case, Hyper, Result

jax.config.update("jax_enable_x64", True)

Inputs = dict[str, list[Array]]
Transform: TypeAlias = Any  # optax.GradientTransformation; optax ships no type hints


def need(hyper: Hyper, **values: object) -> None:
    """Refuse what optax computes differently."""
    if any(hyper[key] != value for key, value in values.items()):
        raise ValueError(f"optax agrees only with {values}, got {hyper}")


def sgd(hyper: Hyper) -> Transform:
    need(hyper, dampening=0.0, lr_inside=False)
    momentum = hyper["momentum"]
    return optax.trace(momentum, hyper["nesterov"]) if momentum else optax.identity()


def momentum(hyper: Hyper) -> Transform:
    return optax.ema(hyper["beta"], debias=hyper["bias_correction"])


def adagrad(hyper: Hyper) -> Transform:
    if hyper["eps"]:
        need(hyper, eps_inside_sqrt=True)
    decay = hyper["lr_decay"]
    return optax.chain(
        optax.scale_by_rss(hyper["initial_accumulator_value"], eps=hyper["eps"]),
        optax.scale_by_schedule(lambda count: 1.0 / (1.0 + count * decay)),
    )


def rmsprop(hyper: Hyper) -> Transform:
    # optax.rmsprop puts lr before the momentum buffer; here it comes last, as in torch, but with
    # lr_inside, where `run_one` adds lr and the buffer.
    scale = optax.scale_by_stddev if hyper["centered"] else optax.scale_by_rms
    scaled = scale(
        hyper["beta"],
        hyper["eps"],
        eps_in_sqrt=hyper["eps_inside_sqrt"],
        bias_correction=hyper["bias_correction"],
    )
    buffered = hyper["momentum"] and not hyper["lr_inside"]
    return optax.chain(scaled, optax.trace(hyper["momentum"])) if buffered else scaled


def adadelta(hyper: Hyper) -> Transform:
    return optax.scale_by_adadelta(hyper["rho"], hyper["eps"])


def adam(hyper: Hyper) -> Transform:
    need(hyper, eps_hat=False)
    b1, b2 = hyper["betas"]
    inside = hyper["eps_inside_sqrt"]
    eps, eps_root = (0.0, hyper["eps"]) if inside else (hyper["eps"], 0.0)
    if not hyper["amsgrad"]:
        need(hyper, bias_correction=True)
        return optax.scale_by_adam(b1, b2, eps, eps_root)
    need(hyper, bias_correction=False)  # with it, optax takes the maximum of the corrected v
    return optax.scale_by_amsgrad(
        b1, b2, eps, eps_root, bias_correction_mu=False, bias_correction_nu=False
    )


# class -> (its rule, optax's names of state -> our letters)
ADAM_STATE = {"mu": "m", "nu": "v", "nu_max": "vmax"}
RULES: dict[str, tuple[Callable[[Hyper], Transform], dict[str, str]]] = {
    "SGD": (sgd, {"trace": "buf"}),
    "Momentum": (momentum, {"ema": "v"}),
    "Adagrad": (adagrad, {"sum_of_squares": "s"}),
    "RMSprop": (rmsprop, {"nu": "v", "mu": "a", "trace": "buf"}),
    "Adadelta": (adadelta, {"e_g": "v", "e_x": "u"}),
    "Adam": (adam, ADAM_STATE),
    "AdamW": (adam, ADAM_STATE),
}


def build(case: Case, hyper: Hyper) -> Transform:
    """Return sign, decay and rule in their order; the learning rate is left to `run`."""
    rule = RULES[case.optimizer][0](hyper)
    decay = optax.add_decayed_weights(hyper["weight_decay"])
    order = (rule, decay) if case.optimizer in DECOUPLED else (decay, rule)
    return optax.chain(optax.scale(-1.0 if hyper["maximize"] else 1.0), *order)


def run_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    """Run one parameter alone; a missing gradient is a step not taken."""
    hyper = case.hyper(index)
    transform = build(case, hyper)
    lr: float = hyper["lr"]
    param = jax.numpy.asarray(inputs["p"][index])
    inside = hyper.get("lr_inside", False)
    buffer = optax.trace(hyper["momentum"]) if inside else optax.identity()
    state, gathered = transform.init(param), buffer.init(param)
    path: list[Array] = []
    count = 0
    for step in range(case.steps):
        lr = case.lr_changes.get(step, lr)
        if not case.is_missing(index, step):
            grad = jax.numpy.asarray(inputs["g"][index][step])
            update, state = transform.update(grad, state, param)
            update, gathered = buffer.update(lr * update, gathered)
            param = optax.apply_updates(param, -update)
            count += 1
        path.append(np.asarray(param))
    letters = RULES[case.optimizer][1] | ({"trace": "u"} if inside else {})
    found = {letter: optax.tree.get((state, gathered), x) for x, letter in letters.items()}
    slots = {letter: np.asarray(x) for letter, x in found.items() if x is not None}
    return np.stack(path), slots, count


def run(case: Case, inputs: Inputs) -> Result:
    """Run the case and return all that optax shows of it."""
    done = [run_one(case, inputs, index) for index in range(len(inputs["p"]))]
    state = {letter: [slots[letter] for _, slots, _ in done] for letter in done[0][1]}
    return Result([path for path, _, _ in done], state, [count for _, _, count in done])
