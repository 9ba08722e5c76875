"""Accumulator: sums the gradients of micro-batches, and steps an optimizer with their mean."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, blocks
from fastopt.core.dtypes import real_dtype
from fastopt.core.hyperparameters import Number, whole
from fastopt.core.options import NonfinitePolicy
from fastopt.core.saved import Saved
from fastopt.core.signals import Deferred
from fastopt.engine.extra import NOTHING, Extra
from fastopt.engine.policy import Outcome
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Around, Optimizer
from fastopt.wrappers.base import CompanionArrays, Wrapper

if TYPE_CHECKING:
    from fastopt.optimizers.explain import Explanation

_WEIGHT = Number(low=0.0)


class Accumulator(Wrapper):
    """Adds up the gradients of micro-batches, and steps the optimizer with their weighted mean.

    ::

        s <- s + (w / w1) * grad_scale * grad            every call; s = 0 at first
        W <- W + (w / w1)                                W = 0 at first
        the optimizer's step with s / W; s, W <- 0       every every-th call

        w is the micro-batch's weight, 1 unless add is given one; w1 the first above 0 of a step

    With losses that are means over micro-batches of n_i samples, this is the step of the whole
    batch for weights of n_i, up to rounding; micro-batches of equal size need none. Sums are kept
    in the parameter's dtype, those of float16 and bfloat16 in float32, whatever the dtype of the
    gradients; clipping and weight decay act once, on the mean. A gradient of None counts as zero,
    unless it is None in all micro-batches of a step: then it is None there too, and the parameter
    is left alone.

    A micro-batch with NaN or infinity in it (as it is added: times its factors, in the sum's dtype)
    meets the optimizer's ``on_nonfinite``. Under "skip" it is left out of s and W, and ``dropped``
    counts it; the step is that of the others, and is skipped if there are none. Under "raise"
    nothing is added, and FloatingPointError names the gradient. Under "propagate" it is added. So
    it is where a ``LossScaler`` makes the steps: the whole step is skipped, since the scale has to
    fall.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> x = np.zeros(2)
        >>> sums = fastopt.Accumulator(fastopt.SGD(x, lr=1.0), every=2)
        >>> sums.add(np.array([1.0, 0.0]))
        >>> sums.add(np.array([3.0, 2.0]))
        <Outcome: made>
        >>> x
        array([-2., -1.])

    Args:
        opt: the optimizer that makes the steps.
        every: micro-batches per step, >= 1; those that are dropped are among them.

    Raises:
        ValueError, TypeError: for arguments out of range.

    Its ``state_dict`` holds the sums; the optimizer's own is saved beside it. Loading another state
    or other weights into the optimizer leaves the sums: load them too, or call ``reset``.
    """

    def __init__(self, opt: Optimizer | Wrapper, every: int) -> None:
        super().__init__(opt)
        if self._innermost._takes_value:
            raise TypeError(
                f"Accumulator: {type(self._innermost).__name__} steps by the loss, and gradients "
                "alone are added up here; hand it the mean of both yourself"
            )
        if self._innermost._estimate is not None:
            raise TypeError(
                f"Accumulator: {type(self._innermost).__name__} takes estimates of the Hessian, "
                "and gradients alone are added up here; hand it the mean of both yourself"
            )
        self._every = whole("Accumulator: every", every, 1)
        self._arrays = CompanionArrays(self._tree)
        self._given = [False] * len(self._arrays.leaves)
        self._count = 0
        self._first_weight = 0.0  # the first one above 0 of this step; 0: there is none yet
        # What is in the sums, in first weights, and how many micro-batches are not: numbers, or
        # arrays of shape () on the device that has looked at the gradients.
        self._weight: Any = 0.0
        self._dropped: Any = 0

    @property
    def count(self) -> int:
        """How many micro-batches have been added since the optimizer's last step."""
        return self._count

    @property
    def dropped(self) -> int:
        """How many micro-batches were left out for NaN or infinity (``on_nonfinite="skip"``).

        Where a device looks at the gradients, reading this waits for it.
        """
        with self._lock, arrays.on_device_of(self._arrays.own[0]):
            return int(self._dropped)

    def add(
        self, grads: Any, weight: float = 1.0, *, grad_scale: Any = 1.0, params: Any = None
    ) -> Outcome | None:
        """Add a micro-batch's gradients; return the outcome if that made the optimizer step.

        None stands for a micro-batch that was only added. ``weight`` is a number >= 0, in any unit:
        only the ratios within a step count, and equal weights give the bits of none. One of 0
        leaves the micro-batch out, whatever is in it. ``grad_scale`` may be a 0-d CuPy array where
        the optimizer's may. ``params`` are the parameters as the program has them now, as for
        ``Optimizer.step``. Gradients are neither kept nor written. With CuPy arrays adding waits
        for the device under on_nonfinite="raise" alone.

        Raises what the optimizer's ``step`` does, and ValueError if all weights of a step are 0.
        Where the gradients or the weights are at fault nothing has been added; where the
        optimizer's step is, all sums are kept: then ``flush`` tries again, ``reset`` drops them,
        and this raises RuntimeError.
        """
        self._go_over(params)
        return self._add(grads, weight, grad_scale, None)

    def step(self, grads: Any, *, grad_scale: Any = 1.0, params: Any = None) -> Outcome | None:
        """Do what ``add`` does with a weight of 1, by the name that optimizers have for it."""
        return self.add(grads, grad_scale=grad_scale, params=params)

    def resize(self, name: str, array: Any, keep: Any = None) -> Self:
        """Do what the optimizer's ``resize`` does; RuntimeError in the middle of a step."""
        with self._lock:
            self._refuse_others("resize")
            return super().resize(name, array, keep)

    def add_param_group(self, group: Mapping[str, Any]) -> Self:
        """Do what the optimizer's method does; RuntimeError in the middle of a step."""
        with self._lock:
            self._refuse_others("add_param_group")
            return super().add_param_group(group)

    def _refuse_others(self, what: str) -> None:
        if self._count:
            raise RuntimeError(
                f"Accumulator: {what} after {self._count} micro-batches, whose sums would not fit; "
                "call flush() to step with them, or reset() to drop them, before"
            )

    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome | None:
        if extra is not NOTHING:
            raise TypeError(
                "Accumulator: gradients alone are added up, so it takes neither a value nor "
                "a hessian of a micro-batch"
            )
        return self._add(grads, 1.0, grad_scale, on_nonfinite, around)

    def _add(
        self,
        grads: Any,
        weight: float,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
    ) -> Outcome | None:
        with self._lock:
            self._follow_tree()
            self._refuse_to_skip_members(
                on_nonfinite, "a micro-batch that is not finite is dropped as a whole"
            )
            if self._count >= self._every:
                raise RuntimeError(
                    f"Accumulator: the step with the last {self._count} micro-batches has failed; "
                    "call flush() to try it again, or reset() to drop them"
                )
            weight = _WEIGHT("Accumulator: weight", weight)
            first = self._first_weight or weight
            completes = self._count + 1 == self._every
            if completes and not first:
                self._refuse_weights(self._every)
            policy = on_nonfinite or self.on_nonfinite
            scale = self._innermost._engine.checked_scale(grad_scale, policy)
            checked = self._checked(grads)
            share = weight / first if weight else 0.0
            factor = scale if share == 1.0 else scale * share
            # A scaler's own "skip" means the whole step, so that its scale falls.
            looks = on_nonfinite is None and policy != "propagate" and weight > 0.0
            finite = self._finite(checked, factor, policy == "raise") if looks else True
            with Deferred():
                self._sum(checked, factor, finite if weight else False)
                with arrays.on_device_of(self._arrays.own[0]):
                    if finite is True:
                        self._weight = self._weight + share
                    else:
                        self._weight = self._weight + finite * share
                        self._dropped = self._dropped + (1 - finite)
                self._first_weight = first
                self._count += 1
                return self._apply(on_nonfinite, around) if completes else None

    def flush(self) -> Outcome | None:
        """Step with the mean of what is there, and return the outcome; None if there is nothing.

        Under the optimizer's own ``on_nonfinite``, also where a ``LossScaler`` makes the steps.
        Raises what the optimizer's ``step`` does, and ValueError if all weights are 0.
        """
        with self._lock, Deferred():
            self._follow_tree()
            if self._count == 0:
                return None
            if not self._first_weight:
                self._refuse_weights(self._count)
            return self._apply(None)

    def _follow_tree(self) -> None:
        """Go over to the parameters that the optimizer has now."""
        if self._arrays.stand_beside(self._tree):
            return
        if self._count:
            raise RuntimeError(
                f"Accumulator: the parameters were resized or added to after {self._count} "
                "micro-batches whose sums do not fit them; call reset() to drop these, and do it "
                "between steps"
            )
        with Deferred():
            self._arrays = CompanionArrays(self._tree)
            self._given = [False] * len(self._arrays.leaves)

    def reset(self) -> None:
        """Forget what has been added since the optimizer's last step; ``dropped`` stays."""
        with self._lock, Deferred():
            self._given = [False] * len(self._given)
            self._count = 0
            self._weight = self._first_weight = 0.0

    def _refuse_weights(self, count: int) -> NoReturn:
        raise ValueError(
            f"Accumulator: the weights of all {count} micro-batches of this step are 0, so they "
            "have no mean; call reset() to begin with the next ones"
        )

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

    def _finite(self, grads: list[Array | None], factor: Any, refuses: bool) -> Any:
        """Return whether all that would be added is finite; on a device an array of shape ().

        Raise FloatingPointError for the first gradient that is not, if that is asked for.
        """
        found = []
        with np.errstate(all="ignore"):
            for leaf, grad, own in zip(self._arrays.leaves, grads, self._arrays.own, strict=True):
                if grad is None:
                    continue
                isfinite = arrays.namespace_of(own).isfinite
                with arrays.on_device_of(own):
                    for total, part in blocks(own, grad):
                        part = _scaled(part.astype(total.dtype, copy=False), factor)
                        both = (part.real, part.imag) if part.dtype.kind == "c" else (part,)
                        found += [(isfinite(reals).all(), leaf) for reals in both]
            with arrays.on_device_of(self._arrays.own[0]):
                finite: Any = reduce(operator.and_, (one for one, _ in found), True)
                if not (refuses or isinstance(finite, bool | np.bool_)):
                    return finite
                finite = bool(finite)
                if refuses and not finite:
                    place = next(leaf.place for one, leaf in found if not one)
                    raise FloatingPointError(
                        f"grads{place} holds NaN or infinity in micro-batch {self._count + 1} of "
                        f"{self._every}; it was not added. Look at the loss and at what it divides "
                        "by; on_nonfinite='skip' drops such micro-batches."
                    )
        return finite

    def _explain(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy | None, extra: Extra
    ) -> Explanation:
        """Explain the optimizer's step with the mean of what is there and these gradients.

        They are added to copies of the sums with the weight 1, as by ``step``, as if they were the
        last ones before the optimizer's step.
        """
        with self._lock:
            self._follow_tree()
            policy = on_nonfinite or self.on_nonfinite
            scale = self._innermost._engine.checked_scale(grad_scale, policy)
            checked = self._checked(grads)
            first = self._first_weight or 1.0
            factor = scale if first == 1.0 else scale / first
            looks = on_nonfinite is None and policy == "skip"
            adds = bool(self._finite(checked, factor, False)) if looks else True
            sums: list[Array | None] = []
            for own, has, grad in zip(self._arrays.own, self._given, checked, strict=True):
                total = arrays.copy_of(own) if has else None
                if grad is not None and total is None:
                    with arrays.on_device_of(own):
                        total = arrays.namespace_of(own).zeros_like(own)
                if grad is not None and total is not None and adds:
                    with arrays.on_device_of(own), np.errstate(all="ignore"):
                        for there, part in blocks(total, grad):
                            there += _scaled(part.astype(there.dtype, copy=False), factor)
                sums.append(total)
            with arrays.on_device_of(self._arrays.own[0]):
                weight = float(self._weight) + (1.0 / first if adds else 0.0)
            if not weight:  # the one that is left out is the only one
                sums, weight = checked, 1.0
        given = self._arrays.nest(sums)
        return self._opt._explain(given, 1.0 / weight, on_nonfinite, extra)

    def _sum(self, grads: list[Array | None], factor: Any, adds: Any) -> None:
        """Add gradients to the sums, or zeros; ``adds`` may stand on the device."""
        with np.errstate(all="ignore"):
            for k, (grad, own) in enumerate(zip(grads, self._arrays.own, strict=True)):
                if grad is None:
                    continue
                with arrays.on_device_of(own):
                    if adds is not True and not self._given[k]:
                        own[...] = 0
                    for total, part in blocks(own, grad) if adds is not False else ():
                        part = _scaled(part.astype(total.dtype, copy=False), factor)
                        if adds is True and self._given[k]:
                            total += part
                            continue
                        if adds is not True:
                            where = arrays.namespace_of(total).where
                            part = where(adds, total + part if self._given[k] else part, total)
                        total[...] = part
                self._given[k] = True

    def _apply(
        self, on_nonfinite: NonfinitePolicy | None, around: Around | None = None
    ) -> Outcome | None:
        """Make the optimizer's step with the mean."""

        def reset_after(make: Callable[[], Outcome]) -> Outcome:
            outcome = make() if around is None else around(make)
            self.reset()  # before hooks are called, of which one may raise
            return outcome

        weight, given = self._weight, zip(self._arrays.own, self._given, strict=True)
        sums = [total if has else None for total, has in given]
        # A number above 0 is what is in the sums for sure; else there may be nothing.
        if not isinstance(weight, float) or weight == 0.0:
            on_nonfinite = "skip"
            _spoil_unless(weight > 0.0, sums)
        with arrays.on_device_of(self._arrays.own[0]):
            scale = 1.0 / (weight + (weight == 0.0))
        return self._opt._step(self._arrays.nest(sums), scale, on_nonfinite, reset_after)

    def _made_with(self) -> dict[str, Any]:
        return {"every": self._every}

    def _remembered(self) -> dict[str, Any]:
        with self._lock:
            self._follow_tree()
            sums = self._arrays.on_host().items()
            given = zip(sums, self._given, strict=True)
            with arrays.on_device_of(self._arrays.own[0]):
                weight = float(self._weight)
            return {
                "count": self._count,
                "sum": {name: own for (name, own), has in given if has},
                "weight": weight,
                "first_weight": self._first_weight,
                "dropped": self.dropped,
            }

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("Accumulator", saved)
        if not self._arrays.stand_beside(self._tree):
            self.reset()  # what was there before is overwritten
            self._follow_tree()
        count = opened.count("count", self._every)
        sums = opened.arrays("sum", self._arrays.by_name, some=True)
        if sums and not count:
            raise CheckpointError("Accumulator: there are sums, and count is 0")
        # Older versions have no weights and drop nothing.
        older = {"weight": float(count), "first_weight": float(count > 0), "dropped": 0}
        opened = Saved("Accumulator", {**older, **saved})
        weight = opened.number("weight", _WEIGHT)
        first_weight = opened.number("first_weight", _WEIGHT)
        dropped = opened.count("dropped")

        def write() -> None:
            with self._lock, Deferred():
                self._arrays.take_saved(sums)
                self._given = [leaf.name in sums for leaf in self._arrays.leaves]
                self._count, self._dropped = count, dropped
                self._weight, self._first_weight = weight, first_weight

        return write

    def __repr__(self) -> str:
        return f"<Accumulator({self._count} of {self._every}) of {self._opt!r}>"


def _spoil_unless(good: Any, sums: list[Array | None]) -> None:
    """Put NaN in the place of the smallest sum unless there is something in it: for a skipped step.

    ``good`` may stand on the device.
    """
    there = [(own.size, k) for k, own in enumerate(sums) if own is not None and own.size]
    for _, k in sorted(there)[:1]:
        own: Any = sums[k]
        with arrays.on_device_of(own):
            sums[k] = arrays.namespace_of(own).where(good, own, np.nan)


def _scaled(part: Array, scale: Any) -> Array:
    """Return a part times a number, or times what stands on its device, in the part's dtype."""
    if isinstance(scale, float):
        return part if scale == 1.0 else part * scale
    product: Array = part * scale.astype(real_dtype(part.dtype), copy=False)
    return product
