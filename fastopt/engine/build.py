"""From what the user hands in to parameter groups that are ready to step; all is checked here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from fastopt import backends
from fastopt.core import arrays, hyperparameters, param_groups
from fastopt.core.arrays import Array, Extents, check_apart
from fastopt.core.buckets import Bucket
from fastopt.core.dtypes import (
    STATE_DTYPES,
    Format,
    State,
    arithmetic_of,
    real_size,
    smallest_eps,
    state_of,
)
from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    BoundsCheck,
    Flag,
    Formula,
    Maybe,
    OneOf,
    Options,
    Schedulable,
    Whole,
)
from fastopt.core.options import FIXED, MODULUS, SHARED_DEFAULTS
from fastopt.core.param_groups import Groups, ParamGroup
from fastopt.core.quantization import SEEDS
from fastopt.core.tree import Leaf, Tree
from fastopt.engine.step import StepScalars
from fastopt.errors import BackendMismatchError

# -------------------------------------------------------------------------------------------------
# One parameter group at work: its tree, its hyperparameters, its buckets, and a step's scalars.


class Group:
    """The parameters of one group, and what a step does with them.

    ``positions`` are their places among the leaves of the tree, which other groups may share.
    """

    def __init__(
        self,
        formula: type[Formula],
        tree: Tree,
        positions: Sequence[int],
        options: ParamGroup,
        grads_root: str,
        asked: str,
        master_weights: bool,
        everywhere: Extents,
    ) -> None:
        self.tree = tree
        self.positions = positions
        self.leaves = [tree.leaves[position] for position in positions]
        self.options = options
        self._trainable: bool = options["trainable"]
        self._formula = formula
        self._grads_root = grads_root
        self.buckets = self._make_buckets(asked, master_weights, everywhere)
        self._scalars = [StepScalars(formula, bucket) for bucket in self.buckets]
        self._revision = options.revision
        options.reviews.append(self._check_same_state)
        self._prepared: tuple[int, float, int] | None = None

    def _make_buckets(self, asked: str, master_weights: bool, everywhere: Extents) -> list[Bucket]:
        """Sort the leaves by device, dtype and storage, and make a bucket of each sort."""
        leaves, rule = self.tree.leaves, self._formula._rule(self.options)
        state_dtype = self.options["state_dtype"]

        def place(position: int) -> tuple[int, str, State]:
            array = leaves[position].array
            device = arrays.device(array)
            size = real_size(array.size, array.dtype)
            state = state_of(state_dtype if rule.state else None, size)
            return (-1 if device is None else device, array.dtype.name, state)

        made = []
        for (_, _, state), same in groupby(sorted(self.positions, key=place), place):
            positions = list(same)
            members = [leaves[position] for position in positions]
            backend = backends.for_array(members[0].array, members[0].path, asked)
            fill = self._formula._fill(self.options)
            limits, reset = self.options["bounds"], self.options["reset_at_bounds"]
            kind = hyperparameters.kind_of(limits)
            dtype, chance = members[0].array.dtype, self.options["stochastic_rounding"]
            modulus = self.options["complex_moment"] == MODULUS
            format = Format.of(
                dtype, master_weights, kind, reset, state, chance, modulus, state_dtype
            )
            bucket = Bucket(backend, rule, members, positions, fill, format, everywhere)
            if kind == "arrays":
                name = self._formula.__name__
                places = [self.positions[position] for position in positions]
                bucket.set_bounds(
                    hyperparameters.of_leaves(limits, self.tree, members, places, name)
                )
            made.append(bucket)
        return made

    def _check_same_state(self, options: Options) -> None:
        """Refuse a change that an optimizer in use cannot make."""
        bounded = ("bounds", "reset_at_bounds")
        before, after = (
            [hyperparameters.kind_of(o["bounds"]), o[bounded[1]]] for o in (self.options, options)
        )
        same_arrays = before[0] != "arrays" or options["bounds"] is self.options["bounds"]
        if before != after or not same_arrays:
            raise ValueError(
                f"{self._formula.__name__}: bounds that are numbers can be set to other numbers; "
                "for any other change of bounds construct a new optimizer"
            )
        for name in FIXED:
            before, after = self.options[name], options[name]
            if before != after:
                raise ValueError(
                    f"{self._formula.__name__}: {name} is {before!r} in this optimizer; construct "
                    f"a new one with {name}={after!r}"
                )
        wanted = self._formula._rule(options)
        for bucket in self.buckets:
            if wanted.state != bucket.rule.state:
                raise ValueError(
                    f"{self._formula.__name__}: this change needs other state, {wanted.state} "
                    f"instead of {bucket.rule.state}; construct a new optimizer"
                )

    def follow_settings(self) -> bool:
        """Go over to another rule, if a setting asks for one; return whether steps are made."""
        if self._revision != self.options.revision:
            for bucket in self.buckets:
                bucket.use(self._formula._rule(self.options))
            self._trainable = self.options["trainable"]
            self._revision = self.options.revision
        return self._trainable

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need."""
        self.follow_settings()
        for bucket in self.buckets:
            bucket.warm_up(norm)

    def check(self, now: list[Any], given: list[Any], copying: bool = True) -> None:
        """Look at the arrays of a step, those at all leaves of the tree, before it is made."""
        for bucket in self.buckets:
            bucket.check(now, given, self._grads_root, copying)

    def nonfinite(self) -> str | None:
        """Return where the first checked gradient with NaN or infinity stands."""
        leaf = next(filter(None, (bucket.nonfinite() for bucket in self.buckets)), None)
        return None if leaf is None else self._grads_root + leaf.suffix

    @property
    def at_once(self) -> bool:
        """Whether ``step_at_once`` can do anything."""
        return len(self.buckets) == 1 and self.buckets[0].at_once

    def step_at_once(self, grads: Any, grad_scale: float, clock: Array) -> bool:
        """Check, update and count in one compiled call, which nothing can interrupt.

        Returns False, with nothing changed, if something in this step is not as usual.
        """
        if not self.follow_settings():
            return False
        now, given = self.tree.current(), self.tree.match(grads, self._grads_root)
        self._prepare(grad_scale, clock)
        return self.buckets[0].step_at_once(now, given, self._scalars[0], clock)

    def row(self, number: int, lag: int, clock: int) -> tuple[float, ...]:
        """Return the scalars of a step, for a gradient scale of 1.

        They are those of the bucket of this number, for parameters that have made ``lag`` steps
        less than the ``clock`` says.
        """
        if self.options.scheduled:
            self._prepared = None  # a schedule with a memory may say something else by now
        self._prepare(1.0, np.array([clock]))
        return self._scalars[number](clock - lag + 1)

    def keep_rules(self) -> None:
        """Refuse from now on changes that need another rule."""
        self.options.reviews.append(self._check_same_rule)

    def _check_same_rule(self, options: Options) -> None:
        wanted = self._formula._rule(options)
        if any(wanted is not bucket.rule for bucket in self.buckets):
            raise ValueError(
                f"{self._formula.__name__}: a step has been captured in a CUDA graph, with the "
                "update as it was then; this change needs another one, so construct a new "
                "optimizer and capture again"
            )

    def plan(self, grad_scale: float, clock: Array) -> None:
        """Work out a step's scalars, in float64 on the host."""
        self._prepare(grad_scale, clock)
        for bucket, scalars in zip(self.buckets, self._scalars, strict=True):
            bucket.plan(scalars)

    def _prepare(self, grad_scale: float, clock: Array) -> None:
        # Without a schedule only the step count changes, unless the user sets something.
        scheduled_for = clock.item(0) if self.options.scheduled else -1
        wanted = (self.options.revision, grad_scale, scheduled_for)
        if self._prepared != wanted:
            options = self.options.at(int(clock[0]))
            if self.options.scheduled:
                self._check_coefficients(options)
            for scalars in self._scalars:
                scalars.prepare(options, grad_scale)
            self._prepared = wanted

    def _check_coefficients(self, options: Options) -> None:
        for bucket in self.buckets:
            where = bucket.parameters[0].leaf.path
            hyperparameters.check(self._formula, options, bucket.real, where)

    @property
    def averages_squares_in_float32(self) -> bool:
        """Whether the step that was checked averages squares of gradients in float32."""
        return any(bucket.averages_squares_in_float32 for bucket in self.buckets)

    def norms(self) -> Iterator[tuple[str, float]]:
        """Yield where each checked gradient stands, and its norm."""
        for bucket in self.buckets:
            norms = bucket.norms()
            for i in bucket.members():
                yield self._grads_root + bucket.parameters[i].leaf.suffix, norms[i]

    def ask_schedules_anew(self) -> None:
        """Forget what schedules said when the last step was tried.

        If that step failed or was skipped this one has its number, and a schedule with a memory may
        have changed its mind.
        """
        if self.options.scheduled:
            self._prepared = None

    def value(self, name: str, step_count: int) -> float:
        """Return a hyperparameter's value in a step, checked if a schedule gives it."""
        return float(self.options.value(name, step_count))

    def update(self) -> None:
        """Make the step that was checked and planned."""
        for bucket in self.buckets:
            bucket.update()


