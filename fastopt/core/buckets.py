"""Buckets: the parameters that one compiled update serves, with their state; data alone.

A bucket holds the parameters of one group that have the same rule, dtype and storage. Their state
lies in an arena, a row for each slot, in which every parameter has its range at its offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, assert_never

import numpy as np

from fastopt.core import advice, arrays, quantization
from fastopt.core.arrays import Array, Extents, Layout
from fastopt.core.dtypes import BOUNDS, CODE_DTYPES, UpdateSpec, dtype_of, real_dtype, real_size
from fastopt.core.hyperparameters import Formula, Options, Value, bounds_as_numbers
from fastopt.core.param_groups import ParamGroups
from fastopt.core.quantization import BLOCK
from fastopt.core.tree import Leaf, Tree
from fastopt.errors import BackendMismatchError
from fastopt_kernels import AnyRule, ArrayRule

SCALE = "_scale"
"""What the name of a slot in 8 bits goes on with where its scales are meant."""

Allocate = Callable[[Array, tuple[int, int], np.dtype[Any]], Array]
"""Returns zeros of a shape and dtype in the place of an array."""


# Parameters -------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a parameter's state of a shape of its own stands among all of that kind.

    ``by_row`` says what becomes of it where the parameter gets other rows: True: its first axis
    counts these rows, False: it does not depend on their number, None: neither is so.
    """

    first: int
    shape: tuple[int, ...]
    by_row: bool | None

    def view(self, own: Array) -> Array:
        """Return it as a view."""
        return own[self.first : self.first + math.prod(self.shape)].reshape(self.shape)


def own_shapes(rule: AnyRule, shape: tuple[int, ...]) -> dict[str, Place]:
    """Return by slot what state a parameter has in shapes of its own, with nothing before it."""
    found = {}
    for slot, shape_of in rule.shapes if isinstance(rule, ArrayRule) else ():
        if (own := shape_of(shape)) is not None:
            more = shape_of((shape[0] + 1, *shape[1:])) if shape else None
            by_row = own[:1] == shape[:1] and more == (*[n + 1 for n in own[:1]], *own[1:])
            found[slot] = Place(0, own, False if more == own else by_row or None)
    return found


