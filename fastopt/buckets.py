"""Which parameters go to a backend together, their state, and their step counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends import Backend
from fastopt.parameters import Extents, Parameter
from fastopt.tree import Leaf
from fastopt_kernels import Rule


class Bucket:
    """The parameters of one group on one device and of one dtype: one driver, one arena.

    ``positions`` are the places of the parameters among the leaves of the group.
    """

    def __init__(
        self,
        backend: Backend,
        rule: Rule,
        leaves: Sequence[Leaf],
        positions: Sequence[int],
        fill: Mapping[str, float],
    ) -> None:
        self.backend = backend
        self.rule = rule
        self.positions = tuple(positions)
        self.parameters: list[Parameter] = []
        size = 0
        for leaf in leaves:
            self.parameters.append(Parameter.of(leaf, size))
            size += -(-leaf.array.size // backend.alignment) * backend.alignment
        like = leaves[0].array
        self.dtype = like.dtype
        self._arena = backend.state(len(rule.state), size, like)
        for slot, value in fill.items():
            self._arena[rule.state.index(slot)] = value
        self._driver = backend.driver(rule, self.parameters, self._arena)
        self._extents = Extents(self.parameters)
        self._copied = [(i, p) for i, p in enumerate(self.parameters) if p.copied]
        self._even: int | None = 0  # the step count, while all parameters have the same one
        self._steps = [0] * len(leaves)  # each one's step count, while they differ
        self._active: Sequence[int] | None = None  # parameters with a gradient; None: all
        self._table: list[Sequence[float]] = []
        self._rows: list[int] | None = None

    def check(self, params: list[Any], grads: list[Any], root: str) -> None:
        """Look at a step's arrays before anything is written; raises what is wrong with one.

        ``params`` and ``grads`` are those of all leaves of the group; ``root`` is what the errors
        call the gradients' tree.
        """
        if len(params) != len(self.positions):  # the group has other buckets too
            params = [params[position] for position in self.positions]
            grads = [grads[position] for position in self.positions]
        missing = self._driver.accepts(params, grads)
        if missing is None:
            self._look(params, grads, root)
            missing = sum(grad is None for grad in grads)
        self._active = None if not missing else [i for i, g in enumerate(grads) if g is not None]

    def _look(self, params: Sequence[Any], grads: Sequence[Any], root: str) -> None:
        """Look at every array in turn, and make the flat gradients."""
        flat: list[Array | None] = []
        for parameter, param, grad in zip(self.parameters, params, grads, strict=True):
            path = root + parameter.leaf.suffix
            parameter.check_array(param)
            flat.append(parameter.flat_gradient(grad, path))
            if arrays.kind(grad) is not None:
                self._extents.check_apart(grad, path)
        self._driver.hold(flat)

    def plan(self, scalars: Callable[[int], Sequence[float]]) -> None:
        """Work out the coming step's scalars.

        ``scalars`` gives those of a parameter's t-th step (1 for its first); parameters that have
        missed gradients are at another step than the rest.
        """
        if self._active is None and self._even is not None:
            self._table, self._rows = [scalars(self._even + 1)], None
            return
        steps = self.steps
        active = range(len(steps)) if self._active is None else self._active
        row_of: dict[int, int] = {}
        self._rows = [0] * len(steps)
        for i in active:
            self._rows[i] = row_of.setdefault(steps[i], len(row_of))
        self._table = [scalars(step + 1) for step in row_of]

    def update(self) -> None:
        """Update the parameters that ``check`` saw a gradient for, by the scalars of ``plan``."""
        if not self._table:
            return
        copied = [p for i, p in self._copied if self._active is None or i in self._active]
        for parameter in copied:
            parameter.gather()
        self._driver.update(self._table, self._rows)
        for parameter in copied:
            parameter.scatter()
        self._count()

    def _count(self) -> None:
        if self._rows is None and self._even is not None:
            self._even += 1
            return
        steps = self.steps
        for i in range(len(steps)) if self._active is None else self._active:
            steps[i] += 1
        self.steps = steps

    @property
    def steps(self) -> list[int]:
        """How many steps each parameter has made."""
        return list(self._steps) if self._even is None else [self._even] * len(self.parameters)

    @steps.setter
    def steps(self, steps: list[int]) -> None:
        self._steps = steps
        self._even = steps[0] if len(set(steps)) == 1 else None

    def set_step(self, index: int, step: int) -> None:
        """Set one parameter's step count."""
        steps = self.steps
        steps[index] = step
        self.steps = steps

    def state(self) -> Iterator[tuple[Leaf, int, dict[str, Array]]]:
        """Yield each parameter's leaf, step count and state (views, in the parameter's shape)."""
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            views = map(parameter.state_view, self._arena)
            yield parameter.leaf, step, dict(zip(self.rule.state, views, strict=True))
