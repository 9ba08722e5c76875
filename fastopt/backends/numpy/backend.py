"""The NumPy backend: plain expressions over blocks that fit the cache, and state in codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastopt.backends.interface import scaled
from fastopt.core import quantization
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Arena, Bucket, Gradients, Parameter
from fastopt.core.norms import LANES, TILE, lane_sums
from fastopt.core.quantization import narrowed

# -------------------------------------------------------------------------------------------------
# State of a block in the NumPy backend: decoded before an update, rounded by chance after it.


class Draws:
    """The random bits of a block in one step.

    ``counters`` give of every parameter in the block the counter of its first number there, and how
    many there are; ``high`` and ``low`` are the halves of the step's key.
    """

    def __init__(self, counters: Sequence[tuple[int, int]], high: float, low: float) -> None:
        self._counters = counters
        self._key = int(high) << 16 | int(low)
        self._word = -1
        self._bits: Array | None = None

    def of(self, slot: int, size: int = 16) -> Array:
        """Return the draws of a slot, of so many bits; slots are asked for in their order."""
        word = slot // 2
        if self._bits is None or self._word != word:
            self._bits, self._word = self._mixed(word), word
        return self._bits >> (32 - size) if slot % 2 else self._bits & np.uint32((1 << size) - 1)

    def _mixed(self, word: int) -> Array:
        runs = [_count(first, size) for first, size in self._counters]
        bits = runs[0] if len(runs) == 1 else np.concatenate(runs)
        bits ^= np.uint32(quantization.word_key(self._key, word))
        quantization.mix_in_place(bits)
        return bits

    def rounded(self, values: Array, slot: int, dtype: np.dtype[Any]) -> Array:
        """Return float32 in a dtype of 16 bits, by the draws of a slot."""
        narrow = quantization.to_bfloat16 if dtype.name == "bfloat16" else quantization.to_float16
        return narrow(values, self.of(slot)).view(dtype)


class State:
    """The state of consecutive places in an arena, slot by slot."""

    __slots__ = ("_codes", "_exact", "_scales")

    def __init__(self, arena: Arena, first: int, size: int) -> None:
        place = slice(first, first + size)
        self._exact = tuple(slot[place] for slot in arena.exact)
        self._codes = () if arena.codes is None else tuple(slot[place] for slot in arena.codes)
        blocks = slice(first // quantization.BLOCK, -(-(first + size) // quantization.BLOCK))
        self._scales = () if arena.scales is None else tuple(s[blocks] for s in arena.scales)

    def load(self, signed: Sequence[bool]) -> tuple[Array, ...]:
        """Return the slots of the rule, which ``signed`` belongs to, and then the others."""
        if not self._codes:
            return self._exact
        if not self._scales:
            return (*map(quantization.from_bfloat16, self._codes), *self._exact)
        read = zip(self._codes, self._scales, signed, strict=True)
        return (*(_from_int8(*slot) for slot in read), *self._exact)

    def store(self, values: Sequence[Array], signed: Sequence[bool], draws: Draws) -> None:
        """Round the slots of the rule, if they are kept in codes."""
        for slot, target in enumerate(self._codes):
            if not self._scales:
                target[:] = quantization.to_bfloat16(values[slot], draws.of(slot))
                continue
            size, scales = target.size, self._scales[slot]
            whole = (
                _padded(values[slot], scales.size),
                _padded(draws.of(slot, quantization.CUT_OFF), scales.size),
            )
            code, scales[:] = quantization.to_int8(*whole, signed[slot])
            target[:] = code[:size]


def _from_int8(code: Array, scales: Array, signed: bool) -> Array:
    values = quantization.from_int8(_padded(code, scales.size), scales, signed)
    return values[: code.size]


def _padded(values: Array, blocks: int) -> Array:
    """Return values with zeros behind them, up to whole blocks."""
    missing = blocks * quantization.BLOCK - values.size
    return np.concatenate([values, np.zeros(missing, values.dtype)]) if missing else values


def _count(first: int, size: int) -> Array:
    """Return so many counters from the first on, modulo 2**32."""
    counters = np.arange(size, dtype=np.uint32)
    counters += np.uint32(first % 2**32)
    return counters


# -------------------------------------------------------------------------------------------------
# The NumPy backend: plain expressions over blocks that fit the cache.

BLOCK_BYTES = 524_288
"""Bytes of an array that are updated at a time. The temporaries of an expression then stay in the
cache: 3 times as fast on 20 million float32 as whole-array expressions. Of half the size it is 8 %
slower, for the calls that are made more often."""


class _Piece:
    """A block of one parameter and of its state, and where it lies in the gradient."""

    __slots__ = ("counters", "param", "place", "state")

    def __init__(self, parameter: Parameter, place: slice, arena: Arena) -> None:
        self.place = place
        self.param = parameter.flat[place]
        self.state = State(arena, parameter.offset + place.start, self.param.size)
        self.counters = ((place.start + parameter.stream, self.param.size),)


class _Span:
    """Small parameters that are gathered and updated together; neighbours in the arena."""

    __slots__ = ("bounds", "counters", "first", "last", "state")

    def __init__(self, members: range, parameters: Sequence[Parameter], arena: Arena) -> None:
        self.first, self.last = members.start, members.stop
        begin = parameters[self.first].offset
        ends = [parameters[i].offset + parameters[i].flat.size - begin for i in members]
        self.bounds = [0, *ends]
        self.state = State(arena, begin, ends[-1])
        self.counters = tuple((parameters[i].stream, parameters[i].size) for i in members)


class NumpyKernel:
    """Runs a rule's NumPy form. Small parameters are gathered, so that one call serves many."""

    fused = None

    def __init__(self, bucket: Bucket) -> None:
        rule, parameters, spec, arena = bucket.rule, bucket.parameters, bucket.spec, bucket.arena
        self._rule = rule
        self._spec = spec
        self._signed = [slot in rule.signed for slot in rule.state]
        self._params = [parameter.flat for parameter in parameters]
        self._block = BLOCK_BYTES // spec.real.itemsize
        self._pieces = [
            [
                _Piece(p, slice(start, min(start + self._block, p.flat.size)), arena)
                for start in range(0, p.flat.size, self._block)
            ]
            for p in parameters
        ]
        # In 8 bits there are no small parameters, and blocks of two never share a scale.
        runs = list(_runs(parameters, 0 if spec.state == "int8" else self._block))
        self._spans = [_Span(run, parameters, arena) for run in runs if len(run) > 1]
        self._alone = [run.start for run in runs if len(run) == 1]
        most = self._block if self._spans else 0
        self._param_scratch = np.empty(most, spec.stored)
        self._grad_scratch = np.empty(most, spec.real)

    def warm_up(self, norm: bool) -> None:
        """There is nothing to compile."""

    def bind(self, params: list[Any], grads: list[Any]) -> None:
        """Leave the looking to the caller."""

    def squares(self, gradients: Gradients, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient), by tiles."""
        sums = [np.zeros(0)]
        with np.errstate(all="ignore"):
            for pieces, grad in zip(self._pieces, gradients.arrays, strict=True):
                for piece in pieces:
                    size = piece.param.size
                    padded = np.zeros(-(-size // TILE) * TILE)
                    if grad is not None:
                        values = grad[piece.place]
                        padded[:size] = values
                        padded[:size] *= factor
                    padded *= padded
                    sums.append(lane_sums(padded.reshape(-1, TILE // LANES, LANES)))
        return np.concatenate(sums)

    def update(
        self,
        gradients: Gradients,
        table: Sequence[Sequence[float]],
        rows: Sequence[int] | None,
        scale: float,
    ) -> None:
        """Update every parameter that has a gradient."""
        if scale != 1.0:
            table = [scaled(row, scale, self._spec.real) for row in table]
        given = gradients.arrays
        alone = [*self._alone]
        # Other code's np.seterr(all="raise") must not stop a step in its middle.
        with np.errstate(all="ignore"):
            for span in self._spans:
                grads = given[span.first : span.last]
                if rows is None and all(grad is not None for grad in grads):
                    self._update_span(span, grads, table[0])
                else:
                    alone.extend(range(span.first, span.last))
            for member in alone:
                grad = given[member]
                if grad is not None:
                    row = table[rows[member] if rows else 0]
                    for piece in self._pieces[member]:
                        self._update_block(piece.param, grad[piece.place], piece, row)

    def _squares_of(self, grad: Array) -> Array:
        """Return the squares of a block's gradient, or of the moduli of complex numbers there."""
        square = grad * grad
        if self._spec.modulus:
            pairs = square.reshape(-1, 2)
            pairs[:] = pairs[:, :1] + pairs[:, 1:]
        return square

    def _keep_bounds(
        self, param: Array, state: tuple[Array, ...], lower: Array, upper: Array
    ) -> None:
        np.copyto(param, lower, where=param < lower)
        np.copyto(param, upper, where=param > upper)
        if self._spec.reset:
            active = (param == lower) | (param == upper)
            for values, signed in zip(state, self._signed, strict=True):
                if signed:
                    np.copyto(values, 0, where=active)

    def _update_span(self, span: _Span, grads: Sequence[Any], row: Sequence[float]) -> None:
        params, bounds = self._params[span.first : span.last], span.bounds
        param = self._param_scratch[: bounds[-1]]
        grad = self._grad_scratch[: bounds[-1]]
        np.concatenate(params, out=param)
        np.concatenate(grads, out=grad)
        self._update_block(param, grad, span, row)
        for target, start, stop in zip(params, bounds, bounds[1:], strict=False):
            target[:] = param[start:stop]

    def _update_block(
        self, stored: Array, grad: Array, block: _Piece | _Span, row: Sequence[float]
    ) -> None:
        """Update one block, in the precision of the arithmetic."""
        spec, of_rule = self._spec, len(self._rule.state)
        draws = None
        if spec.random_scalars:
            *row, high, low = row
            draws = Draws(block.counters, high, low)
        state = block.state.load(self._signed)
        param = stored if spec.exact else stored.astype(spec.real)
        if spec.master:
            master = state[of_rule]
            np.copyto(master, param, where=narrowed(master, stored.dtype) != stored)
            param = master
        limits = state[-2:] if spec.limits else ()
        if spec.limit_scalars:
            *row, lower, upper = row
            limits = (np.array(lower, spec.real), np.array(upper, spec.real))
        self._apply(param, grad.astype(spec.real, copy=False), state[:of_rule], row, limits)
        if draws is not None:
            block.state.store(state[:of_rule], self._signed, draws)
        if spec.stochastic and draws is not None:
            single = narrowed(param, np.dtype(np.float32))
            stored[...] = draws.rounded(single, of_rule, stored.dtype)
        elif not spec.exact:
            stored[...] = narrowed(param, stored.dtype)

    def _apply(
        self,
        param: Array,
        grad: Array,
        state: tuple[Array, ...],
        row: Sequence[float],
        limits: tuple[Array, ...],
    ) -> None:
        """Apply the rule, and what is common to all rules."""
        grad_scale, l2, decay, tiny_signed, tiny_positive, *scalars = row
        if grad_scale != 1.0:
            grad = grad * grad_scale
        if l2 != 0.0:
            grad = grad + l2 * param
        if decay != 0.0:
            param -= decay * param
        squares = [self._squares_of(grad)] if self._rule.squares else []
        self._rule.numpy(param, grad, *squares, *state, *scalars)
        if limits:
            self._keep_bounds(param, state, *limits)
        if tiny_signed != 0.0 or tiny_positive != 0.0:
            for values, signed in zip(state, self._signed, strict=True):
                _flush(values, signed, tiny_signed if signed else tiny_positive)


