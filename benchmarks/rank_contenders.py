"""Who is timed in distributed.py: a step over several ranks, gradients given, made of plain arrays.

Every contender has parameters of its own and reads the same gradients, which lie ready before the
clock runs. Its step ends when this rank's parameters have the mean of all ranks' gradients in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

import fastopt.distributed
from fastopt.core.arrays import Array

LR = 1e-3


class Contender(Protocol):
    """A way to make a step over the ranks."""

    params: Sequence[Array]

    def step(self) -> object:
        """Average the gradients of all ranks and update the parameters."""


class Fastopt:
    """``DataParallel`` or ``Sharded`` around Adam."""

    def __init__(
        self,
        kind: Callable[..., Any],
        params: list[Array],
        grads: list[Array],
        comm: Any,
        **options: Any,
    ) -> None:
        self.params, self._grads = params, grads
        self.opt = kind(fastopt.Adam(params, lr=LR, backend="numba"), comm, **options)

    def step(self) -> object:
        return self.opt.step(self._grads)


class ByHand:
    """mpi4py's Allreduce of one block of gradients, then Adam: what a program does without more."""

    def __init__(self, params: list[Array], grads: list[Array], comm: Any) -> None:
        from mpi4py import MPI

        self.params, self._comm, self._in_place, self._sum = params, comm, MPI.IN_PLACE, MPI.SUM
        self._opt = fastopt.Adam(params, lr=LR, backend="numba")
        self._given, self._sums = grads, self._opt.gradient_buffers()
        first = self._sums[0]
        self._flat = np.frombuffer(first.base if first.base is not None else first, np.float32)

    def step(self) -> object:
        for there, grad in zip(self._sums, self._given, strict=True):
            self._comm.Allreduce(grad, there, op=self._sum)
        return self._opt.step(self._sums, grad_scale=1 / self._comm.size)


class Torch:
    """DistributedDataParallel over gloo with Adam(fused=True), or with ZeroRedundancyOptimizer.

    Its backward pass only hands over gradients that lie ready: a function whose derivative returns
    a view of each, which autograd takes over without a copy; from there on everything is DDP's
    own: copies into its buckets, all-reduces that begin as buckets fill, and the optimizer's step.
    Gradients are views of the buckets (``gradient_as_bucket_view``), which saves DDP the way back.
    """

    def __init__(self, params: list[Array], grads: list[Array], zero: bool) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        given = [torch.from_numpy(grad) for grad in grads]

        class Given(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *of: Any) -> Any:
                return torch.zeros(())

            @staticmethod
            def backward(ctx: Any, *_: Any) -> Any:
                return tuple(grad.view_as(grad) for grad in given)

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.all = torch.nn.ParameterList(
                    torch.nn.Parameter(torch.from_numpy(param)) for param in params
                )

            def forward(self) -> Any:
                return Given.apply(*self.all)

        self.params = params
        self._model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
        if zero:
            from torch.distributed.optim import ZeroRedundancyOptimizer

            self._opt = ZeroRedundancyOptimizer(
                self._model.parameters(),
                optimizer_class=torch.optim.Adam,
                parameters_as_bucket_view=True,
                lr=LR,
                fused=True,
            )
            self.params = [p.detach().numpy() for p in self._model.module.all]
        else:
            self._opt = torch.optim.Adam(self._model.parameters(), lr=LR, fused=True)

    def step(self) -> object:
        self._opt.zero_grad(set_to_none=True)
        self._model().backward()
        return self._opt.step()


def made(name: str, params: list[Array], grads: list[Array], comm: Any) -> Contender:
    """Return the contender of a name."""
    if name == "DataParallel":
        return Fastopt(fastopt.distributed.DataParallel, params, grads, comm)
    if name == "DataParallel, fast":
        return Fastopt(fastopt.distributed.DataParallel, params, grads, comm, fast=True)
    if name == "Sharded":
        return Fastopt(fastopt.distributed.Sharded, params, grads, comm)
    if name == "by hand":
        return ByHand(params, grads, comm)
    return Torch(params, grads, zero=name == "torch ZeRO")
