"""The state of an optimizer of ours, written as the state_dict of one of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from fastopt.arrays import Array
from fastopt.interop.matching import Names, match
from fastopt.interop.target import Parameter, groups_of
from fastopt.interop.torch_table import Twin, twin_of
from fastopt.optimizer import Optimizer
from fastopt.param_group import ParamGroup


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
    too; a schedule's is the value of the next step. Settings that say only how PyTorch makes its
    step (foreach, fused, capturable, differentiable) become its defaults. ``max_grad_norm``,
    ``on_nonfinite`` and ``trainable`` have no place there. As in PyTorch, a parameter that never
    had a gradient has no state (in Adagrad it has), and counts are float32.

    Args:
        opt: an SGD, Adagrad, RMSprop, Adadelta, Adam or AdamW.
        tensor: what makes a tensor of a NumPy array, ``torch.from_numpy``; PyTorch takes nothing
            else. None leaves the arrays, copies all, as they are.
        names: our name of each parameter (as in ``opt.state_dict()["state"]``) to its position in
            PyTorch's optimizer, 0 for the first, over all groups. Without it ours have the order in
            which the tree is written (dicts keep their own order), group by group.

    Raises:
        ValueError: if PyTorch has no such variant (eps_inside_sqrt, bounds, ...), or keeps the
            state of these parameters in half precision.
        TypeError: for an optimizer that PyTorch does not have.

    Source: ``torch.optim``, PyTorch 2.13.
    """
    twin, groups = twin_of(opt), groups_of(opt)
    order = _order(groups, names)
    entries = opt.state_dict()["state"]
    state, written = {}, []
    for group, options in zip(groups, opt.param_groups, strict=True):
        members = sorted(group, key=lambda parameter: order[parameter.name])
        settings = _settings(twin, options, opt.step_count)
        written.append({**settings, "params": [order[parameter.name] for parameter in members]})
        for parameter in members:
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


def _settings(twin: Twin, options: ParamGroup, step_count: int) -> dict[str, Any]:
    absent = {**twin.ours, "bounds": None}
    for name, wanted in absent.items():
        if options[name] != wanted:
            raise ValueError(
                f"torch.optim.{twin.name} has no {name}; it computes as with {wanted!r}, and the "
                f"optimizer has {options[name]!r}"
            )
    values = {theirs: options.value(ours, step_count) for ours, theirs in twin.settings.items()}
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
