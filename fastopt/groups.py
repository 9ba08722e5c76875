"""Parameter groups: the hyperparameters of some parameters, checked whenever they are set."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from fastopt.hyperparameters import Check

Options = dict[str, Any]


class ParamGroup(dict[str, Any]):
    """A dict with "params" and every hyperparameter; a bad value is refused when it is set.

    ``checks`` belong to the hyperparameters by name, ``review`` sees the whole group: it raises for
    combinations that make no sense, and for changes that an optimizer in use cannot make.
    """

    def __init__(
        self,
        owner: str,
        params: Any,
        options: Mapping[str, Any],
        checks: Mapping[str, Check],
        review: Callable[[Options], None],
    ) -> None:
        super().__init__(params=params)
        self._owner = owner
        self._checks = checks
        self._review = review
        self._set(options)

    def __setitem__(self, name: str, value: Any) -> None:
        self._set({name: value})

    def _set(self, changes: Mapping[str, Any]) -> None:
        super().update(self.checked(changes))

    def checked(self, changes: Mapping[str, Any]) -> Options:
        """Return the changes in their plain form, if every one of them can be made."""
        checked = {name: self._check(name, value) for name, value in changes.items()}
        self._review({**self, **checked})
        return checked

    def _check(self, name: str, value: Any) -> Any:
        if name == "params":
            raise TypeError("a group's params are fixed; construct a new optimizer for others")
        if name not in self._checks:
            close = difflib.get_close_matches(name, self._checks, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(self._checks)}"
            raise TypeError(f"{self._owner} has no hyperparameter {name!r}; {hint}")
        return self._checks[name](f"{self._owner}: {name}", value)

    def update(self, *given: Any, **named: Any) -> None:
        """Set several hyperparameters; none is set if one is refused."""
        self._set(dict(*given, **named))

    def __ior__(self, given: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> ParamGroup:  # type: ignore[override,misc]  # narrower than dict's on purpose
        self._set(dict(given))
        return self

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return a hyperparameter; all are there, so nothing is ever set."""
        return self[name]

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"a {self._owner} group keeps all its hyperparameters; set them instead")

    __delitem__ = _fixed
    pop = _fixed
    popitem = _fixed
    clear = _fixed

    @property
    def options(self) -> Options:
        """The hyperparameters alone."""
        return {name: value for name, value in self.items() if name != "params"}


def split(params: Any) -> list[Options]:
    """Return the groups as plain dicts: those that were given, or one for a tree or an array."""
    if isinstance(params, list) and params and all(_is_group(item) for item in params):
        return [dict(item) for item in params]
    return [{"params": params}]


def are_given(params: Any) -> bool:
    """Return whether the parameters are a list of groups."""
    return isinstance(params, list) and bool(params) and all(_is_group(item) for item in params)


def _is_group(item: Any) -> bool:
    return isinstance(item, dict) and "params" in item
