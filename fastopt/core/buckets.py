"""Buckets: parameters that are updated together, their state in one arena, their step counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.core import arrays, quantization
from fastopt.core.arrays import Array, Extents, Layout
from fastopt.core.dtypes import BOUNDS, Format, dtype_of, real_dtype, real_size
from fastopt.core.norms import SMALLER, array_norms, piece_counts
from fastopt.core.quantization import BLOCK
from fastopt.core.tree import Leaf
from fastopt.errors import BackendMismatchError
from fastopt_kernels import Rule

if TYPE_CHECKING:
    from fastopt.backends.interface import Backend, DeviceSide

# -------------------------------------------------------------------------------------------------
# One parameter as a backend sees it: flat, with a place in the state arena.


@dataclass(frozen=True, slots=True)
class Parameter:
    """A leaf together with what a driver needs of it.

    ``flat`` is the array's own memory where its elements stand one after another. Where they stand
    ``apart`` it is the array with its axes turned, for a backend that bridges gaps; for another it
    is a copy (``copied``), that ``gather`` fills before an update and ``scatter`` writes back after
    it. ``size`` counts real numbers: two for every element of a complex ``dtype``.
    """

    leaf: Leaf
    layout: Layout
    dtype: np.dtype[Any]
    flat: Array
    size: int
    apart: bool
    copied: bool
    offset: int
    address: int
    everywhere: Extents

    @classmethod
    def of(
        cls, leaf: Leaf, offset: int, everywhere: Extents, bridges_gaps: bool = False
    ) -> Parameter:
        """Lay out a leaf whose state begins at ``offset`` in its bucket's arena.

        ``everywhere`` tells where all parameters of the optimizer lie; ``bridges_gaps`` whether the
        backend needs no copies.
        """
        layout, address = arrays.layout_of(leaf.array), arrays.address(leaf.array)
        dtype = leaf.array.dtype
        real = real_dtype(dtype)
        size = real_size(leaf.array.size, dtype)
        flat = arrays.flat_view(leaf.array, layout)
        gaps = flat is None
        if flat is not None:
            flat = flat.view(real)
        elif bridges_gaps:
            flat = layout.turn(leaf.array)
        else:
            flat = layout.turn(leaf.array).flatten().view(real)
        apart, copied = gaps and bridges_gaps, gaps and not bridges_gaps
        return cls(leaf, layout, dtype, flat, size, apart, copied, offset, address, everywhere)

    def gather(self) -> None:
        """Copy the array into ``flat``."""
        self._in_shape(self.flat)[...] = self.leaf.array

    def scatter(self) -> None:
        """Copy ``flat`` into the array."""
        self.leaf.array[...] = self._in_shape(self.flat)

    def axes(self) -> list[tuple[int, int]]:
        """Return how elements that stand apart are found: length and stride of each axis."""
        pair = [(2, self.dtype.itemsize // 2)] * (self.dtype.kind == "c")
        return [*zip(self.flat.shape, self.flat.strides, strict=True), *pair]

    def _in_shape(self, reals: Array) -> Array:
        """Return flat real numbers as a view in the parameter's shape, complex as it is."""
        if self.dtype.kind == "c":
            reals = reals.view(np.dtype(f"c{2 * reals.itemsize}"))
        return self.layout.unturn(reals)

    def state_view(self, slot: Array) -> Array:
        """Return the parameter's piece of one slot of the arena, in the parameter's shape."""
        return self._in_shape(slot[self.offset : self.offset + self.size])

    def code_view(self, slot: Array) -> Array:
        """Return its piece of a slot of codes, in its shape; complex ones have a last axis of 2."""
        piece = slot[self.offset : self.offset + self.size]
        return self.layout.unturn(piece, (2,) if self.dtype.kind == "c" else ())

    def scale_view(self, slot: Array) -> Array:
        """Return its piece of a slot of scales: one for every block, in the order of memory."""
        first = self.offset // BLOCK
        return slot[first : first - (-self.size // BLOCK)]

    @property
    def stream(self) -> int:
        """Where its random bits begin."""
        return quantization.stream(self.leaf.name)

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
                "would not be trained. Write into it (params[...][...] = value), or construct a "
                "new optimizer."
            )
        if array.shape != self.layout.shape or array.dtype != self.dtype:
            raise ValueError(
                f"{self.leaf.path} was {self.dtype} of shape {self.layout.shape} when the "
                f"optimizer was made; got {array.dtype} of shape {array.shape}. Construct a new "
                "optimizer."
            )
        if arrays.address(array) != self.address:
            raise ValueError(
                f"{self.leaf.path} has been moved in memory (resize?) since the optimizer was "
                "made. Construct a new optimizer."
            )
        if not getattr(array.flags, "writeable", True):
            raise ValueError(f"{self.leaf.path} has become read-only; parameters change in place")

    def flat_gradient(self, grad: Any, dtype: np.dtype[Any], path: str) -> Array | None:
        """Return a checked gradient as flat real numbers, in the order of the parameter.

        ``dtype`` is what it is converted to. It is a view where the gradient is of this dtype and
        stands in memory as the parameter does, else a copy.
        """
        if grad is None:
            return None
        if type(grad) is np.ndarray and self._is_usual(grad, dtype):
            self.everywhere.check_apart(grad, path)
            return grad.reshape(-1).view(real_dtype(dtype))
        grad = self.checked(grad, path)
        self.everywhere.check_apart(grad, path)
        turned = self.layout.turn(grad)
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
                f"got {type(grad).__name__}. Use None for no gradient."
            )
        if kind != needed or arrays.device(grad) != arrays.device(array):
            raise BackendMismatchError(
                f"{path} must be on the same device as {self.leaf.path} "
                f"({_place(array)}); got {_place(grad)}. Move it there before the step."
            )
        wanted = "complex" if self.dtype.kind == "c" else "real floating"
        if _sort_of(grad.dtype) != wanted:
            raise TypeError(
                f"{path} must be of a {wanted} dtype like {self.leaf.path}; got {grad.dtype}. "
                + ("Take its real part." if grad.dtype.kind == "c" else "Convert it with .astype.")
            )
        if grad.shape != self.layout.shape:
            raise ValueError(
                f"{path} must have the shape of {self.leaf.path}, {self.layout.shape}; "
                f"got {grad.shape}. Gradients are not broadcast."
            )


