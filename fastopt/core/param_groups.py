"""Parameter groups: the hyperparameters of some parameters, checked whenever they are set."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np

from fastopt.core import advice, arrays
from fastopt.core.hyperparameters import (
    Check,
    Formula,
    Options,
    Schedulable,
    Several,
    functions_in,
)
from fastopt.core.options import GRAPHED, OPTIONS
from fastopt.core.tree import Tree, leaves_of


class Changes:
    """How often settings of some groups have changed: all, and all but learning rates.

    A learning rate that was one number and is another counts for the first alone.
    """

    __slots__ = ("besides_lr", "count")

    def __init__(self) -> None:
        self.count: int = 0
        self.besides_lr: int = 0


_HIGH_RATE = 1_000.0
"""A learning rate that most users stay below."""


class ParamGroup(dict[str, Any]):
    """A dict with "params" and every hyperparameter; a bad value is refused when it is set.

    ``checks`` belong to the hyperparameters by name, ``positions`` are the places of the parameters
    among the leaves of the tree. Each of ``reviews`` sees the whole group, and raises for
    combinations that make no sense and changes that an optimizer in use cannot make; each of
    ``step_reviews`` sees the values of a step, and its number, and raises for those that functions
    must not give.

    ``revision`` grows with every change but that of a learning rate from one number to another;
    ``changes`` counts the changes of all groups of an optimizer. ``scheduled`` says whether a value
    is a function or holds one, ``scheduled_besides_lr`` whether one does besides the learning rate,
    ``foreseeable`` that functions return the same for a step whenever they are asked: they have an
    attribute of this name.

    A learning rate is set often, so it is not reviewed if a higher one has been, with all else as
    it is: what the reviews look at is proportional to it, or does not depend on it
    (``Formula._lr_scalars``).
    """

    def __init__(
        self, owner: str, params: Any, checks: Mapping[str, Check], positions: Sequence[int] = ()
    ) -> None:
        super().__init__(params=params)
        self.owner = owner
        self._checks = checks
        self.positions = positions
        self.reviews: list[Callable[[Options], None]] = []
        self.step_reviews: list[Callable[[Options, int], None]] = []
        self.revision: int = 0
        self.changes: Changes = Changes()
        self.scheduled: bool = False
        self.scheduled_besides_lr: bool = False
        self.foreseeable: bool = True
        self._schedules: tuple[str, ...] = ()
        self._reviewed_rate: float | None = None  # the highest one; None: not known
        self._reviewed_schedule = -1.0  # the highest rate of a schedule that was reviewed

    def __setitem__(self, name: str, value: Any) -> None:
        if name != "lr" or not self.set_rate(value):
            self.update({name: value})

    def takes_rate(self, rate: Any) -> bool:
        """Return whether a learning rate needs no review, if it is to replace another number."""
        if self._reviewed_rate is None:
            now = self["lr"]
            self._reviewed_rate = (
                self._review_rate(now, lambda high: self.checked({"lr": high}))
                if isinstance(now, float)
                else -1.0
            )
        return isinstance(rate, float) and 0.0 <= rate <= self._reviewed_rate

    def set_rate(self, rate: Any) -> bool:
        """Set a learning rate that needs no review; False, with nothing done, for any other."""
        if not self.takes_rate(rate):
            return False
        super().__setitem__("lr", float(rate))  # a NumPy number is one too
        self.changes.count += 1
        return True

    def _review_rate(self, rate: float, review: Callable[[float], object]) -> float:
        """Review a learning rate, or a higher one if that passes; return which."""
        if rate < _HIGH_RATE:
            with suppress(ValueError):
                review(_HIGH_RATE)
                return _HIGH_RATE
        review(rate)
        return rate

    def update(self, *given: Any, **named: Any) -> None:
        """Set several hyperparameters; none is set if one is refused."""
        super().update(self.checked(dict(*given, **named)))
        self.revision += 1
        self.changes.count += 1
        self.changes.besides_lr += 1
        found = {k: functions_in(self._checks[k], value) for k, value in self.plain.items()}
        self._schedules = tuple(name for name, functions in found.items() if functions)
        self.scheduled = bool(self._schedules)
        self.scheduled_besides_lr = self._schedules not in ((), ("lr",))
        self.foreseeable = all(
            getattr(function, "foreseeable", False) is True
            for functions in found.values()
            for function in functions
        )
        self._reviewed_rate, self._reviewed_schedule = None, -1.0

    def checked(self, changes: Mapping[str, Any]) -> Options:
        """Return the changes in their plain form, if every one of them can be made."""
        checked = {name: self._check(name, value) for name, value in changes.items()}
        for review in self.reviews:
            review({**self, **checked})
        return checked

    def _check(self, name: str, value: Any) -> Any:
        if name == "params":
            raise TypeError("a group's params are fixed; construct a new optimizer for others")
        if name not in self._checks:
            raise TypeError(_unknown(self.owner, name, self._checks))
        return self._checks[name](f"{self.owner}: {name}", value)

    def show(self, params: Any) -> None:
        """Have other arrays as "params"."""
        super().__setitem__("params", params)

    def freeze(self, formula: type[Formula]) -> None:
        """Refuse from now on changes that need another rule: a captured step keeps its own.

        So it does with what is done to whole gradients before.
        """
        kept = formula._rule(self)
        before = [repr(self[name]) for name in GRAPHED]  # members' numbers are arrays

        def review(options: Options) -> None:
            changed = [repr(options[name]) for name in GRAPHED] != before
            if changed or formula._rule(options) != kept:
                raise ValueError(
                    f"{formula.__name__}: a step has been captured in a CUDA graph, with the "
                    "update as it was then; this change needs another one, so construct a new "
                    "optimizer and capture again"
                )

        self.reviews.append(review)

    def __ior__(self, given: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> ParamGroup:  # type: ignore[override,misc]  # narrower than dict's on purpose
        self.update(given)
        return self

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a hyperparameter; all are there, so nothing is ever set."""
        if name not in self:
            self._check(name, default)
        return self[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy is a plain dict: it sets nothing

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"a {self.owner} group keeps all its hyperparameters; set them instead")

    __delitem__: Any = _fixed
    pop: Any = _fixed
    popitem: Any = _fixed
    clear: Any = _fixed

    def value(self, name: str, step_count: int) -> Any:
        """Return a hyperparameter's value in a step, checked if a schedule gives it."""
        if name not in self._schedules:
            return self[name]
        check = cast(Schedulable | Several, self._checks[name])  # no other lets a function through
        return check.at(f"{self.owner}: {name}", self[name], step_count)

    def resumed(self, saved: Options, kept: Collection[str] = ()) -> Options:
        """Return what saved hyperparameters become here, checked: functions of this group stay.

        Nothing is taken over for None, which was saved for a function, in a tuple for each part;
        nor of those that are to be ``kept`` as they are here.
        """
        taken = {}
        for name, value in saved.items():
            if name in kept:
                if value is not None:
                    self._check(name, value)
                continue
            if isinstance(self._checks.get(name), Several):
                value = _resumed_each(self[name], value)
            if value is not None:
                taken[name] = value
        checked = self.checked(taken)
        return {name: value for name, value in checked.items() if not callable(self[name])}

    def at(self, step_count: int) -> Options:
        """Return the hyperparameters with the values of a step in the place of schedules, checked.

        Raises ValueError or TypeError for a value that a schedule must not give.
        """
        if not self.scheduled:
            return self
        given = {name: self.value(name, step_count) for name in self._schedules}
        options = {**self, **given}
        rate = options["lr"]
        if self.scheduled_besides_lr or not isinstance(rate, float):
            self._review_step(options, step_count)
        elif rate > self._reviewed_schedule:
            self._reviewed_schedule = self._review_rate(
                rate, lambda one: self._review_step({**options, "lr": one}, step_count)
            )
        return options

    def _review_step(self, options: Options, step_count: int) -> None:
        for review in self.step_reviews:
            review(options, step_count)

    @property
    def plain(self) -> Options:
        """The hyperparameters alone, as a dict of its own."""
        return {name: value for name, value in self.items() if name != "params"}


