"""What goes wrong on one rank while the others do what they should."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import fastopt
from fastopt import RowGrad
from helpers.ranks.models import Arrays, digest, everything, gradients, made, model
from helpers.ranks.runs import KINDS

LIMIT = 30.0
Opt = Any
Fault = Callable[[Opt, Arrays, Arrays], None]


def tried(opt: Opt, params: Arrays, work: Callable[[], Any]) -> dict[str, Any]:
    """Return what a call raises, and whether it has changed anything."""
    before, steps = everything(opt, params), opt.step_count
    error: BaseException | None = None
    try:
        work()
    except BaseException as caught:
        error = caught
    return {
        "error": None if error is None else type(error).__name__,
        "message": str(error),
        "ranks": list(getattr(error, "ranks", ())),
        "changed": before != everything(opt, params) or steps != opt.step_count,
        "count": opt.count,
    }


# What the guilty rank does; the others make a step with the same gradients. -----------------------


def wrong_tree(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step({"wide": grads["wide"]})


def other_shape(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step({**grads, "matrix": grads["matrix"][:5]})


def other_kind(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step({**grads, "matrix": grads["matrix"] * 1j})


def rows(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step({**grads, "matrix": RowGrad(np.array([1]), grads["matrix"][:1])})


def negative_weight(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step(grads, weight=-1.0)


def value_that_is_not_taken(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step(grads, value=1.0)


def read_only(opt: Opt, params: Arrays, grads: Arrays) -> None:
    params["matrix"].flags.writeable = False
    try:
        opt.step(grads)
    finally:
        params["matrix"].flags.writeable = True


def other_lr(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.lr = 0.5
    try:
        opt.step(grads)
    finally:
        opt.lr = 0.01


def other_norm(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.innermost.max_grad_norm = 0.125
    try:
        opt.step(grads)
    finally:
        opt.innermost.max_grad_norm = 1.0


def no_norm(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.innermost.max_grad_norm = None
    try:
        opt.step(grads)
    finally:
        opt.innermost.max_grad_norm = 1.0


def other_decay(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.param_groups[0]["weight_decay"] = 0.5
    try:
        opt.step(grads)
    finally:
        opt.param_groups[0]["weight_decay"] = 0.01


def frozen(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.param_groups[0]["trainable"] = False
    try:
        opt.step(grads)
    finally:
        opt.param_groups[0]["trainable"] = True


def hook(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.before_step.append(lambda _: 1 / 0)
    try:
        opt.step(grads)
    finally:
        opt.before_step.clear()


def schedule(opt: Opt, params: Arrays, grads: Arrays) -> None:
    armed = False

    def lr(step: int) -> float:
        return 1 / 0 if armed else 0.01

    opt.lr = lr
    armed = True
    try:
        opt.step(grads)
    finally:
        opt.lr = 0.01


def no_memory(opt: Opt, params: Arrays, grads: Arrays) -> None:
    engine = opt.innermost._engine

    def prepare(*_: Any, **__: Any) -> Any:
        raise MemoryError("planted")

    engine.prepare = prepare
    try:
        opt.step(grads)
    finally:
        del engine.prepare


def interrupt(opt: Opt, params: Arrays, grads: Arrays) -> None:
    def checked(*_: Any) -> Any:
        raise KeyboardInterrupt("planted")

    opt._checked = checked
    try:
        opt.step(grads)
    finally:
        del opt._checked


def resets(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.reset()


def saves(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.save("never-written.safetensors")


def loads(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.load("not-there.safetensors")


def begins_backward(opt: Opt, params: Arrays, grads: Arrays) -> None:
    with opt.backward() as handed:
        handed.ready("matrix", grads["matrix"])


def step(opt: Opt, params: Arrays, grads: Arrays) -> None:
    opt.step(grads)


FAULTS: dict[str, Fault] = {
    one.__name__: one
    for one in (
        wrong_tree,
        other_shape,
        other_kind,
        rows,
        negative_weight,
        value_that_is_not_taken,
        read_only,
        other_lr,
        other_norm,
        no_norm,
        other_decay,
        frozen,
        hook,
        schedule,
        no_memory,
        interrupt,
        resets,
        saves,
        loads,
        begins_backward,
    )
}


def adamw(kind: str, comm: Any, params: Arrays, **options: Any) -> Opt:
    common = {"lr": 0.01, "max_grad_norm": 1.0, "backend": "numpy", **options}
    return KINDS[kind](made("AdamW", params, **common), comm, time_limit=LIMIT)


def one_by_one(comm: Any, guilty: int) -> dict[str, Any]:
    """Let each fault happen, with a proper step after each; return what was raised, and bits."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        params = model("mixed")
        opt = adamw(kind, comm, params)
        for number, (name, fault) in enumerate(FAULTS.items()):
            grads = gradients(params, number, missing=False)

            do = fault if comm.rank == guilty else step
            found[f"{kind} {name}"] = tried(opt, params, partial(do, opt, params, grads))
            opt.step(gradients(params, 100 + comm.size * number + comm.rank))
        found[f"{kind} digest"] = digest(params)
    return found


