"""What the tests of EMA, Accumulator, Lookahead and LossScaler share: vectors, trees, gradients."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.core.arrays import Array

FOLDER = Path(__file__).parents[1] / "golden" / "around"


@cache
def vectors(name: str) -> dict[str, Array]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def cases(name: str) -> list[dict[str, Any]]:
    return list(json.loads(str(vectors(name)["cases"])))


def make_params(dtype: Any = np.float64) -> dict[str, Any]:
    """Return parameters in several layouts, nested."""
    rng = np.random.default_rng(0)
    return {
        "W": rng.standard_normal((3, 4)).astype(dtype),
        "layers": [rng.standard_normal(5).astype(dtype), (np.array(0.5, dtype),)],
        "turned": rng.standard_normal((4, 6)).astype(dtype)[::2].T,
        "back": rng.standard_normal((3, 2)).astype(dtype)[::-1],
        "none": np.zeros((0, 2), dtype),
    }


def leaves(tree: Any) -> list[Array]:
    if isinstance(tree, np.ndarray):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in leaves(part)]


def mapped(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: mapped(function, part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(function, part) for part in tree)
    return function(tree)


def copied(tree: Any) -> Any:
    return mapped(np.copy, tree)


def make_grads(like: Any, seed: int) -> Any:
    rng = np.random.default_rng(100 + seed)
    return mapped(lambda p: np.array(rng.standard_normal(p.shape), p.dtype), like)


def same(one: Any, two: Any) -> bool:
    """Return whether two trees are equal in every bit, dtype and shape."""
    pairs = zip(leaves(one), leaves(two), strict=True)
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs
    )