def _sort_of(dtype: np.dtype[Any]) -> str:
    floating = dtype.kind == "f" or dtype.name == "bfloat16"
    return "real floating" if floating else "complex" if dtype.kind == "c" else "other"


def _place(array: Array) -> str:
    number = arrays.device(array)
    return "numpy, in host memory" if number is None else f"cupy, on device {number}"


# -------------------------------------------------------------------------------------------------
# Where the state of a bucket lives: in the precision of the arithmetic, or in codes.


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
        scales = make((slots, size // quantization.BLOCK), np.dtype(np.float32))
        return cls(exact, make((slots, size), np.dtype(np.uint8)), scales)

    def fill(self, slot: int, value: float, signed: bool) -> None:
        """Set one slot of the rule to a number, rounded to nearest, everywhere."""
        if self.codes is None:
            self.exact[slot] = value
            return
        values = np.full(quantization.BLOCK, value, np.float32)
        if self.scales is None:
            self.codes[slot] = quantization.to_bfloat16(values, quantization.HALF).item(0)
            return
        code, scale = quantization.to_int8(values, quantization.HALF_OF_INT8, signed)
        self.codes[slot], self.scales[slot] = code.item(0), scale.item(0)

    @property
    def parts(self) -> tuple[Array, ...]:
        """The arrays that there are, in this order."""
        return tuple(part for part in (self.exact, self.codes, self.scales) if part is not None)

    @property
    def nbytes(self) -> int:
        """The bytes of all of it."""
        return sum(part.nbytes for part in self.parts)


# -------------------------------------------------------------------------------------------------
# The state of a bucket's parameters by name: what each row of the arena holds of them.

SCALE = "_scale"
"""What the name of a slot in 8 bits goes on with where its scales are meant."""


class Slots:
    """The rows of an arena, whose rule has ``state``."""

    def __init__(self, state: Sequence[str], format: Format, arena: Arena) -> None:
        self._state = state
        self._limits = format.limits
        self._arena = arena
        of_rule = state if format.state == "real" else ()
        names = (*of_rule, *format.masters, *format.limits)
        self._exact = dict(zip(names, arena.exact, strict=True))

    def limit(self, name: str) -> Array:
        """Return the row of a bound."""
        row: Array = self._exact[name]
        return row

    def views(self, parameter: Parameter) -> Iterator[tuple[str, Array]]:
        """Yield a parameter's state by name, in its shape: codes, their scales, then the others."""
        arena = self._arena
        if arena.codes is not None:
            yield from zip(self._state, map(parameter.code_view, arena.codes), strict=True)
        if arena.scales is not None:
            for slot, row in zip(self._state, arena.scales, strict=True):
                yield slot + SCALE, parameter.scale_view(row)
        for name, row in self._exact.items():
            if name not in self._limits:
                yield name, parameter.state_view(row)


# -------------------------------------------------------------------------------------------------
# Which parameters go to a backend together, their state, and their step counts.


class Bucket:
    """The parameters of one group, device, dtype and storage of state: one driver, one arena.

    ``positions`` are the places of the parameters among the leaves of the tree. A step is either
    ``step_at_once``, or ``check``, ``plan`` and ``update``, in this order.
    """

    def __init__(
        self,
        backend: Backend,
        rule: Rule,
        leaves: Sequence[Leaf],
        positions: Sequence[int],
        fill: Mapping[str, float],
        format: Format,
        everywhere: Extents,
    ) -> None:
        self.backend = backend
        self.format = format
        self.rule = rule
        self.positions = tuple(positions)
        self.parameters: list[Parameter] = []
        size, alignment = 0, backend.alignment
        if format.state == "int8":
            alignment = max(alignment, quantization.BLOCK)  # both are powers of two
        for leaf in leaves:
            parameter = Parameter.of(leaf, size, everywhere, backend.bridges_gaps)
            self.parameters.append(parameter)
            size += -(-parameter.size // alignment) * alignment
        like = leaves[0].array
        allocate = partial(backend.allocate, like)
        self._arena = Arena.zeros(allocate, len(rule.state), size, format)
        self._slots = Slots(rule.state, format, self._arena)
        for slot, value in fill.items():
            with arrays.on_device_of(like):
                self._arena.fill(rule.state.index(slot), value, slot in rule.signed)
        self._driver = backend.driver(rule, self.parameters, self._arena, format)
        self._copied = [(i, p) for i, p in enumerate(self.parameters) if p.copied]
        self.steps = np.zeros(len(leaves), np.int64)
        """How many steps each parameter has made."""
        self._even = True  # whether they are all the same
        self.active: Sequence[int] | None = None
        """The parameters that the last ``check`` saw a gradient for; None: all."""
        self._table: list[Sequence[float]] = []
        self._rows: list[int] | None = None

    def use(self, rule: Rule) -> None:
        """Go on with a rule that keeps the same state."""
        if rule is not self.rule:
            self.rule = rule
            self._driver = self.backend.driver(rule, self.parameters, self._arena, self.format)

    def check(self, params: list[Any], grads: list[Any], root: str, copying: bool = True) -> None:
        """Look at a step's arrays before anything is written; raises what is wrong with one.

        ``params`` and ``grads`` are those of all leaves of the tree; ``root`` is what the errors
        call the gradients' tree. Without ``copying`` a gradient that would have to be copied (cast,
        or turned) is wrong too.
        """
        if len(params) != len(self.positions):  # there are other buckets too
            params = [params[position] for position in self.positions]
            grads = [grads[position] for position in self.positions]
        missing = self._driver.take_usual(params, grads)
        if missing is None:
            if not copying:
                raise RuntimeError(
                    f"some of {root} are not of their parameters' dtype, shape and order in "
                    "memory, or are on another device; a step that is captured copies nothing, so "
                    "hand in arrays like the parameters"
                )
            self._look(params, grads, root)
            missing = sum(grad is None for grad in grads)
        self.active = None if not missing else [i for i, g in enumerate(grads) if g is not None]

    def _look(self, params: Sequence[Any], grads: Sequence[Any], root: str) -> None:
        """Look at every array in turn, and make the flat gradients."""
        wanted = self._read_as(grads)
        flat: list[Array | None] = []
        for parameter, param, grad in zip(self.parameters, params, grads, strict=True):
            path = root + parameter.leaf.suffix
            parameter.check_array(param)
            flat.append(parameter.flat_gradient(grad, wanted, path))
        self._driver.take_flat(flat)

    def _read_as(self, grads: Sequence[Any]) -> np.dtype[Any]:
        """Return the dtype that all gradients are read in: their own, where a step can read it."""
        like = self.parameters[0].dtype
        for real in self.format.readable:
            dtype = dtype_of(real, like)
            if all(grad is None or getattr(grad, "dtype", None) == dtype for grad in grads):
                return dtype
        return dtype_of(self.real, like)

    @property
    def at_once(self) -> bool:
        """Whether ``step_at_once`` can do anything."""
        return self._driver.step_at_once is not None

    def step_at_once(
        self,
        params: list[Any],
        grads: list[Any],
        scalars: Callable[[int], Sequence[float]],
        clock: Array,
    ) -> bool:
        """Check, update and count in one compiled call, if all is as usual; else return False."""
        step = self._driver.step_at_once
        if step is None or not self._even:
            return False
        return step(params, grads, scalars(self.steps.item(0) + 1), self.steps, clock)

    def take_nothing(self) -> None:
        """Take a step's gradients as missing, all of them."""
        self._driver.take_flat([None] * len(self.parameters))
        self.active = []

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need."""
        self._driver.warm_up(norm)

    def squares(self, factor: float) -> Array:
        """Return the sums of squares of the checked gradients, by pieces."""
        return self._driver.squares(factor)

    def norms(self) -> list[float]:
        """Return the norm of each parameter's checked gradient, 0 for none."""
        sizes = [parameter.size for parameter in self.parameters]
        return array_norms(sizes, self._driver.squares, self.real)

    @property
    def averages_squares_in_float32(self) -> bool:
        """Whether the step that was checked averages squares of gradients in float32."""
        return self.rule.averages_squares and self.real.itemsize == 4 and bool(self.members())

    def nonfinite(self) -> Leaf | None:
        """Return the first parameter whose checked gradient holds NaN or infinity."""
        bad = np.flatnonzero(~np.isfinite(self._driver.squares(SMALLER)))
        if not bad.size:
            return None
        ends = np.cumsum(piece_counts(parameter.size for parameter in self.parameters))
        return self.parameters[int(np.searchsorted(ends, bad[0], side="right"))].leaf

    def plan(self, scalars: Callable[[int], Sequence[float]]) -> None:
        """Work out the coming step's scalars.

        ``scalars`` gives those of a parameter's t-th step (1 for its first); parameters that have
        missed gradients are at another step than the rest.
        """
        if self.active is None and self._even:
            self._table, self._rows = [scalars(int(self.steps[0]) + 1)], None
            return
        row_of: dict[int, int] = {}
        self._rows = [0] * len(self.steps)
        for i in self.members():
            self._rows[i] = row_of.setdefault(int(self.steps[i]), len(row_of))
        self._table = [scalars(step + 1) for step in row_of]

    def members(self) -> Sequence[int]:
        """Return the indices of the parameters that have a gradient."""
        return range(len(self.steps)) if self.active is None else self.active

    def update(self) -> None:
        """Update the parameters that ``check`` saw a gradient for, by the scalars of ``plan``."""
        if self._table:
            self.update_by(lambda: self._driver.update(self._table, self._rows))
            self.count(self.active, 1)

    def update_by(self, launch: Callable[[], None]) -> None:
        """Update by what ``launch`` does to flat parameters, copied there and back if need be."""
        chosen = set(self.members()) if self._copied else ()
        copied = [parameter for i, parameter in self._copied if i in chosen]
        for parameter in copied:
            parameter.gather()
        launch()
        for parameter in copied:
            parameter.scatter()

    def count(self, active: Sequence[int] | None, steps: int) -> None:
        """Add to the step counts of some parameters (None: all)."""
        self.steps[slice(None) if active is None else active] += steps
        if active is not None or not self._even:
            self._even = bool((self.steps == self.steps[0]).all())

    @property
    def device_side(self) -> DeviceSide | None:
        """What its driver does by decisions that were made on its device."""
        return self._driver.device_side

    @property
    def real(self) -> np.dtype[Any]:
        """The dtype of the state and of the scalars."""
        return self.format.real

    @property
    def nbytes(self) -> int:
        """The bytes of the state."""
        return self._arena.nbytes

    def set_bounds(self, bounds: Sequence[tuple[Array, Array]]) -> None:
        """Write the bounds of every parameter, arrays in its shape, into their slots."""
        for parameter, pair in zip(self.parameters, bounds, strict=True):
            for slot, values in zip(BOUNDS, pair, strict=True):
                view = parameter.state_view(self._slots.limit(slot))
                with arrays.on_device_of(view):
                    view[...] = arrays.like(values.astype(view.dtype), view)

    def set_step(self, index: int, step: int) -> None:
        """Set one parameter's step count."""
        self.steps[index] = step
        self._even = bool((self.steps == self.steps[0]).all())

    def state(self) -> Iterator[tuple[Leaf, int, dict[str, Array]]]:
        """Yield each parameter's leaf, step count and state (views, in the parameter's shape)."""
        for parameter, step in zip(self.parameters, self.steps.tolist(), strict=True):
            yield parameter.leaf, step, dict(self._slots.views(parameter))
