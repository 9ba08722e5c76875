"""What all optimizers share: what can be read and set, the step, and how it is saved and loaded."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np

from fastopt import backends
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Flag, Formula, whole
from fastopt.core.hyperparameters import Scheduled as Scheduled
from fastopt.core.options import GROUP_DEFAULTS, NonfinitePolicy
from fastopt.core.param_groups import GivenGroup, ParamGroups, shown_in
from fastopt.core.signals import Deferred
from fastopt.core.tree import Leaf, Tree
from fastopt.engine import build
from fastopt.engine.extra import NOTHING, Extra, check_taken, extra_of
from fastopt.engine.policy import (
    Outcome,
    Policy,
    checked_limit,
    checked_policy,
)
from fastopt.errors import CheckpointError

if TYPE_CHECKING:
    from fastopt.checkpoint.file import Companions, Content
    from fastopt.checkpoint.state_dict import LoadReport
    from fastopt.core.buckets import OptimizerState
    from fastopt.engine.step import HostEngine
    from fastopt.optimizers.explain import Explanation
    from fastopt.optimizers.summary import Summary

Result = TypeVar("Result")

Hook = Callable[["Optimizer"], object]
"""A function of the optimizer that is called around steps; what it returns is ignored."""


class Observer(ABC):
    """A hook that is shown the gradients: it stands in ``before_step`` and in ``after_step``.

    ``before`` is called in its place among the former, with what the step is handed, and the object
    itself in its place among the latter.
    """

    @abstractmethod
    def before(self, opt: Optimizer, grads: Any, grad_scale: Any) -> None:
        """Look at what a step begins with; the gradients are those of the optimizer's own step."""

    @abstractmethod
    def __call__(self, opt: Optimizer) -> None:
        """Look at what the step has made."""


Around = Callable[[Callable[[], Outcome]], Outcome]
"""Calls what makes a step, does what belongs to it before and after, and returns its outcome."""


class StateLock:
    """One lock for all that reads or writes an optimizer's state.

    Another thread waits for it. The same thread again, from a schedule or a signal's handler, is in
    the middle of something and must not go on: ``busy`` says so.
    """

    __slots__ = ("away", "busy", "lock")

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self.busy: bool = False
        self.away: bool = False
        """Whether parameters are elsewhere for the length of a block, all of which is busy."""

    def refuse(self) -> NoReturn:
        """Raise RuntimeError for a call from within another one."""
        if self.away:
            raise RuntimeError(
                "this optimizer's parameters are elsewhere until the block of ascent ends, which "
                "is for gradients alone; step, save and load after it"
            )
        raise RuntimeError(
            "this optimizer is in a step already, or is being saved or loaded, in this very "
            "thread: a schedule, a hook or the handler of a signal must not do that; do it between "
            "steps"
        )


def refuse_attribute(instance: Any, name: str, settings: list[str]) -> NoReturn:
    """Raise AttributeError for setting an attribute that a class does not have; say where to look.

    ``settings`` are the hyperparameters, which are set in a group.
    """
    said = f"{type(instance).__name__!r} object has no attribute {name!r}"
    public = [known for known in dir(type(instance)) if not known.startswith("_")]
    import difflib  # a millisecond

    meant = next(iter(difflib.get_close_matches(name, [*settings, *public], n=1)), None)
    if meant in settings and meant not in public:
        said += f"; hyperparameters are set by group: opt.param_groups[0][{meant!r}] = ..."
    elif meant:
        said += f"; did you mean {meant!r}?"
    raise AttributeError(said, name=name, obj=instance)


def _checked_hooks(name: str, hooks: Any) -> list[Hook]:
    if not isinstance(hooks, list) or not all(map(callable, hooks)):
        raise TypeError(
            f"{name} is a list of functions of the optimizer, to append to; got {hooks!r:.200}"
        )
    return hooks


def _taken_back(before: Array, leaf: Leaf) -> Array:
    """Return what was added to a parameter, and give it the values of before."""
    array = leaf.array
    with arrays.on_device_of(array), np.errstate(all="ignore"):
        if leaf.is_counter:
            before.fill(0)
            return before
        added: Array = array - before
        array[...] = before
    return added


