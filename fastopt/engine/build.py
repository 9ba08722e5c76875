"""From what the user hands in to an optimizer's state and the engine that steps it.

Everything is checked here: the arrays, the hyperparameters, and both against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from fastopt import backends
from fastopt.backends.interface import Backend
from fastopt.core import arrays, hyperparameters
from fastopt.core.arrays import Array, check_apart
from fastopt.core.buckets import (
    Bucket,
    Counts,
    MemberCounts,
    OptimizerState,
    Remembered,
    memory_names,
    own_shapes,
)
from fastopt.core.denormals import smallest_eps
from fastopt.core.dtypes import (
    BOUNDS,
    CODED,
    LR_SCALE,
    STATE_DTYPES,
    State,
    UpdateSpec,
    arithmetic_of,
    name_of,
    real_size,
    state_of,
)
from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    ElementScales,
    Formula,
    Options,
    Schedulable,
)
from fastopt.core.options import (
    FIXED,
    GROUP_CHECKS,
    GROUP_DEFAULTS,
    MODULUS,
    OPTIONS,
    SWITCHED,
    fragments_of,
)
from fastopt.core.param_groups import GivenGroup, ParamGroup, ParamGroups, given_groups, tree_of
from fastopt.core.tree import Leaf, Tree, refused_dtype
from fastopt.engine.later import Later, later
from fastopt.engine.step import HostEngine
from fastopt.engine.whole import decides
from fastopt.errors import BackendMismatchError
from fastopt_kernels import ArrayRule


class Construction(NamedTuple):
    """What an optimizer is made with, beside parameters and their groups.

    ``defaults`` are the hyperparameters that were given for all groups, ``asked`` is the name of a
    backend, or "auto". The first axis of every parameter counts the ``members``, if there are so
    many; every number may then be an array of one for each of them.
    """

    defaults: Options
    asked: str
    master_weights: bool
    capturable: bool
    members: int | None = None


def build(
    formula: type[Formula], params: Any, made_with: Construction
) -> tuple[OptimizerState, HostEngine]:
    """Return the state and the engine of an optimizer of what a user hands in.

    Raises for arrays and hyperparameters that are no good.
    """
    tree = tree_of(params)
    return assemble(formula, tree, [*given_groups(params, tree)], made_with)


def assemble(
    formula: type[Formula], tree: Tree, given: Sequence[GivenGroup], made_with: Construction
) -> tuple[OptimizerState, HostEngine]:
    """Return the state and the engine of an optimizer of some groups of a tree's parameters."""
    groups = ParamGroups(new_group(formula, tree, each, made_with) for each in given)
    refuse_empty(tree, formula.__name__)
    backend = backends.for_leaves(tree.leaves, made_with.asked)
    check_parameters(formula, tree, made_with.members)
    members = None if made_with.members is None else MemberCounts.of(made_with.members)
    state = OptimizerState(formula, tree, groups, [], Counts(members=members))
    for number in range(len(groups)):
        state.buckets += new_buckets(state, number, backend, made_with)
        watch(state, number)
    for bucket in state.buckets if made_with.capturable else ():
        if decides(bucket.rule):
            raise ValueError(
                f"{formula.__name__} cannot be captured in a CUDA graph, since the host decides in "
                "each step what is computed; leave out capturable=True, and make its steps outside "
                "of graphs"
            )
    _remember(state)
    goes_over = later(state.buckets, made_with.asked, backend)
    return state, new_engine(state, backend, made_with.capturable, goes_over)


def check_parameters(formula: type[Formula], tree: Tree, members: int | None) -> None:
    """Raise for arrays that this optimizer cannot update, together or by themselves."""
    name = formula.__name__
    check_leaves(tree, name, counters=True)
    trained = [leaf for leaf in tree.leaves if not leaf.is_counter]
    for leaf in trained if members is not None else ():
        if leaf.array.shape[:1] != (members,):
            raise ValueError(
                f"{name}: the first axis of every parameter counts the {members} members; "
                f"{leaf.path} has the shape {leaf.array.shape}"
            )
    for leaf in trained:
        formula._check_array(f"{name}: {leaf.path}", leaf.whole_shape, name_of(leaf.array.dtype))


