"""Other parameters for an optimizer in use: rebound, resized, added. Its state goes on.

Everything is checked before anything changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, MemberCounts, OptimizerState, own_shapes
from fastopt.core.hyperparameters import ElementScales
from fastopt.core.param_groups import GivenGroup, ParamGroup, ParamGroups, shown, tree_of
from fastopt.core.signals import Deferred
from fastopt.core.tree import Leaf, Tree
from fastopt.engine import build
from fastopt.engine.build import Construction
from fastopt.engine.step import HostEngine
from fastopt.errors import BackendMismatchError

# -------------------------------------------------------------------------------------------------
# Other arrays of the same shapes.


def rebind(state: OptimizerState, engine: HostEngine, params: Any) -> None:
    """Go on with other arrays in the places of the parameters; raises with nothing changed."""
    tree = nested_alike(state.tree, params, _OPTIMIZER)
    before = _by_position(state.buckets)
    follower = _OPTIMIZER._replace(members=state.counts.members is not None)
    changed = False
    for position, (old, new) in enumerate(zip(state.tree.leaves, tree.leaves, strict=True)):
        shape, dtype, stays = old.array.shape, old.array.dtype, new.array is old.array
        if position in before:  # what it was laid out for; else it is a counter
            bucket, index = before[position]
            parameter = bucket.parameters[index]
            shape, dtype = parameter.layout.shape, parameter.dtype
            stays = stays and arrays.address(new.array) == parameter.address
        check_like(old, new, shape, dtype, follower)
        changed = changed or not stays
    build.check_leaves(tree, state.formula.__name__, counters=True)
    if not changed:
        _adopt(state, tree)
        return
    engine.before_other_parameters()
    with Deferred():
        _adopt(state, tree)
        for bucket in state.buckets:
            leaves = [tree.leaves[position] for position in bucket.positions]
            bucket.take_arrays(leaves, engine.backend.bridges_gaps)
        engine.follow_parameters()


def _arrays(tree: Tree) -> list[Array]:
    return [leaf.array for leaf in tree.leaves]


class Follower(NamedTuple):
    """Who goes over to other arrays, in the words of errors.

    ``begin`` is what they begin with, ``variable`` what a program may call it, ``others`` what is
    said of parameters that were not there; ``members`` whether rows are members.
    """

    begin: str
    variable: str
    others: str
    members: bool = False


_OPTIMIZER = Follower("", "opt", "opt.add_param_group adds parameters")


def nested_alike(before: Tree, params: Any, follower: Follower) -> Tree:
    """Return the tree of other parameters; ValueError unless they have the same names."""
    tree = tree_of(params)
    if before.grouped and not tree.grouped and isinstance(params, list | tuple):
        tree = Tree([*params], grouped=True)
    elif tree.grouped and any(group.keys() != {"params"} for group in params):
        raise TypeError(
            f"{follower.begin}rebind takes arrays alone, as [{{'params': tree}}, ...] or a list of "
            "trees; set hyperparameters in opt.param_groups"
        )
    mine, theirs = ([leaf.name for leaf in each.leaves] for each in (before, tree))
    if mine != theirs:
        missing = [name for name in mine if name not in theirs][:3]
        extra = [name for name in theirs if name not in mine][:3]
        raise ValueError(
            f"{follower.begin}rebind takes the same parameters in other arrays, nested as they "
            f"were; missing {missing}, unexpected {extra}. {follower.others}"
        )
    tree.resizes, tree.selections = before.resizes, before.selections
    pairs = zip(tree.leaves, before.leaves, strict=True)
    tree.leaves = [dataclasses.replace(leaf, origin=old.origin) for leaf, old in pairs]
    return tree


def check_like(
    old: Leaf, leaf: Leaf, shape: tuple[int, ...], dtype: np.dtype[Any], follower: Follower
) -> None:
    """Raise for an array that is not of the shape and dtype that there was, and where it was."""
    now = leaf.array
    if now.shape != shape or now.dtype != dtype:
        if now.dtype != dtype:
            rows = f"Convert it: .astype({str(dtype)!r})"
        elif follower.members:
            rows = f"{follower.variable}.select(indices) keeps some of the members"
        else:
            rows = (
                f"{follower.variable}.resize({leaf.name!r}, array, keep=rows) takes another number "
                "of rows"
            )
        raise ValueError(
            f"{follower.begin}{leaf.path} must be {dtype} of shape {shape}, as it was; got "
            f"{now.dtype} of shape {now.shape}. {rows}"
        )
    there, here = arrays.location(old.array), arrays.location(now)
    if there != here:
        raise BackendMismatchError(
            f"{follower.begin}{leaf.path} must be where it was, {there}; got one {here}. Save, and "
            "load where the arrays are the new ones"
        )


def _adopt(state: OptimizerState, tree: Tree) -> None:
    """Have another tree, and its arrays as the groups' "params"."""
    params = shown(tree, state.tree, state.groups)
    state.tree = tree
    for group, own in zip(state.groups, params, strict=True):
        group.show(own)


