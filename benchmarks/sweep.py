"""What is gained by each optimizer: all of them on two problems, with learning rates tried fairly.

    python benchmarks/sweep.py --json sweep.json --picture sweep.png    # ten minutes of one core
    python benchmarks/sweep.py --only digits --optimizers Adam SGD      # seconds
    python benchmarks/sweep.py --redraw sweep.json --picture sweep.png  # from what was measured

Every optimizer makes the same number of steps from the same weights on the same batches, at eleven
learning rates from 1/30 of its default to 3000 times that, each falling to 0 along half a cosine.
That is done with one seed; the best rate and those next to it get two more. The best is the one
with the least loss on data kept apart for that, in the mean of the three seeds, and what is shown
is the loss on other data, which nothing was chosen by. All else is as each class has it by default;
what is done otherwise, and why, is in ``USES``.
"""

from __future__ import annotations

import functools
import inspect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import sweep_report
from sweep_problems import PROBLEMS, Batch, Params, Part, Problem

import fastopt
from fastopt.cli import main as cli

FACTORS = tuple(10.0 ** (k / 2) for k in range(-3, 8))
"""Of the default learning rate. Many defaults are far too small here (SGD's is 0.001), and few too
large: hence further up than down."""
SEEDS = (0, 1, 2)
TOLERANCE = 1.1
"""A rate is as good as the best one if it ends at most 10 % above its loss."""
PROBE = 1e-4
"""How far gradients are taken from the parameters, on both sides, to estimate a curvature."""


@dataclass(frozen=True)
class Use:
    """How an optimizer is used where that is not simply ``step(grads)`` with falling ``lr``.

    ``swept``: what is tried in the place of the learning rate. ``constant``: does not fall.
    ``value``: steps are handed the loss. ``hessian_every``: steps between estimates of the
    Hessian's diagonal. ``matrices_alone``: AdamW takes the rest. ``vectors``: what multiplies the
    rate of arrays of one axis. ``own_rate``: finds the size of its steps by itself, and what is
    tried multiplies it. ``options``: by the number of steps. ``why``: in words, for the results.
    """

    why: str
    swept: str = "lr"
    constant: bool = False
    value: bool = False
    hessian_every: int = 0
    matrices_alone: bool = False
    vectors: float = 1.0
    own_rate: bool = False
    options: Callable[[int], dict[str, Any]] = lambda steps: {}


_ESTIMATE = (
    "handed an estimate of the Hessian's diagonal (Hutchinson's: random signs, times differences "
    "of the batch's gradients along them)"
)
_AVERAGE = "averages by itself: the learning rate stays, and the average is judged"
_MATRICES = "takes matrices but no embeddings and last layer; AdamW takes these, its rate tried too"
_OWN = "finds its rate, and what is tried multiplies that"
_LONGEST = "finds its rate up to the one that is tried"

USES: Mapping[str, Use] = {
    "AdaBound": Use("base_lr is the rate tried"),
    "AdaHessian": Use(f"{_ESTIMATE} in each step", hessian_every=1),
    "ASGD": Use(
        f"{_AVERAGE}, which begins half-way (by default after a million steps)",
        constant=True,
        options=lambda steps: {"t0": steps / 2},
    ),
    "COCOB": Use(
        "has no learning rate: 1/alpha is tried", swept="alpha", constant=True, own_rate=True
    ),
    "DAdaptAdam": Use(_OWN, own_rate=True),
    "DAdaptSGD": Use(_OWN, own_rate=True),
    "DoG": Use(f"{_OWN}, and stays", constant=True, own_rate=True),
    "DoWG": Use(f"{_OWN}, and stays", constant=True, own_rate=True),
    "FTRL": Use(
        "initial_accumulator_value=0: otherwise it begins with weights of 0, from which no network "
        "learns",
        options=lambda steps: {"initial_accumulator_value": 0.0},
    ),
    "LARS": Use(
        "biases and gains at 1/1000 of the rate, trust_coefficient: those that begin at 0 have no "
        "length to take a share of, and would make steps of SGD at the whole rate",
        vectors=1e-3,
    ),
    "MoMo": Use(f"handed the loss; {_LONGEST}", value=True, own_rate=True),
    "MoMoAdam": Use(f"handed the loss; {_LONGEST}", value=True, own_rate=True),
    "Muon": Use(_MATRICES, matrices_alone=True),
    "MuonWithAdamW": Use(_MATRICES),
    "NorMuon": Use(_MATRICES, matrices_alone=True),
    "Prodigy": Use(_OWN, own_rate=True),
    "Rprop": Use("the rate is the length of the first step alone", own_rate=True),
    "ScheduleFreeAdamW": Use(_AVERAGE, constant=True),
    "ScheduleFreeSGD": Use(_AVERAGE, constant=True),
    "Sophia": Use(f"{_ESTIMATE} in every tenth step", hessian_every=10),
}
PLAIN = Use("")