def watch(state: OptimizerState, number: int) -> None:
    """Refuse from now on changes of a group's settings that an optimizer in use cannot make."""
    state.groups[number].reviews.append(_review_change(state, number))


def _remember(state: OptimizerState) -> None:
    """Set what the rule remembers of all arrays together, which has one beginning for all groups.

    Raises ValueError where groups would have it follow different settings.
    """
    for bucket in state.buckets:
        if names := memory_names(bucket.rule, "optimizer"):
            begin = state.formula._memory(state.groups[bucket.group])
            found = {name: begin.get(name, 0.0) for name in names}
            state.memory = state.memory or Remembered(found)
    for number, group in enumerate(state.groups):
        check_shared(state, number, group)


def check_shared(state: OptimizerState, number: int, options: Options) -> None:
    """Raise ValueError for settings that memory of all arrays needs to be the same everywhere."""
    formula = state.formula
    memory = formula._rule(options).memory
    if memory is None or memory.over != "optimizer":
        return
    own, begin = hyperparameters.memory_inputs(formula, options), formula._memory(options)
    for other_number, other in enumerate(state.groups):
        theirs = hyperparameters.memory_inputs(formula, other)
        if other_number != number and (theirs != own or formula._memory(other) != begin):
            raise ValueError(
                f"{formula.__name__}: all groups share what the optimizer remembers of all arrays "
                f"together, so {', '.join(own)} must be the same in each; group {number} has "
                f"{own} and group {other_number} {theirs}"
            )


def new_engine(
    state: OptimizerState, backend: Backend, capturable: bool, goes_over: Later | None
) -> HostEngine:
    """Return what steps an optimizer of this state on a backend."""
    control = backend.control(state.tree.leaves[0].array)
    if control is None:
        return HostEngine(state, backend, goes_over)
    from fastopt.engine.device import DeviceEngine  # milliseconds, for CuPy alone

    return DeviceEngine(state, backend, control, capturable)


def without_parameters(owner: str, named: Iterable[str]) -> str:
    """Return what is said where there are arguments, but no parameters among them."""
    called = next((name for name in named if name in _PARAMS), None)
    if called is not None:
        return f"{owner} calls its first argument params: {owner}(params, ...); got {called}"
    got = f"; got {', '.join(named)} alone" if named else ""
    return (
        f"{owner} takes the parameters first, as one array, a dict or a list of arrays: "
        f"{owner}(params, lr=...){got}"
    )


_PARAMS = ("parameters", "variables", "var_list", "model", "theta", "weights", "param", "x0")
"""What other libraries call what is optimized."""


def refuse_empty(tree: Tree, owner: str) -> None:
    """Raise ValueError if there are no parameters."""
    if not tree.leaves:
        raise ValueError(f"{owner} got no parameters; params holds no array")
    if all(leaf.is_counter for leaf in tree.leaves):
        raise ValueError(f"{owner} got no parameters; params holds no floating array")


def refuse_counters(tree: Tree, group: Options, positions: Iterable[int]) -> None:
    """Raise TypeError for arrays of whole numbers in a group that is trained."""
    for leaf in map(tree.leaves.__getitem__, positions if group["trainable"] else ()):
        if leaf.is_counter:
            some = not all(other.is_counter for other in tree.leaves)
            advice = f" {_frozen(tree, leaf)}" * some
            raise TypeError(refused_dtype(leaf.path, leaf.array) + advice)


def _frozen(tree: Tree, leaf: Leaf) -> str:
    """Return how a leaf is left alone by steps."""
    said = "If it is none that is trained, such as a counter, let its group say so: "
    if tree.grouped:
        return f'{said}{{"params": {leaf.path}, "trainable": False}}, a group of its own.'
    return f"{said}fastopt.groups(params, {{{leaf.name!r}: {{'trainable': False}}}})."


