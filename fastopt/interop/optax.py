"""The state of an optimizer of optax, read into one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from fastopt.core.arrays import Array
from fastopt.core.param_groups import ParamGroup
from fastopt.errors import CheckpointError
from fastopt.interop.common import (
    Incoming,
    Parameter,
    array_of,
    between_steps,
    count_of,
    divide_buffer,
    groups_of,
    plain,
    rate_after,
    take_over,
)
from fastopt.optimizers.adagrad import Adadelta, Adagrad
from fastopt.optimizers.adam import Adam, AdamW
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.sgd import SGD, Momentum

# -------------------------------------------------------------------------------------------------
# What corresponds to what in optax 0.2.8: states, hyperparameters, and where they part.

STATELESS = frozenset({"EmptyState", "MaskedNode", "ZeroNansState"})
"""Nothing, or nothing that the next step reads."""

COUNTING = frozenset({"ScaleByScheduleState", "WeightDecaySchedule"})
"""A step count alone; the schedule itself is no part of a state."""

FIELDS: dict[str, dict[str, str]] = {
    "TraceState": {"trace": "buf"},
    "EmaState": {"ema": "v"},
    "ScaleByRssState": {"sum_of_squares": "s"},
    "ScaleByRmsState": {"nu": "v"},
    "ScaleByRmsWithCountState": {"nu": "v"},
    "ScaleByRStdDevState": {"nu": "v", "mu": "a"},
    "ScaleByRStdDevWithCountState": {"nu": "v", "mu": "a"},
    "ScaleByAdaDeltaState": {"e_g": "v", "e_x": "u"},
    "ScaleByAdamState": {"mu": "m", "nu": "v"},
    "ScaleByAmsgradState": {"mu": "m", "nu": "v", "nu_max": "vmax"},
}
"""The fields of each state and our slots; some have a ``count`` besides."""


@dataclass(frozen=True)
class Relative:
    """What optax has for one class of ours.

    ``states`` are the classes of its state, ``injected`` gives optax's names of hyperparameters and
    ours (a number after the name is a place in a pair). ``ours`` are settings that optax does not
    have, with the value at which it computes the same, and why. ``complex`` says whether the
    squares of complex numbers play no part: optax takes those of the absolute value.
    """

    states: tuple[str, ...]
    injected: Mapping[str, str] = field(default_factory=dict)
    ours: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    complex: bool = False


def _adam() -> Relative:
    names = {"b1": "betas 0", "b2": "betas 1", "eps": "eps", "weight_decay": "weight_decay"}
    ours = {"eps_hat": (False, "optax adds eps after the correction")}
    return Relative(("ScaleByAdamState", "ScaleByAmsgradState"), names, ours)


_RMS = tuple(name for name in FIELDS if name.startswith(("ScaleByRms", "ScaleByRStdDev")))

RELATIVES: dict[type[Optimizer], Relative] = {
    SGD: Relative(
        ("TraceState",),
        {"momentum": "momentum", "weight_decay": "weight_decay"},
        {"dampening": (0.0, "optax damps nothing")},
        complex=True,
    ),
    Momentum: Relative(("EmaState",), {"decay": "beta"}, complex=True),
    Adagrad: Relative(
        ("ScaleByRssState",),
        {"initial_accumulator_value": "initial_accumulator_value", "eps": "eps"},
    ),
    RMSprop: Relative(
        (*_RMS, "TraceState"), {"decay": "beta", "eps": "eps", "momentum": "momentum"}
    ),
    Adadelta: Relative(
        ("ScaleByAdaDeltaState",), {"rho": "rho", "eps": "eps", "weight_decay": "weight_decay"}
    ),
    Adam: _adam(),
    AdamW: _adam(),
}


# -------------------------------------------------------------------------------------------------
# The nested tuples of an optax state: which transformations have state, in which order.

Cell = Any
"""The state of one transformation, a named tuple; told by the name of its class."""

INJECTED = frozenset({"InjectHyperparamsState", "InjectStatefulHyperparamsState"})
_INNER = {"MaskedState": "inner_state", **dict.fromkeys(INJECTED, "inner_state")}
_PARTED = frozenset({"PartitionState", "MultiTransformState"})


def sequences(state: Any, place: str = "opt_state") -> list[list[Cell]]:
    """Return the states of transformations in the order in which they act.

    There are several sequences where parameters are parted, each with what acts on all of them.
    Injected hyperparameters come before what they are for.
    """
    kind = type(state).__name__
    if _is_named(state):
        if kind in _PARTED:
            parts = state.inner_states.items()
            return [one for key, part in parts for one in sequences(part, f"{place}[{key!r}]")]
        if kind not in _INNER:
            return [[state]]
        inner = sequences(getattr(state, _INNER[kind]), f"{place}.{_INNER[kind]}")
        return [[*([state] * (kind in INJECTED)), *one] for one in inner]
    if isinstance(state, Mapping):
        steps = [sequences(part, f"{place}[{key!r}]") for key, part in state.items()]
    elif isinstance(state, list | tuple):
        steps = [sequences(part, f"{place}[{k}]") for k, part in enumerate(state)]
    else:
        raise CheckpointError(
            f"{place}: expected the nested tuples of an optax state, whose states are known by "
            f"their class; got {kind}"
        )
    whole: list[list[Cell]] = [[]]
    for choices in steps:
        whole = [[*before, *after] for before in whole for after in choices]
    return whole


def unique(found: list[list[Cell]]) -> list[Cell]:
    """Return each state once."""
    return list({id(cell): cell for cell in chain.from_iterable(found)}.values())


def _is_named(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def leaves(tree: Any, place: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Array]]:
    """Yield the name (``layers.0.W``), the place and the value of every array in a tree.

    What a mask has left out is skipped.
    """
    for name, where, leaf in _leaves(tree, place, path):
        yield name, where, array_of(leaf, where)


def _leaves(tree: Any, place: str, path: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    if tree is None:
        return
    children = _children(tree)
    if children is None:
        yield ".".join(path) or "params", place, tree
        return
    for key, where, part in children:
        yield from _leaves(part, place + where, (*path, key))


def _children(tree: Any) -> list[tuple[str, str, Any]] | None:
    """Return the names, places and values of a tree's branches; None of a leaf."""
    if isinstance(tree, Mapping):
        return [(str(key), f"[{key!r}]", part) for key, part in tree.items()]
    if _is_named(tree):
        return [(name, f".{name}", getattr(tree, name)) for name in tree._fields]
    if isinstance(tree, list | tuple):
        return [(str(k), f"[{k}]", part) for k, part in enumerate(tree)]
    return None


