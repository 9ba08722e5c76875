"""From what the user hands in to groups that are ready to step: everything is checked here."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import arrays, backends, param_group
from fastopt.arrays import Array
from fastopt.captured_steps import CapturableSteps
from fastopt.errors import BackendMismatchError
from fastopt.formula import Formula
from fastopt.gradient_policy import Seen
from fastopt.group import Group
from fastopt.hyperparameters import FINITE, NONNEGATIVE, Flag, Schedulable
from fastopt.on_device import OnDevice
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


def deciding_device(
    groups: list[Group], clock: Array, seen: Seen, capturable: bool
) -> OnDevice | None:
    """Return what steps are decided with, if all parameters are on one device that can; or None."""
    buckets = [bucket for group in groups for bucket in group.buckets]
    places = [arrays.device(bucket.parameters[0].flat) for bucket in buckets]
    if capturable and len(set(places)) > 1:
        raise ValueError(
            "capturable=True takes parameters on one CUDA device, or all on the host; these are "
            f"on {' and '.join(sorted('the host' if p is None else f'device {p}' for p in places))}"
        )
    control = buckets[0].backend.control(buckets[0].parameters[0].flat)
    if control is None or len(set(places)) > 1:
        return None
    return (CapturableSteps if capturable else OnDevice)(groups, clock, seen, control)


def checked_scale(scale: Any, deciding: OnDevice | None, on_nonfinite: str) -> tuple[Any, bool]:
    """Return what gradients are multiplied by, checked, and whether it is on the device."""
    if arrays.kind(scale) != "cupy":
        return FINITE("grad_scale", scale), False
    if deciding is None or on_nonfinite == "raise":
        raise TypeError(
            "grad_scale can be an array on a device where all parameters are CuPy arrays of one "
            "device and on_nonfinite is not 'raise'; here it must be a number"
        )
    if scale.shape != () or scale.dtype not in (np.float32, np.float64):
        raise TypeError(
            "grad_scale must be a number, or a CuPy array of shape () and dtype float32 or "
            f"float64; got {scale.dtype} {scale.shape}"
        )
    if arrays.device(scale) != deciding.device:
        raise BackendMismatchError(
            f"grad_scale must be on device {deciding.device}, as the parameters are; got one on "
            f"device {arrays.device(scale)}"
        )
    return scale, True


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
                f"{first.path} and {leaf.path} are on different devices; under a backend asked "
                "for by name all parameters must be on one (backend='auto' allows several)"
            )
