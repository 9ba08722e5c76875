"""A user's program that meets every public name, which pyright and mypy find nothing wrong with.

It is checked in strict mode (``pyright``, configured in pyproject.toml), and run by
``test_public_api.py``: what type checkers think of the package is what a user's program sees.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastopt
from fastopt import (
    ADOPT,
    ASAM,
    ASGD,
    CAME,
    COCOB,
    EMA,
    FTRL,
    LAMB,
    LARS,
    LBFGS,
    MADGRAD,
    QHM,
    SAM,
    SGD,
    SGDP,
    SM3,
    SOAP,
    Accumulator,
    AdaBelief,
    AdaBound,
    Adadelta,
    Adafactor,
    Adagrad,
    AdaHessian,
    Adam,
    AdamAtan2,
    Adamax,
    AdamP,
    AdamW,
    Adan,
    AdEMAMix,
    AggMo,
    BackendMismatchError,
    BackendUnavailableError,
    CheckpointError,
    Checkpoints,
    DAdaptAdam,
    DAdaptSGD,
    DoG,
    DoWG,
    FastoptError,
    LaProp,
    Lion,
    LoadReport,
    Lookahead,
    LossScaler,
    Mars,
    Momentum,
    MoMo,
    MoMoAdam,
    Muon,
    MuonWithAdamW,
    NAdam,
    NorMuon,
    NovoGrad,
    OptimisticAdam,
    Optimizer,
    Prodigy,
    QHAdam,
    RAdam,
    RangeTest,
    RMSprop,
    RowGrad,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Scion,
    Shampoo,
    Signum,
    Sophia,
    StableAdamW,
    Yogi,
    interop,
    optimizers,
    schedules,
)
from fastopt.optimizers.explain import Explanation
from fastopt.optimizers.summary import Summary

Array = NDArray[np.float64]

# Every optimizer is a class of one kind.
OF_ANY_SHAPE: list[type[Optimizer]] = [
    *(ADOPT, ASGD, CAME, COCOB, FTRL, LAMB, LARS, MADGRAD, QHM, SGD, SGDP, SM3, SOAP),
    *(AdEMAMix, AdaBelief, AdaBound, Adadelta, Adafactor, Adagrad, Adam, AdamAtan2, AdamP, AdamW),
    *(Adamax, Adan, AggMo, DAdaptAdam, DAdaptSGD, DoG, DoWG, LaProp, Lion, Mars, Momentum),
    *(MuonWithAdamW, NAdam, NovoGrad, OptimisticAdam, Prodigy, QHAdam, RAdam, RMSprop, Rprop),
    *(ScheduleFreeAdamW, ScheduleFreeSGD, Scion, Shampoo, Signum, StableAdamW, Yogi),
]
OF_MATRICES: list[type[Optimizer]] = [Muon, NorMuon]
HANDED_MORE: list[type[Optimizer]] = [AdaHessian, MoMo, MoMoAdam, Sophia]


def every_optimizer() -> dict[str, bool]:
    """Make a step with every optimizer; say whether it was made."""
    made: dict[str, bool] = {}
    for make in (*OF_ANY_SHAPE, *OF_MATRICES, *HANDED_MORE):
        param = np.ones((2, 3))
        opt = make(param, weight_decay=0.0)
        if make in (MoMo, MoMoAdam):
            outcome = opt.step(np.ones((2, 3)), value=4.0)
        elif make in (AdaHessian, Sophia):
            outcome = opt.step(np.ones((2, 3)), hessian=np.ones((2, 3)))
        else:
            outcome = opt.step(np.ones((2, 3)))
        made[make.__name__] = bool(outcome)
    return made


def training(folder: Path) -> LoadReport:
    """Train, save and load: groups, schedules, clipping, hooks."""
    params: dict[str, Array] = {"W": np.ones((3, 2)), "b": np.zeros(2)}
    seen: list[int] = []

    def note(opt: Optimizer) -> None:
        seen.append(opt.step_count)

    opt = AdamW(
        fastopt.groups(params, {"b": {"weight_decay": 0.0, "lr_scale": 0.5}}),
        lr=schedules.warmup(schedules.cosine(1e-2, 100), 10),
        betas=(0.9, lambda step: 0.99 if step < 10 else 0.999),
        max_grad_norm=1.0,
        on_nonfinite="skip",
        bounds=(-10.0, 10.0),
    )
    opt.after_step.append(note)
    grads = {name: np.full_like(param, 0.5) for name, param in params.items()}
    outcome = opt.step(grads, grad_scale=0.5)
    norm: float | None = opt.grad_norm
    assert outcome.made
    assert norm is not None
    opt.param_groups[0]["weight_decay"] = 0.1
    first: float = opt.lr
    backend: str = opt.backend
    skipped: int = opt.skipped_steps
    assert first > skipped
    assert backend in fastopt.available_backends()
    assert seen == [1]
    path = folder / "run.safetensors"
    opt.save(path, notes={"epoch": 1})
    report = opt.load(path)
    assert report.notes["epoch"] == 1
    opt.load_state_dict(opt.state_dict())
    kept = Checkpoints(folder / "numbered", keep=2)
    kept.save(opt)
    latest: Path | None = kept.latest()
    assert latest is not None
    return report


def around_a_step() -> None:
    """Use what stands around an optimizer."""
    param = np.zeros(3)
    opt = fastopt.optimizer("sgd", param, lr=0.1)
    average = EMA(opt, decay=0.9)
    slow = Lookahead(SGD(np.zeros(3), 0.1), k=2)
    sums = Accumulator(SGD(np.zeros(3), 0.1), every=2)
    scaler = LossScaler(init_scale=1024.0)
    for _ in range(2):
        scaler.step(opt, np.ones(3) * scaler.scale)
        scaler.update()
        average.update()
        slow.step(np.ones(3))
        sums.add(np.ones(3), weight=2.0)
    with average.swap():
        assert param is opt.params
    flat: Any = average.average
    assert flat.shape == (3,)
    assert sums.count == 0
    for make in (SAM, ASAM):
        sharp = make(SGD(np.ones(3), 0.1), rho=0.05)
        with sharp.ascent(np.ones(3)):
            pass
        sharp.step(np.ones(3))
    plateau = schedules.ReduceLROnPlateau(0.1, patience=1)
    plateau.report(1.0)
    rows = RowGrad(np.array([0, 2]), np.ones((2, 4)))
    Adam(np.zeros((3, 4))).step(rows)


def every_schedule() -> list[float]:
    """Ask every schedule for its first value."""
    made: list[schedules.Schedule] = [
        schedules.constant(0.1),
        schedules.step_decay(0.1, 10),
        schedules.multistep(0.1, [10, 20]),
        schedules.exponential(0.1, 0.9),
        schedules.linear(0.1, 0.5, 1.0, 10),
        schedules.polynomial(0.1, 10),
        schedules.cosine(0.1, 10),
        schedules.cosine_restarts(0.1, 10),
        schedules.one_cycle(0.1, 10),
        schedules.cyclic(0.01, 0.1, 10),
        schedules.inverse_sqrt(0.1, 10),
        schedules.inverse_time(0.1, 0.5, 10),
        schedules.rex(0.1, 10),
        schedules.chebyshev(0.1, 8, 0.01),
        schedules.wsd(0.1, 10, 5, 3),
        schedules.join([schedules.constant(0.1), schedules.constant(0.2)], [5]),
        schedules.product(schedules.constant(0.1), schedules.constant(0.5)),
    ]
    return [schedule(0) for schedule in made]


def bowl(x: Array) -> tuple[float, Array]:
    """Return the value and the gradient of a sum of squares."""
    return float(x @ x), 2.0 * x


def fits() -> float:
    """Fit: minimize, L-BFGS by hand, the range test, SciPy's interface, flat vectors."""
    result = fastopt.minimize(bowl, np.ones(3), method="lbfgs")
    method: Any = fastopt.scipy_method("adam", lr=0.1)
    assert callable(method)
    x = np.ones(3)
    opt = LBFGS(x)
    outcome = opt.step(lambda: bowl(x))
    value: float = outcome.value

    def loss(params: Array) -> tuple[float, Array]:
        return bowl(params)

    test: RangeTest = fastopt.find_lr(loss, np.ones(3), "sgd", steps=20, runs=1)
    assert isinstance(test.message, str)
    flat, unravel = fastopt.ravel({"W": np.ones((2, 2)), "b": np.zeros(2)})
    tree: Any = unravel(flat)
    assert tree["W"].shape == (2, 2)
    history: Array = result.history.best
    assert result.success
    assert len(history) == result.nit + 1
    return value + result.fun


