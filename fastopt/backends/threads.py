"""How many threads a step may use, and when it is safe to use more than one.

Threads are Numba's own (its threading layer: TBB where installed, else OpenMP, else its workqueue).
Two of these need care. GNU OpenMP kills a forked child at its first parallel region, if the parent
had one before: in such a child every step is serial. The workqueue aborts the process when two
threads use it at once: there one step waits for the other. The bits are the same either way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from fastopt.hyperparameters import whole

_limit: int | None = None
_lock = threading.Lock()
_layer: str | None = None  # known after the first parallel region
_serial_only = False


def set_num_threads(number: int | None) -> None:
    """Let the steps of this process use at most this many threads.

    ``number`` is a whole number >= 1; more than Numba has (``NUMBA_NUM_THREADS``, by default the
    number of processors) makes no difference. None lifts the limit. The results do not depend on
    it, to the bit. Only the Numba backend uses threads.
    """
    global _limit
    _limit = None if number is None else whole("the number of threads", number, low=1)


def available(most: int) -> int:
    """Return how many threads a step may use now, of the given number that there are."""
    if _serial_only:
        return 1
    return most if _limit is None else min(most, _limit)


def free() -> bool:
    """Return whether a parallel region has been, and others may be at the same time."""
    return _layer in ("tbb", "omp")


def guard() -> AbstractContextManager[object]:
    """Return what to hold during a parallel region."""
    return _lock


def note_layer(layer: Callable[[], str]) -> None:
    """Remember which threading layer runs, once a parallel region has been."""
    global _layer
    if _layer is None:
        _layer = layer()


def give_up() -> None:
    """Make every step of this process serial."""
    global _serial_only
    _serial_only = True


def _after_fork_in_child() -> None:
    global _lock, _serial_only
    _lock = threading.Lock()  # the thread that may have held it is not in the child
    _serial_only = _serial_only or _layer == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
