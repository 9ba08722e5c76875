"""Updates by rules on whole arrays, in NumPy or CuPy, whichever the parameters are.

Computing is pure and belongs to the preparation of a step; writing what came of it cannot fail.
Parameters of equal shape and scalars are computed side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from fastopt.backends.interface import COMMON_SCALARS
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, Gradients, Parameter
from fastopt.core.dtypes import MASTER
from fastopt.core.passes import derived_of
from fastopt.core.quantization import current, narrowed
from fastopt.engine.scalars import Plan
from fastopt_kernels import AnyRule, ArrayRule
from fastopt_kernels.around import Fragment


class NewValues(NamedTuple):
    """What becomes of one parameter and its state, in the precision of the arithmetic."""

    parameter: Parameter
    param: Array
    state: dict[str, Array]


class Scaled(NamedTuple):
    """The parameters that take the same scalars, by number, and a row of these in one array.

    ``derived`` has the scalars that fragments have made of sums, a row for each parameter of the
    bucket in one array after the other; None without such fragments. ``on_host`` is the row as the
    host has it; None where the device decides on the step.
    """

    indices: Sequence[int]
    row: Array
    derived: Array | None = None
    on_host: Array | None = None


def decides(rule: AnyRule) -> bool:
    """Return whether the host decides in every step what a rule computes."""
    return isinstance(rule, ArrayRule) and bool(rule.decisions)


def compute(
    bucket: Bucket, gradients: Gradients, plan: Plan, scale: float, derived: Array | None
) -> list[NewValues]:
    """Return what becomes of the parameters that have a gradient, with scalars of the host."""
    active = range(len(bucket.parameters)) if gradients.active is None else gradients.active
    by_row: dict[int, list[int]] = {}
    for index in active:
        by_row.setdefault(plan.row_of(index), []).append(index)
    real = bucket.spec.real
    xp = arrays.namespace_of(bucket.arena.numbers)
    made = []
    with arrays.on_device_of(bucket.arena.numbers), np.errstate(all="ignore"):
        there = None if derived is None else xp.asarray(derived.reshape(-1))
        for number, indices in by_row.items():
            row = np.array(plan.table[number], real)
            row[0] *= real.type(scale)
            made += computed(bucket, gradients, Scaled(indices, xp.asarray(row), there, row))
    return made


def computed(bucket: Bucket, gradients: Gradients, scaled: Scaled) -> list[NewValues]:
    """Return what becomes of parameters that take the same scalars, on whichever device."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index in scaled.indices:
        by_shape.setdefault(bucket.parameters[index].layout.shape, []).append(index)
    return [
        one
        for indices in by_shape.values()
        for one in _side_by_side(bucket, gradients, scaled._replace(indices=indices))
    ]


def _side_by_side(bucket: Bucket, gradients: Gradients, scaled: Scaled) -> list[NewValues]:
    """Compute parameters of equal shape, along a first axis of their own."""
    rule, spec = cast(ArrayRule, bucket.rule), bucket.spec
    indices, row, _, on_host = scaled
    parameters = [bucket.parameters[index] for index in indices]
    xp = arrays.namespace_of(row)
    param = _stacked(xp, [_current(parameter, bucket) for parameter in parameters])
    given = [_given(bucket.parameters[k], gradients, k, spec.real) for k in indices]
    grad = _stacked(xp, given)
    views = {
        slot: [bucket.arena.view(slot, parameter) for parameter in parameters]
        for slot in rule.state
    }
    state = {slot: _stacked(xp, found) for slot, found in views.items() if found[0] is not None}
    numbers = [row[k] for k in range(len(COMMON_SCALARS) + len(rule.scalars))]
    grad_scale, l2, decay, tiny_signed, tiny_positive, *own = numbers
    scalars: dict[str, Any] = dict(zip(rule.scalars, own, strict=True))
    for name in rule.decisions:
        assert on_host is not None
        scalars[name] = float(on_host[len(COMMON_SCALARS) + rule.scalars.index(name)])
    plain_grad = grad * grad_scale
    known = {"plain_grad": plain_grad, "grad": plain_grad}
    grad = _around(bucket, scaled, "gradient", known)
    grad = grad + xp.where(l2 != 0, l2 * param, 0 * l2)
    decayed = param - xp.where(decay != 0, decay * param, 0 * decay)
    known |= {"grad": grad, "before": param, "decayed": decayed}
    param, state = rule(xp, decayed, grad, state, scalars)
    param = _around(bucket, scaled, "after", {**known, "after": param})
    param, state = _kept(bucket, parameters, row, param, state)
    for slot, values in state.items():
        tiny = tiny_signed if slot in rule.signed else tiny_positive
        state[slot] = xp.where(abs(values) < tiny, 0 * tiny, values)
    return [
        NewValues(parameter, param[k], {slot: values[k] for slot, values in state.items()})
        for k, parameter in enumerate(parameters)
    ]