def check_leaves(tree: Tree, owner: str, counters: bool = False) -> None:
    """Raise ValueError if there are no parameters, or two share memory.

    BackendMismatchError if they are of two kinds or on two devices, and TypeError for arrays of
    whole numbers without ``counters``.
    """
    for leaf in tree.leaves if not counters else ():
        if leaf.is_counter:
            raise TypeError(refused_dtype(leaf.path, leaf.array))
    refuse_empty(tree, owner)
    first = tree.leaves[0]
    here = arrays.location(first.array)
    for leaf in tree.leaves:
        if (there := arrays.location(leaf.array)) != here:
            raise BackendMismatchError(
                f"{owner} takes arrays of one kind on one device; {first.path} is "
                f"{here} and {leaf.path} is {there}. Make one optimizer for each, "
                "or move one array (cupy.asarray, cupy.asnumpy)."
            )
    check_apart(tree.leaves)


# Hyperparameters --------------------------------------------------------------------------------


def new_group(
    formula: type[Formula], tree: Tree, given: GivenGroup, made_with: Construction
) -> ParamGroup:
    """Return the hyperparameters of one group, checked."""
    count, master_weights = made_with.members, made_with.master_weights
    places = given.positions
    leaves = [leaf for leaf in map(tree.leaves.__getitem__, places) if not leaf.is_counter]
    checks = {
        "lr": Schedulable(NONNEGATIVE),
        **formula._checks,
        "weight_decay": Schedulable(NONNEGATIVE),
        **GROUP_CHECKS,
    }
    if count is not None:
        checks = {name: hyperparameters.of_members(check, count) for name, check in checks.items()}
    group = ParamGroup(formula.__name__ + given.label, given.params, checks, given.positions)
    group.reviews += [
        lambda options: refuse_counters(tree, options, places),
        formula._review,
        lambda options: _check_order(formula, options, leaves),
        lambda options: _check_storage(formula, options, leaves, master_weights),
        lambda options: _check_parts(formula, options, leaves),
    ]
    if count is not None:
        group.reviews.append(lambda options: _check_members(formula, options))
    options = {**GROUP_DEFAULTS, **made_with.defaults, **given.options}
    if isinstance(options["decoupled_lr"], bool | np.bool_):
        lr = checks["lr"](f"{group.owner}: lr", options["lr"])
        options["decoupled_lr"] = _base_rate(group.owner, bool(options["decoupled_lr"]), lr)
    group.update(options)
    group.step_reviews.append(_review_step(formula, group, given.label, leaves))
    return group


def _base_rate(owner: str, decouples: bool, lr: Any) -> Any:
    """Return the learning rate that decoupled_lr=True stands for, None for False."""
    if not decouples:
        return None
    if callable(lr):
        raise ValueError(
            f"{owner}: decoupled_lr=True stands for a learning rate that is a number, and lr is "
            f"{lr!r:.200}, whose largest value is not known beforehand; hand that in as "
            "decoupled_lr=..."
        )
    if np.any(np.asarray(lr) == 0.0):
        raise ValueError(
            f"{owner}: decoupled_lr=True stands for the learning rate at which weight_decay is the "
            f"share of a step, and lr is {lr!r}; hand in the largest one as decoupled_lr=..."
        )
    return lr


def _check_parts(formula: type[Formula], options: Options, leaves: Sequence[Leaf]) -> None:
    """Raise for what does not go together with the rule of some parameters, each by its own."""
    own: dict[type[Formula], list[Leaf]] = {}
    for leaf in leaves if len(formula._parts()) > 1 else ():
        path = f"{formula.__name__}: {leaf.path}"
        own.setdefault(formula._part(options, path, leaf.whole_shape), []).append(leaf)
    for part, theirs in own.items() or [(formula._parts()[0], [*leaves])]:
        view = part._view(options)
        _check_arithmetic(part, view, theirs)
        _check_moment(part, view)
        _check_fragments(part, view)
        _check_whole_arrays(part, view, theirs)
        _check_scales(part, view)
        _check_decoupled(part, view)


