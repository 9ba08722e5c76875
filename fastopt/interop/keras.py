"""The variables of an optimizer of keras, read into one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from fastopt.core.arrays import Array
from fastopt.core.param_groups import ParamGroup
from fastopt.errors import CheckpointError
from fastopt.interop.common import (
    Incoming,
    Names,
    Parameter,
    array_of,
    between_steps,
    count_of,
    divide_buffer,
    groups_of,
    match,
    plain,
    rate_after,
    take_over,
)
from fastopt.optimizers.adagrad import Adadelta, Adagrad
from fastopt.optimizers.adam import Adam, AdamW
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.sgd import SGD

# -------------------------------------------------------------------------------------------------
# The variables of an optimizer of keras, told apart by their names or by their order.

State = dict[str, dict[str, tuple[str, Array]]]
VariableLayout = Sequence[Mapping[str, str]]


@dataclass
class Variables:
    """What the variables say: the step count, the learning rate, and each parameter's state.

    The state is by the parameter's name in keras, or by "#" and its position where keras' names
    are not known, in the order of the parameters there; then by our slots.
    """

    step: int
    lr: float | None = None
    state: State = field(default_factory=dict)


def variables_in(given: Any, kept: VariableLayout, layout: VariableLayout, count: int) -> Variables:
    """Return what the variables say, if they are all known.

    ``layout`` is that of the class, ``kept`` the part of it that the optimizer keeps, ``count`` the
    number of its parameters.
    """
    values = _by_key(given)
    if all(isinstance(key, int) for key in values):
        return _by_order({int(key): value for key, value in values.items()}, kept, count)
    slots = {kind: slot for kinds in layout for kind, slot in kinds.items()}
    return _by_name({str(key): value for key, value in values.items()}, slots)


def _by_key(given: Any) -> dict[str | int, Any]:
    """Return the variables by path or name, or by their number if that is what there is."""
    if isinstance(given, Mapping):
        keys = [str(key) for key in given]
        if keys and all(key.isdecimal() for key in keys):
            return {int(key): given[key] for key in given}
        return {str(key): given[key] for key in given}
    if not isinstance(given, list | tuple):
        raise CheckpointError(
            "expected optimizer.variables, or a dict of their values by path or by number; got "
            f"{type(given).__name__}"
        )
    by_path: dict[str | int, Any] = {}
    for one in given:
        path = getattr(one, "path", getattr(one, "name", None))
        if isinstance(path, str):
            by_path[path] = one
    return by_path if len(by_path) == len(given) else dict(enumerate(given))


def _by_order(values: dict[int, Any], kept: VariableLayout, count: int) -> Variables:
    """Tell the variables apart by their order: the counts, then the state kind by kind."""
    owned = count * sum(len(kinds) for kinds in kept)
    if sorted(values) != list(range(len(values))) or len(values) - owned not in (1, 2):
        raise CheckpointError(
            f"expected {owned + 2} variables, iteration, learning_rate (not if a schedule gives "
            f"it) and {owned} of state; got {len(values)}"
        )
    head = len(values) - owned
    lr = _rate(values[1], "variable 1, learning_rate") if head == 2 else None
    found = Variables(count_of(values[0], "variable 0, iteration"), lr)
    for number, (position, slot) in enumerate(_order(kept, count), head):
        value = (f"variable {number}", array_of(values[number], f"variable {number}"))
        found.state.setdefault(f"#{position}", {})[slot] = value
    return found


def _order(kept: VariableLayout, count: int) -> Iterator[tuple[int, str]]:
    for kinds in kept:
        for position in range(count):
            for slot in kinds.values():
                yield position, slot


def _rate(value: Any, place: str) -> float:
    rate = plain(value, place)
    if not isinstance(rate, float):
        raise CheckpointError(f"{place} must be a floating-point number; got {rate!r}")
    return rate


def _by_name(values: dict[str, Any], slots: Mapping[str, str]) -> Variables:
    """Tell the variables apart by the ends of their names."""
    step, lr, state = None, None, State()
    for path, value in values.items():
        name = path.rpartition("/")[2].partition(":")[0]
        if name == "iteration":
            step = count_of(value, path)
        elif name == "learning_rate":
            lr = _rate(value, path)
        else:
            owner, slot = _owner(name, path, slots)
            if slot in state.setdefault(owner, {}):
                raise CheckpointError(f"{path} and {state[owner][slot][0]} are the same state")
            state[owner][slot] = (path, array_of(value, path))
    if step is None:
        raise CheckpointError("the variables lack iteration, the number of steps made")
    return Variables(step, lr, state)


def _owner(name: str, path: str, slots: Mapping[str, str]) -> tuple[str, str]:
    """Return the parameter and the slot that a variable of state is of."""
    for kind in slots:
        if name.endswith(f"_{kind}"):
            return name.removesuffix(f"_{kind}"), slots[kind]
    raise CheckpointError(
        f"{path} is no state of this optimizer, which has {', '.join(sorted(slots))}"
    )


# -------------------------------------------------------------------------------------------------
# The variables of an optimizer of keras, read into one of ours.

Layout = tuple[dict[str, str], ...]

_ADAM: Layout = ({"momentum": "m", "velocity": "v"}, {"velocity_hat": "vmax"})
_INSIDE: dict[type[Optimizer], Layout] = {
    SGD: ({"momentum": "v"},),
    RMSprop: ({"velocity": "v"}, {"momentum": "u"}, {"average_gradient": "a"}),
}
"""Those with lr_inside, which keep what keras does."""

LAYOUTS: dict[type[Optimizer], Layout] = {
    SGD: ({"momentum": "buf"},),
    Adagrad: ({"accumulator": "s"},),
    RMSprop: ({"velocity": "v"}, {"momentum": "buf"}, {"average_gradient": "a"}),
    Adadelta: ({"accumulated_grad": "v", "accumulated_delta_var": "u"},),
    Adam: _ADAM,
    AdamW: _ADAM,
}
"""keras' names of state and our slots, in the order of ``optimizer.variables``: the kinds in one
dict alternate, parameter by parameter."""

_OF_ADAM: dict[str, tuple[Any, str]] = {
    "bias_correction": (True, "keras corrects the averages"),
    "eps_hat": (True, "keras adds eps before the correction"),
    "eps_inside_sqrt": (False, "keras has eps outside the root"),
}
NEEDED: dict[type[Optimizer], dict[str, tuple[Any, str]]] = {
    SGD: {"dampening": (0.0, "keras damps nothing")},
    Adagrad: {
        "lr_decay": (0.0, "keras has no such decay"),
        "eps_inside_sqrt": (True, "keras has eps inside the root"),
    },
    RMSprop: {
        "eps_inside_sqrt": (True, "keras has eps inside the root"),
        "bias_correction": (False, "keras corrects nothing"),
    },
    Adadelta: {},
    Adam: _OF_ADAM,
    AdamW: _OF_ADAM,
}
"""What an optimizer must have been built with; where eps stands only if there is one."""

SIGNS: dict[type[Optimizer], float] = {SGD: -1.0, RMSprop: 1.0}
"""keras' buffer is ours times the learning rate and this sign."""


