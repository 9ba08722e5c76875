"""Makes schedules.json: what PyTorch, optax and the formulas in 50 digits give, step by step.

From the root of the repository: python -m tests.golden.make_schedules
It needs torch, optax, jax and mpmath, and never imports fastopt. README.md beside it gives the
format.
"""

import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import mpmath
import optax
import torch

from .schedule_cases import CASES, CYCLES, PLATEAUS, RUNS, Spec

jax.config.update("jax_enable_x64", True)
mpmath.mp.dps = 50
OUT = Path(__file__).parent / "schedules.json"
AGREE = 1e-12  # relative: two oracles of one case
Scheduler = torch.optim.lr_scheduler.LRScheduler
Function = Callable[[int], Any]


# PyTorch -----------------------------------------------------------------------------------------


def torch_scheduler(opt: torch.optim.Optimizer, name: str, a: dict[str, Any]) -> Any:
    """Return PyTorch's scheduler of this kind; the optimizer's lr is the schedule's."""
    lrs = torch.optim.lr_scheduler
    made: dict[str, Callable[[], Any]] = {
        "constant": lambda: lrs.ConstantLR(opt, 1.0),
        "step_decay": lambda: lrs.StepLR(opt, a["step_size"], a["gamma"]),
        "multistep": lambda: lrs.MultiStepLR(opt, a["milestones"], a["gamma"]),
        "exponential": lambda: lrs.ExponentialLR(opt, a["gamma"]),
        "linear": lambda: lrs.LinearLR(opt, a["start_factor"], a["end_factor"], a["total_steps"]),
        "polynomial": lambda: lrs.PolynomialLR(opt, a["total_steps"], a["power"]),
        "cosine": lambda: lrs.CosineAnnealingLR(opt, a["total_steps"], a["lr_min"]),
        "cosine_restarts": lambda: lrs.CosineAnnealingWarmRestarts(
            opt, a["first_period"], a["multiplier"], a["lr_min"]
        ),
        "one_cycle": lambda: lrs.OneCycleLR(
            opt,
            a["max_lr"],
            a["total_steps"],
            pct_start=a["pct_start"],
            div_factor=a["div_factor"],
            final_div_factor=a["final_div_factor"],
            anneal_strategy="linear" if a.get("anneal") == "linear" else "cos",
            three_phase=a.get("three_phase", False),
            cycle_momentum=False,
        ),
        "cyclic": lambda: lrs.CyclicLR(
            opt,
            a["base_lr"],
            a["max_lr"],
            a["step_size_up"],
            a.get("step_size_down"),
            mode=a.get("mode", "triangular"),
            gamma=a.get("gamma", 1.0),
            cycle_momentum=False,
        ),
    }
    return made[name]()


def torch_sequence(opt: torch.optim.Optimizer, spec: Spec) -> Any:
    """Return PyTorch's scheduler; all parts of a sequence must have the optimizer's lr."""
    a = spec["kwargs"]
    if spec["name"] == "warmup":
        line = torch.optim.lr_scheduler.LinearLR(opt, a["start_factor"], 1.0, a["warmup_steps"])
        parts, boundaries = [line, torch_sequence(opt, a["schedule"])], [a["warmup_steps"]]
    elif spec["name"] == "join":
        parts = [torch_sequence(opt, part) for part in a["schedules"]]
        boundaries = a["boundaries"]
    elif spec["name"] == "product":  # the first factor has the optimizer's lr, the others have 1
        parts = [torch_sequence(opt, part) for part in a["factors"]]
        return torch.optim.lr_scheduler.ChainedScheduler(parts, opt)
    else:
        return torch_scheduler(opt, spec["name"], a)
    return torch.optim.lr_scheduler.SequentialLR(opt, parts, boundaries)


def first_lr(spec: Spec) -> float:
    """Return the lr that all parts of a schedule are relative to."""
    a = spec["kwargs"]
    inner = a.get("schedule") or a.get("schedules", a.get("factors", [None]))[0]
    return first_lr(inner) if inner else a.get("lr", a.get("max_lr"))


def by_torch(spec: Spec, steps: int) -> list[float]:
    """Return PyTorch's learning rate of the first steps."""
    opt = torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], first_lr(spec))
    scheduler = torch_sequence(opt, spec)
    values = [float(opt.param_groups[0]["lr"])]
    for _ in range(steps - 1):
        opt.step()
        scheduler.step()
        values.append(float(opt.param_groups[0]["lr"]))
    return values


# optax -------------------------------------------------------------------------------------------


