"""The NumPy backend: plain expressions over blocks that fit the cache, and state in codes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, assert_never, cast

import numpy as np

from fastopt.backends.interface import COMMON_SCALARS, ScalarRows
from fastopt.backends.numpy.fused import FusedStep, fused, gathered
from fastopt.core import quantization
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Arena, Bucket, Counts, Gradients, Parameter, Remembered
from fastopt.core.denormals import flush
from fastopt.core.dtypes import UpdateSpec
from fastopt.core.norms import LANES, TILE, lane_sums, squares_here, tile_counts
from fastopt.core.passes import Pass, derived_of
from fastopt.core.quantization import current, narrowed
from fastopt_kernels import AnyRule, Rule
from fastopt_kernels.around import Fragment

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


class ChunkState:
    """The state of consecutive places in an arena, slot by slot, however it is stored."""

    __slots__ = ("_codes", "_kind", "_numbers", "_scales")

    def __init__(self, arena: Arena, first: int, size: int) -> None:
        place = slice(first, first + size)
        self._kind = arena.spec.state
        self._numbers = tuple(slot[place] for slot in arena.numbers)
        self._codes = () if arena.codes is None else tuple(slot[place] for slot in arena.codes)
        blocks = slice(first // quantization.BLOCK, -(-(first + size) // quantization.BLOCK))
        self._scales = () if arena.scales is None else tuple(s[blocks] for s in arena.scales)

    def load(self, signed: Sequence[bool]) -> tuple[Array, ...]:
        """Return the slots of the rule, which ``signed`` belongs to, and then the others."""
        if self._kind == "real":
            return self._numbers
        if self._kind == "bfloat16":
            return (*map(quantization.from_bfloat16, self._codes), *self._numbers)
        if self._kind == "int8":
            read = zip(self._codes, self._scales, signed, strict=True)
            return (*(_from_int8(*slot) for slot in read), *self._numbers)
        assert_never(self._kind)

    def store(self, values: Sequence[Array], signed: Sequence[bool], draws: Draws) -> None:
        """Round the slots of the rule, if they are kept in codes."""
        if self._kind == "real":
            return
        for slot, target in enumerate(self._codes):
            if self._kind == "bfloat16":
                target[:] = quantization.to_bfloat16(values[slot], draws.of(slot))
            elif self._kind == "int8":
                size, scales = target.size, self._scales[slot]
                whole = (
                    _padded(values[slot], scales.size),
                    _padded(draws.of(slot, quantization.CUT_OFF), scales.size),
                )
                code, scales[:] = quantization.to_int8(*whole, signed[slot])
                target[:] = code[:size]
            else:
                assert_never(self._kind)


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

CHUNK_BYTES = 524_288
"""Bytes of an array that are updated at a time. The temporaries of an expression then stay in the
cache: 3 times as fast on 20 million float32 as whole-array expressions. Of half the size it is 8 %
slower, for the calls that are made more often."""


class _Chunk:
    """A block of one parameter and of its state, and where it lies in the gradient."""

    __slots__ = ("counters", "param", "place", "runs", "state")

    def __init__(self, parameter: Parameter, place: slice, arena: Arena) -> None:
        self.place = place
        self.runs = ((parameter, place.start, place.stop),)
        self.param = parameter.flat[place]
        self.state = ChunkState(arena, parameter.offset + place.start, self.param.size)
        self.counters = ((place.start + parameter.stream, self.param.size),)


class _Span:
    """Small parameters that are gathered and updated together; neighbours in the arena."""

    __slots__ = ("bounds", "counters", "first", "last", "runs", "state")

    def __init__(self, indices: range, parameters: Sequence[Parameter], arena: Arena) -> None:
        self.first, self.last = indices.start, indices.stop
        begin = parameters[self.first].offset
        ends = [parameters[i].offset + parameters[i].flat.size - begin for i in indices]
        self.bounds = [0, *ends]
        self.state = ChunkState(arena, begin, ends[-1])
        self.counters = tuple((parameters[i].stream, parameters[i].size) for i in indices)
        self.runs = tuple((parameters[i], 0, parameters[i].size) for i in indices)


def _member_of_each(block: _Chunk | _Span) -> Array:
    """Return the member of each element of a block."""
    found = []
    for parameter, start, stop in block.runs:
        assert parameter.member is not None
        divisor, modulus = parameter.member
        found.append(np.arange(start, stop) // divisor % modulus)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _columns(table: Array, real: np.dtype[Any]) -> list[float | Array]:
    """Return the scalars of members, rounded, as columns: a float where all have the same."""
    rounded = [column.astype(real) for column in table.T]
    return [
        column if (column != column[0]).any() else float(table[0, k])
        for k, column in enumerate(rounded)
    ]


class NumpyKernel:
    """Runs a rule's NumPy form. Small parameters are gathered, so that one call serves many."""

    def __init__(self, bucket: Bucket, extents: Extents) -> None:
        rule, parameters, spec, arena = bucket.rule, bucket.parameters, bucket.spec, bucket.arena
        self.extents = extents
        self._rule = rule
        self._spec = spec
        self._elementwise = cast(Rule, rule)  # no other rule is run here
        self._around = _Around(rule, spec)
        self._signed = [slot in rule.signed for slot in rule.state]
        self._resets = [slot in rule.reset for slot in rule.state]
        self._kept = [True, *(slot in rule.kept for slot in rule.state)]
        """Whether fragments on all act on the parameter, and on each slot of state."""
        self._members = bucket.members or 1
        numbers = enumerate((*COMMON_SCALARS, *rule.scalars, *spec.fragment_scalars))
        self._rates = [k for k, name in numbers if name in ("decay", *spec.scaled)]
        """What factors of elements multiply in a row of scalars."""
        self._params = [parameter.flat for parameter in parameters]
        self._chunk = CHUNK_BYTES // spec.real.itemsize
        self._parameters, self._arena = parameters, arena

    # What follows is made when it is needed first: prepared steps (fused.py) do without.

    @cached_property
    def _chunks(self) -> list[list[_Chunk]]:
        """The blocks of each parameter."""
        return [
            [
                _Chunk(p, slice(start, min(start + self._chunk, p.flat.size)), self._arena)
                for start in range(0, p.flat.size, self._chunk)
            ]
            for p in self._parameters
        ]

    @cached_property
    def _runs(self) -> tuple[list[_Span], list[int]]:
        """The small parameters that can be gathered, and the numbers of all others."""
        # In 8 bits there are no small parameters, and blocks of two never share a scale.
        most = 0 if self._spec.state == "int8" else self._chunk
        runs = list(gathered(self._parameters, most, most))
        spans = [_Span(run, self._parameters, self._arena) for run in runs if len(run) > 1]
        return spans, [run.start for run in runs if len(run) == 1]

    @cached_property
    def _scratch(self) -> tuple[Array, Array]:
        """Memory in which the parameters and gradients of a span are gathered."""
        most = max((span.bounds[-1] for span in self._runs[0]), default=0)
        return np.empty(most, self._spec.stored), np.empty(most, self._spec.real)

    def warm_up(self, norm: bool) -> None:
        """There is nothing to compile."""

    def bind(self, params: list[Any], grads: list[Any]) -> None:
        """Leave the looking to the caller; get the memory of an update, which must not fail."""
        _ = self._chunks, self._runs, self._scratch

    def squares(self, gradients: Gradients, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient), by tiles."""
        there = [grad is not None for grad in gradients.arrays]
        with np.errstate(all="ignore"):
            sums = squares_here([grad for grad in gradients.arrays if grad is not None], factor)
        if all(there):
            return sums
        counts = tile_counts(param.size for param in self._params)
        found = np.zeros(sum(counts))
        found[np.repeat(there, counts)] = sums
        return found

    def of_rows(
        self,
        place: int,
        indices: Array,
        values: Array,
        scalars: Sequence[float],
        scale: float,
    ) -> None:
        """Return None: rows are updated as a parameter of their own."""

    def sums(
        self,
        number: int,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array,
    ) -> Array:
        """Return the sums of a pass, by tiles."""
        table = [_scaled(row, scale, self._spec.real) for row in table]
        one = derived_of(self._rule, self._spec).passes[number]
        assert one.sums is not None
        found: list[list[Array]] = [[] for _ in one.sums.names]
        with np.errstate(all="ignore"):
            for index, chunks in enumerate(self._chunks):
                grad, row = gradients.arrays[index], table[rows[index] if rows else 0]
                for chunk in chunks:
                    terms: Sequence[Any] = [None] * len(found)
                    if grad is not None:
                        values = grad[chunk.place]
                        terms = self._terms_of(one, chunk, values, row, self._own(derived, index))
                    for name, term, sums in zip(one.sums.names, terms, found, strict=True):
                        squared = name in one.sums.squared
                        sums.append(_tile_sums(chunk.param.size, term, squared=squared))
        return np.array([np.concatenate([np.zeros(0), *sums]) for sums in found])

    def _own(self, derived: Array, index: int) -> Sequence[Any]:
        """Return the derived scalars of one parameter, rounded to the arithmetic's dtype."""
        own: list[float] = derived[index].astype(self._spec.real).tolist()
        return own

    def update(
        self,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array | None = None,
    ) -> None:
        """Update every parameter that has a gradient; ``derived`` is None for rules without sums.

        Small parameters lie side by side in the arena: a run of them that have gradients and take
        the same row of scalars is a span, and gathered. All others are updated by themselves.
        """
        if self._spec.members:
            table, rows = self._by_member(cast(Array, table), rows)
        if scale != 1.0:
            table = [_scaled(row, scale, self._spec.real) for row in table]
        arrays_of = gradients.arrays
        spans, others = self._runs
        alone = [*others]
        # Other code's np.seterr(all="raise") must not stop a step in its middle.
        with np.errstate(all="ignore"):
            for span in spans:
                grads = arrays_of[span.first : span.last]
                together = rows is None and derived is None
                if together and all(grad is not None for grad in grads):
                    self._update_span(span, grads, table[0])
                else:
                    alone.extend(range(span.first, span.last))
            for index in alone:
                grad = arrays_of[index]
                if grad is not None:
                    row = table[rows[index] if rows else 0]
                    own = () if derived is None else self._own(derived, index)
                    for chunk in self._chunks[index]:
                        self._update_chunk(chunk.param, grad[chunk.place], chunk, row, own)

    def _by_member(self, table: Array, rows: Sequence[int] | None) -> tuple[Any, Any]:
        """Return a table with a row of columns for each run of members, and the rows to take."""
        members = self._members
        with np.errstate(all="ignore"):
            found = [
                _columns(table[first : first + members], self._spec.real)
                for first in range(0, len(table), members)
            ]
        return found, None if rows is None else [row // members for row in rows]

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
            for values, resets in zip(state, self._resets, strict=True):
                if resets:
                    np.copyto(values, 0, where=active)

    def _update_span(self, span: _Span, grads: Sequence[Any], row: Sequence[float]) -> None:
        params, bounds = self._params[span.first : span.last], span.bounds
        param, grad = (memory[: bounds[-1]] for memory in self._scratch)
        np.concatenate(params, out=param)
        np.concatenate(grads, out=grad)
        self._update_chunk(param, grad, span, row)
        for target, start, stop in zip(params, bounds, bounds[1:], strict=False):
            target[:] = param[start:stop]

    def _update_chunk(
        self,
        stored: Array,
        grad: Array,
        block: _Chunk | _Span,
        row: Sequence[Any],
        derived: Sequence[float] = (),
    ) -> None:
        """Update one block: load state, convert, ``_apply``, convert back, store.

        For a float32 rule without fragments, bounds and codes only three lines do anything:
        ``load`` returns views of the state, ``_apply`` changes ``stored`` and them in place, and
        ``grad`` is used as it is. ``spec.members``, ``random_scalars``, ``master``, ``limits``,
        ``stochastic`` and ``computes_as_stored`` say which of the other lines an option or a dtype
        needs.
        ``derived`` is empty for updates without sums.
        """
        spec, of_rule = self._spec, len(self._rule.state)
        if spec.members and any(isinstance(value, np.ndarray) for value in row):
            own = _member_of_each(block)
            row = [value[own] if isinstance(value, np.ndarray) else value for value in row]
        draws = None
        if spec.random_scalars:
            *row, high, low = row
            draws = Draws(block.counters, high, low)
        state = block.state.load(self._signed)
        param = stored if spec.computes_as_stored else stored.astype(spec.real)
        if spec.master:
            master = state[of_rule]
            np.copyto(master, param, where=narrowed(master, stored.dtype) != stored)
            param = master
        if spec.rates:
            row = self._with_rates(row, state)
        limits = state[-2:] if spec.limits else ()
        if spec.limit_scalars:
            *row, lower, upper = row
            limits = (np.array(lower, spec.real), np.array(upper, spec.real))
        grad = grad.astype(spec.real, copy=False)
        self._apply(param, grad, state[:of_rule], row, derived, limits)
        if draws is not None:
            block.state.store(state[:of_rule], self._signed, draws)
        if spec.stochastic and draws is not None:
            single = narrowed(param, np.dtype(np.float32))
            stored[...] = draws.rounded(single, of_rule, stored.dtype)
        elif not spec.computes_as_stored:
            stored[...] = narrowed(param, stored.dtype)

    def _with_rates(self, row: Sequence[Any], state: Sequence[Array]) -> Sequence[Any]:
        """Return a row in which what is proportional to the learning rate is each element's own."""
        factors = state[len(self._rule.state) + len(self._spec.masters)]
        own = [*row]
        for k in self._rates:
            own[k] = own[k] * factors if own[k] != 0.0 else 0.0
        return own

    def _apply(
        self,
        param: Array,
        grad: Array,
        state: tuple[Array, ...],
        row: Sequence[Any],
        derived: Sequence[float],
        limits: tuple[Array, ...],
    ) -> None:
        """Apply the rule, and what acts around it, in the order of ``core.passes``.

        The scalars in ``row`` (``engine.scalars``) are floats, or arrays with one for each element.
        Without fragments the lines with ``around`` hand ``scalars`` on to the rule, and no more:
        scale the gradient, L2, decay, the rule, bounds if there are some, and in every eighth step
        the flush.
        """
        grad_scale, l2, decay, tiny_signed, tiny_positive, *scalars = row
        around, rule = self._around, self._elementwise
        if isinstance(grad_scale, np.ndarray) or grad_scale != 1.0:
            grad = grad * grad_scale
        plain_grad = grad
        for fragment in around.at_gradient:
            values = {"plain_grad": plain_grad, "grad": grad}
            grad = around.kept(fragment, values, scalars, derived)
        if isinstance(l2, np.ndarray):
            grad = np.where(l2 != 0.0, grad + l2 * param, grad)
        elif l2 != 0.0:
            grad = grad + l2 * param
        before = [old.copy() for old in (param, *state)] if around.late else []
        _take_off(param, decay)
        decayed = param.copy() if around.late else param
        squares = [self._squares_of(grad)] if rule.takes_square else []
        rule.numpy(param, grad, *squares, *state, *around.of_rule(scalars, derived))
        for fragment in around.on_param:
            values = {"plain_grad": plain_grad, "grad": grad}
            values |= {"before": before[0], "decayed": decayed, "after": param}
            param[...] = around.kept(fragment, values, scalars, derived)
        if limits:
            self._keep_bounds(param, state, *limits)
        for fragment in around.on_all:
            begun = [decayed, *before[1:]]
            every = zip(self._kept, (param, *state), before, begun, strict=True)
            for acts, after, old, begin in every:
                if not acts:
                    continue
                values = {"plain_grad": plain_grad, "grad": grad}
                values |= {"before": old, "decayed": begin, "after": after}
                after[...] = around.kept(fragment, values, scalars, derived)
        if _is_set(tiny_signed) or _is_set(tiny_positive):
            for values_of_slot, signed in zip(state, self._signed, strict=True):
                flush(values_of_slot, signed, tiny_signed if signed else tiny_positive)

    def _terms_of(
        self,
        one: Pass,
        chunk: _Chunk,
        grad: Array,
        row: Sequence[float],
        derived: Sequence[float],
    ) -> Sequence[Array]:
        """Return what a pass sums in one block; nothing is written."""
        around, rule, spec = self._around, self._elementwise, self._spec
        assert one.sums is not None
        grad_scale, scalars = row[0], row[len(COMMON_SCALARS) :]
        plain_grad = grad = grad.astype(spec.real, copy=False) * grad_scale
        for fragment in around.at_gradient:
            values = {"plain_grad": plain_grad, "grad": grad}
            if fragment is one.fragment:
                return around.terms(fragment, values, scalars)
            grad = around.kept(fragment, values, scalars, derived)
        loaded = chunk.state.load(self._signed)
        if spec.rates:
            row = self._with_rates(row, loaded)
        _, l2, decay, _, _, *scalars = row
        state = [values.copy() for values in loaded[: len(rule.state)]]
        before = chunk.param.astype(spec.real)
        if spec.master:
            before = current(loaded[len(rule.state)], chunk.param)
        if l2 != 0.0:
            grad = grad + l2 * before
        param = before.copy()
        _take_off(param, decay)
        squares = [self._squares_of(grad)] if rule.takes_square else []
        if one.fragment is None:
            numbers = (*scalars[: len(rule.scalars)], *derived[one.memory_columns])
            return one.sums.numpy(param, grad, *squares, *state, *numbers)
        decayed = param.copy()
        rule.numpy(param, grad, *squares, *state, *around.of_rule(scalars, derived))
        for fragment in around.on_param:
            values = {"plain_grad": plain_grad, "grad": grad, "before": before, "decayed": decayed}
            values |= {"after": param}
            if fragment is one.fragment:
                return around.terms(fragment, values, scalars)
            param = around.kept(fragment, values, scalars, derived)
        raise AssertionError(f"{one.fragment.name} does not act here")


class _Around:
    """The fragments of an update, and which numbers of a row they and the rule take."""

    def __init__(self, rule: AnyRule, spec: UpdateSpec) -> None:
        self.at_gradient = spec.at_gradient
        self.on_param = spec.on_param
        self.on_all = spec.on_all
        self._count = len(rule.scalars)
        self._derived: dict[Fragment | None, list[int]] = {
            one.fragment: [*range(one.memory_columns.start, one.derived_columns.stop)]
            for one in derived_of(rule, spec).passes
        }
        self._own: dict[Fragment, slice] = {}
        first = self._count
        for fragment in spec.fragments:
            self._own[fragment] = slice(first, first + len(fragment.scalars))
            first += len(fragment.scalars)
        self.late = bool(self.on_param or self.on_all)

    def of_rule(self, scalars: Sequence[float], derived: Sequence[float]) -> Sequence[float]:
        """Return the numbers that the rule takes."""
        if not (self._own or self._derived):
            return scalars
        made = [derived[column] for column in self._derived.get(None, ())]
        return (*scalars[: self._count], *made)

    def kept(
        self,
        fragment: Fragment,
        values: dict[str, Array],
        scalars: Sequence[float],
        derived: Sequence[float],
    ) -> Array:
        """Return what a fragment makes of these values."""
        made = [derived[column] for column in self._derived.get(fragment, ())]
        wanted = [values[name] for name in fragment.values]
        kept: Array = fragment.numpy(*wanted, *scalars[self._own[fragment]], *made)
        return kept

    def terms(
        self, fragment: Fragment | None, values: dict[str, Array], scalars: Sequence[float]
    ) -> Sequence[Array]:
        """Return what a fragment sums."""
        assert fragment is not None
        assert fragment.sums is not None
        wanted = [values[name] for name in fragment.values]
        return fragment.sums.numpy(*wanted, *scalars[self._own[fragment]])


def _tile_sums(size: int, values: Array | None, squared: bool) -> Array:
    """Return the sums by tiles of values, squared or as they are; of None they are 0."""
    padded = np.zeros(-(-size // TILE) * TILE)
    if values is not None:
        padded[:size] = values
    if squared:
        padded *= padded
    return lane_sums(padded.reshape(-1, TILE // LANES, LANES))


def _scaled(row: Sequence[float], scale: float, real: np.dtype[Any]) -> tuple[float, ...]:
    """Return a row of scalars whose gradient scale is multiplied by one rounded to a dtype."""
    first, *rest = row
    with np.errstate(all="ignore"):
        return (first * float(real.type(scale)), *rest)


def _take_off(param: Array, decay: float | Array) -> None:
    """Decay a parameter: by one share, or of each element its own."""
    if isinstance(decay, np.ndarray):
        np.subtract(param, decay * param, out=param, where=decay != 0.0)
    elif decay != 0.0:
        param -= decay * param


def _is_set(number: float | Array) -> bool:
    """Return whether a scalar is not 0, or any of those for each element."""
    # np.any takes 4 microseconds for a float.
    return bool(number.any()) if isinstance(number, np.ndarray) else number != 0.0


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
        return NumpyKernel(bucket, extents)

    def fused(
        self,
        kernels: Sequence[NumpyKernel],
        buckets: Sequence[Bucket],
        counts: Counts,
        memory: Remembered,
    ) -> FusedStep | None:
        """Return what makes whole steps of plain arrays; the engine makes all others."""
        return fused(buckets, kernels[0].extents, counts) if kernels else None

    def control(self, like: Array) -> None:
        """Leave decisions to the host."""


def backend() -> NumpyBackend:
    """Return this file's backend."""
    return NumpyBackend()