@dataclass(frozen=True, slots=True)
class Parameter:
    """A leaf together with what a kernel needs of it.

    ``flat`` is the array's own memory where its elements stand one after another. Where there are
    gaps between them, it is the array with its axes in the order of memory for a backend that
    bridges gaps (``strided``); for another it is a copy (``copied``), that ``gather`` fills before
    an update and ``scatter`` writes back after it. ``size`` counts real numbers: two for every
    element of a complex ``dtype``. ``offset`` is where its state begins in the rows of its bucket's
    arena. Where the first axis counts members (fits that are made side by side, see ``UpdateSpec``)
    ``member`` is (divisor, modulus): the flat real number ``e`` is of the member
    ``e // divisor % modulus``. ``places`` says, by slot, where state of another shape than the
    parameter's begins.
    """

    leaf: Leaf
    layout: Layout
    dtype: np.dtype[Any]
    flat: Array
    size: int
    strided: bool
    copied: bool
    offset: int
    address: int
    member: tuple[int, int] | None = None
    places: Mapping[str, Place] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        leaf: Leaf,
        offset: int,
        bridges_gaps: bool = False,
        members: bool = False,
        places: Mapping[str, Place] | None = None,
    ) -> Parameter:
        """Lay out a leaf; ``bridges_gaps`` says whether the backend needs no copies."""
        layout = arrays.layout_of(leaf.array, 0 if members else None)
        address = arrays.address(leaf.array)
        dtype = leaf.array.dtype
        real = real_dtype(dtype)
        size = real_size(leaf.array.size, dtype)
        flat = arrays.flat_view(leaf.array, layout)
        gaps = flat is None
        if flat is not None:
            flat = flat.view(real)
        elif bridges_gaps:
            flat = layout.in_memory_order(leaf.array)
        else:
            flat = layout.in_memory_order(leaf.array).flatten().view(real)
        strided, copied = gaps and bridges_gaps, gaps and not bridges_gaps
        member = _member_of(layout, dtype) if members else None
        laid_out = layout, dtype, flat, size, strided, copied, offset, address, member
        return cls(leaf, *laid_out, places or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # Laid out anew: a copy of ``flat`` would be no view of the copied array.
        how = not self.copied, self.member is not None, self.places
        return Parameter.of, (self.leaf, self.offset, *how)

    def gather(self) -> None:
        """Copy the array into ``flat``."""
        self.in_shape(self.flat)[...] = self.leaf.array

    def scatter(self) -> None:
        """Copy ``flat`` into the array."""
        self.leaf.array[...] = self.in_shape(self.flat)

    def axes(self) -> list[tuple[int, int]]:
        """Return how the elements of a strided array are found: length and stride of each axis."""
        pair = [(2, self.dtype.itemsize // 2)] * (self.dtype.kind == "c")
        return [*zip(self.flat.shape, self.flat.strides, strict=True), *pair]

    def in_shape(self, reals: Array) -> Array:
        """Return flat real numbers as a view in the parameter's shape, complex as it is."""
        if self.dtype.kind == "c":
            reals = reals.view(np.dtype(f"c{2 * reals.itemsize}"))
        return self.layout.in_shape(reals)

    def state_view(self, slot: Array) -> Array:
        """Return the parameter's range of one row of the arena, in the parameter's shape."""
        return self.in_shape(slot[self.offset : self.offset + self.size])

    def code_view(self, slot: Array) -> Array:
        """Return its range of a row of codes, in its shape; complex ones have a last axis of 2."""
        found = slot[self.offset : self.offset + self.size]
        return self.layout.in_shape(found, (2,) if self.dtype.kind == "c" else ())

    def scale_view(self, slot: Array) -> Array:
        """Return its range of a row of scales: one for every block, in the order of memory."""
        first = self.offset // BLOCK
        return slot[first : first - (-self.size // BLOCK)]

    @property
    def stream(self) -> int:
        """Where its random bits begin."""
        origin = self.leaf.origin
        begin = quantization.stream(self.leaf.name)
        return begin if origin is None else (begin + origin.start) % 2**32

    def usual_strides(self, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
        """Return the strides of a gradient that can be read flat as it stands; None if none can."""
        if self.layout.flipped:
            return None
        shape, step = self.layout.shape, dtype.itemsize
        strides = [0] * len(shape)
        for axis in reversed(self.layout.axes):
            strides[axis] = step
            step *= max(shape[axis], 1)
        return tuple(strides)

    def check_array(self, now: object) -> None:
        """Raise if the user's tree no longer holds the array, or it cannot be updated any more."""
        array = self.leaf.array
        if now is not array:
            raise ValueError(
                f"{self.leaf.path} is no longer the array that the optimizer was given, so it "
                "would not be trained. Write into it (params[...][...] = value), or let the "
                "optimizer go over to it: opt.rebind(params), or opt.step(grads, params=params)."
            )
        if array.shape != self.layout.shape or array.dtype != self.dtype:
            raise ValueError(
                f"{self.leaf.path} was {self.dtype} of shape {self.layout.shape} when the "
                f"optimizer was made; got {array.dtype} of shape {array.shape}. Construct a new "
                f"optimizer, or put other rows there by opt.resize({self.leaf.name!r}, array)."
            )
        if arrays.address(array) != self.address:
            raise ValueError(
                f"{self.leaf.path} has been moved in memory (resize?) since the optimizer was "
                "made. Call opt.rebind(params)."
            )
        if not getattr(array.flags, "writeable", True):
            raise ValueError(f"{self.leaf.path} has become read-only; parameters change in place")

    def flat_gradient(
        self, grad: Any, dtype: np.dtype[Any], path: str, extents: Extents
    ) -> Array | None:
        """Return a checked gradient as flat real numbers, in the order of the parameter.

        ``dtype`` is what it is converted to. It is a view where the gradient is of this dtype and
        stands in memory as the parameter does, else a copy.
        """
        if grad is None:
            return None
        if type(grad) is np.ndarray and self._is_usual(grad, dtype):
            extents.check_apart(grad, path)
            flat = grad.reshape(-1)
            return flat.view(real_dtype(dtype)) if dtype.kind == "c" else flat
        grad = self.checked(grad, path)
        extents.check_apart(grad, path)
        turned = self.layout.in_memory_order(grad)
        flags = turned.flags
        aligned = getattr(flags, "aligned", True)  # CuPy keeps no such flag
        if grad.dtype == dtype and flags.c_contiguous and aligned:
            return turned.reshape(-1).view(real_dtype(dtype))
        # What is too large for the dtype becomes inf, whatever other code has set np.seterr to.
        with arrays.on_device_of(turned), np.errstate(all="ignore"):
            return turned.astype(dtype, order="C").reshape(-1).view(real_dtype(dtype))

    def _is_usual(self, grad: Array, dtype: np.dtype[Any]) -> bool:
        """Return whether a NumPy gradient needs no closer look: C order, like its parameter."""
        flags = grad.flags
        return (
            grad.dtype == dtype
            and grad.shape == self.layout.shape
            and flags.c_contiguous
            and flags.aligned
            and self.layout.plain
            and type(self.leaf.array) is np.ndarray
        )

    def checked(self, grad: Any, path: str) -> Array:
        """Return a gradient as the array it is, if it fits the parameter; raise if it does not."""
        if isinstance(grad, np.inexact) and self.layout.shape == ():
            grad = np.asarray(grad)  # NumPy's reductions return scalars for 0-d results
        self._check_gradient(grad, path)
        return grad  # type: ignore[no-any-return]  # it is an array now

    def _check_gradient(self, grad: Any, path: str) -> None:
        array = self.leaf.array
        kind, needed = arrays.kind(grad), arrays.kind(array)
        if kind is None:
            raise TypeError(
                f"{path} must be a {needed} array like {self.leaf.path}; "
                f"got {type(grad).__name__}. {advice.for_gradient(grad, path, array)}"
            )
        if kind != needed or arrays.device(grad) != arrays.device(array):
            raise BackendMismatchError(
                f"{path} must be on the same device as {self.leaf.path} "
                f"({_place(array)}); got {_place(grad)}. {_moved(path, array)}"
            )
        wanted = "complex" if self.dtype.kind == "c" else "real floating"
        if _number_kind(grad.dtype) != wanted:
            raise TypeError(
                f"{path} must be of a {wanted} dtype like {self.leaf.path}; got {grad.dtype}. "
                f"{advice.for_gradient_dtype(grad, path, array)}"
            )
        if grad.shape != self.layout.shape:
            raise ValueError(
                f"{path} must have the shape of {self.leaf.path}, {self.layout.shape}; "
                f"got {grad.shape}. {advice.for_gradient_shape(grad, path, self.layout.shape)}"
            )


def _member_of(layout: Layout, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return how the member of a flat real number is found: (divisor, modulus)."""
    behind = layout.axes[layout.axes.index(0) + 1 :]  # axes that are faster in memory
    divisor = math.prod(layout.shape[axis] for axis in behind) * (2 if dtype.kind == "c" else 1)
    return max(divisor, 1), layout.shape[0]


def _number_kind(dtype: np.dtype[Any]) -> str:
    floating = dtype.kind == "f" or dtype.name == "bfloat16"
    return "real floating" if floating else "complex" if dtype.kind == "c" else "other"


def _moved(path: str, like: Array) -> str:
    """Return what brings a gradient to where its parameter is."""
    number = arrays.device(like)
    if number is None:
        return f"Move it there before the step: cupy.asnumpy({path})."
    there = f"with cupy.cuda.Device({number}): " if number else ""
    return f"Move it there before the step: {there}cupy.asarray({path})."


def _place(array: Array) -> str:
    number = arrays.device(array)
    return "numpy, in host memory" if number is None else f"cupy, on device {number}"


class Gradients(NamedTuple):
    """A bucket's gradients in one step, checked and bound to its parameters.

    They are alive and where they are as long as this is. ``arrays`` are flat real numbers in the
    order of the parameters, or the user's own arrays where these can be read as such; ``dtype`` is
    that of their real numbers. ``active`` are the parameters that have a gradient, None for all;
    ``addresses`` are those of the first elements, 0 where there is no gradient, None if nobody has
    looked.
    """

    arrays: Sequence[Array | None]
    dtype: np.dtype[Any]
    active: Sequence[int] | None
    addresses: Array | None = None

    @classmethod
    def of(
        cls,
        given: Sequence[Array | None],
        dtype: np.dtype[Any],
        addresses: Array | None = None,
        complete: bool = False,
    ) -> Gradients:
        """Return gradients of which some may be None, unless they are known to be ``complete``."""
        active = None
        if not complete and any(grad is None for grad in given):
            active = [i for i, grad in enumerate(given) if grad is not None]
        return cls(given, dtype, active, addresses)

    def located(self) -> Array:
        """Return the addresses of the first elements, 0 for a gradient that is missing."""
        if self.addresses is not None:
            return self.addresses
        at = [0 if grad is None else arrays.address(grad) for grad in self.arrays]
        return np.array(at, np.int64)


# State ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arena:
    """The state of a bucket: a row for each slot.

    ``numbers`` holds in the dtype of the arithmetic the rule's slots, the masters and the spec's
    ``constants``; where the spec's ``state`` is in codes only the latter two. The rule's slots are
    then in ``codes``, uint16 or uint8, and for 8 bits ``scales`` has a float32 for every block
    of 256. ``slots`` are the names of the rule's. Of a rule on whole arrays, ``own`` holds one
    after another the state that has other shapes than its parameter (see ``Parameter.places``).
    """

    slots: tuple[str, ...]
    spec: UpdateSpec
    numbers: Array
    codes: Array | None = None
    scales: Array | None = None
    own: Array | None = None

    @classmethod
    def zeros(
        cls,
        make: Callable[[tuple[int, int], np.dtype[Any]], Array],
        slots: tuple[str, ...],
        size: int,
        spec: UpdateSpec,
        own: int | None = None,
    ) -> Arena:
        """Return an arena of rows of this size, and of ``own`` numbers beside; all are zeros.

        ``make`` makes the arrays.
        """
        more = len(spec.masters) + len(spec.constants)
        if spec.state == "real":
            beside = None if own is None else make((1, own), spec.real).reshape(-1)
            return cls(slots, spec, make((len(slots) + more, size), spec.real), own=beside)
        numbers = make((more, size), spec.real)
        codes = make((len(slots), size), CODE_DTYPES[spec.state])
        if spec.state == "bfloat16":
            return cls(slots, spec, numbers, codes)
        if spec.state == "int8":
            scales = make((len(slots), size // BLOCK), np.dtype(np.float32))
            return cls(slots, spec, numbers, codes, scales)
        assert_never(spec.state)

    def fill(self, slot: str, value: float, signed: bool) -> None:
        """Set one slot of the rule to a number, rounded to nearest, everywhere."""
        row = self.slots.index(slot)
        if self.spec.state == "real":
            self.numbers[row] = value
            return
        assert self.codes is not None
        values = np.full(BLOCK, value, np.float32)
        if self.spec.state == "bfloat16":
            self.codes[row] = quantization.to_bfloat16(values, quantization.HALF).item(0)
        elif self.spec.state == "int8":
            assert self.scales is not None
            code, scale = quantization.to_int8(values, quantization.HALF_OF_INT8, signed)
            self.codes[row], self.scales[row] = code.item(0), scale.item(0)
        else:
            assert_never(self.spec.state)

    def fill_members(self, slot: str, values: Array, parameters: Sequence[Parameter]) -> None:
        """Set one slot of the rule to one number for each member."""
        row = self.rows[slot]
        for parameter in parameters:
            view = parameter.state_view(row)
            own = values.astype(row.dtype).reshape(-1, *[1] * (view.ndim - 1))
            view[...] = arrays.like(own * (1 + 1j) if view.dtype.kind == "c" else own, view)

    def take(
        self,
        parameter: Parameter,
        source: Arena,
        before: Parameter,
        signed: Collection[str],
        keep: Array | None = None,
        places: Collection[str] = (),
    ) -> None:
        """Take over the state that a parameter had before, whatever its order in memory was.

        ``keep`` are the rows of its first axis that it still has, in their order now: its other
        rows, which come after, have the state that stands here, and in slots that hold values of
        parameters (``places``) their own; None: it is as large as it was.
        """
        own, theirs = self.rows, source.rows
        with arrays.on_device_of(self.numbers):
            for slot, place in parameter.places.items():
                assert self.own is not None
                assert source.own is not None
                values = before.places[slot].view(source.own).copy()
                merge(place.view(self.own), values, keep if place.by_row else None)
            for name in (*self.spec.masters, *self.spec.constants):
                values = before.state_view(theirs[name]).copy()
                merge(parameter.state_view(own[name]), values, keep)
            for slot in self.slots:
                values = source.numbers_of(slot, before, slot in signed)
                if keep is not None:
                    merged = self.numbers_of(slot, parameter, slot in signed)
                    if slot in places:
                        merged[...] = parameter.leaf.array.astype(merged.dtype)
                    merge(merged, values, keep)
                    values = merged
                self._set_numbers(slot, parameter, values, slot in signed)

    def numbers_of(self, slot: str, parameter: Parameter, signed: bool) -> Array:
        """Return a copy of a slot of the rule, in the parameter's shape; codes as float32."""
        row, first, size = self.slots.index(slot), parameter.offset, parameter.size
        if self.spec.state == "real":
            return parameter.state_view(self.numbers[row]).copy()
        assert self.codes is not None
        if self.spec.state == "bfloat16":
            codes = self.codes[row, first : first + size]
            return parameter.in_shape(quantization.from_bfloat16(codes))
        if self.spec.state == "int8":
            assert self.scales is not None
            scales = parameter.scale_view(self.scales[row])
            codes = self.codes[row, first : first + scales.size * BLOCK]
            return parameter.in_shape(quantization.from_int8(codes, scales, signed)[:size])
        assert_never(self.spec.state)

    def pieces(self, slot: str, parameter: Parameter, signed: bool) -> Iterator[Array]:
        """Yield the real numbers of a slot of the rule in the order of memory; codes as float32.

        The pieces fit the cache, so that what is decoded takes no memory worth speaking of; on a
        device there is one. Yields nothing for a parameter that has no such slot.
        """
        first, size = parameter.offset, parameter.size
        if (place := parameter.places.get(slot)) is not None:
            assert self.own is not None
            source = place.view(self.own).reshape(-1)
            first, size = 0, source.size
        elif slot in self.slots:
            row = self.slots.index(slot)
            source = self.numbers[row] if self.codes is None else self.codes[row]
        else:
            return
        step = arrays.BLOCK if arrays.kind(source) == "numpy" else max(size, 1)
        for start in range(0, size, step):
            begin, length = first + start, min(step, size - start)
            if self.codes is None:
                yield source[begin : begin + length]
            elif self.scales is None:
                yield quantization.from_bfloat16(source[begin : begin + length])
            else:
                count = -(-length // BLOCK)
                scales = self.scales[row, begin // BLOCK : begin // BLOCK + count]
                codes = source[begin : begin + count * BLOCK]
                yield quantization.from_int8(codes, scales, signed)[:length]

    def _set_numbers(self, slot: str, parameter: Parameter, values: Array, signed: bool) -> None:
        """Set a slot of the rule to numbers in the parameter's shape, rounded to nearest."""
        row, first, size = self.slots.index(slot), parameter.offset, parameter.size
        if self.spec.state == "real":
            view = parameter.state_view(self.numbers[row])
            view[...] = arrays.like(values.astype(view.dtype, copy=False), view)
            return
        assert self.codes is not None
        flat = np.zeros(-(-size // BLOCK) * BLOCK, np.float32)
        turned = parameter.layout.in_memory_order(arrays.like(values, flat))
        flat[:size] = np.ascontiguousarray(turned).reshape(-1).view(np.float32)
        if self.spec.state == "bfloat16":
            codes = quantization.to_bfloat16(flat[:size], quantization.HALF)
        elif self.spec.state == "int8":
            assert self.scales is not None
            codes, scales = quantization.to_int8(flat, quantization.HALF_OF_INT8, signed)
            view = parameter.scale_view(self.scales[row])
            view[...] = arrays.like(scales, view)
        else:
            assert_never(self.spec.state)
        self.codes[row, first : first + codes.size] = arrays.like(codes, self.codes)

    def fill_places(self, slot: str, value: Value, parameters: Sequence[Parameter]) -> None:
        """Set state that has shapes of its own to a number, where a parameter has it."""
        for parameter in parameters:
            if (place := parameter.places.get(slot)) is not None:
                assert self.own is not None
                place.view(self.own)[...] = value

    def view(self, slot: str, parameter: Parameter) -> Array | None:
        """Return a parameter's state in numbers, by its name; None if it has none such."""
        if (place := parameter.places.get(slot)) is not None:
            assert self.own is not None
            return place.view(self.own)
        row = self.rows.get(slot)
        return None if row is None else parameter.state_view(row)

    @property
    def rows(self) -> dict[str, Array]:
        """The rows of ``numbers`` by name."""
        of_rule = self.slots if self.spec.state == "real" else ()
        names = (*of_rule, *self.spec.masters, *self.spec.constants)
        return dict(zip(names, self.numbers, strict=True))

    def views(self, parameter: Parameter) -> Iterator[tuple[str, Array]]:
        """Yield a parameter's state by name, in its shape: codes, their scales, then the others."""
        if self.codes is not None:
            yield from zip(self.slots, map(parameter.code_view, self.codes), strict=True)
        if self.scales is not None:
            for slot, row in zip(self.slots, self.scales, strict=True):
                yield slot + SCALE, parameter.scale_view(row)
        for name, row in self.rows.items():
            if name not in self.spec.constants:
                yield name, parameter.state_view(row)
        if self.own is not None:
            for slot, place in parameter.places.items():
                yield slot, place.view(self.own)

    @property
    def parts(self) -> tuple[Array, ...]:
        """The arrays of rows that there are, in this order."""
        return tuple(part for part in (self.numbers, self.codes, self.scales) if part is not None)

    @property
    def nbytes(self) -> int:
        """The bytes of all of it."""
        own = 0 if self.own is None else self.own.nbytes
        return own + sum(part.nbytes for part in self.parts)


def merge(target: Array, values: Array, keep: Array | None) -> None:
    """Write values over the first rows of an array, those of these numbers; None: over all."""
    if keep is None:
        target[...] = arrays.like(values, target)
    else:
        target[: len(keep)] = arrays.like(values[arrays.like(keep, values)], target)


# Buckets ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Bucket:
    """The parameters of one group, rule, dtype and storage, with their state and step counts.

    ``formula`` is what makes the scalars, ``group`` is the number of the group, ``positions`` are
    the places of the parameters among the leaves of the tree, ``steps`` counts the steps that each
    of them has made. ``memory`` holds in float64 what the rule remembers of each array, a row for
    each parameter.
    """

    formula: type[Formula]
    group: int
    rule: AnyRule
    spec: UpdateSpec
    parameters: tuple[Parameter, ...]
    positions: tuple[int, ...]
    arena: Arena
    steps: Array
    memory: Array
    steps_equal: bool = True
    """Whether all parameters have made the same number of steps, and all members of them too."""
    missed: Array | None = None
    """Of each parameter how many of its steps each member has missed; None: none has any."""

    @classmethod
    def of(
        cls,
        formula: type[Formula],
        group: int,
        rule: AnyRule,
        spec: UpdateSpec,
        leaves: Sequence[Leaf],
        positions: Sequence[int],
        fill: Mapping[str, Value],
        begin: Mapping[str, float],
        allocate: Allocate,
        alignment: int,
        bridges_gaps: bool,
    ) -> Bucket:
        """Lay out some leaves, whose state begins with ``fill``, by slot, where that is not 0.

        What is remembered of each array begins with ``begin``, likewise. Their ranges of the arena
        begin at multiples of ``alignment`` elements.
        """
        size = own = 0
        if spec.state == "int8":
            alignment = max(alignment, BLOCK)  # both are powers of two
        parameters = []
        for leaf in leaves:
            places = {}
            for slot, place in own_shapes(rule, leaf.array.shape).items():
                places[slot] = place._replace(first=own)
                own += math.prod(place.shape)
            parameter = Parameter.of(leaf, size, bridges_gaps, spec.members, places)
            parameters.append(parameter)
            size += -(-parameter.size // alignment) * alignment
        like = leaves[0].array
        beside = dict(rule.shapes) if isinstance(rule, ArrayRule) else {}
        in_rows = tuple(slot for slot in rule.state if slot not in beside)
        make = partial(allocate, like)
        arena = Arena.zeros(make, in_rows, size, spec, own if beside else None)
        for slot, value in fill.items():
            with arrays.on_device_of(like):
                if slot in beside:
                    arena.fill_places(slot, value, parameters)
                elif isinstance(value, np.ndarray):
                    arena.fill_members(slot, value, parameters)
                else:
                    arena.fill(slot, value, slot in rule.signed)
        steps = np.zeros(len(leaves), np.int64)
        names = memory_names(rule, "array")
        memory = np.tile([begin.get(name, 0.0) for name in names], (len(leaves), 1))
        where = tuple(parameters), tuple(positions)
        return cls(
            formula, group, rule, spec, *where, arena, steps, memory.reshape(len(leaves), -1)
        )

    def rule_for(self, options: Options) -> AnyRule:
        """Return the rule that these options of the group ask for."""
        return self.formula._rule(self.formula._view(options))

    def take_arrays(self, leaves: Sequence[Leaf], bridges_gaps: bool) -> None:
        """Go on with other arrays of the same shapes and dtypes: leaves in the same order."""
        before = self.parameters
        self.parameters = tuple(
            Parameter.of(leaf, old.offset, bridges_gaps, self.spec.members, old.places)
            for leaf, old in zip(leaves, before, strict=True)
        )
        for name in ("_grad_paths", "_some_copied"):
            vars(self).pop(name, None)
        for new, old in zip(self.parameters, before, strict=True):
            if new.layout != old.layout:
                self.arena.take(new, self.arena, old, self.rule.signed)

    def take_state(self, index: int, source: Bucket, its: int, keep: Array | None = None) -> None:
        """Take over the state and step count that a parameter had in another bucket.

        ``keep``: see ``Arena.take``.
        """
        parameter, before = self.parameters[index], source.parameters[its]
        rule = self.rule
        self.arena.take(parameter, source.arena, before, rule.signed, keep, rule.places)
        self.memory[index] = source.memory[its]
        if source.missed is not None:
            self.miss(index, source.missed[its])
        self.set_step(index, int(source.steps[its]))

    @property
    def members(self) -> int | None:
        """How many fits are made side by side (see ``UpdateSpec``); None: there is no such axis."""
        member = self.parameters[0].member
        return None if member is None else member[1]

    def of_leaves(self, leaves: list[Any]) -> list[Any]:
        """Return what belongs to this bucket's parameters, given what belongs to all leaves."""
        if len(leaves) == len(self.positions):  # positions are in order
            return leaves
        return [leaves[position] for position in self.positions]

    def bind(self, params: Sequence[Any], grads: Sequence[Any], extents: Extents) -> Gradients:
        """Look at every array of a step in turn, and return the gradients, flat.

        ``params`` is what the user's tree holds now; ``extents`` is where all parameters lie.
        Raises what is wrong with one.
        """
        wanted = self.read_as(grads)
        flat: list[Array | None] = []
        every = zip(self.parameters, params, grads, self._grad_paths, strict=True)
        for parameter, param, grad, path in every:
            parameter.check_array(param)
            flat.append(parameter.flat_gradient(grad, wanted, path, extents))
        return Gradients.of(flat, real_dtype(wanted))

    def read_as(self, grads: Sequence[Any]) -> np.dtype[Any]:
        """Return the dtype that all gradients are read in: their own, where a step can read it."""
        like = self.parameters[0].dtype
        if self.spec.computes_as_stored:  # there is one dtype alone
            return like
        for real in self.spec.readable:
            dtype = dtype_of(real, like)
            if all(grad is None or getattr(grad, "dtype", None) == dtype for grad in grads):
                return dtype
        return dtype_of(self.spec.real, like)

    def copied(self, active: Sequence[int] | None) -> list[Parameter]:
        """Return the parameters that an update works on a copy of."""
        if not self._some_copied:
            return []
        indices = range(len(self.parameters)) if active is None else active
        return [self.parameters[i] for i in indices if self.parameters[i].copied]

    @cached_property
    def _grad_paths(self) -> list[str]:
        """What errors call the gradients."""
        return [f"grads{parameter.leaf.place}" for parameter in self.parameters]

    @cached_property
    def _some_copied(self) -> bool:
        return any(parameter.copied for parameter in self.parameters)

    def advance(self, active: Sequence[int] | None, steps: int) -> None:
        """Add to the step counts of some parameters (None: all)."""
        self.steps[slice(None) if active is None else active] += steps
        if len(self.steps) > 1 and (active is not None or not self.steps_equal):
            self._compare_steps()

    def _compare_steps(self) -> None:
        self.steps_equal = self.missed is None and bool((self.steps == self.steps[0]).all())

    def set_step(self, index: int, step: int) -> None:
        """Set one parameter's step count."""
        self.steps[index] = step
        self._compare_steps()

    def miss(self, index: int, steps: Array) -> None:
        """Add to how many of one parameter's steps each member has missed."""
        self.allow_misses()
        assert self.missed is not None
        self.missed[index] += steps

    def allow_misses(self) -> None:
        """Count from now on for each member apart which steps it has missed."""
        if self.missed is None:
            self.missed = np.zeros((len(self.parameters), self.members or 1), np.int64)
            self.steps_equal = False

    def averages_squares_in_single(self, gradients: Gradients) -> bool:
        """Return whether float32 averages squares of these gradients, where large ones overflow."""
        there = gradients.active is None or bool(gradients.active)
        return there and self.rule.averages_squares and self.spec.real.itemsize == 4

    @property
    def nbytes(self) -> int:
        """The bytes of the state."""
        return self.arena.nbytes

    def set_constants(self, slots: Sequence[str], given: Sequence[Sequence[Array]]) -> None:
        """Write constants of every parameter, real arrays in its shape, into their rows.

        Both parts of a complex number get the same.
        """
        rows = self.arena.rows
        for parameter, own in zip(self.parameters, given, strict=True):
            for slot, values in zip(slots, own, strict=True):
                view = parameter.state_view(rows[slot])
                filled = values.astype(rows[slot].dtype)
                if view.dtype.kind == "c":
                    filled = (filled * (1 + 1j)).astype(view.dtype)
                with arrays.on_device_of(view):
                    view[...] = arrays.like(filled, view)

    def state(self) -> Iterator[tuple[Leaf, int, dict[str, Array]]]:
        """Yield each parameter's leaf, step count and state, as views.

        State is in the parameter's shape, or in that which its rule says; what is remembered of it
        are arrays of shape ().
        """
        names = memory_names(self.rule, "array")
        for parameter, step, row in zip(
            self.parameters, self.steps.tolist(), self.memory, strict=True
        ):
            remembered = {name: row[k : k + 1].reshape(()) for k, name in enumerate(names)}
            yield parameter.leaf, step, dict(self.arena.views(parameter)) | remembered


def memory_names(rule: AnyRule, over: str) -> tuple[str, ...]:
    """Return the names of what a rule remembers of every "array", or of the "optimizer"."""
    return rule.memory.names if rule.memory and rule.memory.over == over else ()


NOT_MEASURED = -1.0
"""Stands for a norm that is not known."""


@dataclass(eq=False)
class MemberCounts:
    """What is counted of each member: steps that it missed and others made; all it skipped.

    ``norms`` are those of the last step's gradients; None if they were not measured.
    """

    missed: Array
    skipped: Array
    norms: Array | None = None

    @classmethod
    def of(cls, members: int) -> MemberCounts:
        """Return counts that are all 0."""
        return cls(np.zeros(members, np.int64), np.zeros(members, np.int64))

    @property
    def apart(self) -> bool:
        """Whether members have made different steps."""
        return bool(self.missed.any())


@dataclass(eq=False)
class Counts:
    """What is counted over all parameters: the steps made, those skipped; the last norm.

    ``members`` is what is counted of each of them, if there are any.
    """

    steps: Array = field(default_factory=lambda: np.zeros(1, np.int64))
    """Steps made: an array of one number, where compiled code can reach it."""
    skipped: int = 0
    norm: Array = field(default_factory=lambda: np.full(1, NOT_MEASURED))
    """The norm of the last step's gradients, likewise an array; NOT_MEASURED if there is none."""
    members: MemberCounts | None = None

    @property
    def made(self) -> Any:
        """The steps made; with members, an array of those of each."""
        steps = int(self.steps[0])
        return steps if self.members is None else steps - self.members.missed

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients before clipping; None if it was not measured."""
        norm: float = self.norm.item(0)
        return None if norm == NOT_MEASURED else norm

    @grad_norm.setter
    def grad_norm(self, norm: float | None) -> None:
        self.norm[0] = NOT_MEASURED if norm is None else norm

    def forget_norm(self) -> None:
        """No norm has been measured."""
        self.grad_norm = None
        if self.members is not None:
            self.members.norms = None


class Remembered(Mapping[str, float]):
    """What a rule remembers of all arrays together: numbers by name.

    ``numbers`` holds them in the order of the names, an array where compiled code can reach it; it
    is written, and never replaced.
    """

    def __init__(self, given: Mapping[str, float] | None = None) -> None:
        self.names: tuple[str, ...] = tuple(given or ())
        self.numbers: Array = np.array([*(given or {}).values()], float)

    def __getitem__(self, name: str) -> float:
        try:
            return float(self.numbers[self.names.index(name)])
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, given: Mapping[str, float]) -> None:
        """Write other numbers, of all names."""
        self.numbers[:] = [given[name] for name in self.names]


@dataclass(eq=False)
class OptimizerState:
    """All that an optimizer consists of as data: engines compute on it, checkpoints hold it."""

    formula: type[Formula]
    tree: Tree
    groups: ParamGroups
    buckets: list[Bucket]
    counts: Counts = field(default_factory=Counts)
    memory: Remembered = field(default_factory=Remembered)

    def leaves_of(self, group: int) -> list[Leaf]:
        """Return the parameters of a group."""
        return [self.tree.leaves[position] for position in self.groups[group].positions]

    def bounds(self) -> dict[int, tuple[Any, Any]]:
        """Return the bounds of the parameters that have any, numbers or arrays, by position."""
        found: dict[int, tuple[Any, Any]] = {}
        for bucket in self.buckets:
            spec, rows = bucket.spec, bucket.arena.rows
            for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
                if spec.bounds == "numbers":
                    given = self.groups[bucket.group]["bounds"]
                    found[position] = bounds_as_numbers(given, spec.stored)
                elif spec.bounds == "arrays":
                    lower, upper = (parameter.state_view(rows[name]) for name in BOUNDS)
                    found[position] = lower, upper
        return found
