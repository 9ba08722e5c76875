"""Which backend runs: the choice by name, environment and kind of array; the limit of threads."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import numpy as np

from fastopt.backends.interface import Backend
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import whole
from fastopt.core.tree import Leaf
from fastopt.errors import BackendMismatchError, BackendUnavailableError

# -------------------------------------------------------------------------------------------------
# Which backend runs: the choice by name, environment and array kind, and what a backend is.

ARRAY_KIND = {"numpy": "numpy", "numba": "numpy", "cupy": "cupy"}
"""The backends, each with the kind of arrays that it updates."""


_chosen: str | None = None
_chosen_here: ContextVar[str | None] = ContextVar("fastopt_backend", default=None)


def _normalised(name: str, source: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{source} must be a string; got {name!r}")
    plain = name.strip().lower() or "auto"
    if plain != "auto" and plain not in ARRAY_KIND:
        allowed = ", ".join(["auto", *ARRAY_KIND])
        raise ValueError(f"{source} must be one of {allowed}; got {name!r}")
    return plain


def set_backend(name: str | None) -> None:
    """Choose the backend of optimizers constructed from now on, in this process.

    ``name`` is "auto", "numpy", "numba" or "cupy"; None gives the choice back to the environment
    variable FASTOPT_BACKEND. Raises ValueError for another name.
    """
    global _chosen
    _chosen = None if name is None else _normalised(name, "set_backend's name")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the backend of optimizers constructed inside the ``with`` block, in this thread.

    ``name`` is "auto", "numpy", "numba" or "cupy". Raises ValueError for another name.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> with fastopt.use_backend("numpy"):
        ...     fastopt.Adam(np.ones(3)).backend
        'numpy'
    """
    token = _chosen_here.set(_normalised(name, "use_backend's name"))
    try:
        yield
    finally:
        _chosen_here.reset(token)


def requested(backend: str | None = None) -> str:
    """Return the name that is asked for now: argument, use_backend, set_backend, environment."""
    if backend is not None:
        return _normalised(backend, "backend")
    if (here := _chosen_here.get()) is not None:
        return here
    if _chosen is not None:
        return _chosen
    return _normalised(os.environ.get("FASTOPT_BACKEND", "auto"), "FASTOPT_BACKEND")


def load(name: str) -> Backend:
    """Return a backend by name; BackendUnavailableError says why it cannot run here."""
    try:
        module = importlib.import_module(f"fastopt.backends.{name}.backend")
        backend: Backend = module.backend()
    except BackendUnavailableError:
        raise
    except Exception as error:  # a broken installation raises all sorts of things on import
        remedy = {
            "numba": "Install it (pip install numba), or ask for backend 'numpy' or 'auto'.",
            "cupy": "Install it (pip install 'fastopt[cuda12]' or 'fastopt[cuda13]'), or ask for "
            "backend 'auto'.",
        }.get(name, "")
        raise BackendUnavailableError(
            f"backend {name!r} cannot run here: {type(error).__name__}: {error}. {remedy}"
        ) from error
    return backend


def available_backends() -> dict[str, str | None]:
    """Return every backend's name with None if it can run here, else with the reason."""
    reasons: dict[str, str | None] = {}
    for name in ARRAY_KIND:
        try:
            load(name)
        except BackendUnavailableError as error:
            reasons[name] = str(error)
        else:
            reasons[name] = None
    return reasons


def for_leaves(leaves: Sequence[Leaf], asked: str) -> Backend:
    """Return the backend that updates arrays of one kind; ``asked`` is a name, or "auto".

    Under "auto" an optimizer of NumPy arrays begins on NumPy (``engine.later``).
    """
    if asked == "auto":
        return load("cupy" if arrays.kind(leaves[0].array) == "cupy" else "numpy")
    backend = load(asked)
    for leaf in leaves:
        if (kind := arrays.kind(leaf.array)) != ARRAY_KIND[asked]:
            raise BackendMismatchError(
                f"backend {asked!r} updates {ARRAY_KIND[asked]} arrays; {leaf.path} is a {kind} "
                "array. Convert it (cupy.asarray, cupy.asnumpy), or ask for backend 'auto'."
            )
    return backend


def _first_available(names: Sequence[str]) -> Backend:
    for name in names[:-1]:
        try:
            return load(name)
        except BackendUnavailableError:
            continue
    return load(names[-1])


def array_namespace(*given: Array) -> ModuleType:
    """Return the module (numpy or cupy) that the given arrays belong to.

    Without arrays: the module that the requested backend works on; under "auto" cupy if it imports
    and a device answers, else numpy. Raises BackendUnavailableError if a backend was asked for by
    name and cannot run, BackendMismatchError for arrays of two kinds, TypeError for other things.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> xp = fastopt.array_namespace(np.ones(3))
        >>> xp.__name__
        'numpy'
    """
    if not given:
        asked = requested()
        usable = load(asked) if asked != "auto" else _first_available(["cupy", "numpy"])
        return np if ARRAY_KIND[usable.name] == "numpy" else sys.modules["cupy"]
    kinds = {arrays.kind(array) for array in given}
    if None in kinds:
        names = ", ".join(type(array).__name__ for array in given)
        raise TypeError(f"array_namespace takes numpy and cupy arrays; got {names}")
    if len(kinds) > 1:
        raise BackendMismatchError(
            "array_namespace got numpy and cupy arrays together; convert one side "
            "(cupy.asarray, cupy.asnumpy)"
        )
    return np if kinds == {"numpy"} else sys.modules["cupy"]


# -------------------------------------------------------------------------------------------------
# How many threads the steps of this process may use.

_limit: int | None = None


def most_threads() -> int:
    """Return how many threads there are for a step: NUMBA_NUM_THREADS, or the processors."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    if asked.isdigit() and asked != "0":
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(number: int | None) -> None:
    """Let the steps of this process use at most this many threads.

    ``number`` is a whole number >= 1; more than ``NUMBA_NUM_THREADS`` (by default the number of
    processors) makes no difference. None lifts the limit. The results do not depend on it, to the
    bit.
    """
    global _limit
    _limit = None if number is None else whole("the number of threads", number, low=1)


def available_threads(most: int) -> int:
    """Return how many threads a step may use now, of the given number that there are."""
    return most if _limit is None else min(most, _limit)
