"""What stands around an optimizer on every rank: micro-batches are added, and ranks agree."""

from __future__ import annotations

import difflib
import hashlib
import json
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Parameter
from fastopt.core.dtypes import dtype_of, real_dtype, real_size, wide
from fastopt.core.hyperparameters import Flag, Number
from fastopt.core.options import NonfinitePolicy
from fastopt.core.rows import RowGrad
from fastopt.core.tree import Tree
from fastopt.distributed.backward import Backward
from fastopt.distributed.ranks import SECONDS, TIME_LIMIT, MpiRanks, Ranks, is_mpi, named
from fastopt.distributed.shares import Described, Part, Section, sections_of
from fastopt.distributed.sums import Contribution, Sums, broadcast
from fastopt.engine.extra import NOTHING, Extra, checked_value, extra_of
from fastopt.engine.policy import Outcome, Policy, Verdict
from fastopt.engine.step import Prepared
from fastopt.errors import CheckpointError, RankError
from fastopt.optimizers.base import Around, Optimizer
from fastopt.version import __version__
from fastopt.wrappers.base import Wrapper
from fastopt_kernels import ArrayRule

if TYPE_CHECKING:
    import os

    from fastopt.checkpoint.state_dict import LoadReport

WEIGHT = Number(low=0.0)

Words = dict[str, Any]
"""What a rank says, as JSON has it."""


@dataclass(frozen=True)
class Gradients:
    """A micro-batch's gradients on one rank, checked: flat real numbers by position.

    ``stored`` says whether all are of their parameters' own dtypes, so that they can be sent in
    these; else they are sent in those of the sums.
    """

    flats: Sequence[Array | None]
    given: Sequence[bool]
    stored: bool


class Layout(NamedTuple):
    """What ranks need to know of the parameters: how they lie in memory, and who has what."""

    parameters: Sequence[Parameter]
    stored: Sequence[np.dtype[Any]]
    """The dtypes of the parameters' real numbers."""
    wide: Sequence[np.dtype[Any]]
    """Those of their sums."""
    sections: Sequence[Section]

    def parts(self, rank: int) -> dict[int, Part]:
        """Return a rank's parts by position."""
        return {part.position: part for section in self.sections for part in section.parts[rank]}


def laid_out(tree: Tree, whole: Sequence[bool], ranks: int, forward: Sequence[int]) -> Layout:
    """Return the layout of a tree's parameters; counters, which nobody trains, have no part.

    ``forward`` are the positions in the order of the model, the same on all ranks.
    """
    parameters = [Parameter.of(leaf, 0, bridges_gaps=True) for leaf in tree.leaves]
    described = []
    for one, kept in zip(parameters, whole, strict=True):
        array = one.leaf.array
        size = 0 if one.leaf.is_counter else real_size(array.size, array.dtype)
        described.append(Described(size, array.nbytes, array.dtype.name, kept))
    counters = [one.leaf.is_counter for one in parameters]
    stored = [_real(one.leaf.array.dtype) for one in parameters]
    sums = [real if c else wide(real) for real, c in zip(stored, counters, strict=True)]
    return Layout(parameters, stored, sums, sections_of(described, ranks, forward))


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind in "biu" else real_dtype(dtype)


def ranks_of(comm: Any, time_limit: float | None, owner: str) -> Ranks:
    """Return the ranks of a communicator; TypeError for what is none."""
    if isinstance(comm, Ranks):
        if time_limit is not None:
            raise ValueError(
                f"{owner}: these ranks have a time limit already; set it where they are made: "
                f"nccl(time_limit={time_limit})"
            )
        return comm
    limit = SECONDS(f"{owner}: time_limit", TIME_LIMIT if time_limit is None else time_limit)
    if is_mpi(comm):
        return MpiRanks(comm, limit)
    raise TypeError(
        f"{owner} takes a communicator of mpi4py (from mpi4py import MPI; MPI.COMM_WORLD) or "
        f"fastopt.distributed.nccl(); got {type(comm).__name__}"
    )


