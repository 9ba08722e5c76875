"""Records runs of optax with the state in the middle.

From the root of the repository: python -m tests.golden.interop.make_optax
"""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from .move_cases import HALF, STEPS, inputs
from .move_format import write

jax.config.update("jax_enable_x64", True)

Transform: TypeAlias = Any  # optax ships no type hints
INVERSE = "0.1 / (1 + t)"  # stands for this schedule in the arguments


def inverse(t: Any) -> Any:
    return 0.1 / (1 + t)


def nested(values: list[Any]) -> dict[str, Any]:
    """Nest the parameters 0, 1, 2."""
    return {"layers": [values[0], (values[2],)], "b": values[1]}


def labels(params: Any) -> Any:
    return nested(["fast", "slow", "fast"])


Entry = tuple[str, str, dict[str, Any], Callable[[], Transform], str]

# name, our optimizer and arguments, optax's, inputs
CASES: list[Entry] = [
    ("sgd", "SGD", {"lr": 0.05}, lambda: optax.sgd(0.05), "plain"),
    ("momentum", "SGD", {"lr": 0.05, "momentum": 0.9}, lambda: optax.sgd(0.05, 0.9), "plain"),
    (
        "nesterov",
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
        lambda: optax.sgd(0.05, 0.8, nesterov=True),
        "plain",
    ),
    (
        "scheduled",
        "SGD",
        {"lr": INVERSE, "momentum": 0.9},
        lambda: optax.sgd(inverse, 0.9),
        "plain",
    ),
    (
        "chained",
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
        lambda: optax.chain(
            optax.zero_nans(), optax.add_decayed_weights(0.1), optax.sgd(0.05, 0.9)
        ),
        "plain",
    ),
    (
        "ema",
        "Momentum",
        {"lr": 0.05, "beta": 0.8, "bias_correction": True},
        lambda: optax.chain(optax.ema(0.8, debias=True), optax.scale_by_learning_rate(0.05)),
        "plain",
    ),
    (
        "adagrad",
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0},
        lambda: optax.adagrad(0.1, 0.1, eps=0.0),
        "dense",
    ),
    (
        "adagrad_eps",
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-3, "eps_inside_sqrt": True},
        lambda: optax.adagrad(0.1, 0.1, eps=1e-3),
        "plain",
    ),
    (
        "inside",
        "SGD",
        {"lr": INVERSE, "momentum": 0.9, "lr_inside": True},
        lambda: optax.chain(optax.scale_by_learning_rate(inverse), optax.trace(0.9)),
        "plain",
    ),
    (
        "inside_nesterov",
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "lr_inside": True, "nesterov": True},
        lambda: optax.chain(optax.scale_by_learning_rate(0.05), optax.trace(0.8, nesterov=True)),
        "plain",
    ),
    ("rms", "RMSprop", {"eps_inside_sqrt": True}, lambda: optax.rmsprop(0.01), "plain"),
    ("rms_outside", "RMSprop", {}, lambda: optax.rmsprop(0.01, eps_in_sqrt=False), "plain"),
    (
        "rms_corrected",
        "RMSprop",
        {"bias_correction": True},
        lambda: optax.rmsprop(0.01, eps_in_sqrt=False, bias_correction=True),
        "plain",
    ),
    (
        "rms_centered",
        "RMSprop",
        {"centered": True, "eps_inside_sqrt": True, "eps": 1e-3},
        lambda: optax.rmsprop(0.01, eps=1e-3, centered=True),
        "plain",
    ),
    (
        "rms_momentum",
        "RMSprop",
        {"momentum": 0.9, "eps_inside_sqrt": True},
        lambda: optax.rmsprop(0.01, momentum=0.9),
        "plain",
    ),
    (
        "rms_inside",
        "RMSprop",
        {"momentum": 0.9, "eps_inside_sqrt": True, "lr": INVERSE, "lr_inside": True},
        lambda: optax.rmsprop(inverse, momentum=0.9),
        "plain",
    ),
    (
        "rms_inside_centered",
        "RMSprop",
        {"momentum": 0.5, "centered": True, "eps_inside_sqrt": True, "eps": 1e-3}
        | {"lr_inside": True},
        lambda: optax.rmsprop(0.01, eps=1e-3, centered=True, momentum=0.5),
        "plain",
    ),
    (
        "rms_both",
        "RMSprop",
        {"momentum": 0.5, "centered": True, "bias_correction": True, "eps": 0.1}
        | {"eps_inside_sqrt": True},
        lambda: optax.rmsprop(0.01, eps=0.1, centered=True, momentum=0.5, bias_correction=True),
        "mild",
    ),
    (
        "rms_trace",
        "RMSprop",
        {"momentum": 0.9, "eps_inside_sqrt": True, "lr": INVERSE},
        lambda: optax.chain(
            optax.scale_by_rms(), optax.trace(0.9), optax.scale_by_learning_rate(inverse)
        ),
        "plain",
    ),
    (
        "adadelta",
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1},
        lambda: optax.adadelta(0.5, 0.8, weight_decay=0.1),
        "plain",
    ),
    ("adam", "Adam", {}, lambda: optax.adam(1e-3), "plain"),
    (
        "adam_inside",
        "Adam",
        {"eps": 1e-6, "eps_inside_sqrt": True},
        lambda: optax.adam(1e-3, eps=0.0, eps_root=1e-6),
        "plain",
    ),
    (
        "adam_chained",
        "Adam",
        {"weight_decay": 0.1},
        lambda: optax.named_chain(
            ("clip", optax.clip_by_global_norm(1e9)),
            ("decay", optax.add_decayed_weights(0.1)),
            ("adam", optax.masked(optax.adam(1e-3), nested([True] * 3))),
        ),
        "plain",
    ),
    (
        "amsgrad_uncorrected",
        "Adam",
        {"amsgrad": True, "bias_correction": False, "betas": [0.9, 0.8]},
        lambda: optax.amsgrad(1e-3, b2=0.8, bias_correction_mu=False, bias_correction_nu=False),
        "plain",
    ),
    ("adamw", "AdamW", {"weight_decay": 0.1}, lambda: optax.adamw(1e-3, weight_decay=0.1), "plain"),
    (
        "injected",
        "AdamW",
        {"lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-5, "weight_decay": 0.25},
        lambda: optax.inject_hyperparams(optax.adamw)(
            0.02, b1=0.8, b2=0.95, eps=1e-5, weight_decay=0.25
        ),
        "plain",
    ),
    (
        "injected_schedule",
        "Adam",
        {"lr": INVERSE, "betas": [0.8, 0.999]},
        lambda: optax.inject_hyperparams(optax.adam)(inverse, b1=0.8),
        "plain",
    ),
    (
        "partition",
        "Adam",
        {"lr": 0.1, "by_pattern": {"b": {"lr": 1e-3, "betas": [0.8, 0.9]}}},
        lambda: optax.partition(
            {"fast": optax.adam(0.1), "slow": optax.adam(1e-3, 0.8, 0.9)}, labels
        ),
        "plain",
    ),
    # What is refused; there are no parameters at the end.
    ("refused_amsgrad", "Adam", {"amsgrad": True}, lambda: optax.amsgrad(1e-3), ""),
    ("refused_lion", "Adam", {}, lambda: optax.lion(1e-3), ""),
    (
        "refused_multi_steps",
        "Adam",
        {},
        lambda: optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
        "",
    ),
    ("refused_finite", "Adam", {}, lambda: optax.apply_if_finite(optax.adam(1e-3), 2), ""),
    ("refused_flat", "Adam", {}, lambda: optax.flatten(optax.adam(1e-3)), ""),
    (
        "refused_adamax",
        "SGD",
        {},
        lambda: optax.adamax(1e-3),
        "",
    ),
    (
        "refused_momentum_scheduled",
        "RMSprop",
        {"momentum": 0.9, "eps_inside_sqrt": True},
        lambda: optax.rmsprop(inverse, momentum=0.9),
        "",
    ),
    (
        "refused_momentum_first",
        "RMSprop",
        {"momentum": 0.9, "eps_inside_sqrt": True},
        lambda: optax.chain(optax.trace(0.9), optax.rmsprop(0.01)),
        "",
    ),
    (
        "refused_momentum_open",
        "RMSprop",
        {"momentum": 0.9, "eps_inside_sqrt": True},
        lambda: optax.chain(
            optax.scale_by_rms(), optax.clip(1e9), optax.trace(0.9), optax.scale(-0.01)
        ),
        "",
    ),
]


