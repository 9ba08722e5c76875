"""The scalars of updates, worked out on the host in float64, and the plan that they make."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, cast

import numpy as np

from fastopt.backends.interface import COMMON_SCALARS
from fastopt.core import hyperparameters, quantization
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, Gradients
from fastopt.core.denormals import FLUSH_EVERY, tiny
from fastopt.core.hyperparameters import Formula, Options, Value
from fastopt.core.param_groups import ParamGroup
from fastopt.core.passes import derived_of
from fastopt_kernels import AnyRule
from fastopt_kernels.around import Fragment

Row = tuple[float, ...]
"""The scalars of an update, in this order, all neutral where there is nothing to do:

* the five that all rules have in common (``COMMON_SCALARS``): with them a backend does
  ``grad <- grad_scale * grad + l2 * param``, ``param <- param - decay * param``, the rule, and then
  sets state to 0 whose magnitude is below ``tiny_signed`` or ``tiny_positive``.
  ``grad_scale`` is 1, or -1 for ``maximize``; the backend multiplies it by what the verdict says
  (the user's ``grad_scale`` and clipping). ``l2`` is ``weight_decay`` where that acts on the
  gradient, ``decay`` is ``lr * lr_scale * weight_decay``, over ``decoupled_lr`` if
  that is a number, where it acts on the parameter (``Formula._decay`` says which; the other one is
  0). The two thresholds of the flush are those of ``core.denormals`` in every eighth step and 0
  otherwise, which flushes nothing;
* the rule's own: what ``Formula._scalars`` returns, as far as the rule names it;
* those of fragments, bounds that are numbers, the halves of a random key: only where they are used.
"""


Columns = tuple[Value, ...]
"""The same where there are members: what differs between them is an array of one for each."""

AHEAD = 32
"""Steps whose rows are worked out at once."""


class Plan(NamedTuple):
    """The scalars of a bucket's coming update, for gradients that are not scaled.

    ``table`` has a row for each distinct set of scalars; ``row_numbers`` says which one each
    parameter of the bucket takes, None that all take the first. ``for_memory`` has for each row of
    the table the numbers that the memories of the update's passes are given, if any are. Where
    there are members (``UpdateSpec``), the table is an array with a row for each of them, one after
    another; ``row_numbers`` says where those of each parameter begin.
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
        # Where it is the optimizer's own, options need no other words.
        self._view = None if formula._view is Formula._view else formula._view
        self._group = group
        self._bucket = bucket
        self._members = bucket.members
        self._prepared_for: int | None = None  # the group's revision
        self._lr_scale: Value = 1.0
        self._made_at: Value | None = None  # the lr that constants were multiplied by
        self._ahead: Sequence[Row] = ()  # rows of coming steps,
        self._ahead_from = 0  # from this step of a parameter on,
        # for settings that have changed so many times, and steps that a parameter has missed.
        self._ahead_for: tuple[int, int] | None = None
        self._picks_for: AnyRule | None = None
        # What memories take: a name, and the fragment whose option it is (None: the rule's scalar).
        self._inputs: list[tuple[str, Fragment | None]] = []
        self._made_of: tuple[Value, ...] = ()  # what the common scalars are worked out from
        self._guard: float
        self._flushing: tuple[Any, ...]
        self._common: tuple[Any, ...]
        self._constant: Row
        self._seed: int | None

    def plan(
        self,
        options: Options,
        gradients: Gradients,
        scale: Array | None = None,
        step_counts: Array | None = None,
    ) -> Plan:
        """Return the plan of a step; the options have numbers in the place of schedules.

        ``scale`` multiplies the gradients of each member, where they are judged by themselves;
        ``step_counts`` are the steps that each has made, where they are not all the same.
        """
        bucket, active = self._bucket, gradients.active
        if step_counts is not None:
            return self._plan_apart(step_counts, scale, active)
        if active is None and bucket.steps_equal:
            t = int(bucket.steps[0]) + 1
            row, inputs = self._row_and_inputs(options, t)
            if self._members is not None:
                return Plan(self._table(row, scale), None)
            return Plan([cast(Row, row)], None, [inputs])
        number_of: dict[int, int] = {}
        rows = [0] * len(bucket.steps)
        for i in range(len(bucket.steps)) if active is None else active:
            rows[i] = number_of.setdefault(int(bucket.steps[i]), len(number_of))
        found = [self._row_and_inputs(options, step + 1) for step in number_of]
        if self._members is not None:
            tables = [self._table(row, scale) for row, _ in found]
            first = [self._members * row for row in rows]
            return Plan(np.concatenate([np.zeros((0, self._width)), *tables]), first)
        return Plan([cast(Row, row) for row, _ in found], rows, [inputs for _, inputs in found])

    def _plan_apart(
        self, step_counts: Array, scale: Array | None, active: Sequence[int] | None
    ) -> Plan:
        """Return the plan of a step of members that have made different steps."""
        bucket = self._bucket
        assert bucket.missed is not None
        first_of: dict[bytes, int] = {}
        tables: list[Array] = []
        rows = [0] * len(bucket.steps)
        for i in range(len(bucket.steps)) if active is None else active:
            steps = bucket.steps[i] - bucket.missed[i]
            known = steps.tobytes()
            if known not in first_of:
                first_of[known] = len(tables) * len(steps)
                tables.append(self._table_apart(step_counts, steps, scale))
            rows[i] = first_of[known]
        return Plan(np.concatenate([np.zeros((0, self._width)), *tables]), rows)

    def _table_apart(self, step_counts: Array, steps: Array, scale: Array | None) -> Array:
        """Return the rows of members with these step counts: the optimizer's, the parameter's."""
        behind, steps_behind = step_counts.max() - step_counts, steps.max() - steps
        codes = behind * (steps_behind.max() + 1) + steps_behind
        columns = np.empty((self._width, len(codes)))
        for code in np.unique(codes).tolist():
            chosen = np.flatnonzero(codes == code)
            first = chosen[0]
            row = self.row(self._group.at(int(step_counts[first])), int(steps[first]) + 1)
            for column, value in zip(columns, row, strict=True):
                column[chosen] = value[chosen] if isinstance(value, np.ndarray) else value
        if scale is not None:
            columns[0] *= scale
        return columns.T

    def row_at(self, step_count: int, lag: int) -> Row | Array:
        """Return the row of the step that is made at a step count of the optimizer.

        It is that of parameters which have missed ``lag`` steps, followed by the inputs of the
        update's memories. With members it is an array with a row for each.
        """
        row = self.whole_row(self._group.at(step_count), step_count - lag + 1)
        return cast(Row, row) if self._members is None else self._table(row)

    def next_row(self, t: int, step_count: int) -> Row | Columns:
        """Return the row of a parameter's t-th step, at a step count of the optimizer.

        After it stand the inputs of the update's memories. Most often it follows the last one, and
        in a training loop little of what a row is worked out with is in the caches: so many are
        worked out at once, unless settings change all the time. The schedules of the group are
        foreseeable (``ParamGroup``).
        """
        group = self._group
        known = (group.changes.count, step_count - t)
        if self._ahead_for != known:  # this time one alone
            self._ahead, self._ahead_for = (), known
            return self.whole_row(group.at(step_count), t)
        place = t - self._ahead_from
        if 0 <= place < len(self._ahead):
            return self._ahead[place]
        if self._members is not None:
            return self.row(group.at(step_count), t)
        self._ahead = ()  # an interrupt can come meanwhile
        rows = list(self._coming(t, step_count))
        self._ahead_from, self._ahead = t, rows
        return rows[0]

    def _coming(self, t: int, step_count: int) -> Iterator[Row]:
        """Yield rows from this step on, up to the first that a schedule has no good value for."""
        for k in range(AHEAD):
            try:
                options = self._group.at(step_count + k)
            except (ValueError, TypeError):
                if k == 0:
                    raise
                return
            yield cast(Row, self.whole_row(options, t + k))

    def whole_row(self, options: Options, t: int) -> Row | Columns:
        """Return the row of a parameter's t-th step, and the inputs of the update's memories."""
        row, inputs = self._row_and_inputs(options, t)
        return row + inputs

    def row(self, options: Options, t: int) -> Row | Columns:
        """Return the row of a parameter's t-th step (1 for the first)."""
        return self._row_and_inputs(options, t)[0]

    def _row_and_inputs(self, options: Options, t: int) -> tuple[Row | Columns, Row]:
        """Return the row of a parameter's t-th step, and the inputs of the update's memories."""
        if self._view is not None:
            options = self._view(options)
        if options["decoupled_lr"] is not None:
            options = hyperparameters.with_decay(options)
        lr = options["lr"]
        if self._prepared_for != self._settings or self._made_at not in (None, lr):
            self.work_out_constants(options)
        common = self._common if t % FLUSH_EVERY else self._flushing
        made = self._formula._scalars(options, lr * self._lr_scale, t, self._guard)
        row = common + self._pick(made) + self._constant
        if self._seed is not None:
            row += quantization.key_scalars(self._seed, t)
        if not self._inputs:  # as most rules
            return row, ()
        return row, tuple(float((options if own else made)[n]) for n, own in self._inputs)

    @property
    def _settings(self) -> int:
        """What changes with the settings that constants are worked out from."""
        if self._members is None:
            return self._group.revision  # a rate that is another number leaves them as they are
        return self._group.changes.count

    @property
    def _width(self) -> int:
        """How many scalars there are in a row."""
        rule, spec = self._bucket.rule, self._bucket.spec
        return len(COMMON_SCALARS) + len(rule.scalars) + len(spec.scalars)

    def _table(self, values: Sequence[Any], scale: Array | None = None) -> Array:
        """Return the rows of the members: an array of columns, turned."""
        columns = np.empty((len(values), self._members or 0))
        for column, value in zip(columns, values, strict=True):
            column[...] = value
        if scale is not None:
            columns[0] *= scale  # what stands there is 1 or -1
        return columns.T

    def work_out_constants(self, options: Options) -> None:
        """Work out what does not depend on the step count; some of it is a multiple of the rate."""
        formula, bucket, spec = self._formula, self._bucket, self._bucket.spec
        if bucket.rule is not self._picks_for:
            self._picks_for, self._pick = bucket.rule, _picker(bucket.rule.scalars)
            passes = derived_of(bucket.rule, spec).passes
            self._inputs = [(n, one.fragment) for one in passes for n in one.memory.inputs]
        rate, weight_decay = hyperparameters.learning_rate(options), options["weight_decay"]
        acts_on = formula._decay(options)
        decays = acts_on == "parameter"
        made_of = (
            -1.0 if options["maximize"] else 1.0,
            weight_decay if acts_on == "gradient" else 0.0,
            rate * weight_decay if decays else 0.0,
            formula._smallest_denominator(options),
        )
        if self._members is not None or made_of != self._made_of:
            self._work_out_common(*made_of)
            self._made_of = made_of
        self._constant = tuple(
            options[name] * rate if name in fragment.lr_scalars else options[name]
            for fragment in spec.fragments
            for name in fragment.scalars
        )
        if spec.limit_scalars:
            self._constant += hyperparameters.bounds_as_numbers(options["bounds"], spec.stored)
        self._seed = options["seed"] if spec.random_scalars else None
        self._lr_scale = hyperparameters.scale_of_all(options)
        by_rate = decays or any(fragment.lr_scalars for fragment in spec.fragments)
        self._made_at = options["lr"] if by_rate and self._members is None else None
        # A schedule may say something else in every step, and if it has a memory in the same one.
        group = self._group
        always = group.scheduled_besides_lr if self._members is None else group.scheduled
        self._prepared_for = None if always else self._settings

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
