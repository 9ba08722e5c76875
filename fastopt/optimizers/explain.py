"""What the next step of an optimizer would do, and why: ``Optimizer.explain``.

The step is made on a copy in host memory, with what a step is made of (``engine.step``): prepared,
so that scale, scalars and verdict can be looked at, and committed. Then before and after are
compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from fastopt.backends.interface import COMMON_SCALARS
from fastopt.checkpoint.state_dict import memory_of
from fastopt.core import arrays, hyperparameters
from fastopt.core.arrays import Array, blocks
from fastopt.core.buckets import Bucket, OptimizerState
from fastopt.core.hyperparameters import Options
from fastopt.core.passes import derived_of
from fastopt.core.rows import RowGrad
from fastopt.core.tables import Shown, Table, number, share
from fastopt.engine import rows
from fastopt.engine.build import Construction
from fastopt.engine.extra import Extra
from fastopt.engine.policy import Policy, Verdict, checked_scale
from fastopt.engine.step import HostEngine, Prepared
from fastopt.optimizers.advice import Advice, Context, advice_on
from fastopt.optimizers.base import Optimizer, rebuilt

Status = Literal["updated", "skipped", "no gradient", "frozen"]
"""What a step does with a parameter: ``frozen`` is one of a group with trainable=False, in PyTorch
one without a gradient that has requires_grad=False."""

Each = float | tuple[float, ...]
"""A number; where an optimizer has members, a tuple of one for each of them."""

SAMPLE = 1 << 20
"""Quantiles are those of about so many elements, evenly spaced, of larger arrays."""

SMALLEST_NORMAL = 2.0**-14
"""The smallest number that float16 holds in full precision, 6.1e-5."""


class Quantiles(NamedTuple):
    """The 10 % quantile, the median and the 90 % quantile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ParameterStep:
    """What a step would do with one parameter, and what that is made of.

    Numbers are in float64; RMS is the root of the mean square, of a complex array that of the
    moduli. NaN and infinity are left out of each RMS and largest value, and counted instead. What
    is not known is None: all about the gradient where there is none, all about the update where no
    step would be made. Of a ``RowGrad`` all that is said of gradient, update and weights is about
    its rows alone, each once.

    Attributes:
        name: as in ``state_dict``; of PyTorch's tensors see ``explain`` of ``fastopt.torch``.
        shape, dtype: of the parameter.
        group: the number of its group.
        status: "updated", "skipped" (the step would be left out), "no gradient" or "frozen".
        step: which of its own steps this would be, 1 for the first: bias corrections go by it.
        lr: the learning rate of the step, schedule and an ``lr_scale`` that is a number included.
        grad_dtype: of the gradient as it was handed in.
        grad_rms, grad_max: RMS and largest modulus of the gradient times ``grad_scale``, before
            anything else is done to it.
        zeros: the share of its elements that are exactly 0.
        nonfinite: how many of its elements are NaN or infinite.
        subnormal: the share of its elements that are not 0 and below 6.1e-5 as they were handed in,
            which float16 holds in less than its precision; None of other dtypes.
        zero_rows, zero_columns: at how many places of the first and of the last axis all gradients
            are exactly 0: units that learn nothing from this batch. Of arrays of two or more axes,
            without members, alone. In ``x @ W`` the columns of W are the outputs.
        rows: how many rows a ``RowGrad`` names.
        transformed: RMS of the gradient after ``adaptive_clip`` and ``centralize`` over that
            before; None where neither is set.
        clipped_elements: the share of its real numbers that ``clip_value`` cuts off.
        clip_each_factor: what ``clip_each`` multiplies it by, 1 where that leaves it alone.
        state_before, state: RMS of each array of its state by name, before the step and after it,
            and the numbers that are remembered of it. The update is made of the latter.
        filled: by hyperparameter, 1 - beta^t of each beta: how much of an average that began with 0
            has been filled by this step; where a rule corrects that, it divides by it.
        scalars: the numbers of the step by the names that the rule has for them
            (``fastopt_kernels``), bias corrections in them; ``l2`` is what multiplies the parameter
            where weight decay is added to the gradient, ``decay`` the share that is taken off.
        weight_rms: RMS of the parameter before the step.
        update_rms, update_max: RMS and largest modulus of what the step adds to it (to its master
            weights where there are some).
        ratio: update_rms / weight_rms; None where the weights are all 0.
        effective_lr: quantiles over the elements of |update| / |gradient|, where the gradient is
            not 0: what SGD's lr would have to be to go as far. For SGD itself that is lr, with
            momentum it tells how far the past pushes, for Adam it is about
            lr * |m| / (sqrt(v) |g|).
        unmoved: the share of elements with a gradient that the step leaves as they are, to the bit.
        at_bounds: how many elements stand at a bound after the step; None without ``bounds``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    status: Status
    step: int
    lr: Each
    grad_dtype: str | None = None
    grad_rms: float | None = None
    grad_max: float | None = None
    zeros: float | None = None
    nonfinite: int | None = None
    subnormal: float | None = None
    zero_rows: int | None = None
    zero_columns: int | None = None
    rows: int | None = None
    transformed: float | None = None
    clipped_elements: float | None = None
    clip_each_factor: float | None = None
    state_before: dict[str, float] = field(default_factory=dict)
    state: dict[str, float] = field(default_factory=dict)
    filled: dict[str, Each] = field(default_factory=dict)
    scalars: dict[str, Each] = field(default_factory=dict)
    weight_rms: float = 0.0
    update_rms: float | None = None
    update_max: float | None = None
    ratio: float | None = None
    effective_lr: Quantiles | None = None
    unmoved: float | None = None
    at_bounds: int | None = None

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def remarks(self) -> str:
        """What is special about it, in a few words."""
        said: list[str] = [] if self.status == "updated" else [self.status]
        if self.rows is not None:
            said.append(f"{self.rows} of {self.shape[0]} rows")
        if self.nonfinite:
            said.append(f"{self.nonfinite} not finite")
        if self.transformed is not None and self.transformed != 1.0:
            said.append(f"transformed x{self.transformed:.3g}")
        if self.clipped_elements:
            said.append(f"{share(self.clipped_elements)} cut by clip_value")
        if self.clip_each_factor is not None and self.clip_each_factor < 1.0:
            said.append(f"clip_each x{self.clip_each_factor:.3g}")
        if self.at_bounds:
            said.append(f"{self.at_bounds} at bounds")
        for count, of, what in (
            (self.zero_rows, self.shape[:1], "rows"),
            (self.zero_columns, self.shape[-1:], "columns"),
        ):
            if count and self.zeros != 1.0:
                said.append(f"{count} of {of[0]} {what} dead")
        return ", ".join(said)


@dataclass(frozen=True)
class Explanation(Shown):
    """What a step would do: data, and a table by ``print``, by rich, and in notebooks.

    ``explanation["W1"]`` is the ``ParameterStep`` of that name.

    Attributes:
        optimizer: the name of the class.
        step_count: how many steps have been made; with members a tuple.
        made: whether the step would be made; with members a tuple.
        policy: what the step would do about gradients that are not finite: ``on_nonfinite``.
        reason: why it would not be made, "" if it would.
        grad_scale: what gradients are multiplied by first.
        grad_norm: the 2-norm of all gradients together, scaled, after ``adaptive_clip`` and
            ``centralize`` and before clipping; None if it is not finite. With members a tuple where
            it is judged by, and else None.
        max_grad_norm: what that is scaled down to.
        clip_factor: what ``max_grad_norm`` multiplies all gradients by; 1 if it leaves them alone.
        memory: what the rule remembers of all parameters together after the step, by name.
        parameters: the ``ParameterStep`` of each, in the order of the tree; counters have none.
        advice: what looks wrong, most often nothing.
    """

    optimizer: str
    step_count: int | tuple[int, ...]
    made: bool | tuple[bool, ...]
    policy: str
    reason: str
    grad_scale: float
    grad_norm: float | tuple[float, ...] | None
    max_grad_norm: float | None
    clip_factor: Each
    memory: dict[str, float]
    parameters: tuple[ParameterStep, ...]
    advice: tuple[Advice, ...] = ()

    def __getitem__(self, name: str) -> ParameterStep:
        for one in self.parameters:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.parameters)
        raise KeyError(f"no parameter is called {name!r}; there are {known}")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain dicts, lists and numbers, which JSON can hold.

        Numbers that are not finite are None.
        """
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def __repr__(self) -> str:
        return f"<Explanation of {self._headline}; {len(self.advice)} advice>"

    @property
    def _headline(self) -> str:
        made = self.made if isinstance(self.made, bool) else all(self.made)
        said = "would be made" if made else f"would not be made: {self.reason}"
        if isinstance(self.step_count, int):
            return f"{self.optimizer}, step {self.step_count + 1}: {said}"
        members = len(self.step_count)
        if isinstance(self.made, tuple) and not made:
            said = f"would be made for {sum(self.made)} of {members}: {self.reason}"
        return f"{self.optimizer}, {members} members, step {max(self.step_count) + 1}: {said}"

    @property
    def _table(self) -> Table:
        heading = [self._headline, _said_of_norm(self)]
        if self.memory:
            heading.append(", ".join(f"{k} {v:.4g}" for k, v in self.memory.items()))
        return Table(
            tuple(line for line in heading if line),
            COLUMNS,
            tuple(map(_cells, self.parameters)),
            tuple(str(one) for one in self.advice),
            left=(0, 1, 5, 9),
        )


