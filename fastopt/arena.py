"""Where the state of a bucket lives: in the precision of the arithmetic, or in codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import codes
from fastopt.arrays import Array
from fastopt.formats import Format


@dataclass(frozen=True, slots=True)
class Arena:
    """The state, a row for each slot, in which every parameter has its piece at its offset.

    ``exact`` holds in the dtype of the arithmetic the rule's slots, the masters and the limits;
    where the format's ``state`` is not "real" only masters and limits. The rule's slots are then in
    ``codes``, uint16 or uint8, and for 8 bits ``scales`` has a float32 for every block of 256.
    """

    exact: Array
    codes: Array | None = None
    scales: Array | None = None

    @classmethod
    def zeros(
        cls,
        make: Callable[[tuple[int, int], np.dtype[Any]], Array],
        slots: int,
        size: int,
        format: Format,
    ) -> Arena:
        """Return an arena for a rule of so many slots; ``make`` makes zeroed arrays."""
        more = len(format.masters) + len(format.limits)
        if format.state == "real":
            return cls(make((slots + more, size), format.real))
        exact = make((more, size), format.real)
        if format.state == "bfloat16":
            return cls(exact, make((slots, size), np.dtype(np.uint16)))
        scales = make((slots, size // codes.BLOCK), np.dtype(np.float32))
        return cls(exact, make((slots, size), np.dtype(np.uint8)), scales)

    def fill(self, slot: int, value: float, signed: bool) -> None:
        """Set one slot of the rule to a number, rounded to nearest, everywhere."""
        if self.codes is None:
            self.exact[slot] = value
            return
        values = np.full(codes.BLOCK, value, np.float32)
        if self.scales is None:
            self.codes[slot] = codes.to_bfloat16(values, codes.HALF).item(0)
            return
        code, scale = codes.to_int8(values, codes.HALF_OF_INT8, signed)
        self.codes[slot], self.scales[slot] = code.item(0), scale.item(0)

    @property
    def parts(self) -> tuple[Array, ...]:
        """The arrays that there are, in this order."""
        return tuple(part for part in (self.exact, self.codes, self.scales) if part is not None)

    @property
    def nbytes(self) -> int:
        """The bytes of all of it."""
        return sum(part.nbytes for part in self.parts)