@between_steps
def load_keras(opt: Optimizer, variables: Any, *, names: Names | None = None) -> None:
    """Take over the ``variables`` of an optimizer of keras 3; the run goes on here.

    ========  =======================================================================
    ours      keras' (each as ``<path of the parameter>_<name>``)
    ========  =======================================================================
    SGD       ``v`` momentum with lr_inside; ``buf`` without, which keras keeps times -lr
    Adagrad   ``s`` accumulator
    RMSprop   ``v`` velocity, ``a`` average_gradient; ``u`` momentum with lr_inside, ``buf``
              without, which keras keeps times lr
    Adadelta  ``v`` accumulated_grad, ``u`` accumulated_delta_var
    Adam(W)   ``m`` momentum, ``v`` velocity, ``vmax`` velocity_hat
    all       step counts: iteration; ``lr`` learning_rate, if no schedule gives it there
    ========  =======================================================================

    The averages are the raw ones on both sides. learning_rate is all of the rate, so ``lr_scale``
    becomes 1 with it (one that is a schedule stays, and lr too). The other hyperparameters are not
    among the variables: ``opt`` must be built with those of the other run (keras' beta_1 and beta_2
    are ``betas``, its rho in RMSprop is ``beta``; epsilon is 1e-7 by default; weight_decay acts on
    the parameter in all its optimizers, as in ``AdamW`` here).

    The formula must be keras', so that the run goes on as it would have there: Adam and AdamW need
    eps_hat=True, Adagrad and RMSprop eps_inside_sqrt=True. In float32 keras rounds 1 - beta_2^t, by
    some 1e-5, and fastopt does not. keras has the learning rate inside its momentum: SGD and
    RMSprop with lr_inside=True go on from it as it is. Without, it is divided by the rate, and a
    constant one goes on as it would have there.

    Args:
        opt: an SGD, Adagrad, RMSprop, Adadelta, Adam or AdamW over the same parameters.
        variables: ``optimizer.variables``; or a dict of their values by path or name; or one by
            "0", "1", ..., as ``save_own_variables`` stores them (an open ``.npz`` or HDF5 group).
            keras is not imported.
        names: our name of each parameter (as in ``opt.state_dict()["state"]``) to keras': its path
            with "_" for "/" (``sequential_dense_kernel``), or its position, 0 for the first.
            Without it parameters are matched by name if the names are the same ("_" for "."), else
            by position, ours in the order in which the tree is written.

    Raises:
        CheckpointError: if the variables do not fit by name, number, shape or dtype (state is never
            cast), hold anything else (an average of the weights, accumulated gradients), or are in
            doubt; nothing has changed then.
        TypeError, ValueError: for an optimizer that keras does not have, and for bad arguments.

    Source: keras 3.15.
    """
    if type(opt) not in LAYOUTS:
        known = ", ".join(sorted(ours.__name__ for ours in LAYOUTS))
        raise TypeError(f"load_keras reads the state of {known}; got {type(opt).__name__}")
    ours = list(chain.from_iterable(groups_of(opt)))
    layout = _layout(opt, ours)
    found = variables_in(variables, _kept(layout, ours), layout, len(ours))
    keys = list(found.state)
    if not keys and not any(parameter.slots for parameter in ours):
        keys = [f"#{k}" for k in range(len(ours))]  # no state, so that only the counts are there
    theirs = [None if key.startswith("#") else key for key in keys]
    places = match([ours], [theirs], names, lambda name: name.replace(".", "_"))
    incoming = {}
    for parameter in ours:
        options = opt.param_groups[parameter.group]
        _check(type(opt), parameter, options)
        state = found.state.get(keys[places[parameter.name]], {})
        incoming[parameter.name] = _incoming(type(opt), parameter, options, found, state)
    take_over(opt, incoming, None, "keras")