# One run ----------------------------------------------------------------------------------------


class Run:
    """An optimizer on the parameters of a problem, with all that its steps ask for."""

    def __init__(
        self, name: str, factor: float, problem: Problem, params: Params, rng: np.random.Generator
    ) -> None:
        self.use = USES.get(name, PLAIN)
        self.problem, self.params, self.rng = problem, params, rng
        self.steps_made = 0
        self.parts = [
            (opt, sorted(own)) for opt, own in _optimizers(name, self.use, factor, problem, params)
        ]

    def step(self, batch: Batch) -> float:
        """Make a step; return the loss before it. Where that is not finite there is no step."""
        loss, grads = self.problem.loss_and_gradients(self.params, batch)
        if not math.isfinite(loss):
            return math.inf
        extra: dict[str, Any] = {"value": float(loss)} if self.use.value else {}
        if self.use.hessian_every and self.steps_made % self.use.hessian_every == 0:
            extra["hessian"] = hessian_diagonal(self.problem, self.params, batch, self.rng)
        for opt, own in self.parts:
            opt.step({name: grads[name] for name in own}, **extra)
        self.steps_made += 1
        return float(loss)

    def judge(self, part: Part) -> tuple[float, float]:
        """Return loss and accuracy of what the optimizer says is its result."""
        opt = self.parts[0][0]
        if isinstance(opt, fastopt.ASGD):
            state = opt.state_dict()["state"]
            return self.problem.judge({n: state[n]["mean"] for n in self.params}, part)
        if isinstance(opt, fastopt.ScheduleFreeSGD | fastopt.ScheduleFreeAdamW):
            with opt.eval():
                return self.problem.judge(self.params, part)
        return self.problem.judge(self.params, part)


def _optimizers(
    name: str, use: Use, factor: float, problem: Problem, params: Params
) -> list[tuple[fastopt.Optimizer, Params]]:
    """Return the optimizer with what it updates, and AdamW where it does not take everything."""
    rate = functools.partial(_rate, use=use, factor=factor, steps=problem.steps)
    cls = getattr(fastopt, name)
    options = {**use.options(problem.steps), use.swept: rate(cls)}
    if name == "AdaBound":
        options["base_lr"] = default(cls) * factor
    if name == "MuonWithAdamW":
        options["adamw_lr"] = rate(fastopt.AdamW)
        groups = fastopt.groups(params, {leaf: {"rule": "adamw"} for leaf in problem.no_muon})
        return [(cls(groups, **options), params)]
    if use.vectors != 1.0:
        vectors = [leaf for leaf, array in params.items() if array.ndim == 1]
        groups = fastopt.groups(params, {leaf: {"lr_scale": use.vectors} for leaf in vectors})
        return [(cls(groups, **options), params)]
    if not use.matrices_alone:
        return [(cls(params, **options), params)]
    hidden = {n for n, a in params.items() if a.ndim == 2} - problem.no_muon
    taken, rest = ({n: params[n] for n in names} for names in (hidden, params.keys() - hidden))
    return [(cls(taken, **options), taken), (fastopt.AdamW(rest, lr=rate(fastopt.AdamW)), rest)]


