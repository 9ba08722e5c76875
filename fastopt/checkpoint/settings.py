"""What a saved state was set to beside what the optimizer is set to that takes it over."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastopt.core import arrays
from fastopt.core.hyperparameters import ElementScales, bounds_kind
from fastopt.core.tree import leaves_of
from fastopt.errors import CheckpointError

Holds = Literal["saved", "here"]


@dataclass(frozen=True)
class Description:
    """Stands for what a state_dict does not hold but only describes: a function, or arrays."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Setting:
    """A hyperparameter or policy that was saved otherwise than the optimizer has it.

    Attributes:
        name: "groups[0].lr", "max_grad_norm".
        saved: what it was when the state was saved. Of a function, and of arrays as bounds or
            lr_scale, only a ``Description`` was saved.
        here: what it was in the optimizer before the load.
        holds: which of the two holds now: "saved" or "here".
    """

    name: str
    saved: Any
    here: Any
    holds: Holds

    def __str__(self) -> str:
        if self.holds == "saved":
            return f"{self.name}: now {self.saved!r}, as saved; it was {self.here!r} here"
        lost = ", which no file holds" if isinstance(self.saved, Description) else ""
        return f"{self.name}: still {self.here!r}, as here; it was saved as {self.saved!r}{lost}"


def descriptions(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what is said of hyperparameters that are not saved themselves, and parts of pairs."""
    parts = (part for name, value in settings.items() for part in _parts(name, value))
    said = {name: _description(name, value) for name, value in parts}
    return {name: text for name, text in said.items() if text is not None}


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return a hyperparameter by name, or the parts of a pair that holds functions."""
    if name != "bounds" and isinstance(value, tuple) and any(map(callable, value)):
        return [(f"{name}[{k}]", part) for k, part in enumerate(value)]
    return [(name, value)]


def _description(name: str, value: Any) -> str | None:
    """Return what is said of a hyperparameter that is not saved itself; None if it is.

    A function is described by its repr without addresses in memory, which are others in every
    process; bounds and factors of the learning rate that are arrays by a digest of them.
    """
    if isinstance(value, ElementScales):
        return _digest(value.given)
    if name == "bounds" and bounds_kind(value) == "arrays":
        return _digest(value)
    if not callable(value):
        return None
    return "the function " + re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in leaves_of(tree):
        if arrays.kind(leaf) is None:
            digest.update(repr(leaf).encode())
        else:
            host = arrays.on_host(leaf)
            digest.update(f"{host.dtype.str} {host.shape} ".encode() + host.tobytes())
    return f"arrays (sha256 {digest.hexdigest()[:16]})"


_UNKNOWN = object()
"""What an older version has not saved, and which may have been the same."""


@dataclass(frozen=True)
class SavedGroup:
    """The hyperparameters of a group as they were saved.

    ``descriptions`` are those of the hyperparameters that were not saved themselves, by name; None
    if the state is of a version that described nothing.
    """

    values: Mapping[str, Any]
    descriptions: Mapping[str, str] | None

    def differences(
        self, place: str, here: Mapping[str, Any], taken: Mapping[str, Any]
    ) -> Iterator[Setting]:
        """Yield what was saved otherwise than it is here; ``taken`` is what is taken over."""
        for option in filter(self.values.__contains__, here):
            for name, own, saved, now in self._compared(option, here, taken):
                text = _description(name, own)
                mine = own if text is None else Description(text)
                theirs = self._value(name, own, saved)
                holds: Holds = "here"
                if option in taken and not isinstance(theirs, Description) and text is None:
                    theirs, holds = now, "saved"
                if theirs is not _UNKNOWN and not is_same(theirs, mine):
                    yield Setting(f"{place}.{name}", theirs, mine, holds)

    def _compared(
        self, option: str, here: Mapping[str, Any], taken: Mapping[str, Any]
    ) -> list[tuple[str, Any, Any, Any]]:
        """Return a hyperparameter here, as saved and from now on; of pairs with gaps the parts."""
        own, saved = here[option], self.values[option]
        now = taken.get(option, own)
        whole = [(option, own, saved, now)]
        if option == "bounds" or not isinstance(own, tuple) or not isinstance(saved, list | tuple):
            return whole
        gaps = any(part is None or isinstance(part, Mapping) for part in saved)
        if len(own) != len(saved) or not (gaps or any(map(callable, own))):
            return whole
        names = [f"{option}[{k}]" for k in range(len(own))]
        return list(zip(names, own, saved, now, strict=True))

    def _value(self, name: str, here: Any, saved: Any) -> Any:
        if self.descriptions is not None and name in self.descriptions:
            return Description(self.descriptions[name])
        if isinstance(saved, Mapping):
            return _UNKNOWN if callable(here) else Description("a schedule with a memory")
        if name == "lr_scale" and saved is None and self.descriptions is not None:
            # An earlier version did not describe arrays; there are no others without a description.
            return _UNKNOWN if isinstance(here, ElementScales) else Description("arrays")
        if saved is None and self.descriptions is None:
            if _description(name, here) is not None:
                return _UNKNOWN
            return Description("a function") if name != "bounds" and _is_number(here) else None
        return saved


def _is_number(value: Any) -> bool:
    """Return whether a hyperparameter is a number, a pair of them, or one for each member."""
    if isinstance(value, tuple):
        return all(map(_is_number, value))
    return isinstance(value, int | float | np.ndarray) and not isinstance(value, bool)


def is_same(one: Any, two: Any) -> bool:
    """Return whether two values of a hyperparameter are the same; they may be or hold arrays."""
    if arrays.kind(one) is not None or arrays.kind(two) is not None:
        if arrays.kind(one) is None or arrays.kind(two) is None:
            return False
        return np.array_equal(arrays.on_host(one), arrays.on_host(two))
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(is_same, one, two))
    return bool(one == two)


def saved_groups(
    saved: list[Mapping[str, Any]], descriptions: Any, described: bool
) -> list[SavedGroup]:
    """Return the saved groups with their descriptions; CheckpointError if these are none.

    ``described`` says whether the version that saved them describes what it does not hold.
    """
    if not described:
        return [SavedGroup(values, None) for values in saved]
    given = [{}] * len(saved) if descriptions is None else descriptions
    if not isinstance(given, list) or len(given) != len(saved) or not all(map(_is_text, given)):
        raise CheckpointError(f"described must be a list of dicts of text; got {given!r:.200}")
    return [SavedGroup(values, texts) for values, texts in zip(saved, given, strict=True)]


def _is_text(given: Any) -> bool:
    return isinstance(given, Mapping) and all(isinstance(text, str) for text in given.values())


def policy_differences(here: Mapping[str, Any], saved: Any) -> Iterator[Setting]:
    """Yield what of the policy was saved otherwise; the optimizer keeps its own.

    Raises CheckpointError if it is no policy.
    """
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"policy must be a dict; got {saved!r:.200}")
    for name, mine in here.items():
        if name in saved and not is_same(saved[name], mine):
            yield Setting(name, saved[name], mine, "here")
