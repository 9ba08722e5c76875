"""Which schedules are recorded, over which steps, and by whom."""

import math
import random
from typing import Any

Spec = dict[str, Any]

CASES: list[dict[str, Any]] = []


def spec(name: str, **kwargs: Any) -> Spec:
    """Return a schedule as plain data: its name and all its arguments."""
    return {"name": name, "kwargs": kwargs}


def case(
    schedule: Spec, steps: int, oracles: str = "torch optax", far: tuple[int, ...] = ()
) -> None:
    """Add a case; the oracles run the first steps, the formula those that are far away too."""
    CASES.append({"schedule": schedule, "steps": steps, "oracles": oracles.split(), "far": far})


BIG = 2**53
MANY = (10**3, 10**6, 2**31, 2**31 + 1, BIG - 1, BIG)
case(spec("constant", lr=0.3), 5, far=MANY)
case(spec("step_decay", lr=0.5, step_size=7, gamma=0.1), 50, far=(300, 301))
case(spec("step_decay", lr=0.5, step_size=1, gamma=0.9), 30)
case(spec("step_decay", lr=0.1, step_size=2**40, gamma=0.5), 3, far=MANY)
case(spec("multistep", lr=0.5, milestones=[3, 4, 20], gamma=0.3), 30, far=MANY)
case(spec("multistep", lr=0.5, milestones=[0, 5, 5], gamma=0.1), 10, "torch")
case(spec("exponential", lr=0.1, gamma=0.97), 60, far=(1000, 2000))
case(spec("exponential", lr=1e-5, gamma=1.1), 60, far=(1000,))
case(spec("exponential", lr=0.1, gamma=1 - 2.0**-50), 3, far=(2**40, 2**50, BIG - 1, BIG))
case(spec("linear", lr=0.2, start_factor=1 / 3, end_factor=1.0, total_steps=5), 12, far=MANY)
case(spec("linear", lr=0.2, start_factor=1.0, end_factor=0.0, total_steps=30), 40)
case(spec("linear", lr=0.2, start_factor=0.0, end_factor=2.5, total_steps=7), 12, "optax")
case(spec("linear", lr=0.2, start_factor=1.0, end_factor=0.0, total_steps=BIG), 3, far=MANY)
case(spec("polynomial", lr=0.2, total_steps=20, power=1.0), 30, far=MANY)
case(spec("polynomial", lr=0.2, total_steps=20, power=2.5), 30)
case(spec("polynomial", lr=0.2, total_steps=20, power=0.5), 30)
case(spec("polynomial", lr=0.2, total_steps=BIG, power=2.0), 3, far=MANY)
case(
    spec("polynomial", lr=0.2, total_steps=20, power=1.5, lr_min=0.03, cycle=False),
    30,
    "optax",
    MANY,
)
case(spec("polynomial", lr=0.01, total_steps=7, power=2.0, lr_min=0.5, cycle=False), 12, "optax")
for power in (1.0, 0.5, 3.0):
    CYCLE = {"lr_min": 0.001, "cycle": True}
    case(spec("polynomial", lr=0.2, total_steps=10, power=power, **CYCLE), 45, "", MANY)