def default(cls: type[fastopt.Optimizer], argument: str = "lr") -> float:
    """Return what an optimizer has by default."""
    return float(inspect.signature(cls).parameters[argument].default)


def _rate(
    cls: type[fastopt.Optimizer], use: Use, factor: float, steps: int
) -> float | fastopt.schedules.Schedule:
    if use.swept == "alpha":
        return default(cls, "alpha") / factor  # 1 / alpha is the length of a first step
    value = default(cls) * factor
    return value if use.constant else fastopt.schedules.cosine(value, total_steps=steps)


def hessian_diagonal(
    problem: Problem, params: Params, batch: Batch, rng: np.random.Generator
) -> Params:
    """Return Hutchinson's estimate, s * (H s) with random signs s.

    H s is the difference of the gradients at a distance of ``PROBE`` along s and against it, in
    float64.
    """
    signs = {n: rng.choice([-1.0, 1.0], size=a.shape) for n, a in params.items()}
    ahead, behind = (
        problem.loss_and_gradients({n: params[n] + way * signs[n] for n in params}, batch)[1]
        for way in (PROBE, -PROBE)
    )
    return {
        n: ((ahead[n] - behind[n]) * signs[n] / (2 * PROBE)).astype(array.dtype)
        for n, array in params.items()
    }


@dataclass(frozen=True)
class Result:
    """What a run ends with; the losses are infinite if it has failed."""

    training: float = math.inf
    """Mean over the batches of the last tenth of the steps."""
    choosing: float = math.inf
    shown: float = math.inf
    accuracy: float = 0.0


