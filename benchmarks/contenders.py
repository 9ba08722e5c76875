"""Adam as each library has it, behind one face; every library is loaded only if it is installed.

What a contender does outside the timing is as generous to it as can be: its gradients are made in
its own kind of memory and handed in beforehand (for PyTorch ``.grad`` is set), it may have
compiled, and what it hands out need not be copied back.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import fastopt

Array = np.ndarray[Any, np.dtype[Any]]

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


class Contender(ABC):
    """Adam over some arrays, of which it makes copies."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """The libraries that have to be installed."""
    keeps_gradients: ClassVar[bool] = True
    """Whether a step leaves the gradients as they were."""
    clips: ClassVar[bool] = False
    """Whether a step limits the norm of all gradients to 1."""

    @abstractmethod
    def __init__(self, params: Sequence[Array], lr: float = LR) -> None: ...

    @abstractmethod
    def hand_in(self, grads: Sequence[Array]) -> None:
        """Take copies of the gradients, in new memory of the library's own kind; not timed."""

    @abstractmethod
    def step(self) -> None:
        """Make a step, and return when it is done; this is timed."""

    @abstractmethod
    def result(self, index: int) -> Array:
        """Return one of the parameters as they are now."""

    @classmethod
    def reason_against(cls) -> str | None:
        """Return why it cannot take part, None if it can."""
        missing = [name for name in cls.needs if find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else None


class InPlace(Contender):
    """One that updates NumPy arrays in place: ``result`` shows their memory."""

    def hand_in(self, grads: Sequence[Array]) -> None:
        self.use([grad.copy() for grad in grads])

    @abstractmethod
    def use(self, grads: Sequence[Array]) -> None:
        """Take gradients where they lie, without a copy; not timed."""


class FastoptNumba(InPlace):
    name = "fastopt"
    needs: ClassVar[tuple[str, ...]] = ("numba",)
    backend: ClassVar[str | None] = "numba"
    optimizer: ClassVar[Any] = fastopt.Adam
    options: ClassVar[dict[str, Any]] = {}
    _grads: Any

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        self._params = [param.copy() for param in params]
        self._opt = self._made(lr)

    def _made(self, lr: float) -> Any:
        return self.optimizer(self._params, lr, backend=self.backend, **self.options)

    def use(self, grads: Sequence[Array]) -> None:
        self._grads = grads

    def step(self) -> None:
        self._opt.step(self._grads)

    def result(self, index: int) -> Array:
        return self._params[index]

    @property
    def state_bytes(self) -> int:
        """What the optimizer keeps beside the parameters."""
        return int(self._opt.state_bytes)


class FastoptNumpy(FastoptNumba):
    name = "fastopt (NumPy)"
    needs = ()
    backend = "numpy"


class NumpyLoop(InPlace):
    """What people write by hand: in place, the constant factors drawn together into scalars."""

    name = "NumPy loop"

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        self._params = [param.copy() for param in params]
        self._m = [np.zeros_like(param) for param in params]
        self._v = [np.zeros_like(param) for param in params]
        self._lr = lr
        self._t = 0

    def use(self, grads: Sequence[Array]) -> None:
        self._grads = grads

    def step(self) -> None:
        self._t += 1
        root = (1 - BETA2**self._t) ** 0.5
        lr, eps = self._lr * root / (1 - BETA1**self._t), EPS * root
        for p, g, m, v in zip(self._params, self._grads, self._m, self._v, strict=True):
            m *= BETA1
            m += (1 - BETA1) * g
            v *= BETA2
            v += (1 - BETA2) * (g * g)
            p -= lr * m / (np.sqrt(v) + eps)

    def result(self, index: int) -> Array:
        return self._params[index]


class TorchFused(InPlace):
    name = "torch fused"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    options: ClassVar[dict[str, bool]] = {"fused": True}

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._torch = torch
        self._params = [torch.from_numpy(param.copy()).requires_grad_() for param in params]
        self._opt = self._optimizer(self._params, lr)

    def _optimizer(self, params: list[Any], lr: float) -> Any:
        return self._torch.optim.Adam(params, lr, (BETA1, BETA2), EPS, **self.options)

    def use(self, grads: Sequence[Array]) -> None:
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = self._torch.from_numpy(grad)

    def step(self) -> None:
        self._opt.step()

    def result(self, index: int) -> Array:
        return self._params[index].detach().numpy()  # type: ignore[no-any-return]


class TorchForeach(TorchFused):
    name = "torch foreach"
    options = {"foreach": True}


class TorchSingle(TorchFused):
    name = "torch single"
    options = {"foreach": False, "fused": False}


class DeepSpeed(TorchFused):
    """DeepSpeed's CPUAdam, which it compiles with the machine's C++ compiler at its first use."""

    name = "DeepSpeed CPUAdam"
    needs = ("torch", "deepspeed")

    def _optimizer(self, params: list[Any], lr: float) -> Any:
        beside = str(Path(sys.executable).parent)  # where pip puts ninja
        if beside not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += os.pathsep + beside
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(params, lr, betas=(BETA1, BETA2), eps=EPS, adamw_mode=False)


class Optax(Contender):
    """optax's update jitted with its parameters and state donated, on JAX's own arrays."""

    name = "optax jitted"
    needs = ("jax", "optax")

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        import jax
        import optax

        self._jax = jax
        adam = optax.adam(lr, BETA1, BETA2, EPS)
        self._params = self._own(params)
        self._state = adam.init(self._params)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = adam.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._update = jax.jit(update, donate_argnums=(0, 1))

    def _own(self, arrays: Sequence[Array]) -> Any:
        return self._jax.block_until_ready([self._jax.numpy.array(a, copy=True) for a in arrays])

    def hand_in(self, grads: Sequence[Array]) -> None:
        self._grads = self._own(grads)

    def step(self) -> None:
        self._params, self._state = self._update(self._params, self._state, self._grads)
        self._params[0].block_until_ready()  # the outputs of one call are ready together

    def result(self, index: int) -> Array:
        return np.asarray(self._params[index])


class Thinc(InPlace):
    """thinc's Adam without its clipping and averages; it sets the gradients to zero."""

    name = "thinc"
    needs = ("thinc",)
    keeps_gradients = False

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        from thinc.api import Adam

        self._params = [param.copy() for param in params]
        self._opt = Adam(
            lr, beta1=BETA1, beta2=BETA2, eps=EPS, L2=0.0, grad_clip=0.0, use_averages=False
        )

    def use(self, grads: Sequence[Array]) -> None:
        self._grads = grads

    def step(self) -> None:
        for index, (param, grad) in enumerate(zip(self._params, self._grads, strict=True)):
            self._opt((index, "W"), param, grad)

    def result(self, index: int) -> Array:
        return self._params[index]


class FastoptClipped(FastoptNumba):
    name = "fastopt max_grad_norm"
    clips = True
    options = {"max_grad_norm": 1.0}


class ClippedByTorch:
    """What makes a contender of PyTorch's clip: its own function, before the step."""

    name = "torch clip_grad_norm_, fused"
    clips = True
    _torch: Any
    _params: Any
    _opt: Any

    def step(self) -> None:
        self._torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        self._opt.step()


class TorchClipped(ClippedByTorch, TorchFused):
    pass


Classes = Sequence[type[Contender]]

ADAM: tuple[type[Contender], ...] = (
    FastoptNumba,
    FastoptNumpy,
    NumpyLoop,
    TorchFused,
    TorchForeach,
    TorchSingle,
    Optax,
    DeepSpeed,
    Thinc,
)
CLIPPED: tuple[type[Contender], ...] = (FastoptClipped, TorchClipped)
WITHOUT_GRADIENTS: tuple[type[Contender], ...] = (
    FastoptNumba,
    FastoptNumpy,
    NumpyLoop,
    TorchFused,
)
