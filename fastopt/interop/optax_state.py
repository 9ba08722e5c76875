"""The state of an optimizer of optax, read into one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from fastopt.errors import CheckpointError
from fastopt.interop.buffers import divide_buffer
from fastopt.interop.optax_table import COUNTING, FIELDS, RELATIVES, STATELESS, Relative
from fastopt.interop.optax_variant import check_variant, injected, rate_in_buffer
from fastopt.interop.optax_walk import INJECTED, Cell, arrays_by_name, leaves, sequences, unique
from fastopt.interop.target import Incoming, Parameter, groups_of, take_over
from fastopt.interop.values import count_of
from fastopt.optimizer import Optimizer
from fastopt.param_group import ParamGroup


def load_optax(
    opt: Optimizer, opt_state: Any, params_like: Any = None, *, step_count: int | None = None
) -> None:
    """Take over the state of an optimizer of optax; the run goes on here.

    ========  ==========================================================================
    ours      optax's
    ========  ==========================================================================
    SGD       TraceState: ``buf`` trace; keeps no step count
    Momentum  EmaState (``optax.ema``): ``v`` ema
    Adagrad   ScaleByRssState: ``s`` sum_of_squares; no count; only with eps = 0 on both sides
    RMSprop   ScaleByRms[WithCount]State: ``v`` nu; ScaleByRStdDev[WithCount]State: ``v`` nu,
              ``a`` mu; TraceState: ``buf`` trace, which ``optax.rmsprop`` keeps times -lr
    Adadelta  ScaleByAdaDeltaState: ``v`` e_g, ``u`` e_x; keeps no step count
    Adam(W)   ScaleByAdamState: ``m`` mu, ``v`` nu; ScaleByAmsgradState: ``vmax`` nu_max, only
              without bias correction: with it optax takes the maximum of the corrected average
    ========  ==========================================================================

    The averages are the raw ones on both sides. States are looked for in chains, in masked and
    parted optimizers (``optax.masked``, ``partition``) and under ``inject_hyperparams``, whose
    learning_rate (``lr``), b1 and b2 (``betas``), decay (``beta``) and so on are taken over, except
    those that a schedule gives there or here. Nothing else of the hyperparameters is in a state:
    ``opt`` must be built with those of the other run, schedules, Nesterov momentum and the place of
    eps included (eps_root in Adam, eps_in_sqrt in RMSprop, True by default, are eps_inside_sqrt
    here). Nor does a state tell Adam from optax's nadam and yogi, which have the same. A buffer
    that optax keeps times -lr is divided by it: a constant learning rate goes on as it would have
    there.

    Args:
        opt: an optimizer over the same parameters.
        opt_state: what ``init`` and ``update`` of optax return: nested tuples, whose states are
            known by the name of their class. Arrays of JAX or NumPy; jax is not imported. Of a
            wrapper that is not known (MultiSteps, apply_if_finite) hand in the part inside.
        params_like: the parameters of ``opt``, the same arrays, nested as optax's were, if that is
            not how ``opt`` has them. Without it they must have the same names.
        step_count: how many steps have been made; needed where optax counts none.

    Raises:
        CheckpointError: if the state does not fit by class, name, shape or dtype (state is never
            cast), holds anything unknown, or is in doubt; nothing has changed then.
        TypeError, ValueError: for an optimizer that optax does not have, and for bad arguments.

    Source: optax 0.2.8.
    """
    if type(opt) not in RELATIVES:
        known = ", ".join(sorted(ours.__name__ for ours in RELATIVES))
        raise TypeError(f"load_optax reads the state of {known}; got {type(opt).__name__}")
    relative, ours = RELATIVES[type(opt)], list(chain.from_iterable(groups_of(opt)))
    found = sequences(opt_state)
    count = _count(unique(found))
    theirs = _their_names(ours, params_like)
    merged: dict[str, Incoming] = {p.name: Incoming(count, {}) for p in ours}
    taken = {id(c): _take(c, theirs, merged) for c in unique(found) if _is_memory(opt, c)}
    for sequence in found:
        reached = [p for cell in sequence for p in taken.get(id(cell), [])]
        _settle(opt, sequence, reached or ours * (len(found) == 1), merged)
    for parameter in ours:
        _check(parameter, opt.param_groups[parameter.group], relative, merged[parameter.name])
    take_over(opt, merged, step_count, "optax")


def _count(cells: list[Cell]) -> int | None:
    """Return the one step count that all states have; None if none has any."""
    counts = {}
    for cell in cells:
        kind = type(cell).__name__
        wanted = {"count"} & {*getattr(cell, "_fields", ())}
        if kind in FIELDS.keys() | COUNTING | INJECTED and wanted:
            counts[kind] = count_of(cell.count, f"{kind}.count")
    if len(set(counts.values())) > 1:
        raise CheckpointError(f"the step counts in the state differ: {counts}")
    return next(iter(counts.values()), None)


def _their_names(ours: list[Parameter], params_like: Any) -> dict[str, Parameter]:
    """Return our parameters by their names in optax's trees."""
    if params_like is not None:
        known = {id(parameter.array): parameter for parameter in ours}
        nested = arrays_by_name(params_like)
        if {id(leaf) for leaf in nested.values()} != known.keys() or len(nested) != len(known):
            raise ValueError(
                "params_like must hold each parameter of the optimizer once, the same arrays, "
                f"nested as optax's were; it has {len(nested)} leaves for {len(known)} parameters"
            )
        return {name: known[id(leaf)] for name, leaf in nested.items()}
    own = {parameter.own_name: parameter for parameter in ours}
    return own if len(own) == len(ours) else {parameter.name: parameter for parameter in ours}