def _check_arithmetic(formula: type[Formula], options: Options, leaves: Sequence[Leaf]) -> None:
    """Raise ValueError for constants that the arithmetic of some parameter does not hold."""
    eps = options.get("eps")
    for real, path in _computed_in(options["state_dtype"], leaves).items():
        least = smallest_eps(real)
        if isinstance(eps, float | np.ndarray) and np.any((eps > 0.0) & (eps < least)):
            raise ValueError(
                f"{formula.__name__}: eps must be 0 or at least {least:.2g}, or it may underflow "
                f"in {real}, in which {path} is computed; got {eps}"
            )
        around = _scalars_around(options)
        hyperparameters.check_coefficients(formula, options, real, path, around=around)


def _review_step(
    formula: type[Formula], group: ParamGroup, label: str, leaves: Sequence[Leaf]
) -> Callable[[Options, int], None]:
    """Return what refuses values of a step that the arithmetic of some parameter does not hold.

    An eps that a function gives is not 0 either: the guard has a rule of its own in some variants.
    """
    computed_in = _computed_in(group["state_dtype"], leaves)  # which a group keeps

    def review(options: Options, step_count: int) -> None:
        for part in formula._parts():
            review_part(part, part._view(options), part._view(group), step_count)

    def review_part(
        formula: type[Formula], options: Options, group: Options, step_count: int
    ) -> None:
        owner = f"{formula.__name__}{label}"
        for real, path in computed_in.items():
            least = smallest_eps(real)
            if callable(group.get("eps")) and np.any(options["eps"] < least):
                raise ValueError(
                    f"{owner}: eps at step {step_count} must be at least {least:.2g}, or it may "
                    f"underflow in {real}, in which {path} is computed; got {options['eps']}. Let "
                    "its function return no less"
                )
            at_step = f"{owner}: at step {step_count}"
            around = _scalars_around(options)
            hyperparameters.check_coefficients(formula, options, real, path, at_step, around)

    return review


def _scalars_around(options: Options) -> dict[str, bool]:
    """Return the options that are scalars of the fragments in use: whether lr multiplies them."""
    used = fragments_of(options).values()
    return {name: name in one.lr_scalars for one in used for name in one.scalars}


def _computed_in(state_dtype: str | None, leaves: Sequence[Leaf]) -> dict[np.dtype[Any], str]:
    """Return the dtypes in which parameters are computed, each with the path of one of them."""
    dtypes = {leaf.array.dtype: leaf.path for leaf in reversed(leaves)}
    return {arithmetic_of(dtype, state_dtype): path for dtype, path in dtypes.items()}


def _check_order(formula: type[Formula], options: Options, leaves: Sequence[Leaf]) -> None:
    """Raise TypeError for bounds of complex parameters."""
    for leaf in leaves if options["bounds"] else ():
        if leaf.array.dtype.kind == "c":
            raise TypeError(
                f"{formula.__name__}: bounds need real parameters, since complex numbers have "
                f"no order; {leaf.path} is {leaf.array.dtype}"
            )


def _check_storage(
    formula: type[Formula], options: Options, leaves: Sequence[Leaf], master_weights: bool
) -> None:
    """Raise ValueError for rounding that a parameter's dtype does not have."""
    owner, state_dtype = formula.__name__, options["state_dtype"]
    for leaf in leaves:
        spec = UpdateSpec.of(leaf.array.dtype, master_weights=master_weights)
        if state_dtype in CODED and spec.real.itemsize != 4:
            raise ValueError(
                f"{owner}: state_dtype={state_dtype!r} is for parameters that are computed "
                f"in float32; {leaf.path} is {leaf.array.dtype}. Put it into a group of its own "
                "with state_dtype=None"
            )
        if options["stochastic_rounding"] and spec.master:
            raise ValueError(
                f"{owner}: stochastic_rounding is for parameters without master weights, and "
                f"{leaf.path}, which is {leaf.array.dtype}, has some; set master_weights=False"
            )


