"""The state_dict of an optimizer of PyTorch, read into one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from fastopt.errors import CheckpointError
from fastopt.interop.matching import Names, match
from fastopt.interop.target import Incoming, Parameter, groups_of, take_over
from fastopt.interop.torch_table import LATER, SCHEDULED, Twin, twin_of
from fastopt.interop.values import array_of, count_of, plain
from fastopt.optimizer import Optimizer
from fastopt.param_group import ParamGroup

Ids = list[int | str]


def load_torch(
    opt: Optimizer,
    state_dict: Mapping[str, Any],
    *,
    names: Names | None = None,
    step_count: int | None = None,
) -> None:
    """Take over the ``state_dict()`` of an optimizer of ``torch.optim``; the run goes on here.

    ========  =======================================================================
    ours      PyTorch's
    ========  =======================================================================
    SGD       ``buf`` momentum_buffer; keeps no step count
    Adagrad   ``s`` sum
    RMSprop   ``v`` square_avg, ``a`` grad_avg, ``buf`` momentum_buffer; ``beta`` alpha
    Adadelta  ``v`` square_avg, ``u`` acc_delta
    Adam(W)   ``m`` exp_avg, ``v`` exp_avg_sq, ``vmax`` max_exp_avg_sq
    ========  =======================================================================

    The averages are the raw ones on both sides. The other hyperparameters have the same names;
    their numbers are taken over, and so is ``maximize``, except where ``opt`` has a schedule. What
    makes another algorithm (amsgrad, nesterov, centered, momentum where ``opt`` keeps none) must be
    as ``opt`` was built. A parameter that never had a gradient has no state there and is at its
    first step here. The state of PyTorch's schedulers and of its gradient scaler is not in the
    ``state_dict``, the parameters are not either.

    Args:
        opt: an SGD, Adagrad, RMSprop, Adadelta, Adam or AdamW over the same parameters.
        state_dict: what PyTorch's ``state_dict()`` gave, with tensors in host memory (load a file
            with ``map_location="cpu"``) or NumPy arrays; torch is not imported.
        names: our name of each parameter (as in ``opt.state_dict()["state"]``) to PyTorch's: the
            name, where it stores names, or the position over all its groups, 0 for the first.
            Without it parameters are matched by name if PyTorch's optimizer was made with
            ``named_parameters()`` and these are the names here; else by position, group by group,
            ours in the order in which the tree is written (dicts keep their own order).
        step_count: how many steps have been made, for schedules; the largest count of a parameter
            if left out. SGD needs it: there PyTorch counts none.

    Raises:
        CheckpointError: if the state does not fit by class, number, shape or dtype (state is never
            cast), is damaged, on a GPU, or in doubt; nothing has changed then.
        TypeError, ValueError: for an optimizer that PyTorch does not have, and for bad arguments.

    Source: ``torch.optim``, PyTorch 2.13.
    """
    twin, ours = twin_of(opt), groups_of(opt)
    groups, ids, state = _parts(state_dict)
    theirs = [_names(number, group) for number, group in enumerate(groups)]
    places = match(ours, theirs, names)
    order = [(number, one) for number, some in enumerate(ids) for one in some]
    incoming = {}
    for parameter in chain.from_iterable(ours):
        number, one = order[places[parameter.name]]
        options = opt.param_groups[parameter.group]
        settings = _settings(twin, options, groups[number], f"param_groups[{number}]")
        _check_momentum(parameter, settings)
        incoming[parameter.name] = _incoming(twin, state.get(one), one, settings)
    take_over(opt, incoming, step_count, f"torch.optim.{twin.name}")


def _parts(given: Any) -> tuple[list[Mapping[str, Any]], list[Ids], Mapping[Any, Any]]:
    """Return the groups, their parameters' numbers, and the state, if all of it is there."""
    if not isinstance(given, Mapping) or not {"state", "param_groups"} <= given.keys():
        keys = f" with {sorted(map(str, given))[:5]}" if isinstance(given, Mapping) else ""
        raise CheckpointError(
            "expected what state_dict() of an optimizer of PyTorch gives, a dict with state and "
            f"param_groups; got {type(given).__name__}{keys}"
        )
    groups, state = given["param_groups"], given["state"]
    listed = isinstance(groups, list | tuple) and all(isinstance(g, Mapping) for g in groups)
    if not listed or not isinstance(state, Mapping):
        raise CheckpointError("param_groups must be a list of dicts, and state a dict")
    ids = [_ids(number, group) for number, group in enumerate(groups)]
    known = list(chain.from_iterable(ids))
    if len(set(known)) != len(known):
        raise CheckpointError("param_groups name a parameter twice")
    if strays := [key for key in state if key not in set(known)]:
        raise CheckpointError(f"state holds {strays[:3]}, which no group has among its params")
    return list(groups), ids, state