def _is_memory(opt: Optimizer, cell: Cell) -> bool:
    """Return whether a state is one of our slots'; CheckpointError if it is another one's."""
    kind = type(cell).__name__
    if kind in STATELESS | COUNTING | INJECTED:
        return False
    known = kind in RELATIVES[type(opt)].states
    if not known or {*cell._fields} - {"count"} != FIELDS[kind].keys():
        raise CheckpointError(
            f"the state holds {kind} with {', '.join(cell._fields)}, which is no part of "
            f"{type(opt).__name__}; hand in the part of the state that is the optimizer's"
        )
    return True


def _take(
    cell: Cell, theirs: Mapping[str, Parameter], merged: dict[str, Incoming]
) -> list[Parameter]:
    """Put the arrays of one state to their parameters; returns these."""
    kind, reached = type(cell).__name__, {}
    for field, slot in FIELDS[kind].items():
        for name, place, array in leaves(getattr(cell, field), f"{kind}.{field}"):
            if name not in theirs:
                raise CheckpointError(
                    f"{place} belongs to {name}, and the optimizer has no such parameter, but "
                    f"{', '.join(list(theirs)[:3])}; give params_like, its parameters nested as "
                    "optax's were"
                )
            parameter = theirs[name]
            slots = dict(merged[parameter.name].slots or {})
            if slot in slots:
                raise CheckpointError(
                    f"{place} and {slots[slot][0]} are both {slot} of {parameter.name}"
                )
            merged[parameter.name].slots = {**slots, slot: (place, array)}
            reached[parameter.name] = parameter
    return list(reached.values())


def _settle(
    opt: Optimizer, sequence: list[Cell], reached: list[Parameter], merged: dict[str, Incoming]
) -> None:
    """Settle the variant, hyperparameters and buffers of the parameters that a sequence reaches."""
    relative = RELATIVES[type(opt)]
    settings: dict[str, Any] = {}
    for cell in sequence:
        if type(cell).__name__ in INJECTED:
            settings |= injected(cell, relative, type(opt).__name__)
    if settings and not reached:
        raise CheckpointError(
            f"the state does not say which parameters {settings} is for; construct the optimizer "
            "with its hyperparameters, and hand in the part of the state inside"
        )
    for parameter in {parameter.name: parameter for parameter in reached}.values():
        group, one = opt.param_groups[parameter.group], merged[parameter.name]
        one.settings = check_variant(group, sequence, settings, relative)
        if one.slots and "buf" in one.slots and rate_in_buffer(sequence):
            lr = group["lr"] if callable(group["lr"]) else one.settings.get("lr", group["lr"])
            one.slots = divide_buffer(one.slots, lr, -1.0, parameter.name)


def _check(parameter: Parameter, options: ParamGroup, relative: Relative, one: Incoming) -> None:
    """Refuse what optax computes differently, and parameters of which the state knows nothing."""
    if parameter.array.dtype.kind == "c" and not relative.complex:
        raise CheckpointError(
            f"{parameter.name} is complex: optax averages |g|^2, and fastopt, as PyTorch, the "
            "squares of its two parts"
        )
    for name, (value, why) in relative.ours.items():
        if options[name] != value:
            raise CheckpointError(
                f"{name} of the optimizer is {options[name]!r} for {parameter.name}, and {why}"
            )