def described(tree: Tree) -> list[str]:
    """Return the name, dtype and shape of each parameter."""
    return [f"{leaf.name} {leaf.array.dtype} {leaf.array.shape}" for leaf in tree.leaves]


def described_of(tree: Tree) -> str:
    """Return what tells trees of other names, dtypes or shapes apart."""
    return hashlib.sha256("\n".join(described(tree)).encode()).hexdigest()[:16]


class OverRanks(Wrapper):
    """An optimizer that steps with the mean of the micro-batches of all ranks.

    What both ways of doing so have in common: ``DataParallel`` and ``Sharded``.
    """

    _sums: Sums
    _layout: Layout
    _turns: list[int]  # the sections, in the order in which backward passes complete them
    _positions: dict[str, int]  # of the parameters among the leaves, by name
    _positions_of: list[tuple[int, ...]]  # of the parameters of each group
    _described: str  # what tells whether ranks have laid out the same parameters
    _extents: Extents  # where all of them lie

    def __init__(self, opt: Optimizer, comm: Any, time_limit: float | None, fast: bool) -> None:
        owner = type(self).__name__
        self._ranks = ranks_of(comm, time_limit, owner)

        def look() -> Words:
            self._fast = Flag()(f"{owner}: fast", fast)
            if not isinstance(opt, Optimizer):
                raise TypeError(
                    f"{owner} takes an optimizer, as fastopt.distributed.{owner}"
                    f"(fastopt.Adam(params), comm); got {type(opt).__name__}. What stands around "
                    f"an optimizer stands around {owner} too: "
                    f"LossScaler().step({owner}(opt, comm), grads)"
                )
            self._refuse(opt, owner)
            return {**_description(opt), "fast": fast, "the state": _state_digest(opt)}

        self._busy: str | None = None
        self._agree("constructs", look, same=True)
        names = [opt._state.tree.leaves[position].name for position in opt._state.tree.as_given()]
        told = self._agree("constructs", lambda: {} if self.rank else {"order": names})
        self._forward = {name: place for place, name in enumerate(told[0]["order"])}
        super().__init__(opt)
        self._clear()

    def _lay_out(self, tree: Tree, whole: Sequence[bool]) -> Layout:
        """Return the layout of a tree, whose parameters are in the order that rank 0 has."""
        last = len(self._forward)  # for those of a new group
        places = [self._forward.get(leaf.name, last) for leaf in tree.leaves]
        return laid_out(tree, whole, self.size, sorted(range(len(places)), key=places.__getitem__))

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Do what all ranks do together, with nothing else in between; other threads wait."""
        with self._lock:
            self._refuse_within(what)
            self._busy = what
            try:
                yield
            finally:
                self._busy = None

    def _refuse_within(self, what: str) -> None:
        if self._busy is not None:
            raise RuntimeError(
                f"{type(self).__name__}: {what} in the middle of {self._busy}, which all ranks do "
                "together: do one after the other. The handler of a signal sets a flag that ranks "
                "agree on between steps"
            )

    @staticmethod
    def _refuse(opt: Optimizer, owner: str) -> None:
        """Raise TypeError for optimizers whose steps need more than the mean of gradients."""
        if opt._estimate is not None:
            raise TypeError(
                f"{owner}: {type(opt).__name__} takes estimates of the Hessian, and gradients "
                "alone are added up over the ranks; average both yourself (comm.Allreduce) and "
                "step the optimizer on every rank"
            )

    @property
    def rank(self) -> int:
        """The number of this process, from 0 on."""
        return self._ranks.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._ranks.size

    @property
    def count(self) -> int:
        """How many micro-batches have been added since the last step, on all ranks together."""
        return self._count

    # Micro-batches -----------------------------------------------------------------------------

    def add(
        self,
        grads: Any,
        weight: float = 1.0,
        *,
        grad_scale: float = 1.0,
        value: Any = None,
        params: Any = None,
    ) -> None:
        """Add the gradients of a micro-batch to those of all ranks.

        They are numbered in turns: the first one of rank 0 is number 0, the first of rank 1 number
        1, and so on; after those of all ranks come the second ones. So all ranks add at the same
        time, and one that has fewer calls ``step``. The sum is made in the order of the numbers:
        hand micro-batch ``k`` of a step to rank ``k % size``, and the bits are those of any other
        number of ranks, of one, and of ``fastopt.Accumulator`` with ``every`` the number of all.

        Args:
            grads: as for the optimizer's ``step``; None for a parameter counts as zero, unless it
                is None in all micro-batches of the step. Neither kept nor written.
            weight: of this micro-batch in the mean, >= 0, in any unit, such as its samples.
            grad_scale: what multiplies the gradients first, the same on all ranks.
            value: the loss, for optimizers that step by it (MoMo); its mean is that of gradients.
            params: the parameters as the program has them now, as for the optimizer's ``step``.

        Raises what the optimizer's ``step`` does for gradients that do not fit; on all other ranks
        RankError says so. Nothing has been added then on any.
        """
        with self._alone("add"):
            self._round(lambda: self._looked_at(grads, weight, grad_scale, value, params))

    def backward(
        self, weight: float = 1.0, *, grad_scale: float = 1.0, value: Any = None
    ) -> Backward:
        """Add a micro-batch whose gradients are handed in as the backward pass makes them.

        ::

            with opt.backward() as handed:
                for layer in reversed(layers):
                    handed.ready(f"{layer.name}.W", layer.backward())
            opt.step()

        They are sent by a thread while the pass goes on, so that sending hides behind computing
        (where MPI was not initialised for several threads, whenever one is handed in): in the first
        pass the last parameters first, in the order of rank 0's dicts and lists, and then in the
        order in which its pass before came to them. All ranks enter such a block together; the
        micro-batch counts as one of ``add``, and the bits are the same. Parameters that are not
        handed in have no gradient; those in half precision take gradients of their own dtype. An
        error in the block on one rank is one on all, and drops all that was added since the last
        step.

        Args: as for ``add``.
        """
        return Backward(self, weight, grad_scale, value)

    def _begin_backward(
        self, weight: float, grad_scale: float, value: Any
    ) -> Sequence[Contribution]:
        """Agree on a micro-batch of every rank; return what is added of each."""

        def words() -> Words:
            self._check_tree()
            about = self._about(weight, grad_scale, value)
            return {**about, "given": None, "parameters": self._described}

        with self._alone("backward"):
            said = self._agree("begins a backward pass", words, alike=("parameters",))
            return [self._counted(one) for one in said]

    def _end_backward(
        self,
        said: Sequence[Contribution],
        given: Sequence[bool],
        turns: list[int],
        error: BaseException | None,
    ) -> None:
        """Agree on which gradients there were, or that all is dropped for an error on some rank.

        ``said`` are the contributions that ranks have announced; one of weight 0 adds nothing.
        ``turns`` are the sections in the order in which they were complete: rank 0's is that of
        the next pass.
        """

        def words() -> Words:
            if error is not None:
                raise error
            news = {} if self.rank or turns == self._turns else {"turns": turns}
            return {"given": _as_text(given), **news}

        with self._alone("backward"):
            try:
                ended = self._agree("ends a backward pass", words)
            except BaseException:
                self._clear()
                if error is None:
                    raise
                return  # it goes on by itself
            every = [
                _of_text(one["given"], len(given))
                for one, adds in zip(ended, said, strict=True)
                if any(adds.given)
            ]
            self._sums.given = [any(each) for each in zip(self._sums.given, *every, strict=True)]
            self._turns = ended[0].get("turns", self._turns)

    def _flat_of(self, name: str, grad: Any) -> tuple[int, Array | None]:
        """Return a parameter's position and its gradient, flat, in the parameter's dtype."""
        position = self._positions.get(name)
        if position is None:
            close = difflib.get_close_matches(str(name), self._positions, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"they are {shown(self._positions)}"
            raise KeyError(f"no parameter is called {name!r}; {hint}")
        parameter = self._layout.parameters[position]
        path = f"grads{parameter.leaf.place}"
        if grad is None:
            return position, None
        if isinstance(grad, RowGrad):
            raise TypeError(f"{path} must be a whole array; got a RowGrad: see its dense()")
        grad = parameter.checked(grad, path)
        if grad.dtype != parameter.dtype and parameter.dtype.itemsize == 2:
            raise TypeError(
                f"{path} is sent as {parameter.dtype}, as its parameter is; got {grad.dtype}. Hand "
                f"in an array of {parameter.dtype}, or all gradients at once: opt.add(grads)"
            )
        flat = parameter.flat_gradient(grad, parameter.dtype, path, self._extents)
        return position, flat

    def _trained(self) -> list[bool]:
        """Return of each parameter whether steps update it."""
        found = [not one.leaf.is_counter for one in self._layout.parameters]
        for number, group in enumerate(self.innermost._state.groups):
            for position in self._positions_of[number] if not group["trainable"] else ():
                found[position] = False
        return found

    def step(
        self,
        grads: Any = None,
        weight: float = 1.0,
        *,
        grad_scale: float = 1.0,
        value: Any = None,
        params: Any = None,
    ) -> Outcome:
        """Step with the mean of all micro-batches since the last step, on all ranks.

        ``grads`` and what follows are a last micro-batch of this rank, as for ``add``. The outcome
        is the same on all ranks, and so are norm, clipping and what ``on_nonfinite`` does: they are
        those of the mean.

        Raises what the optimizer's ``step`` does, on the rank where it happens, and RankError on
        all others; nothing has changed then on any, and what was added is dropped. ValueError if
        nothing was added, or all weights are 0.
        """
        extra = extra_of(value, None)
        return self._make_step(grads, weight, grad_scale, None, None, extra, params)

    def _step(
        self,
        grads: Any,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None = None,
        extra: Extra = NOTHING,
    ) -> Outcome:
        return self._make_step(grads, 1.0, grad_scale, on_nonfinite, around, extra, None)

    def _make_step(
        self,
        grads: Any,
        weight: float,
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None,
        extra: Extra,
        params: Any,
    ) -> Outcome:
        with self._alone("step"):
            try:
                if grads is not None:
                    self._round(
                        lambda: self._looked_at(grads, weight, grad_scale, extra.value, params)
                    )
                while self._round(None):
                    pass
                if not self._first_weight:
                    said = "no micro-batch was added" if not self._count else "all weights are 0"
                    raise ValueError(
                        f"{type(self).__name__}: {said} on any rank since the last step, so there "
                        "is no mean; call add(grads) before, or step(grads)"
                    )
                value = None if self._value is None else self._value / self._weight
                return self._finish(1.0 / self._weight, on_nonfinite, around, value)
            finally:
                self._clear()

    def reset(self) -> None:
        """Drop what has been added since the last step; to be called on all ranks."""
        with self._alone("reset"):
            self._agree("resets", None)
            self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._first_weight = 0.0
        self._weight = 0.0
        self._value: float | None = None
        if hasattr(self, "_sums"):
            self._sums.clear()

    def _looked_at(
        self, grads: Any, weight: float, grad_scale: Any, value: Any, params: Any
    ) -> tuple[Words, Gradients]:
        """Return what this rank says of a micro-batch, and its gradients, checked."""
        self._go_over(params)
        about = self._about(weight, grad_scale, value)
        found = self._checked(grads)
        return {**about, "given": _as_text(found.given), "stored": found.stored}, found

    def _about(self, weight: float, grad_scale: Any, value: Any) -> Words:
        """Return what is said of a micro-batch beside its gradients, checked."""
        name = type(self).__name__
        taken = self.innermost._takes_value
        if value is not None and not taken:
            raise TypeError(f"{type(self.innermost).__name__} takes no value; leave it away")
        if value is None and taken:
            raise TypeError(f"{type(self.innermost).__name__} needs the loss: value=loss; got none")
        return {
            "weight": WEIGHT(f"{name}: weight", weight),
            "scale": self.innermost._engine.checked_scale(grad_scale, "raise"),
            "value": None if value is None else checked_value(value, None),
        }

    def _checked(self, grads: Any) -> Gradients:
        """Return a micro-batch's gradients as they are sent; raise what is wrong with them."""
        self._check_tree()
        return self._flattened(self._tree.match(grads))

    def _flattened(self, given: Sequence[Any]) -> Gradients:
        for leaf, grad in zip(self._tree.leaves, given, strict=True):
            if isinstance(grad, RowGrad):
                raise TypeError(
                    f"grads{leaf.place} is a RowGrad, and whole arrays are added up over the "
                    f"ranks: hand in grads{leaf.place}.dense(like), an array like the parameter"
                )
        pairs = list(zip(self._layout.parameters, given, strict=True))
        given = [None if g is None else p.checked(g, f"grads{p.leaf.place}") for p, g in pairs]
        stored = all(
            g is None or g.dtype == p.dtype
            for p, g in zip(self._layout.parameters, given, strict=True)
        )
        reals = self._layout.stored if stored else self._layout.wide
        flats = []
        for parameter, grad, real in zip(self._layout.parameters, given, reals, strict=True):
            dtype = dtype_of(real, parameter.dtype)
            path = f"grads{parameter.leaf.place}"
            flats.append(parameter.flat_gradient(grad, dtype, path, self._extents))
        return Gradients(flats, [g is not None for g in given], stored)

    def _check_tree(self) -> None:
        """Follow the settings, and raise for parameters that are no longer the optimizer's."""
        self.innermost._engine.follow_settings()
        for parameter, now in zip(self._layout.parameters, self._tree.current(), strict=True):
            if now is not None:
                parameter.check_array(now)

    def _round(self, look: Callable[[], tuple[Words, Gradients]] | None) -> bool:
        """Add a micro-batch of each rank that has one; return whether any has one.

        Without ``look`` this rank has none, and steps once no other has any.
        """
        found: list[Gradients] = []

        def words() -> Words:
            if look is None:
                self._check_tree()
                return {"has": False, "parameters": self._described}
            said, gradients = look()
            found.append(gradients)
            return {"has": True, "parameters": self._described, **said}

        said = self._agree("adds or steps", words, alike=("parameters",))
        adding = [one for one in said if one["has"]]
        if not adding:
            return False
        stored = all(one["stored"] for one in adding)
        dtypes = self._layout.stored if stored else self._layout.wide
        try:
            with self._ranks.sending():
                if found and found[0].stored and not stored:
                    found[0] = self._widened(found[0])
                contributions = [self._counted(one) if one["has"] else None for one in said]
                self._sums.add(found[0].flats if found else (), dtypes, contributions)
        except BaseException:
            self._clear()  # half of it may have been added
            raise
        return True

    def _widened(self, found: Gradients) -> Gradients:
        """Return gradients in the dtypes of the sums, since another rank has them so."""
        flats: list[Array | None] = []
        for flat, dtype in zip(found.flats, self._layout.wide, strict=True):
            if flat is None:
                flats.append(None)
                continue
            with arrays.on_device_of(flat), np.errstate(all="ignore"):
                flats.append(flat.astype(dtype, copy=False))
        return Gradients(flats, found.given, False)

    def _counted(self, said: Words) -> Contribution:
        """Count a micro-batch, and return what is added of it."""
        self._count += 1
        weight = said["weight"]
        self._first_weight = self._first_weight or weight
        share = weight / self._first_weight if weight else 0.0
        self._weight += share
        factor = said["scale"] if share == 1.0 else said["scale"] * share
        if share and said["value"] is not None:
            self._value = (self._value or 0.0) + factor * said["value"]
        given = _of_text(said["given"], len(self._layout.parameters))
        return Contribution(factor, given if share else [False] * len(given))

    # Agreement ---------------------------------------------------------------------------------

    def _agree(
        self,
        what: str,
        work: Callable[[], Words] | None,
        same: bool = False,
        alike: Sequence[str] = (),
    ) -> list[Words]:
        """Do something on every rank, and return what all say of it.

        Every rank tells the others once, also if it fails: then it raises its own error and all
        others RankError, which names it. So what ranks do goes on in step, whatever happens. With
        ``same`` all have to say the same, with ``alike`` under these words.
        """
        error: BaseException | None = None
        mine: Words = {}
        try:
            mine = {} if work is None else work()
        except _HeardError as heard:  # all know it already
            raise RankError(str(heard), heard.ranks) from None
        except BaseException as caught:
            error = caught
        words = {"does": what, **mine}
        if error is not None:
            words = {"does": what, "error": f"{type(error).__name__}: {error}"[:2000]}
        try:
            with self._ranks.sending():
                said = [_words(one) for one in self._ranks.tell(json.dumps(words).encode())]
        except RankError:
            if error is not None:  # it is why the others are gone, perhaps
                raise error from None
            raise
        if error is not None:
            raise error
        every = {key: None for one in said for key in one} if same else alike
        self._compare(said, what, every)
        return said

    def _compare(self, said: Sequence[Words], what: str, alike: Iterable[str]) -> None:
        _refuse_failed(said)
        others = [rank for rank, one in enumerate(said) if one["does"] != what]
        if others:
            raise RankError(
                f"all ranks have to do the same: rank {self.rank} {what}, and rank {others[0]} "
                f"{said[others[0]]['does']}",
                tuple(others),
            )
        for rank, one in enumerate(said):
            key = next((key for key in alike if one.get(key) != said[0].get(key)), None)
            if key is not None:
                raise RankError(
                    f"ranks differ in {key}: rank 0 has {said[0].get(key)!r:.300}, and rank {rank} "
                    f"{one.get(key)!r:.300}",
                    (rank,),
                )

    def _agreed(self, prepare: Callable[[], Prepared], step_count: int) -> Prepared:
        """Prepare a step on every rank, and return it if all have, and would make the same one."""
        made: list[Prepared] = []

        def words() -> Words:
            made.append(prepare())
            verdict, groups = made[0].verdict, self.innermost._state.groups
            return {
                "step count": step_count,
                "lr": [repr(g["lr"]) for g in groups if isinstance(g["lr"], float)],
                "whether the step is made": verdict.made,
                "what multiplies the gradients": repr(verdict.scale),
                "norm": repr(verdict.norm),
                "hyperparameters": self._digest(made[0]),
            }

        self._agree("steps", words, same=True)
        return made[0]

    def _digest(self, prepared: Prepared) -> str:
        """Return what tells whether two ranks step by the same numbers."""
        seen = hashlib.sha256()
        buckets = self.innermost._state.buckets
        for work in prepared.works:
            # A rank may have nothing of a rule on whole arrays.
            if not isinstance(buckets[work.number].rule, ArrayRule):
                seen.update(np.ascontiguousarray(work.plan.table).tobytes())
        return seen.hexdigest()[:16]

    # The step ----------------------------------------------------------------------------------

    @property
    def _host_decides(self) -> bool:
        return True

    def _finish(
        self,
        scale: float,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None,
        value: float | None,
    ) -> Outcome:
        """Make the step with what was added; ``scale`` makes it a mean.

        What fails before the ranks agree on it, as in a hook, is told the others.
        """
        opt, extra = self.innermost, extra_of(value, None)
        nested = self._collected()
        agreeing = False

        def make(_: Callable[[], Outcome]) -> Outcome:
            nonlocal agreeing
            policy = opt._policy if on_nonfinite is None else opt._policy_with(on_nonfinite)
            agreeing = True
            prepared = self._agreed(
                partial(self._prepared, nested, scale, policy, extra),
                opt._state.counts.steps.item(0),
            )
            outcome = self._commit(prepared)
            self._busy = None  # the step is made: hooks may save
            return outcome

        own = make if around is None else lambda inner: around(lambda: make(inner))
        try:
            return opt._step(nested, scale, on_nonfinite, own, extra)
        except BaseException as error:
            if not agreeing:
                self._agree("steps", partial(raised, error))
            raise

    @abstractmethod
    def _collected(self) -> Any:
        """Return the sums that this rank steps with, nested as its optimizer's parameters."""

    def _prepared(self, nested: Any, scale: float, policy: Policy, extra: Extra) -> Prepared:
        """Return what this rank's optimizer does with these gradients."""
        engine = self.innermost._engine
        matched = engine.ready_on_host(nested, scale)
        verdict = self._verdict(matched, scale, policy)
        return engine.prepare(matched, scale, policy, {}, extra, verdict)

    def _verdict(self, matched: Sequence[Any], scale: float, policy: Policy) -> Verdict | None:
        """Return the verdict that all ranks reach together; None: each can by itself."""
        return None

    def _commit(self, prepared: Prepared) -> Outcome:
        """Make the step that all ranks have agreed on."""
        return self.innermost._engine.commit(prepared)

    # Parameters and checkpoints ----------------------------------------------------------------

    def _broadcast(self) -> None:
        """Give the parameters of all ranks the values of rank 0's."""
        with self._ranks.sending():
            for parameter in self._layout.parameters:
                array = parameter.leaf.array
                with arrays.on_device_of(array):
                    flat = arrays.flat_view(array, parameter.layout)
                    turned = parameter.layout.in_memory_order(array)
                    place = turned.flatten() if flat is None else flat
                    broadcast(self._ranks, place)
                    if flat is None and self.rank:
                        array[...] = parameter.layout.in_shape(place)

    def _load(
        self,
        path: str | os.PathLike[str],
        look_at: Callable[[Mapping[str, Any]], tuple[Callable[[], None], LoadReport]],
    ) -> LoadReport:
        """Take over a checkpoint that every rank reads, on all or on none.

        ``look_at`` looks at its content, and returns what takes that over, and the report.
        """
        from fastopt.checkpoint import file

        opt = self.innermost
        found: list[tuple[Callable[[], None], LoadReport]] = []
        with self._alone("load"), ExitStack() as stack:

            def look() -> Words:
                content = stack.enter_context(file.mapped(path))
                try:
                    found.append(opt._alone(partial(look_at, content)))
                except CheckpointError as error:
                    raise file.explained(path, error, whole=True) from error
                return {"the checkpoint": file.fingerprint(path)}

            self._agree("loads", look, same=True)
            commit, report = found[0]
            opt._alone(commit)
            opt._engine.after_load(opt._policy)
            self._clear()
        return report

    # What cannot be ----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Raise TypeError: a communicator stays in its process."""
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled, since its communicator belongs to "
            "this process; save it (save), or copy the optimizer before"
        )

    def _made_with(self) -> dict[str, Any]:
        return {}

    def _remembered(self) -> dict[str, Any]:
        raise TypeError(
            f"{type(self).__name__} has no state_dict, since all ranks save and load together, and "
            "files: .save(path), .load(path)"
        )

    def _restorer(self, saved: Any) -> Callable[[], None]:
        return self._remembered  # type: ignore[return-value]  # raises

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(rank {self.rank} of {self.size}) of {self._opt!r}>"