def _layout(opt: Optimizer, ours: list[Parameter]) -> Layout:
    """Return keras' names of state and our slots."""
    kind = type(opt)
    own = {SGD: "v", RMSprop: "u"}.get(kind)
    inside = any(own in parameter.slots for parameter in ours)
    return _INSIDE[kind] if inside else LAYOUTS[kind]


def _kept(layout: Layout, ours: list[Parameter]) -> Layout:
    """Return the part of the layout that the optimizer keeps, which must be one for all."""
    kept = {frozenset(parameter.slots) for parameter in ours}
    if len(kept) != 1:
        raise CheckpointError(
            "keras keeps the same state of all parameters, and the groups of the optimizer do not"
        )
    slots = kept.pop()
    wanted = ({k: s for k, s in kinds.items() if s in slots} for kinds in layout)
    return tuple(filter(None, wanted))


def _check(kind: type[Optimizer], parameter: Parameter, options: ParamGroup) -> None:
    if parameter.array.dtype.kind == "c":
        raise CheckpointError(f"{parameter.name} is complex, and keras has real parameters alone")
    for name, (value, why) in NEEDED[kind].items():
        if name.startswith("eps_") and not options["eps"]:
            continue  # wherever it stands
        if options[name] != value:
            raise CheckpointError(
                f"the optimizer was built with {name}={options[name]!r}, and {why}; construct one "
                f"with {name}={value!r}"
            )


def _incoming(
    kind: type[Optimizer],
    parameter: Parameter,
    options: ParamGroup,
    found: Variables,
    state: Mapping[str, tuple[str, Any]],
) -> Incoming:
    settings = {} if found.lr is None else {"lr": found.lr}
    slots = dict(state)
    if kind in SIGNS:
        if "buf" in slots and found.lr is None:
            raise CheckpointError(
                "keras keeps the buffer times the learning rate, which a schedule gives there, and "
                "the optimizer has it outside, so that the steps would not be the same; construct "
                "one with lr_inside=True"
            )
        slots = divide_buffer(slots, rate_after(options, found.lr), SIGNS[kind], parameter.name)
    return Incoming(found.step, slots, settings)