def squares(groups: Sequence[Group], factor: float) -> Iterator[Array]:
    """Yield the sums of squares of all checked gradients, by pieces, bucket by bucket."""
    for group in groups:
        for bucket in group.buckets:
            yield bucket.squares(factor)


# -------------------------------------------------------------------------------------------------
# One tree of parameters together with the groups that its leaves belong to.


class Grouping:
    """The groups over one tree: a step's gradients are flattened once for all of them."""

    def __init__(self, tree: Tree, groups: Sequence[Group], grads_root: str) -> None:
        self.groups = list(groups)
        self.tree = tree
        self.grads_root = grads_root
        self._updated: list[Group] | None = self.groups  # whom the tree is ready to look at

    def check(self, grads: Any, copying: bool = True) -> list[Group]:
        """Look at all arrays of a step before anything is written; return whom it updates.

        What stands for the parameters of groups that are not trainable is not looked at. Without
        ``copying`` gradients that would have to be copied are refused.
        """
        updated = self._follow_settings()
        if updated:
            now, given = self.tree.current(), self.tree.match(grads, self.grads_root)
            for group in updated:
                group.check(now, given, copying)
        return updated

    def match(self, grads: Any) -> list[Any]:
        """Return the gradients in the order of the leaves, None where they are not looked at."""
        if not self._follow_settings():
            return [None] * len(self.tree.leaves)
        return self.tree.match(grads, self.grads_root)

    def _follow_settings(self) -> list[Group]:
        """Return the groups that a step updates, and make the tree ready to look at them."""
        updated = [group for group in self.groups if group.follow_settings()]
        if updated and updated != self._updated:
            self._updated = None  # until it is: an interrupt can come in between
            frozen = [group for group in self.groups if group not in updated]
            self.tree.ignore(place for group in frozen for place in group.positions)
            self._updated = updated
        return updated


