"""Runs of many members in one array, and of an optimizer for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Several
from helpers.cuda.runs import on_host, some_values
from helpers.variants import Variant

MEMBERS = 5
STEPS = 12  # more than FLUSH_EVERY
SHAPES = ((MEMBERS, 7), (MEMBERS,), (MEMBERS, 2, 3), (MEMBERS, 0), (MEMBERS, 1100), (MEMBERS, 3))

Settings = Mapping[str, Any]
"""Hyperparameters by name; a list has one for each member."""


@dataclass(frozen=True)
class Layout:
    """How members lie in memory: ``lay`` copies an array into such memory."""

    name: str
    lay: Callable[[Any, Any], Any]

    def __str__(self) -> str:
        return self.name


def _turned(xp: Any, array: Any, axes: Any) -> Any:
    """Return an array whose axes lie in memory in this order, slowest first."""
    axes = tuple(axes)
    inverse = tuple(int(k) for k in np.argsort(axes)) if axes else ()
    return xp.asarray(np.ascontiguousarray(array.transpose(axes))).transpose(inverse)


def _middle(xp: Any, array: Any) -> Any:
    axes = (1, 0, *range(2, array.ndim)) if array.ndim > 1 else (0,)
    return _turned(xp, array, axes)


def _reversed(xp: Any, array: Any) -> Any:
    return xp.asarray(np.ascontiguousarray(array[::-1]))[::-1]


def _gaps(xp: Any, array: Any) -> Any:
    wide = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    wide[::2] = array
    return xp.asarray(wide)[::2]


LAYOUTS = (
    Layout("C", lambda xp, array: xp.asarray(np.ascontiguousarray(array))),
    Layout("Fortran", lambda xp, array: _turned(xp, array, range(array.ndim)[::-1])),
    Layout("middle", _middle),
    Layout("reversed", _reversed),
    Layout("gaps", _gaps),
)

# A GPU takes denormal numbers for 0; these settings make none, whatever is squared.
_VARIED: dict[str, list[Any]] = {
    "lr": [0.01, 0.1, 0.0, 0.3, 0.01],
    "weight_decay": [0.1, 0.0, 0.0, 0.03, 0.5],
    "momentum": [0.9, 0.5, 0.99, 0.9, 0.1],
    "dampening": [0.0, 0.25, 0.5, 0.0, 1.0],
    "beta": [0.9, 0.0, 0.99, 0.9, 0.5],
    "betas": [
        [0.9, 0.0, 0.99, 0.9, 0.123],
        [0.999, 0.99, 0.0, 0.9, 0.999],
        [0.9999, 0.5, 0.9, 0.0, 0.75],
    ],
    "eps": [1e-2, 0.0, 1e-3, 0.1, 1e-2],
    "lr_decay": [0.0, 0.1, 0.3, 0.0, 1.0],
    "initial_accumulator_value": [0.0, 0.1, 1.0, 1e-3, 0.0],
    "rho": [0.9, 0.0, 0.99, 0.9, 0.5],
    "eps_root": [1e-3, 1e-2, 0.1, 1e-3, 0.0],
    "alpha": [5.0, 0.0, 1.0, 0.3, 8.0],
    "clip_exponent": [0.25, 0.0, 0.333, 1.0, 0.25],
    "final_lr": [0.1, 0.01, 1.0, 0.1, 0.3],
    "gamma": [1e-3, 0.1, 0.01, 5.0, 1e-3],
    "base_lr": [1e-3, 0.1, 0.01, 0.3, 1.0],
    "clip_value": [0.5, np.inf, 0.1, 2.0, 1e6],
    "l1": [0.0, 0.25, 1.0, 30.0, 0.01],
}


def hyperparameters_of(variant: Variant) -> dict[str, Any]:
    """Return values for each member of every number that a variant's optimizer has."""
    known = variant.optimizer._checks
    others = ("lr", "weight_decay", *({"clip_value", "l1"} & variant.options.keys()))
    settings = {n: v for n, v in _VARIED.items() if n in known or n in others}
    if not variant.options.get("momentum"):
        settings.pop("momentum", None)
        settings.pop("dampening", None)
    if variant.optimizer is fastopt.COCOB:
        settings["alpha"] = [100.0, 30.0, 1.0, 0.3, 100.0]
    if variant.options.get("nesterov") or variant.options.get("lr_inside"):
        settings.pop("dampening", None)
    if "rho" in settings:  # Adadelta's eps is above 0
        settings["eps"] = [1e-6, 1e-8, 1e-3, 1e-6, 1e-10]
    if isinstance(known.get("betas"), Several):
        settings["betas"] = settings["betas"][: len(known["betas"].numbers)]
        if len(settings["betas"]) == 3:  # Adan's second keeps differences, down to the smallest:
            # a share of 0.001 of these is denormal, which a GPU takes for 0.
            settings["betas"] = [
                settings["betas"][0],
                [0.9, 0.5, 0.0, 0.9, 0.75],
                *settings["betas"][2:],
            ]
    elif "betas" in known:  # of any number: the same for all members
        del settings["betas"]
    if variant.options.get("centered") or variant.optimizer is fastopt.COCOB:
        settings["eps"] = [1e-2, 1e-3, 1e-3, 0.1, 1e-2]
    return settings


