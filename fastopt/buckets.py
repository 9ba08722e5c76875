"""Which parameters go to a backend together, their state, and their step counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import arrays, codes
from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.backends import Backend
from fastopt.extents import Extents
from fastopt.formats import BOUNDS, Format, dtype_of
from fastopt.norms import SMALLER, array_norms, piece_counts
from fastopt.parameters import Parameter
from fastopt.slots import Slots
from fastopt.tree import Leaf
from fastopt_kernels import Rule

if TYPE_CHECKING:
    from fastopt.backends.decisions import DeviceSide


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
            alignment = max(alignment, codes.BLOCK)  # both are powers of two
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
