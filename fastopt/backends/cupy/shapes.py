"""How kernels are launched and compiled, all in one table; imports no CuPy."""

from __future__ import annotations

from typing import NamedTuple

from fastopt.core.dtypes import UpdateSpec
from fastopt.core.norms import LANES
from fastopt_kernels import Rule


class Shape(NamedTuple):
    """The shape of a kernel's launches: how many ``threads`` a block has.

    A thread takes as many elements at once as are ``load`` bytes of an exact slot of state (of
    gradients, where these are all that is read), and has so many ``registers`` at most; None: as
    many as the compiler likes.
    """

    threads: int
    load: int = 16
    registers: int | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options."""
        return () if self.registers is None else (f"--maxrregcount={self.registers}",)


SHAPES = {
    "update": Shape(256),
    "int8_update": Shape(256, registers=64),  # four blocks on a multiprocessor
    "int8_update_of_more": Shape(256),  # which would spill with 64
    # The order of sums, and with it their bits, is for so many threads.
    "squares": Shape(LANES),
    "pass": Shape(LANES),
    "follow": Shape(LANES),
    "decide": Shape(LANES),
    "decide_by_many": Shape(1_024, registers=64),  # with more it could not be launched
}
"""By kernel. Those with int8 state take two times 16 bytes, whatever ``load`` says."""


def shape_of(rule: Rule, spec: UpdateSpec) -> Shape:
    """Return the shape of an update."""
    if spec.state != "int8":
        return SHAPES["update"]
    kept = len(rule.state) + len(spec.masters) + len(spec.constants)
    more = kept > 3 or rule.heavy or bool(spec.fragments) or spec.stochastic
    return SHAPES["int8_update_of_more" if more else "int8_update"]