def of_member(name: str, value: Any, member: int) -> Any:
    """Return the value of one member."""
    if name == "betas":
        return tuple(one[member] for one in value)
    return value[member] if isinstance(value, list) else value


def of_all(name: str, value: Any) -> Any:
    """Return the values of all members as arrays."""
    if name == "betas":
        return tuple(np.array(one) for one in value)
    return np.array(value) if isinstance(value, list) else value


def values(dtype: Any, seed: int) -> list[Array]:
    """Return an array of each shape."""
    return [
        some_values(int(np.prod(shape)), dtype, 100 * seed + k).reshape(shape)
        for k, shape in enumerate(SHAPES)
    ]


def is_missing(step: int, k: int) -> bool:
    """Return whether a gradient is None in a step."""
    return step % 4 == 1 and k % 3 == 2


def member_run(
    variant: Variant,
    settings: Settings,
    dtype: Any,
    layout: Layout = LAYOUTS[0],
    *,
    xp: Any = np,
    change: Settings | None = None,
    missing: bool = True,
    decided: bool = False,
    **options: Any,
) -> dict[str, Array]:
    """Return parameters and state after a run of all members in one optimizer.

    With ``decided`` the device chooses the rows: the gradients' scale stands there.
    """
    params = [layout.lay(xp, array) for array in values(dtype, 0)]
    own = {name: of_all(name, value) for name, value in settings.items()}
    opt = variant(params, **own, members=MEMBERS, **options)
    for step in range(1, STEPS + 1):
        grads = [
            None if missing and is_missing(step, k) else layout.lay(xp, grad)
            for k, grad in enumerate(values(dtype, step))
        ]
        if change and step == STEPS // 2:
            opt.param_groups[0].update({n: of_all(n, v) for n, v in change.items()})
        scale = 0.5 if step % 5 == 0 else 1.0
        opt.step(grads, grad_scale=xp.asarray(np.array(scale)) if decided else scale)
    return _ended(opt, params)


def separate_runs(
    variant: Variant,
    settings: Settings,
    dtype: Any,
    layout: Layout = LAYOUTS[0],
    *,
    xp: Any = np,
    change: Settings | None = None,
    missing: bool = True,
    **options: Any,
) -> dict[str, Array]:
    """Return the same of an optimizer for each member."""
    ends = []
    for member in range(MEMBERS):
        params = [np.array(array[member]) for array in values(dtype, 0)]
        own = {name: of_member(name, value, member) for name, value in settings.items()}
        opt = variant(params, **own, **options)
        for step in range(1, STEPS + 1):
            grads = [
                None if missing and is_missing(step, k) else np.array(grad[member])
                for k, grad in enumerate(values(dtype, step))
            ]
            if change and step == STEPS // 2:
                opt.param_groups[0].update({n: of_member(n, v, member) for n, v in change.items()})
            opt.step(grads, grad_scale=0.5 if step % 5 == 0 else 1.0)
        ends.append(_ended(opt, params))
    return {
        name: first if name.endswith(".step") else np.stack([end[name] for end in ends])
        for name, first in ends[0].items()
    }


def _ended(opt: Any, params: list[Any]) -> dict[str, Array]:
    found = {str(k): on_host(param) for k, param in enumerate(params)}
    for name, entry in opt.state_dict()["state"].items():
        found |= {f"{name}.{slot}": np.asarray(value) for slot, value in entry.items()}
    return found
