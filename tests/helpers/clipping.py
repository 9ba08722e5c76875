"""Gradients to clip, and what a run with them ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt.core.arrays import Array

SHAPES = ((7,), (), (3, 4), (0, 2), (5000,))


def drawn(seed: int, dtype: Any, sizes: Sequence[float] = (1.0,) * len(SHAPES)) -> list[Array]:
    """Return arrays of normal numbers of these sizes."""
    rng = np.random.default_rng(seed)
    made = []
    for shape, size in zip(SHAPES, sizes, strict=True):
        values = np.asarray(size * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)))
        made.append((values if np.dtype(dtype).kind == "c" else values.real).astype(dtype))
    return made


def run(make: Any, params: list[Array], grads: list[list[Any]], **options: Any) -> dict[str, Any]:
    """Step with these gradients in turn; return the parameters and the state by name."""
    opt = make(params, **options)
    for given in grads:
        opt.step(given)
    state = opt.state_dict()["state"]
    end: dict[str, Any] = {f"params[{k}]": param for k, param in enumerate(params)}
    return end | {f"{n}.{slot}": x for n, entry in state.items() for slot, x in entry.items()}