case(spec("inverse_time", lr=0.2, gamma=0.5, step_size=1, staircase=False), 40, "", MANY)
case(spec("inverse_time", lr=0.2, gamma=0.1, step_size=7, staircase=False), 40, "")
case(spec("inverse_time", lr=0.2, gamma=2.5, step_size=7, staircase=True), 40, "", MANY)
case(spec("inverse_time", lr=0.2, gamma=0.0, step_size=7, staircase=True), 3, "")
case(spec("rex", lr=0.2, total_steps=25, lr_min=0.0), 30, "", MANY)
case(spec("rex", lr=0.2, total_steps=40, lr_min=0.01), 45, "")
case(spec("rex", lr=0.2, total_steps=BIG, lr_min=0.0), 3, "", MANY)
case(spec("inverse_sqrt", lr=0.2, warmup_steps=10), 40, "", MANY)
case(spec("inverse_sqrt", lr=0.2, warmup_steps=1), 10, "")
case(spec("inverse_sqrt", lr=0.2, warmup_steps=4000), 3, "", (3998, 3999, 4000, *MANY))
case(spec("cosine", lr=0.1, total_steps=20, lr_min=0.0), 21)
case(spec("cosine", lr=0.1, total_steps=33, lr_min=0.001), 34)
case(spec("cosine", lr=0.1, total_steps=20, lr_min=0.0), 30, "optax", MANY)
case(spec("cosine", lr=0.1, total_steps=BIG, lr_min=0.0), 3, "", MANY)
case(spec("cosine_restarts", lr=0.1, first_period=10, multiplier=1, lr_min=0.0), 35, "torch", MANY)
case(spec("cosine_restarts", lr=0.1, first_period=3, multiplier=2, lr_min=0.01), 60, "torch", MANY)
case(spec("cosine_restarts", lr=0.1, first_period=1, multiplier=3, lr_min=0.0), 60, "torch", MANY)
ONE = {"div_factor": 25.0, "final_div_factor": 1e4}
case(spec("one_cycle", max_lr=0.1, total_steps=50, pct_start=0.3, **ONE), 50, "torch")
case(spec("one_cycle", max_lr=0.1, total_steps=50, pct_start=0.3, **ONE), 3, "torch", MANY[:1])
case(spec("one_cycle", max_lr=2.0, total_steps=37, pct_start=0.25, **ONE), 37, "torch")
case(spec("one_cycle", max_lr=0.1, total_steps=40, pct_start=0.0, **ONE), 40, "torch")
case(spec("one_cycle", max_lr=0.1, total_steps=40, pct_start=1.0, **ONE), 40, "torch")
OTHER = {"div_factor": 5.0, "final_div_factor": 10.0}
case(spec("one_cycle", max_lr=0.1, total_steps=11, pct_start=0.5, **OTHER), 11, "torch")
case(spec("one_cycle", max_lr=0.1, total_steps=BIG, pct_start=0.5, **OTHER), 3, "torch", MANY)
case(spec("cyclic", base_lr=0.01, max_lr=0.1, step_size_up=4), 40, "torch", MANY)
case(spec("cyclic", base_lr=0.1, max_lr=0.025, step_size_up=7), 40, "torch", MANY)
LINES = {"anneal": "linear", **ONE}
THREE = {"three_phase": True, **ONE}
case(spec("one_cycle", max_lr=0.1, total_steps=50, pct_start=0.3, **LINES), 50, "torch", MANY)
case(spec("one_cycle", max_lr=2.0, total_steps=37, pct_start=0.25, **LINES), 37, "torch")
case(spec("one_cycle", max_lr=0.1, total_steps=50, pct_start=0.3, **THREE), 50, "torch", MANY)
case(spec("one_cycle", max_lr=0.1, total_steps=37, pct_start=0.22, **THREE), 37, "torch")
case(spec("one_cycle", max_lr=0.1, total_steps=40, pct_start=0.5, **THREE), 40, "torch")
case(
    spec("one_cycle", max_lr=0.1, total_steps=41, pct_start=0.4, **{**LINES, **THREE}), 41, "torch"
)
case(
    spec("one_cycle", max_lr=0.1, total_steps=41, pct_start=0.01, **{**LINES, **THREE}), 41, "torch"
)
case(spec("cyclic", base_lr=0.01, max_lr=0.1, step_size_up=4, step_size_down=9), 60, "torch", MANY)
case(spec("cyclic", base_lr=0.01, max_lr=0.1, step_size_up=6, step_size_down=2), 30, "torch")
HALVED, SHRUNK = {"mode": "triangular2"}, {"mode": "exp_range", "gamma": 0.97}
case(spec("cyclic", base_lr=0.01, max_lr=0.1, step_size_up=4, **HALVED), 60, "torch", MANY)
case(
    spec("cyclic", base_lr=0.0, max_lr=0.1, step_size_up=3, step_size_down=5, **HALVED), 60, "torch"
)
case(spec("cyclic", base_lr=0.01, max_lr=0.1, step_size_up=4, **SHRUNK), 60, "torch", MANY)
case(
    spec("cyclic", base_lr=0.1, max_lr=0.02, step_size_up=3, step_size_down=5, **SHRUNK),
    60,
    "torch",
)
case(spec("chebyshev", lr=1.0, total_steps=1, lr_min=0.25), 3, "", MANY)
case(spec("chebyshev", lr=1.0, total_steps=8, lr_min=0.01), 20, "", MANY)
case(spec("chebyshev", lr=0.3, total_steps=64, lr_min=0.02), 64, "")
case(spec("chebyshev", lr=1.0, total_steps=2**50, lr_min=1e-3), 4, "", MANY)
WSD = {"total_steps": 40, "warmup_steps": 8, "decay_steps": 12}
for shape in ("linear", "cosine", "sqrt"):
    case(spec("wsd", lr=0.2, **WSD, lr_min=0.0, shape=shape, start_factor=0.0), 45, "", MANY)
    case(spec("wsd", lr=0.2, **WSD, lr_min=0.01, shape=shape, start_factor=0.1), 45, "")
