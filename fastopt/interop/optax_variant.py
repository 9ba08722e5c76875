"""Which variant a state of optax is of, as far as it shows, and whether ours is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.errors import CheckpointError
from fastopt.interop.optax_table import Relative
from fastopt.interop.optax_walk import INJECTED, Cell
from fastopt.interop.values import plain


def kinds(sequence: list[Cell]) -> list[str]:
    """Return the names of the classes of a sequence's transformations."""
    return [name for name in (type(cell).__name__ for cell in sequence) if name not in INJECTED]


def injected(cell: Cell, relative: Relative, owner: str) -> dict[str, Any]:
    """Return the hyperparameters that ``inject_hyperparams`` keeps, by our names; pairs in parts.

    Those that a schedule gives are left out: the state has their last value only.
    """
    scheduled = getattr(cell, "hyperparams_states", {})
    known = {"learning_rate": "lr", **relative.injected, "eps_root": "eps_root"}
    found = {}
    for name, value in cell.hyperparams.items():
        if name in scheduled or name == "initial_scale":  # that one is in the average by now
            continue
        if name not in known:
            raise CheckpointError(
                f"the state holds the hyperparameter {name}, and {owner} has no such"
            )
        found[known[name]] = plain(value, f"hyperparams[{name!r}]")
    return found


def check_variant(
    group: Mapping[str, Any], sequence: list[Cell], given: Mapping[str, Any], relative: Relative
) -> dict[str, Any]:
    """Return the settings to take over; CheckpointError if the state shows another algorithm."""
    found = kinds(sequence)
    if "ScaleByAdamState" in found:
        _need(group, "bias_correction", True, "optax corrects the averages of Adam")
    if "ScaleByAmsgradState" in found:
        _need(
            group,
            "bias_correction",
            False,
            "optax.amsgrad takes the maximum of the corrected averages, fastopt and PyTorch of the "
            "raw ones, so that both agree only without bias correction",
        )
    for kind in found:
        if kind.startswith(("ScaleByRms", "ScaleByRStdDev")):
            counts = "WithCount" in kind
            _need(group, "bias_correction", counts, f"optax keeps {kind}")
    settings = _eps(group, {k: v for k, v in given.items() if not k.startswith("betas ")})
    if pair := {int(k[-1]): v for k, v in given.items() if k.startswith("betas ")}:
        settings["betas"] = tuple(pair.get(k, group["betas"][k]) for k in range(2))
    for name, (value, why) in relative.ours.items():
        if settings.get(name, value) != value:
            raise CheckpointError(f"{name} is {settings[name]!r} in the state, and {why}")
    return settings


def _eps(group: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the one eps that there is, inside the root or outside."""
    inside, outside = given.pop("eps_root", 0.0), given.get("eps", 0.0)
    if "betas" not in group:
        if inside:
            raise CheckpointError(f"eps_root is {inside!r} in the state; there is none here")
        return given
    used, other = (inside, outside) if group["eps_inside_sqrt"] else (outside, inside)
    if other:
        raise CheckpointError(
            f"the state has eps={outside!r} and eps_root={inside!r}, and the optimizer was built "
            f"with eps_inside_sqrt={group['eps_inside_sqrt']!r}, which has no other eps"
        )
    return {**given, "eps": used} if "eps" in given else given


def _need(group: Mapping[str, Any], name: str, value: Any, why: str) -> None:
    if group[name] != value:
        raise CheckpointError(
            f"{why}; the optimizer was built with {name}={group[name]!r}. Construct one with "
            f"{name}={value!r}"
        )


def rate_in_buffer(sequence: list[Cell]) -> bool:
    """Return whether the learning rate is inside the buffer of a momentum.

    It is if it came before: in ``optax.rmsprop``, the buffer comes last. A state does not say what
    an empty one belongs to, so other orders are refused if they leave it open.
    """
    found = kinds(sequence)
    at = found.index("TraceState")
    scales = [k for k, kind in enumerate(found) if kind.startswith(("ScaleByRms", "ScaleByRStd"))]
    before = found[scales[0] + 1 if scales else 0 : at]
    after = found[at + 1 :]
    if scales and scales[0] > at:
        raise CheckpointError(
            "the momentum acts before the scaling, and RMSprop has it behind: that is another "
            "algorithm"
        )
    if not before or (after and not scales and "ScaleByScheduleState" not in before):
        return False
    if not scales or after or "ScaleByScheduleState" in before:
        raise CheckpointError(
            f"it is open whether the learning rate is inside the buffer of the momentum, in "
            f"{' -> '.join(found)}; fastopt, as PyTorch, has it outside"
        )
    return True