def optax_schedule(spec: Spec) -> Function:
    """Return optax's schedule of this kind."""
    a = spec["kwargs"]
    if spec["name"] == "join":
        return optax.join_schedules([optax_schedule(p) for p in a["schedules"]], a["boundaries"])
    if spec["name"] == "warmup":  # optax has it for the cosine alone
        inner = a["schedule"]["kwargs"]
        return optax.warmup_cosine_decay_schedule(
            inner["lr"] * a["start_factor"],
            inner["lr"],
            a["warmup_steps"],
            a["warmup_steps"] + inner["total_steps"],
            inner["lr_min"],
        )
    made: dict[str, Callable[[], Function]] = {
        "constant": lambda: optax.constant_schedule(a["lr"]),
        "step_decay": lambda: optax.exponential_decay(
            a["lr"], a["step_size"], a["gamma"], staircase=True
        ),
        "multistep": lambda: optax.piecewise_constant_schedule(
            a["lr"], dict.fromkeys(a["milestones"], a["gamma"])
        ),
        "exponential": lambda: optax.exponential_decay(a["lr"], 1, a["gamma"]),
        "linear": lambda: optax.linear_schedule(
            a["lr"] * a["start_factor"], a["lr"] * a["end_factor"], a["total_steps"]
        ),
        "polynomial": lambda: optax.polynomial_schedule(
            a["lr"], a.get("lr_min", 0.0), a["power"], a["total_steps"]
        ),
        "cosine": lambda: optax.cosine_decay_schedule(
            a["lr"], a["total_steps"], a["lr_min"] / a["lr"]
        ),
    }
    return made[spec["name"]]()


def by_optax(spec: Spec, steps: int) -> list[float]:
    """Return optax's value of the first steps, in float64."""
    schedule = optax_schedule(spec)
    return [float(schedule(jax.numpy.asarray(step, jax.numpy.int64))) for step in range(steps)]


# The formulas ------------------------------------------------------------------------------------


def half_cosine(start: Any, end: Any, part: Any) -> Any:
    """Return start at 0 and end at 1, along (1 + cos) / 2."""
    return end + (start - end) * (1 + mpmath.cos(mpmath.pi * part)) / 2


def straight(start: Any, end: Any, part: Any) -> Any:
    """Return start at 0 and end at 1, along a line."""
    return start + (end - start) * part


def fractal(total: int, place: int) -> int:
    """Return the number at a place of the fractal order, as the paper builds the order up.

    sigma_1 = [1], and sigma_2T has each number n of sigma_T, followed by 2T + 1 - n.
    """
    number, length = 1, 1
    for bit in range(total.bit_length() - 2, -1, -1):  # the place's highest bit halves the whole
        length *= 2
        if (place >> bit) & 1:
            number = length + 1 - number
    return number