def _check_moment(formula: type[Formula], options: Options) -> None:
    """Refuse averages of squared moduli where squares of something else are averaged too."""
    rule = formula._rule(options)
    if options["complex_moment"] == MODULUS and rule.averages_squares and not rule.takes_square:
        raise ValueError(
            f"{formula.__name__}: complex_moment={MODULUS!r} is for optimizers in which squares of "
            "gradients alone are averaged (Adagrad, RMSprop without centered, Adam, AdamW); use "
            "'parts'"
        )


def _check_fragments(formula: type[Formula], options: Options) -> None:
    """Raise ValueError for options that cannot act around such a rule, or on state stored so."""
    fragments, owner = fragments_of(options), formula.__name__
    rule = formula._rule(options)
    for name, fragment in fragments.items():
        if fragment.of_decay and formula._decay(options) != "parameter":
            raise ValueError(
                f"{owner}: {name} is for weight decay that acts on the parameter itself before the "
                f"update; that of {owner} {_WHERE[formula._decay(options)]}. Leave out {name}, "
                f"{_decoupling(options)}"
            )
        if fragment.lr_scalars and memory_names(rule, "optimizer"):
            raise ValueError(
                f"{owner}: {name} is in units of the learning rate, which {owner} estimates as it "
                f"goes; leave out {name}"
            )
        if fragment.lr_scalars and rule.from_start:
            raise ValueError(
                f"{owner}: {name} is lost with the next step, since {owner} works parameters out "
                f"anew from where they began; leave out {name}, or choose another optimizer"
            )
        if options["state_dtype"] in fragment.refuses:
            allowed = [repr(kind) for kind in (None, *STATE_DTYPES) if kind not in fragment.refuses]
            raise ValueError(
                f"{formula.__name__}: {name} cannot be used with "
                f"state_dtype={options['state_dtype']!r}, for it cannot act on state that is "
                f"stored so; choose {', '.join(allowed)}, or leave out {name}"
            )


def _check_decoupled(formula: type[Formula], options: Options) -> None:
    """Raise ValueError for decoupled_lr where no decay is proportional to that learning rate."""
    if options["decoupled_lr"] is None:
        return
    owner = formula.__name__
    if not hyperparameters.decay_is_decoupled(formula, options):
        raise ValueError(
            f"{owner}: decoupled_lr is for weight decay that acts on the parameter itself; that of "
            f"{owner} {_WHERE[formula._decay(options)]}. Leave out decoupled_lr, "
            f"{_decoupling(options)}"
        )
    if memory_names(formula._rule(options), "optimizer"):
        raise ValueError(
            f"{owner}: decoupled_lr is a learning rate that is given beforehand, which {owner} "
            "estimates as it goes; leave out decoupled_lr"
        )
    if formula._view is not Formula._view:
        raise ValueError(
            f"{owner}: decoupled_lr is in units of lr, and AdamW goes by adamw_lr here. Make an "
            "optimizer for each, fastopt.Muon and fastopt.AdamW, or leave out decoupled_lr"
        )


_WHERE = {
    "gradient": "is added to the gradient",
    "rule": "is worked out together with the update, in a way of its own",
}
"""What weight decay does that does not act on the parameter itself before the update."""


def _decoupling(options: Options) -> str:
    """Return what weight decay is to be had by that acts on the parameter itself."""
    if options.get("decoupled_weight_decay") is False:
        return "or set decoupled_weight_decay=True"
    return "or choose an optimizer whose decay is a step of its own, such as AdamW"


