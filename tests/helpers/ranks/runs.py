"""Runs of many kinds on any number of ranks, and on none: these end in the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import fastopt
from fastopt.distributed import DataParallel, Sharded, shares, sums
from fastopt.optimizers import names
from helpers.ranks.models import Arrays, digest, gradients, made, model, weight

KINDS: dict[str, Any] = {"DataParallel": DataParallel, "Sharded": Sharded}
LIMIT = 60.0  # seconds


@dataclass(frozen=True)
class Run:
    """An optimizer with its options, of which model, and how it is trained."""

    optimizer: str = "AdamW"
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    model: str = "mixed"
    grouped: str | None = None
    """A "list", or by "pattern": one frozen, one with a schedule; or "one trained" array."""
    batches: int = 12
    sent: str | None = None
    """The dtype of every third micro-batch's gradients, if it is another one."""
    steps: int = 2
    backend: str = "numpy"
    pieces: bool = False
    """Whether sections and messages are so short that there are many."""

    def params(self) -> Arrays:
        return model(self.model, self.dtype)

    def made(self, params: Arrays) -> fastopt.Optimizer:
        common = {"lr": 0.01, "max_grad_norm": 1.0, "backend": self.backend, **self.options}
        return made(self.optimizer, self.given(params), **common)

    def given(self, params: Arrays) -> Any:
        if self.grouped is None:
            return params
        if self.grouped == "one trained":
            return fastopt.groups(params, {"W[1-6]": {"trainable": False}})
        counters = {"counter": np.arange(5), **params}
        frozen, scheduled = {"counter", "small"}, {"bias", "matrix"}
        lr = fastopt.schedules.cosine(0.1, 5)
        if self.grouped == "pattern":
            settings = {name: {"trainable": False} for name in sorted(frozen)}
            settings |= {"matri?": {"lr": lr}, "bias": {"weight_decay": 0.0}}  # type: ignore[dict-item]
            return fastopt.groups(counters, settings)
        return [
            {"params": {k: v for k, v in params.items() if k not in frozen | scheduled}},
            {"params": {k: counters[k] for k in sorted(frozen)}, "trainable": False},
            {"params": {k: params[k] for k in sorted(scheduled)}, "lr": lr},
        ]

    def grads(self, params: Arrays, number: int) -> Any:
        found = gradients(params, number)
        if self.sent is not None and number % 3 == 1:
            kind = np.dtype(self.sent)
            found = {
                k: None if g is None else g.astype(kind) * kind.type(1.0001)
                for k, g in found.items()
            }
        if self.grouped in (None, "one trained"):
            return found
        if self.grouped == "pattern":
            return {"counter": None, **found}
        frozen, scheduled = ["counter", "small"], ["bias", "matrix"]
        rest = {k: v for k, v in found.items() if k not in frozen + scheduled}
        return [
            rest,
            {"counter": None, "small": None},
            {k: found[k] for k in scheduled},
        ]


def adam(**options: Any) -> Run:
    return Run("Adam", options)


RUNS: dict[str, Run] = {
    "float32": Run(pieces=True),
    "float64": Run(dtype="float64"),
    "float16": Run(dtype="float16"),
    "bfloat16": Run(dtype="bfloat16", pieces=True),
    "complex64": Run(dtype="complex64", pieces=True),
    "several_dtypes": Run(model="dtypes", options={"on_nonfinite": "skip"}),
    "wider_gradients": Run(dtype="float16", sent="float32"),
    "gradients_of_float64": Run(sent="float64", pieces=True),
    "int8": adam(state_dtype="int8"),
    "int8_complex": replace(adam(state_dtype="int8"), dtype="complex64"),
    "bfloat16_state": adam(state_dtype="bfloat16"),
    "float64_state": adam(state_dtype="float64"),
    "without_masters": Run(dtype="bfloat16", options={"master_weights": False}),
    "LAMB": Run("LAMB", {"weight_decay": 0.1}, pieces=True),
    "LAMB_float16": Run("LAMB", dtype="float16"),
    "LARS": Run("LARS", {"weight_decay": 0.1}),
    "Prodigy": Run("Prodigy", {"lr": 1.0}),
    "DAdaptAdam": Run("DAdaptAdam", {"lr": 1.0}, pieces=True),
    "NovoGrad": Run("NovoGrad"),
    "DoG": Run("DoG", {"lr": 1.0}),
    "Muon": Run("Muon", model="matrices"),
    "Muon_frozen": Run("Muon", model="matrices", grouped="one trained"),
    "Adafactor": Run("Adafactor", pieces=True),
    "Shampoo": Run("Shampoo", model="matrices"),
    "MoMo": Run("MoMo", {"max_grad_norm": None}),
    "MoMo_clipped": Run("MoMo"),
    "clip_each": adam(clip_each=0.5),
    "clip_value": adam(clip_value=0.01),
    "adaptive_clip": adam(adaptive_clip=0.01),
    "centralize": adam(centralize=True),
    "cautious": adam(cautious=True),
    "bounds": adam(bounds=(-0.5, 0.5)),
    "group_list": Run(grouped="list"),
    "group_pattern": Run(grouped="pattern", options={"state_dtype": "int8"}, pieces=True),
    "eleven_batches": Run(batches=11),
    "three_batches": Run("LAMB", batches=3, pieces=True),
    "one_batch": Run(batches=1),
    "numba": Run(backend="numba", options={"state_dtype": "int8"}, pieces=True),
    "numba_LAMB": Run("LAMB", backend="numba"),
    "numba_bfloat16": Run("Adam", dtype="bfloat16", backend="numba"),
}

