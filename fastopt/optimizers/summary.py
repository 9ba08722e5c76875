"""What an optimizer is: its settings, groups, arrays, bytes, backend and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fastopt.core import arrays
from fastopt.core.options import GROUP_DEFAULTS
from fastopt.core.tables import Shown, Table, count_of_bytes

if TYPE_CHECKING:
    from fastopt.core.buckets import OptimizerState
    from fastopt.optimizers.base import Optimizer


@dataclass(frozen=True)
class StateArray:
    """One array of a parameter's state.

    Attributes:
        name: as in ``state_dict``.
        shape, dtype, nbytes: of the array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class ArraySummary:
    """One parameter.

    Attributes:
        name: as in ``state_dict``.
        shape, dtype, size, nbytes: of the array; ``size`` counts its elements.
        group: the number of its group.
        rule: what updates it, as ``fastopt_kernels`` calls that; "" for a counter, which stays.
        steps: how many steps it has made.
        state: the arrays of its state, master weights included.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nbytes: int
    group: int
    rule: str
    steps: int
    state: tuple[StateArray, ...]


@dataclass(frozen=True)
class GroupSummary:
    """One parameter group.

    Attributes:
        number: its place in ``param_groups``.
        settings: all of its hyperparameters in words, by name.
        changed: the names of those that are not the default of all optimizers.
        arrays: how many parameters it has.
        size: how many elements these have together.
    """

    number: int
    settings: dict[str, str]
    changed: tuple[str, ...]
    arrays: int
    size: int

    @property
    def said(self) -> str:
        """The settings of its own, and those that are not as by default."""
        return ", ".join(f"{name}={self.settings[name]}" for name in self.changed)


@dataclass(frozen=True)
class Summary(Shown):
    """What an optimizer is: data, and a table by ``print``, by rich, and in notebooks.

    Attributes:
        optimizer: the name of the class.
        step_count, skipped_steps: steps made and left out; with members a tuple.
        backend: the name of the backend at work, "numpy", "numba" or "cupy".
        why: why it is that one.
        policy: ``max_grad_norm``, ``on_nonfinite``, ``capturable``, ``members``,
            ``master_weights``.
        groups, arrays: see ``GroupSummary`` and ``ArraySummary``.
        size: how many elements all parameters have together.
        parameter_bytes, state_bytes: of all parameters, and of all that is kept beside them (the
            gaps between them and bounds that are arrays included).
    """

    optimizer: str
    step_count: int | tuple[int, ...]
    skipped_steps: int | tuple[int, ...]
    backend: str
    why: str
    policy: dict[str, Any]
    groups: tuple[GroupSummary, ...]
    arrays: tuple[ArraySummary, ...]
    size: int
    parameter_bytes: int
    state_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain dicts, tuples, words and numbers."""
        return asdict(self)

    @property
    def _table(self) -> Table:
        policy = [
            f"{name}={value!r}"
            for name, value in self.policy.items()
            if value not in (None, False, "propagate") and name != "master_weights"
        ]
        counts = f"{_counted(self.step_count)} steps made"
        if self.skipped_steps and self.skipped_steps != 0:
            counts += f", {_counted(self.skipped_steps)} skipped"
        heading = [
            f"{self.optimizer}: {counts}",
            f"{self.size} elements in {len(self.arrays)} arrays, "
            f"{count_of_bytes(self.parameter_bytes)}; state {count_of_bytes(self.state_bytes)}",
            f"backend {self.backend}: {self.why}",
        ]
        if len(self.groups) == 1:
            heading.append(", ".join([self.groups[0].said, *policy]))
        else:
            heading += [", ".join(policy)] * bool(policy)
            heading += [f"group {group.number}: {group.said}" for group in self.groups]
        rows = [
            (
                one.name,
                "x".join(map(str, one.shape)) or "()",
                one.dtype,
                str(one.size),
                str(one.group),
                one.rule,
                str(one.steps),
                ", ".join(_said_of_state(one, state) for state in one.state),
                count_of_bytes(sum(state.nbytes for state in one.state)),
            )
            for one in self.arrays
        ]
        columns = ("name", "shape", "dtype", "elements", "group", "rule", "steps", "state", "bytes")
        left = (0, 1, 2, 5, 7)
        return Table(tuple(filter(None, heading)), columns, tuple(rows), left=left)


