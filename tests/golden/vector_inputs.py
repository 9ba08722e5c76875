"""The inputs of the golden cases: named sets of first parameters and gradients of every step.

All values are exact in float32, so that a float32 run starts from the same numbers.
"""

import numpy as np
import numpy.typing as npt

from .vector_cases import SHAPES, Array

SETS = {"plain": 30, "dense": 30, "mild": 30, "long": 200}
SEEDS = {name: 1000 + i for i, name in enumerate(SETS)}

TINY = -1.0  # marks the gradients that wander between 1e-12 and 1e-6
SCALES = (
    np.array(0.5),
    np.array([1.0, 1e-3, 1e2, 1e-6, 0.1]),
    np.array([[1e3, 1.0, TINY, 1e-2]] * 3),
)
# Columns of the matrix are the sizes of gradients, its rows the sizes of parameters.
PARAMS = (
    np.array(0.75),
    np.array([1e-3, -1.5, 1e3, 0.0, -0.02]),
    np.array([[1e-3, -2e-3, 4e-3, 0.0], [1.0, -0.5, 2.0, -1.0], [1e3, -700.0, 300.0, -1e3]]),
)


def as_float32_values(array: Array) -> Array:
    """Round to the values that float32 can hold."""
    return array.astype(np.float32).astype(np.float64)


def gradients(rng: np.random.Generator, steps: int, index: int, name: str) -> Array:
    """Draw the gradients of one parameter: signs, sizes and zeros change from step to step."""
    shape = (steps, *SHAPES[index])
    sign = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    size = 0.05 + 0.95 * rng.random(shape)
    wander = 10.0 ** (-10.6 + 4.6 * rng.random(shape))  # times size: from 1e-12
    zero = rng.random(shape) < 0.15
    if name == "mild":
        return as_float32_values(sign * (0.25 + 0.75 * size))
    scale = np.where(SCALES[index] == TINY, wander, np.abs(SCALES[index]))
    drawn = as_float32_values(sign * size * scale)
    return drawn if name == "dense" else np.where(zero | silent(shape, index), 0.0, drawn)


def silent(shape: tuple[int, ...], index: int) -> npt.NDArray[np.bool_]:
    """Mark stretches without any gradient: one at the start, one in the middle."""
    mask = np.zeros(shape, dtype=np.bool_)
    if index == 1:
        mask[:4, 1] = True
    if index == 2:
        mask[10:20, 1, 1] = True
    return mask


def make_inputs() -> dict[str, dict[str, list[Array]]]:
    """Return set name -> {"p": first parameters, "g": gradients with the steps first}."""
    made: dict[str, dict[str, list[Array]]] = {}
    for name, steps in SETS.items():
        rng = np.random.default_rng(SEEDS[name])
        grads = [gradients(rng, steps, index, name) for index in range(len(SHAPES))]
        made[name] = {"p": [as_float32_values(p) for p in PARAMS], "g": grads}
    return made