COLUMNS = (
    "name",
    "shape",
    "lr",
    "grad rms",
    "zeros",
    "state rms",
    "effective lr",
    "update rms",
    "update/weight",
    "",
)
"""Of the table; the last one has remarks."""


def _plain(value: Any) -> Any:
    """Return nested values as JSON holds them."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _said_of_norm(made: Explanation) -> str:
    parts = []
    if isinstance(made.grad_norm, float):
        parts.append(f"norm of all gradients {made.grad_norm:.4g}")
    elif made.grad_norm is not None:
        parts.append(f"norms of the members {min(made.grad_norm):.4g} to {max(made.grad_norm):.4g}")
    if made.grad_scale != 1.0:
        parts.append(f"scaled by {made.grad_scale:.4g}")
    factor = made.clip_factor if isinstance(made.clip_factor, float) else min(made.clip_factor)
    if factor < 1.0:
        parts.append(f"clipped to {made.max_grad_norm:.4g} (x{factor:.3g})")
    return ", ".join(parts)


def _cells(one: ParameterStep) -> tuple[str, ...]:
    state = ", ".join(f"{name} {value:.2g}" for name, value in one.state.items())
    median = None if one.effective_lr is None else one.effective_lr.median
    rate = one.lr if isinstance(one.lr, float) else None
    return (
        one.name,
        "x".join(map(str, one.shape)) or "()",
        number(rate) if rate is not None else f"{min(one.lr):.3g} ... {max(one.lr):.3g}",  # type: ignore[arg-type]  # a tuple
        number(one.grad_rms),
        share(one.zeros),
        state,
        number(median),
        number(one.update_rms),
        number(one.ratio),
        one.remarks,
    )


# Numbers about arrays ----------------------------------------------------------------------------


class Measure(NamedTuple):
    """RMS and largest modulus of the finite elements; how many are 0, not finite, and there."""

    rms: float
    largest: float
    zeros: int
    nonfinite: int
    size: int


def _moduli(values: Array) -> Array:
    """Return the moduli of a piece of an array, in float64."""
    if values.dtype.kind == "c":
        return np.abs(values.astype(np.complex128))
    return np.abs(values.astype(np.float64))


class _Sum:
    """A sum of squares that neither overflows nor underflows, and what ``Measure`` counts."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.squares = 0.0  # in units of largest^2
        self.finite = self.zeros = self.size = 0

    def add(self, moduli: Array) -> None:
        self.size += moduli.size
        self.zeros += moduli.size - int(np.count_nonzero(moduli))
        good = moduli[np.isfinite(moduli)]
        self.finite += good.size
        top = float(good.max(initial=0.0))
        if top > self.largest:
            self.squares *= (self.largest / top) ** 2
            self.largest = top
        if self.largest:
            self.squares += float(np.square(good / self.largest).sum())

    @property
    def measure(self) -> Measure:
        rms = self.largest * math.sqrt(self.squares / self.finite) if self.finite else 0.0
        return Measure(rms, self.largest, self.zeros, self.size - self.finite, self.size)