def settings() -> dict[str, str | None]:
    """Choose a backend and threads; clip."""
    xp: Any = fastopt.array_namespace(np.ones(1))
    assert xp is np
    fastopt.set_backend("numpy")
    fastopt.set_backend(None)
    fastopt.set_num_threads(1)
    fastopt.set_num_threads(None)
    with fastopt.use_backend("numpy"):
        assert Adam(np.ones(1)).backend == "numpy"
    grads = [np.ones(3), np.ones(2)]
    norm = float(fastopt.clip_grad_norm_(grads, 1.0))
    fastopt.clip_grad_value_(grads, 0.5)
    assert norm > float(fastopt.global_norm(grads)) > 0.0
    return fastopt.available_backends()


def errors() -> list[str]:
    """Meet errors where a user does."""
    told: list[str] = []
    kinds: list[type[FastoptError]] = [
        BackendMismatchError,
        BackendUnavailableError,
        CheckpointError,
    ]
    try:
        Adam(np.ones(2)).load_state_dict({})
    except tuple(kinds) as error:
        told.append(str(error))
    return told


def seen() -> dict[str, Any]:
    """Look at a run: what a step would do, what the optimizer is, its history, a race."""
    x = np.ones(3)
    opt = fastopt.Adam(x, lr=0.1)
    explanation = opt.explain(2.0 * x)
    advice: list[str] = [one.text for one in explanation.advice]
    bytes_of_state: int = opt.summary().state_bytes
    with fastopt.watch(opt, every=1) as recorder:
        for _ in range(3):
            opt.step(2.0 * x)
    race = fastopt.viz.race(["adam lr=0.1", "sgd lr=0.02"], "bowl", steps=5)
    return {
        "advice": advice,
        "bytes": bytes_of_state,
        "steps": recorder.history["step"].size,
        "race": race.to_json(),
    }


