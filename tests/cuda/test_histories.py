"""Whatever happens between the steps, the device's end is NumPy's: histories drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.engine import tables
from fastopt.optimizers.base import Optimizer
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.runs import differences
from helpers.cuda.training import Training, end_of
from helpers.variants import VARIANT_OF, Variant

SHAPES = ((5,), (70, 3), (3,))


def load_later(opt: Optimizer) -> None:
    saved = opt.state_dict()
    saved["step_count"] += 3
    opt.load_state_dict(saved)


def read(opt: Optimizer) -> None:
    assert opt.step_count + opt.skipped_steps >= 0
    assert opt.grad_norm is None or opt.grad_norm >= 0 or not np.isfinite(opt.grad_norm)


EVENTS: dict[str, Callable[[Optimizer], object]] = {
    "nothing": lambda opt: None,
    "a rate": lambda opt: setattr(opt, "lr", 0.03),
    "a schedule": lambda opt: setattr(opt, "lr", lambda t: 0.1 / (1 + t)),
    "a limit": lambda opt: setattr(opt, "max_grad_norm", 0.5),
    "no limit": lambda opt: setattr(opt, "max_grad_norm", None),
    "skip": lambda opt: setattr(opt, "on_nonfinite", "skip"),
    "propagate": lambda opt: setattr(opt, "on_nonfinite", "propagate"),
    "load": load_later,
    "warm up": lambda opt: opt.warmup(),
    "read": read,
}


@dataclass(frozen=True)
class Moment:
    """What happens before a step, and what its gradients and their scale are like."""

    event: str
    bad: bool
    missing: int  # which gradient; beyond the last: none
    scale: float
    scale_is_there: bool


MOMENTS = st.builds(
    Moment,
    st.sampled_from([*EVENTS, *["nothing"] * 10]),
    st.booleans(),
    st.integers(0, 9),
    st.sampled_from([1.0, 2.0, -0.5]),
    st.booleans(),
)


def lived(
    history: list[Moment], variant: Variant, xp: Any, dtypes: Any, capturable: bool
) -> dict[str, Any]:
    training = Training(shapes=SHAPES, dtypes=dtypes)
    params = [xp.asarray(param) for param in training.params()]
    backend = "numpy" if xp is np else "cupy"
    opt = variant(params, backend=backend, capturable=capturable)
    for step, moment in enumerate(history):
        EVENTS[moment.event](opt)
        # NaN that is let in has many bit patterns.
        training.bad = [step] if moment.bad and opt.on_nonfinite == "skip" else []
        grads = [xp.asarray(grad) for grad in training.grads(step)]
        if moment.missing < len(grads):
            grads[moment.missing] = None
        there = moment.scale_is_there and xp is not np
        opt.step(grads, grad_scale=xp.asarray(moment.scale) if there else moment.scale)
    return end_of(opt, params)


@settings(max_examples=60)
@given(
    history=st.lists(MOMENTS, min_size=1, max_size=40),
    variant=st.sampled_from(["adam", "sgd_momentum", "adagrad", "adam_eps_inside"]),
    dtypes=st.sampled_from([(np.float32,), (np.float64,), (np.float32, np.float64)]),
    capturable=st.booleans(),
    late=st.sampled_from([0, 1, 5, 50]),
    most=st.sampled_from([8, 16, 32]),
)
def test_a_history_on_the_device_ends_as_with_numpy(
    cupy: Any,
    cuda: Cuda,
    history: list[Moment],
    variant: str,
    dtypes: Any,
    capturable: bool,
    late: int,
    most: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch, cuda.late(late):
        patch.setattr(tables, "MOST", most)
        patch.setattr(tables, "CAPTURED", 2 * most)
        ends = [lived(history, VARIANT_OF[variant], xp, dtypes, capturable) for xp in (np, cupy)]
    assert differences(*ends) == {}
