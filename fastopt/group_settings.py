"""The hyperparameters of groups in a state_dict, and which of them go to which group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fastopt.bounds import saved_form
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.load_report import Differences
from fastopt.param_group import ParamGroup
from fastopt.schedule_memory import is_memory, left_out, memory_of, restorers
from fastopt.shared import FIXED

Changes = dict[str, Any]


def collected(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return each group's hyperparameters; of a schedule its memory, None if it has none.

    Groups that share a tree have no other names, so they have those of their parameters, as
    "params".
    """
    listed = []
    for group in groups:
        names = {"params": _names(group)} if len(groups) > 1 and _one_tree(groups) else {}
        plain = group.options.plain.items()
        listed.append({name: _saved(name, value) for name, value in plain} | names)
    return listed


def _saved(name: str, value: Any) -> Any:
    if callable(value):
        return memory_of(value)
    return saved_form(value) if name == "bounds" else value


def restorer(
    groups: Sequence[Group],
    saved: Sequence[Mapping[str, Any]],
    names: Collection[str],
    strict: bool,
    complete: bool,
) -> tuple[Callable[[], None], Differences]:
    """Look at all saved groups; return what takes them over, schedules' memories included.

    ``names`` are the saved parameters'; ``complete`` says that no hyperparameter may be missing.

    Groups with a tree each are matched by their order. Groups that share a tree are matched by
    their parameters: if not each of them was a group when the state was saved, they keep what they
    have, since a group's settings are not those of other parameters.
    """
    if _one_tree(groups) and (len(groups) > 1 or any("params" in group for group in saved)):
        order = _order([_names(group) for group in groups], saved, names, strict)
        if order is None:
            return lambda: None, Differences()
        saved = [{k: v for k, v in saved[place].items() if k != "params"} for place in order]
    if len(saved) != len(groups):
        raise CheckpointError(
            f"the optimizer has {len(groups)} parameter groups; the state has {len(saved)}"
        )
    changes = [
        _changes(number, group.options, given, strict, complete)
        for number, (group, given) in enumerate(zip(groups, saved, strict=True))
    ]
    options = [group.options for group in groups]
    memories = restorers(options, saved, strict)

    def commit() -> None:
        for group, changed in zip(options, changes, strict=True):
            group.update(changed)
        for write in memories:
            write()

    return commit, _differences(options, saved)


def _differences(groups: Sequence[ParamGroup], saved: Sequence[Mapping[str, Any]]) -> Differences:
    """Return the hyperparameters that were not saved, and the memories that find no schedule."""
    pairs = list(enumerate(zip(groups, saved, strict=True)))
    return Differences(
        missing=tuple(
            f"groups[{number}].{name}"
            for number, (group, given) in pairs
            for name in sorted(group.plain.keys() - given)
        ),
        mismatched=tuple(
            f"groups[{number}].{name}: expected the memory of {group[name]!r}; got another"
            for number, (group, given) in pairs
            for name in left_out(group, given)
        )
        + tuple(other for number, pair in pairs for other in _rounded_otherwise(number, *pair)),
    )


def _rounded_otherwise(number: int, group: ParamGroup, saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what saved settings differ that an optimizer keeps from its construction on."""
    for name in FIXED:
        if name in saved and repr(saved[name]) != repr(group[name]):  # an array has no truth value
            yield f"groups[{number}].{name}: expected {group[name]!r}; got {saved[name]!r:.200}"


def _one_tree(groups: Sequence[Group]) -> bool:
    return all(group.tree is groups[0].tree for group in groups)


def _names(group: Group) -> list[str]:
    return [leaf.name for leaf in group.leaves]


def _order(
    mine: Sequence[Collection[str]],
    saved: Sequence[Mapping[str, Any]],
    names: Collection[str],
    strict: bool,
) -> list[int] | None:
    """Return which saved group holds each of my groups' parameters; None if these differ."""
    if len(saved) == 1 and "params" not in saved[0]:
        theirs = [list(names)]
    else:
        theirs = [_saved_names(number, group) for number, group in enumerate(saved)]
    together = [name for group in theirs for name in group]
    if strict and (len(together) != len(names) or set(together) != set(names)):
        raise CheckpointError("the saved groups do not hold each parameter of the state once")
    place = {frozenset(group): number for number, group in enumerate(theirs)}
    order = [place.get(frozenset(group)) for group in mine]
    found = [number for number in order if number is not None]
    return found if len(found) == len(mine) == len(saved) else None


def _saved_names(number: int, group: Mapping[str, Any]) -> list[str]:
    given = group.get("params")
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise CheckpointError(
            f"groups[{number}]: expected params, a list of names, as of groups that share a tree; "
            f"got {given!r:.200}"
        )
    return given


def _changes(
    number: int, group: ParamGroup, saved: Mapping[str, Any], strict: bool, complete: bool
) -> Changes:
    """Return the hyperparameters to take over; schedules, on either side, are left as they are."""
    if strict and (other := list(_rounded_otherwise(number, group, saved))):
        raise CheckpointError(f"{other[0]}. Construct the optimizer with that of the saved one")
    if complete and (missing := group.plain.keys() - saved):
        raise CheckpointError(f"groups[{number}] lacks {sorted(missing)} (strict=False keeps ours)")
    kept = {k for k, v in saved.items() if v is None or (k in group and is_memory(v))}
    kept.update(FIXED)
    try:
        checked = group.checked({k: v for k, v in saved.items() if k not in kept})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"groups[{number}]: {error}") from error
    return {name: value for name, value in checked.items() if not callable(group[name])}
