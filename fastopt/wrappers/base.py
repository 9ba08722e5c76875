"""The base of wrappers, which stand around an optimizer, and arrays beside the parameters."""

from __future__ import annotations

import html
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastopt.backends import array_namespace
from fastopt.core import arrays
from fastopt.core.arrays import Array, blocks
from fastopt.core.dtypes import wide
from fastopt.core.hyperparameters import Scheduled
from fastopt.core.options import NonfinitePolicy
from fastopt.core.param_groups import ParamGroups
from fastopt.core.saved import Resumable
from fastopt.core.tree import COUNTERS, Leaf, Tree
from fastopt.engine.extra import NOTHING, Extra, extra_of
from fastopt.engine.policy import Outcome
from fastopt.optimizers.base import Around, Hook, Optimizer, refuse_attribute

if TYPE_CHECKING:
    from fastopt.optimizers.explain import Explanation
    from fastopt.optimizers.summary import Summary

# -------------------------------------------------------------------------------------------------
# Arrays that stand beside the parameters, one for each: averages, sums, slow weights.


class CompanionArrays:
    """An array for each parameter: its shape and place, its dtype or float32 for half precision.

    They stand beside the parameters of a tree. ``own`` are such arrays, if they are there already.
    """

    def __init__(self, tree: Tree, own: list[Array] | None = None) -> None:
        self._tree = tree
        self.own: list[Array] = (
            [zeros_beside(leaf.array) for leaf in self.leaves] if own is None else own
        )

    @property
    def tree(self) -> Tree:
        """The tree of the parameters."""
        return self._tree

    @property
    def leaves(self) -> list[Leaf]:
        """The parameters."""
        return self._tree.leaves

    def stand_beside(self, tree: Tree) -> bool:
        """Go over to other arrays in the places of the parameters; False if these are others."""
        if tree is not self._tree:
            if not len(tree.leaves) == len(self.own) == len(self.staying(tree)):
                return False
            self._tree = tree
        return True

    def staying(self, tree: Tree) -> list[int]:
        """Return the positions of the parameters that have the rows in this tree that they had."""
        before = self._tree.resizes
        if tree.selections != self._tree.selections:
            return []
        return [
            k
            for k, (leaf, own) in enumerate(zip(tree.leaves, self.own, strict=False))
            if self.fits(leaf, own) and tree.resizes.get(k) == before.get(k)
        ]

    def chosen_rows(self, tree: Tree) -> dict[int, Array]:
        """Return which rows the members have here that this tree has, by position.

        It is empty if ``select`` has chosen none since.
        """
        known = len(self._tree.selections)
        later = tree.selections[known:]
        if not later or tree.selections[:known] != self._tree.selections:
            return {}
        rows = reduce(lambda chosen, some: tuple(chosen[k] for k in some), later)
        count = min(len(self.own), len(tree.leaves))
        return dict.fromkeys(range(count), np.asarray(rows, np.intp))

    def kept_rows(self, position: int, array: Array, keep: Any) -> Array:
        """Return the numbers of a parameter's rows that the first of another array are.

        See ``Optimizer.resize``. The rows are those that stand here, whatever the parameter is now.
        """
        from fastopt.engine import parameters  # where nothing is resized it is not needed

        leaf, shape = self.leaves[position], self.own[position].shape
        return parameters.kept_rows(leaf.name, leaf.array, shape, leaf.array.dtype, array, keep)

    @staticmethod
    def fits(leaf: Leaf, own: Array) -> bool:
        """Return whether an array can stand beside a parameter."""
        return leaf.array.shape == own.shape and _dtype_beside(leaf.array) == own.dtype

    @property
    def pairs(self) -> Iterator[tuple[Array, Array]]:
        """Each parameter with its array."""
        return zip((leaf.array for leaf in self.leaves), self.own, strict=True)

    @property
    def by_name(self) -> dict[str, Array]:
        """The arrays by the names of their parameters."""
        return {leaf.name: own for leaf, own in zip(self.leaves, self.own, strict=True)}

    def nest(self, values: Iterable[Any]) -> Any:
        """Return one value per parameter as the parameters are nested; of groups, a list."""
        return self._tree.nest(values)

    def take_parameters(self) -> None:
        """Copy the parameters."""
        for param, own in self.pairs:
            move(own, param, 1.0)

    def take_saved(self, saved: Mapping[str, Array]) -> None:
        """Copy saved arrays, which are known to fit."""
        by_name = self.by_name
        for name, values in saved.items():
            own = by_name[name]
            with arrays.on_device_of(own):
                own[...] = arrays.like(values, own)

    def on_host(self) -> dict[str, Array]:
        """Return copies by name, as NumPy arrays."""
        return {name: arrays.on_host(own) for name, own in self.by_name.items()}

    def check_writeable(self) -> None:
        """Raise ValueError if a parameter can no longer be written."""
        for leaf in self.leaves:
            if not getattr(leaf.array.flags, "writeable", True):
                raise ValueError(f"{leaf.path} has become read-only; it is written in place here")