SHORT = {"total_steps": 5, "warmup_steps": 0, "decay_steps": 5}
case(spec("wsd", lr=0.2, **SHORT, lr_min=0.0, shape="sqrt", start_factor=0.0), 8, "")

COSINE = spec("cosine", lr=0.1, total_steps=20, lr_min=0.0)
case(spec("warmup", schedule=COSINE, warmup_steps=10, start_factor=0.0), 40, "optax", MANY)
case(spec("warmup", schedule=COSINE, warmup_steps=10, start_factor=0.25), 31)
POWER = spec("exponential", lr=0.1, gamma=0.9)
case(spec("warmup", schedule=POWER, warmup_steps=5, start_factor=1e-3), 30, "torch")
case(spec("warmup", schedule=POWER, warmup_steps=1, start_factor=0.5), 30, "torch")
LINE = spec("linear", lr=0.1, start_factor=0.5, end_factor=1.0, total_steps=4)
STEPS = spec("step_decay", lr=0.1, step_size=3, gamma=0.5)
case(spec("join", schedules=[LINE, STEPS, POWER], boundaries=[6, 14]), 40)
case(spec("join", schedules=[COSINE, COSINE], boundaries=[20]), 41)
case(spec("join", schedules=[LINE, POWER], boundaries=[1]), 20)
case(spec("join", schedules=[STEPS], boundaries=[]), 20)
FACTOR = spec("linear", lr=1.0, start_factor=0.25, end_factor=1.0, total_steps=12)
case(spec("product", factors=[POWER, FACTOR]), 30, "torch")
case(spec("product", factors=[STEPS, FACTOR]), 30, "torch")
case(spec("product", factors=[COSINE, FACTOR, 0.5]), 30, "", MANY)


def losses(seed: int, count: int, sign: float) -> list[float]:
    """Return losses that fall and then stay, with noise, a NaN at 25 and an infinity at 26."""
    draw = random.Random(seed)
    made = [sign * (math.exp(-i / 6) + 0.1 + 0.02 * draw.random()) for i in range(count)]
    made[25], made[26] = math.nan, sign * math.inf
    return made


