"""Parameters and micro-batches that are the same in every process, by numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import optree

import fastopt

Arrays = dict[str, Any]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    values = rng.standard_normal(shape)
    if dtype.kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


SHAPES: dict[str, tuple[int, ...]] = {
    "wide": (300, 50),
    "bias": (7,),
    "fortran": (70, 60),
    "matrix": (130, 90),
    "strided": (60, 44),
    "small": (60, 60),
    "scalar": (),
    "empty": (0, 3),
}
"""Arrays of over and under 4 096 elements, and of all layouts."""

MATRICES = {f"W{k}": (20 + 7 * k, 45 - 5 * k) for k in range(7)}


def model(kind: str, dtype: str = "float32", seed: int = 0) -> Arrays:
    """Return parameters: "mixed" ones, "matrices" alone, or of several "dtypes"."""
    rng = np.random.default_rng(seed)
    if kind == "dtypes":
        kinds = ["float32", "float64", "bfloat16", "float32", "float16", "complex64"]
        return {f"p{k}": normal(rng, (90, 60), dtype_of(name)) for k, name in enumerate(kinds)}
    real = dtype_of(dtype)
    shapes = MATRICES if kind == "matrices" else SHAPES
    found = {name: normal(rng, shape, real) for name, shape in shapes.items()}
    if kind == "matrices":
        found["W2"] = np.asfortranarray(found["W2"])
        return found
    found["fortran"] = np.asfortranarray(found["fortran"])
    found["strided"] = found["strided"][::2, ::2]
    return found


def gradients(params: Arrays, number: int, missing: bool = True) -> Arrays:
    """Return those of a micro-batch; the scalar's are missing sometimes, the bias's in step 1."""
    rng = np.random.default_rng(1000 + number)
    found = {name: normal(rng, one.shape, one.dtype) for name, one in params.items()}
    for name, without in {"scalar": number % 5 == 0, "bias": 12 <= number < 24}.items():
        if missing and without and name in found:
            found[name] = None
    return found


def weight(number: int) -> float:
    """Return the weight of a micro-batch; one counts for nothing."""
    return 0.0 if number % 12 == 4 else 1.0 + number % 3


def digest(*trees: Any) -> str:
    """Return what tells the bits of arrays apart."""
    seen = hashlib.sha256()
    for leaf in optree.tree_leaves(trees):
        seen.update(np.ascontiguousarray(leaf).tobytes())
    return seen.hexdigest()[:16]


def state_of(opt: Any) -> list[Any]:
    """Return all that an optimizer remembers: arrays, and the numbers of steps."""
    inner = opt.innermost if hasattr(opt, "innermost") else opt
    inner._engine.synchronize()
    found = [inner._state.counts.steps, np.asarray(inner._state.counts.skipped)]
    for bucket in inner._state.buckets:
        for _, step, slots in bucket.state():
            found += [np.asarray(step), *(np.asarray(one) for one in slots.values())]
    return found


def everything(opt: Any, params: Arrays) -> str:
    """Return what tells apart all that a step may change."""
    return digest(params, state_of(opt))


def made(name: str, params: Any, **options: Any) -> fastopt.Optimizer:
    """Return an optimizer by the name of its class."""
    return fastopt.optimizer(name, params, **options)  # type: ignore[no-any-return]
