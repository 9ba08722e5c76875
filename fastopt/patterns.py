"""Settings by pattern: which parameters of one tree form a group, told by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from fastopt import param_group
from fastopt.tree import Tree


@dataclass(frozen=True, slots=True)
class Groups:
    """One tree of parameters, and hyperparameters by pattern; what ``groups`` returns."""

    params: Any = field(repr=False)
    settings: Mapping[str, Mapping[str, Any]]

    def members(self, names: Sequence[str]) -> list[tuple[str | None, list[int]]]:
        """Return each group's pattern and the positions of its parameters in ``names``.

        The first group is that of the parameters which no pattern matches, if there are any; its
        pattern is None. Raises ValueError for a pattern that no parameter is left for.
        """
        found: dict[str | None, list[int]] = {
            None: [],
            **{pattern: [] for pattern in self.settings},
        }
        for position, name in enumerate(names):
            found[next((p for p in self.settings if matches(p, name)), None)].append(position)
        for pattern in self.settings:
            if not found[pattern]:
                raise ValueError(_why_empty(pattern, names, self.settings))
        return [(pattern, members) for pattern, members in found.items() if members]


def groups(params: Any, settings: Mapping[str, Mapping[str, Any]]) -> Groups:
    """Return parameters with other hyperparameters for some of them, to hand to any optimizer.

    ::

        params = {"embed": {"W": E}, "layers": [{"W": W, "b": b}]}
        opt = Adam(groups(params, {"**/b": {"weight_decay": 0}, "embed.*": {"lr": 1e-4}}), lr=1e-3)
        opt.step(grads)  # nested as params

    A pattern is matched against the whole name that a parameter has in ``state_dict``
    (``layers.0.b``). "." and "/" both separate levels, in patterns and in names. Within one level
    ``*`` stands for anything, ``?`` for one character, ``[ab]`` for one of these and ``[!ab]`` for
    one of all others; a level that is ``**`` stands for any number of levels, none included. Upper
    and lower case differ. Of several patterns that match a parameter the first one counts, alone;
    parameters that none matches have the optimizer's own settings.

    The optimizer's ``param_groups`` are the parameters that no pattern matched, if there are any,
    and then one group per pattern; "params" of each is a dict of its arrays by name. The names in
    ``state_dict`` are those that the tree has without groups.

    Args:
        params: an array or a tree of arrays.
        settings: hyperparameters by pattern; what is not named is as for all others.

    Raises:
        ValueError: for a pattern that matches nothing, or only what earlier ones have matched.
        TypeError: if ``params`` are groups already, or ``settings`` is no dict of dicts by pattern;
            and whatever an optimizer raises for arrays that it cannot update.
    """
    if isinstance(params, Groups) or param_group.are_given(params):
        raise TypeError("groups takes one tree of parameters; these are parameter groups already")
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings must be a dict of dicts by pattern; got {settings!r:.200}")
    made = Groups(params, {pattern: _checked(pattern, settings[pattern]) for pattern in settings})
    made.members([leaf.name for leaf in Tree(params).leaves])
    return made


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern stands for a parameter's name."""
    return _fits(_levels(pattern), _levels(name))


def _levels(text: str) -> tuple[str, ...]:
    return tuple(text.replace("/", ".").split("."))


def _fits(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if not pattern:
        return not name
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_fits(rest, name[skipped:]) for skipped in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], first) and _fits(rest, name[1:])


def _checked(pattern: Any, own: Any) -> dict[str, Any]:
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern must be a string, such as 'layers.*.b'; got {pattern!r}")
    if not isinstance(own, Mapping) or "params" in own:
        got = "one with 'params'" if isinstance(own, Mapping) else repr(own)[:200]
        raise TypeError(f"pattern {pattern!r} must have a dict of hyperparameters; got {got}")
    return dict(own)


def _why_empty(pattern: str, names: Sequence[str], earlier: Iterable[str]) -> str:
    """Say why a pattern gets no parameter, and what was perhaps meant."""
    taken = [name for name in names if matches(pattern, name)]
    if taken:
        first = next(other for other in earlier if matches(other, taken[0]))
        return (
            f"pattern {pattern!r} gets no parameter: {first!r} comes first and has matched "
            f"{_some(taken)}. The first match counts, so put the narrower pattern first."
        )
    if any(matches(f"{pattern}.**", name) for name in names):
        return (
            f"pattern {pattern!r} matches a branch but no parameter; '{pattern}.**' stands for "
            "all parameters below it"
        )
    if not names:
        return f"pattern {pattern!r} matches no parameter: params holds no array"
    asked = [level for level in _levels(pattern) if level != "**"]

    from difflib import SequenceMatcher  # a millisecond

    def likeness(name: str) -> float:
        tail = _levels(name)[-len(asked) :]
        return SequenceMatcher(None, ".".join(asked).lower(), ".".join(tail).lower()).ratio()

    close = sorted(names, key=likeness, reverse=True)[:3]
    return f"pattern {pattern!r} matches no parameter; the closest are {_some(close)}"


def _some(names: Sequence[str]) -> str:
    """Return the first three of some names, as a list in words."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
