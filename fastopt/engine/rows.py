"""Steps of some rows of a parameter (``RowGrad``).

A kernel that can updates them where they stand. For others they are copied, with their state, into
a bucket that holds nothing else, updated by a kernel of their own, and copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fastopt.backends.interface import Backend, Kernel
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients, OptimizerState, Parameter
from fastopt.core.dtypes import real_dtype
from fastopt.core.passes import derived_of
from fastopt.core.rows import RowGrad
from fastopt.core.tree import Leaf
from fastopt_kernels import ArrayRule


@dataclass(frozen=True, eq=False)
class Rows:
    """The gradient of some rows of a parameter: this ``place`` in the bucket of this ``number``.

    ``path`` is what errors call it. What a kernel that updates rows where they stand does not need
    is worked out when it is asked for.
    """

    number: int
    place: int
    given: RowGrad
    whole: Bucket
    path: str
    backend: Backend
    extents: Extents

    @cached_property
    def merged(self) -> tuple[Array, Array]:
        """The numbers of the rows, ascending and each once, and their gradients."""
        return self.given.merged(self.whole.parameters[self.place].layout.shape, self.path)

    @cached_property
    def leaf(self) -> Leaf:
        """The array that rows are copied to, if they are."""
        parameter, (_, values) = self.whole.parameters[self.place], self.merged
        leaf = parameter.leaf
        with arrays.on_device_of(leaf.array):
            array = arrays.namespace_of(leaf.array).empty(values.shape, parameter.dtype)
        return replace(leaf, array=array, place=f"{leaf.place}.values")

    @cached_property
    def gradients(self) -> Gradients:
        """The gradients of the rows, as those of an array."""
        values = self.merged[1]
        wanted, path = self.whole.read_as([values]), f"{self.path}.values"
        flat = Parameter.of(self.leaf, 0).flat_gradient(values, wanted, path, self.extents)
        return Gradients.of([flat], real_dtype(wanted), complete=True)

    @cached_property
    def bucket(self) -> Bucket:
        """The rows as a parameter of its own, with zeros for state."""
        whole, backend = self.whole, self.backend
        own = Bucket.of(
            whole.formula,
            whole.group,
            whole.rule,
            whole.spec,
            [self.leaf],
            [0],
            {},
            {},
            backend.allocate,
            backend.alignment,
            backend.bridges_gaps,
        )
        own.steps[0] = whole.steps[self.place]
        return own

    @cached_property
    def kernel(self) -> Kernel:
        """What updates this bucket, and measures its gradients."""
        return self.backend.kernel(self.bucket, self.extents)

    def update(self, kernel: Kernel, scalars: Sequence[float], scale: float) -> Callable[[], None]:
        """Work the update out, and return what writes it and cannot fail; raises what is wrong.

        ``kernel`` is that of the whole bucket, ``scalars`` are those of the step.
        """
        run = None
        if self.given.fits(self.whole.parameters[self.place].layout.shape):
            indices, values = vars(self).get("merged", (self.given.indices, self.given.values))
            run = kernel.of_rows(self.place, indices, values, scalars, scale)
        if run is None:
            self.copy(back=False)
            self.kernel.update(self.gradients, [scalars], None, scale)

        def write() -> None:
            if run is None:
                self.copy(back=True)
            else:
                run()
            self.whole.advance([self.place], 1)

        return write

    def copy(self, back: bool) -> None:
        """Copy parameter and state to the bucket of the rows, or back."""
        own, parameter = self.bucket.parameters[0], self.whole.parameters[self.place]
        pairs = [(own.leaf.array, parameter.leaf.array)]
        of_whole = self.whole.arena.rows
        for name, row in self.bucket.arena.rows.items():
            pairs.append((own.state_view(row), parameter.state_view(of_whole[name])))
        rows = arrays.like(self.merged[0], own.leaf.array)
        with arrays.on_device_of(own.leaf.array):
            for some, every in pairs:
                if back:
                    every[rows] = some
                else:
                    some[...] = every[rows]


def split(given: list[Any]) -> tuple[list[Any], dict[int, RowGrad]]:
    """Return gradients with None in the place of those of rows, and these by their position."""
    found = {k: grad for k, grad in enumerate(given) if type(grad) is RowGrad}
    if not found:
        return given, found
    return [None if k in found else grad for k, grad in enumerate(given)], found


def bind(
    state: OptimizerState,
    given: Mapping[int, RowGrad],
    trained: Iterable[int],
    backend: Backend,
    extents: Extents,
) -> list[Rows]:
    """Return the checked rows of the parameters that are trained; raises what is wrong with one."""
    now = state.tree.current()
    found = []
    for number in trained:
        whole = state.buckets[number]
        for index, position in enumerate(whole.positions):
            if (grad := given.get(position)) is not None:
                parameter = whole.parameters[index]
                parameter.check_array(now[position])
                found.append(_bound(state, number, index, grad, backend, extents))
    return found


def _bound(
    state: OptimizerState,
    number: int,
    index: int,
    grad: RowGrad,
    backend: Backend,
    extents: Extents,
) -> Rows:
    whole = state.buckets[number]
    leaf = whole.parameters[index].leaf
    path = f"grads{leaf.place}"
    _check_takes_rows(state, whole, path, leaf.path)
    return Rows(number, index, grad, whole, path, backend, extents)


def _check_takes_rows(state: OptimizerState, bucket: Bucket, path: str, param: str) -> None:
    """Raise TypeError if an optimizer's steps cannot be made for some rows alone."""
    spec, options = bucket.spec, state.groups[bucket.group]
    why = None
    if isinstance(bucket.rule, ArrayRule):
        why = "a step is one of whole arrays"
    elif state.formula._estimate is not None:
        why = "a step may need an estimate of the Hessian of all rows"
    elif bucket.rule.memory is not None:
        why = "a step goes by what is remembered of all rows"
    elif derived_of(bucket.rule, spec).passes:
        names = [fragment.name for fragment in spec.fragments if fragment.memory]
        why = f"{', '.join(names)} goes by sums over whole arrays"
    elif spec.state != "real":
        why = f"state_dtype={options['state_dtype']!r} is coded by blocks of whole arrays"
    elif spec.random_scalars:
        why = "stochastic_rounding draws by the place in the whole array"
    elif spec.members:
        why = "members are fits of their own"
    if why:
        raise TypeError(
            f"{path} is a RowGrad, which {state.formula.__name__} does not take here: {why}. "
            f"Hand in the gradient of all rows: {path}.dense({param})."
        )
