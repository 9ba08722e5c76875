"""The base of all optimizers: parameters, hyperparameters, steps that are checked first, saving."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np

from fastopt import backends
from fastopt.checkpoint import state_dict as checkpoint_state_dict
from fastopt.checkpoint.state_dict import LoadReport
from fastopt.core import param_groups as core_param_groups
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Flag, Formula, Scheduled
from fastopt.core.norms import total_norm
from fastopt.core.options import SHARED_DEFAULTS, NonfinitePolicy
from fastopt.core.param_groups import ParamGroups
from fastopt.core.signals import Deferred
from fastopt.engine import policy
from fastopt.engine.build import Group, make_groupings, squares
from fastopt.engine.policy import GradientPolicy
from fastopt.engine.step import checked_scale, deciding_device
from fastopt.errors import CheckpointError

if TYPE_CHECKING:
    from fastopt.checkpoint.file import Companions
    from fastopt.engine.device import OnDevice
    from fastopt.engine.tables import Limits
    from fastopt.wrappers.loss_scaler import Scaling

# -------------------------------------------------------------------------------------------------
# Setting an attribute that an optimizer does not have: an error that says where to set it.


class KnownAttributes:
    """Refuses public attributes that the class does not have: ``opt.betas = ...`` does nothing.

    A subclass declares those of its own in its body. (Reading one stays as it is: a __getattr__
    would slow down the reading of all others.)
    """

    _param_groups: ParamGroups

    if not TYPE_CHECKING:  # it would hold that every attribute can be set

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                raise AttributeError(self._no_attribute(name), name=name, obj=self)
            super().__setattr__(name, value)

    def _no_attribute(self, name: str) -> str:
        """Say where else to look."""
        said = f"{type(self).__name__!r} object has no attribute {name!r}"
        settings = list(self._param_groups[0].plain) if "_param_groups" in vars(self) else []
        public = [known for known in dir(type(self)) if not known.startswith("_")]
        import difflib  # a millisecond

        meant = next(iter(difflib.get_close_matches(name, [*settings, *public], n=1)), None)
        if meant in settings and meant not in public:
            return f"{said}; hyperparameters are set by group: opt.param_groups[0][{meant!r}] = ..."
        return f"{said}; did you mean {meant!r}?" if meant else said


# -------------------------------------------------------------------------------------------------
# What an optimizer hands over to a device that decides on its steps, and asks of it.


class DeviceSteps(GradientPolicy):
    """Steps that a device decides on, where there is one for all parameters."""

    _device: OnDevice | None = None

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph."""
        return self._capturable

    def refresh(self) -> Self:
        """Let steps that were captured in a CUDA graph go on by what has been set since.

        A captured step (``capturable=True``, and ``step`` between begin_capture and end_capture of
        a CuPy stream) reads on the device what it goes by: the step count, which every replay adds
        to, and the scalars of the coming steps. Call this after setting a hyperparameter,
        ``max_grad_norm`` or ``on_nonfinite``, and otherwise at least once in 65 536 replays (never,
        if no hyperparameter is a schedule, nothing is rounded by chance and the bias corrections
        have come to their end): a replay without scalars does nothing, and
        makes the next read of ``step_count`` or ``state_dict`` raise RuntimeError. It waits for the
        device.

        A graph keeps the addresses of the gradients, so write into the same arrays; and it keeps
        ``grad_scale``, unless that is a 0-d CuPy array. Without ``capturable`` nothing happens.

        Raises RuntimeError if the captured step cannot do what is asked for now, or while a
        stream is captured.
        """
        if self._device is not None:
            self._device.refresh(self._limits(self.on_nonfinite))
        return self

    def _step_on_device(
        self,
        device: OnDevice,
        parts: Sequence[Any],
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy,
        there: bool,
        scaling: Scaling,
    ) -> bool:
        """Make a step that is decided on the device, if it is; return whether it was.

        ``there``: the gradients' scale is on the device. ``scaling``: that of the loss is, and
        follows the step.
        """
        limits = self._limits(on_nonfinite)
        decides = there or self._capturable or limits.measures
        if on_nonfinite == "raise" or not decides:
            device.hand_over()
            return False
        device.step(parts, grad_scale, limits, scaling)
        return True

    def _warm_up_device(self) -> bool:
        """Prepare a device that decides; return whether there is one."""
        if self._device is None or self.on_nonfinite == "raise":
            return False
        self._device.warm_up(self._limits(self.on_nonfinite))
        return True

    @contextmanager
    def _setting_steps(self, saved: Any) -> Iterator[None]:
        """Let step counts be set on the host, to those of a state_dict, and hand them over."""
        if self._device is None:
            yield
            return
        entries = saved.get("state") if isinstance(saved, Mapping) else None
        pairs = entries.items() if isinstance(entries, Mapping) else ()
        # Whatever else is wrong with it is found where it is taken over.
        steps = {name: e["step"] for name, e in pairs if isinstance(e, Mapping) and "step" in e}
        self._settle(norm=True)
        self._device.refuse_steps(steps)
        yield
        self._device.take_steps(self._limits(self.on_nonfinite))

    def _limits(self, on_nonfinite: NonfinitePolicy) -> Limits:
        from fastopt.engine.tables import Limits

        return Limits(self._max_grad_norm, on_nonfinite == "skip")

    def _settle(self, norm: bool = False) -> None:
        if self._device is not None:
            self._device.counts.settle(norm)

    def _forget_norm(self) -> None:
        if self._device is not None:
            self._device.counts.forget_norm()


