"""Gradients in one block of memory, for backward passes to write into."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import numpy as np

from fastopt.backends.interface import Backend
from fastopt.core import arrays
from fastopt.core.buckets import Bucket, OptimizerState

_ALIGNMENT = 256
"""Bytes: where the gradients of a bucket begin in the block, as its state does."""


class GradientBuffers:
    """Arrays like the parameters: same shape, dtype and order in memory, zeros at first.

    ``arrays`` are in the order of the tree's leaves; those of a bucket lie in the block as its
    state does in a row of the arena.
    """

    def __init__(self, state: OptimizerState, backend: Backend) -> None:
        self._leaves = state.tree.leaves
        made: list[Any] = [None] * len(self._leaves)
        sizes = [_nbytes(bucket) for bucket in state.buckets]
        like = self._leaves[0].array
        self.block: Any = backend.allocate(like, (1, sum(sizes)), np.dtype(np.uint8))[0]
        """All of it, in bytes."""
        with arrays.on_device_of(like):
            start = 0
            for bucket, size in zip(state.buckets, sizes, strict=True):
                row = self.block[start : start + size].view(bucket.spec.stored)
                for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
                    made[position] = parameter.state_view(row)
                start += size
        self.arrays = made

    def are(self, grads: Sequence[Any]) -> bool:
        """Return whether gradients are these very arrays; ValueError where only some are.

        None stands for no gradient, as always.
        """
        if all(map(is_, grads, self.arrays)):
            return True
        pairs = list(zip(self._leaves, grads, self.arrays, strict=True))
        if not any(grad is buffer is not None for _, grad, buffer in pairs):
            return False
        for leaf, grad, buffer in pairs:
            if grad is not buffer and grad is not None:
                raise ValueError(
                    f"grads{leaf.place} is not its gradient buffer any more, while others are: it "
                    "was replaced, so what reads the block would miss it. Write into the buffer, "
                    f"grads{leaf.place}[...] = value, or compute into it, out=grads{leaf.place}; "
                    "opt.gradient_buffers() returns the buffers again"
                )
        return False


def _nbytes(bucket: Bucket) -> int:
    """Return the bytes that the gradients of a bucket take, up to where the next one's begin."""
    end = max(parameter.offset + parameter.size for parameter in bucket.parameters)
    return -(-end * bucket.spec.stored.itemsize // _ALIGNMENT) * _ALIGNMENT