def _resumed_each(own: tuple[Any, ...], saved: Any) -> Any:
    if not isinstance(saved, tuple | list) or len(saved) != len(own):
        return saved  # it is refused, unless it is None
    pairs = zip(own, saved, strict=True)
    return tuple(one if callable(one) or theirs is None else theirs for one, theirs in pairs)


OF_ALL = [name for name, option in OPTIONS.items() if option.check is None]
"""The options that are no hyperparameters of a group, but the optimizer's as a whole."""


def _unknown(owner: str, name: str, known: Mapping[str, Check]) -> str:
    """Return what is said of a hyperparameter that there is not."""
    optimizer = owner.partition(",")[0]
    if name in OF_ALL:
        return (
            f"{owner}: {name} is not of a group, but of the optimizer as a whole: "
            f"{optimizer}(params, {name}=...)"
        )
    return (
        f"{owner} has no hyperparameter {name!r}{advice.meant(name, [*known, *OF_ALL])} "
        f"It has {', '.join(known)}; for all parameters together {', '.join(OF_ALL)}"
    )


class ParamGroups(list[ParamGroup]):
    """All groups of an optimizer; the groups can be changed, and the list of them cannot."""

    def __init__(self, groups: Iterable[ParamGroup], changes: Changes | None = None) -> None:
        super().__init__(groups)
        self.changes: Changes = Changes() if changes is None else changes
        for group in self:
            group.changes = self.changes
        self._one_rate_at: int | None = None  # after so many changes all groups have one "lr"

    def add(self, group: ParamGroup) -> None:
        """Add a group at the end."""
        group.changes = self.changes
        super().append(group)
        self._one_rate_at = None

    def set_rate(self, rate: Any) -> None:
        """Set the learning rate of all groups, which have one; or raise, and set none."""
        if self._one_rate_at != self.changes.count:
            self._check_one_rate()
        if len(self) > 1 or not self[0].set_rate(rate):
            self._set_rate_of_each(rate)
        self._one_rate_at = self.changes.count

    def _set_rate_of_each(self, rate: Any) -> None:
        if all(group.takes_rate(rate) for group in self):
            for group in self:
                group.set_rate(rate)
        else:
            checked = [group.checked({"lr": rate}) for group in self]
            for group, change in zip(self, checked, strict=True):
                group.update(change)

    def _check_one_rate(self) -> None:
        """Raise ValueError if the groups differ in "lr": one for all would undo that silently."""
        first = self[0]["lr"]
        for number, group in enumerate(self):
            own = group["lr"]
            if own is not first and not np.all(own == first):
                raise ValueError(
                    "opt.lr is the learning rate of all groups, and these differ in it; got "
                    f"{first!r:.100} in param_groups[0] and {own!r:.100} in param_groups[{number}]"
                    f'. Set it group by group, as opt.param_groups[{number}]["lr"]; or give all '
                    'groups the same "lr" and each an "lr_scale", by which its lr is multiplied: '
                    "opt.lr then leaves their ratio as it is"
                )

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "an optimizer keeps its groups; opt.add_param_group({'params': ...}) adds one, and "
            "settings are changed in a group: opt.param_groups[0]['lr'] = 0.1"
        )

    append: Any = _fixed
    extend: Any = _fixed
    insert: Any = _fixed
    pop: Any = _fixed
    remove: Any = _fixed
    clear: Any = _fixed
    sort: Any = _fixed
    reverse: Any = _fixed
    __setitem__: Any = _fixed
    __delitem__: Any = _fixed
    __iadd__: Any = _fixed
    __imul__: Any = _fixed

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return list, (list(self),)  # a copy is a plain list


