"""What an optimizer remembers: as a dict, as a file, and taken over again."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from fastopt import state
from fastopt.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.hyperparameters import Flag
from fastopt.load_report import LoadReport

if TYPE_CHECKING:
    from fastopt.checkpoint import Companions

Result = TypeVar("Result")


class Turn:
    """Whether something is being done with an optimizer that must be done alone.

    It is apart from the optimizer, whose own attributes are looked at when they are set.
    """

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = False


class Persistent(ABC):
    """An optimizer's memory, in the form of a dict and of a file."""

    _groups: Sequence[Group]
    _clock: Array
    _turn: Turn

    @abstractmethod
    def _settle(self, norm: bool = False) -> None:
        """Bring what a device may have counted to the host."""

    @abstractmethod
    def _setting_steps(self, saved: Any) -> AbstractContextManager[None]:
        """Return what to be in while step counts are set to those of a state_dict."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything the optimizer remembers, as a dict of plain values and NumPy arrays.

        ``{"fastopt": version, "optimizer": class name, "step_count": steps, "groups":
        [hyperparameters], "state": {name: {"step": steps, slot: array}}}``. The arrays are copies.
        State in bfloat16 is an array of ml_dtypes' bfloat16; state in 8 bits is uint8 codes, with
        ``<slot>_scale``, a float32 for each 256 of them that are consecutive in memory, and with
        "order", the order of axes there, unless it is C order. Complex ones are pairs, a last axis.
        A schedule is no part of it (None stands in its place): it is a function of the step count.
        One with a memory, ``ReduceLROnPlateau``, has ``{"schedule": its state_dict}`` there.
        ``max_grad_norm`` and ``on_nonfinite`` are no part of it either: give them to the
        constructor again. Groups made by pattern also have "params", the names of their parameters.
        """
        self._settle()
        return state.collect(type(self).__name__, self._groups, self._clock)

    def load_state_dict(
        self, saved: Mapping[str, Any], strict: bool = True, convert: bool = False
    ) -> LoadReport:
        """Take over a ``state_dict``, by the parameters' names; nothing is cast unasked.

        With ``convert=True`` state of another floating dtype is converted to the one in use, each
        value rounded once, and the report names it. Master weights that were not saved are made
        from the parameters as they are now; those that are not kept here are left out.

        Hyperparameters are taken over too, except schedules, which stay; one with a memory takes
        that over. Groups made by pattern (``fastopt.groups``) take them over if the same groups of
        parameters were saved, and else keep their own: state saved with other groups, or without
        any, goes on by name. With ``strict=False`` parameters that one side lacks, or that have
        another shape or dtype there, keep the state they have, and so do schedules; the report
        names them. So do hyperparameters that another version has not saved, always. Raises
        CheckpointError, and changes nothing, if it is another optimizer's, or
        damaged, or does not fit by name, shape or dtype.
        """
        from fastopt import checkpoint, conversion  # they take milliseconds

        name = type(self).__name__
        changes: tuple[str, ...] = ()
        if Flag()("load_state_dict: convert", convert):
            saved, changes = conversion.converted(self._groups, saved)
        with self._setting_steps(saved):
            commit, differences = state.restorer(name, self._groups, self._clock, saved, strict)
            commit()
        return replace(checkpoint.report(saved, differences), converted=changes)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        params: bool = True,
        also: Companions | None = None,
        notes: Mapping[str, Any] | None = None,
        keep_previous: bool = True,
    ) -> None:
        """Write everything the optimizer remembers to a file, whole or not at all.

        The file is a safetensors file with the parameters as ``param:<name>``, the state as
        ``state:<name>/<slot>``, and what they belong to as JSON in its metadata, with the sha256 of
        every array. It is written beside ``path``, flushed to the disk, read again, and moved into
        place: if that fails, or the process is killed, the file from before is as it was. Saving
        takes about twice the file's size in memory. What ``state_dict`` leaves out is left out
        here too: schedules, ``max_grad_norm``, ``on_nonfinite``.

        Args:
            path: the file, by custom ``*.safetensors``; a symbolic link is followed.
            params: store the parameters too.
            also: companions to store under these names: EMA, LossScaler, ReduceLROnPlateau, ...
            notes: a dict of your own, which ``load`` returns: the epoch, the state of a random
                generator. Values as in JSON, tuples, numbers of NumPy (they come back as Python's)
                and arrays.
            keep_previous: keep the file from before as ``<path>.prev``.

        Raises:
            OSError: for a full disk, a folder that is missing, a file that may not be written.
            TypeError, ValueError: for notes and companions that cannot be stored, and parameters
                that are no longer in the tree that the optimizer was given.
            RuntimeError: during a step, which another thread makes.
        """
        from fastopt import checkpoint  # it takes milliseconds

        name = type(self).__name__

        def pack() -> bytes:
            self._settle()
            return checkpoint.pack(name, self._groups, self._clock, params, also, notes)

        content = self._at_rest(pack)
        checkpoint.write(path, content, keep_previous)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        also: Companions | None = None,
        convert: bool = False,
    ) -> LoadReport:
        """Take over what ``save`` wrote, on whatever backend: all of it or, on an error, nothing.

        State and parameters are matched by name and not cast, unless ``convert`` asks for it.
        Parameters are written in place, if the file holds any. Hyperparameters are taken over,
        except schedules, as ``load_state_dict`` does it.

        Args:
            path: the file.
            strict: raise if names, shapes or dtypes differ. Otherwise take what fits; the report
                says what was left as it was.
            also: the companions that were stored, under the same names.
            convert: take over parameters and state of another floating dtype, each value rounded
                once; the report names them. Master weights that were not saved are made from the
                saved parameters before these are rounded; a parameter without one here is made from
                the saved master weight. A number that is infinite in the dtype in use is an error.

        Returns:
            What was taken over, and the notes that were stored: print it, or look at its fields.

        Raises:
            CheckpointError: for a file that is damaged, cut off, no checkpoint, of a newer format,
                of another optimizer, or that does not fit. It names ``<path>.prev``, if that is
                there.
            FileNotFoundError, PermissionError, ...: for a file that cannot be opened.
            ValueError: for parameters that are no longer in the tree that the optimizer was given,
                or have become read-only.
            RuntimeError: during a step, which another thread makes.
        """
        from fastopt import checkpoint  # it takes milliseconds

        ask = Flag()("load: convert", convert)
        content, name = checkpoint.read(path), type(self).__name__

        def restore() -> LoadReport:
            with self._setting_steps(content):
                return checkpoint.restore(
                    name, self._groups, self._clock, content, strict, also, ask
                )

        try:
            return self._at_rest(restore)
        except CheckpointError as error:
            raise checkpoint.explained(path, error) from error

    def _at_rest(self, work: Callable[[], Result]) -> Result:
        """Do something between two steps, and let no other thread make one meanwhile."""
        turn = self._turn
        if turn.taken:
            raise RuntimeError(
                "this optimizer is in a step, in another thread or from a schedule; save and load "
                "between steps"
            )
        turn.taken = True
        try:
            result = work()
        finally:
            turn.taken = False
        return result
