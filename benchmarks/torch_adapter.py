"""fastopt.torch against torch.optim's fused classes on the CPU: seconds of a step, in turns.

python -m benchmarks.torch_adapter [--rounds 30] [--threads 1]

Three kinds of steps: with the same gradient tensors in every step (zero_grad(set_to_none=False));
with new ones, as every backward pass makes them; and after a real backward pass of a network with
as many parameters, where nothing of the optimizer is in the processor's caches. The time is that
of ``step()`` alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch

import fastopt.torch

CLASSES: dict[str, dict[str, Any]] = {"Adam": {}, "AdamW": {}, "SGD": {"momentum": 0.9}}
SIZES = [(4, 10), (4, 100), (4, 1000), (20, 10), (20, 100), (20, 1000)]
STEPS = 50

Prepare = Callable[[], None]


def tensors(count: int, size: int) -> tuple[list[Any], Prepare]:
    """Return parameters whose gradients are the same tensors in every step."""
    params = [torch.randn(size, requires_grad=True) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(size)
    return params, lambda: None


def new_gradients(count: int, size: int) -> tuple[list[Any], Prepare]:
    """Return parameters that get new gradient tensors before every step."""
    params, _ = tensors(count, size)
    grads = [param.grad for param in params]

    def prepare() -> None:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()

    return params, prepare


def network(count: int, size: int) -> tuple[list[Any], Prepare]:
    """Return a network's parameters, of matrices with about so many elements and vectors."""
    width = max(2, round(size**0.5))
    layers: list[Any] = []
    for _ in range(count // 2):
        layers += [torch.nn.Linear(width, width), torch.nn.Tanh()]
    net, inputs = torch.nn.Sequential(*layers), torch.randn(32, width)
    params = list(net.parameters())

    def prepare() -> None:
        for param in params:
            param.grad = None
        net(inputs).square().mean().backward()

    return params, prepare


KINDS = {"same": tensors, "new": new_gradients, "backward": network}


def seconds(step: Callable[[], Any], prepare: Prepare) -> float:
    """Return the mean seconds of some steps."""
    spent = 0.0
    for _ in range(STEPS):
        prepare()
        began = perf_counter()
        step()
        spent += perf_counter() - began
    return spent / STEPS


def measure(
    name: str, options: dict[str, Any], made: tuple[Any, Any], rounds: int
) -> tuple[float, float, float]:
    """Return the median seconds of a step of PyTorch's and of ours, and of their ratio."""
    (one, before_one), (other, before_other) = made
    theirs = getattr(torch.optim, name)(one, lr=1e-4, fused=True, **options)
    ours = getattr(fastopt.torch, name)(other, lr=1e-4, **options)
    for opt, prepare in ((theirs, before_one), (ours, before_other)):
        prepare()
        opt.step()
    ours.fastopt.warmup()
    pairs = [
        (seconds(theirs.step, before_one), seconds(ours.step, before_other))
        for _ in range(rounds + 2)
    ][2:]
    a, b = np.array(pairs).T
    return float(np.median(a)), float(np.median(b)), float(np.median(a / b))


def rows(rounds: int) -> Iterator[str]:
    for kind, make in KINDS.items():
        for name, options in CLASSES.items():
            for count, size in SIZES:
                made = make(count, size), make(count, size)
                a, b, ratio = measure(name, options, made, rounds)
                yield (
                    f"{kind:9} {name:6} {count:3} x {size:5}  torch fused {1e6 * a:6.1f} us  "
                    f"fastopt {1e6 * b:6.1f} us  {ratio:5.2f} times"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for line in rows(given.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
