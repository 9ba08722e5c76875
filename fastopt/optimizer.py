"""What all optimizers share: parameters, hyperparameters, and the step that is checked first."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, ClassVar, NoReturn

from fastopt import arrays, backends, groups, state
from fastopt.buckets import Bucket
from fastopt.errors import BackendMismatchError
from fastopt.groups import Options, ParamGroup
from fastopt.hyperparameters import FINITE, NONNEGATIVE, Check, Flag, Schedulable
from fastopt.interrupts import Deferred
from fastopt.precision import Tiny, tiny
from fastopt.tree import Leaf, Tree, check_apart
from fastopt_kernels import Rule

LearningRate = float | Callable[[int], float]
"""A number, or a function of the step number (0 for the first step) that returns one."""


class Optimizer(ABC):
    """Base of all optimizers; a subclass says which rule it uses, and with what scalars.

    The subclass gives ``_checks`` for its own hyperparameters, ``_rule`` and ``_scalars``, and
    where they differ from the defaults here ``_floor``, ``_fill``, ``_review`` and ``_decoupled``.
    """

    _checks: ClassVar[Mapping[str, Check]] = {}
    _decoupled: ClassVar[bool] = False
    """Whether weight decay acts on the parameter, or as an L2 term on the gradient."""

    def __init__(self, params: Any, *, backend: str | None = None, **options: Any) -> None:
        self._lock = threading.Lock()
        self._step_count = 0
        self._backend = backends.requested(backend)
        self._all_checks: dict[str, Check] = {
            "lr": Schedulable(NONNEGATIVE),
            **self._checks,
            "weight_decay": Schedulable(NONNEGATIVE),
            "maximize": Flag(),
        }
        self._grouped = groups.are_given(params)
        self._trees: list[Tree] = []
        self._buckets: list[list[Bucket]] = []
        self.param_groups: list[ParamGroup] = []
        for number, given in enumerate(groups.split(params)):
            self._add_group(number, given, options)
        leaves = [leaf for tree in self._trees for leaf in tree.leaves]
        if not leaves:
            raise ValueError(f"{type(self).__name__} got no parameters; params holds no array")
        check_apart(leaves)
        self._check_one_device(leaves)
        for tree, group in zip(self._trees, self.param_groups, strict=True):
            self._buckets.append(self._make_buckets(tree, group))

    # What a subclass says -------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def _rule(options: Options) -> Rule:
        """Return the rule that these hyperparameters ask for."""

    @staticmethod
    @abstractmethod
    def _scalars(options: Options, lr: float, t: int, guard: float) -> dict[str, float]:
        """Return the rule's scalars in the t-th step (1 for the first) of a parameter.

        ``guard`` stands in for an eps of 0.
        """

    @staticmethod
    def _floor(options: Options) -> float:
        """Return the smallest denominator of an update; 1 if nothing is divided."""
        return 1.0

    @staticmethod
    def _fill(options: Options) -> dict[str, float]:
        """Return the value that state begins with, by slot, where it is not 0."""
        return {}

    @staticmethod
    def _review(options: Options) -> None:
        """Raise ValueError for hyperparameters that make no sense together."""

    # Construction ---------------------------------------------------------------------------

    def _add_group(self, number: int, given: Options, defaults: Options) -> None:
        root = f'params[{number}]["params"]' if self._grouped else "params"
        tree = Tree(given.pop("params"), root, f"{number}." if self._grouped else "")
        dtypes = {leaf.array.dtype for leaf in tree.leaves}

        def review(options: Options) -> None:
            self._review(options)
            eps = options.get("eps")
            for dtype in dtypes:
                if isinstance(eps, float) and eps > 0 and dtype.type(eps) == 0:
                    raise ValueError(
                        f"{type(self).__name__}: eps must not underflow to 0 in {dtype}; got {eps}"
                    )
            for bucket in self._buckets[number] if number < len(self._buckets) else ():
                if self._rule(options) is not bucket.rule:
                    raise ValueError(
                        f"{type(self).__name__}: this change needs other state (rule "
                        f"{self._rule(options).name}, not {bucket.rule.name}); "
                        "construct a new optimizer"
                    )

        params, options = tree.params, {**defaults, **given}
        name = type(self).__name__
        self.param_groups.append(ParamGroup(name, params, options, self._all_checks, review))
        self._trees.append(tree)

    def _check_one_device(self, leaves: list[Leaf]) -> None:
        """Under a backend asked for by name, all arrays must be where the first one is."""
        if self._backend == "auto":
            return
        first = leaves[0]
        for leaf in leaves:
            backends.for_array(leaf.array, leaf.path, self._backend)
            if arrays.device(leaf.array) != arrays.device(first.array):
                raise BackendMismatchError(
                    f"{first.path} and {leaf.path} are on different devices; under a backend "
                    "asked for by name all parameters must be on one (or use backend='auto')"
                )

    def _make_buckets(self, tree: Tree, group: ParamGroup) -> list[Bucket]:
        """Sort a group's leaves by device and dtype, and make a bucket of each sort."""
        rule, fill = self._rule(group), self._fill(group)

        def sort(position: int) -> tuple[int, str]:
            array = tree.leaves[position].array
            number = arrays.device(array)
            return (-1 if number is None else number, array.dtype.str)

        made = []
        for _, same in groupby(sorted(range(len(tree.leaves)), key=sort), sort):
            positions = list(same)
            leaves = [tree.leaves[position] for position in positions]
            backend = backends.for_array(leaves[0].array, leaves[0].path, self._backend)
            made.append(Bucket(backend, rule, leaves, positions, fill))
        return made

    # The step -------------------------------------------------------------------------------

    def step(self, grads: Any, *, grad_scale: float = 1.0) -> None:
        """Update all parameters in place.

        ``grads`` is nested as the parameters were (a list of such trees for parameter groups);
        None leaves a parameter, its state and its step count alone. Gradients are multiplied by
        ``grad_scale`` first. A step that raises has changed nothing.

        Raises ValueError for another structure or shape, a gradient that shares memory with a
        parameter, or a schedule's value out of range; TypeError for gradients that are no real
        floating arrays; BackendMismatchError for gradients of another array kind or device;
        RuntimeError if another thread is in a step of this optimizer.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "this optimizer is in a step already, in another thread; use one optimizer per "
                "thread, or a lock around its steps"
            )
        try:
            scale = FINITE("grad_scale", grad_scale)
            self._check(grads)
            self._plan(scale)
            with Deferred():
                for of_group in self._buckets:
                    for bucket in of_group:
                        bucket.update()
                self._step_count += 1
        finally:
            self._lock.release()

    def _check(self, grads: Any) -> None:
        """Look at all arrays of the step, before anything is written."""
        if not self._grouped:
            grads = (grads,)
        elif not isinstance(grads, list | tuple) or len(grads) != len(self._trees):
            raise ValueError(
                f"grads must be a list of {len(self._trees)} trees, one for each parameter group; "
                f"got {type(grads).__name__}"
            )
        for number, (tree, given) in enumerate(zip(self._trees, grads, strict=True)):
            root = f"grads[{number}]" if self._grouped else "grads"
            now, leaves = tree.current(), tree.match(given, root)
            for bucket in self._buckets[number]:
                bucket.check(now, leaves, root)

    def _plan(self, grad_scale: float) -> None:
        """Work out the step's scalars, in float64 on the host."""
        for group, of_group in zip(self.param_groups, self._buckets, strict=True):
            lr, decay = self._value(group, "lr"), self._value(group, "weight_decay")
            scale = -grad_scale if group["maximize"] else grad_scale
            l2, decay = (0.0, lr * decay) if self._decoupled else (decay, 0.0)
            for bucket in of_group:
                small = tiny(bucket.dtype, self._floor(group))
                common = (scale, l2, decay, small.signed, small.positive)
                bucket.plan(self._row(group, lr, bucket.rule, small, common))

    def _row(
        self, group: Options, lr: float, rule: Rule, small: Tiny, common: tuple[float, ...]
    ) -> Callable[[int], tuple[float, ...]]:
        def scalars(t: int) -> tuple[float, ...]:
            named = self._scalars(group, lr, t, small.guard)
            return (*common, *[named[name] for name in rule.scalars])

        return scalars

    def _value(self, group: Options, name: str) -> float:
        """Return a hyperparameter's value in the coming step, checked if a schedule gives it."""
        value = group[name]
        if not callable(value):
            return float(value)
        t = self._step_count
        return NONNEGATIVE(f"{type(self).__name__}: {name} at step {t}", value(t))

    # What can be read and set ---------------------------------------------------------------

    @property
    def step_count(self) -> int:
        """How many steps have been made."""
        return self._step_count

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group; setting it sets all groups'."""
        return self._value(self.param_groups[0], "lr")

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        checked = self._all_checks["lr"](f"{type(self).__name__}: lr", value)
        for group in self.param_groups:
            group["lr"] = checked

    def state_dict(self) -> dict[str, Any]:
        """Return everything the optimizer remembers, as a dict of plain values and NumPy arrays.

        ``{"fastopt": version, "optimizer": class name, "step_count": steps, "groups":
        [hyperparameters], "state": {name: {"step": steps, slot: array}}}``. The arrays are copies.
        A schedule is no part of it (None stands in its place): it is a function of the step count.
        """
        return state.collect(self)

    def load_state_dict(self, saved: Mapping[str, Any], strict: bool = True) -> None:
        """Take over a ``state_dict``, by the parameters' names; nothing is ever cast.

        With ``strict=False`` parameters that one side lacks keep the state they have. Raises
        CheckpointError, and changes nothing, if it is another optimizer's, or damaged, or does not
        fit by name, shape or dtype.
        """
        state.restore(self, saved, strict)

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.param_groups[0].options.items())
        leaves = [leaf.array for tree in self._trees for leaf in tree.leaves]
        used = sorted({bucket.backend.name for some in self._buckets for bucket in some})
        several = f"{len(self.param_groups)} groups, " if len(self.param_groups) > 1 else ""
        return (
            f"<{type(self).__name__}({options}): {several}{len(leaves)} arrays, "
            f"{sum(array.size for array in leaves)} parameters, step {self._step_count}, "
            f"on {' and '.join(used)}>"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: the copy would update arrays of "
            "its own, not the model's. Use state_dict and load_state_dict."
        )
