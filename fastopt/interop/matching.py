"""Which of their parameters is which of ours: by the user's word, by name, or by position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from fastopt.errors import CheckpointError
from fastopt.interop.target import Parameter

Names = Mapping[str, int | str]
"""Our name of each parameter to theirs: a name, or a position, 0 for the first."""


def match(
    ours: Sequence[Sequence[Parameter]],
    theirs: Sequence[Sequence[str | None]],
    names: Names | None,
    spelled: Callable[[str], str] = str,
) -> dict[str, int]:
    """Return the position of their parameter for each name of ours.

    Both are given group by group, theirs by name, None where there is none. ``spelled`` turns a
    name of ours into their spelling. By position, the groups must be of the same sizes.
    """
    mine, other = list(chain.from_iterable(ours)), list(chain.from_iterable(theirs))
    if names is not None:
        return _by_word(mine, other, names)
    if len(mine) != len(other):
        raise CheckpointError(
            f"the optimizer has {len(mine)} parameters, and the state is of {len(other)}"
        )
    place = {name: position for position, name in enumerate(other) if name is not None}
    for spellings in ([spelled(p.name) for p in mine], [spelled(p.own_name) for p in mine]):
        if place.keys() == set(spellings) and len(set(spellings)) == len(mine):
            return {p.name: place[s] for p, s in zip(mine, spellings, strict=True)}
        if known := sorted(place.keys() & set(spellings)):
            odd = sorted(place.keys() ^ set(spellings)) or ["but some names are there twice"]
            raise CheckpointError(
                f"some parameters have the same name on both sides ({known[0]}) and some have not "
                f"({', '.join(odd[:4])}); say which is which: names={{ours: theirs, ...}}"
            )
    if [len(group) for group in ours] != [len(group) for group in theirs]:
        raise CheckpointError(
            f"without names parameters are matched by position, but the groups have "
            f"{[len(group) for group in ours]} parameters here and "
            f"{[len(group) for group in theirs]} there; say which is which: "
            "names={ours: position, ...}"
        )
    return {p.name: position for position, p in enumerate(mine)}


def _by_word(
    ours: Sequence[Parameter], theirs: Sequence[str | None], names: Names
) -> dict[str, int]:
    """Return the positions that the user gave, if they pair all of ours with all of theirs."""
    if not isinstance(names, Mapping):
        raise TypeError(f"names must be a dict of our names to theirs; got {type(names).__name__}")
    wanted = {parameter.name for parameter in ours}
    if names.keys() != wanted:
        odd = sorted(map(str, names.keys() ^ wanted))
        raise ValueError(
            f"names must have each parameter of the optimizer, as in its state_dict, and no other; "
            f"it differs in {', '.join(odd[:3])}"
        )
    found = {name: _position(given, theirs) for name, given in names.items()}
    if sorted(found.values()) != list(range(len(theirs))):
        raise ValueError(
            f"names must pair each of their {len(theirs)} parameters with one of ours; got the "
            f"positions {sorted(found.values())}"
        )
    return found


def _position(given: object, theirs: Sequence[str | None]) -> int:
    if isinstance(given, str) and theirs.count(given) == 1:
        return theirs.index(given)
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(theirs):
        return given
    known = [name for name in theirs if name is not None]
    raise ValueError(
        f"names: {given!r} is no position from 0 to {len(theirs) - 1}"
        + (f", and none of their names, {', '.join(known[:3])}, ..." if known else "")
    )
