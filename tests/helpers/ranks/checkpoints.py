"""Saving and loading on several ranks, and what goes wrong with it."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from helpers.ranks.faults import LIMIT, tried
from helpers.ranks.models import Arrays, digest, gradients, made, model
from helpers.ranks.runs import KINDS, RUNS, cut_short, train, train_alone, trained

NOTES = {"epoch": 3, "order": [2, 1]}


def anew(comm: Any, kind: str, name: str) -> tuple[Any, Arrays]:
    """Return a fresh optimizer of other values, before anything is loaded."""
    run = RUNS[name]
    cut_short(run)
    params = model(run.model, run.dtype, seed=7)
    return KINDS[kind](run.made(params), comm, time_limit=LIMIT), params


def saved_alone(folder: Path, name: str) -> str:
    """Save the run of one process; return the digest of one more step."""
    run = RUNS[name]
    params = run.params()
    opt = run.made(params)
    for step in range(run.steps):
        train_alone(opt, run, params, step)
    opt.save(folder / f"{name}.safetensors", notes=NOTES)
    train_alone(opt, run, params, run.steps)
    return digest(params)


def there_and_back(comm: Any, folder: str, names: Sequence[str]) -> dict[str, Any]:
    """Save on these ranks what they have trained, and go on with what one process has saved."""
    found: dict[str, Any] = {}
    for name in names:
        run = RUNS[name]
        for kind in KINDS:
            opt, _ = trained(comm, kind, run)
            opt.save(Path(folder, f"{kind}-{name}.safetensors"), notes=NOTES)
            other, params = anew(comm, kind, name)
            report = other.load(Path(folder, f"{name}.safetensors"))
            train(other, run, params, run.steps)
            found[f"{kind} {name}"] = [digest(params), report.notes]
    return found


def faults(comm: Any, folder: str, guilty: int) -> dict[str, Any]:
    """Save and load what cannot be, or fails on one rank; return what is raised."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        place = Path(folder, kind)
        params = model("mixed")
        opt = KINDS[kind](made("Adam", params, backend="numpy"), comm, time_limit=LIMIT)
        opt.step(gradients(params, comm.rank))
        ema = fastopt.EMA(opt)
        ema.update()
        good = place / "good.safetensors"
        if comm.rank == 0:
            place.mkdir()
        comm.Barrier()
        opt.save(good, also={"ema": ema}, notes=NOTES)
        opt.save(place / "plain", notes=NOTES)
        opt.step(gradients(params, 3 + comm.rank))
        packed = good.read_bytes()
        comm.Barrier()
        bad = comm.rank == guilty
        real, engine = os.fsync, opt.innermost._engine

        def note(name: str, work: Callable[[], Any], opt: Any = opt, params: Any = params) -> None:
            found[f"{kind} {name}"] = tried(opt, params, work)  # noqa: B023  # called at once

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full
        note("full disk", partial(opt.save, good, notes=NOTES))
        os.fsync = real
        if bad and kind == "Sharded":

            def no_memory() -> None:
                raise MemoryError("planted")

            engine.synchronize = no_memory
        if kind == "Sharded":
            error = None
            try:
                opt.save(good)
            except (fastopt.FastoptError, MemoryError) as caught:
                error = caught
            found["Sharded no memory"] = type(error).__name__
            if bad:
                del engine.synchronize
        note("notes that cannot be", partial(opt.save, good, notes={"x": object()}))
        found[f"{kind} kept"] = good.read_bytes() == packed
        comm.Barrier()
        note("missing on all", partial(opt.load, place / "none.safetensors"))
        note("missing on one", partial(opt.load, place / "none" if bad else place / "plain"))
        if comm.rank == 0:
            damaged = bytearray(packed)
            damaged[len(damaged) // 2] ^= 1
            (place / "damaged").write_bytes(damaged)
            plain = made("SGD", model("mixed"), momentum=0.5)
            plain.step(gradients(params, 1))
            plain.save(place / "other")
            few = {k: v for k, v in model("mixed").items() if k != "matrix"}
            made("Adam", few).save(place / "few")
        comm.Barrier()
        for name in ("damaged", "other", "few"):
            note(name, partial(opt.load, place / name))
        note("few, not strict", partial(opt.load, place / "few", strict=False))
        other = model("mixed", seed=3)
        again = KINDS[kind](made("Adam", other, backend="numpy"), comm, time_limit=LIMIT)
        average = fastopt.EMA(again)
        again.load(good, also={"ema": average})
        again.step(gradients(params, 3 + comm.rank))
        found[f"{kind} also"] = [digest(average.average) == digest(ema.average), digest(other)]
    return found


SIZE = 400_000


def until_killed(comm: Any, folder: str, victim: int, seed: int) -> None:
    """Save again and again, until one rank kills itself."""
    params = {"p": np.zeros(SIZE, np.float32), "q": np.zeros(1000)}
    opt = KINDS["Sharded"](made("Adam", params, backend="numpy"), comm, time_limit=LIMIT)
    path = Path(folder, "run")
    opt.save(path, notes={"number": 0})
    if comm.rank == victim:
        delay = random.Random(seed).uniform(0.0, 0.4)
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for number in range(1, 10_000):
        for one in params.values():
            one[...] = number
        opt.save(path, notes={"number": number})
