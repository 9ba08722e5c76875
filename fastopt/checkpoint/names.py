"""Which saved parameter is which of ours, where a list of groups and one tree exchange state.

A list of parameter groups calls its parameters "0.W", "1.b"; one tree calls them "W", "b", or where
the groups were subtrees of it "encoder.W", "decoder.b".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastopt.core.tree import Tree
from fastopt.errors import CheckpointError


def as_here(tree: Tree, saved: Any, strict: bool) -> Any:
    """Return a state_dict, or a checkpoint's content, with our names for its parameters.

    Names that are the same decide. Where they are not, and one side is a list of groups, its names
    are compared without the number of the group, and if need be with the ends of the tree's.
    Raises CheckpointError if ``strict`` and a parameter could be several; without it that one keeps
    its name.
    """
    entries = saved.get("state") if isinstance(saved, Mapping) else None
    groups = saved.get("groups") if isinstance(saved, Mapping) else None
    if (
        not isinstance(entries, Mapping)
        or not all(isinstance(name, str) for name in entries)
        or not isinstance(groups, list)
        or not all(isinstance(group, Mapping) for group in groups)
    ):
        return saved  # whatever it is, it is refused
    theirs = list(entries)
    in_groups = are_in_groups(theirs, groups)
    mine = [leaf.name for leaf in tree.leaves if not leaf.is_counter]
    ours = _paired(mine, tree.grouped, theirs, in_groups, strict)
    if not ours:
        return saved
    if in_groups:  # whose numbers are not in the names any more
        groups = [
            {**group, "params": [name for name in theirs if name.startswith(f"{number}.")]}
            for number, group in enumerate(groups)
        ]
    parts = {"state": _renamed(entries, ours), "groups": [_group(one, ours) for one in groups]}
    params = saved.get("params")
    if isinstance(params, Mapping) and all(isinstance(name, str) for name in params):
        everything = [leaf.name for leaf in tree.leaves]  # counters have no state
        ours = _paired(everything, tree.grouped, list(params), in_groups, strict)
        parts["params"] = _renamed(params, ours)
    return {**saved, **parts}


def _renamed(given: Mapping[str, Any], ours: Mapping[str, str]) -> dict[str, Any]:
    return {ours.get(name, name): value for name, value in given.items()}


def are_in_groups(names: Collection[str], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether saved names can be those of a list of groups: each begins with a number."""
    numbers = {name.partition(".")[0] for name in names if "." in name}
    known = {str(number) for number in range(len(groups))}
    return (
        all("." in name for name in names)
        and numbers <= known  # of counters alone a group has no state
        and not any("params" in group for group in groups)
    )


def _group(group: Mapping[str, Any], ours: Mapping[str, str]) -> Mapping[str, Any]:
    names = group.get("params")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return group
    return {**group, "params": [ours.get(name, name) for name in names]}


@dataclass(frozen=True)
class _Match:
    """Candidates of names: of each short one those of the other side that it could be."""

    of_short: Mapping[str, Sequence[str]]
    of_long: Mapping[str, Sequence[str]]

    @property
    def pairs(self) -> dict[str, str]:
        """The names that have each other as their only candidates."""
        return {
            short: found[0]
            for short, found in self.of_short.items()
            if len(found) == 1 and len(self.of_long[found[0]]) == 1
        }


def _paired(
    mine: Sequence[str], grouped: bool, theirs: Sequence[str], in_groups: bool, strict: bool
) -> dict[str, str]:
    """Return our names by theirs where these differ; empty if they are to be taken as they are."""
    same = len(set(mine) & set(theirs))
    if same in (len(mine), len(theirs)) or not (grouped or in_groups):
        return {}
    own, bare = ({name: _own(name) for name in names} for names in (mine, theirs))
    full_mine, full_theirs = {name: name for name in mine}, {name: name for name in theirs}
    attempts: list[tuple[bool, _Match]] = []  # whether the short names are ours
    if grouped and in_groups:
        attempts.append((True, _match(own, bare, tails=False)))
    elif grouped:
        attempts.append((True, _match(own, full_theirs)))
        attempts.append((True, _match(_of_arrays(mine), full_theirs, tails=False)))
    else:
        attempts.append((False, _match(bare, full_mine)))
        attempts.append((False, _match(_of_arrays(theirs), full_mine, tails=False)))
    for short_is_mine, match in attempts:
        pairs = match.pairs
        if len(pairs) == len(mine) == len(theirs):
            return _by_theirs(pairs, short_is_mine)
    found = [(which, match) for which, match in attempts if any(match.of_short.values())]
    if same or not found:
        return {}
    short_is_mine, match = found[0]
    if strict:
        _refuse_ambiguous(match, short_is_mine)
    return _by_theirs(match.pairs, short_is_mine)


def _own(name: str) -> str:
    """Return a name without the number of its group."""
    return name.partition(".")[2]


def _of_arrays(names: Sequence[str]) -> dict[str, str]:
    """Return names in which a group that is one array has its number alone, as in a list."""
    return {name: name.removesuffix(".params") for name in names}


def _match(short: Mapping[str, str], long: Mapping[str, str], tails: bool = True) -> _Match:
    """Compare the spellings of names; those of ``long`` may have more in front if ``tails``."""
    whole: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for name, spelled in long.items():
        whole.setdefault(spelled, []).append(name)
        while tails and "." in spelled:
            spelled = spelled.partition(".")[2]
            ends.setdefault(spelled, []).append(name)
    of_short = {name: whole.get(text) or ends.get(text) or [] for name, text in short.items()}
    of_long: dict[str, list[str]] = {name: [] for name in long}
    for name, found in of_short.items():
        for other in found:
            of_long[other].append(name)
    return _Match(of_short, of_long)


def _by_theirs(pairs: Mapping[str, str], short_is_mine: bool) -> dict[str, str]:
    return {long: short for short, long in pairs.items()} if short_is_mine else dict(pairs)


def _refuse_ambiguous(match: _Match, short_is_mine: bool) -> None:
    sides = ("here", "in the file") if short_is_mine else ("in the file", "here")
    for (side, other), candidates in (
        (sides, match.of_short),
        (sides[::-1], match.of_long),
    ):
        for name, found in candidates.items():
            if len(found) > 1:
                raise CheckpointError(
                    f"state: {name!r} {side} could be each of {sorted(found)[:4]} {other}; "
                    "parameters are matched by name, so construct the optimizer with the groups or "
                    "the tree that were saved (strict=False takes what is clear)"
                )
