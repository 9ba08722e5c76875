"""From what the user hands in to groups that are ready to step: everything is checked here."""

from __future__ import annotations

from typing import Any

from fastopt import arrays, backends, param_group
from fastopt.errors import BackendMismatchError
from fastopt.formula import Formula
from fastopt.group import Group
from fastopt.hyperparameters import NONNEGATIVE, Flag, Schedulable
from fastopt.param_group import Options, ParamGroup
from fastopt.parameters import Extents
from fastopt.precision import smallest_eps
from fastopt.tree import Leaf, Tree, check_apart


def make_groups(formula: type[Formula], params: Any, defaults: Options, asked: str) -> list[Group]:
    """Return the groups of an optimizer; raises for arrays and hyperparameters that are no good."""
    grouped = param_group.are_given(params)
    parts = []
    for number, given in enumerate(params if grouped else [{"params": params}]):
        root = f'params[{number}]["params"]' if grouped else "params"
        tree = Tree(given["params"], root, f"{number}." if grouped else "")
        own = {name: value for name, value in given.items() if name != "params"}
        name = f"{formula.__name__}, params[{number}]" if grouped else formula.__name__
        parts.append((tree, _options(formula, tree, {**defaults, **own}, name)))
    leaves = [leaf for tree, _ in parts for leaf in tree.leaves]
    if not leaves:
        raise ValueError(f"{formula.__name__} got no parameters; params holds no array")
    check_apart(leaves)
    _check_one_place(leaves, asked)
    everywhere = Extents(leaves)
    roots = [f"grads[{number}]" if grouped else "grads" for number in range(len(parts))]
    return [
        Group(formula, tree, options, root, asked, everywhere)
        for (tree, options), root in zip(parts, roots, strict=True)
    ]


def _options(formula: type[Formula], tree: Tree, given: Options, name: str) -> ParamGroup:
    """Return the hyperparameters of one group, checked."""

    def check_eps(options: Options) -> None:
        _check_eps(formula, options, tree)

    checks = {
        "lr": Schedulable(NONNEGATIVE),
        **formula._checks,
        "weight_decay": Schedulable(NONNEGATIVE),
        "maximize": Flag(),
    }
    options = ParamGroup(name, tree.params, checks, [formula._review, check_eps])
    options.update(given)
    return options


def _check_eps(formula: type[Formula], options: Options, tree: Tree) -> None:
    eps = options.get("eps")
    for leaf in tree.leaves:
        least = smallest_eps(leaf.array.dtype)
        if isinstance(eps, float) and 0.0 < eps < least:
            raise ValueError(
                f"{formula.__name__}: eps must be 0 or at least {least:.2g}, or it may underflow "
                f"in {leaf.array.dtype}, the dtype of {leaf.path}; got {eps}"
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