class _HeardError(RankError):
    """Another rank has failed while numbers were exchanged, and all have heard of it."""


NUMBERS = b"#"
"""What numbers begin with; words are JSON, and begin with a brace."""


def exchanged(ranks: Ranks, own: Array) -> list[Array]:
    """Return float64 numbers of all ranks, in the middle of what they agree on afterwards.

    A rank that has failed says so instead, and RankError is raised on all others.
    """
    with ranks.sending():
        said = ranks.tell(NUMBERS + own.tobytes())
    if not all(one[:1] == NUMBERS for one in said):
        try:
            _refuse_failed([_words(one) for one in said])
        except RankError as error:
            raise _HeardError(str(error), error.ranks) from None
        unlike = [rank for rank, one in enumerate(said) if one[:1] != NUMBERS]
        raise _HeardError(
            f"settings differ: {named(unlike)} of {len(said)} did not measure in this step what "
            f"rank {ranks.rank} measured (max_grad_norm, on_nonfinite)",
            tuple(unlike),
        )
    return [np.frombuffer(one, np.float64, offset=1) for one in said]


def _words(said: bytes) -> Words:
    """Return what a rank says; of numbers, that it is in the middle of a step."""
    numbers = {"does": "measures gradients or arrays: settings differ"}
    words: Words = numbers if said[:1] == NUMBERS else json.loads(said)
    return words