# -------------------------------------------------------------------------------------------------
# From what the user hands in to groups that are ready to step: everything is checked here.


@dataclass(frozen=True, slots=True)
class _Given:
    """What the user gave for one group."""

    positions: Sequence[int]  # of its parameters among the leaves of the tree
    params: Any  # what it shows as its "params"
    options: Options
    label: str  # what errors call it, after the optimizer's name


def make_groupings(
    formula: type[Formula],
    params: Any,
    defaults: Options,
    asked: str,
    master_weights: bool,
) -> list[Grouping]:
    """Return the groups of an optimizer; raises for arrays and hyperparameters that are no good."""
    trees = []
    for tree, root, parts in _trees(params):
        made = [(part, _options(formula, tree, part, defaults, master_weights)) for part in parts]
        trees.append((tree, root, made))
    leaves = all_leaves([tree for tree, _, _ in trees], formula.__name__)
    _check_one_place(leaves, asked)
    everywhere = Extents(leaves)

    def grouping(tree: Tree, root: str, made: list[tuple[_Given, ParamGroup]]) -> Grouping:
        groups = [
            Group(formula, tree, part.positions, options, root, asked, master_weights, everywhere)
            for part, options in made
        ]
        return Grouping(tree, groups, root)

    return [grouping(*one) for one in trees]


def trees_of(params: Any) -> list[Tree]:
    """Return the trees of parameters that an optimizer would be given: one, or one per group."""
    return [tree for tree, _, _ in _trees(params)]


def all_leaves(trees: Sequence[Tree], owner: str) -> list[Leaf]:
    """Return the parameters of all trees; ValueError if there are none, or two share memory."""
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    if not leaves:
        raise ValueError(f"{owner} got no parameters; params holds no array")
    check_apart(leaves)
    return leaves


def _trees(params: Any) -> Iterator[tuple[Tree, str, list[_Given]]]:
    """Yield each tree of parameters, what errors call its gradients, and its groups."""
    if isinstance(params, Groups):
        tree = Tree(params.params)
        yield tree, "grads", list(_by_pattern(tree, params))
    elif param_groups.are_given(params):
        for number, given in enumerate(params):
            tree = Tree(given["params"], f'params[{number}]["params"]', f"{number}.")
            own = {name: value for name, value in given.items() if name != "params"}
            yield tree, f"grads[{number}]", [_whole(tree, own, f", params[{number}]")]
    else:
        tree = Tree(params)
        yield tree, "grads", [_whole(tree, {}, "")]


def _whole(tree: Tree, own: Options, label: str) -> _Given:
    return _Given(range(len(tree.leaves)), tree.params, own, label)


def _by_pattern(tree: Tree, given: Groups) -> Iterator[_Given]:
    for pattern, positions in given.members([leaf.name for leaf in tree.leaves]):
        own = {} if pattern is None else dict(given.settings[pattern])
        label = "" if pattern is None else f", pattern {pattern!r}"
        arrays_of = {tree.leaves[place].name: tree.leaves[place].array for place in positions}
        yield _Given(positions, arrays_of, own, label)


