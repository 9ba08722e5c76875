"""Record what optax computes for complex parameters: averages of |g|^2. Imports no fastopt.

    python -m tests.golden.make_complex

Writes ``complex/vectors.npz``: first parameter, gradients, and of every case the parameter after
each step, in complex128.
"""

import json
from pathlib import Path

import jax
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)

STEPS = 12
# Our optimizer and its arguments; optax's transformation of the gradient, to be multiplied by -lr.
CASES = {
    "adam": ("Adam", {"lr": 0.05}, optax.scale_by_adam()),
    "adam_decay": (
        "Adam",
        {"lr": 0.05, "weight_decay": 0.1, "betas": [0.7, 0.95]},
        optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_adam(0.7, 0.95)),
    ),
    "adam_eps_inside": (
        "Adam",
        {"lr": 0.05, "eps": 1e-4, "eps_inside_sqrt": True},
        optax.scale_by_adam(eps=0.0, eps_root=1e-4),
    ),
    "adam_amsgrad": (
        "Adam",
        {"lr": 0.05, "amsgrad": True, "bias_correction": False},
        optax.scale_by_amsgrad(bias_correction_mu=False, bias_correction_nu=False),
    ),
    "adamw": (
        "AdamW",
        {"lr": 0.05, "weight_decay": 0.1},
        optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1)),
    ),
    "rmsprop": ("RMSprop", {"lr": 0.02}, optax.scale_by_rms(0.9, 1e-8, eps_in_sqrt=False)),
    "rmsprop_momentum": (
        "RMSprop",
        {"lr": 0.02, "momentum": 0.8},
        optax.chain(optax.scale_by_rms(0.9, 1e-8, eps_in_sqrt=False), optax.trace(0.8)),
    ),
}


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return complex numbers of sizes from 1e-3 to 1e2, exact in complex64."""
    sizes = 10.0 ** rng.uniform(-3, 2, shape)
    numbers = sizes * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return numbers.astype(np.complex64).astype(np.complex128)


def main() -> None:
    """Run all cases, and write them."""
    rng = np.random.default_rng(11)
    param, grads = drawn(rng, 3, 4), drawn(rng, STEPS, 3, 4)
    grads[3, 0] = 0.0
    arrays = {"param": param, "grads": grads}
    for name, (_, options, transform) in CASES.items():
        now = jax.numpy.asarray(param)
        state = transform.init(now)
        path = []
        for grad in grads:
            update, state = transform.update(jax.numpy.asarray(grad), state, now)
            now = optax.apply_updates(now, -options["lr"] * update)
            path.append(np.asarray(now))
        arrays[name] = np.stack(path)
    cases = {name: {"optimizer": kind, "kwargs": kw} for name, (kind, kw, _) in CASES.items()}
    arrays["cases"] = np.array(json.dumps(cases, sort_keys=True))
    arrays["made_with"] = np.array(json.dumps({"jax": jax.__version__, "optax": optax.__version__}))
    np.savez(Path(__file__).parent / "complex" / "vectors.npz", **arrays)


if __name__ == "__main__":
    main()
