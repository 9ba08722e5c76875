"""Parameter groups: the hyperparameters of some parameters, checked whenever they are set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, cast

from fastopt.hyperparameters import Check, Schedulable

Options = dict[str, Any]


class ParamGroup(dict[str, Any]):
    """A dict with "params" and every hyperparameter; a bad value is refused when it is set.

    ``checks`` belong to the hyperparameters by name; each of ``reviews`` sees the whole group, and
    raises for combinations that make no sense and changes that an optimizer in use cannot make.
    ``revision`` grows with every change; ``scheduled`` says whether a value is a function.
    """

    def __init__(
        self,
        owner: str,
        params: Any,
        checks: Mapping[str, Check],
        reviews: list[Callable[[Options], None]],
    ) -> None:
        super().__init__(params=params)
        self._owner = owner
        self._checks = checks
        self.reviews = reviews
        self.revision = 0
        self.scheduled = False

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def update(self, *given: Any, **named: Any) -> None:
        """Set several hyperparameters; none is set if one is refused."""
        super().update(self.checked(dict(*given, **named)))
        self.revision += 1
        self.scheduled = any(callable(value) for value in self.plain.values())

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
            import difflib  # a millisecond

            close = difflib.get_close_matches(name, self._checks, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(self._checks)}"
            raise TypeError(f"{self._owner} has no hyperparameter {name!r}; {hint}")
        return self._checks[name](f"{self._owner}: {name}", value)

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
        raise TypeError(f"a {self._owner} group keeps all its hyperparameters; set them instead")

    __delitem__ = _fixed
    pop = _fixed
    popitem = _fixed
    clear = _fixed

    def value(self, name: str, step_count: int) -> Any:
        """Return a hyperparameter's value in a step, checked if a schedule gives it."""
        value = self[name]
        if not callable(value):
            return value
        check = cast(Schedulable, self._checks[name])  # no other lets a function through
        return check.at(f"{self._owner}: {name} at step {step_count}", value, step_count)

    def at(self, step_count: int) -> Options:
        """Return the hyperparameters with the values of a step in the place of schedules."""
        if not self.scheduled:
            return self
        return {name: self.value(name, step_count) for name in self.plain}

    @property
    def plain(self) -> Options:
        """The hyperparameters alone, as a dict of its own."""
        return {name: value for name, value in self.items() if name != "params"}


class ParamGroups(list[ParamGroup]):
    """All groups of an optimizer; the groups can be changed, and the list of them cannot."""

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "an optimizer keeps the groups that it was made with; construct a new optimizer for "
            "others (settings are changed in a group: opt.param_groups[0]['lr'] = 0.1)"
        )

    append = extend = insert = pop = remove = clear = sort = reverse = _fixed
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _fixed

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return list, (list(self),)  # a copy is a plain list


def are_given(params: Any) -> bool:
    """Return whether the parameters are a list of groups; raise if they nearly are."""
    items = params if isinstance(params, list | tuple) else [params]
    looks = [isinstance(item, dict) and "params" in item for item in items]
    if any(looks) and not (isinstance(params, list) and all(looks)):
        where = (
            f"params[{looks.index(False)}] has no 'params'"
            if not all(looks)
            else "got " + (type(params).__name__)
        )
        raise TypeError(
            "params looks like parameter groups, which are a list of dicts that each have "
            f"'params'; {where}"
        )
    return any(looks)
