"""Gradients that a step should not take: not finite, or with squares that the dtype cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import overflow
from fastopt.arrays import Array
from fastopt.buckets import Bucket
from fastopt.exponents import gradient_norms
from fastopt.group import Group
from fastopt.grouping import Grouping
from fastopt.pieces import largest


class Misfit(NamedTuple):
    """What is wrong with a gradient, beginning with its name, and what to do."""

    what: str
    advice: str


def nonfinite(groups: Sequence[Group]) -> Misfit:
    """Return where the first NaN or infinity in a step's gradients stands."""
    places = (group.nonfinite() for group in groups)
    return Misfit(
        f"{next(filter(None, places))} holds NaN or infinity",
        "Look at the loss and at what it divides by; on_nonfinite='skip' leaves such steps out.",
    )


class SquareCheck:
    """Looks for squares that overflow, or are lost, in a step that is being checked.

    ``grads`` are the trees that were given with their groupings, ``scale`` multiplies them, and
    ``clock`` counts the steps. Only groups that average squares are concerned, and of these only
    parameters without exponents.
    """

    def __init__(
        self,
        grads: Sequence[tuple[Grouping, Any]],
        groups: Sequence[Group],
        scale: float,
        clock: Array,
    ) -> None:
        self._grads = grads
        self._groups = groups
        self._scale = abs(scale)
        self._clock = clock

    def misfit(self, norm: float, lost: bool) -> Misfit | None:
        """Return the first misfit; ``lost`` asks for squares that are lost, too.

        ``norm`` is that of all gradients, multiplied by the scale.
        """
        return self._too_large(norm) or (self._lost() if lost else None)

    def _too_large(self, norm: float) -> Misfit | None:
        """Return the first gradient with a square that overflows."""
        for grouping, given, _, bucket in self._buckets() if norm >= overflow.SAFE else ():
            unit = overflow.unit(bucket.format)
            for path, size in self._largest(grouping, given, bucket, bucket.members()):
                if size * unit * self._scale >= overflow.OVERFLOWS:
                    square, is_ = "a square", "is"
                    if bucket.format.modulus:
                        square, is_ = "the square of a modulus", "may be"
                    what = f"is finite, but {square} in it {is_} too large"
                    return _misfit(path, size * self._scale, bucket, what)
        return None

    def _lost(self) -> Misfit | None:
        """Return the first gradient, not 0, whose squares underflow where that changes the step.

        They do if the share of the largest that is added to their average is below the normal
        numbers. It makes no difference where eps outweighs even the root of the smallest of these.
        """
        for grouping, given, group, bucket in self._buckets():
            least = math.sqrt(_range(bucket).smallest_normal)
            if group.floor * _range(bucket).eps >= least:
                continue
            least /= math.sqrt(group.share_of_new(int(self._clock[0])))
            sizes = [parameter.size for parameter in bucket.parameters]
            norms = gradient_norms(sizes, bucket.squares, bucket.real)
            small = [i for i in bucket.members() if 0.0 < norms[i] * self._scale < least * sizes[i]]
            for path, size in self._largest(grouping, given, bucket, small):
                if 0.0 < size * self._scale < least:
                    what = "is not 0, but all squares in it underflow"
                    return _misfit(path, size * self._scale, bucket, what)
        return None

    def _buckets(self) -> Iterator[tuple[Grouping, Any, Group, Bucket]]:
        for grouping, given in self._grads:
            for group in grouping.groups:
                if group in self._groups and group.averages_squares:
                    for bucket in group.buckets:
                        if bucket.exponents is None:
                            yield grouping, given, group, bucket

    def _largest(
        self, grouping: Grouping, given: Any, bucket: Bucket, members: Sequence[int]
    ) -> Iterator[tuple[str, float]]:
        """Yield the names of some gradients with their largest real number, before it is scaled."""
        leaves = grouping.match(given) if members else []
        for i in members:
            grad = leaves[bucket.positions[i]]
            sizes = [largest(grad.real), largest(grad.imag)] if _complex(grad) else [largest(grad)]
            path = grouping.grads_root + bucket.parameters[i].leaf.suffix
            yield path, float(bucket.real.type(max(sizes)))


def _complex(grad: Any) -> bool:
    return bool(grad.dtype.kind == "c")


def _range(bucket: Bucket) -> Any:
    return np.finfo(bucket.real)


def _misfit(path: str, size: float, bucket: Bucket, what: str) -> Misfit:
    return Misfit(
        f"{path} {what} for {bucket.real}; its largest element is {size:.3g}",
        "scale_safe=True takes such gradients as they are.",
    )