def gaps_in(tree: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the names of the branches and leaves that a mask has left out of a tree."""
    if tree is None or type(tree).__name__ == "MaskedNode":
        yield ".".join(path)
    else:
        for key, _, part in _children(tree) or ():
            yield from gaps_in(part, (*path, key))


def arrays_by_name(params_like: Any) -> dict[str, Any]:
    """Return what stands at the leaves of a tree, by name."""
    return {name: leaf for name, _, leaf in _leaves(params_like, "params_like", ())}


# -------------------------------------------------------------------------------------------------
# Which variant a state of optax is of, as far as it shows, and whether ours is the same.


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
    if "ScaleByRssState" in found and given.get("eps", group["eps"]):
        _need(group, "eps_inside_sqrt", True, "optax adds eps inside the root")
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
            f"{' -> '.join(found)}; it is outside in fastopt, as in PyTorch, but in an optimizer "
            "that is built with lr_inside=True"
        )
    return True


# -------------------------------------------------------------------------------------------------
# The state of an optimizer of optax, read into one of ours.


@between_steps
def load_optax(
    opt: Optimizer, opt_state: Any, params_like: Any = None, *, step_count: int | None = None
) -> None:
    """Take over the state of an optimizer of optax; the run goes on here.

    ========  ==========================================================================
    ours      optax's
    ========  ==========================================================================
    SGD       TraceState: ``buf`` trace, or ``v`` with lr_inside; keeps no step count
    Momentum  EmaState (``optax.ema``): ``v`` ema
    Adagrad   ScaleByRssState: ``s`` sum_of_squares; keeps no step count
    RMSprop   ScaleByRms[WithCount]State: ``v`` nu; ScaleByRStdDev[WithCount]State: ``v`` nu,
              ``a`` mu; TraceState: ``u`` with lr_inside, trace times -1, or ``buf`` without,
              which ``optax.rmsprop`` keeps times -lr
    Adadelta  ScaleByAdaDeltaState: ``v`` e_g, ``u`` e_x; keeps no step count
    Adam(W)   ScaleByAdamState: ``m`` mu, ``v`` nu; ScaleByAmsgradState: ``vmax`` nu_max, only
              without bias correction: with it optax takes the maximum of the corrected average
    ========  ==========================================================================

    The averages are the raw ones on both sides. States are looked for in chains, in masked and
    parted optimizers (``optax.masked``, ``partition``) and under ``inject_hyperparams``, whose
    learning_rate (``lr``), b1 and b2 (``betas``), decay (``beta``) and so on are taken over, except
    those that a schedule gives there or here; learning_rate is all of the rate, so ``lr_scale``
    becomes 1 then (one that is a schedule stays, and lr with it). Nothing else of the
    hyperparameters is in a state: ``opt`` must be built with those of the other run, schedules,
    Nesterov momentum and the place of eps included (eps_root in Adam, eps_in_sqrt in RMSprop, True
    by default, are eps_inside_sqrt here; in Adagrad it always is). ``optax.sgd`` has the learning
    rate outside its buffer; where it comes before ``optax.trace``, that is lr_inside. Nor does a
    state tell Adam from optax's nadam and yogi, which have the same. A buffer that optax keeps
    times -lr is divided by it: a constant learning rate goes on as it would have there. A leaf that
    a mask leaves out (``optax.masked``, ``partition`` with ``set_to_zero``) has no state there and
    is at its first step here; freeze it with ``trainable=False`` in a group, or give it no
    gradients.

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
    for parameter in _left_out(opt, unique(found), theirs):
        merged[parameter.name] = Incoming(0, None)
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


def _left_out(
    opt: Optimizer, cells: list[Cell], theirs: Mapping[str, Parameter]
) -> list[Parameter]:
    """Return the parameters that have gaps in their place in the states, and no arrays."""
    gaps: set[str] = set()
    present: set[str] = set()
    for cell in (cell for cell in cells if _is_memory(opt, cell)):
        for name_of_field in FIELDS[type(cell).__name__]:
            tree = getattr(cell, name_of_field)
            gaps.update(gaps_in(tree))
            present.update(name for name, _, _ in _leaves(tree, "", ()))
    return [
        parameter
        for name, parameter in theirs.items()
        if name not in present and any(part in gaps for part in _branches(name))
    ]


def _branches(name: str) -> Iterator[str]:
    """Yield the names of the branches that a leaf hangs on, from the root to the leaf itself."""
    yield ""
    yield from accumulate(name.split("."), "{}.{}".format)


def _take(
    cell: Cell, theirs: Mapping[str, Parameter], merged: dict[str, Incoming]
) -> list[Parameter]:
    """Put the arrays of one state to their parameters; returns these."""
    kind, reached = type(cell).__name__, {}
    for name_of_field, slot in FIELDS[kind].items():
        values = getattr(cell, name_of_field)
        for name, place, array in leaves(values, f"{kind}.{name_of_field}"):
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
        if not one.slots or "buf" not in one.slots:
            continue
        if group.get("lr_inside"):
            one.slots = _inside(sequence, one.slots, parameter.name)
        elif rate_in_buffer(sequence):
            lr = rate_after(group, one.settings.get("lr"))
            one.slots = divide_buffer(one.slots, lr, -1.0, parameter.name)


def _inside(
    sequence: list[Cell], slots: Mapping[str, tuple[str, Array]], name: str
) -> dict[str, tuple[str, Array]]:
    """Return the slots of an optimizer with the learning rate inside, if optax has it there too.

    It has if nothing comes after the momentum, and something before it (in RMSprop, between the
    scaling and it). RMSprop's is turned, for optax adds its steps.
    """
    found = kinds(sequence)
    scales = [k for k, kind in enumerate(found) if kind in _RMS]
    before = found[scales[0] + 1 if scales else 0 : -1]
    if not before or found[-1] != "TraceState":
        raise CheckpointError(
            f"the optimizer was built with lr_inside=True for {name}, and in {' -> '.join(found)} "
            "something follows the momentum, or nothing comes before it, so that the learning "
            "rate is outside its buffer; construct one with lr_inside=False"
        )
    place, array = slots["buf"]
    others = {slot: value for slot, value in slots.items() if slot != "buf"}
    return {**others, "u": (place, -array)} if scales else {**others, "v": (place, array)}


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