def _with_parameters(construct: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that says what to write where it is called without parameters."""

    @wraps(construct)
    def init(self: Optimizer, *given: Any, **named: Any) -> None:
        if not given and "params" not in named:
            import inspect

            expected = inspect.signature(construct).parameters.get("params")
            if expected is not None and expected.default is expected.empty:
                raise TypeError(build.without_parameters(type(self).__name__, named))
        construct(self, *given, **named)

    return init


class Optimizer(Formula):
    """Base of all optimizers: holds the parameters and makes the steps.

    A subclass says which rule it uses and with what scalars; the manual's part Extend
    (``kernels/README.md``) shows how one is written.
    """

    _host_decides: bool = False
    """Whether the host decides on every step, wherever the parameters are."""

    def __init__(
        self,
        params: Any,
        *,
        max_grad_norm: float | None = None,
        on_nonfinite: NonfinitePolicy = "propagate",
        capturable: bool = False,
        master_weights: bool = True,
        backend: str | None = None,
        members: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        name = type(self).__name__
        self._state_lock = StateLock()
        captures = Flag()(f"{name}: capturable", capturable)
        self._policy = Policy(
            checked_limit(f"{name}: max_grad_norm", max_grad_norm),
            checked_policy(f"{name}: on_nonfinite", on_nonfinite, captures),
        )
        self._other_policy = self._policy, self._policy  # the own one, and that of a wrapper
        self._members = None if members is None else whole(f"{name}: members", members, 1)
        self._capturable = captures
        self._refuse_policy(self._policy)
        self._before_step: list[Hook] = []
        self._after_step: list[Hook] = []
        self._shown_as: Mapping[str, str] = {}
        self._made_with = build.Construction(
            hyperparameters,
            backends.requested(backend),
            Flag()(f"{name}: master_weights", master_weights),
            captures,
            self._members,
        )
        self._state, self._engine = build.build(type(self), params, self._made_with)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            cls.__init__ = _with_parameters(cls.__init__)  # type: ignore[method-assign]  # the same but for what it says

    if not TYPE_CHECKING:  # it would hold that every attribute can be set

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                state = vars(self).get("_state")
                refuse_attribute(self, name, [] if state is None else [*state.groups[0].plain])
            object.__setattr__(self, name, value)

    # The step -------------------------------------------------------------------------------

    def step(
        self,
        grads: Any,
        *,
        grad_scale: Any = 1.0,
        params: Any = None,
        value: Any = None,
        hessian: Any = None,
    ) -> Outcome:
        """Update all parameters in place; return what became of the step.

        ``grads`` is nested as the parameters were, mappings by key and sequences by position,
        whatever their classes (a list of such trees for a list of parameter groups). None leaves a
        parameter, its state and its step count alone, and so does ``trainable=False`` of its group,
        whatever the gradient is. The gradient of some rows of a parameter is a ``RowGrad``.
        Gradients are read in their own floating dtype where the
        arithmetic holds it, and converted to the parameter's otherwise; then they are multiplied by
        ``grad_scale``, before anything else. A complex parameter takes dL/dRe + i dL/dIm, as
        PyTorch has it; what ``grad`` of JAX and of autograd returns is the conjugate of that, so
        hand in ``conj(g)``. A step that raises has changed nothing. Another thread that steps,
        saves or loads meanwhile waits.

        The outcome is true if the step was made, and false if it was skipped
        (``on_nonfinite="skip"``); ``outcome.grad_norm`` is the norm before clipping, where it is
        measured.

        ``params`` are the parameters as the program has them now, nested as always: an array that
        is not the one in use any more, as after ``model.params = best``, is gone over to before the
        step (see ``rebind``), and stays in use even if the step raises. Without it a program that
        replaces arrays goes on with those that the optimizer was given.

        ``value`` is the loss that the gradients are of, for optimizers that step by it (MoMo) and
        for no others: a number or a 0-d array, on the device of the parameters or of NumPy. It is
        of the same scale as the gradients: it too is multiplied by ``grad_scale``, and not by what
        clips them. Where it is not finite ``on_nonfinite`` does what it does for a gradient.
        ``hessian`` are estimates of the Hessian's diagonal, for optimizers that take them (Sophia,
        AdaHessian) and for no others: nested as the gradients, checked as they are, multiplied by
        ``grad_scale`` too, and by nothing else. None, for all or for one parameter: what was handed
        in before goes on. It enters the state with the step, or not at all. Where the parameters
        are CuPy arrays the host decides on such a step: it waits for the device if anything is
        measured or counted there, and cannot be captured.

        Where the parameters are CuPy arrays nothing waits for the device, except under
        on_nonfinite="raise", and once when under "skip" other gradients are None than before, or a
        setting was changed that needs another kernel; the outcome is fetched when it is read.
        ``grad_scale`` may then be a 0-d CuPy array of float32 or float64, which is read on the
        device (under "raise" it must be a number). With max_grad_norm, "skip" or capturable=True
        schedules are asked for the values of steps that are still to come.

        Raises ValueError for another structure or shape, a gradient that shares memory with a
        parameter, or a schedule's value out of range; TypeError for gradients that are no real
        floating arrays; BackendMismatchError for gradients of another array kind or device;
        RuntimeError from within a step of this optimizer (a schedule, a signal's handler);
        FloatingPointError under ``on_nonfinite="raise"`` for a gradient with NaN or infinity, or
        with squares that do not fit.
        """
        self._go_over(params)
        if value is None and hessian is None:
            return self._step(grads, grad_scale, None)
        return self._step(grads, grad_scale, None, extra=Extra(value, hessian))

    def _go_over(self, params: Any) -> None:
        """Go over to the parameters as the program has them now; None: they are as they were."""
        if params is not None and not self._state.tree.holds(params):
            self.rebind(params)

    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome:
        """Make a step under another policy for gradients that are not finite (None: its own).

        ``around`` is what a wrapper does right before and after, between the hooks.
        """
        if extra is not NOTHING or self._takes_value:
            check_taken(type(self), extra)
        if self._before_step:
            self._call_before(grads, grad_scale)
        mutex = self._state_lock
        with mutex.lock:
            # A plain flag: an interrupt cannot come between it and the try.
            if mutex.busy:
                mutex.refuse()
            mutex.busy = True
            try:
                policy = self._policy
                if on_nonfinite is not None and on_nonfinite != policy.on_nonfinite:
                    policy = self._policy_with(on_nonfinite)
                # HostEngine of engine/step.py; for CuPy arrays DeviceEngine of engine/device.py.
                engine = self._engine
                if around is not None:  # all other steps do without one more call
                    outcome = around(lambda: self._make_step(grads, grad_scale, policy, extra))
                elif engine.later is None:
                    outcome = engine.step(grads, grad_scale, policy, extra)
                else:
                    later = engine.later
                    outcome = engine.step_and_go_over(later, grads, grad_scale, policy, extra)
            finally:
                mutex.busy = False
        if self._after_step:
            self._call(self._after_step)
        return outcome

    def _make_step(self, grads: Any, grad_scale: Any, policy: Policy, extra: Extra) -> Outcome:
        engine = self._engine
        if engine.later is None:
            return engine.step(grads, grad_scale, policy, extra)
        return engine.step_and_go_over(engine.later, grads, grad_scale, policy, extra)

    def _call_before(self, grads: Any, grad_scale: Any) -> None:
        for hook in [*self._before_step]:  # one may take itself off the list
            if isinstance(hook, Observer):
                hook.before(self, grads, grad_scale)
            else:
                hook(self)

    def _call(self, hooks: list[Hook]) -> None:
        for hook in [*hooks]:  # one may take itself off the list
            hook(self)

    @property
    def before_step(self) -> list[Hook]:
        """Functions of the optimizer that every step calls first, in this order: append to it.

        They may set hyperparameters and write into parameters. If one raises, no step is made. Of a
        step that is captured in a CUDA graph only the capture calls them.
        """
        return self._before_step

    @before_step.setter
    def before_step(self, hooks: list[Hook]) -> None:
        self._before_step = _checked_hooks("before_step", hooks)

    @property
    def after_step(self) -> list[Hook]:
        """Functions of the optimizer that every step calls last, made or skipped: append to it.

        They may do what can be done between steps: look at ``grad_norm``, write into parameters
        (a projection), save. If one raises, the step has been made. After a step that raised none
        is called.
        """
        return self._after_step

    @after_step.setter
    def after_step(self, hooks: list[Hook]) -> None:
        self._after_step = _checked_hooks("after_step", hooks)

    def updates(
        self, grads: Any, *, grad_scale: Any = 1.0, value: Any = None, hessian: Any = None
    ) -> Any:
        """Return what a step would add to the parameters, which stay as they are.

        All else is as after the step: state, step counts, schedules. The tree is nested as the
        parameters and holds new arrays of their shapes and dtypes, the difference of a parameter
        after and before the step, rounded to its dtype; zeros where no step was made. Adding it,
        ``p += u``, makes the step, to the last bit where a parameter does not change by more than a
        factor of two. Takes and raises what ``step`` does. It takes a copy of all parameters.

        Hooks are called as by a step; ``after_step`` finds the parameters as they were, and what it
        does to them is no part of the updates. Cannot be captured in a CUDA graph.
        """
        found: Any = None

        def keep(make: Callable[[], Outcome]) -> Outcome:
            nonlocal found
            tree = self._state.tree
            with Deferred():
                before = [arrays.copy_of(leaf.array) for leaf in tree.leaves]
                outcome = make()
                found = tree.nest(map(_taken_back, before, tree.leaves))
            return outcome

        self._step(grads, grad_scale, None, keep, extra_of(value, hessian))
        return found

    def explain(
        self, grads: Any, *, grad_scale: Any = 1.0, value: Any = None, hessian: Any = None
    ) -> Explanation:
        """Return what a step with these gradients would do, and why; nothing changes.

        ::

            why = opt.explain(grads)
            print(why)              # a table; in a notebook `why` alone, with rich rich.print(why)
            why["W1"].ratio         # the numbers, see ParameterStep
            for one in why.advice:  # what looks wrong, with a reason, a number and what to do
                print(one)

        Takes what ``step`` does. The step is made on a copy in host memory, by the NumPy backend,
        whose bits are those of the others (rules on whole arrays, such as Muon's, differ on a GPU
        in the last digits), so neither parameters nor state, counts and random bits change, nor
        what the optimizer has compiled or measured. It takes the memory of two copies of parameters
        and state, and of up to four of the largest array in float64, and far longer than a step.
        Hooks are not called; schedules are asked for the coming step's values. Where the parameters
        are CuPy arrays it waits for the device.

        Raises what ``step`` does for arguments that are no good. A NaN or an infinity in the
        gradients raises nothing: the explanation says what the step would do about it.
        """
        return self._explain(grads, grad_scale, None, extra_of(value, hessian))

    def _explain(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy | None, extra: Extra
    ) -> Explanation:
        """Explain a step under another policy for gradients that are not finite (None: its own)."""
        from fastopt.optimizers import explain  # milliseconds, which a program may do without

        check_taken(type(self), extra)
        policy = self._policy if on_nonfinite is None else self._policy_with(on_nonfinite)
        return explain.explained(self, grads, grad_scale, policy, extra)

    def summary(self) -> Summary:
        """Return what this optimizer is: settings, groups, arrays, bytes, backend and why.

        As data (``to_dict``), as a table (``print(opt.summary())``), as HTML in a notebook.
        """
        from fastopt.optimizers.summary import summary_of

        return summary_of(self)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def _policy_with(self, on_nonfinite: NonfinitePolicy) -> Policy:
        """Return the policy but for what gradients that are not finite do; made anew if need be."""
        own, other = self._other_policy
        if own is not self._policy or other.on_nonfinite != on_nonfinite:
            own, other = self._policy, self._policy._replace(on_nonfinite=on_nonfinite)
            self._refuse_policy(other)
            self._other_policy = own, other
        return other

    def _refuse_policy(self, policy: Policy) -> None:
        """Raise ValueError for a policy that members cannot have each by itself."""
        if self._members is None or not policy.measures:
            return
        why = None
        if self._estimate is not None:
            why = "an estimate of the Hessian is one of all"
        elif self._capturable:
            why = "the host judges members, so that no step is captured"
        if why is not None:
            raise ValueError(
                f"{type(self).__name__}: members are not clipped and not skipped here, since "
                f"{why}; leave out max_grad_norm={policy.max_grad_norm} and "
                f"on_nonfinite={policy.on_nonfinite!r}"
            )

    def _alone(self, work: Callable[[], Result]) -> Result:
        """Do something between two steps; other threads wait."""
        mutex = self._state_lock
        with mutex.lock:
            if mutex.busy:
                mutex.refuse()
            mutex.busy = True
            try:
                result = work()
            finally:
                mutex.busy = False
        return result

    def warmup(self) -> Self:
        """Compile now what steps would have to wait for; changes neither parameters nor state.

        Under "auto" an optimizer of NumPy arrays goes over to Numba here, instead of when its steps
        have taken as long as that does. Compiled code is kept on disk, so this takes long only once
        (about a second for a rule and dtype; after that some milliseconds). Returns the optimizer.
        """
        self._alone(lambda: self._engine.warm_up(self._policy))
        return self

    def gradient_buffers(self) -> Any:
        """Return a tree of arrays like the parameters, for a backward pass to write into.

        They have the parameters' shapes, dtypes and order in memory, lie in one block, are zero at
        first, and are the same arrays whenever this is called::

            grads = opt.gradient_buffers()
            np.matmul(x.T, error, out=grads["W"])
            opt.step(grads)

        A step with this tree only looks whether every leaf is still its buffer, which saves most of
        the host's work on many arrays. ``grads["W"] = ...`` without ``out`` or ``[...]`` puts
        another array there: the step refuses it by name (ValueError), unless all are others, which
        is an ordinary step; None stands for no gradient as always.

        Raises MemoryError (CuPy's OutOfMemoryError) if there is no room for them.
        """
        return self._alone(self._engine.gradient_buffers)

    # Other parameters ------------------------------------------------------------------------

    def rebind(self, params: Any) -> Self:
        """Go on with other arrays in the places of the parameters; their state goes on.

        For programs that replace arrays as a whole, ``model.params = best``, instead of writing
        into them. ``params`` is nested as the parameters were, of a list of groups a list of trees,
        with the same shapes and dtypes; arrays that are in use already stay, and the order in
        memory may be another one. Returns the optimizer.

        Gradient buffers of before are refused in later steps: ask for them again. An EMA that was
        made of arrays averages those: rebind it too, or make it of the optimizer, ``EMA(opt)``.

        Raises ValueError for another structure, shape or dtype, and for arrays that share memory;
        BackendMismatchError for arrays of another kind or device; RuntimeError once a step has been
        captured in a CUDA graph, which keeps the addresses. Nothing has changed then.
        """
        from fastopt.engine import parameters

        self._alone(lambda: parameters.rebind(self._state, self._engine, params))
        return self

    def resize(self, name: str, array: Any, keep: Any = None) -> Self:
        """Put an array with other rows in the place of one parameter, and take its state along.

        ::

            alive = np.flatnonzero(opacity > 0.01)
            opt.resize("xyz", np.concatenate([xyz[alive], new]), keep=alive)

        The first rows of the new array are those of the old one that ``keep`` names, in this order,
        and have their state; all further rows begin with fresh state. The step count of the
        parameter goes on. The array is put into the tree of parameters (``opt.params``), whose
        other arrays stay; what stands in a tuple cannot be replaced, and then ``opt.params`` is
        another tree. Returns the optimizer.

        Args:
            name: what the parameter is called in ``state_dict``, such as "layers.0.W".
            array: of the parameter's dtype and shape but for the first axis, on the same device.
            keep: the numbers of the old rows, of shape (rows,), each 0 or more; a number may come
                twice; or a mask of truth values, one for each old row. None: as many rows as both
                have, from the first on.

        Raises ValueError for another name, shape or dtype, rows that are not there, bounds that are
        arrays, and members; TypeError for what cannot be updated; BackendMismatchError for an array
        of another kind or device; RuntimeError once a step has been captured in a CUDA graph.
        Nothing has changed then.
        """
        from fastopt.engine import parameters

        def work() -> None:
            self._engine = parameters.resize(
                self._state, self._engine, self._made_with, name, array, keep
            )

        self._alone(work)
        return self

    def add_param_group(self, group: Mapping[str, Any]) -> Self:
        """Add a group of parameters, with hyperparameters of its own.

        ``group`` is a dict of "params", a tree of arrays, and hyperparameters; what it does not
        name is as the constructor had it. Afterwards the optimizer has a list of groups: gradients
        are a list with one tree for each, also where there was one tree before, and the names in
        ``state_dict`` begin with the number of the group ("0.W"). Returns the optimizer.

        Raises TypeError for what is no such dict; ValueError for an optimizer whose groups were
        made by pattern, for arrays that share memory with others, and for hyperparameters that are
        no good; RuntimeError once a step has been captured in a CUDA graph. Nothing has changed
        then.
        """
        from fastopt.engine import parameters

        def work() -> None:
            self._engine = parameters.add_group(self._state, self._engine, self._made_with, group)

        self._alone(work)
        return self

    def select(self, indices: Any) -> Self:
        """Keep some of the members alone (``members=``); their state and step counts go on.

        ::

            busy = np.flatnonzero(opt.grad_norm > 1e-6)
            opt.select(busy)
            x = opt.params  # new arrays, with a row for each member that is left

        The parameters, and whatever else there is of each member, become copies of these rows; the
        arrays of before stay as they are. An ``EMA`` and a ``Lookahead`` that stand around the
        optimizer go along. Returns the optimizer.

        Args:
            indices: the numbers of the members to keep, in the order in which they are to stand, at
                least one; negative ones count from the end. Or a mask of a truth value for each.

        Raises ValueError for numbers of members that are not there, and where there are none;
        RuntimeError once a step has been captured in a CUDA graph. Nothing has changed then.
        """
        from fastopt.engine import parameters

        rows = parameters.kept_members(self._members, indices, type(self).__name__)
        self._alone(self._engine.before_other_parameters)
        copied = parameters.of_members(self._copied(), rows)
        hooks, lock = (self._before_step, self._after_step), self._state_lock
        selections = (*self._state.tree.selections, tuple(rows.tolist()))
        self._become(copied)
        self._state.tree.selections = selections
        self._before_step, self._after_step = hooks
        self._state_lock = lock
        return self

    def refresh(self) -> Self:
        """Let steps that were captured in a CUDA graph go on by what has been set since.

        A captured step (``capturable=True``) reads on the device what it goes by: the step count,
        which every replay adds to, and the scalars of the coming steps. Call this after setting a
        hyperparameter, ``max_grad_norm`` or ``on_nonfinite``, and otherwise at least once in 65 536
        replays (never, if no hyperparameter is a schedule, nothing is rounded by chance and the
        bias corrections have come to their end): a replay without scalars does nothing, and makes
        the next read of ``step_count`` or ``state_dict`` raise RuntimeError. It waits for the
        device.

        A graph keeps the addresses of the gradients, so write into the same arrays; and it keeps
        ``grad_scale``, unless that is a 0-d CuPy array. Without ``capturable`` nothing happens.

        Example, where the gradients are computed in the graph too. What that allocates for a while
        (so does a sum with ``out``) the graph goes on using, so it is of a pool that is kept. CuPy
        lets neither cuBLAS (products of matrices) nor cuSOLVER, cuRAND and cuSPARSE be captured::

            stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
            opt.warmup()
            cupy.cuda.Device().synchronize()  # such a stream does not wait for others
            with stream, cupy.cuda.using_allocator(pool.malloc):
                stream.begin_capture()
                try:
                    work_out(grads)
                    opt.step(grads)
                finally:
                    graph = stream.end_capture()
            graph.launch(stream)  # as often as you like, with the pool alive

        Raises RuntimeError if the captured step cannot do what is asked for now, or while a
        stream is captured.
        """
        self._alone(lambda: self._engine.refresh(self._policy))
        return self

    # What can be read and set ---------------------------------------------------------------

    @property
    def params(self) -> Any:
        """The parameters as they were given; of a list of parameter groups, a list of trees."""
        return self._state.tree.params

    @property
    def param_groups(self) -> ParamGroups:
        """Of each group a dict with "params" and every hyperparameter, settable between steps.

        "params" is the tree of parameters as it was given, for groups made by pattern a dict of
        their arrays by name.
        """
        return self._state.groups

    @property
    def step_count(self) -> int:
        """How many steps have been made; where a device decides on it, this waits for it.

        With members, an array of how many each has made.
        """
        self._synchronize()
        return self._state.counts.made  # type: ignore[no-any-return]

    @property
    def _tree(self) -> Tree:
        """The parameters, as those that follow them see them."""
        return self._state.tree

    @property
    def _steps(self) -> int:
        """How many steps have been made; of members, those of whoever made most."""
        self._synchronize()
        return int(self._state.counts.steps[0])

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out for gradients that were not finite, or too large to square.

        On a device it is fetched when it is read here, which waits for the steps so far. With
        members, an array of how many each has left out.
        """
        self._synchronize()
        counts = self._state.counts
        if counts.members is not None:
            return counts.members.skipped.copy()  # type: ignore[return-value]
        return counts.skipped

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients, before clipping, also if that step was skipped.

        None before the first step, and where nothing asks for it: it is measured with
        max_grad_norm, and under on_nonfinite="skip" and "raise". On a device it is fetched when it
        is read here, which waits for the step. With members, an array of the norm of each.
        """
        self._synchronize(norm=True)
        counts = self._state.counts
        return counts.grad_norm if counts.members is None else counts.members.norms  # type: ignore[return-value]

    def _shown(self, leaf: Leaf) -> str:
        """Return what a parameter is called where it is shown: as in ``state_dict``, by default."""
        return self._shown_as.get(leaf.name, leaf.name)

    @property
    def _parameter_names(self) -> list[str]:
        """What the parameters are called where they are shown."""
        return [*map(self._shown, self._state.tree.leaves)]

    def _synchronize(self, norm: bool = False) -> None:
        if self._engine.device is not None:  # the host's counts can be read at any moment
            with self._state_lock.lock:
                self._engine.synchronize(norm)

    @property
    def max_grad_norm(self) -> float | None:
        """What the norm of all gradients together is scaled down to; settable between steps.

        None leaves the gradients as they are; math.inf too, but measures their norm.
        """
        return self._policy.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        limit = checked_limit(f"{type(self).__name__}: max_grad_norm", value)
        policy = self._policy._replace(max_grad_norm=limit)
        self._refuse_policy(policy)
        with self._state_lock.lock:
            self._engine.forget_norm()
            self._state.counts.forget_norm()
            self._policy = policy

    @property
    def on_nonfinite(self) -> NonfinitePolicy:
        """What gradients that do not fit do: "propagate", "skip" or "raise".

        They hold NaN or infinity, or are so large that their squares overflow float32.
        """
        return self._policy.on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: NonfinitePolicy) -> None:
        name = f"{type(self).__name__}: on_nonfinite"
        checked = checked_policy(name, value, self._capturable)
        policy = self._policy._replace(on_nonfinite=checked)
        self._refuse_policy(policy)
        with self._state_lock.lock:
            self._policy = policy

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph."""
        return self._capturable

    @property
    def backend(self) -> str:
        """The name of the backend at work; under "auto" it may be another one in a later step."""
        return self._engine.backend.name

    @property
    def lr(self) -> float:
        """The learning rate of the next step, before ``lr_scale``; setting it sets all groups'.

        Where groups differ in "lr" it is the first one's, and setting it raises ValueError.
        """
        group = self._state.groups[0]
        lr: float = group.value("lr", self._steps if group.scheduled else 0)
        return lr

    @lr.setter
    def lr(self, value: Scheduled) -> None:
        self._state.groups.set_rate(value)

    @property
    def _elsewhere(self) -> bool:
        """Whether parameters are other numbers for a while than those that steps go on from."""
        return self._state_lock.away

    @property
    def state_bytes(self) -> int:
        """The bytes of all state: scales, master weights and bounds that are arrays included."""
        return sum(bucket.nbytes for bucket in self._state.buckets)

    # What is remembered ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything the optimizer remembers, as a dict of plain values and NumPy arrays.

        ``{"fastopt": version, "optimizer": class name, "step_count": steps, "groups":
        [hyperparameters], "state": {name: {"step": steps, slot: array}}, "policy":
        {"max_grad_norm": ..., "on_nonfinite": ...}}``. The arrays are copies. "memory" is there too
        where the rule remembers numbers of all parameters together: their values by name.
        State in bfloat16 is an array of ml_dtypes' bfloat16; state in 8 bits is uint8 codes, with
        ``<slot>_scale``, a float32 for each 256 of them that are consecutive in memory, and with
        "order", the order of axes there, unless it is C order. Complex ones are pairs, a last axis.
        A schedule is no part of it (None stands in its place): it is a function of the step count.
        One with a memory, ``ReduceLROnPlateau``, has ``{"schedule": its state_dict}`` there. What
        the function was, in words, is in "described", a dict by hyperparameter for each group, so
        that a load can say which one is missing; so are bounds that are arrays, by their sha256.
        Groups made by pattern also have "params", the names of their parameters.
        """
        return self._alone(self._collect_state)

    def _collect_state(self) -> dict[str, Any]:
        from fastopt.checkpoint.state_dict import collect_state

        self._engine.synchronize()
        return collect_state(type(self).__name__, self._state, self._policy._asdict())

    def load_state_dict(
        self, saved: Mapping[str, Any], strict: bool = True, convert: bool = False
    ) -> LoadReport:
        """Take over a ``state_dict``, by the parameters' names; nothing is cast unasked.

        Names decide, so that a list of parameter groups and one tree exchange state: "0.W" and
        "1.b" are "W" and "b", or "encoder.W" and "decoder.b", of one tree, and the other way round;
        a name that could be several is an error that lists them.

        With ``convert=True`` state of another floating dtype is converted to the one in use, each
        value rounded once, and the report names it. Master weights that were not saved are made
        from the parameters as they are now; those that are not kept here are left out.

        Hyperparameters that are numbers are taken over too, and the report says which were others
        here. What stays as it is, and is said in the report too where it was saved otherwise: a
        schedule of this optimizer (one with a memory takes that over); what was a function, or
        bounds or lr_scale that were arrays, when it was saved, which is named as missing unless
        there is such a one here; whether there are bounds, and what acts around the rule, such as
        ``clip_value``, ``l1`` and ``mask_zero``; ``max_grad_norm`` and ``on_nonfinite``. Groups
        that were not those of the same parameters when the state was saved keep their own
        hyperparameters, likewise. ``state_dtype``, ``stochastic_rounding``, ``complex_moment`` and
        ``reset_at_bounds``, which the saved state depends on, must be those it was saved with.

        With ``strict=False`` parameters that one side lacks, or that have another shape or dtype
        there, keep the state they have, and so do schedules; the report names them. So do
        hyperparameters that another version has not saved, always. Raises CheckpointError, and
        changes nothing, if it is another optimizer's, or damaged, or does not fit by name, shape or
        dtype.
        """
        ask = Flag()("load_state_dict: convert", convert)
        return self._alone(lambda: self._restore_state(saved, strict, ask))

    def _restore_state(self, saved: Any, strict: bool, convert: bool) -> LoadReport:
        from fastopt.checkpoint import convert as conversion
        from fastopt.checkpoint import file, names, state_dict

        content = names.as_here(self._state.tree, saved, strict)
        content, changes = conversion.converted(self._state, content) if convert else (content, ())
        self._engine.before_load(state_dict.saved_steps(content))
        commit, differences = state_dict.state_restorer(
            type(self).__name__, self._state, self._policy._asdict(), content, strict
        )
        commit()
        self._engine.after_load(self._policy)
        return replace(file.report(content, differences), converted=changes)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        params: bool = True,
        also: Companions | None = None,
        notes: Mapping[str, Any] | None = None,
        keep_previous: bool = True,
    ) -> None:
        """Write everything the optimizer remembers to a file, whole or not at all.

        The file is a safetensors file with the parameters as ``param:<name>``, the state as
        ``state:<name>/<slot>``, and what they belong to as JSON in its metadata, with the sha256 of
        every array. It is written beside ``path``, flushed to the disk, read again, and moved into
        place: if that fails, or the process is killed, the file from before is as it was. Saving
        takes about twice the file's size in memory. What ``state_dict`` only describes is only
        described here too: schedules, bounds that are arrays. Names and notes that are too many for
        the metadata (100 MB) become an array of the file.

        Example:
            >>> import tempfile
            >>> import numpy as np
            >>> import fastopt
            >>> opt = fastopt.Adam({"w": np.ones(2)}, lr=0.1)
            >>> outcome = opt.step({"w": np.ones(2)})
            >>> again = fastopt.Adam({"w": np.zeros(2)}, lr=0.1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     opt.save(f"{folder}/run.safetensors", notes={"epoch": 3})
            ...     report = again.load(f"{folder}/run.safetensors")
            >>> report.notes, again.step_count, bool((again.params["w"] == opt.params["w"]).all())
            ({'epoch': 3}, 1, True)

        Args:
            path: the file, by custom ``*.safetensors``; a symbolic link is followed.
            params: store the parameters too.
            also: companions to store under these names: EMA, LossScaler, ReduceLROnPlateau, ...
            notes: a dict of your own, which ``load`` returns: the epoch, the state of a random
                generator. Values as in JSON, tuples, numbers of NumPy (they come back as Python's)
                and arrays.
            keep_previous: keep the file from before as ``<path>.prev``.

        Raises:
            OSError: for a full disk, a folder that is missing, a file that may not be written.
            TypeError, ValueError: for notes and companions that cannot be stored, more arrays than
                a file can list, and parameters that are no longer in the tree that the optimizer
                was given. Nothing is written then.
            RuntimeError: from within a step (a schedule, a signal's handler).
        """
        from fastopt.checkpoint import file  # it takes milliseconds

        def pack() -> bytes:
            return self._collect(params, also, notes, detached=False).packed()

        file.write(path, self._alone(pack), keep_previous)

    def _collect(
        self,
        params: bool,
        also: Companions | None,
        notes: Mapping[str, Any] | None,
        detached: bool,
    ) -> Content:
        from fastopt.checkpoint import file

        self._engine.synchronize()
        name, policy = type(self).__name__, self._policy._asdict()
        return file.collect(name, self._state, policy, params, also, notes, detached)

    def _detached(
        self, params: bool, also: Companions | None, notes: Mapping[str, Any] | None
    ) -> Content:
        """Return a copy of all that ``save`` writes, to be written later."""
        return self._alone(lambda: self._collect(params, also, notes, detached=True))

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        also: Companions | None = None,
        convert: bool = False,
    ) -> LoadReport:
        """Take over what ``save`` wrote, on whatever backend: all of it or, on an error, nothing.

        State and parameters are matched by name and not cast, unless ``convert`` asks for it.
        Parameters are written in place, if the file holds any. Hyperparameters are taken over,
        except schedules, as ``load_state_dict`` does it; ``max_grad_norm`` and ``on_nonfinite``
        stay. The report says all that was saved otherwise than it was here: print it.

        Args:
            path: the file.
            strict: raise if names, shapes or dtypes differ. Otherwise take what fits; the report
                says what was left as it was.
            also: the companions that were stored, under the same names.
            convert: take over parameters and state of another floating dtype, each value rounded
                once; the report names them. Master weights that were not saved are made from the
                saved parameters before these are rounded; a parameter without one here is made from
                the saved master weight. A number that is infinite in the dtype in use is an error.

        Returns:
            What was taken over, and the notes that were stored: print it, or look at its fields.

        Raises:
            CheckpointError: for a file that is damaged, cut off, no checkpoint, of a newer format,
                of another optimizer, or that does not fit. Of a file that is not whole it names
                ``<path>.prev``, if that is there; of a folder it names the checkpoints in it.
            FileNotFoundError, PermissionError, ...: for a file that cannot be opened.
            ValueError: for parameters that are no longer in the tree that the optimizer was given,
                or have become read-only.
            RuntimeError: from within a step (a schedule, a signal's handler).
        """
        from fastopt.checkpoint import file  # it takes milliseconds

        ask = Flag()("load: convert", convert)
        saved = file.read(path)

        def restore() -> LoadReport:
            commit, report = self._looked_at(saved, strict, also, ask)
            commit()
            self._engine.after_load(self._policy)
            return report

        try:
            return self._alone(restore)
        except CheckpointError as error:
            raise file.explained(path, error, whole=True) from error

    def _looked_at(
        self, saved: Any, strict: bool, also: Companions | None, convert: bool
    ) -> tuple[Callable[[], None], LoadReport]:
        """Look at all that is in a checkpoint; return what takes it over, and the report on that.

        ``after_load`` of the engine comes after the former.
        """
        from fastopt.checkpoint import file, names, state_dict

        content = names.as_here(self._state.tree, saved, strict)
        self._engine.before_load(state_dict.saved_steps(content))
        about = type(self).__name__, self._state, self._policy._asdict()
        return file.restorer(*about, content, strict, also, convert)

    def _remembered(self) -> dict[str, float]:
        """Return what the rule remembers of all arrays together, by name."""
        self._engine.synchronize()
        return dict(self._state.memory)

    def __repr__(self) -> str:
        groups = self._state.groups
        plain = groups[0].plain.items()
        # As text, since an array of one number for each member has no truth value.
        said = [(k, v) for k, v in plain if repr(v) != repr(GROUP_DEFAULTS.get(k, ...))]
        options = ", ".join(f"{k}={v!r}" for k, v in said)
        sizes = [leaf.array.size for leaf in self._state.tree.leaves]
        if self.max_grad_norm is not None:
            options += f", max_grad_norm={self.max_grad_norm!r}"
        several = f"{len(groups)} groups, " if len(groups) > 1 else ""
        return (
            f"<{type(self).__name__}({options}): {several}{len(sizes)} arrays, "
            f"{sum(sizes)} parameters, step {self._steps}, on {self.backend}>"
        )

    # Copies ----------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Say how a copy is made: of all that it is but its hooks, which may hold the optimizer."""
        return _copy_of, (type(self), self._copied()), (self._before_step, self._after_step)

    def __setstate__(self, hooks: tuple[list[Hook], list[Hook]]) -> None:
        """Give a copy its hooks."""
        self._before_step, self._after_step = hooks

    def _copied(self) -> dict[str, Any]:
        """Return what a copy is made of."""

        def collect() -> dict[str, Any]:
            self._engine.synchronize(norm=True)
            state = self._state
            counts = state.counts
            return {
                "params": state.tree.params,
                "grouped": state.tree.grouped,
                "groups": [
                    (list(g.positions), g["params"] is state.tree.params, g.plain, g.owner)
                    for g in state.groups
                ],
                "made_with": tuple(self._made_with),
                "policy": tuple(self._policy),
                "shown_as": dict(self._shown_as),
                "counts": (counts.skipped, counts.grad_norm, counts.members),
                "saved": self._collect_state(),
            }

        return self._alone(collect)

    def _become(self, copied: dict[str, Any]) -> None:
        """Be a copy of what another optimizer consisted of."""
        made_with, policy = build.Construction(*copied["made_with"]), Policy(*copied["policy"])
        self._begin(made_with, policy, *rebuilt(type(self), copied))
        self._shown_as = copied["shown_as"]

    def _begin(
        self,
        made_with: build.Construction,
        policy: Policy,
        state: OptimizerState,
        engine: HostEngine,
    ) -> None:
        """Consist of what an optimizer consists of; hooks are none, names as in ``state_dict``."""
        self._shown_as = {}
        self._state_lock = StateLock()
        self._made_with = made_with
        self._policy = policy
        self._other_policy = policy, policy
        self._members, self._capturable = made_with.members, made_with.capturable
        self._before_step, self._after_step = [], []
        self._state, self._engine = state, engine


def rebuilt(formula: type[Optimizer], copied: dict[str, Any]) -> tuple[OptimizerState, HostEngine]:
    """Return the state and the engine of what an optimizer consisted of (``_copied``)."""
    from fastopt.checkpoint import convert as conversion
    from fastopt.checkpoint import state_dict

    name = formula.__name__
    tree = Tree(copied["params"], copied["grouped"])
    groups = [
        GivenGroup(where, shown_in(tree, number, where, is_all), plain, owner[len(name) :])
        for number, (where, is_all, plain, owner) in enumerate(copied["groups"])
    ]
    made_with = build.Construction(*copied["made_with"])
    state, engine = build.assemble(formula, tree, groups, made_with)
    # A copied array may have another order in memory, in which coded state is stored.
    saved, _ = conversion.converted(state, copied["saved"])
    policy = Policy(*copied["policy"])._asdict()
    commit, _ = state_dict.state_restorer(name, state, policy, saved, strict=True)
    commit()
    counts = state.counts
    counts.skipped, counts.grad_norm, of_members = copied["counts"]
    if counts.members is not None:
        counts.members.skipped[:] = of_members.skipped
        counts.members.norms = of_members.norms
    return state, engine


def _copy_of(kind: type[Optimizer], copied: dict[str, Any]) -> Optimizer:
    """Return an optimizer that is a copy of another one."""
    made = kind.__new__(kind)
    made._become(copied)
    return made
