"""Adam's step captured once in a CUDA graph, and launched again and again from there.

A graph reads the gradients where they lay when it was captured, so new ones are copied there. For
PyTorch a step in another stream comes first, with gradients of zero, which move nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contenders import LR, Array, Contender
from gpu_contenders import Fastopt, TorchFused, cupy, wait

import fastopt

REFRESH = 20_000
"""Replays after which fastopt is asked to look ahead again, outside the timing; it looks 65 536
steps ahead."""


class FastoptCapturable(Fastopt):
    """Without a graph: what it costs to keep a step's numbers on the device."""

    name = "fastopt capturable"
    options = {"capturable": True}


class FastoptGraph(FastoptCapturable):
    name = "fastopt graph"

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._graph: Any = None
        self._replays = 0

    def prepare(self) -> None:
        """Have the coming steps' numbers worked out anew, long before they are used up."""
        if self._replays > REFRESH:
            self._opt.refresh()
            self._replays = 0

    def hand_in(self, grads: Sequence[Array]) -> None:
        if self._graph is None:
            super().hand_in(grads)
            self._graph = self._captured()
            return
        for place, grad in zip(self._grads, grads, strict=True):
            cupy().copyto(place, cupy().asarray(grad))

    def _captured(self) -> Any:
        self._opt.warmup()
        with cupy().cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                self._launch()
            finally:  # or everything later would fail too
                graph = stream.end_capture()
        wait()
        return graph

    def _launch(self) -> None:
        self._opt.step(self._grads)

    def step(self) -> None:
        self._replays += 1
        self._graph.launch()


class FastoptScaled(FastoptCapturable):
    """With a LossScaler, whose scale of 1 stays: what it costs to keep it on the device too."""

    name = "fastopt LossScaler"
    options = {"capturable": True, "on_nonfinite": "skip"}

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._scaler = fastopt.LossScaler(1.0, growth_interval=2**40).warmup(self._opt)

    def step(self) -> None:
        self._scaler.step(self._opt, self._grads)
        self._scaler.update()


class FastoptScaledGraph(FastoptGraph):
    name = "fastopt LossScaler, graph"
    options = {"capturable": True, "on_nonfinite": "skip"}

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._scaler = fastopt.LossScaler(1.0, growth_interval=2**40).warmup(self._opt)

    def _launch(self) -> None:
        self._scaler.step(self._opt, self._grads)
        self._scaler.update()


class TorchFusedGraph(TorchFused):
    name = "torch fused, graph"
    options = {"capturable": True, "fused": True}

    def __init__(self, params: Sequence[Array], lr: float = LR) -> None:
        super().__init__(params, lr)
        self._graph: Any = None

    def hand_in(self, grads: Sequence[Array]) -> None:
        if self._graph is None:
            super().hand_in(grads)
            self._graph = self._captured()
            return
        for param, grad in zip(self._params, grads, strict=True):
            param.grad.copy_(self._own(grad))

    def _captured(self) -> Any:
        """Capture as PyTorch's notes on CUDA graphs say: after a step in another stream."""
        torch = self._torch
        given = [param.grad for param in self._params]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for param in self._params:
                param.grad = torch.zeros_like(param)
            self._opt.step()
        torch.cuda.current_stream().wait_stream(side)
        for param, grad in zip(self._params, given, strict=True):
            param.grad = grad
            self._opt.state[param]["step"].zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._opt.step()
        return graph

    def step(self) -> None:
        self._graph.replay()


class TorchCapturableGraph(TorchFusedGraph):
    name = "torch capturable, graph"
    options = {"capturable": True, "foreach": True}


GRAPHS: tuple[type[Contender], ...] = (
    Fastopt,
    FastoptCapturable,
    FastoptGraph,
    FastoptScaled,
    FastoptScaledGraph,
    TorchFused,
    TorchFusedGraph,
    TorchCapturableGraph,
)
