"""SAM and ASAM: gradients are taken where the loss is worst nearby, and steps made from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, blocks
from fastopt.core.dtypes import wide
from fastopt.core.hyperparameters import Number
from fastopt.core.norms import norm_there
from fastopt.core.options import NonfinitePolicy
from fastopt.core.saved import Saved
from fastopt.core.signals import Deferred
from fastopt.engine.extra import NOTHING, Extra, extra_of
from fastopt.engine.policy import Outcome
from fastopt.optimizers.base import Around, Optimizer
from fastopt.wrappers.base import Wrapper

_LENGTH = Number(low=0.0)


class _Uphill(NamedTuple):
    """A parameter that ascends, its gradient, the sign that takes it uphill, and its bounds."""

    param: Array
    grad: Array
    sign: float
    limits: tuple[Any, ...]


class SAM(Wrapper):
    """Sharpness-aware minimization: the gradient of a step is that of a point uphill of it.

    ::

        q  <- p + rho * g / |g|                          |g|: norm over all arrays together
        the optimizer's step from p, with the gradients at q

        sam = fastopt.SAM(fastopt.SGD(params, lr=0.1, momentum=0.9))
        grads = gradients(params)
        with sam.ascent(grads):
            second = gradients(params)
        sam.step(second)

    Both gradients are those of the same batch. A step without an ascent before it is an ordinary
    step of the optimizer, as for programs that ascend in every k-th step alone.

    Args:
        opt: an optimizer, or what stands around one.
        rho: length of the way uphill, >= 0, in units of the parameter.

    Raises:
        ValueError, TypeError: for a rho out of range, and for what is no optimizer.

    Parameters whose gradient is None and those that are not trained stay where they are and count
    in no norm. Where all gradients are 0 nothing moves, and what is not finite in them goes into
    the parameters, and so into the second gradients, by which ``on_nonfinite`` goes. Uphill is
    against the gradient in groups with ``maximize``. The way is worked out in float64 and rounded
    to the parameter's dtype (half precision by way of float32); it ends at ``bounds``. How
    gradients are scaled makes no difference, so that those of a scaled loss will do.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization"
    (ICLR 2021), algorithm 1, as optax.contrib.sam 0.2.8 computes it with one ascent, for which
    gradients of 0 are a division by 0; pytorch_optimizer agrees to 1e-7, since it works out the
    norm in float32, and adds 1e-12 to it.
    """

    def __init__(self, opt: Optimizer | Wrapper, rho: float = 0.05) -> None:
        super().__init__(opt)
        if self._innermost._members is not None:
            raise ValueError(
                f"{type(self).__name__}: members have no norm together; leave out members="
                f"{self._innermost._members}"
            )
        self.rho = rho

    @property
    def rho(self) -> float:
        """Length of the way uphill; can be set."""
        return self._rho

    @rho.setter
    def rho(self, value: float) -> None:
        self._rho = _LENGTH(f"{type(self).__name__}: rho", value)

    @contextmanager
    def ascent(self, grads: Any) -> Iterator[None]:
        """Move the parameters uphill for the length of a ``with`` block, to take gradients there.

        ``grads`` are the gradients where the parameters are now, as ``step`` takes them; they are
        not written, and the second gradients may be written into the same arrays. At the end of
        the block, also if it raises, the parameters have the exact bits from before, whatever was
        written into them. A copy of them is kept until then. On a device nothing waits for it.

        Inside the block the optimizer makes no step, and neither saves nor loads: RuntimeError.
        So is an ascent in ``eval`` mode of an optimizer that has one.

        Raises ValueError, TypeError and BackendMismatchError for gradients as ``step`` does.
        Nothing has changed then.
        """
        inner = self._innermost
        mutex = inner._state_lock
        kept: list[tuple[Array, Array]] = []
        begun: list[bool] = []  # holds something until all is back
        try:
            with mutex.lock:
                if mutex.busy:
                    mutex.refuse()
                if inner._elsewhere:
                    raise RuntimeError(
                        f"{type(self).__name__}: the parameters are not where steps go on from; "
                        "call opt.train() before an ascent"
                    )
                begun.append(True)  # first, should an interrupt come in between
                mutex.busy = True
            with Deferred():
                uphill = self._uphill(grads)
                kept = [(one.param, arrays.copy_of(one.param)) for one in uphill]
                mutex.away = True
                if uphill:
                    self._ascend(uphill)
            yield
        finally:
            interrupt: KeyboardInterrupt | None = None
            while begun:
                try:
                    with Deferred():
                        for param, values in kept:
                            with arrays.on_device_of(param):
                                param[...] = values
                        mutex.away = mutex.busy = False
                        begun.clear()
                except KeyboardInterrupt as error:  # it waits until all is back
                    interrupt = error
            if interrupt is not None:
                raise interrupt

    def _uphill(self, grads: Any) -> list[_Uphill]:
        """Return what moves, after a look at all arrays."""
        engine, state = self._innermost._engine, self._innermost._state
        engine.follow_settings()
        now, given = state.tree.current(), state.tree.match(grads)
        bounds, found = state.bounds(), []
        for number in engine.trained():
            bucket = state.buckets[number]
            sign = -1.0 if state.groups[bucket.group]["maximize"] else 1.0
            pairs = zip(bucket.of_leaves(now), bucket.of_leaves(given), strict=True)
            every = zip(bucket.positions, bucket.parameters, pairs, strict=True)
            for position, parameter, (param, grad) in every:
                parameter.check_array(param)
                if grad is None:
                    continue
                path = f"grads{parameter.leaf.place}"
                grad = parameter.checked(grad, path)
                engine.extents.check_apart(grad, path)
                found.append(_Uphill(param, grad, sign, bounds.get(position, ())))
        return found

    def _ascend(self, uphill: list[_Uphill]) -> None:
        with np.errstate(all="ignore"):
            self._move(uphill, [one.grad for one in uphill])

    def _move(self, uphill: list[_Uphill], along: list[Array]) -> None:
        """Move parameters by rho along arrays that are as long as 1 together after this."""
        with arrays.on_device_of(along[0]):
            norm = norm_there(along)
            xp = arrays.namespace_of(along[0])
            length = xp.where(norm == 0.0, 1.0, norm)
        for (param, _, sign, limits), array in zip(uphill, along, strict=True):
            with arrays.on_device_of(param):
                for own, way in blocks(param, array):
                    step = _wide(way) / length
                    step *= sign * self._rho
                    step = self._scaled(step, own)
                    step += _wide(own)
                    # Half precision by way of float32, as CuPy rounds it.
                    step = step.astype(wide(own.dtype), copy=False)
                    own[...] = step.astype(own.dtype, copy=False)
                arrays.keep_within(param, limits)

    def _scaled(self, step: Array, param: Array) -> Array:
        """Return a part of the way in units of the parameter."""
        return step

    def step(
        self,
        grads: Any,
        *,
        grad_scale: Any = 1.0,
        params: Any = None,
        value: Any = None,
        hessian: Any = None,
    ) -> Outcome | None:
        """Make a step of the optimizer with the gradients that were taken uphill.

        Takes, returns and raises what the optimizer's ``step`` does.
        """
        self._go_over(params)
        return self._step(grads, grad_scale, None, extra=extra_of(value, hessian))

    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome | None:
        return self._opt._step(grads, grad_scale, on_nonfinite, around, extra)

    def _made_with(self) -> dict[str, Any]:
        return {"rho": self._rho}

    def _remembered(self) -> dict[str, Any]:
        return {}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        Saved(type(self).__name__, saved)
        return lambda: None

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._made_with().items())
        return f"<{type(self).__name__}({options}) of {self._opt!r}>"


class ASAM(SAM):
    """Adaptive SAM: each element's way uphill is in units of the element itself.

    ::

        s  <- (|p| + eta) * g
        q  <- p + rho * (|p| + eta) * s / |s|            |s|: norm over all arrays together
        the optimizer's step from p, with the gradients at q

    So the point does not depend on how parameters are scaled against each other. It is used as
    ``SAM`` is, and all that is said there holds.

    Args:
        opt: an optimizer, or what stands around one.
        rho: length of the way uphill, >= 0, as a share of the parameters: 10 times larger than for
            SAM.
        eta: what an element counts at least, >= 0, in units of the parameter; with 0 what is 0
            does not move.

    Raises:
        ValueError, TypeError: for numbers out of range, and for what is no optimizer.

    It takes memory for one more copy of the parameters, in float64.

    Source: Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning
    of Deep Neural Networks" (ICML 2021), algorithm 1. The authors' code adds eta, and scales, in
    parameters whose name holds "weight" alone; pytorch_optimizer's SAM with adaptive=True has
    eta = 0, and a norm in float32.
    """

    def __init__(self, opt: Optimizer | Wrapper, rho: float = 0.5, eta: float = 0.01) -> None:
        super().__init__(opt, rho)
        self.eta = eta

    @property
    def eta(self) -> float:
        """What an element counts at least; can be set."""
        return self._eta

    @eta.setter
    def eta(self, value: float) -> None:
        self._eta = _LENGTH(f"{type(self).__name__}: eta", value)

    def _ascend(self, uphill: list[_Uphill]) -> None:
        with np.errstate(all="ignore"):
            along = []
            for param, grad, *_ in uphill:
                with arrays.on_device_of(param):
                    xp = arrays.namespace_of(param)  # of 0-d arrays NumPy makes scalars
                    along.append(xp.asarray(self._scaled(_wide(grad), param)))
            self._move(uphill, along)

    def _scaled(self, step: Array, param: Array) -> Array:
        scale = abs(_wide(param))
        scale += self._eta
        return step * scale  # type: ignore[no-any-return]  # NumPy's

    def _made_with(self) -> dict[str, Any]:
        return {**super()._made_with(), "eta": self._eta}


def _wide(array: Array) -> Array:
    """Return a copy in float64, or complex128."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