# -------------------------------------------------------------------------------------------------
# What an optimizer remembers: as a dict, as a file, and taken over again.

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
        return checkpoint_state_dict.collect_state(type(self).__name__, self._groups, self._clock)

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
        from fastopt.checkpoint import convert as checkpoint_convert
        from fastopt.checkpoint import file  # they take milliseconds

        name = type(self).__name__
        changes: tuple[str, ...] = ()
        if Flag()("load_state_dict: convert", convert):
            saved, changes = checkpoint_convert.converted(self._groups, saved)
        with self._setting_steps(saved):
            commit, differences = checkpoint_state_dict.state_restorer(
                name, self._groups, self._clock, saved, strict
            )
            commit()
        return replace(file.report(saved, differences), converted=changes)

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
        from fastopt.checkpoint import file  # it takes milliseconds

        name = type(self).__name__

        def pack() -> bytes:
            self._settle()
            return file.pack(name, self._groups, self._clock, params, also, notes)

        content = self._at_rest(pack)
        file.write(path, content, keep_previous)

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
        from fastopt.checkpoint import file  # it takes milliseconds

        ask = Flag()("load: convert", convert)
        content, name = file.read(path), type(self).__name__

        def restore() -> LoadReport:
            with self._setting_steps(content):
                return file.restore(name, self._groups, self._clock, content, strict, also, ask)

        try:
            return self._at_rest(restore)
        except CheckpointError as error:
            raise file.explained(path, error) from error

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


# -------------------------------------------------------------------------------------------------
# What all optimizers share: parameters, hyperparameters, and the step that is checked first.


