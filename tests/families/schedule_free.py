"""ScheduleFreeSGD and ScheduleFreeAdamW."""

from __future__ import annotations

from typing import Any

import fastopt
from helpers.bad_values import number
from helpers.mutants import common_clock, given, remembering, scalars
from helpers.variant import Variant

SGD, AdamW = fastopt.ScheduleFreeSGD, fastopt.ScheduleFreeAdamW

VARIANTS = [
    Variant("schedule_free_sgd", SGD, {"lr": 0.1, "warmup_steps": 3, "weight_decay": 0.1}),
    Variant(
        "schedule_free_adamw",
        AdamW,
        {"lr": 0.01, "r": 1.0, "weight_decay": 0.1},
        close=True,
    ),
]
SMOOTH = ["ScheduleFreeSGD", "ScheduleFreeAdamW"]

BAD = {
    "warmup_steps": [(-1, ValueError), (2.0, TypeError), (None, TypeError), (True, TypeError)],
    "weight_lr_power": number(-1e-300, -1),
    "r": number(-1e-300, -1),
}
BAD_HERE = {
    ("ScheduleFreeSGD", "momentum"): [
        (0.0, ValueError),
        (1.0, ValueError),
        (lambda t: 0.9, TypeError),
    ],
    ("ScheduleFreeAdamW", "betas"): [
        ((0.0, 0.9), ValueError),
        ((lambda t: 0.9, 0.9), ValueError),
    ],
}


def made(change: dict[str, Any]) -> Any:
    """Return what changes a few of the scalars that are made of the memory."""

    def wrong(host: Any, *given: Any) -> Any:
        memory, own = host(*given)
        return memory, {**own, **{name: value(own) for name, value in change.items()}}

    return wrong


def forgets_the_peak(host: Any, own: Any, memory: Any, sums: Any) -> Any:
    return host(own, {**memory, "peak": 0.0}, sums)


def weighs_by_what_was_before(host: Any, own: Any, memory: Any, sums: Any) -> Any:
    coming, found = host(own, memory, sums)
    before = memory["total"] or coming["total"]
    weight = (coming["total"] - memory["total"]) / before if before else 0.0
    return coming, {**found, "weight": weight, "keep": 1.0 - weight}


def of_both(right: Any) -> dict[str, tuple[Any, Any]]:
    """Return mistakes in the averages and weights."""
    own = right.__name__
    wrong = {
        "peak_forgotten": remembering(right, forgets_the_peak),
        "weighed_by_the_sum_before": remembering(right, weighs_by_what_was_before),
        "y_moves_as_z": remembering(right, made({"share": lambda own: 1.0})),
        "d_not_drawn_in": remembering(right, made({"keep": lambda own: 1.0})),
        "x_never_moves": remembering(right, made({"weight": lambda own: 0.0})),
        "weights_without_the_rate": given(
            right, lambda o, lr, t: ({**o, "weight_lr_power": 0.0}, lr, t)
        ),
        "weights_without_the_count": given(right, lambda o, lr, t: ({**o, "r": 0.0}, lr, t)),
        "count_from_0": scalars(right, lambda made, o, t: {"factor": (t - 1.0) ** o["r"]}),
        "no_warmup": given(right, lambda o, lr, t: ({**o, "warmup_steps": 0}, lr, t)),
        "warmup_from_0": scalars(  # optax
            right,
            lambda made, o, t: {
                name: made[name] * (t - 1) / t
                for name in right._lr_scalars
                if t <= o["warmup_steps"]
            },
        ),
        "beta_and_its_rest_swapped": scalars(
            right, lambda made, o, t: {"beta": 1.0 - made["beta"]}
        ),
        "one_clock_for_all_parameters": common_clock(right),
    }
    return {f"{own}_{name}": (right, make) for name, make in wrong.items()}


MUTANTS = {
    **of_both(SGD),
    **of_both(AdamW),
    "ScheduleFreeAdamW_eps_before_the_bias_correction": (
        AdamW,
        scalars(AdamW, lambda made, o, t: {"eps": o["eps"]}),
    ),
    "ScheduleFreeAdamW_not_corrected": (
        AdamW,
        scalars(AdamW, lambda made, o, t: {"step_size": made["lr"]}),
    ),
    "ScheduleFreeAdamW_betas_swapped": (
        AdamW,
        given(AdamW, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
}
