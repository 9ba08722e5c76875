"""A stand-in for PyTorch on a GPU, as far as benchmarks/gpu.py uses it: Adam in float32 on NumPy.

Its CUDA graphs repeat the steps that were taken while they were captured. As PyTorch does, an Adam
that is not ``capturable`` refuses to be captured, and a replay goes on with the step count that is
kept with the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Tensor:
    """An array; equal only to itself, and hashable, as PyTorch's are."""

    def __init__(self, host: Any, grad: Tensor | None = None) -> None:
        self.host = np.array(host, np.float32)
        self.grad = grad

    def requires_grad_(self) -> Tensor:
        return self

    def detach(self) -> Tensor:
        return Tensor(self.host)

    cpu = detach

    def numpy(self) -> Any:
        return self.host

    def copy_(self, other: Tensor) -> None:
        self.host[...] = other.host

    def zero_(self) -> None:
        self.host[...] = 0


_captured: list[Callable[[], None]] | None = None


class Adam:
    """torch.optim.Adam."""

    def __init__(
        self,
        params: Sequence[Tensor],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        *,
        fused: bool = False,
        foreach: bool = False,
        capturable: bool = False,
    ) -> None:
        assert not (fused and foreach)
        self._params, self._lr, self._betas, self._eps = list(params), lr, betas, eps
        self._capturable = capturable
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def step(self) -> None:
        if _captured is None:
            self._step()
            return
        if not self._capturable:
            raise RuntimeError(
                "Attempting CUDA graph capture of step() for an instance of Adam "
                "but capturable=False"
            )
        assert self.state, "state that is made in a capture is made anew in every replay"
        _captured.append(self._step)

    def _step(self) -> None:
        beta1, beta2 = self._betas
        for p in self._params:
            assert p.grad is not None
            zeros = np.zeros_like(p.host)
            slots = {"step": np.zeros(()), "m": zeros, "v": zeros}
            state = self.state.setdefault(p, {name: Tensor(x) for name, x in slots.items()})
            state["step"].host += 1
            t, m, v, g = float(state["step"].host), state["m"].host, state["v"].host, p.grad.host
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            p.host -= self._lr * m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + self._eps)


def clip_grad_norm_(params: Sequence[Tensor], limit: float) -> None:
    grads = [p.grad.host for p in params if p.grad is not None]
    norm = sum(float(np.vdot(grad, grad)) for grad in grads) ** 0.5
    for grad in grads:
        grad *= min(1.0, limit / (norm + 1e-6))


class CUDAGraph:
    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def replay(self) -> None:
        for step in self.steps:
            step()


@contextmanager
def graph(captures: CUDAGraph) -> Iterator[None]:
    global _captured
    _captured = captures.steps
    try:
        yield
    finally:
        _captured = None


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


@contextmanager
def stream(given: Stream) -> Iterator[None]:
    yield


class FakeTorch(ModuleType):
    """The module ``torch``."""

    def __init__(self, has_device: bool = True) -> None:
        super().__init__("torch")
        self.__version__ = "2.13.0+cu129"
        self.__spec__ = ModuleSpec("torch", None)
        self.optim = SimpleNamespace(Adam=Adam)
        self.nn = SimpleNamespace(utils=SimpleNamespace(clip_grad_norm_=clip_grad_norm_))
        self.cuda = SimpleNamespace(
            is_available=lambda: has_device,
            empty_cache=lambda: None,
            Stream=Stream,
            stream=stream,
            current_stream=Stream,
            CUDAGraph=CUDAGraph,
            graph=graph,
        )

    def tensor(self, values: Any, device: str) -> Tensor:
        assert device == "cuda"
        return Tensor(values)

    def zeros_like(self, other: Tensor) -> Tensor:
        return Tensor(np.zeros_like(other.host))
