"""What remembers something between steps: its state as a dict, and back, all or nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from fastopt.version import __version__


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
