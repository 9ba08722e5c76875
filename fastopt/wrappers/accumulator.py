"""Accumulator: sums the gradients of micro-batches, and steps an optimizer with their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, blocks
from fastopt.core.dtypes import real_dtype
from fastopt.core.hyperparameters import whole
from fastopt.core.options import NonfinitePolicy
from fastopt.core.saved import Saved
from fastopt.core.signals import Deferred
from fastopt.engine.policy import Outcome
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from fastopt.wrappers.base import Wrapper


class Accumulator(Wrapper):
    """Adds up the gradients of micro-batches, and steps the optimizer with their mean.

    ::

        s <- s + grad_scale * grad                       every call; s = 0 at first
        the optimizer's step with s / every; s <- 0      every every-th call

    With micro-batches of equal size and losses that are means over them, this is the step of the
    whole batch, up to rounding. Sums are kept in the parameter's dtype, those of float16 and
    bfloat16 in float32, whatever the dtype of the gradients; clipping and weight decay act once,
    on the mean. A gradient of None counts as zero, unless it is None in all micro-batches of a
    step: then it is None there too, and the parameter is left alone.

    Args:
        opt: the optimizer that makes the steps.
        every: micro-batches per step, >= 1.

    Raises:
        ValueError, TypeError: for arguments out of range.

    Its ``state_dict`` holds the sums; the optimizer's own is saved beside it.
    """

    def __init__(self, opt: Optimizer | Wrapper, every: int) -> None:
        super().__init__(opt)
        self._every = whole("Accumulator: every", every, 1)
        self._arrays = self._companions()
        self._given = [False] * len(self._arrays.leaves)
        self._count = 0

    @property
    def count(self) -> int:
        """How many micro-batches have been added since the optimizer's last step."""
        return self._count

    def step(self, grads: Any, *, grad_scale: Any = 1.0) -> Outcome | None:
        """Add a micro-batch's gradients; return the outcome if that made the optimizer step.

        None stands for a micro-batch that was only added. ``grad_scale`` may be a 0-d CuPy array
        where the optimizer's may. Gradients are neither kept nor written. Raises what the
        optimizer's ``step`` does. Where the gradients are at fault nothing has been added; where
        the optimizer's step is, all sums are kept: then ``flush`` tries again, ``reset`` drops
        them, and this raises RuntimeError.
        """
        return self._step(grads, grad_scale, None)

    def _step(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy | None
    ) -> Outcome | None:
        with self._lock:
            if self._count >= self._every:
                raise RuntimeError(
                    f"Accumulator: the step with the last {self._count} micro-batches has failed; "
                    "call flush() to try it again, or reset() to drop them"
                )
            policy = on_nonfinite or self.on_nonfinite
            scale = self._innermost._engine.checked_scale(grad_scale, policy)
            checked = self._checked(grads)
            with Deferred():
                self._add(checked, scale)
                self._count += 1
                return self._apply(on_nonfinite) if self._count == self._every else None

    def flush(self) -> Outcome | None:
        """Step with the mean of what is there, and return the outcome; None if there is nothing.

        Under the optimizer's own ``on_nonfinite``, also where a ``LossScaler`` makes the steps.
        """
        with self._lock, Deferred():
            return self._apply(None) if self._count > 0 else None

    def reset(self) -> None:
        """Drop what has been added since the optimizer's last step."""
        with self._lock, Deferred():
            self._given = [False] * len(self._given)
            self._count = 0

    def _checked(self, grads: Any) -> list[Array | None]:
        """Return the gradients in the order of the parameters; raise what is wrong with one."""
        state = self._innermost._state
        self._innermost._engine.follow_settings()
        given = state.tree.match(grads)
        for bucket in state.buckets:
            for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
                if given[position] is not None:
                    path = f"grads{parameter.leaf.place}"
                    given[position] = parameter.checked(given[position], path)
        return given

    def _add(self, grads: list[Array | None], scale: Any) -> None:
        with np.errstate(all="ignore"):
            for k, (grad, own) in enumerate(zip(grads, self._arrays.own, strict=True)):
                if grad is None:
                    continue
                with arrays.on_device_of(own):
                    for total, part in blocks(own, grad):
                        part = _scaled(part.astype(total.dtype, copy=False), scale)
                        if self._given[k]:
                            total += part
                        else:
                            total[...] = part
                self._given[k] = True

    def _apply(self, on_nonfinite: NonfinitePolicy | None) -> Outcome | None:
        """Make the optimizer's step with the mean."""
        own = zip(self._arrays.own, self._given, strict=True)
        sums = self._arrays.nest(total if given else None for total, given in own)
        outcome = self._opt._step(sums, 1.0 / self._count, on_nonfinite)
        self.reset()
        return outcome

    def _remembered(self) -> dict[str, Any]:
        with self._lock:
            sums = self._arrays.on_host().items()
            given = zip(sums, self._given, strict=True)
            return {"count": self._count, "sum": {name: own for (name, own), has in given if has}}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("Accumulator", saved)
        count = opened.count("count", self._every)
        sums = opened.arrays("sum", self._arrays.by_name, some=True)
        if sums and not count:
            raise CheckpointError("Accumulator: there are sums, and count is 0")

        def write() -> None:
            with self._lock, Deferred():
                self._arrays.take_saved(sums)
                self._given = [leaf.name in sums for leaf in self._arrays.leaves]
                self._count = count

        return write

    def __repr__(self) -> str:
        return f"<Accumulator({self._count} of {self._every}) of {self._opt!r}>"


def _scaled(part: Array, scale: Any) -> Array:
    """Return a part times a number, or times what stands on its device, in the part's dtype."""
    if isinstance(scale, float):
        return part if scale == 1.0 else part * scale
    product: Array = part * scale.astype(real_dtype(part.dtype), copy=False)
    return product
