"""A stand-in for CuPy with what rules on whole arrays compute with: products, sums, comparisons.

A result has its memory at once, as on a device. While a stream is captured what fills it goes into
the graph; results may then be allocated only ``within_pool``, as under a memory pool of the graph's
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from helpers.cuda import fake_cupy
from helpers.cuda.fake_cupy import FakeCupy


def _computed(compute: Callable[..., Any], *operands: Any) -> WholeArray:
    """Return an array that work on the device fills."""

    def now() -> Any:
        hosts = [one._host if isinstance(one, fake_cupy.ndarray) else one for one in operands]
        with np.errstate(all="ignore"):
            return np.asarray(compute(*hosts))

    for one in operands:
        if isinstance(one, np.ndarray):
            raise TypeError("Unsupported type numpy.ndarray")
        if isinstance(one, fake_cupy.ndarray):
            one._check_device()
    made = WholeArray(fake_cupy._aligned(now()))

    def fill() -> None:
        made._host[...] = now()

    fake_cupy._do(fill)
    return made


def _of_two(compute: Callable[[Any, Any], Any], turned: bool = False) -> Any:
    def method(self: WholeArray, other: Any) -> WholeArray:
        pair = (other, self) if turned else (self, other)
        return _computed(compute, *pair)

    return method


class WholeArray(fake_cupy.ndarray):
    """An array whose operators make new arrays."""

    __module__ = "cupy"
    __slots__ = ()

    __add__, __radd__ = _of_two(np.add), _of_two(np.add, turned=True)
    __sub__, __rsub__ = _of_two(np.subtract), _of_two(np.subtract, turned=True)
    __mul__, __rmul__ = _of_two(np.multiply), _of_two(np.multiply, turned=True)
    __truediv__, __rtruediv__ = _of_two(np.divide), _of_two(np.divide, turned=True)
    __matmul__ = _of_two(np.matmul)
    __lt__, __gt__ = _of_two(np.less), _of_two(np.greater)
    __ge__, __le__ = _of_two(np.greater_equal), _of_two(np.less_equal)
    __eq__, __ne__ = _of_two(np.equal), _of_two(np.not_equal)
    __or__, __and__ = _of_two(np.bitwise_or), _of_two(np.bitwise_and)
    __hash__ = None  # type: ignore[assignment]  # as CuPy's

    def __abs__(self) -> WholeArray:
        return _computed(np.abs, self)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> WholeArray:
        if not copy and self.dtype == dtype:
            return self
        return _computed(lambda host: host.astype(dtype), self)

    def swapaxes(self, one: int, two: int) -> Any:
        return self._view(self._host.swapaxes(one, two))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, fake_cupy.ndarray):
            return _computed(lambda host, chosen: host[chosen], self, index)
        return super().__getitem__(index)


class WholeArrays(FakeCupy):
    """The module ``cupy``."""

    def __init__(self) -> None:
        super().__init__()
        self.ndarray = WholeArray

    def stack(self, parts: Sequence[Any]) -> Any:
        return _computed(lambda *hosts: np.stack(hosts), *parts)

    def where(self, when: Any, one: Any, two: Any) -> Any:
        return _computed(np.where, when, one, two)

    def maximum(self, one: Any, two: Any) -> Any:
        return _computed(np.maximum, one, two)

    def sqrt(self, one: Any) -> Any:
        return _computed(np.sqrt, one)

    def sum(self, one: Any, axis: Any, keepdims: bool) -> Any:
        return _computed(lambda host: host.sum(axis=axis, keepdims=keepdims), one)


@contextmanager
def within_pool(patch: Any) -> Iterator[None]:
    """Let arrays be allocated while a stream is captured."""
    with patch.context() as own:
        own.setattr(
            fake_cupy,
            "_refuse_in_capture",
            lambda what: None if what == "an allocation" else _refuse(what),
        )
        yield


_refuse = fake_cupy._refuse_in_capture