def _flush(values: Array, signed: bool, tiny: float) -> None:
    """Set to zero what is below ``tiny``; a comparison with NaN is false, so NaN stays."""
    small = (np.abs(values) if signed else values) < tiny
    if small.any():
        np.copyto(values, 0, where=small)


def _runs(parameters: Sequence[Parameter], most: int) -> Iterator[range]:
    """Cut the parameters into runs of at most ``most`` elements; a larger one stands alone."""
    ends = [parameter.offset + parameter.flat.size for parameter in parameters]
    start = 0
    while start < len(parameters):
        stop = start + 1
        while stop < len(parameters) and ends[stop] - parameters[start].offset <= most:
            stop += 1
        yield range(start, stop)
        start = stop


class NumpyBackend:
    """Updates NumPy arrays with NumPy alone."""

    name = "numpy"
    bridges_gaps = False
    alignment = 1

    def allocate(self, like: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return zeros in host memory."""
        return np.zeros(shape, dtype)

    def kernel(self, bucket: Bucket, extents: Extents) -> NumpyKernel:
        """Return the kernel of a bucket."""
        return NumpyKernel(bucket)

    def control(self, like: Array) -> None:
        """Leave decisions to the host."""


def backend() -> NumpyBackend:
    """Return this file's backend."""
    return NumpyBackend()