# -------------------------------------------------------------------------------------------------
# One array with another number of rows.


def resize(
    state: OptimizerState,
    engine: HostEngine,
    made_with: Construction,
    name: str,
    array: Any,
    keep: Any,
) -> HostEngine:
    """Put an array with other rows in the place of a parameter; return what steps from now on."""
    position = position_of(state.tree, name)
    tree = state.tree.with_array(position, array)
    old = state.tree.leaves[position].array
    shape, dtype = old.shape, old.dtype
    if position in (laid_out := _by_position(state.buckets)):
        bucket, index = laid_out[position]
        shape, dtype = bucket.parameters[index].layout.shape, bucket.parameters[index].dtype
    rows = kept_rows(name, old, shape, dtype, array, keep)
    number = next(n for n, group in enumerate(state.groups) if position in group.positions)
    group = state.groups[number]
    _refuse_to_resize(state, group, name, made_with)
    if position in laid_out:
        _refuse_rows_without_a_beginning(state, bucket, name)
        _refuse_state_without_rows(state, bucket, index, tree.leaves[position].array.shape)
    build.check_parameters(state.formula, tree, made_with.members)
    engine.before_other_parameters()
    coming = dataclasses.replace(state, tree=tree)
    made = [*build.new_buckets(coming, number, engine.backend, made_with)]
    before = _by_position([bucket for bucket in state.buckets if bucket.group == number])
    for place, (new_bucket, at) in _by_position(made).items():
        new_bucket.take_state(at, *before[place], keep=rows if place == position else None)
    own = (k for k, bucket in enumerate(state.buckets) if bucket.group == number)
    first = next(own, 0)  # a group of whole numbers alone has none
    others = [bucket for bucket in state.buckets if bucket.group != number]
    with Deferred():
        tree.put(position)
        _adopt(state, tree)
        state.buckets = [*others[:first], *made, *others[first:]]
        return _successor(state, engine, made_with)


def position_of(tree: Tree, name: str) -> int:
    """Return where the parameter of a name stands among the leaves; ValueError if none does."""
    names = [leaf.name for leaf in tree.leaves]
    if name not in names:
        from difflib import get_close_matches  # a millisecond

        close = get_close_matches(str(name), names, n=1) or names[:3]
        raise ValueError(
            f"resize takes the name that a parameter has in state_dict, such as {close[0]!r}; "
            f"got {name!r}"
        )
    return names.index(name)


def kept_rows(
    name: str, old: Array, shape: tuple[int, ...], dtype: np.dtype[Any], new: Any, keep: Any
) -> Array:
    """Return the numbers of the old rows that the first new rows are, on the host.

    The old array was of this shape and dtype, before it was perhaps resized in place.
    """
    if not shape or not new.shape or new.shape[1:] != shape[1:] or new.dtype != dtype:
        raise ValueError(
            f"resize changes the number of rows: the new {name!r} must be {dtype} of shape "
            f"(rows, {', '.join(map(str, shape[1:]))}); got {new.dtype} of shape {new.shape}"
        )
    there, here = arrays.location(old), arrays.location(new)
    if there != here:
        raise BackendMismatchError(
            f"the new {name!r} must be {there}, as the old one; got one {here}"
        )
    if keep is None:
        return np.arange(min(shape[0], len(new)))
    rows = np.asarray(arrays.on_host(keep) if arrays.kind(keep) == "cupy" else keep)
    if rows.dtype == bool and rows.shape == (shape[0],):
        rows = np.flatnonzero(rows)
    if rows.size == 0:
        rows = rows.astype(np.intp).reshape(-1)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise TypeError(
            f"keep must be the numbers of the old rows that are kept, or a mask of {shape[0]} "
            f"truth values; got {rows.dtype} of shape {rows.shape}"
            + " (np.nonzero returns a tuple: take its first)"
            * isinstance(keep, tuple)
        )
    if rows.size and not (rows.min() >= 0 and rows.max() < shape[0]):
        raise ValueError(
            f"keep must hold numbers of old rows, 0 to {shape[0] - 1}; got {rows.min()} to "
            f"{rows.max()}"
        )
    if len(rows) > len(new):
        raise ValueError(
            f"keep names {len(rows)} rows, and the new {name!r} has {len(new)}: its first rows are "
            "those that are kept, in this order"
        )
    return rows


