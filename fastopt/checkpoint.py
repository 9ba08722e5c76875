"""An optimizer, its parameters and its companions as one file, and back: all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fastopt import atomic_file, container, parameter_values, state
from fastopt.arrays import Array
from fastopt.conversion import converted
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.interrupts import Deferred
from fastopt.load_report import Differences, LoadReport, compare_names
from fastopt.plain_tree import Encoder, decode


class Companion(Protocol):
    """What can be saved beside an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything to be remembered: plain values and arrays, nested."""

    def _restorer(self, saved: Any) -> Callable[[], None]:
        """Look at all of a state_dict; return what takes it over, which cannot fail.

        Raises CheckpointError if it does not fit.
        """


Companions = Mapping[str, Companion]

_PREFIXES = {"state": "state:", "params": "param:", "also": "also:", "notes": "note:"}


def pack(
    optimizer: str,
    groups: Sequence[Group],
    clock: Array,
    params: bool,
    also: Companions | None,
    notes: Mapping[str, Any] | None,
) -> bytes:
    """Return a checkpoint's bytes."""
    content = state.collect(optimizer, groups, clock)
    content["params"] = parameter_values.collect(groups) if params else None
    content["also"] = {k: one.state_dict() for k, one in _checked(also, "state_dict").items()}
    content["notes"] = _mapping("notes", notes)
    encoder = Encoder()
    manifest = {
        name: encoder.encode(_PREFIXES.get(name, f"{name}:"), value)
        for name, value in content.items()
    }
    return container.pack(manifest, encoder.arrays)


def write(path: str | os.PathLike[str], content: bytes, keep_previous: bool) -> None:
    """Replace a checkpoint by another."""
    atomic_file.write(Path(path), content, keep_previous)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what is in a checkpoint; CheckpointError if the file is not a whole one."""
    place = Path(path)
    try:
        if place.exists() and not place.is_file() and not place.is_dir():
            raise CheckpointError("this is no regular file")  # a pipe could be waited for
        with place.open("rb") as file:
            manifest, arrays = container.unpack(file, os.fstat(file.fileno()).st_size)
        return _content(manifest, arrays)
    except CheckpointError as error:
        raise explained(path, error) from None


def explained(path: str | os.PathLike[str], error: CheckpointError) -> CheckpointError:
    """Return the error with the file's name, and that of the checkpoint before it, if there is."""
    before = atomic_file.previous(Path(os.path.realpath(path)))
    hint = f" The checkpoint before it is {str(before)!r}." if before.is_file() else ""
    return CheckpointError(f"{os.fspath(path)!r}: {str(error).rstrip('.')}.{hint}")


def _content(manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    try:
        content = {k: decode(v, arrays) for k, v in manifest.items() if k != "arrays"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the file is damaged: {error!r}") from None
    for name, kinds in (("fastopt", str), ("also", dict), ("notes", dict)):
        if not isinstance(content.get(name), kinds):
            raise CheckpointError(f"the file is damaged: {name} is {content.get(name)!r}")
    if not isinstance(content.get("params", ...), dict | None):
        raise CheckpointError("the file is damaged: params is neither a dict nor null")
    return content


def restore(
    optimizer: str,
    groups: Sequence[Group],
    clock: Array,
    content: Mapping[str, Any],
    strict: bool,
    also: Companions | None,
    convert: bool,
) -> LoadReport:
    """Take over what is in a checkpoint: look at all of it first, then write."""
    changes: tuple[str, ...] = ()
    if convert:
        content, changes = converted(groups, content)
    commit, differences = state.restorer(optimizer, groups, clock, content, strict)
    commits = [commit]
    saved_params = content["params"]
    if saved_params is not None:
        commit, more = parameter_values.restorer(groups, saved_params, strict)
        commits.append(commit)
        differences += more
    companions, saved = _checked(also, "_restorer"), content["also"]
    differences += compare_names("companions (also=)", "also:", companions, saved, strict)
    taken = [key for key in companions if key in saved]
    commits += [_restorer_of(key, companions[key], saved[key]) for key in taken]
    _commit(commits)
    made = report(content, differences, saved_params is not None, taken, content["notes"])
    return replace(made, converted=changes)


def _restorer_of(key: str, companion: Companion, saved: Any) -> Callable[[], None]:
    try:
        return companion._restorer(saved)
    except CheckpointError as error:
        raise CheckpointError(f"also[{key!r}]: {error}") from error


def _commit(commits: Iterable[Callable[[], None]]) -> None:
    with Deferred():
        for commit in commits:
            commit()


def report(
    content: Mapping[str, Any],
    differences: Differences,
    params: bool = False,
    also: Iterable[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Return the report on a state that was taken over."""
    return LoadReport(
        optimizer=str(content["optimizer"]),
        version=str(content.get("fastopt", "unknown")),
        step_count=int(content["step_count"]),
        params=params,
        also=tuple(also),
        notes=dict(notes or {}),
        missing=differences.missing,
        unexpected=differences.unexpected,
        mismatched=differences.mismatched,
    )


def _checked(also: Companions | None, needed: str) -> Companions:
    companions: Companions = _mapping("also", also)
    for key, companion in companions.items():
        if not isinstance(key, str):
            raise TypeError(f"also must have text as its keys; got {key!r}")
        if not callable(getattr(companion, needed, None)):
            raise TypeError(
                f"also[{key!r}] must be a companion of the optimizer, such as an EMA or a "
                f"LossScaler; got {type(companion).__name__}. Plain values belong into notes."
            )
    return companions


def _mapping(name: str, given: Any) -> Any:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict; got {type(given).__name__}")
    return {} if given is None else given