def _check_whole_arrays(formula: type[Formula], options: Options, leaves: Sequence[Leaf]) -> None:
    """Raise for options that a rule on whole arrays does not have."""
    if not isinstance(formula._rule(options), ArrayRule):
        return
    name = formula.__name__
    if options["state_dtype"] in CODED:
        raise ValueError(
            f"{name} updates whole arrays and keeps its state in the precision of its arithmetic; "
            f"leave out state_dtype={options['state_dtype']!r}, or set state_dtype='float64'"
        )
    if options["stochastic_rounding"]:
        raise ValueError(
            f"{name} updates whole arrays, for which there is no stochastic_rounding; leave it "
            "out: master_weights=True, the default, keeps updates that are small for the dtype"
        )
    for option, fragment in fragments_of(options).items():
        if fragment.at == "after" and (fragment.on == "all" or fragment.memory is not None):
            raise ValueError(
                f"{name} updates whole arrays, for which there is no {option}; leave it out"
            )
    for leaf in leaves:
        if leaf.array.dtype.kind == "c":
            raise TypeError(f"{name} takes real arrays; {leaf.path} is {leaf.array.dtype}")


def _check_scales(formula: type[Formula], options: Options) -> None:
    """Raise ValueError for rates of elements where arrays or all of them have a rate together."""
    if not isinstance(options["lr_scale"], ElementScales):
        return
    rule = formula._rule(options)
    if isinstance(rule, ArrayRule) or memory_names(rule, "optimizer"):
        raise ValueError(
            f"{formula.__name__} does not update each element by itself, so that lr_scale must be "
            f"a number; got {options['lr_scale'].given!r:.200}. Give arrays that are to have other "
            "rates groups of their own"
        )


def _check_members(formula: type[Formula], options: Options) -> None:
    """Raise ValueError for what has no numbers of its own for each member."""
    name, rule = formula.__name__, formula._rule(options)
    if isinstance(rule, ArrayRule) or rule.memory is not None:
        raise ValueError(f"{name} has no members: it does not update each element by itself")
    for option, fragment in fragments_of(options).items():
        if fragment.memory is not None:
            raise ValueError(f"{name}: {option} sums over whole arrays; it cannot have members")
    if options["state_dtype"] in CODED:
        raise ValueError(
            f"{name}: members have no state in codes, whose blocks and random bits would not be "
            f"each member's own; leave out state_dtype={options['state_dtype']!r}"
        )
    if options["stochastic_rounding"]:
        raise ValueError(
            f"{name}: members are not rounded by chance, since the random bits would not be each "
            "member's own; leave out stochastic_rounding"
        )


def _review_change(state: OptimizerState, number: int) -> Any:
    """Return what refuses a change that an optimizer in use cannot make."""
    formula = state.formula

    def review(options: Options) -> None:
        _refuse_fixed(formula, state.groups[number], options)
        check_shared(state, number, options)
        for bucket in state.buckets:
            if bucket.group != number:
                continue
            for parameter in bucket.parameters if len(formula._parts()) > 1 else ():
                path, shape = parameter.leaf.path, parameter.layout.shape
                if formula._part(options, f"{formula.__name__}: {path}", shape) != bucket.formula:
                    raise ValueError(
                        f"{formula.__name__}: this change would give {path} another rule; "
                        "construct a new optimizer"
                    )
            wanted = bucket.rule_for(options)
            for parameter in bucket.parameters:
                shape = parameter.layout.shape
                if own_shapes(wanted, shape) != own_shapes(bucket.rule, shape):
                    raise ValueError(
                        f"{formula.__name__}: this change needs state of other shapes for "
                        f"{parameter.leaf.path}; construct a new optimizer"
                    )
            if wanted.state != bucket.rule.state:
                raise ValueError(
                    f"{formula.__name__}: this change needs other state, {wanted.state} "
                    f"instead of {bucket.rule.state}; construct a new optimizer"
                )

    return review