def _refuse_to_resize(
    state: OptimizerState, group: ParamGroup, name: str, made_with: Construction
) -> None:
    owner = state.formula.__name__
    if made_with.members is not None:
        raise ValueError(f"{owner}: the rows of {name!r} are members, whose number is fixed")
    if any(b.spec.constants for b in state.buckets if state.groups[b.group] is group):
        raise ValueError(
            f"{owner}: {name!r} has bounds or an lr_scale that are arrays, which would not fit; "
            "resize takes such that are numbers, or construct a new optimizer"
        )


def _refuse_rows_without_a_beginning(state: OptimizerState, bucket: Bucket, name: str) -> None:
    """Raise ValueError for state that the first step alone sets: new rows would have none."""
    if bucket.rule.begun:
        raise ValueError(
            f"{state.formula.__name__}: {name!r} cannot have other rows, since the state "
            f"{', '.join(bucket.rule.begun)} of a row begins in the parameter's first step; "
            "construct a new optimizer"
        )


def _refuse_state_without_rows(
    state: OptimizerState, bucket: Bucket, index: int, shape: tuple[int, ...]
) -> None:
    """Raise ValueError for state of another shape that says nothing of which rows it is."""
    parameter = bucket.parameters[index]
    if more := own_shapes(bucket.rule, shape).keys() - parameter.places:
        raise ValueError(
            f"{state.formula.__name__}: {parameter.leaf.name!r} cannot have the shape {shape}, "
            f"since it would have other state, {sorted(more)}; construct a new optimizer"
        )
    for slot, place in parameter.places.items():
        if place.by_row is None:
            raise ValueError(
                f"{state.formula.__name__}: {parameter.leaf.name!r} cannot have other rows, since "
                f"its state {slot!r}, of shape {place.shape}, is of all rows together; construct a "
                "new optimizer"
            )


def _by_position(buckets: list[Bucket]) -> dict[int, tuple[Bucket, int]]:
    """Return where each parameter is found: its bucket, and its number there."""
    return {
        position: (bucket, index)
        for bucket in buckets
        for index, position in enumerate(bucket.positions)
    }


# -------------------------------------------------------------------------------------------------
# Some of the members.


def kept_members(members: int | None, indices: Any, owner: str) -> Array:
    """Return the numbers of the members that are kept, in host memory; ValueError for others."""
    if members is None:
        raise ValueError(
            f"{owner}.select keeps some of the members, and this optimizer has none; construct it "
            "with members="
        )
    rows = np.asarray(arrays.on_host(indices) if arrays.kind(indices) == "cupy" else indices)
    if rows.dtype == bool and rows.shape == (members,):
        rows = np.flatnonzero(rows)
    good = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu"
    if not good or rows.min() < -members or rows.max() >= members:
        raise ValueError(
            f"select takes the numbers of the members to keep, at least one, each from {-members} "
            f"to {members - 1}, or a mask of {members} truth values; got {indices!r:.200}"
        )
    return np.where(rows < 0, rows + members, rows)