def over_ranks(comm: Any) -> int:
    """Step over the ranks of a communicator of mpi4py, and save."""
    x = np.ones(3)
    told = 0
    for kind in (fastopt.distributed.DataParallel, fastopt.distributed.Sharded):
        opt = kind(Adam({"x": x}, lr=0.1), comm, time_limit=60.0, fast=False)
        opt.add({"x": 2.0 * x}, weight=1.0)
        with opt.backward(weight=2.0) as handed:
            handed.ready("x", 2.0 * x)
        try:
            told += bool(opt.step())
        except fastopt.RankError as error:
            told -= len(error.ranks)
        told += opt.rank + opt.size
    return told


def ranks_of_their_own(comm: Any) -> Any:
    """Return what stands for a communicator where MPI or NCCL read the memory of GPUs."""
    if comm is None:
        return fastopt.distributed.nccl()
    return fastopt.distributed.mpi(comm, cuda_aware=True, time_limit=60.0)


def on_tensors(torch: Any) -> int:
    """Train a tensor of PyTorch, which is handed in where it is installed, and look at the run."""
    weight = torch.ones(3, requires_grad=True)
    opt: Any = fastopt.torch.Adam([("weight", weight)], lr=0.1)
    explained: list[Explanation] = []
    with fastopt.watch(opt, parameters=["weight"]) as recorder:
        for _ in range(3):
            opt.zero_grad()
            (weight * weight).sum().backward()
            explained.append(opt.explain())
            opt.step()
    summary: Summary = opt.summary()
    assert explained[-1]["weight"].step == summary.step_count
    return len(recorder)


def from_other_libraries() -> dict[str, Callable[..., Any]]:
    """Name what takes over other libraries' state and arrays."""
    return {
        "torch": interop.load_torch,
        "to_torch": interop.to_torch,
        "optax": interop.load_optax,
        "keras": interop.load_keras,
        "jax": interop.from_jax,
        "to_jax": interop.to_jax,
    }


NAMES: list[str] = optimizers.names("adam*")
VERSION: str = fastopt.__version__
