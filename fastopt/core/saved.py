"""Checks of what was saved, and what every object with a state_dict has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.version import __version__

# -------------------------------------------------------------------------------------------------
# Checks of what was saved: what it is of, its counts, its arrays; nothing is cast.


def check_array(name: str, got: Any, like: Array) -> None:
    """Raise CheckpointError unless a saved array has the shape and dtype of that in use."""
    if not isinstance(got, np.ndarray):
        raise CheckpointError(f"{name}: expected a NumPy array; got {type(got).__name__}")
    if wrong := mismatch(name, like, got):
        raise CheckpointError(f"{wrong}. State is never cast or reshaped.")


def mismatch(name: str, here: Array, saved: Array) -> str | None:
    """Return what is different about an array's shape or dtype, None if nothing is."""
    if saved.shape == here.shape and saved.dtype == here.dtype:
        return None
    return f"{name}: expected {here.dtype} {here.shape}; got {saved.dtype} {saved.shape}"


def is_count(value: Any) -> bool:
    """Return whether a saved value can be a number of steps."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 0 <= value < 2**63


class Saved:
    """A state_dict that is of the right kind; what is in it is checked when it is asked for."""

    def __init__(self, kind: str, saved: Any) -> None:
        if not isinstance(saved, Mapping) or "kind" not in saved:
            raise CheckpointError(f"expected a state_dict of {kind}; got {type(saved).__name__}")
        if saved["kind"] != kind:
            raise CheckpointError(f"the state is of {saved['kind']}; this is {kind}")
        self._kind = kind
        self._saved = saved

    def count(self, name: str, most: int = 2**63 - 1) -> int:
        """Return a whole number from 0 to ``most``."""
        value: Any = self._saved.get(name)
        if not is_count(value) or value > most:
            upto = "on" if most == 2**63 - 1 else f"to {most}"
            raise CheckpointError(
                f"{self._kind}: {name} must be a whole number from 0 {upto}; got {value!r}"
            )
        return int(value)

    def number(self, name: str, check: Callable[[str, Any], float]) -> float:
        """Return a number that passes a check."""
        try:
            return check(f"{self._kind}: {name}", self._saved.get(name))
        except (TypeError, ValueError) as error:
            raise CheckpointError(str(error)) from error

    def arrays(self, name: str, like: Mapping[str, Array], some: bool = False) -> dict[str, Array]:
        """Return arrays by name that fit those in use: all of them, or with ``some`` a part."""
        entries = self._saved.get(name)
        if not isinstance(entries, Mapping):
            raise CheckpointError(
                f"{self._kind}: {name} must be a dict of arrays; got {type(entries).__name__}"
            )
        missing = [] if some else sorted(like.keys() - entries)
        extra = sorted(map(str, entries.keys() - like.keys()))
        if missing or extra:
            raise CheckpointError(
                f"{self._kind}: {name} lacks {len(missing)} parameters {missing[:3]} and has "
                f"{len(extra)} too many {extra[:3]}; state is matched by name"
            )
        for key, array in entries.items():
            check_array(f"{name}.{key}", array, like[key])
        return dict(entries)


# -------------------------------------------------------------------------------------------------
# What remembers something between steps: its state as a dict, and back, all or nothing.


class Resumable(ABC):
    """Has a state_dict. A subclass says what it remembers, and how that is taken over."""

    @abstractmethod
    def _remembered(self) -> dict[str, Any]:
        """Return plain values and dicts of NumPy arrays, all copies."""

    @abstractmethod
    def _restorer(self, saved: Any) -> Callable[[], None]:
        """Check a state_dict, and return what takes it over, which cannot fail."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is remembered, as a dict of plain values and NumPy arrays.

        The arrays are copies, by the parameters' names. The arguments of the constructor are no
        part of it.
        """
        return {"fastopt": __version__, "kind": type(self).__name__, **self._remembered()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a ``state_dict``; nothing is ever cast.

        Raises CheckpointError, and changes nothing, if it is of something else, or damaged, or does
        not fit by name, shape or dtype.
        """
        self._restorer(saved)()
