"""The state_dict of an optimizer of PyTorch, read into one of ours, and written from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import ElementScales, learning_rate
from fastopt.core.options import FRAGMENTS, GRAPHED, GROUP_DEFAULTS
from fastopt.core.param_groups import ParamGroup
from fastopt.errors import CheckpointError
from fastopt.interop.common import (
    Incoming,
    Names,
    Parameter,
    array_of,
    between_steps,
    count_of,
    groups_of,
    match,
    plain,
    take_over,
)
from fastopt.optimizers.adagrad import Adadelta, Adagrad
from fastopt.optimizers.adam import DECOUPLED, Adam, AdamW
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.sgd import SGD

# -------------------------------------------------------------------------------------------------
# What corresponds to what in PyTorch 2.13: state, hyperparameters, and where they part.


@dataclass(frozen=True)
class Twin:
    """One class of ``torch.optim`` beside ours.

    ``slots`` and ``settings`` give our names and theirs; settings are taken over, those in
    ``flags``, which have one name, must agree: they make another algorithm. ``ours`` are settings
    that PyTorch does not have, with the value at which it computes the same, ``theirs`` the other
    way round. ``how`` are settings of theirs that say how a step is made, not what it computes.
    ``counted`` says whether a parameter's state has its step count, ``eager`` whether there is
    state before the first step.
    """

    name: str
    slots: Mapping[str, str]
    settings: Mapping[str, str]
    how: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    counted: bool = True
    eager: bool = False


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


COMMON = ("lr", "weight_decay", "maximize")
HOW: dict[str, bool | None] = {"foreach": None, "differentiable": False}


def _adam(name: str, decoupled: bool) -> Twin:
    return Twin(
        name,
        slots={"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"},
        settings=_same(*COMMON, "betas", "eps"),
        how={**HOW, "capturable": False, "fused": None},
        flags=("amsgrad", *[DECOUPLED] * (not decoupled)),
        ours={"eps_inside_sqrt": False, "eps_hat": False, "bias_correction": True},
        theirs={DECOUPLED: True} if decoupled else {},
    )


TWINS: dict[type[Optimizer], Twin] = {
    SGD: Twin(
        "SGD",
        slots={"buf": "momentum_buffer"},
        settings=_same(*COMMON, "momentum", "dampening"),
        how={**HOW, "fused": None},
        flags=("nesterov",),
        ours={"lr_inside": False, DECOUPLED: False},
        counted=False,
    ),
    Adagrad: Twin(
        "Adagrad",
        slots={"s": "sum"},
        settings=_same(*COMMON, "lr_decay", "initial_accumulator_value", "eps"),
        how={**HOW, "fused": None},
        ours={"eps_inside_sqrt": False},
        eager=True,
    ),
    RMSprop: Twin(
        "RMSprop",
        slots={"v": "square_avg", "a": "grad_avg", "buf": "momentum_buffer"},
        settings={**_same(*COMMON, "eps", "momentum"), "beta": "alpha"},
        how={**HOW, "capturable": False},
        flags=("centered",),
        ours={"eps_inside_sqrt": False, "bias_correction": False, "lr_inside": False},
    ),
    Adadelta: Twin(
        "Adadelta",
        slots={"v": "square_avg", "u": "acc_delta"},
        settings=_same(*COMMON, "rho", "eps"),
        how={**HOW, "capturable": False},
    ),
    Adam: _adam("Adam", decoupled=False),
    AdamW: _adam("AdamW", decoupled=True),
}

LATER = frozenset({"maximize", DECOUPLED})
"""Settings that older versions do not write, which means False, or that the class says it all."""

SCHEDULED = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"})
"""What PyTorch's schedulers leave in a group for themselves."""


def twin_of(opt: Optimizer) -> Twin:
    """Return PyTorch's class for an optimizer; TypeError if there is none that is the same."""
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt must be an optimizer of fastopt; got {type(opt).__name__}")
    if type(opt) not in TWINS:
        known = ", ".join(sorted(ours.__name__ for ours in TWINS))
        raise TypeError(
            f"PyTorch has no {type(opt).__name__} that computes the same; there are {known}"
        )
    return TWINS[type(opt)]


# -------------------------------------------------------------------------------------------------
# The state_dict of an optimizer of PyTorch, read into one of ours.

Ids = list[int | str]


@between_steps
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
    their numbers are taken over, and so is ``maximize``, except where ``opt`` has a schedule; lr is
    all of the rate, so that ``lr_scale`` becomes 1 (one that is a schedule stays, and lr with it).
    What makes another algorithm (amsgrad, nesterov, centered, momentum where ``opt`` keeps none)
    must be as ``opt`` was built. A parameter that never had a gradient has no state there and is at
    its first step here. The state of PyTorch's schedulers and of its gradient scaler is not in the
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
    unsaid = {**dict.fromkeys(twin.flags, False), **twin.theirs}
    for name, value in {**{flag: options[flag] for flag in twin.flags}, **twin.theirs}.items():
        got = plain(group.get(name, unsaid[name]), place)
        _agree(f"{place}: {name}", got, value, "opt computes as")
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