def zeros_beside(array: Array) -> Array:
    """Return zeros of an array's shape and place, in its order in memory but without gaps."""
    with arrays.on_device_of(array):
        zeros = array_namespace(array).zeros(array.size, _dtype_beside(array))
    return arrays.layout_of(array).in_shape(zeros)


def _dtype_beside(array: Array) -> np.dtype[Any]:
    """Return the dtype of what stands beside an array; counters stay what they are."""
    return array.dtype if array.dtype.kind in COUNTERS else wide(array.dtype)


def move(own: Array, target: Array, share: float) -> None:
    """Go a share of the way to a target: own <- own + share * (target - own)."""
    with arrays.on_device_of(own):
        for mine, there in blocks(own, target):
            if share == 1.0:  # exactly, and whatever stood here before
                mine[...] = there.astype(own.dtype, copy=False)
                continue
            way = there.astype(own.dtype, copy=False) - mine
            way *= share
            mine += way


# -------------------------------------------------------------------------------------------------
# Base of what stands around an optimizer and makes its steps.


class Wrapper(Resumable):
    """Steps an optimizer, or another wrapper, and passes on what can be read and set."""

    def __init__(self, opt: Optimizer | Wrapper) -> None:
        name = type(self).__name__
        if not isinstance(opt, Optimizer | Wrapper):
            raise TypeError(
                f"{name} takes an optimizer, as fastopt.{name}(fastopt.Adam(params)); "
                f"got {type(opt).__name__}"
            )
        self._opt = opt
        self._innermost: Optimizer = opt.innermost if isinstance(opt, Wrapper) else opt

    if not TYPE_CHECKING:  # it would hold that every attribute can be set

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                refuse_attribute(self, name, [])
            super().__setattr__(name, value)

    @property
    def opt(self) -> Optimizer | Wrapper:
        """What it stands around."""
        return self._opt

    @property
    def innermost(self) -> Optimizer:
        """The optimizer that all wrappers around it step in the end."""
        return self._innermost

    @property
    def _lock(self) -> threading.RLock:
        """The optimizer's lock, which what the wrapper remembers is read and written under too."""
        return self._innermost._state_lock.lock

    @property
    def _tree(self) -> Tree:
        """The optimizer's parameters: another tree once they were rebound, resized or added to."""
        return self._opt._tree

    @property
    def _host_decides(self) -> bool:
        """Whether the host decides on every step, wherever the parameters are."""
        return self._opt._host_decides

    @abstractmethod
    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome | None:
        """Make a step as ``Optimizer._step`` does; None if only something was added up."""

    def explain(
        self, grads: Any, *, grad_scale: Any = 1.0, value: Any = None, hessian: Any = None
    ) -> Explanation:
        """Return what the optimizer's step with these gradients would do; see its ``explain``.

        It is the optimizer's own step that is explained: what stands around it acts on these
        gradients, if it does, and not on what comes after the step.
        """
        return self._explain(grads, grad_scale, None, extra_of(value, hessian))

    def _explain(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy | None, extra: Extra
    ) -> Explanation:
        return self._opt._explain(grads, grad_scale, on_nonfinite, extra)

    def summary(self) -> Summary:
        """Return what the optimizer is; see its ``summary``."""
        return self._opt.summary()

    def _repr_html_(self) -> str:
        around = repr(self).partition(" of <")[0].lstrip("<")
        return f"<div>{html.escape(around)} of</div>{self._opt._repr_html_()}"

    def _go_over(self, params: Any) -> None:
        """Go over to the parameters as the program has them now; None: they are as they were."""
        if params is not None and not self._tree.holds(params):
            self.rebind(params)

    def rebind(self, params: Any) -> Self:
        """Do what the optimizer's ``rebind`` does; return the wrapper."""
        self._opt.rebind(params)
        return self

    def _refuse_to_skip_members(self, policy: NonfinitePolicy | None, why: str) -> None:
        """Raise ValueError where single members can be left out of a step."""
        if self._innermost._members is not None and (policy or self.on_nonfinite) == "skip":
            raise ValueError(
                f"{type(self).__name__}: {why}, so no member can be left out alone; set "
                "opt.on_nonfinite to 'propagate' or 'raise', or make an optimizer for each member"
            )

    def resize(self, name: str, array: Any, keep: Any = None) -> Self:
        """Do what the optimizer's ``resize`` does; return the wrapper."""
        self._opt.resize(name, array, keep)
        return self

    def add_param_group(self, group: Mapping[str, Any]) -> Self:
        """Do what the optimizer's ``add_param_group`` does; return the wrapper."""
        self._opt.add_param_group(group)
        return self

    @property
    def params(self) -> Any:
        """The parameters as the optimizer has them; of a list of groups, a list of trees."""
        return self._opt.params

    @property
    def before_step(self) -> list[Hook]:
        """What every step of the innermost optimizer calls first, with that; append to it."""
        return self._opt.before_step

    @before_step.setter
    def before_step(self, hooks: list[Hook]) -> None:
        self._opt.before_step = hooks

    @property
    def after_step(self) -> list[Hook]:
        """What every step of the innermost optimizer calls last, with that; append to it."""
        return self._opt.after_step

    @after_step.setter
    def after_step(self, hooks: list[Hook]) -> None:
        self._opt.after_step = hooks

    @property
    def lr(self) -> float:
        """The optimizer's ``lr``, of its next step; can be set."""
        return self._opt.lr

    @lr.setter
    def lr(self, value: Scheduled) -> None:
        self._opt.lr = value

    @property
    def step_count(self) -> int:
        """How many steps the optimizer has made."""
        return self._opt.step_count

    @property
    def skipped_steps(self) -> int:
        """How many steps the optimizer has left out for what was in the gradients."""
        return self._opt.skipped_steps

    @property
    def on_nonfinite(self) -> NonfinitePolicy:
        """What gradients that do not fit do in the optimizer's step."""
        return self._opt.on_nonfinite

    @property
    def param_groups(self) -> ParamGroups:
        """The optimizer's parameter groups."""
        return self._opt.param_groups

    @abstractmethod
    def _made_with(self) -> dict[str, Any]:
        """Return the arguments of the constructor beside the optimizer."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of, the optimizer included."""
        with self._lock:
            return {"opt": self._opt, "made_with": self._made_with(), "saved": self.state_dict()}

    def __setstate__(self, copied: dict[str, Any]) -> None:
        """Make a copy of what another wrapper consisted of."""
        type(self).__init__(self, copied["opt"], **copied["made_with"])
        self.load_state_dict(copied["saved"])