DOWN, UP = losses(1, 90, 1.0), losses(2, 90, -1.0)
ACCURACY = [x if math.isnan(x) else -math.inf if math.isinf(x) else 1.5 - x for x in DOWN]
PLATEAUS: list[tuple[dict[str, Any], list[float]]] = [
    ({"lr": 0.1}, DOWN),
    ({"lr": 0.1, "patience": 0, "factor": 0.9}, DOWN),
    ({"lr": 0.1, "patience": 2, "cooldown": 3, "factor": 0.5, "lr_min": 0.003}, DOWN),
    ({"lr": 0.1, "patience": 3, "threshold": 0.05, "threshold_mode": "abs", "eps": 1e-3}, DOWN),
    ({"lr": 0.1, "patience": 3, "threshold": 0.05, "factor": 0.5}, DOWN),
    ({"lr": 0.1, "patience": 3, "factor": 0.7, "mode": "max", "cooldown": 1}, ACCURACY),
    (
        {
            "lr": 0.1,
            "patience": 2,
            "factor": 0.3,
            "mode": "max",
            "threshold": 0.01,
            "threshold_mode": "abs",
        },
        UP,
    ),
    ({"lr": 1e-7, "patience": 1}, DOWN),
]


def gradients(seed: int) -> list[list[float]]:
    """Return the gradients of twelve steps."""
    draw = random.Random(seed)
    return [[draw.uniform(-2, 2) for _ in range(3)] for _ in range(12)]


RISE = spec("linear", lr=0.9, start_factor=0.5, end_factor=1.0, total_steps=8)
FALL = spec("cosine", lr=0.5, total_steps=10, lr_min=0.125)
TURN = spec("cyclic", base_lr=0.125, max_lr=0.75, step_size_up=3)
RUNS: list[tuple[str, dict[str, Any], list[list[float]]]] = [
    ("SGD", {"lr": 0.1, "momentum": RISE}, gradients(1)),
    ("SGD", {"lr": FALL, "momentum": RISE, "dampening": FALL, "weight_decay": TURN}, gradients(2)),
    ("SGD", {"lr": 0.1, "momentum": RISE, "nesterov": True}, gradients(3)),
    ("SGD", {"lr": 0.1, "momentum": TURN}, gradients(4)),
    ("SGD", {"lr": 0.1, "momentum": RISE, "max_grad_norm": FALL}, gradients(5)),
    ("RMSprop", {"lr": 0.1, "beta": 0.9, "momentum": TURN}, gradients(6)),
    ("RMSprop", {"lr": FALL, "beta": 0.9, "momentum": RISE, "centered": True}, gradients(7)),
    ("Momentum", {"lr": 0.1, "beta": RISE}, gradients(8)),
    ("Momentum", {"lr": FALL, "beta": TURN, "weight_decay": FALL}, gradients(9)),
    ("Momentum", {"lr": 0.1, "beta": RISE, "bias_correction": True}, gradients(10)),
    ("RMSprop", {"lr": 0.1, "beta": TURN, "momentum": RISE}, gradients(11)),
    ("Adadelta", {"lr": 0.5, "rho": TURN, "eps": FALL}, gradients(12)),
    ("Adam", {"lr": 0.1, "betas": [RISE, 0.75]}, gradients(13)),
    ("Adam", {"lr": FALL, "betas": [TURN, RISE], "eps": FALL, "amsgrad": True}, gradients(14)),
    ("AdamW", {"lr": 0.1, "betas": [0.5, TURN], "weight_decay": RISE}, gradients(15)),
]

CYCLE = {"max_lr": 0.1, "total_steps": 12, "pct_start": 0.4, "final_div_factor": 50.0}
CYCLES: list[tuple[str, dict[str, Any], list[list[float]]]] = [
    ("SGD", {**CYCLE, "anneal_strategy": "cos", "three_phase": False}, gradients(16)),
    ("SGD", {**CYCLE, "anneal_strategy": "linear", "three_phase": True}, gradients(17)),
    ("Adam", {**CYCLE, "anneal_strategy": "cos", "three_phase": False}, gradients(18)),
    ("AdamW", {**CYCLE, "anneal_strategy": "cos", "three_phase": True}, gradients(19)),
    ("Adam", {**CYCLE, "anneal_strategy": "linear", "three_phase": False}, gradients(20)),
]
"""Optimizers under PyTorch's OneCycleLR with its momentum, from 0.95 to 0.85 and back."""
