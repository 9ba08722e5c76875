"""Gradients that are sent one by one, while the backward pass makes the next ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.distributed.sums import Contribution, Round
from fastopt.errors import RankError

if TYPE_CHECKING:
    from fastopt.distributed.base import OverRanks


MOST_WAITING = 1 << 26
"""Bytes of gradients that wait to be sent, while those that come before them are complete."""


class Backward:
    """A micro-batch whose gradients are handed in one by one: see ``OverRanks.backward``."""

    def __init__(self, owner: OverRanks, weight: float, grad_scale: float, value: Any) -> None:
        self._owner = owner
        self._about = weight, grad_scale, value
        self._ready = threading.Condition()
        self._flats: list[Array | None] = []
        self._given: list[bool] = []
        self._awaited: list[bool] = []  # which are waited for before what comes behind is sent
        self._said: Sequence[Contribution] = ()
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._next = 0  # the place of the section that is sent next
        self._section_of: dict[int, int] = {}  # by position
        self._completed: dict[int, None] = {}  # the sections whose gradients have all come
        self._waiting = 0  # bytes of gradients that have not been sent
        self._round: Round | None = None

    def __enter__(self) -> Self:
        owner = self._owner
        self._said = owner._begin_backward(*self._about)
        self._round = owner._sums.begin(self._said)
        count = len(owner._layout.parameters)
        self._flats, self._given = [None] * count, [False] * count
        self._awaited = owner._trained()
        sections = owner._layout.sections
        self._section_of = {k: n for n, one in enumerate(sections) for k in one.positions}
        owner._busy = "backward"
        on_host = arrays.kind(owner._tree.leaves[0].array) == "numpy"
        if owner._ranks.in_threads and on_host and owner.size > 1:
            self._thread = threading.Thread(
                target=self._send_all, name="fastopt-ranks", daemon=True
            )
            with owner._ranks.sending():
                self._thread.start()
        return self

    def ready(self, name: str, grad: Any) -> None:
        """Hand in the gradient of one parameter, by its name in a ``state_dict``.

        The array is read until the block ends, or it was sent: do not write to it. Each may come
        once, in any order; they are sent from the last parameter to the first. None, for one that
        has no gradient, lets those before it be sent before the block ends. Raises KeyError for
        another name, and what the optimizer's ``step`` does for a gradient that does not fit.
        """
        if self._ended or not self._flats:
            raise RuntimeError("gradients are handed in inside of the block: with opt.backward()")
        position, flat = self._owner._flat_of(name, grad)
        if flat is None:
            with self._ready:
                self._came(position)
            if self._thread is None:
                self._send_complete()
            return
        if self._given[position]:
            raise ValueError(f"the gradient of {name!r} was handed in before, in this micro-batch")
        with self._ready:
            self._flats[position] = flat
            self._given[position] = True
            self._waiting += flat.nbytes
            self._came(position)
            # What can be sent is waited for, so that gradients do not pile up.
            while (
                self._thread is not None
                and self._error is None
                and self._waiting > MOST_WAITING
                and self._next < len(self._owner._turns)
                and self._is_complete(self._owner._turns[self._next])
            ):
                self._ready.wait()
        if self._thread is None:
            self._send_complete()
        elif self._error is not None:
            raise self._error

    def _came(self, position: int) -> None:
        """Wait no more for a parameter's gradient."""
        self._awaited[position] = False
        number = self._section_of[position]
        if number not in self._completed and self._is_complete(number):
            self._completed[number] = None
        self._ready.notify_all()

    def _send_all(self) -> None:
        """Send section by section, each as soon as it is complete or the block has ended."""
        assert self._round is not None
        try:
            for place, number in enumerate(self._owner._turns):
                with self._ready:
                    due = self._ended or self._is_complete(number)
                if not due:
                    self._finish()  # there is time for it
                    with self._ready:
                        while not (self._ended or self._is_complete(number)):
                            self._ready.wait()
                self._send(number)
                with self._ready:
                    self._next = place + 1
                    self._ready.notify_all()
            self._finish()
        except BaseException as error:
            with self._ready:
                self._error = error
                self._ready.notify_all()

    def _send_complete(self) -> None:
        """Send the sections that are complete, where there is no thread for it."""
        assert self._round is not None
        turns = self._owner._turns
        while self._next < len(turns) and (self._ended or self._is_complete(turns[self._next])):
            self._send(turns[self._next])
            self._next += 1
        if self._ended:
            self._finish()

    def _is_complete(self, number: int) -> bool:
        positions = self._owner._layout.sections[number].positions
        return not any(self._awaited[k] for k in positions)

    def _finish(self) -> None:
        """Add all that is under way."""
        assert self._round is not None
        with self._owner._ranks.sending():
            self._round.finish()

    def _send(self, number: int) -> None:
        assert self._round is not None
        section = self._owner._layout.sections[number]
        with self._owner._ranks.sending():
            dtype = self._owner._layout.stored[section.positions[0]]
            self._round.send(section, self._flats, dtype)
        with self._ready:
            for position in section.positions:
                flat = self._flats[position]
                self._waiting -= 0 if flat is None else flat.nbytes
                self._flats[position] = None  # what is under way is kept by the round

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A rank that has failed sends zeros, so that the others come to hear of it.
        owner = self._owner
        with self._ready:
            self._ended = True
            self._ready.notify_all()
        try:
            with owner._ranks.sending():  # an interrupt here leaves the thread to itself
                if self._thread is not None:
                    self._thread.join()
                else:
                    self._send_complete()
        except RankError as lost:
            self._error = lost
        except BaseException:
            owner._clear()
            raise
        finally:
            owner._busy = None
        if self._error is None:
            turns = [*self._completed, *(k for k in owner._turns if k not in self._completed)]
            owner._end_backward(self._said, self._given, turns, error)
            return
        owner._clear()
        if error is None:
            raise self._error
