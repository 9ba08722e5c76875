"""What schedules remember, for the checkpoint: found in them, looked at, and then written back.

A schedule with a memory has ``state_dict()`` and ``_restorer(saved)``, which checks a saved state
and returns the function that takes it over. A schedule made of others has them as ``_parts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastopt.errors import CheckpointError

_KEY = "schedule"  # of the one entry that stands for a schedule in a state_dict


def memory_of(schedule: Any) -> dict[str, Any] | None:
    """Return what is saved of a schedule; None of a function that has no memory."""
    states = [part.state_dict() for part in _remembering(schedule)]
    return {_KEY: states[0] if len(states) == 1 else states} if states else None


def is_memory(saved: Any) -> bool:
    """Return whether a saved hyperparameter is the memory of a schedule."""
    return isinstance(saved, Mapping) and saved.keys() == {_KEY}


def restorers(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], strict: bool
) -> list[Callable[[], None]]:
    """Return what writes all groups' memories back; raises CheckpointError if one does not fit.

    A memory whose schedule is not there is refused if ``strict``, and left out if not.
    """
    found: dict[int, Any] = {}  # by schedule, which several groups may share
    writes = []
    for number, (group, given) in enumerate(zip(groups, saved, strict=True)):
        for name, memory in given.items():
            if name not in group or not is_memory(memory):
                continue
            place = f"groups[{number}]: {name}"
            for part, state in _pairs(place, group[name], memory[_KEY], strict):
                writes.append(_restorer(place, part, state))
                if found.setdefault(id(part), state) != state:
                    raise CheckpointError(
                        f"{place}: {part!r} is used in several places, and what was saved for them "
                        "differs; give each a schedule of its own"
                    )
    return writes


def left_out(group: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Return the names of a group's saved memories for which it has no such schedules."""
    memories = {k: v[_KEY] for k, v in saved.items() if k in group and is_memory(v)}
    return [
        name
        for name, memory in memories.items()
        if len(list(_remembering(group[name]))) != len(_states(memory))
    ]


def _states(memory: Any) -> list[Any]:
    return memory if isinstance(memory, list) and len(memory) > 1 else [memory]


def _pairs(place: str, schedule: Any, saved: Any, strict: bool) -> Iterator[tuple[Any, Any]]:
    parts = list(_remembering(schedule))
    states = _states(saved)
    if len(parts) == len(states):
        yield from zip(parts, states, strict=True)
    elif strict:
        raise CheckpointError(
            f"{place}: {len(states)} schedules with a memory were saved, and {schedule!r} has "
            f"{len(parts)} (strict=False keeps ours)"
        )


def _restorer(place: str, schedule: Any, state: Any) -> Callable[[], None]:
    try:
        write: Callable[[], None] = schedule._restorer(state)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    return write


def _remembering(schedule: Any) -> Iterator[Any]:
    """Yield the schedules with a memory that a schedule is or is made of."""
    if hasattr(type(schedule), "_restorer"):
        yield schedule
    for part in schedule._parts if hasattr(type(schedule), "_parts") else ():
        yield from _remembering(part)
