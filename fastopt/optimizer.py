"""What all optimizers share: parameters, hyperparameters, and the step that is checked first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Self

import numpy as np

from fastopt import backends, param_group, state
from fastopt.arrays import Array
from fastopt.construction import checked_scale, deciding_device, make_groups
from fastopt.device_steps import DeviceSteps
from fastopt.formula import Formula
from fastopt.global_norm import global_norm
from fastopt.gradient_policy import NonfinitePolicy
from fastopt.interrupts import Deferred
from fastopt.param_group import ParamGroup

Scheduled = float | Callable[[int], float]
"""A number, or a function of the step number (0 for the first step) that returns one."""


class Optimizer(Formula, DeviceSteps):
    """Base of all optimizers: holds the parameters and makes the steps.

    A subclass says which rule it uses and with what scalars, see ``Formula``.
    """

    def __init__(
        self,
        params: Any,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        on_nonfinite: NonfinitePolicy = "propagate",
        capturable: bool = False,
        backend: str | None = None,
        **hyperparameters: Any,
    ) -> None:
        self._in_step = False
        self._set_policy(max_grad_norm, on_nonfinite, capturable)
        self._clock = np.zeros(1, np.int64)  # the step count, where compiled code can reach it
        self._grouped = param_group.are_given(params)
        self._groups = make_groups(
            type(self),
            params,
            {**hyperparameters, "maximize": maximize},
            backends.requested(backend),
        )
        at_once = len(self._groups) == 1 and self._groups[0].at_once
        self._only = self._groups[0] if at_once else None
        self._device = deciding_device(self._groups, self._clock, self._seen, capturable)

    # The step -------------------------------------------------------------------------------

    def step(self, grads: Any, *, grad_scale: Any = 1.0) -> None:
        """Update all parameters in place.

        ``grads`` is nested as the parameters were (a list of such trees for parameter groups);
        None leaves a parameter, its state and its step count alone. Gradients of another floating
        dtype are converted to the parameter's, and then multiplied by ``grad_scale``, before
        anything else. A step that raises has changed nothing.

        Where all parameters are CuPy arrays of one device, nothing waits for it, except under
        on_nonfinite="raise", and once when under "skip" other gradients are None than before, or
        when a setting was changed that needs another kernel.
        ``grad_scale`` may then be a 0-d CuPy array of float32 or float64, which is read on the
        device. With max_grad_norm, "skip" or capturable=True schedules are asked for the values
        of steps that are still to come, as well.

        Raises ValueError for another structure or shape, a gradient that shares memory with a
        parameter, or a schedule's value out of range; TypeError for gradients that are no real
        floating arrays; BackendMismatchError for gradients of another array kind or device;
        RuntimeError if another thread is in a step of this optimizer; FloatingPointError under
        ``on_nonfinite="raise"`` for a gradient with NaN or infinity.
        """
        self._step(grads, grad_scale, self._on_nonfinite)

    def _step(self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy) -> None:
        """Make a step under a policy for gradients that are not finite."""
        # A plain flag: after a lock's acquire an interrupt could come before the try.
        if self._in_step:
            raise RuntimeError(
                "this optimizer is in a step already, in another thread or from a schedule; use "
                "one optimizer per thread, or a lock around its steps"
            )
        self._in_step = True
        try:
            there = False
            if type(grad_scale) is not float or grad_scale != 1.0:
                grad_scale, there = checked_scale(grad_scale, self._device, on_nonfinite)
            parts = self._split(grads) if self._grouped else (grads,)
            if self._device and self._step_on_device(parts, grad_scale, on_nonfinite, there):
                return
            unseen = self._max_grad_norm is None and on_nonfinite == "propagate"
            only = self._only if unseen else None
            if only is None or not only.step_at_once(parts[0], grad_scale, self._clock):
                self._step_in_turn(parts, grad_scale, None if unseen else on_nonfinite)
        finally:
            self._in_step = False

    def warmup(self) -> Self:
        """Compile now what the first steps would have to wait for; changes nothing.

        Compiled code is kept on disk, so this takes long only once (about a second for a rule and
        dtype; after that some milliseconds). Returns the optimizer.
        """
        on_device = self._warm_up_device()
        for group in self._groups:
            group.warm_up(norm=self._max_grad_norm is not None and not on_device)
        return self

    def _step_in_turn(
        self, parts: Any, grad_scale: float, on_nonfinite: NonfinitePolicy | None
    ) -> None:
        """Check everything, work out the scalars, then update bucket by bucket.

        ``on_nonfinite`` is None if what the gradients are makes no difference.
        """
        for group, given in zip(self._groups, parts, strict=True):
            group.check(given)
        norm = None
        if on_nonfinite is not None:
            measured = global_norm(self._squares)
            norm = measured.value * abs(grad_scale)
            if not measured.finite and on_nonfinite != "propagate":
                self._refuse(norm, on_nonfinite)
                return
            grad_scale *= self._clip_factor(norm)
        for group in self._groups:
            group.plan(grad_scale, self._clock)
        with Deferred():
            for group in self._groups:
                group.update()
            self._clock += 1
            self._seen.norm = norm

    def _refuse(self, norm: float, on_nonfinite: NonfinitePolicy) -> None:
        """Skip a step, or raise, for a gradient with NaN or infinity."""
        if on_nonfinite == "skip":
            with Deferred():
                self._seen.skipped += 1
                self._seen.norm = norm
            return
        places = (group.nonfinite() for group in self._groups)
        raise FloatingPointError(
            f"{next(filter(None, places))} holds NaN or infinity at step {self.step_count}; "
            "nothing was changed. Look at the loss and at what it divides by; "
            "on_nonfinite='skip' leaves such steps out."
        )

    def _squares(self, factor: float) -> Iterator[Array]:
        for group in self._groups:
            for bucket in group.buckets:
                yield bucket.squares(factor)

    def _split(self, grads: Any) -> Any:
        """Return the gradients group by group."""
        if not isinstance(grads, list | tuple) or len(grads) != len(self._groups):
            size = f" of {len(grads)}" if isinstance(grads, list | tuple) else ""
            raise ValueError(
                f"grads must be a list of {len(self._groups)} trees, one for each parameter "
                f"group; got {type(grads).__name__}{size}"
            )
        return grads

    # What can be read and set ---------------------------------------------------------------

    @property
    def param_groups(self) -> list[ParamGroup]:
        """Of each group a dict with "params" and every hyperparameter, settable between steps."""
        return [group.options for group in self._groups]

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

    def state_dict(self) -> dict[str, Any]:
        """Return everything the optimizer remembers, as a dict of plain values and NumPy arrays.

        ``{"fastopt": version, "optimizer": class name, "step_count": steps, "groups":
        [hyperparameters], "state": {name: {"step": steps, slot: array}}}``. The arrays are copies.
        A schedule is no part of it (None stands in its place): it is a function of the step count.
        ``max_grad_norm`` is none either: give it to the constructor again.
        """
        self._settle()
        return state.collect(type(self).__name__, self._groups, self._clock)

    def load_state_dict(self, saved: Mapping[str, Any], strict: bool = True) -> None:
        """Take over a ``state_dict``, by the parameters' names; nothing is ever cast.

        Hyperparameters are taken over too, except schedules, which stay. With ``strict=False``
        parameters that one side lacks keep the state they have. Raises CheckpointError, and
        changes nothing, if it is another optimizer's, or damaged, or does not fit by name, shape
        or dtype.
        """
        with self._setting_steps(saved):
            state.restore(type(self).__name__, self._groups, self._clock, saved, strict)

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self._groups[0].options.plain.items())
        sizes = [leaf.array.size for group in self._groups for leaf in group.tree.leaves]
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
            "its own, not the model's. Use state_dict and load_state_dict."
        )
