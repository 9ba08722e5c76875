"""Fit a model whose gradients JAX works out, with steps by fastopt.

    python examples/jax_fit.py --optimizer adam

What is gained is that whatever JAX can differentiate is fitted by any optimizer here, in place. A
loop in JAX becomes

    params = from_jax(begun, copy=True)               params = begun
    opt = fastopt.Adam(params)                        state = rule.init(params)
    for step in range(steps):                         for step in range(steps):
        grads = gradients(to_jax(params))                 grads = gradients(params)
        opt.step(from_jax(grads))                         updates, state = rule.update(grads, state)
                                                          params = apply_updates(params, updates)

``to_jax`` is the one copy: JAX's arrays never change, and a step changes the parameters in place,
so JAX gets a copy of them in each step. ``from_jax`` makes none: the gradients are read where JAX
has them.

Where optax is installed (``pip install optax``) its Adam makes the same fit, gradients and update
compiled as one function by ``jax.jit``, and both are compared. With as few numbers as here that is
several times faster: what takes the time is not the arithmetic but the calls.

The data are the 442 patients of scikit-learn's diabetes: ten measures of each, and how far the
disease went within a year. The usual fit by least squares says that every prediction is off by as
much as any other. Here the logarithm of the variance is linear in the prediction,

    y ~ Normal(mean, variance),    mean = x @ w + b,    log(variance) = base + slope * mean

and all of it is fitted at once: 13 numbers, by maximum likelihood. Needs
``pip install -e '.[examples]' jax``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import fastopt
from fastopt.interop import from_jax, to_jax

try:
    import optax
except ImportError:
    optax = None

Params = dict[str, Any]

HELD_OUT = 110
RATES = {"sgd": 0.1, "rmsprop": 0.01, "adam": 0.05, "lion": 0.003, "adan": 0.1}


class Data(NamedTuple):
    """Measures of patients, and how far the disease went; both with mean 0 and deviation 1."""

    x: Any
    y: Any


def data() -> tuple[Data, Data]:
    """Return the patients to fit to, and those held out."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = ((a / a.std(axis=0)).astype(np.float32) for a in (x[order], y[order] - y.mean()))
    return Data(x[HELD_OUT:], y[HELD_OUT:]), Data(x[:HELD_OUT], y[:HELD_OUT])


def loss(params: Params, x: Any, y: Any) -> Any:
    """Return the negative logarithm of the likelihood, per patient."""
    mean = x @ params["w"] + params["b"]
    log_variance = params["base"] + params["slope"] * mean
    squares = (y - mean) ** 2 * jnp.exp(-log_variance)
    return jnp.mean(squares + log_variance + np.log(2 * np.pi)) / 2


def begun() -> Params:
    """Return the parameters in which fits begin, as arrays of JAX."""
    return {"w": jnp.zeros(10), "b": jnp.zeros(()), "base": jnp.zeros(()), "slope": jnp.zeros(())}


class Spent(NamedTuple):
    """Seconds of all steps but the first, in which JAX compiles."""

    copy: float
    gradients: float
    step: float


def fit(optimizer: str, steps: int, known: Data) -> tuple[Params, Spent]:
    """Fit by fastopt; return the parameters, and where the time went."""
    gradients = jax.jit(jax.grad(loss))
    params = from_jax(begun(), copy=True)
    opt = fastopt.optimizer(optimizer, params, lr=RATES.get(optimizer, 0.01))
    times = []
    for _ in range(steps):
        times.append(time.perf_counter())
        given = to_jax(params)  # the one copy
        times.append(time.perf_counter())
        grads = from_jax(gradients(given, *known))  # none: read where JAX has them
        times.append(time.perf_counter())
        opt.step(grads)
    times.append(time.perf_counter())
    spent = np.diff(times).reshape(steps, 3)[1:].sum(axis=0)
    return params, Spent(*map(float, spent))


def fit_by_optax(steps: int, known: Data) -> tuple[Params, float]:
    """Fit by optax's Adam; return the parameters, and the seconds of all steps but the first."""
    rule = optax.adam(RATES["adam"])

    def step_of(params: Params, state: Any) -> tuple[Params, Any]:
        updates, state = rule.update(jax.grad(loss)(params, *known), state)
        return optax.apply_updates(params, updates), state

    compiled, params = jax.jit(step_of), begun()
    params, state = jax.block_until_ready(compiled(params, rule.init(params)))
    start = time.perf_counter()
    for _ in range(steps - 1):
        params, state = compiled(params, state)
    return from_jax(params), time.perf_counter() - start


def least_squares(known: Data) -> Params:
    """Return the least squares, with one variance for all."""
    columns = np.c_[known.x, np.ones(len(known.x))]
    solved = np.linalg.lstsq(columns, known.y, rcond=None)[0]
    variance = np.mean((columns @ solved - known.y) ** 2)
    return {"w": solved[:-1], "b": solved[-1], "base": np.log(variance), "slope": 0.0}


def main(argv: list[str] | None = None) -> None:
    """Fit and print; where optax is installed, the same by its Adam."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--optimizer", default="adam", help="any of fastopt.optimizers.names()")
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args(argv)
    if given.steps < 2:
        parser.error("--steps must be 2 or more: the first one is not timed")
    known, held = data()
    params, spent = fit(given.optimizer, given.steps, known)
    squares = least_squares(known)
    for name, found in (("least squares", squares), (given.optimizer, params)):
        print(
            f"{name}: {loss(found, *known):.4f} nats per patient, {loss(found, *held):.4f} of the "
            "patients that were held out"
        )
    low, high = np.exp((params["base"] + params["slope"] * np.array([-1, 1])) / 2)
    print(
        f"patients spread by {low:.2f} around a prediction of -1, by {high:.2f} around one of 1; "
        f"to least squares by {np.exp(squares['base'] / 2):.2f} around all"
    )
    copy, gradients, step = (1e6 * part / (given.steps - 1) for part in spent)
    print(
        f"of each step {copy:.0f} us are the copy, {gradients:.0f} JAX's gradients, {step:.0f} ours"
    )
    if optax is None:
        print("optax is not installed: nothing to compare with")
    elif given.optimizer == "adam":
        theirs, seconds = fit_by_optax(given.steps, known)
        off = max(float(abs(params[name] - theirs[name]).max()) for name in params)
        per_step = 1e6 * seconds / (given.steps - 1)
        print(f"optax's own Adam: {per_step:.0f} us per step; the parameters differ by {off:.1e}")


if __name__ == "__main__":
    main()