def _ids(number: int, group: Mapping[str, Any]) -> Ids:
    ids = group.get("params")
    if not isinstance(ids, list | tuple) or not all(type(one) in (int, str) for one in ids):
        raise CheckpointError(
            f"param_groups[{number}]: params must be a list of numbers or names; got {ids!r:.200}"
        )
    return list(ids)


def _names(number: int, group: Mapping[str, Any]) -> list[str | None]:
    """Return the names of a group's parameters: as stored, or as the state is keyed by them."""
    ids = group["params"]
    names = group.get("param_names", [one if isinstance(one, str) else None for one in ids])
    if not isinstance(names, list | tuple) or len(names) != len(ids):
        raise CheckpointError(
            f"param_groups[{number}]: param_names must be the names of its {len(ids)} params; "
            f"got {names!r:.200}"
        )
    return list(names)


def _settings(
    twin: Twin, options: ParamGroup, group: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Return the hyperparameters to take over; CheckpointError where the algorithm is another."""
    needed = {*twin.settings.values(), *twin.flags, *twin.theirs}
    if missing := sorted(needed - group.keys() - LATER):
        raise CheckpointError(
            f"{place} is no group of torch.optim.{twin.name}: it has no {missing}"
        )
    other = group.keys() - needed - twin.how.keys() - SCHEDULED - {"params", "param_names"}
    if other:
        raise CheckpointError(
            f"{place} is no group of torch.optim.{twin.name}, which has no "
            f"{sorted(map(str, other))}; delete what has no part in the update"
        )
    for name, value in {**{flag: options[flag] for flag in twin.flags}, **twin.theirs}.items():
        _agree(f"{place}: {name}", plain(group.get(name, value), place), value, "opt computes as")
    for name, value in twin.ours.items():
        _agree(f"opt: {name}", options[name], value, f"torch.optim.{twin.name} computes as")
    found = {ours: group.get(theirs, False) for ours, theirs in twin.settings.items()}
    return {name: plain(value, f"{place}: {name}") for name, value in found.items()}


def _agree(place: str, got: Any, wanted: Any, who: str) -> None:
    if got != wanted:
        raise CheckpointError(
            f"{place} is {got!r}, and {who} with {wanted!r}: that is another algorithm. Construct "
            "an optimizer with the settings of the other run"
        )


def _check_momentum(parameter: Parameter, settings: Mapping[str, Any]) -> None:
    if "momentum" in settings and bool(settings["momentum"]) != ("buf" in parameter.slots):
        raise CheckpointError(
            f"the momentum of {parameter.name} is {settings['momentum']!r} in the other run, and "
            f"the optimizer keeps {'a' if 'buf' in parameter.slots else 'no'} buffer; construct it "
            "with the momentum of the other run"
        )


def _incoming(twin: Twin, entry: Any, one: int | str, settings: dict[str, Any]) -> Incoming:
    """Return the state of one parameter; none has come yet if the other run keeps none."""
    place = f"state[{one!r}]"
    if not isinstance(entry, Mapping | None):
        raise CheckpointError(f"{place} must be a dict; got {type(entry).__name__}")
    kept = {key: value for key, value in (entry or {}).items() if value is not None}
    # Without momentum SGD keeps nothing of a parameter, whatever the steps.
    if not kept and (twin.counted or settings["momentum"]):
        return Incoming(0, None, settings)
    step = count_of(kept.pop("step", None), f"{place}: step") if twin.counted else None
    letters = {theirs: ours for ours, theirs in twin.slots.items()}
    if other := sorted(map(str, kept.keys() - letters)):
        raise CheckpointError(f"{place}: torch.optim.{twin.name} keeps no {', '.join(other)}")
    slots = {
        letters[key]: (f"{place}: {key}", array_of(value, f"{place}: {key}"))
        for key, value in kept.items()
    }
    return Incoming(step, slots, settings)
