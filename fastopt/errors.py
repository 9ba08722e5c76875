"""The package's own exceptions; bad arguments are plain ValueError and TypeError."""

from __future__ import annotations


class FastoptError(Exception):
    """Base of every exception that is particular to fastopt."""


class BackendUnavailableError(FastoptError, RuntimeError):
    """A backend that was asked for by name cannot run here."""


class BackendMismatchError(FastoptError, TypeError):
    """Arrays of one kind or device were given where another one was needed."""


class CheckpointError(FastoptError, ValueError):
    """A saved state does not belong to this optimizer, or is damaged."""


class RankError(FastoptError, RuntimeError):
    """A step, a save or a load over several processes failed on one of them, or one is gone.

    Attributes:
        ranks: the numbers of those at fault.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks: tuple[int, ...] = ranks