def are_given(params: Any) -> bool:
    """Return whether the parameters are a list of groups; raise if they nearly are.

    A dict with "params" is a tree, as Flax has them, unless what else is in it holds no array.
    """
    if isinstance(params, Mapping):
        _refuse_single(params)
        return False
    looks = [_is_group(item) for item in params] if isinstance(params, list | tuple) else []
    if any(looks) and not (isinstance(params, list) and all(looks)):
        where = (
            f"params[{looks.index(False)}] has no 'params'"
            if not all(looks)
            else f"got {type(params).__name__}, so hand in list(params)"
        )
        raise TypeError(
            "params looks like parameter groups, which are a list of dicts that each have "
            f"'params'; {where}"
        )
    return any(looks)


def _is_group(item: Any) -> bool:
    return isinstance(item, Mapping) and "params" in item


def _refuse_single(params: Mapping[Any, Any]) -> None:
    """Raise TypeError for one group that is in no list."""
    for name in params if "params" in params else ():
        leaves = () if name == "params" else leaves_of(params[name])
        if leaves and all(arrays.kind(leaf) is None for leaf in leaves):
            raise TypeError(
                "params looks like parameter groups, which are a list of dicts that each have "
                "'params': hand in [params]. If it is a tree of arrays, leave out "
                f"params[{name!r}], which holds none"
            )


