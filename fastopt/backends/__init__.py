"""Which backend runs: the choice by name, environment and array kind, and what a backend is."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastopt import arrays
from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.errors import BackendMismatchError, BackendUnavailableError
from fastopt.formats import Format
from fastopt.parameters import Parameter
from fastopt_kernels import Rule

if TYPE_CHECKING:
    from fastopt.backends.decisions import Control, DeviceSide

ARRAY_KIND = {"numpy": "numpy", "numba": "numpy", "cupy": "cupy"}
"""The backends, each with the kind of arrays that it updates."""

COMMON_SCALARS = ("grad_scale", "l2", "decay", "tiny_signed", "tiny_positive")
"""What every update gets before its rule's own scalars, and every backend applies around a rule:

grad <- grad_scale * grad;  grad <- grad + l2 * param;  param <- param - decay * param;  rule;
state whose magnitude is below tiny_signed or tiny_positive becomes 0.
"""


def tiny_names(rule: Rule) -> dict[str, str]:
    """Return for each state slot of a rule the common scalar below which it becomes 0."""
    return {slot: "tiny_signed" if slot in rule.signed else "tiny_positive" for slot in rule.state}


class StepAtOnce(Protocol):
    """A whole step of a bucket in one call."""

    def __call__(
        self,
        params: list[Array],
        grads: list[Array | None],
        row: Sequence[float],
        steps: Array,
        clock: Array,
    ) -> bool:
        """Look at the arrays, update, and add 1 to ``steps`` and ``clock``.

        Returns False, with nothing changed, if any array is not as usual or a gradient is None.
        """


class Driver(Protocol):
    """Runs one rule over the parameters of one bucket, which it knows from its construction."""

    step_at_once: StepAtOnce | None
    """Look, update and count in one call that nothing interrupts; None if the driver cannot."""

    device_side: DeviceSide | None
    """What it does by decisions that were made on its device; None if that is the host."""

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need (with ``norm`` the sum of squares too); step nothing."""

    def take_usual(self, params: list[Array], grads: list[Array | None]) -> int | None:
        """Take a step's gradients if all arrays are as usual, and return how many are None.

        Returns None if one is not: then the caller looks at them all, and calls ``take_flat``.
        """

    def take_flat(self, grads: Sequence[Array | None]) -> None:
        """Take a step's gradients as flat real numbers.

        All are of the dtype in which the parameters are stored, or all of that of the arithmetic.
        """

    def squares(self, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient) by pieces, as in ``fastopt.norms``.

        Parameter after parameter; the pieces of a missing gradient are 0.
        """

    def update(self, table: Sequence[Sequence[float]], rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None.

        ``table`` holds rows of scalars (the common ones, then the rule's); ``rows`` says which row
        each parameter takes, None that all take the first.
        """


class Backend(Protocol):
    """Makes drivers; knows where state lives."""

    name: str
    bridges_gaps: bool
    """Whether drivers reach the elements of arrays with gaps; else they get flat copies."""
    alignment: int
    """The pieces of the state arena begin at multiples of this many elements."""

    def allocate(self, like: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return zeros, on the device of the array ``like``."""

    def driver(
        self, rule: Rule, parameters: Sequence[Parameter], arena: Arena, format: Format
    ) -> Driver:
        """Return the driver of some parameters, whose state is in the arena at their offsets.

        The slots of the arena are those of the rule, ``format.masters`` and ``format.limits``; the
        scalars are the common ones, those of the rule, and ``format.scalars``.
        """

    def control(self, like: Array) -> Control | None:
        """Return what steps are decided with on the array's device; None if that is the host."""


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
        module = importlib.import_module(f"fastopt.backends.{name}_backend")
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


def for_array(array: Array, path: str, asked: str) -> Backend:
    """Return the backend that updates an array when ``asked`` (a name or "auto") is requested."""
    kind = arrays.kind(array)
    if asked == "auto":
        return _first_available(["cupy"] if kind == "cupy" else ["numba", "numpy"])
    backend = load(asked)
    if kind != ARRAY_KIND[asked]:
        raise BackendMismatchError(
            f"backend {asked!r} updates {ARRAY_KIND[asked]} arrays; {path} is a {kind} array. "
            "Convert it (cupy.asarray, cupy.asnumpy), or ask for backend 'auto'."
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