def _counted(count: int | tuple[int, ...]) -> str:
    if isinstance(count, int):
        return str(count)
    least, most = min(count), max(count)
    return f"{least} to {most}" if least != most else str(most)


def _said_of_state(one: ArraySummary, state: StateArray) -> str:
    said = state.name
    if state.shape != one.shape:
        said += f" {'x'.join(map(str, state.shape)) or '()'}"
    return said if state.dtype == one.dtype else f"{said} {state.dtype}"


def summary_of(opt: Optimizer) -> Summary:
    """Return what an optimizer is; see ``Optimizer.summary``."""
    return opt._alone(lambda: _collected(opt))


def _collected(opt: Optimizer) -> Summary:
    opt._engine.synchronize()
    state, counts = opt._state, opt._state.counts
    made = counts.made
    skipped: int | tuple[int, ...] = counts.skipped
    if counts.members is not None:
        skipped = tuple(counts.members.skipped.tolist())
    found = _arrays_of(opt, state)
    backend = opt._engine.backend.name
    groups = [
        GroupSummary(
            number,
            {name: repr(value) for name, value in group.plain.items()},
            # As text, since an array of one number for each member has no truth value.
            tuple(k for k, v in group.plain.items() if repr(v) != repr(GROUP_DEFAULTS.get(k, ...))),
            len(group.positions),
            sum(state.tree.leaves[position].array.size for position in group.positions),
        )
        for number, group in enumerate(state.groups)
    ]
    policy = {
        **opt._policy._asdict(),
        "capturable": opt._capturable,
        "members": opt._members,
        "master_weights": opt._made_with.master_weights,
    }
    return Summary(
        type(opt).__name__,
        made if isinstance(made, int) else tuple(made.tolist()),
        skipped,
        backend,
        _why(opt, backend),
        policy,
        tuple(groups),
        found,
        sum(one.size for one in found),
        sum(one.nbytes for one in found),
        opt.state_bytes,
    )


def _arrays_of(opt: Optimizer, state: OptimizerState) -> tuple[ArraySummary, ...]:
    """Return all parameters in the order of the tree."""
    group_of = {p: n for n, group in enumerate(state.groups) for p in group.positions}
    about: dict[int, tuple[str, int, tuple[StateArray, ...]]] = {}
    for bucket in state.buckets:
        for position, (_, steps, views) in zip(bucket.positions, bucket.state(), strict=True):
            kept = [StateArray(k, v.shape, v.dtype.name, v.nbytes) for k, v in views.items()]
            about[position] = bucket.rule.name, steps, tuple(kept)
    found = []
    for position, leaf in enumerate(state.tree.leaves):
        array = leaf.array
        rule, steps, own = about.get(position, ("", 0, ()))
        name, shape = opt._shown(leaf), tuple(array.shape)
        nbytes = math.prod(shape) * array.dtype.itemsize
        where = group_of.get(position, 0)
        found.append(
            ArraySummary(name, shape, array.dtype.name, array.size, nbytes, where, rule, steps, own)
        )
    return tuple(found)


def _why(opt: Optimizer, backend: str) -> str:
    """Return why this backend is at work."""
    asked, later = opt._made_with.asked, opt._engine.later
    if asked != "auto":
        return "asked for by name (backend=, use_backend, set_backend or FASTOPT_BACKEND)"
    first = opt._state.tree.leaves[0].array
    if arrays.kind(first) == "cupy":
        return f"auto: the parameters are CuPy arrays, on device {arrays.device(first)}"
    if backend == "numba":
        return "auto: it went over from NumPy, since its steps had taken as long as that does"
    if later is None:
        return (
            "auto: Numba is not installed, may not compile (NUMBA_DISABLE_JIT) or failed here; "
            "fastopt.available_backends() says why"
        )
    return (
        f"auto: it goes over to Numba when its steps have taken about as long as that does, of "
        f"which they have taken {later.spent:.2g} s; warmup() does it now"
    )
