"""Under "auto" an optimizer begins on NumPy and goes over to Numba once that pays.

Both end in the same bits, so nobody has to wait for Numba: its import takes half a second, and
compiling a rule for a dtype the first time more than another one. An optimizer goes over when its
steps have taken as long as that will. Whatever follows, it then has taken at most twice as long as
the better of the two choices from the start.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

from fastopt import backends
from fastopt.backends.interface import Backend
from fastopt.core.buckets import Bucket

IMPORT, COMPILE, LOAD = 0.5, 1.6, 0.03
"""Seconds, on a usual machine: to import Numba, to compile a rule for a dtype, and to load it."""

_failed = False  # in this process, which was said once


class Later:
    """Going over to Numba: when it pays, and the backend then.

    ``spent`` are the seconds that steps have taken so far.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.spent: float = 0.0
        self._names = {f"{bucket.rule.name}-{bucket.spec.name}" for bucket in buckets}
        self._cost: float | None = None

    @property
    def due(self) -> bool:
        """Whether steps have taken as long as going over will."""
        if self.spent < LOAD:
            return False
        if self._cost is None:
            self._cost = self._seconds()
        return self.spent >= self._cost

    def _seconds(self) -> float:
        """Return about how many seconds going over takes."""
        from fastopt.backends.numba import cache  # milliseconds, which a short script does without

        kept = cache.names()
        found = sum(any(name.startswith(own) for name in kept) for own in self._names)
        compiling = COMPILE * (len(self._names) - found) + LOAD * found
        return compiling + IMPORT * ("numba" not in sys.modules)

    def backend(self) -> Backend:
        """Return the backend; BackendUnavailableError says why it cannot run here."""
        return backends.load("numba")


def failed(error: Exception) -> None:
    """Say once that Numba does not work here, and remember it."""
    global _failed
    if not _failed:
        _failed = True
        warnings.warn(
            f"fastopt goes on with the NumPy backend, whose results are the same: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def later(buckets: Sequence[Bucket], asked: str, backend: Backend) -> Later | None:
    """Return how an optimizer goes over to Numba; None if it does not."""
    begins = asked == "auto" and backend.name == "numpy" and not _failed
    return Later(buckets) if begins and _installed() else None


def _installed() -> bool:
    """Return whether Numba is there, and may compile."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return False
    try:
        return find_spec("numba") is not None
    except Exception:  # what finds modules can be broken too
        return False
