"""Many fits at once (members) against an optimizer for each of them, and against JAX, in turns.

python -m benchmarks.members [--fits 1000 10000] [--parameters 10 3] [--json FILE]

JAX takes part where it and optax are installed: ``jax.jit(jax.vmap(...))`` of ``optax.adam``'s
update, each member with a rate of its own, with its buffers donated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt
from fastopt.cli.timing import Effort, Turn, take_turns

EFFORT = Effort(1.0, rounds=8, least=5)

POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "max_grad_norm": {"max_grad_norm": 1.0},
    "skip": {"on_nonfinite": "skip"},
}


def together(grad: Any, rates: Any, **policy: Any) -> Callable[[], object]:
    """Return a step of all members in one optimizer."""
    opt = fastopt.Adam(np.ones_like(grad), rates, members=len(grad), backend="numba", **policy)
    opt.warmup()
    return lambda: opt.step(grad)


def apart(grad: Any, rates: Any, **policy: Any) -> Callable[[], object]:
    """Return a step of an optimizer for each member, one after another."""
    parts = [one.copy() for one in grad]
    each = [
        fastopt.Adam(np.ones_like(one), rate, backend="numba", **policy)
        for one, rate in zip(parts, rates.tolist(), strict=True)
    ]
    each[0].warmup()

    def step() -> None:
        for opt, one in zip(each, parts, strict=True):
            opt.step(one)

    return step


def jax_step(grad: Any, rates: Any) -> Callable[[], object] | None:
    """Return the same step by JAX and optax, if they are installed."""
    try:
        import jax
        import jax.numpy as jnp
        import optax
    except ImportError:
        return None

    def begin(param: Any, rate: Any) -> Any:
        return optax.adam(rate).init(param)

    def update(grad: Any, state: Any, param: Any, rate: Any) -> Any:
        updates, state = optax.adam(rate).update(grad, state, param)
        return optax.apply_updates(param, updates), state

    given, by_member = jnp.asarray(grad), jnp.asarray(rates, jnp.float32)
    param = jnp.ones(grad.shape, jnp.float32)
    held = [param, jax.vmap(begin)(param, by_member)]
    compiled = jax.jit(jax.vmap(update), donate_argnums=(1, 2))

    def step() -> None:
        held[:] = compiled(given, held[1], held[0], by_member)
        held[0].block_until_ready()

    return step


def measure(fits: int, parameters: int) -> list[dict[str, Any]]:
    """Return the seconds of a step of all, of one of each, and of JAX's, for each policy."""
    grad = np.random.default_rng(0).standard_normal((fits, parameters)).astype(np.float32)
    rates = np.linspace(1e-3, 1e-2, fits)
    rows = []
    for name, policy in POLICIES.items():
        turns = {
            "members": Turn(together(grad, rates, **policy)),
            "loop": Turn(apart(grad, rates, **policy)),
        }
        if name == "plain" and (step := jax_step(grad, rates)) is not None:
            turns["jax"] = Turn(step)
        times = {who: found.median for who, found in take_turns(turns, EFFORT).items()}
        rows.append({"fits": fits, "parameters": parameters, "policy": name, **times})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--parameters", type=int, nargs="+", default=[10, 3])
    parser.add_argument("--json")
    given = parser.parse_args(arguments)
    rows = []
    for fits, parameters in zip(given.fits, given.parameters, strict=True):
        for row in measure(fits, parameters):
            rows.append(row)
            jax = f", JAX {row['jax'] / row['members']:.1f} times" if "jax" in row else ""
            print(
                f"{fits} fits of {parameters}, {row['policy']}: {1e6 * row['members']:.0f} us; one "
                f"by one {row['loop'] / row['members']:.0f} times as long{jax}",
                flush=True,
            )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
