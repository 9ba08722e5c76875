"""From what the user hands in to groups that are ready to step: everything is checked here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import arrays, backends, coefficients, param_group
from fastopt.bounds import BoundsCheck
from fastopt.errors import BackendMismatchError
from fastopt.extents import Extents
from fastopt.formats import STATE_DTYPES, Format, arithmetic_of
from fastopt.formula import Formula
from fastopt.group import Group
from fastopt.grouping import Grouping
from fastopt.hyperparameters import NONNEGATIVE, Flag, Maybe, OneOf, Schedulable, Whole
from fastopt.overlap import check_apart
from fastopt.param_group import Options, ParamGroup
from fastopt.patterns import Groups
from fastopt.precision import smallest_eps
from fastopt.random_bits import SEEDS
from fastopt.shared import MODULUS, SHARED_DEFAULTS
from fastopt.tree import Leaf, Tree


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
    elif param_group.are_given(params):
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
            coefficients.check(formula, options, real, path)

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