def train(name: str, factor: float, problem: Problem, seed: int) -> Result:
    """Train from the weights and on the batches of a seed, which are those of all optimizers."""
    rng = np.random.default_rng(seed)
    params = problem.initial_params(rng)
    run = Run(name, factor, problem, params, np.random.default_rng(1000 + seed))
    losses = []
    with np.errstate(all="ignore"):
        try:
            for _ in range(problem.steps):
                losses.append(run.step(problem.batch(rng)))
                if not math.isfinite(losses[-1]):
                    return Result()
        except np.linalg.LinAlgError:  # of Shampoo and SOAP, whose matrices are no longer finite
            return Result()
        found = [run.judge(part) for part in ("choosing", "shown")]
    if not all(math.isfinite(loss) for loss, _ in found):
        return Result()
    last = losses[-max(1, problem.steps // 10) :]
    return Result(statistics.mean(last), found[0][0], *found[1])


# The sweep --------------------------------------------------------------------------------------


def sweep(name: str, problem: Problem) -> dict[str, Any]:
    """Try all rates with the first seed, and those about the best one with all; return the best."""

    def trained(k: int, seeds: Sequence[int]) -> list[Result]:
        return [train(name, FACTORS[k], problem, seed) for seed in seeds]

    every = range(len(FACTORS))
    runs = {k: trained(k, SEEDS[:1]) for k in every}
    first = [runs[k][0].choosing for k in every]
    about = set(every) & {first.index(min(first)) + aside for aside in (-1, 0, 1)}
    for k in about | {FACTORS.index(1.0)}:
        runs[k] += trained(k, SEEDS[1:])

    losses = [statistics.mean(run.choosing for run in runs[k]) for k in every]
    medians = [statistics.median(run.choosing for run in runs[k]) for k in every]
    best = min(about, key=lambda k: (losses[k], medians[k]))  # where all means are infinite
    good = [math.isfinite(loss) and loss <= TOLERANCE * losses[best] for loss in losses]
    lowest = highest = best
    while lowest > 0 and good[lowest - 1]:
        lowest -= 1
    while highest + 1 < len(FACTORS) and good[highest + 1]:
        highest += 1
    use = USES.get(name, PLAIN)
    return {
        "tried": use.swept,
        "default": default(getattr(fastopt, name), use.swept),
        "own_rate": use.own_rate,
        "used": use.why,
        "choosing_loss": [_number(loss) for loss in losses],
        "best": {"factor": _number(FACTORS[best]), **_summary(runs[best])},
        "at_default": _summary(runs[FACTORS.index(1.0)]),
        "within_10_percent": [_number(FACTORS[lowest]), _number(FACTORS[highest])],
        "best_is_at_the_edge": best in (0, len(FACTORS) - 1),
    }


def _summary(runs: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    measures = {
        "loss": [run.shown for run in runs],
        "accuracy": [run.accuracy for run in runs],
        "choosing_loss": [run.choosing for run in runs],
        "training_loss": [run.training for run in runs],
    }
    return {
        name: {
            "median": _number(statistics.median(values)),
            "low": _number(min(values)),
            "high": _number(max(values)),
        }
        for name, values in measures.items()
    }


def _number(value: float) -> float | None:
    """Return five digits, or None for what has failed."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


_problems: dict[str, Problem] = {}


def _prepare(steps: Mapping[str, int]) -> None:
    """Have each process load the data once."""
    _problems.clear()
    _problems.update({name: PROBLEMS[name](steps=number) for name, number in steps.items()})


def _swept(task: tuple[str, str]) -> dict[str, Any]:
    problem, name = task
    return sweep(name, _problems[problem])


def measure(steps: Mapping[str, int], names: Sequence[str], processes: int = 1) -> dict[str, Any]:
    """Return the results of these optimizers on these problems, made in so many steps each."""
    tasks = [(problem, name) for problem in steps for name in names]
    _prepare(steps)
    results: dict[str, Any] = {
        "machine": cli.machine(),
        "factors": [_number(factor) for factor in FACTORS],
        "seeds": list(SEEDS),
        "problems": {
            name: {
                "title": problem.title,
                "steps": problem.steps,
                "parameters": sum(
                    array.size
                    for array in problem.initial_params(np.random.default_rng(0)).values()
                ),
                "no_knowledge": _number(problem.no_knowledge),
                "optimizers": {},
            }
            for name, problem in _problems.items()
        },
    }
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_prepare, initargs=(steps,)
    ) as pool:
        for (problem, name), found in zip(
            tasks, (pool.map if processes > 1 else map)(_swept, tasks), strict=True
        ):
            results["problems"][problem]["optimizers"][name] = found
            command_line.tell(f"{problem}, {sweep_report.line(name, found)}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep, print, write, draw."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--only", choices=PROBLEMS, help="one of the problems")
    parser.add_argument(
        "--optimizers", nargs="+", metavar="NAME", help="some of them; without it, all"
    )
    parser.add_argument("--steps", type=int, help="other than 300")
    parser.add_argument("--processes", type=int, default=1, help="1 unless given")
    parser.add_argument("--redraw", type=Path, metavar="PATH", help="take the numbers from there")
    given = command_line.parse(parser, argv)
    if given.processes < 1 or (given.steps is not None and given.steps < 1):
        parser.error("--steps and --processes must be at least 1")
    if given.redraw:
        results = sweep_report.read(given.redraw)
    else:
        chosen = [given.only] if given.only else list(PROBLEMS)
        steps = {name: given.steps or PROBLEMS[name]().steps for name in chosen}
        every = fastopt.optimizers.names()
        unknown = set(given.optimizers or ()) - set(every)
        if unknown:
            parser.error(f"--optimizers: {', '.join(sorted(unknown))}; there are {every}")
        results = measure(steps, given.optimizers or every, given.processes)
        command_line.write_json(given.json, results)
    sweep_report.show(results)
    if given.picture is not None:
        sweep_report.draw(results, given.picture)


if __name__ == "__main__":
    main()