def _options(
    formula: type[Formula],
    tree: Tree,
    part: _Given,
    defaults: Options,
    master_weights: bool,
) -> ParamGroup:
    """Return the hyperparameters of one group, checked."""
    leaves = [tree.leaves[position] for position in part.positions]
    dtypes = {leaf.array.dtype: leaf.path for leaf in reversed(leaves)}

    def computed_in(options: Options) -> dict[np.dtype[Any], str]:
        state_dtype = options["state_dtype"]
        return {arithmetic_of(dtype, state_dtype): path for dtype, path in dtypes.items()}

    def check_eps(options: Options) -> None:
        _check_eps(formula, options, computed_in(options))

    def check_coefficients(options: Options) -> None:
        for real, path in computed_in(options).items():
            hyperparameters.check(formula, options, real, path)

    def check_order(options: Options) -> None:
        for leaf in leaves if options["bounds"] else ():
            if leaf.array.dtype.kind == "c":
                raise TypeError(
                    f"{formula.__name__}: bounds need real parameters, since complex numbers have "
                    f"no order; {leaf.path} is {leaf.array.dtype}"
                )

    def check_storage(options: Options) -> None:
        for leaf in leaves:
            _check_storage(formula.__name__, options, leaf, master_weights)

    def check_moment(options: Options) -> None:
        _check_moment(formula, options)

    checks = {
        "lr": Schedulable(NONNEGATIVE),
        **formula._checks,
        "weight_decay": Schedulable(NONNEGATIVE),
        "maximize": Flag(),
        "trainable": Flag(),
        "bounds": BoundsCheck(),
        "reset_at_bounds": Flag(),
        "state_dtype": Maybe(OneOf(STATE_DTYPES)),
        "stochastic_rounding": Flag(),
        "complex_moment": OneOf(("parts", MODULUS)),
        "seed": Whole(0, SEEDS - 1),
    }
    name = formula.__name__ + part.label
    options = ParamGroup(name, part.params, checks, [])
    options.reviews += [formula._review, check_eps, check_order, check_storage, check_moment]
    options.reviews += [check_coefficients]
    options.update({**SHARED_DEFAULTS, **defaults, **part.options})
    return options


def _check_moment(formula: type[Formula], options: Options) -> None:
    """Refuse averages of squared moduli where squares of something else are averaged too."""
    rule = formula._rule(options)
    other_squares = rule.averages_squares and not rule.squares
    if options["complex_moment"] == MODULUS and other_squares:
        raise ValueError(
            f"{formula.__name__}: complex_moment={MODULUS!r} is for optimizers in which squares of "
            "gradients alone are averaged (Adagrad, RMSprop without centered, Adam, AdamW); use "
            "'parts'"
        )


def _check_eps(
    formula: type[Formula], options: Options, computed_in: dict[np.dtype[Any], str]
) -> None:
    eps = options.get("eps")
    for real, path in computed_in.items():
        least = smallest_eps(real)
        if isinstance(eps, float) and 0.0 < eps < least:
            raise ValueError(
                f"{formula.__name__}: eps must be 0 or at least {least:.2g}, or it may underflow "
                f"in {real}, in which {path} is computed; got {eps}"
            )


def _check_storage(owner: str, options: Options, leaf: Leaf, master_weights: bool) -> None:
    """Raise ValueError for rounding that a parameter's dtype does not have."""
    format = Format.of(leaf.array.dtype, master_weights)
    if options["state_dtype"] not in (None, "float64") and format.real.itemsize != 4:
        raise ValueError(
            f"{owner}: state_dtype={options['state_dtype']!r} is for parameters that are computed "
            f"in float32; {leaf.path} is {leaf.array.dtype}. Put it into a group of its own with "
            "state_dtype=None"
        )
    if options["stochastic_rounding"] and format.master:
        raise ValueError(
            f"{owner}: stochastic_rounding is for parameters without master weights, and "
            f"{leaf.path}, which is {leaf.array.dtype}, has some; set master_weights=False"
        )


def _check_one_place(leaves: list[Leaf], asked: str) -> None:
    """Under a backend asked for by name, all arrays must be its kind and on one device."""
    if asked == "auto":
        return
    first = leaves[0]
    for leaf in leaves:
        backends.for_array(leaf.array, leaf.path, asked)
        if arrays.device(leaf.array) != arrays.device(first.array):
            raise BackendMismatchError(
                f"under backend {asked!r}, asked for by name, all parameters must be on one "
                f"device; {first.path} is on device {arrays.device(first.array)} and {leaf.path} "
                f"on device {arrays.device(leaf.array)}. Move one (cupy.asarray within the other's "
                "cupy.cuda.Device), or ask for backend 'auto', which updates each where it is."
            )