class Optimizer(KnownAttributes, Formula, DeviceSteps, Persistent):
    """Base of all optimizers: holds the parameters and makes the steps.

    A subclass says which rule it uses and with what scalars, see ``Formula``.
    """

    def __init__(
        self,
        params: Any,
        *,
        max_grad_norm: float | None = None,
        on_nonfinite: NonfinitePolicy = "propagate",
        capturable: bool = False,
        master_weights: bool = True,
        backend: str | None = None,
        **hyperparameters: Any,
    ) -> None:
        self._turn = Turn()
        self._set_policy(max_grad_norm, on_nonfinite, capturable)
        self._clock = np.zeros(1, np.int64)  # the step count, where compiled code can reach it
        self._grouped = core_param_groups.are_given(params)
        self._groupings = make_groupings(
            type(self),
            params,
            hyperparameters,
            backends.requested(backend),
            Flag()(f"{type(self).__name__}: master_weights", master_weights),
        )
        self._groups = [group for grouping in self._groupings for group in grouping.groups]
        self._param_groups = ParamGroups(group.options for group in self._groups)
        at_once = len(self._groups) == 1 and self._groups[0].at_once
        self._only = self._groups[0] if at_once else None
        self._device = deciding_device(self._groupings, self._clock, self._seen, capturable)

    # The step -------------------------------------------------------------------------------

    def step(self, grads: Any, *, grad_scale: Any = 1.0) -> None:
        """Update all parameters in place.

        ``grads`` is nested as the parameters were (a list of such trees for a list of parameter
        groups); None leaves a parameter, its state and its step count alone, and so does
        ``trainable=False`` of its group, whatever the gradient is. Gradients of another floating
        dtype are converted to the parameter's, and then multiplied by ``grad_scale``, before
        anything else. A step that raises has changed nothing.

        Where all parameters are CuPy arrays of one device, nothing waits for it, except under
        on_nonfinite="raise", and once when under "skip" other gradients are None than before, or a
        setting was changed that needs another kernel. But for "raise" ``grad_scale`` may there be a
        0-d CuPy array of float32 or float64, which is read on the device. Over several devices, or
        with arrays on the host too, a step with max_grad_norm or "skip" waits for the norm. With
        max_grad_norm, "skip" or capturable=True schedules are asked for the values of steps that
        are still to come.

        Raises ValueError for another structure or shape, a gradient that shares memory with a
        parameter, or a schedule's value out of range; TypeError for gradients that are no real
        floating arrays; BackendMismatchError for gradients of another array kind or device;
        RuntimeError if another thread is in a step of this optimizer; FloatingPointError under
        ``on_nonfinite="raise"`` for a gradient with NaN or infinity, or with squares that overflow.
        """
        self._step(grads, grad_scale, self._on_nonfinite)

    def _step(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy, scaling: Scaling = None
    ) -> None:
        """Make a step under a policy for gradients that do not fit.

        ``scaling`` is the scale of the loss, where the device keeps it that decides on the step.
        """
        # A plain flag: after a lock's acquire an interrupt could come before the try.
        turn = self._turn
        if turn.taken:
            raise RuntimeError(
                "this optimizer is in a step already (or is being saved or loaded), in another "
                "thread or from a schedule; use one optimizer per thread, or a lock around its "
                "steps"
            )
        turn.taken = True
        try:
            there = False
            if type(grad_scale) is not float or grad_scale != 1.0:
                grad_scale, there = checked_scale(grad_scale, self._device, on_nonfinite)
            parts = self._split(grads) if self._grouped else (grads,)
            device = self._device
            if device and self._step_on_device(
                device, parts, grad_scale, on_nonfinite, there, scaling
            ):
                return
            seen = self._max_grad_norm is not None or on_nonfinite != "propagate"
            only = None if seen else self._only
            for group in self._groups:
                group.ask_schedules_anew()
            if only is None or not only.step_at_once(parts[0], grad_scale, self._clock):
                self._step_in_turn(parts, grad_scale, on_nonfinite if seen else None)
        finally:
            turn.taken = False

    def warmup(self) -> Self:
        """Compile now what the first steps would have to wait for; changes nothing.

        Compiled code is kept on disk, so this takes long only once (about a second for a rule and
        dtype; after that some milliseconds). Returns the optimizer.
        """
        on_device = self._warm_up_device()
        for group in self._groups:
            seen = self._max_grad_norm is not None or self._on_nonfinite != "propagate"
            group.warm_up(norm=seen and not on_device)
        return self

    def _step_in_turn(
        self, parts: Any, grad_scale: float, on_nonfinite: NonfinitePolicy | None
    ) -> None:
        """Check everything, work out the scalars, then update bucket by bucket.

        ``on_nonfinite`` is None if what the gradients are makes no difference.
        """
        updated: list[Group] = []
        for grouping, given in zip(self._groupings, parts, strict=True):
            updated += grouping.check(given)
        norm = None
        if on_nonfinite is not None:
            measured = total_norm(partial(squares, updated))
            norm = measured.value * abs(grad_scale)
            looks = on_nonfinite != "propagate"
            if looks and not measured.finite:
                self._refuse(norm, on_nonfinite, partial(policy.nonfinite, updated))
                return
            factor = self._clip_factor(norm)
            grad_scale *= factor
            squares_fit = norm * factor < policy.LIMIT or not any(
                group.averages_squares_in_float32 for group in updated
            )
            if looks and not squares_fit:
                self._refuse(norm, on_nonfinite, partial(policy.too_large, updated, grad_scale))
                return
        for group in updated:
            group.plan(grad_scale, self._clock)
        with Deferred():
            for group in updated:
                group.update()
            self._clock += 1
            self._seen.norm = norm

    def _split(self, grads: Any) -> Any:
        """Return the gradients tree by tree, where each group has a tree of its own."""
        if not isinstance(grads, list | tuple) or len(grads) != len(self._groupings):
            size = f" of {len(grads)}" if isinstance(grads, list | tuple) else ""
            raise ValueError(
                f"grads must be a list of {len(self._groupings)} trees, one for each parameter "
                f"group; got {type(grads).__name__}{size}"
            )
        return grads

    # What can be read and set ---------------------------------------------------------------

    @property
    def param_groups(self) -> ParamGroups:
        """Of each group a dict with "params" and every hyperparameter, settable between steps.

        "params" is the tree of parameters as it was given, for groups made by pattern a dict of
        their arrays by name.
        """
        return self._param_groups

    @property
    def step_count(self) -> int:
        """How many steps have been made; where a device decides on it, this waits for it."""
        self._settle()
        return int(self._clock[0])

    @property
    def backend(self) -> str:
        """The name of the backend at work; two with a comma if there are arrays of both kinds."""
        used = {bucket.backend.name for group in self._groups for bucket in group.buckets}
        return ", ".join(sorted(used))

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group; setting it sets all groups'."""
        group = self._groups[0]
        return group.value("lr", self.step_count if group.options.scheduled else 0)

    @lr.setter
    def lr(self, value: Scheduled) -> None:
        checked = [group.options.checked({"lr": value}) for group in self._groups]
        for group, change in zip(self._groups, checked, strict=True):
            group.options.update(change)

    @property
    def state_bytes(self) -> int:
        """The bytes of all state: scales, master weights and bounds that are arrays included."""
        return sum(bucket.nbytes for group in self._groups for bucket in group.buckets)

    def __repr__(self) -> str:
        plain = self._groups[0].options.plain.items()
        said = [(k, v) for k, v in plain if k not in SHARED_DEFAULTS or v != SHARED_DEFAULTS[k]]
        options = ", ".join(f"{k}={v!r}" for k, v in said)
        sizes = [leaf.array.size for group in self._groups for leaf in group.leaves]
        if self._max_grad_norm is not None:
            options += f", max_grad_norm={self._max_grad_norm!r}"
        several = f"{len(self._groups)} groups, " if len(self._groups) > 1 else ""
        return (
            f"<{type(self).__name__}({options}): {several}{len(sizes)} arrays, "
            f"{sum(sizes)} parameters, step {self.step_count}, on {self.backend}>"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: the copy would update arrays of "
            "its own, not the model's. Use state_dict and load_state_dict, or save and load."
        )
