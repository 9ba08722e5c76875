"""Adam's step captured once in a CUDA graph, and launched again and again from there.

A graph reads the gradients where they lay when it was captured, so new ones are copied there. What
a first step prepares cannot be captured; it is made with gradients of zero, which move nothing, and
then the step counts are set back to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from contenders import LR, Array, Contender
from gpu_contenders import Fastopt, TorchFused, cupy, wait

import fastopt

REFRESH = 20_000
"""Replays after which fastopt is asked to look ahead again; outside the timing."""


class FastoptCapturable(Fastopt):
    """Without a graph: what it costs to keep a step's numbers on the device."""

    name = "fastopt capturable"
    options = {"capturable": True}

    @classmethod
    def reason_against(cls) -> str | None:
        try:
            fastopt.Adam([np.zeros(1)], backend="numpy", capturable=False)
        except TypeError as error:
            return f"not available: {error}"
        return super().reason_against()


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
        saved = self._opt.state_dict()
        nothing = [cupy().zeros_like(grad) for grad in self._grads]
        wait()
        with cupy().cuda.Stream(non_blocking=True) as stream:
            self._opt.step(nothing)
            stream.synchronize()
            stream.begin_capture()
            try:
                self._opt.step(self._grads)
            finally:  # or everything later would fail too
                graph = stream.end_capture()
        self._opt.load_state_dict(saved)
        wait()
        return graph

    def step(self) -> None:
        self._replays += 1
        self._graph.launch()


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
    TorchFused,
    TorchFusedGraph,
    TorchCapturableGraph,
)