# Settings by pattern ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Groups:
    """One tree of parameters, and hyperparameters by pattern; what ``groups`` returns."""

    params: Any = field(repr=False)
    settings: Mapping[str, Mapping[str, Any]]

    def positions(self, names: Sequence[str]) -> list[tuple[str | None, list[int]]]:
        """Return each group's pattern and the positions of its parameters in ``names``.

        The first group is that of the parameters which no pattern matches, if there are any; its
        pattern is None. Raises ValueError for a pattern that no parameter is left for.
        """
        found: dict[str | None, list[int]] = {
            None: [],
            **{pattern: [] for pattern in self.settings},
        }
        reached = {pattern: _reached(pattern, names) for pattern in self.settings}
        for position, name in enumerate(names):
            found[next((p for p in reached if name in reached[p]), None)].append(position)
        for pattern in self.settings:
            if not found[pattern]:
                raise ValueError(_why_empty(pattern, names, reached))
        return [(pattern, positions) for pattern, positions in found.items() if positions]


def groups(params: Any, settings: Mapping[str, Mapping[str, Any]]) -> Groups:
    """Return parameters with other hyperparameters for some of them, to hand to any optimizer.

    ::

        params = {"embed": {"W": E}, "layers": [{"W": W, "b": b}]}
        opt = Adam(groups(params, {"**/b": {"weight_decay": 0}, "embed.*": {"lr": 1e-4}}), lr=1e-3)
        opt.step(grads)  # nested as params

    A pattern is matched against the whole name that a parameter has in ``state_dict``
    (``layers.0.b``). What is such a name itself stands for this parameter alone, and so does what
    is written as in Python: ``layers[0].b``, ``["layers"][0]["b"]``. In all other patterns "." and
    "/" both separate levels, in patterns and in names. Within one level
    ``*`` stands for anything, ``?`` for one character, ``[ab]`` for one of these and ``[!ab]`` for
    one of all others; a level that is ``**`` stands for any number of levels, none included. Upper
    and lower case differ. Of several patterns that match a parameter the first one counts, alone;
    parameters that none matches have the optimizer's own settings.

    The optimizer's ``param_groups`` are the parameters that no pattern matched, if there are any,
    and then one group per pattern; "params" of each is a dict of its arrays by name. The names in
    ``state_dict`` are those that the tree has without groups.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> params = {"layer": {"W": np.ones((2, 2)), "b": np.zeros(2)}}
        >>> groups = fastopt.groups(params, {"**/b": {"weight_decay": 0.0}})
        >>> opt = fastopt.AdamW(groups, weight_decay=0.1)
        >>> [(list(group["params"]), group["weight_decay"]) for group in opt.param_groups]
        [(['layer.W'], 0.1), (['layer.b'], 0.0)]

    Args:
        params: an array or a tree of arrays: mappings and sequences, nested.
        settings: hyperparameters by pattern; what is not named is as for all others.

    Raises:
        ValueError: for a pattern that matches nothing, or only what earlier ones have matched.
        TypeError: if ``params`` are groups already, or ``settings`` is no dict of dicts by pattern;
            and whatever an optimizer raises for arrays that it cannot update.
    """
    if isinstance(params, Groups) or are_given(params):
        raise TypeError("groups takes one tree of parameters; these are parameter groups already")
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings must be a dict of dicts by pattern; got {settings!r:.200}")
    made = Groups(params, {pattern: _checked(pattern, settings[pattern]) for pattern in settings})
    made.positions([leaf.name for leaf in Tree(params).leaves])
    return made


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern stands for a parameter's name."""
    return _fits(_levels(pattern), _levels(name))