def without(count: int, faults: int | None = None, missing: bool = True) -> Arrays:
    """Return the parameters after the proper steps alone, in one process; None: of all faults."""
    params = model("mixed")
    opt = made("AdamW", params, lr=0.01, max_grad_norm=1.0, backend="numpy")
    sums = fastopt.Accumulator(opt, every=count)
    for number in range((len(FAULTS) if faults is None else faults) * count):
        sums.add(gradients(params, 100 + number, missing))
    return params


# Before the first step ----------------------------------------------------------------------------


def constructed(comm: Any, guilty: int) -> dict[str, Any]:
    """Construct what differs on one rank; return what was raised."""
    bad = comm.Get_rank() == guilty
    found: dict[str, Any] = {}

    def attempt(name: str, opt: Any, kind: str) -> None:
        try:
            KINDS[kind](opt, comm, time_limit=LIMIT)
            error: BaseException | None = None
        except Exception as caught:
            error = caught
        found[f"{kind} {name}"] = [type(error).__name__, str(error)]

    for kind in KINDS:
        params = model("mixed")
        shorter = {**params, "wide": params["wide"][:40]}
        double = {**params, "wide": params["wide"].astype("f8")}
        renamed = {("mat" if k == "matrix" else k): v for k, v in params.items()}
        fewer = {k: v for k, v in params.items() if k != "small"}
        trained = made("Adam", model("mixed"))
        trained.step(gradients(params, 1))
        for name, arrays in {
            "shape": shorter,
            "dtype": double,
            "name": renamed,
            "count": fewer,
        }.items():
            attempt(name, made("Adam", arrays if bad else params), kind)
        attempt("optimizer", made("AdamW" if bad else "Adam", params), kind)
        attempt("setting", made("Adam", params, betas=(0.8 if bad else 0.9, 0.999)), kind)
        attempt("lr", made("Adam", params, lr=0.5 if bad else 0.1), kind)
        attempt("norm", made("Adam", params, max_grad_norm=0.5 if bad else 1.0), kind)
        attempt("policy", made("Adam", params, on_nonfinite="skip" if bad else "raise"), kind)
        attempt("state", trained if bad else made("Adam", params), kind)
        attempt("no optimizer", 7 if bad else made("Adam", params), kind)
        loaded = made("Adam", params)
        loaded.step(gradients(params, 2 + bad))  # as many steps, of other gradients
        attempt("state of as many steps", loaded, kind)
        from fastopt.distributed import base

        version, base.__version__ = base.__version__, "0.0.1" if bad else base.__version__
        attempt("version", made("Adam", params), kind)
        base.__version__ = version
        ordered = dict(reversed(params.items())) if bad else params
        attempt("order", made("Adam", ordered), kind)
    return found


# NaN ----------------------------------------------------------------------------------------------


