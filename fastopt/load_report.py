"""What a load took over and what it left alone, as something to print and to look into."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastopt.errors import CheckpointError


@dataclass(frozen=True)
class Differences:
    """Names on one side only, and what has another shape or dtype on the two sides."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            self.missing + other.missing,
            self.unexpected + other.unexpected,
            self.mismatched + other.mismatched,
        )


def compare_names(
    what: str, prefix: str, here: Collection[str], there: Collection[Any], strict: bool
) -> Differences:
    """Return the names that only one side has; CheckpointError instead if that is not allowed.

    ``here`` are the names that are needed, ``there`` those that were saved.
    """
    missing = [name for name in here if name not in there]
    extra = [str(name) for name in there if name not in here]
    if strict and (missing or extra):
        raise CheckpointError(
            f"{what}: {len(missing)} not in the file {_first(missing)}, {len(extra)} only in the "
            f"file {_first(extra)}; they are matched by name (strict=False takes what fits)"
        )
    return Differences(_with(prefix, missing), _with(prefix, extra))


def _first(names: list[str]) -> list[str]:
    return sorted(names)[:3]


def _with(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(prefix + name for name in names))


@dataclass(frozen=True)
class LoadReport:
    """What ``load`` or ``load_state_dict`` did.

    Attributes:
        optimizer: the class that was saved, which is the one that loaded.
        version: the version of fastopt that saved it.
        step_count: the steps that were made when it was saved.
        params: whether the parameters' values were taken over too, or only the state.
        also: the names of the companions that were taken over.
        notes: what the user had saved beside, as it was.
        missing: what was needed and not saved: "state:W", "param:W", "also:ema",
            "groups[0].lr"; it stays as it is. Under ``strict=True`` this and the next two are
            empty, but for hyperparameters that the version that saved did not have.
        unexpected: what was saved and not needed.
        mismatched: what has another shape or dtype here than in the file; it stays as it is.
        converted: with ``convert=True`` what was taken over in another dtype:
            "state:W.m: float32 -> float64"; and what became of master weights that only one side
            has.
    """

    optimizer: str
    version: str
    step_count: int
    params: bool
    also: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()

    def __str__(self) -> str:
        taken = ["parameters and state" if self.params else "state without parameters"]
        taken += self.also
        lines = [
            f"{self.optimizer} at step {self.step_count}, saved by fastopt {self.version}: "
            + ", ".join(taken)
        ]
        parts = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mismatched": self.mismatched,
            "converted": self.converted,
            "notes": tuple(self.notes),
        }
        lines += [f"{name}: {', '.join(found)}" for name, found in parts.items() if found]
        return "\n".join(lines)