def formula(spec: Spec, t: int) -> Any:
    """Return a schedule's value as the papers define it, with 50 digits."""
    name, f = spec["name"], mpmath.mpf
    a = {k: f(v) if isinstance(v, float | int) else v for k, v in spec["kwargs"].items()}
    if name == "constant":
        return a["lr"]
    if name == "step_decay":
        return a["lr"] * a["gamma"] ** mpmath.floor(t / a["step_size"])
    if name == "multistep":
        return a["lr"] * a["gamma"] ** sum(m <= t for m in a["milestones"])
    if name == "exponential":
        return a["lr"] * a["gamma"] ** t
    if name == "linear":
        part = min(t / a["total_steps"], 1)
        return a["lr"] * (a["start_factor"] + (a["end_factor"] - a["start_factor"]) * part)
    if name == "polynomial":  # as in Keras 3's documentation of PolynomialDecay
        total, end = a["total_steps"], a.get("lr_min", f(0))
        if spec["kwargs"].get("cycle"):
            total, now = total * max(mpmath.ceil(t / total), 1), f(t)
        else:
            now = min(f(t), total)
        return (a["lr"] - end) * (1 - now / total) ** a["power"] + end
    if name == "inverse_time":  # as in Keras 3's documentation of InverseTimeDecay
        units = t / a["step_size"]
        units = mpmath.floor(units) if spec["kwargs"]["staircase"] else units
        return a["lr"] / (1 + a["gamma"] * units)
    if name == "rex":
        z = min(t / a["total_steps"], f(1))
        share = (1 - z) / (f(1) / 2 + f(1) / 2 * (1 - z))
        return a["lr_min"] + (a["lr"] - a["lr_min"]) * share
    if name == "chebyshev":
        big, small, total = 1 / a["lr_min"], 1 / a["lr"], spec["kwargs"]["total_steps"]
        node = mpmath.cos((2 * fractal(total, t % total) - 1) * mpmath.pi / (2 * total))
        return 2 / ((big + small) - (big - small) * node)
    if name == "wsd":
        warm, stable = a["warmup_steps"], a["total_steps"] - a["decay_steps"]
        if t < warm:
            return a["lr"] * (a["start_factor"] + (1 - a["start_factor"]) * t / warm)
        z = min(max((t - stable) / a["decay_steps"], f(0)), f(1))
        left = {"linear": 1 - z, "cosine": (1 + mpmath.cos(mpmath.pi * z)) / 2}
        left["sqrt"] = 1 - mpmath.sqrt(z)
        return a["lr_min"] + (a["lr"] - a["lr_min"]) * left[a["shape"]]
    if name == "product":
        parts = [formula(p, t) if isinstance(p, dict) else f(p) for p in a["factors"]]
        return mpmath.fprod(parts)
    if name == "inverse_sqrt":
        n, w = f(t + 1), a["warmup_steps"]
        return a["lr"] * mpmath.sqrt(w) * min(n ** f(-0.5), n * w ** f(-1.5))
    if name == "cosine":
        return half_cosine(a["lr"], a["lr_min"], min(t / a["total_steps"], 1))
    if name == "cosine_restarts":
        begin, period = 0, spec["kwargs"]["first_period"]
        if spec["kwargs"]["multiplier"] == 1:
            begin = t - t % period
        while begin + period <= t:
            begin, period = begin + period, period * spec["kwargs"]["multiplier"]
        return half_cosine(a["lr"], a["lr_min"], f(t - begin) / period)
    if name == "one_cycle":
        low, top = a["max_lr"] / a["div_factor"], a["pct_start"] * a["total_steps"] - 1
        last = a["total_steps"] - 1
        along = half_cosine if a.get("anneal", "cosine") == "cosine" else straight
        if t <= top:
            return along(low, a["max_lr"], t / top if top else f(1))
        if a.get("three_phase") and t <= 2 * top:
            return along(a["max_lr"], low, (t - top) / top)
        begin, top = (low, 2 * top) if a.get("three_phase") else (a["max_lr"], top)
        part = (min(f(t), last) - top) / (last - top)
        return along(begin, low / a["final_div_factor"], part)
    if name == "cyclic":
        up = a["step_size_up"]
        down = a.get("step_size_down", up)
        cycle = int(mpmath.floor(t / (up + down)))
        place = t - cycle * (up + down)
        height = place / up if place <= up else 1 - (place - up) / down
        scale = {"triangular": lambda: f(1), "triangular2": lambda: f(0.5) ** cycle}
        scale["exp_range"] = lambda: a["gamma"] ** t
        height *= scale[a.get("mode", "triangular")]()
        return a["base_lr"] + (a["max_lr"] - a["base_lr"]) * height
    if name == "warmup":
        if t >= a["warmup_steps"]:
            return formula(a["schedule"], t - int(a["warmup_steps"]))
        part = a["start_factor"] + (1 - a["start_factor"]) * t / a["warmup_steps"]
        return formula(a["schedule"], 0) * part
    if name == "join":
        number = sum(b <= t for b in a["boundaries"])
        begin = a["boundaries"][number - 1] if number else 0
        return formula(a["schedules"][number], t - begin)
    raise ValueError(name)


# The reductions on a plateau, and optimizers under schedules --------------------------------------


def plateau(options: dict[str, Any], losses: list[float]) -> list[float]:
    """Return PyTorch's learning rate after each reported loss."""
    names = {"lr_min": "min_lr"}
    opt = torch.optim.SGD([torch.zeros(1)], options["lr"])
    given = {names.get(k, k): v for k, v in options.items() if k != "lr"}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, **given)
    values = []
    for loss in losses:
        scheduler.step(loss)
        values.append(float(opt.param_groups[0]["lr"]))
    return values