def measured(values: Array) -> Measure:
    """Measure an array in host memory."""
    total = _Sum()
    with np.errstate(all="ignore"):
        for (piece,) in blocks(values):
            total.add(_moduli(piece))
    return total.measure


class _Compared(NamedTuple):
    """What a step has added to some elements."""

    update: Measure
    effective_lr: Quantiles | None
    unmoved: float | None


def _compared(before: Array, after: Array, grad: Array, scale: float) -> _Compared:
    """Compare a parameter before and after a step; the gradient is multiplied by ``scale``."""
    total, ratios, there, still = _Sum(), [], 0, 0
    every = max(before.size // SAMPLE, 1)
    wide = np.complex128 if before.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        for own, new, slope in blocks(before, after, grad):
            moved = _moduli(new.astype(wide) - own.astype(wide))
            total.add(moved)
            steep = _moduli(slope) * abs(scale)
            acts = (steep > 0.0) & np.isfinite(steep) & np.isfinite(moved)
            there += int(np.count_nonzero(acts))
            still += int(np.count_nonzero(acts & (moved == 0.0)))
            some = acts.copy()
            some.reshape(-1)[np.arange(some.size) % every != 0] = False
            ratios.append(moved[some] / steep[some])
    found = np.concatenate([np.zeros(0), *ratios])
    found = found[np.isfinite(found)]
    quantiles = Quantiles(*np.quantile(found, (0.1, 0.5, 0.9)).tolist()) if found.size else None
    return _Compared(total.measure, quantiles, still / there if there else None)


def _cut(grad: Array, scale: float, limit: float, real: np.dtype[Any]) -> float:
    """Return the share of real numbers of a gradient whose modulus is above a limit."""
    above = 0
    parts = [grad.real, grad.imag] if grad.dtype.kind == "c" else [grad]
    with np.errstate(all="ignore"):
        for part in parts:
            for (piece,) in blocks(part):
                scaled = piece.astype(real) * real.type(scale)
                above += int(np.count_nonzero(np.abs(scaled) > real.type(limit)))
    return above / max(len(parts) * grad.size, 1)


def _subnormal(grad: Array) -> float | None:
    if grad.dtype != np.float16 or not grad.size:
        return None
    small = sum(
        int(np.count_nonzero((piece != 0) & (np.abs(piece) < SMALLEST_NORMAL)))
        for (piece,) in blocks(grad)
    )
    return small / grad.size


def _at_bounds(values: Array, limits: tuple[Any, Any]) -> int:
    """Return how many elements stand at a bound, of a complex one in either part."""
    lower, upper = limits
    if values.dtype.kind != "c":
        return int(np.count_nonzero((values <= lower) | (values >= upper)))
    low, high = (
        (one.real, one.imag) if np.iscomplexobj(one) else (one, one) for one in (lower, upper)
    )
    parts = zip((values.real, values.imag), low, high, strict=True)
    at = [(part <= below) | (part >= above) for part, below, above in parts]
    return int(np.count_nonzero(at[0] | at[1]))


def _zero_units(grad: Array) -> tuple[int, int]:
    """Return at how many places of the first and of the last axis all elements are 0."""
    acts = grad != 0
    rows = acts.any(axis=tuple(range(1, grad.ndim)))
    columns = acts.any(axis=tuple(range(grad.ndim - 1)))
    return int(np.count_nonzero(~rows)), int(np.count_nonzero(~columns))


# The copy that makes the step --------------------------------------------------------------------


def _copy_to_host(array: Array) -> Array:
    """Return a copy in host memory, in the array's order there as far as it has one."""
    if arrays.kind(array) == "cupy":
        found: Array = array.get(order="A")  # type: ignore[attr-defined]  # cupy's
        return found
    return np.array(array, order="K")


def _twin(opt: Optimizer) -> tuple[OptimizerState, HostEngine]:
    """Return state and engine of a copy of an optimizer, in host memory and on NumPy."""
    copied = opt._copied()
    tree = opt._state.tree
    made_with = Construction(*copied["made_with"])._replace(asked="numpy", capturable=False)
    groups = [
        (where, is_all, {name: _own(value) for name, value in plain.items()}, owner)
        for where, is_all, plain, owner in copied["groups"]
    ]
    return rebuilt(
        type(opt),
        {
            **copied,
            "params": tree.nest([_copy_to_host(leaf.array) for leaf in tree.leaves]),
            "made_with": tuple(made_with),
            "groups": groups,
        },
    )


def _own(value: Any) -> Any:
    """Return a hyperparameter; a schedule that remembers something, as a copy."""
    if isinstance(value, tuple):
        return tuple(_own(one) for one in value)
    return copy.deepcopy(value) if callable(value) and memory_of(value) is not None else value


def _on_host(grad: Any) -> Any:
    """Return a gradient in host memory."""
    if type(grad) is RowGrad:
        return RowGrad(grad.indices, _on_host(grad.values))
    if isinstance(grad, np.inexact):
        return np.asarray(grad)
    return arrays.on_host(grad) if arrays.kind(grad) == "cupy" else grad


def _check(opt: Optimizer, engine: HostEngine, given: Sequence[Any]) -> None:
    """Raise what a step would for parameters and gradients that are no good."""
    own, state = opt._engine, opt._state
    if own._outdated and given:
        own._refuse_outdated(given)
    now = state.tree.everything()
    trained = {p for n in engine.trained() for p in engine.state.buckets[n].positions}
    numbers = [n for n, bucket in enumerate(state.buckets) if trained & {*bucket.positions}]
    _, of_rows = rows.split([*given])
    for part in rows.bind(state, of_rows, numbers, own.backend, own.extents) if of_rows else ():
        _ = part.gradients  # looks at all of them
    for bucket in state.buckets:
        for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
            if position not in trained:
                continue
            parameter.check_array(now[position])
            grad, path = given[position], f"grads{parameter.leaf.place}"
            if grad is not None and type(grad) is not RowGrad:
                own.extents.check_apart(parameter.checked(grad, path), path)


# The explanation ---------------------------------------------------------------------------------


class _Before(NamedTuple):
    """What there was of a parameter before the step: what is compared, the array, its state."""

    compared: Array
    values: Array
    state: dict[str, float]


def explained(
    opt: Optimizer, grads: Any, grad_scale: Any, policy: Policy, extra: Extra
) -> Explanation:
    """Return what a step would do; see ``Optimizer.explain``."""
    first = opt._state.tree.leaves[0].array
    if arrays.kind(first) == "cupy" and arrays.capturing(first):
        raise RuntimeError(
            "explain reads parameters and state from the device, which a stream that is captured "
            "in a CUDA graph cannot wait for; call it before or after"
        )
    state, engine = _twin(opt)
    engine.follow_settings()
    given = engine.matched(grads)
    _check(opt, engine, given)
    shared = _shared_gradients(opt, given)
    given = [_on_host(grad) for grad in given]
    if arrays.kind(grad_scale) == "cupy":
        grad_scale = arrays.on_host(grad_scale).item()
    scale = checked_scale(grad_scale)
    if extra.hessian is not None:
        found = map(_on_host, state.tree.match(extra.hessian, "hessian"))
        extra = extra._replace(hessian=state.tree.nest(found))
    before = {where: _before(*_place(state, where)) for where in _places(state)}
    steps = {where: int(state.buckets[where[0]].steps[where[1]]) + 1 for where in before}
    options: dict[int, Options] = {}
    scalars = {where: _scalars(engine, where, steps[where], options) for where in before}
    made = state.counts.made
    transformed = engine.transformed(given, scale)
    looked = policy._replace(on_nonfinite="skip") if policy.on_nonfinite == "raise" else policy
    prepared = engine.prepare(transformed, scale, looked, {**options}, extra)
    engine.commit(prepared)
    frozen = {n for n, group in enumerate(state.groups) if not group["trainable"]}
    step = _Step(opt, engine, prepared, given, transformed, scale, frozen)
    parameters = tuple(
        step.of(where, before[where], steps[where], scalars[where], options) for where in before
    )
    verdict = prepared.verdict
    result = Explanation(
        type(opt).__name__,
        made if isinstance(made, int) else tuple(made.tolist()),
        verdict.made if verdict.each is None else tuple(verdict.each.made.tolist()),
        policy.on_nonfinite,
        _reason(policy, verdict, parameters, extra),
        scale,
        step.norm,
        policy.max_grad_norm,
        step.clip_factor,
        dict(state.memory),
        parameters,
    )
    around = {
        one.name: _context(state, where, options)
        for one, where in zip(parameters, before, strict=True)
    }
    return replace(result, advice=advice_on(result, around, shared))


Where = tuple[int, int]
"""Which bucket, and which of its parameters."""


def _places(state: OptimizerState) -> list[Where]:
    """Return where the parameters are, in the order of the tree."""
    found = {
        position: (n, k)
        for n, bucket in enumerate(state.buckets)
        for k, position in enumerate(bucket.positions)
    }
    return [found[position] for position in sorted(found)]


def _place(state: OptimizerState, where: Where) -> tuple[Bucket, int]:
    return state.buckets[where[0]], where[1]


def _options_of(state: OptimizerState, where: Where, options: Mapping[int, Options]) -> Options:
    bucket = state.buckets[where[0]]
    return bucket.formula._view(options.get(bucket.group, state.groups[bucket.group]))


def _context(state: OptimizerState, where: Where, options: Mapping[int, Options]) -> Context:
    bucket, _ = _place(state, where)
    scheduled = callable(bucket.formula._view(state.groups[bucket.group])["lr"])
    squares = bucket.rule.averages_squares and "v" not in bucket.rule.signed
    return Context(_options_of(state, where, options), scheduled, bucket.spec.master, squares)


def _shared_gradients(opt: Optimizer, given: Sequence[Any]) -> tuple[str, str] | None:
    """Return the names of two parameters whose gradients share memory; None if no two do."""
    there = [k for k, grad in enumerate(given) if arrays.kind(grad) is not None and grad.size]
    found = arrays.sharing([given[k] for k in there])
    if found is None:
        return None
    first, second = (opt._shown(opt._state.tree.leaves[there[k]]) for k in found)
    return first, second


def _compares(bucket: Bucket, index: int) -> Array:
    """Return what an update is added to: the parameter, or its master weights."""
    parameter, masters = bucket.parameters[index], bucket.spec.masters
    if masters:
        return parameter.state_view(bucket.arena.rows[masters[0]])
    return parameter.leaf.array


def _before(bucket: Bucket, index: int) -> _Before:
    own = bucket.parameters[index].leaf.array.copy(order="K")
    compared = own
    if bucket.spec.masters:
        compared = _compares(bucket, index).copy(order="K")
        # A parameter that was written since the last step is where its master begins anew.
        with np.errstate(all="ignore"):
            stands = compared.astype(np.float32).astype(own.dtype) == own
        np.copyto(compared, own.astype(compared.dtype), where=~stands)
    return _Before(compared, own, _state(bucket, index))


def _state(bucket: Bucket, index: int) -> dict[str, float]:
    """Return the RMS of each array of a parameter's state, and what is remembered of it."""
    parameter, rule, arena = bucket.parameters[index], bucket.rule, bucket.arena
    found = {}
    for slot in rule.state:
        if (place := parameter.places.get(slot)) is not None:
            assert arena.own is not None
            found[slot] = measured(place.view(arena.own)).rms
        elif slot in arena.slots:
            found[slot] = measured(arena.numbers_of(slot, parameter, slot in rule.signed)).rms
    names = rule.memory.names if rule.memory and rule.memory.over == "array" else ()
    return found | dict(zip(names, bucket.memory[index].tolist(), strict=True))


def _each(value: Any) -> Each:
    """Return a number as a float, numbers of members as a tuple; one if they are all the same."""
    if isinstance(value, np.ndarray) and value.ndim:
        return tuple(value.astype(float).tolist())
    return float(value)


def _scalars(
    engine: HostEngine, where: Where, t: int, asked: dict[int, Options]
) -> dict[str, Each]:
    """Return the scalars of a parameter's t-th step by name, but for those of single bits."""
    bucket, _ = _place(engine.state, where)
    options = engine._options(bucket.group, asked)
    row = engine.scalars[where[0]].row(options, t)
    names = (*COMMON_SCALARS, *bucket.rule.scalars, *bucket.spec.scalars)
    hidden = {"grad_scale", "tiny_signed", "tiny_positive", *bucket.spec.random_scalars}
    pairs = zip(names, row, strict=True)
    return {name: _each(value) for name, value in pairs if name not in hidden}


def _filled(options: Options, t: int) -> dict[str, Each]:
    """Return 1 - beta^t for each beta among the hyperparameters."""
    betas = {"beta": options["beta"]} if "beta" in options else {}
    if isinstance(options.get("betas"), tuple):
        betas |= {f"beta{k}": beta for k, beta in enumerate(options["betas"], 1)}
    return {
        name: _each(-np.expm1(t * np.log(np.maximum(beta, 1e-300))))
        for name, beta in betas.items()
        if isinstance(beta, float | np.ndarray)
    }


class _Step:
    """A step that was made on the copy, to be looked at parameter by parameter."""

    def __init__(
        self,
        opt: Optimizer,
        engine: HostEngine,
        prepared: Prepared,
        given: Sequence[Any],
        transformed: Sequence[Any],
        scale: float,
        frozen: set[int],
    ) -> None:
        self._shown = opt._shown
        self._engine = engine
        self._verdict = verdict = prepared.verdict
        self._works = {work.number: work for work in prepared.works}
        self._given, self._transformed = given, transformed
        self._scale = scale
        self._frozen = frozen
        self._bounds = engine.state.bounds()
        self._norms: list[Measure] = []
        factor = verdict.scale / scale if scale else 1.0
        self.clip_factor: Each = factor
        if verdict.each is not None:
            each = verdict.each.scale
            self.clip_factor = tuple((each / scale).tolist()) if scale else (1.0,) * len(each)

    @property
    def norm(self) -> float | tuple[float, ...] | None:
        """The norm of all gradients that were looked at, scaled."""
        each = self._verdict.each
        if each is not None:
            return tuple(each.norm.tolist())
        if any(one.nonfinite for one in self._norms) or self._engine.state.counts.members:
            return None
        if self._verdict.norm is not None:
            return self._verdict.norm
        norms = [one.rms * math.sqrt(one.size) for one in self._norms]
        return math.hypot(*norms) * abs(self._scale)

    def of(
        self,
        where: Where,
        before: _Before,
        t: int,
        scalars: Mapping[str, Each],
        asked: Mapping[int, Options],
    ) -> ParameterStep:
        """Return what the step has done with a parameter."""
        state = self._engine.state
        bucket, index = _place(state, where)
        parameter, position = bucket.parameters[index], bucket.positions[index]
        options = _options_of(state, where, asked)
        frozen = bucket.group in self._frozen
        # Nothing is matched where nothing is trained.
        grad = None if frozen or not self._given else self._given[position]
        status: Status = "updated" if self._verdict.made else "skipped"
        if grad is None:
            status = "frozen" if frozen else "no gradient"
        about: dict[str, Any] = {}
        own, values, some = before.compared, before.values, None
        after = _compares(bucket, index)
        if grad is not None:
            seen = self._transformed[position]
            if type(grad) is RowGrad:
                shape = parameter.layout.shape
                some, grad = grad.merged(shape, f"grads{parameter.leaf.place}")
                seen = seen.merged(shape, f"grads{parameter.leaf.place}")[1]
                own, values, after = own[some], values[some], after[some]
            about = self._gradient(bucket, index, grad, seen, options)
            about["rows"] = None if some is None else len(some)
            if status == "updated":
                about |= _update(own, after, grad, self._scale, values)
        if position in self._bounds:
            about["at_bounds"] = _at_bounds(parameter.leaf.array, self._bounds[position])
        return ParameterStep(
            self._shown(parameter.leaf),
            parameter.layout.shape,
            parameter.dtype.name,
            bucket.group,
            status,
            t,
            _each(hyperparameters.learning_rate(options)),
            state_before=before.state,
            state=_state(bucket, index),
            filled=_filled(options, t),
            scalars={**scalars, **self._derived(where)},
            weight_rms=measured(values).rms,
            **about,
        )

    def _derived(self, where: Where) -> dict[str, float]:
        """Return the scalars that were made of sums, by name."""
        work = self._works.get(where[0])
        bucket, index = _place(self._engine.state, where)
        if work is None or work.derived is None:
            return {}
        names = derived_of(bucket.rule, bucket.spec).names
        return dict(zip(names, work.derived[index].tolist(), strict=True))

    def _gradient(
        self, bucket: Bucket, index: int, grad: Array, seen: Array, options: Options
    ) -> dict[str, Any]:
        """Return what there is to say of a gradient, and of what it was made into."""
        found, size = measured(grad), max(grad.size, 1)
        acting = measured(seen) if seen is not grad else found
        self._norms.append(acting)
        about: dict[str, Any] = {
            "grad_dtype": grad.dtype.name,
            "grad_rms": found.rms * abs(self._scale),
            "grad_max": found.largest * abs(self._scale),
            "zeros": found.zeros / size,
            "nonfinite": found.nonfinite,
            "subnormal": _subnormal(grad),
        }
        if seen is not grad:
            about["transformed"] = acting.rms / found.rms if found.rms else 1.0
        whole = grad.shape == bucket.parameters[index].layout.shape
        if whole and grad.ndim >= 2 and bucket.members is None:
            about["zero_rows"], about["zero_columns"] = _zero_units(grad)
        if (limit := options["clip_value"]) is not None and isinstance(limit, float):
            about["clipped_elements"] = _cut(seen, self._verdict.scale, limit, bucket.spec.real)
        factor = self._derived_factor(bucket, index)
        if factor is not None:
            about["clip_each_factor"] = factor
        return about

    def _derived_factor(self, bucket: Bucket, index: int) -> float | None:
        number_of = self._engine.state.buckets.index(bucket)
        return self._derived((number_of, index)).get("clip_each_factor")


def _update(own: Array, after: Array, grad: Array, scale: float, values: Array) -> dict[str, Any]:
    found = _compared(own, after, grad, scale)
    weights = measured(values).rms
    return {
        "update_rms": found.update.rms,
        "update_max": found.update.largest,
        "ratio": found.update.rms / weights if weights else None,
        "effective_lr": found.effective_lr,
        "unmoved": found.unmoved,
    }


def _reason(
    policy: Policy, verdict: Verdict, parameters: Sequence[ParameterStep], extra: Extra
) -> str:
    """Return why a step would not be made."""
    if verdict.made and (verdict.each is None or verdict.each.made.all()):
        return ""
    would = (
        'FloatingPointError, since on_nonfinite="raise"'
        if policy.on_nonfinite == "raise"
        else "skipped"
    )
    return f"{would}: {_cause(verdict, parameters, extra)}"


def _cause(verdict: Verdict, parameters: Sequence[ParameterStep], extra: Extra) -> str:
    bad = [one for one in parameters if one.nonfinite]
    if bad:
        more = f" and of {len(bad) - 1} more" if len(bad) > 1 else ""
        return f"{bad[0].nonfinite} elements of the gradient of {bad[0].name}{more} are not finite"
    if not verdict.finite or (verdict.norm is not None and not math.isfinite(verdict.norm)):
        return "the gradients are not finite"
    if extra.value is not None and not math.isfinite(float(extra.value)):
        return f"the loss is {float(extra.value)}"
    if extra.hessian is not None:
        return "the estimate of the Hessian is not finite, or its squares overflow"
    return "the gradients are so large that their squares overflow float32"
