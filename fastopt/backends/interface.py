"""What a backend is to the engine: kernels that run one rule over the parameters of a bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Counts, Gradients, Remembered
from fastopt_kernels import AnyRule

if TYPE_CHECKING:
    from fastopt.backends.cupy.control import Control

COMMON_SCALARS = ("grad_scale", "l2", "decay", "tiny_signed", "tiny_positive")
"""What every update gets before its rule's own scalars, and every backend applies around a rule:

grad <- grad_scale * grad;  fragments at the gradient;  grad <- grad + l2 * param;
param <- param - decay * param;  rule;  fragments after it;
state whose magnitude is below tiny_signed or tiny_positive becomes 0.
"""


def tiny_names(rule: AnyRule) -> dict[str, str]:
    """Return for each state slot of a rule the common scalar below which it becomes 0."""
    return {slot: "tiny_signed" if slot in rule.signed else "tiny_positive" for slot in rule.state}


ScalarRows = Sequence[Sequence[float]] | Array
"""Rows of scalars; where parameters have members an array of runs of rows, one for each member."""

Fused = Callable[[list[Any], list[Any], Sequence[Sequence[Any]], float, float | None], bool]
"""A whole step of some buckets in one call that nothing interrupts.

``fused(params, grads, rows, scale, limit)`` is given the leaves of the whole tree, a row of scalars
for each bucket, followed by the inputs of its memories and the loss if it takes that (with members
scalars may be arrays of one for each, and there is no limit), the gradients' scale, and the norm
that they are scaled down to (infinite: it is only measured; None: it is not).
It looks at the arrays, measures, sums, updates arrays and memory, and adds 1 to all counts. It
returns False, with nothing changed, if any array is not as usual, a gradient is None, or the norm
asks for a closer look: it is not finite, so small that squares may have been lost, or so large that
they overflow.
"""


class Kernel(Protocol):
    """Runs the rule of one bucket, which it knows from its construction."""

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need (with ``norm`` the sum of squares too); step nothing."""

    def bind(self, params: list[Any], grads: list[Any]) -> Gradients | None:
        """Return a step's gradients if all arrays are as usual; None if one needs a closer look."""

    def squares(self, gradients: Gradients, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient) by tiles, as in ``core.norms``.

        Parameter after parameter; the tiles of a missing gradient are 0.
        """

    def update(
        self,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array | None = None,
    ) -> None:
        """Update every parameter that has a gradient.

        ``table`` holds rows of scalars (the common ones, then the rule's, then those of the spec);
        ``rows`` says which row each parameter takes (with members: which one is that of its first
        member), None that all take the first. The gradients are multiplied by ``scale`` too,
        rounded to the arithmetic's dtype. ``derived`` has a row of derived scalars for each
        parameter, in float64, if the update has any (``core.passes``).
        """

    def sums(
        self,
        number: int,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array,
    ) -> Array:
        """Return the sums of the update's pass of this number, by tiles, a row for each sum.

        Parameter after parameter; the tiles of a missing gradient are 0. Nothing is written. The
        arguments are those of ``update``; of the derived scalars those of earlier passes are there.
        """

    def of_rows(
        self,
        place: int,
        indices: Array,
        values: Array,
        scalars: Sequence[float],
        scale: float,
    ) -> Callable[[], None] | None:
        """Return what updates some rows of one parameter where they stand, and cannot fail.

        ``place`` is the parameter's among those of the bucket. ``indices`` and ``values`` are those
        of a ``RowGrad``, the latter of the shape of the parameter's rows, and nothing else is
        checked: any order, some perhaps several times. They must stay as they are until then.
        None: this kernel does not do that, or something asks for a closer look; ``RowGrad`` then
        says what is wrong, or the rows are updated as a parameter of their own.
        """


class Backend(Protocol):
    """Makes kernels; knows where state lives."""

    name: str
    bridges_gaps: bool
    """Whether kernels reach the elements of arrays with gaps; else they get flat copies."""
    alignment: int
    """Ranges of the state arena begin at multiples of this many elements."""

    def allocate(self, like: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return zeros, on the device of the array ``like``."""

    def kernel(self, bucket: Bucket, extents: Extents) -> Kernel:
        """Return the kernel of a bucket; ``extents`` is where all parameters lie.

        The rows of the bucket's arena are the rule's slots, the spec's masters and its bounds; the
        scalars are the common ones, those of the rule, and ``spec.scalars``.
        """

    def fused(
        self,
        kernels: Sequence[Kernel],
        buckets: Sequence[Bucket],
        counts: Counts,
        memory: Remembered,
    ) -> Fused | None:
        """Return what makes whole steps of these buckets; None if there is no such thing.

        ``kernels`` are theirs; ``counts`` is what is counted over all of them, and ``memory`` what
        the rule remembers of all arrays together.
        """

    def control(self, like: Array) -> Control | None:
        """Return what steps are decided with on the array's device; None if that is the host."""
