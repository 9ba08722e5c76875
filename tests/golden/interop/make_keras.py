"""Records runs of keras with the optimizer's variables in the middle.

From the root of the repository, with JAX_ENABLE_X64=1 and KERAS_BACKEND=jax set:
python -m tests.golden.interop.make_keras
"""

import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from .move_cases import HALF, NAMES, STEPS, inputs
from .move_format import write

K = keras.optimizers
INVERSE = "0.1 / (1 + t)"  # stands for this schedule in the arguments
ORDER = (1, 0, 2)  # keras is given b first


class Inverse(K.schedules.LearningRateSchedule):  # type: ignore[misc]  # keras has no hints
    """0.1 / (1 + t)."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (1 + keras.ops.cast(step, keras.config.floatx()))


Entry = tuple[str, str, dict[str, Any], Callable[[], Any], str]

# name, our optimizer and arguments, keras', inputs
CASES: list[Entry] = [
    ("sgd", "SGD", {"lr": 0.05}, lambda: K.SGD(0.05), "plain"),
    ("momentum", "SGD", {"lr": 0.05, "momentum": 0.9}, lambda: K.SGD(0.05, 0.9), "plain"),
    (
        "nesterov",
        "SGD",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
        lambda: K.SGD(0.05, 0.8, nesterov=True),
        "plain",
    ),
    (
        "inside",
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "lr_inside": True},
        lambda: K.SGD(0.05, 0.9),
        "plain",
    ),
    (
        "inside_scheduled",
        "SGD",
        {"lr": INVERSE, "momentum": 0.9, "lr_inside": True},
        lambda: K.SGD(Inverse(), 0.9),
        "plain",
    ),
    (
        "inside_nesterov",
        "SGD",
        {"lr": INVERSE, "momentum": 0.8, "lr_inside": True, "nesterov": True},
        lambda: K.SGD(Inverse(), 0.8, nesterov=True),
        "plain",
    ),
    (
        "adagrad",
        "Adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.1, "eps": 0.0},
        lambda: K.Adagrad(0.1, epsilon=0.0),
        "dense",
    ),
    (
        "rms",
        "RMSprop",
        {"eps_inside_sqrt": True, "eps": 1e-7},
        lambda: K.RMSprop(0.01, 0.9),
        "plain",
    ),
    (
        "rms_momentum",
        "RMSprop",
        {"eps_inside_sqrt": True, "eps": 1e-7, "momentum": 0.9},
        lambda: K.RMSprop(0.01, 0.9, momentum=0.9),
        "plain",
    ),
    (
        "rms_both",
        "RMSprop",
        {"eps_inside_sqrt": True, "eps": 1e-3, "momentum": 0.5, "centered": True},
        lambda: K.RMSprop(0.01, 0.9, momentum=0.5, centered=True, epsilon=1e-3),
        "plain",
    ),
    (
        "rms_inside",
        "RMSprop",
        {"eps_inside_sqrt": True, "eps": 1e-3, "momentum": 0.5, "centered": True}
        | {"lr": INVERSE, "lr_inside": True},
        lambda: K.RMSprop(Inverse(), 0.9, momentum=0.5, centered=True, epsilon=1e-3),
        "plain",
    ),
    (
        "adadelta",
        "Adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-7},
        lambda: K.Adadelta(0.5, rho=0.8),
        "plain",
    ),
    # In float32 keras rounds 1 - 0.999^t, by more than all else: so other betas there.
    ("adam_default", "Adam", {"eps": 0.0}, lambda: K.Adam(1e-3, epsilon=0.0), "dense"),
    (
        "adam",
        "Adam",
        {"eps": 0.0, "betas": [0.8, 0.9]},
        lambda: K.Adam(1e-3, 0.8, 0.9, epsilon=0.0),
        "dense",
    ),
    (
        "adam_amsgrad",
        "Adam",
        {"eps": 0.0, "amsgrad": True, "betas": [0.8, 0.6]},
        lambda: K.Adam(1e-3, 0.8, 0.6, epsilon=0.0, amsgrad=True),
        "dense",
    ),
    (
        "adam_scheduled",
        "Adam",
        {"eps": 0.0, "lr": INVERSE},
        lambda: K.Adam(Inverse(), epsilon=0.0),
        "dense",
    ),
    (
        "adamw",
        "AdamW",
        {"eps": 0.0, "weight_decay": 0.1, "betas": [0.8, 0.9]},
        lambda: K.AdamW(1e-3, 0.1, 0.8, 0.9, epsilon=0.0),
        "dense",
    ),
    # Where eps stands in keras.
    (
        "adagrad_eps",
        "Adagrad",
        {"eps": 1e-3, "eps_inside_sqrt": True, "initial_accumulator_value": 0.01},
        lambda: K.Adagrad(0.01, 0.01, epsilon=1e-3),
        "plain",
    ),
    (
        "adagrad_default",
        "Adagrad",
        {"eps": 1e-7, "eps_inside_sqrt": True, "initial_accumulator_value": 0.1},
        lambda: K.Adagrad(0.01),
        "plain",
    ),
    ("adam_hat_default", "Adam", {"eps": 1e-7, "eps_hat": True}, lambda: K.Adam(1e-3), "plain"),
    (
        "adam_hat",
        "Adam",
        {"eps": 1e-3, "eps_hat": True, "betas": [0.8, 0.9]},
        lambda: K.Adam(1e-3, 0.8, 0.9, epsilon=1e-3),
        "plain",
    ),
    (
        "adam_hat_amsgrad",
        "Adam",
        {"eps": 1e-3, "eps_hat": True, "amsgrad": True, "betas": [0.8, 0.6]},
        lambda: K.Adam(1e-3, 0.8, 0.6, epsilon=1e-3, amsgrad=True),
        "plain",
    ),
    (
        "adamw_hat",
        "AdamW",
        {"eps": 1e-3, "eps_hat": True, "weight_decay": 0.1, "betas": [0.8, 0.9]},
        lambda: K.AdamW(1e-3, 0.1, 0.8, 0.9, epsilon=1e-3),
        "plain",
    ),
    # What is refused; there are no parameters at the end.
    ("refused_average", "Adam", {}, lambda: K.Adam(use_ema=True), ""),
    ("refused_accumulated", "Adam", {}, lambda: K.Adam(gradient_accumulation_steps=2), ""),
    (
        "refused_momentum_scheduled",
        "SGD",
        {"momentum": 0.9},
        lambda: K.SGD(Inverse(), 0.9),
        "",
    ),
]


def run(make: Callable[[], Any], set_name: str, dtype: str) -> dict[str, Any]:
    """Run one case; the variables and parameters in the middle, and the parameters at the end."""
    keras.config.set_floatx(dtype)
    given = inputs(set_name or "plain")
    named = [NAMES[k].replace(".", "_") for k in ORDER]
    params = [
        keras.Variable(given["p"][k], dtype=dtype, name=name)
        for k, name in zip(ORDER, named, strict=True)
    ]
    opt = make()
    opt.build(params)
    kept: dict[str, Any] = (
        {} if set_name else {"state": {v.path: np.asarray(v) for v in opt.variables}}
    )
    for step in range(STEPS if set_name else 0):
        opt.apply([keras.ops.convert_to_tensor(given["g"][k][step], dtype) for k in ORDER], params)
        if step + 1 == HALF:
            kept["state"] = {v.path: np.asarray(v) for v in opt.variables}
            store: dict[str, Any] = {}
            opt.save_own_variables(store)
            kept["stored"] = {k: np.asarray(v) for k, v in store.items()}
        if step + 1 in (HALF, STEPS):
            kept[f"p{step + 1}"] = [np.asarray(params[ORDER.index(k)]) for k in range(3)]
    return kept


def main() -> None:
    """Record all cases in both precisions."""
    cases = [
        {"name": name, "dtype": dtype, "optimizer": optimizer, "kwargs": kwargs}
        | {"inputs": set_name, **run(make, set_name, dtype)}
        for name, optimizer, kwargs, make, set_name in CASES
        for dtype in ("float64", "float32")
        if dtype == "float32" or set_name
        if dtype == "float64" or "default" not in name
    ]
    write("keras", cases, {"keras": keras.__version__, "numpy": np.__version__})
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


if __name__ == "__main__":
    main()
