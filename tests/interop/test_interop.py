"""Moving between libraries needs none of them, and costs nothing before it is asked for."""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import interop
from fastopt.core.options import FRAGMENTS, OPTIONS
from helpers.variants import script


def test_no_other_library_is_imported() -> None:
    code = (
        "import sys, fastopt.interop, numpy as np\n"
        "opt = fastopt.Adam(np.ones(2), backend='numpy')\n"
        "opt.step(np.ones(2))\n"
        "fastopt.interop.load_torch(opt, fastopt.interop.to_torch(opt))\n"
        "print(sorted({'torch', 'jax', 'optax', 'keras', 'tensorflow', 'h5py', 'numba', 'cupy'}"
        " & set(sys.modules)))"
    )
    done = script(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_it_is_imported_when_it_is_first_asked_for() -> None:
    code = (
        "import sys, fastopt\n"
        "assert not [name for name in sys.modules if name.startswith('fastopt.interop')]\n"
        "fastopt.interop.load_torch"
    )
    done = script(code)
    assert done.returncode == 0, done.stderr
    assert "interop" in fastopt.__all__


@pytest.mark.parametrize("name", [n for n in interop.__all__ if not n.endswith("_jax")])
def test_what_is_public_says_what_corresponds_to_what(name: str) -> None:
    text = inspect.getdoc(getattr(interop, name)) or ""
    assert all(part in text for part in ("Args:", "Raises:", "Source:"))
    assert "=====" in text or "load_torch" in text


# Garbage -----------------------------------------------------------------------------------------

Adam = namedtuple("ScaleByAdamState", "count mu nu")
GARBAGE: list[Any] = [
    *(None, True, 0, -1, 2**70, 0.5, float("nan"), float("inf"), "x", "0", b"x", (), [], {}),
    *([0], {"a": 1}, {"state": {}}, {0: 1}, object(), int, np.ones(3), np.array("x"), 1j),
    *(np.array([None]), np.ones(2, np.float16), np.float32(3), np.zeros((0, 2)), [[1], 2]),
    *(Adam(1, None, {}), np.array("2020-01-01", "M8[D]"), np.zeros(2, "V4"), {1, 2}, range(2)),
]


def example(library: str) -> Any:
    pair = {"w": np.ones(2), "b": np.ones(2)}
    if library == "torch":
        opt = fastopt.Adam(pair)
        opt.step({name: 2 * array for name, array in pair.items()})
        return interop.to_torch(opt)
    if library == "optax":
        return (Adam(np.int32(3), pair, pair), namedtuple("EmptyState", "")())
    counts = {"iteration": np.int32(3), "learning_rate": np.asarray(0.25)}
    return {**counts, **{f"{n}_{k}": np.ones(2) for n in pair for k in ("momentum", "velocity")}}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every part of a tree."""
    yield path
    if isinstance(node, dict):
        parts: Any = node.items()
    else:
        parts = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    key, *rest = path
    if isinstance(node, dict):
        return {**node, key: replaced(node[key], tuple(rest), value)}
    items = list(node)
    items[key] = replaced(items[key], tuple(rest), value)
    return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)


@pytest.mark.parametrize("library", ["torch", "optax", "keras"])
def test_garbage_anywhere_is_loaded_as_it_is_or_refused_and_changes_nothing(library: str) -> None:
    state = example(library)
    load = getattr(interop, f"load_{library}")
    said: set[str] = set()
    for path in places(state):
        for value in GARBAGE:
            opt = fastopt.Adam({"w": np.ones(2), "b": np.ones(2)})
            before = opt.state_dict()
            try:
                load(opt, replaced(state, path, value))
            except fastopt.CheckpointError as error:
                np.testing.assert_equal(opt.state_dict(), before)
                said.add(str(error))
    assert len(said) > 50
    assert all(said)


@pytest.mark.parametrize("library", ["torch", "optax", "keras"])
@pytest.mark.parametrize("name", ["LAMB", "Prodigy", "Muon"])
def test_optimizers_without_a_twin_are_refused_by_name(name: str, library: str) -> None:
    opt = getattr(fastopt, name)(np.ones((2, 2)))
    before = opt.state_dict()
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        getattr(interop, f"load_{library}")(opt, example(library))
    np.testing.assert_equal(opt.state_dict(), before)
    with pytest.raises(TypeError, match=f"PyTorch has no {name}"):
        interop.to_torch(opt)


@pytest.mark.parametrize("option", FRAGMENTS)
def test_what_another_library_would_leave_out_is_not_handed_over(option: str) -> None:
    value: Any = True if OPTIONS[option].default is False else 1.0
    opt = fastopt.AdamW(np.ones(2), **{option: value})
    with pytest.raises(ValueError, match=f"torch.optim.AdamW has no {option}"):
        interop.to_torch(opt)
