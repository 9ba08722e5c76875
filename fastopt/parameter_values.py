"""The parameters' own values in a checkpoint: read from the user's arrays, written back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.load_report import Differences, compare_names
from fastopt.parameters import Parameter
from fastopt.saved import misfit
from fastopt.state import put


def collect(groups: Sequence[Group]) -> dict[str, Array]:
    """Return the parameters by name; ValueError if one is no longer the user's."""
    found = {}
    for parameter, now in _with_current(groups):
        if now is not parameter.leaf.array:
            parameter.check_array(now)  # raises, and says what to do
        found[parameter.leaf.name] = parameter.leaf.array
    return found


def restorer(
    groups: Sequence[Group], saved: Mapping[str, Any], strict: bool
) -> tuple[Callable[[], None], Differences]:
    """Look at all saved parameters; return what writes them.

    Raises CheckpointError for what does not fit, ValueError for parameters that are no longer the
    user's, or cannot be written any more.
    """
    targets = {}
    for parameter, now in _with_current(groups):
        parameter.check_array(now)
        targets[parameter.leaf.name] = parameter.leaf.array
    differences = compare_names("parameters", "param:", targets, saved, strict)
    writes, misfits = [], []
    for name, array in targets.items():
        if name not in saved:
            continue
        if not isinstance(saved[name], np.ndarray):
            raise CheckpointError(f"param:{name}: expected an array; got {saved[name]!r}")
        if wrong := misfit(f"param:{name}", array, saved[name]):
            misfits.append(wrong)
        else:
            writes.append((array, arrays.like(saved[name], array)))
    if strict and misfits:
        raise CheckpointError(
            f"{misfits[0]}. Parameters are never reshaped, and cast only with convert=True."
        )
    return lambda: put(writes), differences + Differences(mismatched=tuple(misfits))


def _with_current(groups: Sequence[Group]) -> Iterator[tuple[Parameter, Any]]:
    """Yield every parameter with what stands in its place in the user's tree now."""
    for group in groups:
        now = group.tree.current()
        for bucket in group.buckets:
            for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
                yield parameter, now[position]