def of_members(copied: dict[str, Any], rows: Array) -> dict[str, Any]:
    """Return what a copy of an optimizer is made of, with some of its members alone."""
    made_with = Construction(*copied["made_with"])
    skipped, norm, counts = copied["counts"]
    assert made_with.members is not None
    count = made_with.members

    def some(value: Any) -> Any:
        return _some(value, count, rows)

    kept = MemberCounts(*map(some, (counts.missed, counts.skipped, counts.norms)))
    tree = Tree(copied["params"], copied["grouped"])
    params = tree.nest(leaf.array if leaf.is_counter else some(leaf.array) for leaf in tree.leaves)
    saved = copied["saved"]
    return {
        **copied,
        "params": params,
        "groups": [(*where, some(plain), owner) for *where, plain, owner in copied["groups"]],
        "made_with": tuple(
            made_with._replace(defaults=some(made_with.defaults), members=len(rows))
        ),
        "counts": (skipped, norm, kept),
        "saved": {
            **saved,
            "groups": some(saved["groups"]),
            "state": some(saved["state"]),
            **({"missed": some(saved["missed"])} if "missed" in saved else {}),
        },
    }


def _some(value: Any, count: int, rows: Array) -> Any:
    """Return a value with what stands there of each of so many members for some of them."""
    if arrays.kind(value) is not None:
        if value.shape[:1] != (count,):
            return value
        with arrays.on_device_of(value):
            return value[arrays.like(rows, value)]
    if isinstance(value, ElementScales):
        return ElementScales(_some(value.given, count, rows))
    if isinstance(value, Mapping):
        return {name: _some(one, count, rows) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_some(one, count, rows) for one in value)
    if callable(value):
        return OfSome(value, count, rows)
    return value


class OfSome:
    """A schedule of which some members are left."""

    def __init__(self, schedule: Callable[[int], Any], count: int, rows: Array) -> None:
        self.schedule: Callable[[int], Any] = schedule
        self.count: int = count
        self.rows: Array = rows

    def __call__(self, step: int) -> Any:
        """Return the values of these members, or what all have together."""
        return _some(self.schedule(step), self.count, self.rows)


# -------------------------------------------------------------------------------------------------
# One more group.


def add_group(
    state: OptimizerState, engine: HostEngine, made_with: Construction, given: Any
) -> HostEngine:
    """Add a group of parameters; return what steps from now on. Raises with nothing changed."""
    if not isinstance(given, Mapping) or "params" not in given:
        raise TypeError(
            "add_param_group takes a dict with 'params' and hyperparameters, such as "
            f"{{'params': tree, 'lr': 0.1}}; got {type(given).__name__}"
        )
    formula, before = state.formula, state.tree
    if not before.grouped and len(state.groups) > 1:
        raise ValueError(
            "this optimizer's groups were made by pattern and share one tree; construct a new one "
            "with all parameters (load takes the state over by name)"
        )
    trees = [*before.params] if before.grouped else [before.params]
    tree = Tree([*trees, given["params"]], grouped=True)
    tree.resizes, tree.selections = before.resizes, before.selections
    number, first = len(state.groups), len(before.leaves)
    if not all(map(is_, _arrays(tree), _arrays(before))):  # as far as they were there
        raise ValueError(
            "some parameters are no longer the arrays that the optimizer was given; call "
            "opt.rebind(params) before"
        )
    if len(tree.leaves) == first:
        raise ValueError("add_param_group got no parameters; params holds no array")
    options = {name: value for name, value in given.items() if name != "params"}
    positions = range(first, len(tree.leaves))
    label = f", params[{number}]"
    own = GivenGroup(positions, given["params"], options, label)
    group = build.new_group(formula, tree, own, made_with)
    build.check_parameters(formula, tree, made_with.members)
    engine.before_other_parameters()
    coming = dataclasses.replace(
        state, tree=tree, groups=ParamGroups([*state.groups, group], state.groups.changes)
    )
    build.check_shared(coming, number, group)
    made = [*build.new_buckets(coming, number, engine.backend, made_with)]
    with Deferred():
        for bucket in state.buckets:
            leaves = [tree.leaves[position] for position in bucket.positions]
            bucket.take_arrays(leaves, engine.backend.bridges_gaps)
        state.groups.add(group)
        _adopt(state, tree)
        build.watch(state, number)
        state.buckets += made
        return _successor(state, engine, made_with)


def _successor(state: OptimizerState, engine: HostEngine, made_with: Construction) -> HostEngine:
    """Return the engine of a state whose buckets are others now."""
    made = build.new_engine(state, engine.backend, made_with.capturable, engine.later)
    made.refuse_buffers(engine.drop_buffers())
    return made
