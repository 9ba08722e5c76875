"""What all optimizers share: parameters, hyperparameters, and the step that is checked first."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from fastopt import backends, overflow, param_group
from fastopt.attributes import KnownAttributes
from fastopt.construction import make_groupings
from fastopt.deciding import checked_scale, deciding_device
from fastopt.device_steps import DeviceSteps
from fastopt.formula import Formula
from fastopt.gradient_policy import NonfinitePolicy
from fastopt.group import Group, squares
from fastopt.hyperparameters import Flag
from fastopt.hyperparameters import Scheduled as Scheduled
from fastopt.interrupts import Deferred
from fastopt.norms import total_norm
from fastopt.param_group import ParamGroups
from fastopt.persistence import Persistent, Turn
from fastopt.shared import SHARED_DEFAULTS

if TYPE_CHECKING:
    from fastopt.scale_on_device import Scaling


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
        self._grouped = param_group.are_given(params)
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
            from fastopt import misfits  # a millisecond, and most programs do not look

            measured = total_norm(partial(squares, updated))
            norm = measured.value * abs(grad_scale)
            looks = on_nonfinite != "propagate"
            if looks and not measured.finite:
                self._refuse(norm, on_nonfinite, partial(misfits.nonfinite, updated))
                return
            factor = self._clip_factor(norm)
            grad_scale *= factor
            squares_fit = norm * factor < overflow.LIMIT or not any(
                group.averages_squares_in_float32 for group in updated
            )
            if looks and not squares_fit:
                self._refuse(norm, on_nonfinite, partial(misfits.too_large, updated, grad_scale))
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
