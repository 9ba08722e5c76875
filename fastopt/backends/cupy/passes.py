"""Passes on the device: what they sum, the scalars that are made of it, and what is remembered.

Nothing here waits for the device, but for ``fetch``; all memory stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends.cupy import control_source, pass_source
from fastopt.backends.cupy.launch import BucketLaunch, Kernels, Lookup
from fastopt.backends.cupy.shapes import SHAPES
from fastopt.backends.cupy.source import Addresses
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket
from fastopt.core.norms import tile_counts
from fastopt.core.passes import Derived, Pass, derived_of, in_order


class BucketMemory(NamedTuple):
    """The memory of one bucket on the device, and what its passes are."""

    bucket: Bucket
    description: Derived
    derived: Array
    remembered: Array
    starts: Array
    sizes: Array


class Passes:
    """The passes of one optimizer's updates, and their memory; on the current device."""

    def __init__(
        self, kernels: Kernels, buckets: Sequence[Bucket], shared: Mapping[str, float]
    ) -> None:
        self._kernels = kernels
        self._cupy = kernels.cupy
        self._all = [self._memory_of(bucket) for bucket in buckets]
        self._names = tuple(shared)
        self._shared = self._zeros(len(shared))
        passes = [one for own in self._all for one in own.description.passes]
        made = [len(one.memory.scalars) for one in passes]
        counts = [len(one.sums.names) for one in passes if one.sums]
        self._made = self._zeros(max(made, default=0))
        self._never = self._cupy.asarray(np.full(1, control_source.NO_ROW, np.int64))
        tiles = sum(int(sum(tile_counts(p.size for p in b.parameters))) for b in buckets)
        most = max(counts, default=0) * tiles
        self._sums = self._zeros(most)

    def _zeros(self, size: int) -> Array:
        zeros: Array = self._cupy.zeros(max(size, 1))
        return zeros

    def _memory_of(self, bucket: Bucket) -> BucketMemory:
        sizes = np.array([parameter.size for parameter in bucket.parameters], np.int64)
        starts = np.concatenate([[0], np.cumsum(tile_counts(sizes.tolist()))]).astype(np.int64)
        description = derived_of(bucket.rule, bucket.spec)
        return BucketMemory(
            bucket,
            description,
            self._zeros(len(description.names) * len(sizes)),
            self._zeros(bucket.memory.size),
            self._cupy.asarray(starts),
            self._cupy.asarray(sizes),
        )

    def derived(self, number: int) -> Array:
        """Return the derived scalars of a bucket."""
        return self._all[number].derived

    # Memory ------------------------------------------------------------------------------------

    def upload(self, shared: Mapping[str, float]) -> None:
        """Write what is remembered: that of each array from its bucket, and of all together."""
        for own in self._all:
            if own.bucket.memory.size:
                own.remembered[...] = self._cupy.asarray(own.bucket.memory.reshape(-1))
        if self._names:
            values = np.array([shared[name] for name in self._names])
            self._shared[...] = self._cupy.asarray(values)

    def take_value(self, value: Any, made: Array) -> None:
        """Write what the step is handed where its memory finds it, if the step is made."""
        at = self._names.index("value")
        there = self._shared[at : at + 1]
        there[...] = self._cupy.where(made, value, there)

    def fetch(self) -> tuple[list[Array], dict[str, float]]:
        """Wait, and return what is remembered: of each bucket's arrays, and of all together."""
        self._cupy.cuda.Device(arrays.device(self._shared)).synchronize()
        found = [
            arrays.on_host(own.remembered)[: own.bucket.memory.size].reshape(
                own.bucket.memory.shape
            )
            for own in self._all
        ]
        values = arrays.on_host(self._shared).tolist()
        return found, dict(zip(self._names, values, strict=False))

    # A step ------------------------------------------------------------------------------------

    def run(
        self, works: Sequence[BucketLaunch], counts: Array, scale: Mapping[np.dtype[Any], Array]
    ) -> None:
        """Launch all passes of a step, by the row of the tables that was decided on.

        ``scale`` multiplies the gradients, in each dtype. Without any gradient the launches do
        nothing, and what they need is compiled.
        """
        for work in works:
            self._hand(work)
        for together in in_order([self._all[work.number].description for work in works]):
            parts = [(works[k], number, one) for k, number, one in together]
            if together[0][2].over_optimizer:
                self._over_optimizer(parts, counts, scale)
            else:
                for part in parts:
                    self._over_arrays(*part, counts, scale)

    def _hand(self, work: BucketLaunch) -> None:
        """Copy memory that is handed to the forms to where they find it."""
        own = self._all[work.number]
        for one in own.description.passes:
            names = one.memory.names
            columns = [
                (names.index(name), one.memory_columns.start + k)
                for k, name in enumerate(one.memory.handed)
            ]
            source = self._shared if one.over_optimizer else own.remembered
            self._spread(own, source, 0 if one.over_optimizer else len(names), columns)

    def _spread(
        self, own: BucketMemory, numbers: Array, stride: int, columns: Sequence[tuple[int, int]]
    ) -> None:
        if columns:
            width = len(own.description.names)
            kernel = self._kernels.of(pass_source.spread, width, tuple(columns))
            kernel(numbers, stride, own.derived, size=len(own.bucket.parameters))

    def _sum(
        self,
        parts: Sequence[tuple[BucketLaunch, int, Pass]],
        counts: Array,
        scale: Mapping[np.dtype[Any], Array],
    ) -> int:
        """Sum the tiles of a pass over some buckets; returns how many tiles these are."""
        first, tiles = 0, sum(work.kernel.tiles() for work, _, _ in parts)
        one = parts[0][2]
        if one.sums is None or not tiles:
            return tiles
        size = len(one.sums.names) * tiles
        full = all(len(w.lookups) == 1 and w.gradients.active is None for w, _, _ in parts)
        if not full:
            self._sums[:size] = 0
        for work, number, _ in parts:
            derived = self._all[work.number].derived
            for chosen, table, _ in work.lookups:
                table_arguments = (counts, scale[table.dtype], table)
                about = (derived, self._sums, first, tiles)
                work.kernel.sums_from_table(number, work.gradients, chosen, table_arguments, *about)
            first += work.kernel.tiles()
        return tiles

    def _over_arrays(
        self,
        work: BucketLaunch,
        number: int,
        one: Pass,
        counts: Array,
        scale: Mapping[np.dtype[Any], Array],
    ) -> None:
        own = self._all[work.number]
        tiles = self._sum([(work, number, one)], counts, scale)
        for lookup in work.lookups:
            rows = self._rows_for_memory(lookup)
            arguments = (own.starts, own.sizes, counts, rows, self._sums, tiles)
            about = (arguments, own.remembered, own.derived)
            work.kernel.follow(number, work.gradients, lookup.chosen, *about)

    def _over_optimizer(
        self,
        together: Sequence[tuple[BucketLaunch, int, Pass]],
        counts: Array,
        scale: Mapping[np.dtype[Any], Array],
    ) -> None:
        tiles = self._sum(together, counts, scale)
        there = [(work, number) for work, number, _ in together if work.there]
        work, number = there[0] if there else together[0][:2]
        bucket = self._all[work.number].bucket
        about = (bucket.rule, bucket.spec, number, Addresses())
        kernel = self._kernels.of(pass_source.follow, *about)
        size = float(sum(self._size(work) for work, _, _ in together))
        table = self._rows_for_memory(work.lookups[0]) if work.lookups else self._made
        leading = (size, 0, counts if there else self._never, table, self._sums, tiles)
        threads = SHAPES["follow"].threads
        kernel(*leading, self._shared, self._made, size=threads, block_size=threads)
        for work, _, one in together:
            columns = [(k, one.derived_columns.start + k) for k in range(len(one.memory.scalars))]
            self._spread(self._all[work.number], self._made, 0, columns)

    def _rows_for_memory(self, lookup: Lookup) -> Array:
        """Return the rows of what a memory is given; any array where a kernel reads none."""
        return self._made if lookup.for_memory is None else lookup.for_memory

    def _size(self, work: BucketLaunch) -> int:
        """Return how many numbers the gradients of a bucket have."""
        parameters = self._all[work.number].bucket.parameters
        pairs = zip(parameters, work.gradients.arrays, strict=True)
        return sum(parameter.size for parameter, grad in pairs if grad is not None)