def run(optimizer: str, options: dict[str, Any], grads: list[list[float]]) -> list[list[float]]:
    """Return the parameter after each step of PyTorch's optimizer under the formulas' values.

    Momentum and its average are no class of PyTorch's: SGD with dampening = momentum = beta, whose
    buffer is kept from beginning as the whole first gradient; with bias correction lr is divided by
    1 - beta^t.
    """
    param = torch.ones(len(grads[0]), dtype=torch.float64)
    made: Any = getattr(torch.optim, "SGD" if optimizer == "Momentum" else optimizer)
    # RMSprop makes its buffer only if there is a momentum, and Adam its maximum if it is amsgrad.
    first = {"momentum": 0.5} if made in (torch.optim.SGD, torch.optim.RMSprop) else {}
    opt = made([param], **first, **{k: v for k, v in options.items() if k == "amsgrad"})
    path = []
    for step, grad in enumerate(grads):
        now = {name: at(value, step) for name, value in options.items()}
        limit = now.pop("max_grad_norm", None)
        if optimizer == "Momentum":
            now["momentum"] = now["dampening"] = now.pop("beta")
            if now.pop("bias_correction", False):
                now["lr"] /= 1 - now["momentum"] ** (step + 1)
            if not step:
                opt.state[param]["momentum_buffer"] = torch.zeros_like(param)
        opt.param_groups[0].update({{"beta": "alpha"}.get(k, k): v for k, v in now.items()})
        param.grad = torch.tensor(grad, dtype=torch.float64)
        if limit is not None:
            torch.nn.utils.clip_grad_norm_([param], limit)
        opt.step()
        path.append(param.tolist())
    return path


def at(value: Any, step: int) -> Any:
    """Return a hyperparameter in a step; pairs are lists."""
    if isinstance(value, list):
        return tuple(at(one, step) for one in value)
    return float(formula(value, step)) if isinstance(value, dict) else value


def cycle(optimizer: str, options: dict[str, Any], grads: list[list[float]]) -> list[list[float]]:
    """Return the parameter after each step under PyTorch's OneCycleLR, which cycles momentum."""
    param = torch.ones(len(grads[0]), dtype=torch.float64)
    first = {"momentum": 0.9} if optimizer == "SGD" else {}
    opt = getattr(torch.optim, optimizer)([param], **first)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, **options)
    path = []
    for step, grad in enumerate(grads):
        if step:
            scheduler.step()
        param.grad = torch.tensor(grad, dtype=torch.float64)
        opt.step()
        path.append(param.tolist())
    return path


# The file ----------------------------------------------------------------------------------------


def gap(one: list[float], two: list[float], scale: float) -> float:
    """Return the largest relative distance; a value of 0 is compared with the scale."""
    pairs = list(zip(one, two, strict=True))
    return max(abs(a - b) / max(abs(a), 1e-3 * scale) for a, b in pairs)


def make_case(case: dict[str, Any]) -> dict[str, Any]:
    """Run the oracles of a case, and hold them against each other."""
    spec, steps = case["schedule"], case["steps"]
    shown = [*range(steps), *case["far"]]
    exact = [formula(spec, t) for t in shown]
    values = {"closed": [float(value) for value in exact]}
    scale = max(values["closed"][:steps])
    for name, oracle in (("torch", by_torch), ("optax", by_optax)):
        if name in case["oracles"]:
            values[name] = oracle(spec, steps)
            apart = gap(values["closed"][:steps], values[name], scale)
            print(f"{spec['name']:16}{name:6}{steps:4}  {apart:.0e}")
            if apart > AGREE:
                raise AssertionError(f"{spec}: {name} and the formula differ by {apart}")
    return {"schedule": spec, "steps": shown, "values": values}


def plain(number: float) -> float | str:
    """Return a number as JSON can hold it."""
    return number if math.isfinite(number) else str(number)


def main() -> None:
    """Make the file."""
    warnings.simplefilter("ignore")  # PyTorch's, of the order of calls
    plateaus = [
        {"options": o, "losses": [plain(x) for x in losses], "lr": plateau(o, losses)}
        for o, losses in PLATEAUS
    ]
    runs = [{"optimizer": n, "options": o, "grads": g, "params": run(n, o, g)} for n, o, g in RUNS]
    made = {m.__name__: m.__version__ for m in (torch, optax, jax, mpmath)}
    cycles = [
        {"optimizer": n, "options": o, "grads": g, "params": cycle(n, o, g)} for n, o, g in CYCLES
    ]
    cases = [make_case(case) for case in CASES]
    parts = {"cases": cases, "plateaus": plateaus, "runs": runs, "cycles": cycles}
    lines = [f'"made_with": {json.dumps(made)}']
    for name, rows in parts.items():
        lines.append(f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    old = OUT.read_text(encoding="utf-8") if OUT.exists() else None
    OUT.write_text(text, encoding="utf-8")
    verdict = "unchanged" if old == text else "new" if old is None else "CHANGED"
    print(f"{OUT.name}: {len(text)} bytes, {verdict}")
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


if __name__ == "__main__":
    main()