def run(make: Callable[[], Transform], name: str, dtype: Any) -> dict[str, Any]:
    """Run one case; the state and the parameters in the middle, and the parameters at the end."""
    given = inputs(name or "plain")
    params = nested([jax.numpy.asarray(p, dtype) for p in given["p"]])
    transform = make()
    state = transform.init(params)
    kept: dict[str, Any] = {}
    for step in range(STEPS if name else HALF):
        grads = nested([jax.numpy.asarray(g[step], dtype) for g in given["g"]])
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if step + 1 == HALF:
            kept["state"] = jax.tree.map(np.asarray, state)
        if step + 1 in (HALF, STEPS):
            layers = params["layers"]
            flat = [layers[0], params["b"], layers[1][0]]
            kept[f"p{step + 1}"] = [np.asarray(param) for param in flat]
    return kept


def main() -> None:
    """Record all cases in both precisions."""
    cases = [
        {"name": name, "dtype": str(np.dtype(dtype)), "optimizer": optimizer, "kwargs": kwargs}
        | {"inputs": set_name, **run(make, set_name, dtype)}
        for name, optimizer, kwargs, make, set_name in CASES
        for dtype in (np.float64, np.float32)
    ]
    versions = {m.__name__: m.__version__ for m in (optax, jax, np)}
    write("optax", cases, versions)
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


if __name__ == "__main__":
    main()