def _reached(pattern: str, names: Sequence[str]) -> set[str]:
    """Return the names that a pattern stands for: literally if any, else by its signs."""
    dotted = _dotted(pattern)
    literal = {name for name in names if name in (pattern, *dotted)}
    if literal:
        return literal
    found = ({name for name in names if matches(p, name)} for p in (pattern, *dotted))
    return next(filter(None, found), set())


_BRACKETS = re.compile(r"""\[("[^"]*"|'[^']*'|[^\]]*)\]""")


def _dotted(pattern: str) -> list[str]:
    """Return what a path as it is written in Python may be called: layers.0.W for layers[0].W.

    With and without the "params" that it may begin with.
    """
    if "[" not in pattern:
        return []
    dotted = _BRACKETS.sub(lambda found: "." + found[1].strip("\"'"), pattern).lstrip(".")
    return [dotted, dotted.removeprefix("params.")]


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


def _why_empty(pattern: str, names: Sequence[str], reached: Mapping[str, set[str]]) -> str:
    """Say why a pattern gets no parameter, and what was perhaps meant."""
    taken = [name for name in names if name in reached[pattern]]
    if taken:
        first = next(other for other in reached if taken[0] in reached[other])
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


# The groups of what a user hands in --------------------------------------------------------------


class GivenGroup(NamedTuple):
    """What the user gave for one group."""

    positions: Sequence[int]  # of its parameters among the leaves of the tree
    params: Any  # what it shows as its "params"
    options: Options
    label: str  # what errors call it, after the optimizer's name


def tree_of(params: Any) -> Tree:
    """Return the tree of what an optimizer is given: a tree, or groups of either kind."""
    if isinstance(params, Groups):
        return Tree(params.params)
    if are_given(params):
        return Tree([group["params"] for group in params], grouped=True)
    return Tree(params)


def shown_in(tree: Tree, number: int, positions: Sequence[int], whole: bool) -> Any:
    """Return what a group shows as its "params": a tree, or some of its arrays by name."""
    if tree.grouped:
        return tree.params[number]
    return tree.params if whole else named(tree, positions)


def shown(tree: Tree, before: Tree, groups: Sequence[ParamGroup]) -> list[Any]:
    """Return what each group shows as its "params" now that ``tree`` is in the place of another."""
    return [
        shown_in(tree, number, group.positions, group["params"] is before.params)
        for number, group in enumerate(groups)
    ]


def named(tree: Tree, positions: Iterable[int]) -> dict[str, Any]:
    """Return some arrays of a tree by name."""
    return {tree.leaves[position].name: tree.leaves[position].array for position in positions}


def given_groups(params: Any, tree: Tree) -> Iterator[GivenGroup]:
    """Yield the groups of what an optimizer is given, whose tree this is."""
    if isinstance(params, Groups):
        for pattern, positions in params.positions([leaf.name for leaf in tree.leaves]):
            own = {} if pattern is None else dict(params.settings[pattern])
            label = "" if pattern is None else f", pattern {pattern!r}"
            yield GivenGroup(positions, named(tree, positions), own, label)
    elif tree.grouped:
        for number, (group, own_range) in enumerate(zip(params, tree.groups(), strict=True)):
            own = {name: value for name, value in group.items() if name != "params"}
            yield GivenGroup(own_range, group["params"], own, f", params[{number}]")
    else:
        yield GivenGroup(range(len(tree.leaves)), tree.params, {}, "")