def _refuse_failed(said: Sequence[Words]) -> None:
    """Raise RankError if some rank has failed."""
    failed = [rank for rank, one in enumerate(said) if "error" in one]
    if failed:
        first = said[failed[0]]["error"]
        raise RankError(
            f"{named(failed)} of {len(said)} failed, so nothing was done on any: {first}",
            tuple(failed),
        )


def shown(names: Iterable[str]) -> str:
    """Return some names as they are listed in an error."""
    every = list(names)
    return ", ".join(map(repr, every[:5])) + (", ..." if len(every) > 5 else "")


def raised(error: BaseException) -> NoReturn:
    """Raise an error, where work is to be done that has failed already."""
    raise error


def _as_text(given: Sequence[bool]) -> str | None:
    return None if all(given) else np.packbits(np.array(given, bool)).tobytes().hex()


def _of_text(text: str | None, count: int) -> list[bool]:
    if text is None:
        return [True] * count
    bits = np.frombuffer(bytes.fromhex(text), np.uint8)
    return [bool(bit) for bit in np.unpackbits(bits)[:count]]


def _description(opt: Optimizer) -> Words:
    """Return what has to be the same on all ranks."""
    leaves = opt._state.tree.leaves
    words: Words = {
        "the version of fastopt": __version__,
        "optimizers": type(opt).__name__,
        "number of parameters": len(leaves),
        "number of groups": len(opt._state.groups),
        "step count": opt._steps,
        "max_grad_norm": opt.max_grad_norm,
        "on_nonfinite": opt.on_nonfinite,
    }
    if len(leaves) <= 64:
        there = described(opt._state.tree)
        words |= {f"parameter {k}": said for k, said in enumerate(there)}
    words["names, dtypes and shapes"] = described_of(opt._state.tree)
    for number, group in enumerate(opt._state.groups):
        for name, option in group.plain.items():
            if name != "params" and _is_plain(option):
                words[f"{name} of group {number}"] = repr(option)
    return words


def _is_plain(option: Any) -> bool:
    """Return whether an option is a number or a word, or several, and so reads alike anywhere."""
    if isinstance(option, tuple | list):
        return all(map(_is_plain, option))
    return isinstance(option, bool | int | float | str | None)


def _state_digest(opt: Optimizer) -> int:
    """Return a number that tells states apart; 0 before the first step."""
    seen = 0
    opt._engine.synchronize()
    for bucket in opt._state.buckets if opt._steps else ():
        for part in bucket.arena.parts:
            seen = zlib.crc32(np.ascontiguousarray(arrays.on_host(part)).view(np.uint8).data, seen)
    return seen
