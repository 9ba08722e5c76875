"""The device's own bandwidth: a plain copy, and Adam's reads and writes without its arithmetic."""

from __future__ import annotations

from gpu_contenders import cupy

from fastopt.cli.timing import Turn

COPY, TRAFFIC = "copy", "same traffic"
BYTES_PER_ELEMENT = {COPY: 8, TRAFFIC: 28}
"""float32: a copy reads one array and writes one; Adam reads four and writes three of them."""


def turns(elements: int) -> dict[str, Turn]:
    """Return steps that move so many elements: CuPy's copy, and an ElementwiseKernel."""
    xp = cupy()
    grad, param, m, v = (xp.zeros(elements, "f4") for _ in range(4))
    kernel = xp.ElementwiseKernel(
        "float32 grad",
        "float32 param, float32 m, float32 v",
        "m += grad; v += grad; param -= grad;",
        "traffic_of_adam",
        no_return=True,
    )
    return {
        COPY: Turn(lambda: xp.copyto(param, grad)),
        TRAFFIC: Turn(lambda: kernel(grad, param, m, v)),
    }
