"""Steps of some rows of a parameter (``RowGrad``): they are updated as an array of their own.

The rows, with their state, are copied into a bucket that holds nothing else; it is updated by the
same kernel as any other, and copied back when the step is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fastopt.backends.interface import Backend, Kernel
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients, OptimizerState, Parameter
from fastopt.core.hyperparameters import Options
from fastopt.core.param_groups import ParamGroup
from fastopt.core.passes import derived_of
from fastopt.core.rows import RowGrad
from fastopt.engine.scalars import Scalars
from fastopt_kernels import ArrayRule


class Rows(NamedTuple):
    """Some rows of one parameter: of that at this ``place`` in the bucket of this ``number``.

    ``bucket``, ``kernel`` and ``gradients`` are those of the rows alone.
    """

    number: int
    place: int
    rows: Array
    parameter: Parameter
    whole: Bucket
    bucket: Bucket
    kernel: Kernel
    gradients: Gradients

    def update(self, options: Options, group: ParamGroup, scale: float) -> None:
        """Update the copies of the rows and of their state; the parameter stays as it is."""
        self._copy(back=False)
        plan = Scalars(self.bucket.formula, group, self.bucket).plan(options, self.gradients)
        self.kernel.update(self.gradients, plan.table, plan.row_numbers, scale)

    def write(self) -> None:
        """Copy the rows and their state back, and count the step."""
        self._copy(back=True)
        self.whole.advance([self.place], 1)

    def _copy(self, back: bool) -> None:
        own, all_of_it = self.bucket.parameters[0], self.parameter
        rows, pairs = self.rows, [(own.leaf.array, all_of_it.leaf.array)]
        theirs = self.whole.arena.rows
        for name, row in self.bucket.arena.rows.items():
            pairs.append((own.state_view(row), all_of_it.state_view(theirs[name])))
        with arrays.on_device_of(rows):
            for some, every in pairs:
                if back:
                    every[rows] = some
                else:
                    some[...] = every[rows]


def split(state: OptimizerState, grads: Any) -> tuple[dict[int, RowGrad], Any]:
    """Return the gradients of rows by the position of their leaf, and all others in a tree."""
    given = state.tree.match(grads)
    found = {k: grad for k, grad in enumerate(given) if type(grad) is RowGrad}
    if not found:
        return found, grads
    return found, state.tree.nest([None if k in found else grad for k, grad in enumerate(given)])


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
    parameter = whole.parameters[index]
    leaf, path = parameter.leaf, f"grads{parameter.leaf.place}"
    _check_takes_rows(state, whole, path, leaf.path)
    rows, values = grad.merged(parameter.layout.shape, path)
    with arrays.on_device_of(leaf.array):
        array = arrays.namespace_of(leaf.array).empty(values.shape, parameter.dtype)
    own = Bucket.of(
        whole.formula,
        whole.group,
        whole.rule,
        whole.spec,
        [replace(leaf, array=array, place=f"{leaf.place}.values")],
        [0],
        {},
        {},
        backend.allocate,
        backend.alignment,
        backend.bridges_gaps,
    )
    own.steps[0] = whole.steps[index]
    gradients = own.bind([array], [values], extents)
    kernel = backend.kernel(own, extents)
    rows = arrays.like(rows, array)
    return Rows(number, index, rows, parameter, whole, own, kernel, gradients)


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