def _refuse_fixed(formula: type[Formula], group: ParamGroup, options: Options) -> None:
    """Raise ValueError for a change of what an optimizer keeps from its construction on."""
    kinds = [
        (hyperparameters.bounds_kind(o["bounds"]), o["reset_at_bounds"]) for o in (group, options)
    ]
    same_arrays = kinds[0][0] != "arrays" or options["bounds"] is group["bounds"]
    if kinds[0] != kinds[1] or not same_arrays:
        raise ValueError(
            f"{formula.__name__}: bounds that are numbers can be set to other numbers; "
            "for any other change of bounds construct a new optimizer"
        )
    scales = group["lr_scale"], options["lr_scale"]
    if scales[0] is not scales[1] and any(isinstance(scale, ElementScales) for scale in scales):
        raise ValueError(
            f"{formula.__name__}: lr_scale must stay a number where it is one, and arrays as "
            f"they are; got {scales[1]!r:.200}. For other changes construct a new optimizer"
        )
    for name in FIXED:
        if group[name] != options[name]:
            raise ValueError(
                f"{formula.__name__}: {name} is {group[name]!r} in this optimizer; construct "
                f"a new one with {name}={options[name]!r}"
            )
    for name in SWITCHED:
        if (group[name] is None) != (options[name] is None):
            neutral = "math.inf" if OPTIONS[name].neutral == math.inf else OPTIONS[name].neutral
            advice = (
                f"construct a new one with {name}={options[name]!r}, or with {neutral}, which acts "
                "on nothing and can be set to another number later"
                if group[name] is None
                else f"set it to {neutral}, which acts on nothing"
            )
            raise ValueError(
                f"{formula.__name__}: {name} is {group[name]!r} in this optimizer and cannot "
                f"become {options[name]!r}; {advice}"
            )


# Buckets ----------------------------------------------------------------------------------------


def new_buckets(
    state: OptimizerState, number: int, backend: Backend, made_with: Construction
) -> Iterator[Bucket]:
    """Sort the parameters of a group by dtype and storage, and yield a bucket of each sort."""
    group = state.groups[number]
    formula, tree = state.formula, state.tree
    parts = formula._parts()
    rules = {part: part._rule(part._view(group)) for part in parts}
    state_dtype = group["state_dtype"]
    limits = group["bounds"]
    kind = hyperparameters.bounds_kind(limits)
    fragments = tuple(fragments_of(group).values())
    scales = group["lr_scale"]
    of_fragments = [f"{f.name}_{n}" for f in fragments for n in f.lr_scalars]
    where = tree, group.positions, number, formula.__name__
    constants: dict[tuple[str, ...], Mapping[int, Sequence[Array]]] = {}
    if kind == "arrays":
        constants[BOUNDS] = hyperparameters.bounds_of_leaves(limits, *where)
    if isinstance(scales, ElementScales):
        constants[LR_SCALE,] = hyperparameters.scales_of_leaves(scales, *where)

    def sort(position: int) -> tuple[int, str, State]:
        leaf = tree.leaves[position]
        array = leaf.array
        shape = leaf.whole_shape
        part = formula._part(group, f"{formula.__name__}: {leaf.path}", shape)
        coded = state_dtype if rules[part].state else None
        stored_as = state_of(coded, real_size(math.prod(shape), array.dtype))
        return parts.index(part), name_of(array.dtype), stored_as

    places = [place for place in group.positions if not tree.leaves[place].is_counter]
    sort_of = {place: sort(place) for place in places}
    ordered = sorted(places, key=sort_of.__getitem__)
    for (number_of_part, _, stored_as), same in groupby(ordered, sort_of.__getitem__):
        part = parts[number_of_part]
        view = part._view(group)
        positions = list(same)
        leaves = [tree.leaves[position] for position in positions]
        spec = UpdateSpec.of(
            leaves[0].array.dtype,
            master_weights=made_with.master_weights,
            bounds=kind,
            reset=group["reset_at_bounds"],
            state=stored_as,
            stochastic=group["stochastic_rounding"],
            modulus=group["complex_moment"] == MODULUS,
            state_dtype=state_dtype,
            fragments=fragments,
            members=made_with.members is not None,
            scaled=(*part._lr_scalars, *of_fragments) if (LR_SCALE,) in constants else (),
        )
        bucket = Bucket.of(
            part,
            number,
            rules[part],
            spec,
            leaves,
            positions,
            part._fill(view),
            part._memory(view),
            backend.allocate,
            backend.alignment,
            backend.bridges_gaps,
        )
        for slots, found in constants.items():
            bucket.set_constants(slots, [found[position] for position in positions])
        yield bucket
