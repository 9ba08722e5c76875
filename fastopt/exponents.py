"""The exponents of a bucket's parameters under ``scale_safe``, and the state that follows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt.arrays import Array
from fastopt.norms import SMALLER, TOO_SMALL, piece_counts
from fastopt.parameters import Parameter
from fastopt.pieces import Piece, largest
from fastopt.scaling import MOST, Span, chosen, window_of

EXPONENT = "exponent"
"""What a parameter's exponent is called in a state_dict."""


class Exponents:
    """An exponent for each parameter: ``now`` that of its state, ``coming`` that of a step.

    ``slots`` are each parameter's pieces of the state that has a unit, and ``units`` the power of
    the gradient's unit that it has, by slot.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        slots: Sequence[Mapping[str, Piece]],
        units: Mapping[str, int],
        real: np.dtype[Any],
    ) -> None:
        self.now = np.zeros(len(parameters), np.int64)
        self.coming = self.now.copy()
        self._parameters = parameters
        self._slots = slots
        self._units = units
        self._real = real
        self._window = window_of(real)

    def choose(
        self,
        members: Sequence[int],
        squares: Callable[[float], Array],
        scale: float,
        l2: float,
        span: Callable[[int], Span],
    ) -> None:
        """Choose the exponents of a step, of the parameters that are its members.

        ``squares`` is a driver's, ``scale`` what multiplies the gradients, ``l2`` what multiplies
        the parameter that is added to them, and ``span`` gives what is allowed for a parameter.
        """
        sizes = [parameter.size for parameter in self._parameters]
        norms = gradient_norms(sizes, squares, self._real)
        self.coming[:] = self.now
        for i in members:
            norm = norms[i] * abs(scale)
            if l2:
                norm = max(norm, l2 * largest(self._parameters[i].leaf.array))
            window, now = self._window, int(self.now[i])
            self.coming[i] = chosen(now, norm, span(i), window, lambda i=i: self._magnitude(i))  # type: ignore[misc]  # the default binds i

    def carry(self) -> None:
        """Carry the state over to the exponents that were chosen."""
        by = self.coming - self.now
        for i in np.flatnonzero(by).tolist():
            for slot, piece in self._slots[i].items():
                piece.rescale(self._units[slot] * int(by[i]))
        self.now[:] = self.coming

    def _magnitude(self, i: int) -> float:
        """Return the largest number of a parameter's state, in the gradient's unit."""
        found = ((self._units[slot], piece.largest()) for slot, piece in self._slots[i].items())
        return max((value ** (1.0 / power) for power, value in found), default=0.0)


def is_exponent(value: Any) -> bool:
    """Return whether a saved value can be an exponent."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and -MOST <= value <= MOST


def gradient_norms(
    sizes: Sequence[int], squares: Callable[[float], Array], real: np.dtype[Any]
) -> list[float]:
    """Return the norm of each parameter's gradient; 0 where there is none.

    ``squares`` is a driver's: the sums of squares of (factor * gradient) by pieces, in float64.
    That holds the squares of float32; those of float64 may have to be summed again, scaled.
    """
    found = _by_parameter(sizes, squares(1.0))
    units = np.ones(len(found))
    again = ((SMALLER, found == np.inf), (1.0 / SMALLER, found < TOO_SMALL))
    for factor, beyond in again if real.itemsize == 8 else ():
        if beyond.any():
            found[beyond] = _by_parameter(sizes, squares(factor))[beyond]
            units[beyond] = 1.0 / factor
    with np.errstate(all="ignore"):
        return (np.sqrt(found) * units).tolist()  # type: ignore[no-any-return]  # of float


def _by_parameter(sizes: Sequence[int], pieces: Array) -> Array:
    ends = np.cumsum(piece_counts(sizes)).tolist()
    return np.array([pieces[a:b].sum() for a, b in zip([0, *ends], ends, strict=False)], float)