REFUSED = {"AdaHessian", "Sophia"}
NOT_SHARED = {"ScheduleFreeAdamW", "ScheduleFreeSGD"}


def memory(comm: Any) -> list[int]:
    """Return the bytes of the state of all, and of this rank's share."""
    params = {"a": np.ones((1000, 500), np.float32), "b": np.ones(100_000, np.float32)}
    opt = made("Adam", params, backend="numpy")
    whole = sum(bucket.arena.nbytes for bucket in opt._state.buckets)
    return [whole, Sharded(opt, comm, time_limit=LIMIT).nbytes]


def every_optimizer() -> dict[str, Run]:
    """Return a run of each optimizer there is, on arrays that it takes."""
    found = {}
    for name in names("*"):
        options = {"on_nonfinite": "skip"}
        run = Run(name, options, batches=5, steps=2)
        try:
            run.made(run.params())
        except (TypeError, ValueError):
            run = replace(run, model="matrices")
        found[name] = run
    return found


USUAL = shares.SECTION, shares.SHARE, shares.DIRECT, sums.LONGEST


def cut_short(run: Run) -> None:
    """Set how much is sent together: for short pieces 30 kB, and messages of 4 kB."""
    short = 30_000, 1, 2_048, 4_096
    parts = short if run.pieces else USUAL
    shares.SECTION, shares.SHARE, shares.DIRECT, sums.LONGEST = parts


def trained(comm: Any, kind: str, run: Run, fast: bool = False) -> tuple[Any, Arrays]:
    """Train on all ranks; return the optimizer of this one, and the parameters."""
    cut_short(run)
    params = run.params()
    if comm.Get_rank():
        for one in params.values():
            one[...] = 0  # they become those of rank 0
    opt = KINDS[kind](run.made(params), comm, time_limit=LIMIT, fast=fast)
    for step in range(run.steps):
        train(opt, run, params, step)
    return opt, params


def train(opt: Any, run: Run, params: Arrays, step: int) -> Any:
    """Make one step with the micro-batches that belong to this rank."""
    for k in range(opt.rank, run.batches, opt.size):
        number = 12 * step + k
        loss = {"value": 1.0 + k} if opt.innermost._takes_value else {}
        opt.add(run.grads(params, number), weight=weight(number), grad_scale=0.5, **loss)
    return opt.step()


def worlds(comm: Any, runs: Sequence[str], kinds: Sequence[str]) -> dict[str, str]:
    """Return the digests of runs by kind and name."""
    return {
        f"{kind} {name}": digest(trained(comm, kind, RUNS[name])[1])
        for name in runs
        for kind in kinds
    }


def optimizers(comm: Any, some: Sequence[str]) -> dict[str, str]:
    """Return the digests of runs of these optimizers, or why they are refused."""
    found = {}
    for name, run in every_optimizer().items():
        for kind in KINDS if name in some else ():
            try:
                found[f"{kind} {name}"] = digest(trained(comm, kind, run)[1])
            except TypeError as refused:
                found[f"{kind} {name}"] = str(refused)
    return found


def fast(comm: Any, runs: Sequence[str]) -> dict[str, Any]:
    """Return digests, and parameters as numbers, of runs that are summed up by MPI."""
    found = {}
    for name in runs:
        for kind in KINDS:
            _, params = trained(comm, kind, RUNS[name], fast=True)
            flat = np.concatenate([one.ravel() for one in params.values()])
            found[f"{kind} {name}"] = digest(params), flat.astype(np.float64).tolist()
    return found


def alone(run: Run) -> Arrays:
    """Return the parameters after the same run in one process, without ranks."""
    params = run.params()
    opt = run.made(params)
    for step in range(run.steps):
        train_alone(opt, run, params, step)
    return params


def train_alone(opt: fastopt.Optimizer, run: Run, params: Arrays, step: int) -> None:
    """Make one step with all micro-batches."""
    if opt._takes_value:
        step_with_values(opt, run, params, step)
        return
    accumulator = fastopt.Accumulator(opt, every=run.batches)
    for number in range(12 * step, 12 * step + run.batches):
        accumulator.add(run.grads(params, number), weight=weight(number), grad_scale=0.5)


def step_with_values(opt: fastopt.Optimizer, run: Run, params: Arrays, step: int) -> None:
    """Do by hand what an accumulator does not do: add up losses too."""
    total: Arrays = dict.fromkeys(params)
    value = all_weights = 0.0
    first = weight(12 * step)
    for k in range(run.batches):
        share = weight(12 * step + k) / first
        if not share:
            continue
        all_weights += share
        value += 0.5 * share * (1.0 + k)
        for name, grad in run.grads(params, 12 * step + k).items():
            if grad is not None:
                scaled = grad * (0.5 * share)
                total[name] = scaled if total[name] is None else total[name] + scaled
    opt.step(total, grad_scale=1 / all_weights, value=value / all_weights)