# -------------------------------------------------------------------------------------------------
# The state of an optimizer of ours, written as the state_dict of one of PyTorch.


@between_steps
def to_torch(
    opt: Optimizer,
    tensor: Callable[[Array], Any] | None = None,
    *,
    names: Names | None = None,
) -> dict[str, Any]:
    """Return what ``load_state_dict`` of the same class in ``torch.optim`` takes; opt is unchanged.

    ::

        torch_opt = torch.optim.AdamW(model.parameters())
        torch_opt.load_state_dict(fastopt.interop.to_torch(opt, torch.from_numpy))

    What corresponds to what is listed at ``load_torch``. PyTorch takes over the hyperparameters
    too; a schedule's is the value of the next step, and lr is lr * lr_scale. Settings that say only
    how PyTorch makes its step (foreach, fused, capturable, differentiable) become its defaults.
    ``max_grad_norm``, ``on_nonfinite`` and ``trainable`` have no place there. As in PyTorch, a
    parameter that never had a gradient has no state (in Adagrad it has), and counts are float32.

    Args:
        opt: an SGD, Adagrad, RMSprop, Adadelta, Adam or AdamW.
        tensor: what makes a tensor of a NumPy array, ``torch.from_numpy``; PyTorch takes nothing
            else. None leaves the arrays, copies all, as they are.
        names: our name of each parameter (as in ``opt.state_dict()["state"]``) to its position in
            PyTorch's optimizer, 0 for the first, over all groups. Without it ours have the order in
            which the tree is written (dicts keep their own order), group by group.

    Raises:
        ValueError: if PyTorch has no such variant (eps_inside_sqrt, eps_hat, lr_inside, bounds,
            ...), or keeps the state of these parameters in half precision.
        TypeError: for an optimizer that PyTorch does not have.

    Source: ``torch.optim``, PyTorch 2.13.
    """
    twin, groups = twin_of(opt), groups_of(opt)
    order = _order(groups, names)
    entries = opt._collect_state()["state"]
    state, written = {}, []
    for group, options in zip(groups, opt.param_groups, strict=True):
        parameters = sorted(group, key=lambda parameter: order[parameter.name])
        settings = _their_settings(twin, options, opt.step_count)
        written.append({**settings, "params": [order[parameter.name] for parameter in parameters]})
        for parameter in parameters:
            _check_precision(parameter)
            entry = _entry(twin, entries[parameter.name], tensor or _as_it_is)
            if entry is not None:
                state[order[parameter.name]] = entry
    return {"state": state, "param_groups": written}


def _order(groups: list[list[Parameter]], names: Names | None) -> dict[str, int]:
    """Return each parameter's position, which must grow from group to group."""
    order = match(groups, [[None] * len(group) for group in groups], names)
    spread = [sorted(order[parameter.name] for parameter in group) for group in groups]
    if list(chain.from_iterable(spread)) != list(range(len(order))):
        raise ValueError(
            f"names: PyTorch numbers its parameters group by group, and the groups of the "
            f"optimizer would have the positions {spread}"
        )
    return order


def _their_settings(twin: Twin, options: ParamGroup, step_count: int) -> dict[str, Any]:
    others = ("bounds", "decoupled_lr", *GRAPHED, *FRAGMENTS)
    absent = {**twin.ours, **{name: GROUP_DEFAULTS[name] for name in others}}
    for name, wanted in absent.items():
        if options[name] != wanted:
            raise ValueError(
                f"torch.optim.{twin.name} has no {name}; it computes as with {wanted!r}, and the "
                f"optimizer has {options[name]!r}"
            )
    if isinstance(options["lr_scale"], ElementScales):
        raise ValueError(f"torch.optim.{twin.name} has no lr_scale, one rate for a whole group")
    now = {ours: options.value(ours, step_count) for ours in (*twin.settings, "lr_scale")}
    now["lr"] = learning_rate(now)
    values = {theirs: now[ours] for ours, theirs in twin.settings.items()}
    flags = {flag: options[flag] for flag in twin.flags}
    return {**values, **flags, **twin.theirs, **twin.how}


def _check_precision(parameter: Parameter) -> None:
    dtype = parameter.array.dtype
    if dtype.itemsize == 2:
        raise ValueError(
            f"PyTorch keeps the state of {dtype} parameters in {dtype}, and so would round that of "
            f"{parameter.name}; hand over float32 parameters"
        )


def _entry(
    twin: Twin, entry: Mapping[str, Any], tensor: Callable[[Array], Any]
) -> dict[str, Any] | None:
    """Return PyTorch's state of one parameter, with a step of its own, which it counts in place."""
    slots = {theirs: tensor(entry[ours]) for ours, theirs in twin.slots.items() if ours in entry}
    if (not entry["step"] and not twin.eager) or not (slots or twin.counted):
        return None
    step = {"step": tensor(np.array(entry["step"], np.float32))} if twin.counted else {}
    return {**step, **slots}


def _as_it_is(array: Array) -> Array:
    return array