def nonfinite(comm: Any, guilty: int, policies: Sequence[str]) -> dict[str, Any]:
    """Make a step with NaN on one rank, and proper ones before and after."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for policy in policies:
            params = model("mixed")
            opt = adamw(kind, comm, params, on_nonfinite=policy)
            opt.step(gradients(params, comm.rank))
            grads = gradients(params, 3 + comm.rank, missing=False)
            if comm.rank == guilty:
                grads["matrix"][3, 4] = np.nan
            result = tried(opt, params, lambda opt=opt, grads=grads: opt.step(grads))
            result["norm"] = repr(opt.innermost.grad_norm)
            result["skipped"] = opt.innermost.skipped_steps
            result["nan"] = bool(np.isnan(params["matrix"]).any())
            if policy != "propagate":
                opt.step(gradients(params, 6 + comm.rank))
            result["digest"] = digest(params)
            result["last norm"] = repr(opt.innermost.grad_norm)
            found[f"{kind} {policy}"] = result
    return found


def nonfinite_alone(policy: str) -> tuple[str, str, str]:
    """Return the digest, the norm of the step with NaN and of the one after it, of one process."""
    params = model("mixed")
    opt = made("AdamW", params, lr=0.01, max_grad_norm=1.0, backend="numpy", on_nonfinite=policy)
    norms = []
    for first in (0, 3, 6):
        total: Arrays = dict.fromkeys(params)
        for k in range(3):
            for name, grad in gradients(params, first + k, missing=first != 3).items():
                if grad is not None:
                    total[name] = grad if total[name] is None else total[name] + grad
        if first == 3:
            total["matrix"][3, 4] = np.nan
        if first == 6 and policy == "propagate":
            break
        try:
            opt.step(total, grad_scale=1 / 3)
        except FloatingPointError:
            assert policy == "raise"
        norms.append(repr(opt.grad_norm))
    return digest(params), norms[1], norms[-1]


# What stands around -------------------------------------------------------------------------------


def around(comm: Any) -> dict[str, Any]:
    """Train with a loss scaler, a plateau, hooks, a warm-up and an average; return what is seen."""
    found = {}
    for kind in KINDS:
        params = model("mixed", "float16")
        opt = KINDS[kind](made("AdamW", params, backend="numpy"), comm, time_limit=LIMIT)

        def grads(step: int, scale: float, params: Arrays = params) -> Arrays:
            return scaled(params, comm.size * step + comm.rank, scale, step == 2 and comm.rank == 1)

        found[kind] = surrounded(opt, params, grads)
    return found


def slow_weights(comm: Any) -> dict[str, str]:
    """Train with a Lookahead around ranks; return the digests."""
    found = {}
    for kind in KINDS:
        params = model("mixed")
        opt = fastopt.Lookahead(adamw(kind, comm, params), k=2, alpha=0.5)
        for number in range(4):
            opt.step(gradients(params, comm.size * number + comm.rank, missing=False))
        found[kind] = digest(params)
    return found


def slow_weights_alone(count: int) -> str:
    """Return the same of one process."""
    params = model("mixed")
    inner = made("AdamW", params, lr=0.01, max_grad_norm=1.0, backend="numpy")
    sums = fastopt.Accumulator(fastopt.Lookahead(inner, k=2, alpha=0.5), every=count)
    for number in range(4 * count):
        sums.add(gradients(params, number, missing=False))
    return digest(params)


def around_alone(count: int) -> list[Any]:
    """Return the same of one process, which is given means."""
    params = model("mixed", "float16")

    def grads(step: int, scale: float) -> Arrays:
        total: Arrays = {}
        for k in range(count):
            one = scaled(params, count * step + k, scale, step == 2 and k == 1)
            for name, grad in one.items():
                wide = grad.astype(np.float32)
                total[name] = wide if name not in total else total[name] + wide
        return {name: one * np.float32(1 / count) for name, one in total.items()}

    return surrounded(made("AdamW", params, backend="numpy"), params, grads)


def scaled(params: Arrays, number: int, scale: float, overflows: bool) -> Arrays:
    """Return a micro-batch's gradients of a scaled loss, or some that overflow."""
    grads = gradients(params, number, missing=False)
    found = {name: grad * grad.dtype.type(scale) for name, grad in grads.items()}
    if overflows:
        found["bias"][0] = np.inf
    return found


def surrounded(opt: Any, params: Arrays, grads: Callable[[int, float], Arrays]) -> list[Any]:
    """Train with all that stands around an optimizer; return what is seen of it."""
    plateau = fastopt.schedules.ReduceLROnPlateau(0.1, factor=0.5, patience=0)
    opt.lr = fastopt.schedules.warmup(plateau, 3)
    seen: list[str] = []
    opt.before_step.append(lambda _: seen.append("before"))
    opt.after_step.append(lambda _: seen.append("after"))
    ema = fastopt.EMA(opt, decay=0.5)
    scaler = fastopt.LossScaler(init_scale=8.0, growth_interval=2)
    every = []
    for step in range(5):
        outcome = scaler.step(opt, grads(step, scaler.scale))
        scaler.update()
        ema.update()
        plateau.report(1.0)
        every.append([bool(outcome), scaler.scale, opt.lr])
    return [digest(params), digest(ema.average), every, seen, opt.step_count]


def wait_less(opt: Any, comm: Any, seconds: float) -> None:
    """Have ranks wait less for each other, now that all have begun."""
    comm.Barrier()
    opt._ranks._time_limit = seconds


# In the middle of an exchange ---------------------------------------------------------------------


def in_the_middle(comm: Any, kind: str, guilty: int) -> list[Any]:
    """Run out of memory where gradients are sent; return what was raised, then and afterwards."""
    from fastopt.distributed import sums

    params = model("mixed")
    opt = KINDS[kind](made("AdamW", params, backend="numpy"), comm, time_limit=LIMIT)
    wait_less(opt, comm, 3.0)
    if comm.rank == guilty:

        def packed(*_: Any) -> Any:
            raise MemoryError("planted")

        sums.Round._packed = packed
    grads = gradients(params, comm.rank)
    first = tried(opt, params, lambda: opt.step(grads))
    second = tried(opt, params, lambda: opt.step(grads))
    if comm.rank == guilty:
        atexit.register(time.sleep, 6.0)  # its end is that of all
    return [first, second]
