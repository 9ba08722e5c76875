"""Adam on a GPU as each library has it, behind the same face as on the CPU.

A step only hands its work to the device, in the current stream; nothing here waits for it. The
gradients lie in the library's own arrays on the device before a step begins.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

from contenders import BETA1, BETA2, EPS, LR, Array, ClippedByTorch, Contender

import fastopt


def cupy() -> Any:
    """Return CuPy; gpu.py asks first whether it can work here."""
    return importlib.import_module("cupy")


def wait() -> None:
    """Wait for everything that the device still has to do, in whatever stream."""
    cupy().cuda.Device().synchronize()


class OnDevice(Contender):
    """A contender on CuPy's arrays."""

    needs = ("cupy",)

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        self._params = [cupy().asarray(param) for param in params]
        self._lr = lr

    def hand_in(self, grads: Sequence[Array]) -> None:
        self._grads = [cupy().asarray(grad) for grad in grads]

    def result(self, index: int) -> Array:
        found: Array = self._params[index].get()
        return found


class Fastopt(OnDevice):
    name = "fastopt"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._opt = self._optimizer()

    def _optimizer(self) -> Any:
        return fastopt.Adam(self._params, self._lr, backend="cupy", **self.options)

    def step(self) -> None:
        self._opt.step(self._grads)


class FastoptClipped(Fastopt):
    name = "fastopt max_grad_norm"
    clips = True
    options = {"max_grad_norm": 1.0}


class CupyLoop(OnDevice):
    """What people write by hand: array expressions in place, a dozen kernels for each array."""

    name = "CuPy loop"

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._m = [cupy().zeros_like(param) for param in self._params]
        self._v = [cupy().zeros_like(param) for param in self._params]
        self._sqrt = cupy().sqrt
        self._t = 0

    def _scalars(self) -> tuple[float, float]:
        """Return the step's length and eps, with the corrections drawn into them."""
        self._t += 1
        root = (1 - BETA2**self._t) ** 0.5
        return self._lr * root / (1 - BETA1**self._t), EPS * root

    def step(self) -> None:
        lr, eps = self._scalars()
        for p, g, m, v in zip(self._params, self._grads, self._m, self._v, strict=True):
            m *= BETA1
            m += (1 - BETA1) * g
            v *= BETA2
            v += (1 - BETA2) * (g * g)
            p -= lr * m / (self._sqrt(v) + eps)


class KernelPerArray(CupyLoop):
    """The next thing that people write: one ElementwiseKernel, launched for every array."""

    name = "CuPy kernel per array"

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._kernel = cupy().ElementwiseKernel(
            "float32 grad, float32 rest1, float32 rest2, float32 lr, float32 eps",
            "float32 param, float32 m, float32 v",
            """
            m += rest1 * (grad - m);
            v += rest2 * (grad * grad - v);
            param -= lr * m / (sqrt(v) + eps);
            """,
            "adam_of_one_array",
            no_return=True,
        )

    def step(self) -> None:
        lr, eps = self._scalars()
        for p, g, m, v in zip(self._params, self._grads, self._m, self._v, strict=True):
            self._kernel(g, 1 - BETA1, 1 - BETA2, lr, eps, p, m, v)


class TorchFused(Contender):
    """PyTorch's own arrays and its own caching allocator, beside CuPy's."""

    name = "torch fused"
    needs = ("torch",)
    options: ClassVar[dict[str, bool]] = {"fused": True}
    device: ClassVar[str] = "cuda"

    @classmethod
    def reason_against(cls) -> str | None:
        if (missing := super().reason_against()) is not None:
            return missing
        torch = importlib.import_module("torch")
        if cls.device == "cuda" and not torch.cuda.is_available():
            return f"this torch ({torch.__version__}) finds no CUDA device"
        return None

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        self._torch = importlib.import_module("torch")
        self._params = [self._own(param).requires_grad_() for param in params]
        self._opt = self._torch.optim.Adam(self._params, lr, (BETA1, BETA2), EPS, **self.options)

    def _own(self, array: Array) -> Any:
        return self._torch.tensor(array, device=self.device)

    def hand_in(self, grads: Sequence[Array]) -> None:
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = self._own(grad)

    def step(self) -> None:
        self._opt.step()

    def result(self, index: int) -> Array:
        return self._params[index].detach().cpu().numpy()  # type: ignore[no-any-return]


class TorchForeach(TorchFused):
    name = "torch foreach"
    options = {"foreach": True}


class TorchCapturable(TorchFused):
    name = "torch capturable"
    options = {"capturable": True, "foreach": True}


class TorchClipped(ClippedByTorch, TorchFused):
    pass


ADAM: tuple[type[Contender], ...] = (
    Fastopt,
    TorchFused,
    TorchForeach,
    TorchCapturable,
    CupyLoop,
    KernelPerArray,
)
CLIPPED: tuple[type[Contender], ...] = (FastoptClipped, TorchClipped)