def _stacked(xp: Any, given: Sequence[Any]) -> Any:
    """Return arrays of one shape along a first axis, in C order whatever theirs is.

    The order in memory decides in which order libraries add, and so the last bits: they must not
    depend on how many arrays there are, nor on how a gradient came to be.
    """
    return xp.ascontiguousarray(xp.stack(given))


def _around(
    bucket: Bucket,
    scaled: Scaled,
    at: Literal["gradient", "after"],
    values: Mapping[str, Array],
) -> Array:
    """Return what the fragments that act there make of arrays of equal shape, by their names.

    At the gradient that is what becomes of ``grad``, after the rule what becomes of ``after``.
    """
    rule, spec = bucket.rule, bucket.spec
    result = "grad" if at == "gradient" else "after"
    first = len(COMMON_SCALARS) + len(rule.scalars)
    for fragment in spec.fragments:
        own = range(first, first + len(fragment.scalars))
        first = own.stop
        if fragment.at == at:
            taken = [*(values[name] for name in fragment.values), *(scaled.row[k] for k in own)]
            taken += _made_of_sums(bucket, scaled, fragment, values[result].ndim)
            values = {**values, result: fragment.numpy(*taken)}
    return values[result]


def _made_of_sums(bucket: Bucket, scaled: Scaled, fragment: Fragment, ndim: int) -> list[Array]:
    """Return what a fragment has made of its sums, each number beside its parameter's array."""
    derived = derived_of(bucket.rule, bucket.spec)
    made: list[Array] = []
    for one in derived.passes:
        if one.fragment is fragment:
            assert scaled.derived is not None
            table = scaled.derived.reshape(-1, len(derived.names)).astype(bucket.spec.real)
            rows = arrays.namespace_of(table).stack([table[k] for k in scaled.indices])
            each = rows.reshape(*rows.shape, *[1] * (ndim - 1))
            columns = range(one.derived_columns.start, one.derived_columns.stop)
            made += [each[:, k] for k in columns]
    return made


def _current(parameter: Parameter, bucket: Bucket) -> Array:
    """Return a parameter in the precision of the arithmetic: its master, where that holds."""
    stored = parameter.leaf.array
    if not bucket.spec.master:
        return stored.astype(bucket.spec.real)
    return current(parameter.state_view(bucket.arena.rows[MASTER]), stored)


def _given(parameter: Parameter, gradients: Gradients, index: int, real: np.dtype[Any]) -> Array:
    """Return a gradient in the parameter's shape, in the precision of the arithmetic."""
    given = gradients.arrays[index]
    assert given is not None
    if given.ndim == 1 or given.shape != parameter.layout.shape:  # a vector may be turned round
        given = parameter.layout.in_shape(given)
    return given.astype(real)


def _kept(
    bucket: Bucket,
    parameters: Sequence[Parameter],
    row: Array,
    param: Array,
    state: dict[str, Array],
) -> tuple[Array, dict[str, Array]]:
    """Keep parameters within their bounds, and with ``reset`` the state of those at one at 0."""
    spec = bucket.spec
    if spec.bounds == "none":
        return param, state
    xp = arrays.namespace_of(param)
    if spec.limits:
        rows = bucket.arena.rows
        lower, upper = (
            xp.stack([parameter.state_view(rows[name]) for parameter in parameters])
            for name in spec.limits
        )
    else:
        lower, upper = row[-2], row[-1]
    param = xp.where(param < lower, lower, param)
    param = xp.where(param > upper, upper, param)
    if spec.reset:
        at_bound = (param == lower) | (param == upper)
        for slot in set(bucket.rule.reset).intersection(bucket.arena.slots):
            state[slot] = xp.where(at_bound, 0 * state[slot], state[slot])
    return param, state


def write(bucket: Bucket, made: Sequence[NewValues], when: Array | None = None) -> None:
    """Write what was computed; with ``when``, a truth value on a device, only if it is true."""
    spec, rows = bucket.spec, bucket.arena.rows
    with arrays.on_device_of(bucket.arena.numbers), np.errstate(all="ignore"):
        for parameter, param, state in made:
            target = parameter.leaf.array
            pairs: list[tuple[Any, Any]] = [(target, narrowed(param, target.dtype))]
            pairs += [(bucket.arena.view(slot, parameter), new) for slot, new in state.items()]
            pairs += [(parameter.state_view(rows[slot]), param) for slot in spec.masters]
            for view, new in pairs:
                if when is not None:
                    new = arrays.namespace_of(view).where(when, new, view)
                view[...] = new
