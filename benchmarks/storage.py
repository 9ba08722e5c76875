"""Adam with its state in 16 and in 8 bits, against PyTorch's fused one and against itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from contenders import Classes, FastoptNumba, TorchFused

from fastopt.cli.timing import Effort, Turn, take_turns

SIZES = (1_000_000, 20_000_000)


class Bfloat16State(FastoptNumba):
    name = "fastopt, state bfloat16"
    options: ClassVar[dict[str, Any]] = {"state_dtype": "bfloat16"}


class Int8State(FastoptNumba):
    name = "fastopt, state int8"
    options: ClassVar[dict[str, Any]] = {"state_dtype": "int8"}


CLASSES: Classes = (FastoptNumba, Bfloat16State, Int8State, TorchFused)


def measure(
    parameters: int,
    effort: Effort,
    ready: Classes,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return the times of a step on one array, and the bytes of state that fastopt keeps."""
    usable = [each for each in CLASSES if each in ready or issubclass(each, FastoptNumba)]
    tell(f"state in fewer bits, 1 x {parameters}: {', '.join(each.name for each in usable)}")
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(parameters, np.float32)] for _ in range(2))
    made = [each(params) for each in usable]
    for contender in made:
        contender.hand_in(grads)
    times = take_turns({each.name: Turn(each.step) for each in made}, effort)
    return {
        "arrays": 1,
        "elements": parameters,
        "same": {name: asdict(each) for name, each in times.items()},
        "state_bytes": {
            each.name: each.state_bytes for each in made if isinstance(each, FastoptNumba)
        },
    }
