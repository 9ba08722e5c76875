"""EMA: an average of the parameters to evaluate with; Lookahead: k steps forward, a part back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import BLOCK, Array, Layout, blocks
from fastopt.core.buckets import merge
from fastopt.core.dtypes import wide
from fastopt.core.hyperparameters import FRACTION, Flag, Number, whole
from fastopt.core.options import NonfinitePolicy
from fastopt.core.param_groups import tree_of
from fastopt.core.saved import Resumable, Saved
from fastopt.core.signals import Deferred
from fastopt.core.tree import COUNTERS, Leaf, Tree
from fastopt.engine.build import check_leaves
from fastopt.engine.extra import NOTHING, Extra, extra_of
from fastopt.engine.policy import Outcome
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Around, Optimizer
from fastopt.optimizers.schedule_free import ScheduleFree
from fastopt.wrappers.base import CompanionArrays, Wrapper, move, zeros_beside

# -------------------------------------------------------------------------------------------------
# EMA: an exponential moving average of the parameters, to evaluate with.


class EMA(Resumable):
    """Average of parameters, exponential or of all alike, updated after each step.

    ::

        avg <- p                                         at the first update
        avg <- avg + (1 - d) * (p - avg)                 at each later one

        d = decay; with warmup min(decay, n / (9 + n)); for decay="mean" n / (n + 1)
        where n = 1, 2, ... is the number of updates before this one

    The average begins with the values that the parameters have at the first update, so weights that
    are loaded before it are what is averaged. Weights that are loaded later leave it as it is: it
    still holds those from before. Load the average with them (``opt.load(path, also={"ema":
    ema})``), or begin anew with ``reset()``.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> x = np.zeros(2)
        >>> opt = fastopt.SGD(x, lr=1.0)
        >>> ema = fastopt.EMA(opt, decay=0.5)
        >>> for _ in range(2):
        ...     outcome = opt.step(np.full(2, -1.0))
        ...     ema.update()
        >>> x, ema.average
        (array([2., 2.]), array([1.5, 1.5]))
        >>> with ema.swap():  # the average in the place of the parameters
        ...     x.tolist()
        [1.5, 1.5]

    Args:
        params: an array, a tree of arrays or a list of parameter groups, as an optimizer takes
            them; they are written only by ``swap``. Leaves of integers or truth values (counters)
            may be among them: their average is a copy of what they were at the last update. Or an
            optimizer, or what stands around one: then its parameters are averaged, whichever it has
            at the time.
        decay: share of the average that is kept, in [0, 1), or "mean", by which all updates count
            alike (stochastic weight averaging).
        warmup: keep less of it in the first updates, so that the start is forgotten sooner.

    Raises:
        ValueError, TypeError: for a decay out of range, for a warmup of "mean", and for parameters
            that an optimizer would refuse.

    Where a program replaces arrays as a whole, an EMA that was made of arrays has to be told:
    ``update(params)``, ``rebind``, ``resize``. One that was made of an optimizer follows it through
    ``rebind``, ``step(grads, params=...)``, ``resize`` and ``add_param_group``: averages go on, but
    for a parameter that was resized or added, whose average begins anew at its present value
    (``resize`` keeps that of kept rows). Copied or pickled, it takes its optimizer along.

    Averages are kept in the parameter's dtype, those of float16 and bfloat16 in float32, where a
    share of 0.001 is not rounded away. A NaN in a parameter stays in its average (unless decay is
    0).

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), in
    its exponential form; results as torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn
    gives, and for "mean" without (Izmailov et al., "Averaging Weights Leads to Wider Optima and
    Better Generalization", 2018). The warmup is that of tf.train.ExponentialMovingAverage with
    num_updates, counted from the first update after the one that copies.
    """

    def __init__(self, params: Any, decay: float | str = 0.999, *, warmup: bool = False) -> None:
        self._decay = _checked_decay(decay)
        self._warmup = Flag()("EMA: warmup", warmup)
        if self._warmup and self._decay is None:
            raise ValueError(
                'EMA: warmup=True has no meaning with decay="mean", by which all updates count '
                "alike; leave it out"
            )
        opt = params if isinstance(params, Optimizer | Wrapper) else None
        self._opt = opt
        self._innermost: Optimizer | None = opt.innermost if isinstance(opt, Wrapper) else opt
        """The optimizer that it follows; None: it was made of arrays."""
        if self._innermost is None:
            tree = tree_of(params)
            check_leaves(tree, "EMA", counters=True)
            self._lock = threading.RLock()
            """Held by all that writes the averages or copies them: another thread waits."""
        else:
            tree = self._followed()
            self._lock = self._innermost._state_lock.lock
        self._arrays = CompanionArrays(tree)
        self._average = self._arrays.nest(self._arrays.own)
        self._updates = 0
        self._swapped = False

    @property
    def average(self) -> Any:
        """The averages: arrays nested as the parameters are, which every update changes.

        For parameter groups a list with one tree per group. Before the first update they hold the
        parameters as they are when this is read; inside ``swap`` they hold the parameters. After
        parameters were resized or added this is another tree.
        """
        with self._lock:
            self._follow_tree()
            self._follow_until_begun()
            return self._average

    @property
    def updates(self) -> int:
        """How many updates have been made since the average began."""
        return self._updates

    @property
    def decay(self) -> float:
        """The share of the average that the next update keeps: 0.0 for the first one."""
        n = self._updates
        if n == 0:
            return 0.0
        if self._decay is None:
            return n / (n + 1)
        return min(self._decay, n / (9 + n)) if self._warmup else self._decay

    def update(self, params: Any = None) -> None:
        """Take the parameters as they are now into the averages.

        ``params`` are the parameters as the program has them now, nested as always: arrays that are
        not the ones in use, as after ``model.params = best``, are gone over to before (see
        ``rebind``). Without it only what is replaced inside the tree that was given is noticed. It
        may be the optimizer that has them, so that ``opt.after_step.append(ema.update)`` will do.

        Raises RuntimeError inside ``swap``, and while a schedule-free optimizer that it follows or
        that is handed in is in eval mode; ValueError if a parameter is no longer the array that was
        given, or has another shape.
        """
        with self._lock:
            self._refuse_if_swapped("update")
            self._refuse_in_eval("update", params)
            own = self._opt is not None and (params is self._innermost or params is self._opt)
            if own:
                params = None  # what it follows, whose hook it may be
            elif isinstance(params, Optimizer | Wrapper):
                params = params.params
            if params is None:
                self._check_parameters()
            else:
                self._follow_tree()
                if not self._arrays.tree.holds(params):
                    self.rebind(params)
                self._check_shapes()
            n = self._updates
            share = 1 / (n + 1) if self._decay is None else 1.0 - self.decay
            with Deferred(), np.errstate(all="ignore"):
                for param, average in self._arrays.pairs:
                    move(average, param, 1.0 if average.dtype.kind in COUNTERS else share)
                self._updates += 1

    def reset(self) -> None:
        """Forget the average: it begins anew at the next update. RuntimeError inside ``swap``."""
        with self._lock:
            self._refuse_if_swapped("reset")
            self._updates = 0

    def rebind(self, params: Any) -> Self:
        """Average other arrays in the places of the parameters; the averages go on.

        For programs that replace arrays as a whole, as ``Optimizer.rebind``. ``params`` is nested
        as the parameters were (of a list of groups also a list of trees), with the same shapes and
        dtypes. Returns the EMA. Raises ValueError for others, BackendMismatchError for arrays of
        another kind or device, RuntimeError inside ``swap``; nothing has changed then.

        An EMA that was made of an optimizer has gone over by itself: ValueError for other arrays.
        """
        if self._innermost is not None:
            with self._lock:
                self._refuse_if_swapped("rebind")
                self._follow_tree()
                if not self._arrays.tree.holds(params):
                    raise ValueError(
                        "EMA: these are not the arrays of the optimizer that it follows; call "
                        "opt.rebind(params), or opt.step(grads, params=params), before"
                    )
            return self
        from fastopt.engine import parameters  # where nothing is replaced it is not needed

        others = (
            "For others make a new EMA; EMA(opt) follows an optimizer that parameters are added to"
        )
        ours = parameters.Follower("EMA: ", "ema", others)
        tree = parameters.nested_alike(self._arrays.tree, params, ours)
        check_leaves(tree, "EMA", counters=True)
        for old, own, new in zip(self._arrays.leaves, self._arrays.own, tree.leaves, strict=True):
            parameters.check_like(old, new, own.shape, old.array.dtype, ours)
        with self._lock:
            self._refuse_if_swapped("rebind")
            self._arrays.stand_beside(tree)
        return self

    def resize(self, name: str, array: Any, keep: Any = None) -> Self:
        """Go over to an array with other rows; those that are kept keep their averages.

        ::

            opt.resize("xyz", new, keep=alive)
            ema.resize("xyz", new, keep=alive)

        The arguments are those of ``Optimizer.resize``: the first rows of the new array are those
        of the old one that ``keep`` names, and their averages go on; those of further rows begin at
        the values that these have now. The array is put into the tree of parameters. Of an EMA that
        was made of an optimizer, call it after each ``opt.resize``, before anything else is done
        with the EMA, which would begin the averages of all rows anew. Returns the EMA.

        Raises ValueError for another name, shape or dtype, rows that are not there, and where an
        EMA that follows has gone over already, or its optimizer has not; TypeError for what cannot
        be averaged; BackendMismatchError for an array of another kind or device; RuntimeError
        inside ``swap``. Nothing has changed then.
        """
        from fastopt.engine import parameters  # where nothing is resized it is not needed

        with self._lock:
            self._refuse_if_swapped("resize")
            before = self._arrays
            theirs = None if self._innermost is None else self._followed()
            position = parameters.position_of(theirs or before.tree, name)
            if theirs is not None:
                self._refuse_to_resize(theirs, position, array)
            tree = before.tree.with_array(position, array)
            rows = before.kept_rows(position, array, keep)
            check_leaves(tree, "EMA", counters=True)
            with Deferred():
                if theirs is None:
                    tree.put(position)
                self._begin_others(tree, {position: rows})
        return self

    def _refuse_to_resize(self, theirs: Tree, position: int, array: Any) -> None:
        """Raise ValueError unless the optimizer has gone over to the array, once, and this not."""
        leaf, ours = theirs.leaves[position], self._arrays.tree.resizes.get(position, 0)
        if leaf.array is not array:
            raise ValueError(
                f"EMA: {leaf.path} is another array in the optimizer that it follows; call "
                f"opt.resize({leaf.name!r}, array, keep) before, with the same array"
            )
        if position >= len(self._arrays.own) or theirs.resizes.get(position, 0) - ours != 1:
            raise ValueError(
                f"EMA: the average of {leaf.path} does not have the rows of before the optimizer's "
                "last resize; call ema.resize right after every opt.resize. It goes on as it is: "
                "what was resized meanwhile begins at its present values"
            )

    def _followed(self) -> Tree:
        """Return the parameters of the optimizer that is followed: all of them, on every rank."""
        assert self._opt is not None
        return self._opt._tree

    def _follow_tree(self) -> None:
        """Go over to the parameters that the optimizer has now, if it follows one."""
        if self._innermost is None or self._swapped:
            return
        tree = self._followed()
        if not self._arrays.stand_beside(tree):
            with Deferred():
                self._begin_others(tree, self._arrays.chosen_rows(tree))

    def _begin_others(self, tree: Tree, kept: Mapping[int, Array]) -> None:
        """Go over to parameters of which some have other rows, or are new: these begin anew.

        ``kept`` are the numbers of the rows that the first ones of a parameter were, by position.
        """
        before, stay = self._arrays, {*self._arrays.staying(tree)}
        own = [
            before.own[k] if k in stay else zeros_beside(leaf.array)
            for k, leaf in enumerate(tree.leaves)
        ]
        for k, leaf in enumerate(tree.leaves):
            if k not in stay:
                move(own[k], leaf.array, 1.0)
        for k, rows in kept.items():
            with arrays.on_device_of(own[k]):
                merge(own[k], before.own[k], rows)
        self._arrays = CompanionArrays(tree, own)
        self._average = self._arrays.nest(own)

    def _check_parameters(self) -> None:
        """Raise ValueError if the user's trees no longer hold the arrays that were handed in."""
        self._follow_tree()
        tree = self._arrays.tree
        for leaf, now in zip(tree.leaves, tree.everything(), strict=True):
            if now is not leaf.array:
                follows = self._innermost is not None
                to_call = "opt.rebind(params), which it follows" if follows else "rebind(params)"
                raise ValueError(
                    f"{leaf.path} is no longer the array that the EMA was given. Write into it "
                    f"(params[...][...] = value), or let it go over to the new one: {to_call}."
                )
        self._check_shapes()

    def _check_shapes(self) -> None:
        """Raise ValueError if an array has been resized in memory."""
        for leaf, own in zip(self._arrays.leaves, self._arrays.own, strict=True):
            if not CompanionArrays.fits(leaf, own):
                first = "" if self._innermost is None else f"opt.resize({leaf.name!r}, array), and "
                raise ValueError(
                    f"{leaf.path} had the shape {own.shape} when the EMA was made; got "
                    f"{leaf.array.dtype} of shape {leaf.array.shape}. Call "
                    f"{first}ema.resize({leaf.name!r}, array, keep=rows)."
                )

    def _follow_until_begun(self) -> None:
        """Copy the parameters while there is no average yet."""
        if self._updates == 0 and not self._swapped:
            with Deferred():
                self._arrays.take_parameters()

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Exchange parameters and averages, in place, for the length of a ``with`` block.

        They are exchanged back also if the block raises. Write nothing into them inside, and step
        no optimizer. Raises RuntimeError and ValueError as ``update`` does, ValueError also
        for a read-only parameter.
        """
        with self._lock:
            self._refuse_if_swapped("swap")
            self._refuse_in_eval("swap")
            self._check_parameters()
            self._arrays.check_writeable()
            self._follow_until_begun()
        kept = self._lost_in_half_precision()
        try:
            with self._lock, Deferred():
                self._exchange()
                self._swapped = True
            yield
        finally:
            interrupt: KeyboardInterrupt | None = None
            while self._swapped:
                try:
                    self._exchange_back(kept)
                except KeyboardInterrupt as error:  # it waits until all is back
                    interrupt = error
            if interrupt is not None:
                raise interrupt

    def _lost_in_half_precision(self) -> dict[int, Array]:
        """Return copies of the averages that being a parameter for a while would round."""
        kept = {}
        for k, (param, average) in enumerate(self._arrays.pairs):
            if param.dtype != average.dtype:
                with arrays.on_device_of(average):
                    kept[k] = average.copy()
        return kept

    def _exchange_back(self, kept: Mapping[int, Array]) -> None:
        with self._lock, Deferred():
            self._exchange()
            for k, values in kept.items():
                with arrays.on_device_of(values):
                    self._arrays.own[k][...] = values
            self._swapped = False

    def _exchange(self) -> None:
        with np.errstate(all="ignore"):
            for param, average in self._arrays.pairs:
                with arrays.on_device_of(param):
                    for one, other in blocks(param, average):
                        was = one.astype(other.dtype)
                        one[...] = other.astype(one.dtype)
                        other[...] = was

    def _refuse_in_eval(self, what: str, given: Any = None) -> None:
        opt = given.innermost if isinstance(given, Wrapper) else given
        for one in (self._innermost, opt):
            if isinstance(one, ScheduleFree) and not one.training:
                raise RuntimeError(
                    f"EMA: {what} while {type(one).__name__} is in eval mode, where the parameters "
                    "are its averages x and not those of training; call opt.train() before. To "
                    "evaluate with it no EMA is needed: x is an average already"
                )

    def _refuse_if_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"EMA: {what} inside a swap, where the parameters are the averages; "
                "leave the with block first"
            )

    def _remembered(self) -> dict[str, Any]:
        with self._lock:
            self._refuse_if_swapped("state_dict")
            self._follow_tree()
            self._follow_until_begun()
            return {"updates": self._updates, "average": self._arrays.on_host()}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        self._refuse_if_swapped("load_state_dict")
        with self._lock:
            self._follow_tree()
        opened = Saved("EMA", saved)
        updates = opened.count("updates")
        averages = opened.arrays("average", self._arrays.by_name)

        def write() -> None:
            with self._lock, Deferred():
                self._arrays.take_saved(averages)
                self._updates = updates

        return write

    def __repr__(self) -> str:
        count = len(self._arrays.leaves)
        decay = "mean" if self._decay is None else self._decay
        warmup = ", warmup=True" if self._warmup else ""
        return f"<EMA(decay={decay!r}{warmup}): {count} arrays, {self._updates} updates>"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: the arrays, which stay those of whoever is copied too.

        Of an EMA that follows an optimizer: the optimizer.
        """
        with self._lock:
            saved = self.state_dict()
            tree = self._arrays.tree
            decay = "mean" if self._decay is None else self._decay
            made_with = {"decay": decay, "warmup": self._warmup}
            return {
                "params": tree.params if self._opt is None else self._opt,
                "grouped": tree.grouped and self._opt is None,
                "made_with": made_with,
                "saved": saved,
            }

    def __setstate__(self, copied: dict[str, Any]) -> None:
        """Make a copy of what another EMA consisted of."""
        params = copied["params"]
        if copied["grouped"]:
            params = [{"params": tree} for tree in params]
        EMA.__init__(self, params, **copied["made_with"])
        self.load_state_dict(copied["saved"])


def _checked_decay(decay: Any) -> float | None:
    """Return the share that is kept; None for the mean."""
    if isinstance(decay, str) and decay == "mean":
        return None
    try:
        return FRACTION("EMA: decay", decay)
    except (TypeError, ValueError) as error:
        said = f'EMA: decay must be a number in {FRACTION}, or "mean"; got {decay!r}'
        raise type(error)(said) from None


# -------------------------------------------------------------------------------------------------
# Lookahead: k steps forward with any optimizer, and then a part of the way back.

_SHARE = Number(low=0.0, high=1.0, low_open=True)


class Lookahead(Wrapper):
    """Lookahead: slow weights that follow the parameters every k steps, and pull them back.

    ::

        p    <- the optimizer's step                     every step
        slow <- slow + alpha * (p - slow)                after every k-th step
        p    <- slow

    Slow weights are the parameters before the first step, and again wherever somebody else writes
    them: an element that was written between two steps (weights that are loaded, a projection, an
    average that is kept by hand) has its slow weight there too. A change of all elements in every
    step (noise, a decay by hand) therefore leaves of each pull only the last step's part; let the
    optimizer decay (``weight_decay``). Frozen parameters (``trainable=False``), and those that have
    had no step since the last pull since their gradients were None, are not pulled. Slow weights
    are kept within the optimizer's ``bounds``.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> x = np.zeros(2)
        >>> opt = fastopt.Lookahead(fastopt.SGD(x, lr=1.0), k=2, alpha=0.5)
        >>> for _ in range(2):
        ...     outcome = opt.step(np.full(2, -1.0))
        >>> x  # half of the way of two steps
        array([1., 1.])

    Args:
        opt: the optimizer that makes the steps; its state goes on over the pulls.
        k: steps between two pulls, >= 1. A step that was skipped (``on_nonfinite``) does not count.
        alpha: share of the way that the slow weights go, in (0, 1]; 1 changes nothing.

    Raises:
        ValueError, TypeError: for arguments out of range.

    Beside the slow weights a copy of the parameters is kept, to see what was written; both in the
    parameter's dtype, for half precision in float32.

    Its ``state_dict`` holds the slow weights; the optimizer's own is saved beside it. Either may be
    loaded first: parameters that were saved between two pulls are taken as the next step finds
    them.

    Source: Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back"
    (NeurIPS 2019), algorithm 1; results as optax.lookahead gives. The inner state is kept at the
    pulls, as there by default.
    """

    def __init__(self, opt: Optimizer | Wrapper, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(opt)
        self._k = whole("Lookahead: k", k, 1)
        self._alpha = _SHARE("Lookahead: alpha", alpha)
        self._stepping = False  # then it is the optimizer that writes the parameters
        self._steps = 0  # since the last pull
        self._begin(self._tree)

    def _begin(self, tree: Tree) -> None:
        """Let all slow weights be the parameters."""
        self._joined = _join(tree.leaves)
        own = {k: slow for one in self._joined for k, slow in one.by_position(one.slow)}
        self._arrays = CompanionArrays(tree, [own[k] for k in range(len(own))])
        self._slow = self._arrays.nest(self._arrays.own)
        self._moved = np.zeros(len(tree.leaves), bool)
        """Which parameters have had a step since they were pulled."""
        self._unknown = np.zeros_like(self._moved)
        """Of which parameters it is not known what the last step left: that was before a load."""
        for joined in self._joined:
            joined.begin(tree.leaves)
        for position, limits in self._innermost._state.bounds().items():
            arrays.keep_within(self._arrays.own[position], limits)

    def _follow_tree(self, kept: Mapping[int, Array] | None = None) -> None:
        """Go over to the parameters that the optimizer has now; what has other rows begins anew.

        ``kept`` are the numbers of the rows that the first ones of a parameter were, by position:
        these go on.
        """
        if self._arrays.stand_beside(self._tree):
            return
        before, joined_before = self._arrays, self._joined
        kept = kept or before.chosen_rows(self._tree)
        moved, unknown = self._moved, self._unknown
        self._begin(self._tree)
        left = {k: part for one in joined_before for k, part in one.by_position(one.left)}
        found = {k: part for one in self._joined for k, part in one.by_position(one.left)}
        rows_of = {**dict.fromkeys(before.staying(self._tree)), **kept}
        for k, rows in rows_of.items():
            with arrays.on_device_of(before.own[k]):
                merge(self._arrays.own[k], before.own[k], rows)
                merge(found[k], left[k], rows)
            self._moved[k], self._unknown[k] = moved[k], unknown[k]

    def resize(self, name: str, array: Any, keep: Any = None) -> Self:
        """Do what the optimizer's ``resize`` does; kept rows keep their slow weights, too.

        Further rows begin with their values. By the optimizer's own ``resize``, called directly,
        the slow weights of all rows of this parameter begin anew.
        """
        with self._lock, Deferred():
            if not self._stepping:  # then the optimizer refuses
                self._follow_tree()
            before = self._arrays
            super().resize(name, array, keep)
            position = [leaf.name for leaf in before.leaves].index(name)
            self._follow_tree({position: before.kept_rows(position, array, keep)})
        return self

    @property
    def slow(self) -> Any:
        """The slow weights: arrays nested as the parameters are.

        Every k-th step changes them; what was written into the parameters since the last step is
        in them when this is read.
        """
        with self._lock, Deferred():
            self._follow()
            return self._slow

    def step(
        self,
        grads: Any,
        *,
        grad_scale: Any = 1.0,
        params: Any = None,
        value: Any = None,
        hessian: Any = None,
    ) -> Outcome | None:
        """Make a step of the optimizer, and after every k-th pull the parameters back.

        Takes, returns and raises what the optimizer's ``step`` does; a step that raises has changed
        nothing. Where a device decides whether a step is skipped, this waits for it, since skipped
        steps do not count here.
        """
        self._go_over(params)
        return self._step(grads, grad_scale, None, extra=extra_of(value, hessian))

    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome | None:
        def look_ahead(make: Callable[[], Outcome]) -> Outcome:
            return self._look_ahead(make if around is None else lambda: around(make))

        self._refuse_to_skip_members(on_nonfinite, "the steps of all members are counted together")
        return self._opt._step(grads, grad_scale, on_nonfinite, look_ahead, extra)

    def _look_ahead(self, make: Callable[[], Outcome]) -> Outcome:
        """Make a step, between its hooks: what these write is written from outside."""
        with Deferred():
            self._follow()
            buckets = self._innermost._state.buckets
            before = [bucket.steps.copy() for bucket in buckets]
            self._stepping = True
            try:
                outcome = make()
            finally:
                self._stepping = False
            if outcome:
                self._innermost._engine.synchronize()  # where a device counts
                moved = np.zeros_like(self._moved)
                for bucket, steps in zip(buckets, before, strict=True):
                    moved[[*bucket.positions]] = bucket.steps != steps
                self._take_note(moved)
            return outcome

    def _take_note(self, moved: Array) -> None:
        """Take note of a step that has moved these parameters, and pull if it is time."""
        self._moved |= moved
        changed = moved | self._unknown
        self._steps += 1
        if self._steps == self._k:
            changed |= self._pull()
            self._steps = 0
        for joined in self._joined:
            joined.take_note(self._arrays.leaves, changed)
        self._unknown[...] = False

    def _pull(self) -> Array:
        """Pull the parameters that have moved and are trained; return which."""
        groups = self._innermost.param_groups
        frozen = [k for group in groups if not group["trainable"] for k in group.positions]
        pulled = self._moved.copy()
        pulled[frozen] = False
        bounds = {k: limits for k, limits in self._innermost._state.bounds().items() if pulled[k]}
        with np.errstate(all="ignore"):
            for k, limits in bounds.items():
                arrays.keep_within(self._arrays.own[k], limits)  # which may have changed
            for joined in self._joined:
                joined.move_slow(self._arrays.leaves, pulled, self._alpha)
            for k, limits in bounds.items():
                arrays.keep_within(self._arrays.own[k], limits)  # the way is rounded
            for k, (param, slow) in enumerate(self._arrays.pairs):
                if pulled[k]:
                    with arrays.on_device_of(param):
                        param[...] = slow.astype(param.dtype, copy=False)
        self._moved &= ~pulled
        return pulled

    def _follow(self) -> None:
        """Have the slow weights follow what was written into the parameters since the last step."""
        if self._stepping or self._innermost._elsewhere:
            return
        self._follow_tree()
        changed = [
            k
            for joined in self._joined
            if joined.take_written(self._arrays.leaves, self._unknown)
            for k in joined.positions
        ]
        if changed:
            bounds = self._innermost._state.bounds()
            for k in changed:
                arrays.keep_within(self._arrays.own[k], bounds.get(k, ()))

    def _made_with(self) -> dict[str, Any]:
        return {"k": self._k, "alpha": self._alpha}

    def _remembered(self) -> dict[str, Any]:
        with self._lock, Deferred():
            if self._stepping:
                raise RuntimeError(
                    "Lookahead: state_dict in the middle of its step (from a schedule), when the "
                    "parameters are not pulled yet; call it between steps"
                )
            self._follow()
            names = [leaf.name for leaf in self._arrays.leaves]
            moved = dict(zip(names, self._moved.tolist(), strict=True))
            return {"steps": self._steps, "slow": self._arrays.on_host(), "moved": moved}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("Lookahead", saved)
        self._follow_tree()
        steps = opened.count("steps", self._k - 1)
        slow = opened.arrays("slow", self._arrays.by_name)
        names = [leaf.name for leaf in self._arrays.leaves]
        # Older versions pulled every parameter.
        moved = saved.get("moved", dict.fromkeys(names, steps > 0))
        fits = isinstance(moved, Mapping) and moved.keys() == set(names)
        if not fits or not all(isinstance(one, bool) for one in moved.values()):
            raise CheckpointError(
                "Lookahead: moved must say True or False for every parameter, by name; "
                f"got {moved!r:.80}"
            )

        def write() -> None:
            with self._lock, Deferred():
                self._arrays.take_saved(slow)
                self._steps = steps
                self._moved[...] = self._unknown[...] = [moved[name] for name in names]
                for joined in self._joined:
                    joined.leave_slow()

        return write

    def __repr__(self) -> str:
        return f"<Lookahead(k={self._k}, alpha={self._alpha!r}) of {self._opt!r}>"


class _Joined:
    """Some parameters of one dtype, one after another, with their slow weights.

    Many small arrays are compared in one call. ``slow`` and ``left``, what the last step has left,
    are flat.
    """

    def __init__(self, leaves: Sequence[Leaf], positions: list[int]) -> None:
        given = [leaves[k].array for k in positions]
        self.positions = positions
        self._indices = np.array(positions)
        self._dtype = given[0].dtype
        self._layouts = [arrays.layout_of(array) for array in given]
        ends = np.cumsum([array.size for array in given]).tolist()
        self._ranges = [slice(end - one.size, end) for one, end in zip(given, ends, strict=True)]
        self._xp = arrays.namespace_of(given[0])
        self._device = arrays.on_device_of(given[0])
        with self._device:
            self.slow, self.left = (self._xp.zeros(ends[-1], wide(self._dtype)) for _ in range(2))
        self._seen: Sequence[Leaf] = ()  # what these are of
        self._views: list[Array] = []
        self._addresses: list[int] = []

    def by_position(self, flat: Array) -> Iterator[tuple[int, Array]]:
        """Yield each parameter's part of ``slow`` or ``left``, in its shape, with its position."""
        for k, layout, own in zip(self.positions, self._layouts, self._ranges, strict=True):
            yield k, layout.in_shape(flat[own])

    def _now(self, leaves: Sequence[Leaf]) -> Array:
        """Return the parameters as they are: flat, in the dtype of the slow weights."""
        given = [leaves[k].array for k in self.positions]
        if leaves is not self._seen:
            turned = map(Layout.in_memory_order, self._layouts, given)
            self._views = [one.reshape(-1) if one.flags.c_contiguous else one for one in turned]
            self._addresses = [*map(arrays.address, given)]
            self._seen = leaves
        at = zip(given, self._layouts, self._addresses, strict=True)
        for k, (array, layout, address) in enumerate(at):
            if array.shape != layout.shape or arrays.address(array) != address:
                leaf = leaves[self.positions[k]]
                raise ValueError(
                    f"{leaf.path} has been moved or resized in memory since the last step. Call "
                    f"opt.rebind(params), for another number of rows opt.resize({leaf.name!r}, "
                    "array)."
                )
        flat = [one if one.ndim == 1 else one.reshape(-1) for one in self._views]
        joined: Array = flat[0] if len(flat) == 1 else self._xp.concatenate(flat)
        return joined.astype(self.slow.dtype, copy=False)

    def begin(self, leaves: Sequence[Leaf]) -> None:
        """Let the slow weights be the parameters."""
        with self._device:
            self.slow[...] = self.left[...] = self._now(leaves)

    def take_note(self, leaves: Sequence[Leaf], of: Array) -> None:
        """Take note of what a step has left of these parameters."""
        with self._device:
            for part in self._parts_of(of):
                self.left[part] = self._now(leaves)[part]

    def take_written(self, leaves: Sequence[Leaf], but: Array) -> bool:
        """Take over elements that are no longer what was left, except of some parameters.

        Return whether there may be any: on a device that is not asked for.
        """
        xp, found = self._xp, False
        with self._device:
            now = self._now(leaves)
            for part in self._parts_of(~but):
                for there, slow, left in blocks(now[part], self.slow[part], self.left[part]):
                    written = there != left
                    if xp is np and not written.any():
                        continue
                    found = True
                    written &= (there == there) | (left == left)  # a NaN that was left was there
                    xp.copyto(slow, there, where=written)
                    xp.copyto(left, there, where=written)
        return found

    def move_slow(self, leaves: Sequence[Leaf], of: Array, share: float) -> None:
        """Move the slow weights of some parameters a share of the way to these."""
        with self._device:
            now = self._now(leaves)
            for part in self._parts_of(of):
                move(self.slow[part], now[part], share)

    def leave_slow(self) -> None:
        """Take the slow weights, rounded to the parameters' dtype, for what a pull has left."""
        with self._device, np.errstate(all="ignore"):
            self.left[...] = self.slow.astype(self._dtype, copy=False)

    def _parts_of(self, chosen: Array) -> list[slice]:
        """Return where these parameters are: all of it at once if all are."""
        there = chosen[self._indices]
        if there.all():
            return [slice(None)]
        return [own for own, one in zip(self._ranges, there.tolist(), strict=True) if one]


def _join(leaves: Sequence[Leaf]) -> list[_Joined]:
    """Join parameters of one dtype, as many as fit the cache; larger ones stand alone."""
    joined: list[list[int]] = []
    room: dict[Any, int] = {}  # of each dtype's last list
    last: dict[Any, list[int]] = {}
    for k, leaf in enumerate(leaves):
        dtype, size = leaf.array.dtype, leaf.array.size
        if room.get(dtype, 0) < size or dtype not in last:
            last[dtype], room[dtype] = [], BLOCK
            joined.append(last[dtype])
        last[dtype].append(k)
        room[dtype] -= size
    return [_Joined(leaves, positions) for positions in joined]
