"""The scalars of updates, worked out on the host in float64, and the plan that they make."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends.interface import COMMON_SCALARS
from fastopt.core import hyperparameters, quantization
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, Gradients
from fastopt.core.denormals import FLUSH_EVERY, tiny
from fastopt.core.hyperparameters import Formula, Options, Value
from fastopt.core.param_groups import ParamGroup
from fastopt_kernels import AnyRule

Row = tuple[float, ...]
"""The scalars of an update, in this order, all neutral where there is nothing to do:

* the five that all rules have in common (``COMMON_SCALARS``): with them a backend does
  ``grad <- grad_scale * grad + l2 * param``, ``param <- param - decay * param``, the rule, and then
  sets state to 0 whose magnitude is below ``tiny_signed`` or ``tiny_positive``.
  ``grad_scale`` is 1, or -1 for ``maximize``; the backend multiplies it by what the verdict says
  (the user's ``grad_scale`` and clipping). ``l2`` is ``weight_decay`` where that acts on the
  gradient, ``decay`` is ``lr * weight_decay`` where it acts on the parameter (``Formula._decay``
  says which; the other one is 0). The two thresholds of the flush are those of ``core.denormals``
  in every eighth step and 0 otherwise, which flushes nothing;
* the rule's own: what ``Formula._scalars`` returns, as far as the rule names it;
* those of fragments, bounds that are numbers, the halves of a random key: only where they are used.
"""


class Plan(NamedTuple):
    """The scalars of a bucket's coming update, for gradients that are not scaled.

    ``table`` has a row for each distinct set of scalars; ``row_numbers`` says which one each
    parameter of the bucket takes, None that all take the first. ``for_memory`` has for each row of
    the table the scalars that the rule's memory is given, if it has one. Where there are members
    (``UpdateSpec``), the table is an array with a row for each of them, one after another;
    ``row_numbers`` says where those of each parameter begin.
    """

    table: Sequence[Row] | Array
    row_numbers: Sequence[int] | None
    for_memory: Sequence[Row] = ()

    def row_of(self, index: int) -> int:
        """Return the number of a parameter's row."""
        return 0 if self.row_numbers is None else self.row_numbers[index]


class Scalars:
    """The scalars of one bucket's updates, worked out in float64: makes the rows (``Row``).

    What does not depend on the step count is kept until a setting of the group changes: ``_common``
    are the five common scalars without a flush, ``_flushing`` with one, ``_constant`` what follows
    those of the rule.
    """

    def __init__(self, formula: type[Formula], group: ParamGroup, bucket: Bucket) -> None:
        self._formula = formula
        self._group = group
        self._bucket = bucket
        self._members = bucket.members
        self._prepared_for: int | None = None  # the group's revision
        self._picks_for: AnyRule | None = None
        self._made_of: tuple[Value, ...] = ()  # what the common scalars are worked out from
        self._flushing: tuple[Any, ...]
        self._common: tuple[Any, ...]
        self._constant: Row
        self._seed: int | None

    def plan(self, options: Options, gradients: Gradients) -> Plan:
        """Return the plan of a step; the options have numbers in the place of schedules."""
        self._follow_settings(options)
        bucket, active = self._bucket, gradients.active
        if active is None and bucket.steps_equal:
            t = int(bucket.steps[0]) + 1
            if self._members is not None:
                return Plan(self._table(t), None)
            return Plan([self.row(t)], None, self._for_memory([t]))
        number_of: dict[int, int] = {}
        rows = [0] * len(bucket.steps)
        for i in range(len(bucket.steps)) if active is None else active:
            rows[i] = number_of.setdefault(int(bucket.steps[i]), len(number_of))
        steps = [step + 1 for step in number_of]
        if (members := self._members) is not None:
            tables = [np.zeros((0, len(self._names))), *map(self._table, steps)]
            first = [members * row for row in rows]
            return Plan(np.concatenate(tables), first)
        return Plan([self.row(t) for t in steps], rows, self._for_memory(steps))

    def next_row(self, options: Options) -> Row | Array:
        """Return the row of the coming step, where all parameters have made as many.

        That is an array with a row for each member, if there are any.
        """
        self._follow_settings(options)
        t = self._bucket.steps.item(0) + 1
        return self.row(t) if self._members is None else self._table(t)

    def row_at(self, step_count: int, lag: int) -> Row | Array:
        """Return the row of the step that is made at a step count of the optimizer.

        It is that of parameters which have missed ``lag`` steps, and goes on with what the rule's
        memory is given. With members it is an array with a row for each.
        """
        self._follow_settings(self._group.at(step_count))
        t = step_count - lag + 1
        if self._members is not None:
            return self._table(t)
        return self.row(t) + sum(self._for_memory([t]), ())

    def row(self, t: int) -> Row:
        """Return the row of a parameter's t-th step (1 for the first)."""
        options, lr, guard = self._settings
        common = self._common if t % FLUSH_EVERY else self._flushing
        row = common + self._pick(self._formula._scalars(options, lr, t, guard)) + self._constant
        return row if self._seed is None else row + quantization.key_scalars(self._seed, t)

    def _table(self, t: int) -> Array:
        """Return the rows of the members in the t-th step: an array of columns, turned."""
        assert self._members is not None
        options, lr, guard = self._settings
        made = self._formula._scalars(options, lr, t, guard)
        common = self._common if t % FLUSH_EVERY else self._flushing
        columns = np.empty((len(self._names), self._members))
        for column, value in zip(
            columns, (*common, *self._pick(made), *self._constant), strict=True
        ):
            column[...] = value
        return columns.T

    def _for_memory(self, steps: Sequence[int]) -> Sequence[Row]:
        """Return what the rule's memory is given in some steps of a parameter."""
        memory = self._bucket.rule.memory
        if memory is None:
            return ()
        options, lr, guard = self._settings
        found: Iterator[dict[str, Any]] = (
            self._formula._scalars(options, lr, t, guard) for t in steps
        )
        return [tuple(made[name] for name in memory.given) for made in found]

    def _follow_settings(self, options: Options) -> None:
        """Work the constants out anew if a setting of the group has changed since."""
        group = self._group
        if self._prepared_for == group.revision:
            return
        self.work_out_constants(options)
        # A schedule may say something else in every step, and if it has a memory in the same one.
        self._prepared_for = None if group.scheduled else group.revision

    def work_out_constants(self, options: Options) -> None:
        """Work out what does not depend on the step count."""
        formula, bucket, spec = self._formula, self._bucket, self._bucket.spec
        if bucket.rule is not self._picks_for:
            self._picks_for, self._pick = bucket.rule, _picker(bucket.rule.scalars)
            self._names = (*COMMON_SCALARS, *bucket.rule.scalars, *spec.scalars)
        lr, weight_decay = options["lr"], options["weight_decay"]
        acts_on = formula._decay(options)
        l2 = weight_decay if acts_on == "gradient" else 0.0
        decay = lr * weight_decay if acts_on == "parameter" else 0.0
        sign = -1.0 if options["maximize"] else 1.0
        made_of = (sign, l2, decay, formula._floor(options))
        if self._members is not None or made_of != self._made_of:
            self._work_out_common(*made_of)
            self._made_of = made_of
        self._constant = tuple(options[name] for f in spec.fragments for name in f.scalars)
        if spec.limit_scalars:
            self._constant += hyperparameters.bounds_as_numbers(options["bounds"], spec.stored)
        self._seed = options["seed"] if spec.random_scalars else None
        self._settings = (options, lr, self._guard)

    def _work_out_common(self, sign: float, l2: Value, decay: Value, floor: Value) -> None:
        """Work out the common scalars, with a flush and without, and the guard."""
        real = self._bucket.spec.real
        self._guard, *small = _tiny(real, floor)
        # Rounded here, so that what is 0 in the dtype is left out by every backend alike.
        self._flushing = _rounded([sign, l2, decay, *small], real)
        self._common = (*self._flushing[:3], 0.0, 0.0)


def _tiny(real: np.dtype[Any], floor: Value) -> tuple[Any, Value, Value]:
    """Return the guard of a dtype, and below what signed and positive state is flushed."""
    if isinstance(floor, np.ndarray):
        distinct, places = np.unique(floor, return_inverse=True)
        each = [tiny(real, one) for one in distinct.tolist()]
        signed, positive = ([one.signed for one in each], [one.positive for one in each])
        return each[0].guard, np.array(signed)[places], np.array(positive)[places]
    small = tiny(real, floor)
    return small.guard, small.signed, small.positive


def _rounded(values: Sequence[Value], real: np.dtype[Any]) -> tuple[Any, ...]:
    """Return float64 rounded to a dtype, arrays as arrays."""
    if not any(isinstance(value, np.ndarray) for value in values):
        try:
            return _FLOAT32S.unpack(_FLOAT32S.pack(*values)) if real.itemsize == 4 else (*values,)
        except OverflowError:  # an array makes infinity of it
            pass
    with np.errstate(all="ignore"):
        rounded = (np.asarray(value).astype(real).astype(float) for value in values)
        return tuple(value if value.ndim else value.item() for value in rounded)


_FLOAT32S = struct.Struct(f"{len(COMMON_SCALARS)}f")
"""Rounds floats in a fifth of the time that an array takes."""


def _picker(names: tuple[str, ...]) -> Callable[[dict[str, Any]], Row]:
    """Return what takes values out of a dict, in the order of the names."""
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[n] for n in names)
