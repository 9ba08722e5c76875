"""Who takes part in the training loop: careful loops by hand, and fastopt in its variants."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from contenders import (
    BETA1,
    BETA2,
    EPS,
    LR,
    Array,
    Contender,
    FastoptClipped,
    FastoptNumba,
    FastoptNumpy,
    InPlace,
    TorchFused,
)

import fastopt

MOMENTUM = 0.9
DECAY = 0.01
ALMOST_ONE = 1.0 + 2.0**-20
"""A factor that a float32 tells from 1, and the comparison with the other contenders does not."""
SCALE = 1024.0
"""Of the loss, where it is scaled: a power of two, which leaves no trace in the gradients."""


# By hand ----------------------------------------------------------------------------------------


class Hand(InPlace):
    """What a careful user writes: array by array, in place, with work arrays made beforehand."""

    name = "hand"
    states: ClassVar[int]
    """How many arrays of state a parameter has."""

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        self._params = [param.copy() for param in params]
        self._states = [[np.zeros_like(p) for _ in range(self.states)] for p in params]
        self._work = [np.empty_like(param) for param in params]
        self._lr = lr
        self._t = 0

    def use(self, grads: Sequence[Array]) -> None:
        self._grads = grads

    @abstractmethod
    def step(self) -> None: ...

    def result(self, index: int) -> Array:
        return self._params[index]


class HandAdam(Hand):
    states = 2
    decay: ClassVar[float] = 0.0

    def step(self) -> None:
        self._t += 1
        root = (1 - BETA2**self._t) ** 0.5
        lr, eps = self._lr * root / (1 - BETA1**self._t), EPS * root
        keep = 1 - self._lr * self.decay
        for p, g, (m, v), work in zip(
            self._params, self._grads, self._states, self._work, strict=True
        ):
            if self.decay:
                p *= keep
            np.multiply(g, 1 - BETA1, out=work)
            m *= BETA1
            m += work
            np.multiply(g, g, out=work)
            work *= 1 - BETA2
            v *= BETA2
            v += work
            np.sqrt(v, out=work)
            work += eps
            np.divide(m, work, out=work)
            work *= lr
            p -= work


class HandAdamW(HandAdam):
    decay = DECAY


class HandMomentum(Hand):
    states = 1

    def step(self) -> None:
        for p, g, (velocity,), work in zip(
            self._params, self._grads, self._states, self._work, strict=True
        ):
            velocity *= MOMENTUM
            velocity += g
            np.multiply(velocity, self._lr, out=work)
            p -= work


class HandRMSprop(Hand):
    states = 1

    def step(self) -> None:
        for p, g, (v,), work in zip(
            self._params, self._grads, self._states, self._work, strict=True
        ):
            np.multiply(g, g, out=work)
            work *= 1 - BETA1
            v *= BETA1
            v += work
            np.sqrt(v, out=work)
            work += EPS
            np.divide(g, work, out=work)
            work *= self._lr
            p -= work


# fastopt in other ways --------------------------------------------------------------------------


class LrSet(FastoptNumba):
    """The learning rate is set before each step, to another value than before; timed with it."""

    name = "fastopt, lr set"

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._next, self._after = lr * ALMOST_ONE, lr

    def use(self, grads: Sequence[Array]) -> None:
        super().use(grads)
        self._next, self._after = self._after, self._next

    def step(self) -> None:
        self._opt.lr = self._next
        self._opt.step(self._grads)


class Scheduled(FastoptNumba):
    name = "fastopt, schedule"

    def _made(self, lr: float) -> Any:
        cosine = fastopt.schedules.cosine(lr, total_steps=10**9)
        return self.optimizer(self._params, cosine, backend=self.backend, **self.options)


class Skipping(FastoptNumba):
    name = 'fastopt, on_nonfinite="skip"'
    options = {"on_nonfinite": "skip"}


class TwoGroups(FastoptNumba):
    """Two groups with learning rates of their own, so that no step can treat them as one."""

    name = "fastopt, two groups"

    def _made(self, lr: float) -> Any:
        self._first = len(self._params) // 2
        groups = [
            {"params": self._params[: self._first]},
            {"params": self._params[self._first :], "lr": lr * ALMOST_ONE},
        ]
        return self.optimizer(groups, lr, backend=self.backend, **self.options)

    def use(self, grads: Sequence[Array]) -> None:
        self._grads = [grads[: self._first], grads[self._first :]]


class Scaled(FastoptNumba):
    """With a LossScaler: the gradients come from a loss times its scale, which stays as it is."""

    name = "fastopt, LossScaler"
    loss_scale = SCALE

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._scaler = fastopt.LossScaler(SCALE, growth_interval=10**9)

    def hand_in(self, grads: Sequence[Array]) -> None:
        super().hand_in([grad * grad.dtype.type(SCALE) for grad in grads])

    def step(self) -> None:
        self._scaler.step(self._opt, self._grads)
        self._scaler.update()


class Auto(FastoptNumba):
    """The backend that is chosen without asking for one, once it has come to Numba."""

    name = "fastopt, auto"
    backend = None

    @property
    def settled(self) -> bool:
        """Whether the steps run on Numba by now."""
        return bool(self._opt.backend == "numba")


# Who is timed in turns --------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Contenders that take turns; all compute what ``sure`` does in float64, which is checked.

    ``shuffled``: in another order in each round, where the same code runs for several of them and
    whoever comes second would find it in the cache.
    """

    title: str
    classes: tuple[type[InPlace], ...]
    sure: type[Hand]
    shuffled: bool = False


def _rule(title: str, hand: type[Hand], optimizer: Any, **options: Any) -> Group:
    """Return the contenders of another optimizer."""
    ours = (FastoptNumba, FastoptNumpy, FastoptClipped, LrSet)
    plain, on_numpy, clipped, lr_set = (
        type(
            each.__name__,
            (each,),
            {"optimizer": optimizer, "options": {**each.options, **options}},
        )
        for each in ours
    )
    return Group(title, (plain, hand, on_numpy, clipped, lr_set), hand)


ADAM = (FastoptNumba, HandAdam, TorchFused, FastoptNumpy, FastoptClipped, LrSet)
VARIANTS = (FastoptNumba, Scheduled, Skipping, TwoGroups, Scaled, Auto)
GROUPS = {
    "adam": Group("Adam", ADAM, HandAdam),
    "variants": Group("Adam in other ways", VARIANTS, HandAdam, shuffled=True),
    "sgd": _rule("SGD with momentum", HandMomentum, fastopt.SGD, momentum=MOMENTUM),
    "rmsprop": _rule("RMSprop", HandRMSprop, fastopt.RMSprop, beta=BETA1, eps=EPS),
    "adamw": _rule("AdamW", HandAdamW, fastopt.AdamW, weight_decay=DECAY),
}
"""By what ``--only`` calls them; the contenders of one take turns in this order."""


def loss_scale(contender: Contender) -> float:
    """Return what the loss is multiplied by before the gradients are taken."""
    return getattr(contender, "loss_scale", 1.0)
