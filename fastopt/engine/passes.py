"""The passes of updates that only read, decided on the host: sums, and the scalars made of them.

They belong to the preparation of a step: they come after the verdict and write nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fastopt.backends.interface import Kernel
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, Gradients
from fastopt.core.norms import tile_counts, total_of
from fastopt.core.passes import Derived, Pass, derived_of, in_order
from fastopt.engine.scalars import Plan

Sums = Mapping[str, float]


class OtherParts(Protocol):
    """What is known of arrays of which a bucket has parts alone, as ranks share them out."""

    def tiles(self, bucket: Bucket, own: Array) -> Array:
        """Return the sums of all tiles of a bucket's arrays, given those of the parts here.

        ``own`` has a row for each sum, and so has what is returned.
        """

    def sizes(self, bucket: Bucket) -> Sequence[int]:
        """Return how many real numbers the arrays have as a whole."""


class Update(NamedTuple):
    """The update of one bucket that the passes are for; ``scale`` multiplies its gradients."""

    bucket: Bucket
    kernel: Kernel
    gradients: Gradients
    plan: Plan
    scale: float
    others: OtherParts | None = None
    """Where the other parts of the arrays are; None: there are none."""

    @property
    def sizes(self) -> Sequence[int]:
        """How many real numbers the arrays have."""
        if self.others is not None:
            return self.others.sizes(self.bucket)
        return [parameter.size for parameter in self.bucket.parameters]

    @property
    def active(self) -> Sequence[int]:
        """The parameters that have a gradient."""
        found = self.gradients.active
        return range(len(self.bucket.parameters)) if found is None else found


class PassResult(NamedTuple):
    """What the passes of one update come to: its derived scalars and its coming memory.

    Both have a row for each parameter; there are none for an update without passes.
    """

    scalars: Array | None
    memory: Array | None


def run(
    updates: Sequence[Update], memory: Mapping[str, float]
) -> tuple[list[PassResult], Mapping[str, float]]:
    """Run all passes of all updates of a step.

    ``memory`` is what the rule remembers of all arrays together. Returns what was found for each
    update, and what this memory becomes.
    """
    descriptions = [derived_of(update.bucket.rule, update.bucket.spec) for update in updates]
    found = [_begin(*pair, memory) for pair in zip(updates, descriptions, strict=True)]
    for together in in_order(descriptions):
        parts = [(updates[k], n, one, found[k]) for k, n, one in together if updates[k].active]
        if together[0][2].over_optimizer:
            memory = _over_optimizer(parts, memory)
        else:
            for part in parts:
                _over_arrays(*part)
    return found, memory


def _begin(update: Update, derived: Derived, memory: Mapping[str, float]) -> PassResult:
    """Return the derived scalars before any pass: memory that is handed on stands there."""
    if not derived.passes:
        return PassResult(None, None)
    bucket = update.bucket
    scalars = np.zeros((len(bucket.parameters), len(derived.names)))
    for one in derived.passes:
        for column, name in enumerate(one.memory.handed, one.memory_columns.start):
            own = one.memory.names.index(name)
            scalars[:, column] = memory[name] if one.over_optimizer else bucket.memory[:, own]
    return PassResult(scalars, bucket.memory.copy())


def _tiles(update: Update, number: int, one: Pass, found: PassResult) -> Array:
    """Return the sums of a pass by tiles, a row for each sum."""
    if one.sums is None:
        return np.zeros((0, 0))
    plan = update.plan
    assert found.scalars is not None
    own = update.kernel.sums(
        number, update.gradients, plan.table, plan.row_numbers, update.scale, found.scalars
    )
    return own if update.others is None else update.others.tiles(update.bucket, own)


def _over_arrays(update: Update, number: int, one: Pass, found: PassResult) -> None:
    """Make the scalars of a pass over each array, and its coming memory."""
    assert found.scalars is not None
    assert found.memory is not None
    tiles = _tiles(update, number, one, found)
    sizes = update.sizes
    ends = np.cumsum(tile_counts(sizes)).tolist()
    names = one.memory.names  # of the rule's own pass: fragments remember nothing
    for index in update.active:
        if not sizes[index]:  # there is nothing to update
            continue
        own = [row[ends[index - 1] if index else 0 : ends[index]] for row in tiles]
        sums = _named(one, own, sizes[index])
        past = dict(zip(names, found.memory[index].tolist(), strict=True)) if names else {}
        coming, made = one.memory.host(_inputs(one, update, index), past, sums)
        if names:
            found.memory[index] = [coming[name] for name in names]
        found.scalars[index, one.derived_columns] = [made[name] for name in one.memory.scalars]


def _over_optimizer(
    together: Sequence[tuple[Update, int, Pass, PassResult]], memory: Mapping[str, float]
) -> Mapping[str, float]:
    """Make the scalars of a pass over all arrays, and return the coming memory."""
    if not together:
        return memory
    tiles = [_tiles(update, number, one, found) for update, number, one, found in together]
    first, _, one, _ = together[0]
    size = sum(u.sizes[i] for u, _, _, _ in together for i in u.active)
    columns = [np.concatenate(rows) for rows in zip(*tiles, strict=True)]
    if not size:
        return memory
    given = _inputs(one, first, first.active[0])
    coming, made = one.memory.host(given, memory, _named(one, columns, size))
    for _, _, each, found in together:
        assert found.scalars is not None
        found.scalars[:, each.derived_columns] = [made[name] for name in one.memory.scalars]
    return coming


def _inputs(one: Pass, update: Update, index: int) -> dict[str, float]:
    names, plan = one.memory.inputs, update.plan
    if not names:
        return {}
    row = plan.for_memory[plan.row_of(index)]
    return dict(zip(names, row[one.input_columns], strict=True))


def _named(one: Pass, tiles: Sequence[Array], size: int) -> Sums:
    """Return sums by name, of tiles that are added in the order of ``core.norms``."""
    if one.sums is None:
        return {}
    totals = (total_of([row]) for row in tiles)
    return {**dict(zip(one.sums.names, totals, strict=True)), "size": float(size)}
