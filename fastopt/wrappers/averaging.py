"""EMA: an average of the parameters to evaluate with; Lookahead: k steps forward, a part back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, blocks
from fastopt.core.hyperparameters import FRACTION, Flag, Number, whole
from fastopt.core.options import NonfinitePolicy
from fastopt.core.param_groups import tree_of
from fastopt.core.saved import Resumable, Saved
from fastopt.core.signals import Deferred
from fastopt.engine.build import check_leaves
from fastopt.engine.policy import Outcome
from fastopt.optimizers.base import Optimizer
from fastopt.wrappers.base import CompanionArrays, Wrapper, move

# -------------------------------------------------------------------------------------------------
# EMA: an exponential moving average of the parameters, to evaluate with.


class EMA(Resumable):
    """Exponential moving average of parameters, updated after each step.

    ::

        avg <- p                                         at construction
        avg <- avg + (1 - d) * (p - avg)                 at each update

        d = decay, or with warmup min(decay, (1 + n) / (10 + n)), n = 0, 1, ... updates so far

    Args:
        params: an array, a tree of arrays or a list of parameter groups, as an optimizer takes
            them; they are written only by ``swap``.
        decay: share of the average that is kept, in [0, 1).
        warmup: keep less of it in the first updates, so that the start is forgotten sooner.

    Raises:
        ValueError, TypeError: for a decay out of range, and for parameters that an optimizer would
            refuse.

    Averages are kept in the parameter's dtype, those of float16 and bfloat16 in float32, where a
    share of 0.001 is not rounded away. A NaN in a parameter stays in its average (unless decay is
    0).

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), in
    its exponential form; results as torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn
    gives, whose first update copies, as the construction does here. The warmup is that of
    tf.train.ExponentialMovingAverage with num_updates.
    """

    def __init__(self, params: Any, decay: float = 0.999, *, warmup: bool = False) -> None:
        self._decay = FRACTION("EMA: decay", decay)
        self._warmup = Flag()("EMA: warmup", warmup)
        tree = tree_of(params)
        check_leaves(tree, "EMA")
        self._arrays = CompanionArrays(tree)
        self._arrays.take_parameters()
        self._average = self._arrays.nest(self._arrays.own)
        self._updates = 0
        self._swapped = False
        self._lock = threading.RLock()
        """Held by all that writes the averages or copies them: another thread waits."""

    @property
    def average(self) -> Any:
        """The averages: arrays nested as the parameters are, which every update changes.

        For parameter groups a list with one tree per group. Inside ``swap`` they hold the
        parameters.
        """
        return self._average

    @property
    def updates(self) -> int:
        """How many updates have been made."""
        return self._updates

    @property
    def decay(self) -> float:
        """The share of the average that the next update keeps."""
        if not self._warmup:
            return self._decay
        return min(self._decay, (1 + self._updates) / (10 + self._updates))

    def update(self) -> None:
        """Take the parameters as they are now into the averages.

        Raises RuntimeError inside ``swap``, and ValueError if a parameter is no longer the array
        that was given, or has another shape.
        """
        with self._lock:
            self._refuse_if_swapped("update")
            self._arrays.check_parameters("EMA")
            share = 1.0 - self.decay
            with Deferred(), np.errstate(all="ignore"):
                for param, average in self._arrays.pairs:
                    move(average, param, share)
                self._updates += 1

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Exchange parameters and averages, in place, for the length of a ``with`` block.

        They are exchanged back also if the block raises. Write nothing into them inside, and step
        no optimizer. Raises RuntimeError inside another swap, and ValueError as ``update`` does and
        for a read-only parameter.
        """
        self._refuse_if_swapped("swap")
        self._arrays.check_parameters("EMA")
        self._arrays.check_writeable()
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

    def _refuse_if_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"EMA: {what} inside a swap, where the parameters are the averages; "
                "leave the with block first"
            )

    def _remembered(self) -> dict[str, Any]:
        with self._lock:
            self._refuse_if_swapped("state_dict")
            return {"updates": self._updates, "average": self._arrays.on_host()}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        self._refuse_if_swapped("load_state_dict")
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
        warmup = ", warmup=True" if self._warmup else ""
        return f"<EMA(decay={self._decay!r}{warmup}): {count} arrays, {self._updates} updates>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "EMA cannot be pickled or copied: the copy would average arrays of its own, not the "
            "model's. Use state_dict and load_state_dict."
        )


# -------------------------------------------------------------------------------------------------
# Lookahead: k steps forward with any optimizer, and then a part of the way back.

_SHARE = Number(low=0.0, high=1.0, low_open=True)


class Lookahead(Wrapper):
    """Lookahead: slow weights that follow the parameters every k steps, and pull them back.

    ::

        p    <- the optimizer's step                     every step
        slow <- slow + alpha * (p - slow)                after every k-th step; slow = p at first
        p    <- slow

    Args:
        opt: the optimizer that makes the steps; its state goes on over the pulls.
        k: steps between two pulls, >= 1. A step that was skipped (``on_nonfinite``) does not count.
        alpha: share of the way that the slow weights go, in (0, 1]; 1 changes nothing.

    Raises:
        ValueError, TypeError: for arguments out of range.

    Its ``state_dict`` holds the slow weights; the optimizer's own is saved beside it.

    Source: Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back"
    (NeurIPS 2019), algorithm 1; results as optax.lookahead gives. The inner state is kept at the
    pulls, as there by default.
    """

    def __init__(self, opt: Optimizer | Wrapper, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(opt)
        self._k = whole("Lookahead: k", k, 1)
        self._alpha = _SHARE("Lookahead: alpha", alpha)
        self._arrays = self._companions()
        self._arrays.take_parameters()
        self._slow = self._arrays.nest(self._arrays.own)
        self._steps = 0  # since the slow weights last moved

    @property
    def slow(self) -> Any:
        """The slow weights: arrays nested as the parameters are, which every k-th step changes."""
        return self._slow

    def step(self, grads: Any, *, grad_scale: Any = 1.0) -> Outcome | None:
        """Make a step of the optimizer, and after every k-th pull the parameters back.

        Takes, returns and raises what the optimizer's ``step`` does; a step that raises has changed
        nothing. Where a device decides whether a step is skipped, this waits for it, since skipped
        steps do not count here.
        """
        return self._step(grads, grad_scale, None)

    def _step(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy | None
    ) -> Outcome | None:
        with self._lock, Deferred():
            outcome = self._opt._step(grads, grad_scale, on_nonfinite)
            if outcome is not None and outcome.made:
                self._steps += 1
            if self._steps == self._k:
                self._pull()
                self._steps = 0
            return outcome

    def _pull(self) -> None:
        with np.errstate(all="ignore"):
            for param, slow in self._arrays.pairs:
                move(slow, param, self._alpha)
                with arrays.on_device_of(param):
                    param[...] = slow.astype(param.dtype, copy=False)

    def _remembered(self) -> dict[str, Any]:
        with self._lock:
            return {"steps": self._steps, "slow": self._arrays.on_host()}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("Lookahead", saved)
        steps = opened.count("steps", self._k - 1)
        slow = opened.arrays("slow", self._arrays.by_name)

        def write() -> None:
            with self._lock, Deferred():
                self._arrays.take_saved(slow)
                self._steps = steps

        return write

    def __repr__(self) -> str:
        return f"<Lookahead(k={self._k}, alpha={self._alpha!r}) of {self._opt!r}>"
