"""Lookahead: k steps forward with any optimizer, and then a part of the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import arrays
from fastopt.beside import move
from fastopt.gradient_policy import NonfinitePolicy
from fastopt.hyperparameters import Number, whole
from fastopt.interrupts import Deferred
from fastopt.optimizer import Optimizer
from fastopt.saved import Saved
from fastopt.wrapper import Wrapper

if TYPE_CHECKING:
    from fastopt.scale_on_device import Scaling

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
        self._beside = self._make_beside()
        self._beside.take_parameters()
        self._slow = self._beside.nest(self._beside.own)
        self._steps = 0  # since the slow weights last moved

    @property
    def slow(self) -> Any:
        """The slow weights: arrays nested as the parameters are, which every k-th step changes."""
        return self._slow

    def step(self, grads: Any, *, grad_scale: Any = 1.0) -> None:
        """Make a step of the optimizer, and after every k-th pull the parameters back.

        Takes and raises what the optimizer's ``step`` does; a step that raises has changed nothing.
        Where a device decides whether a step is skipped, this waits for it, since skipped steps do
        not count here.
        """
        self._step(grads, grad_scale, self.on_nonfinite)

    def _step(
        self, grads: Any, grad_scale: Any, on_nonfinite: NonfinitePolicy, scaling: Scaling = None
    ) -> None:
        with Deferred():
            before = self._opt.step_count
            self._opt._step(grads, grad_scale, on_nonfinite, scaling)
            if self._opt.step_count > before:
                self._steps += 1
            if self._steps == self._k:
                self._pull()
                self._steps = 0

    def _pull(self) -> None:
        with np.errstate(all="ignore"):
            for param, slow in self._beside.pairs:
                move(slow, param, self._alpha)
                with arrays.on_device_of(param):
                    param[...] = slow.astype(param.dtype, copy=False)

    def _remembered(self) -> dict[str, Any]:
        return {"steps": self._steps, "slow": self._beside.on_host()}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("Lookahead", saved)
        steps = opened.count("steps", self._k - 1)
        slow = opened.arrays("slow", self._beside.by_name)

        def write() -> None:
            with Deferred():
                self._beside.take_saved(slow)
                self._steps = steps

        return write

    def __repr__(self) -> str:
        return f"<Lookahead(k={self._k}, alpha={self._alpha!r}) of {self._opt!r}>"
