"""How many threads the steps of this process may use."""

from __future__ import annotations

from fastopt.hyperparameters import whole

_limit: int | None = None


def set_num_threads(number: int | None) -> None:
    """Let the steps of this process use at most this many threads.

    ``number`` is a whole number >= 1; more than ``NUMBA_NUM_THREADS`` (by default the number of
    processors) makes no difference. None lifts the limit. The results do not depend on it, to the
    bit. Only the Numba backend uses threads.
    """
    global _limit
    _limit = None if number is None else whole("the number of threads", number, low=1)


def available(most: int) -> int:
    """Return how many threads a step may use now, of the given number that there are."""
    return most if _limit is None else min(most, _limit)
