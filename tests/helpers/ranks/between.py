"""What programs do between steps: other arrays, hooks, files, blocks within blocks."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.distributed import DataParallel, Sharded
from helpers.ranks.faults import tried
from helpers.ranks.models import Arrays, digest, gradients, made, model

KINDS = {"DataParallel": DataParallel, "Sharded": Sharded}
LIMIT = 30.0


def raised(work: Any) -> str:
    """Return what a call raises: the class, and what it says."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def weightless(comm: Any, kind: str, fast: bool) -> list[str]:
    """Begin a step with a block of weight 0, whose gradients do not count."""
    found = []
    for handed_in in (True, False):
        params = model("mixed")
        opt = KINDS[kind](made("AdamW", params), comm, time_limit=LIMIT, fast=fast)
        opt.step(gradients(params, 12 + comm.rank))
        if handed_in:
            with opt.backward(0.0) as handed:
                handed.ready("wide", gradients(params, 99)["wide"])
                handed.ready("scalar", np.ones((), np.float32))
        opt.add({**gradients(params, 24 + comm.rank), "scalar": None})
        opt.step()
        found.append(digest(params))
    return found


def worthless(comm: Any) -> list[str]:
    """A loss that is NaN counts for nothing where its weight is 0."""
    found = []
    for value in (np.nan, 1.0):
        params = model("matrices")
        opt = DataParallel(fastopt.MoMo(params, lr=0.1), comm, time_limit=LIMIT)
        opt.add(gradients(params, 1), 0.0, value=value)
        opt.step(gradients(params, 2 + comm.rank), value=2.0)
        found.append(digest(params))
    return found


def rebound(comm: Any, kind: str, fast: bool) -> list[str]:
    """Go over to other arrays between steps and between micro-batches; the bits are the same."""
    found = []
    options = {"state_dtype": "bfloat16", "master_weights": False, "stochastic_rounding": True}
    for goes_over in (False, True):
        params: Arrays = {"a": np.ones((200, 91), np.float16), "b": np.ones(9, np.float16)}
        opt: Any = KINDS[kind](
            fastopt.AdamW(params, lr=0.1, **options), comm, time_limit=LIMIT, fast=fast
        )
        for step in range(3):
            opt.add(gradients(params, 2 * step * comm.size + comm.rank))
            if goes_over:
                params = {name: one.copy() for name, one in params.items()}
                opt.rebind(params)
            opt.add(gradients(params, (2 * step + 1) * comm.size + comm.rank))
            opt.step()
        found.append(digest(params))
    return found


def resized(comm: Any) -> list[str]:
    """Put other rows there where one rank has no micro-batch in the next step."""
    params = model("matrices")
    opt = DataParallel(made("AdamW", params), comm, time_limit=LIMIT)
    opt.step(gradients(params, comm.rank))
    opt.resize("W1", np.concatenate([params["W1"], params["W1"]]))
    for step in range(2):
        if comm.rank != 1:
            opt.add(gradients(params, 10 + step))
        opt.step()
    same = digest(params)
    # Other rows on one rank alone: all hear of it before anything is sent.
    if comm.rank == 1:
        opt.resize("W1", params["W1"][:5].copy())
    return [same, raised(lambda: opt.step(gradients(params, 20)))]


def within(comm: Any, kind: str, folder: str) -> dict[str, str]:
    """Call what all ranks do together in the middle of something else; it is refused, alike."""
    params = model("mixed")
    opt: Any = KINDS[kind](made("AdamW", params), comm, time_limit=LIMIT)
    path = Path(folder) / f"{kind}.safetensors"
    grads = gradients(params, comm.rank, missing=False)
    found = {}
    calls = {
        "add": partial(opt.add, grads),
        "step": partial(opt.step, grads),
        "reset": opt.reset,
        "save": partial(opt.save, path),
        "load": partial(opt.load, path),
        "backward": lambda: opt.backward().__enter__(),
    }
    with opt.backward() as handed:
        for name, call in calls.items():
            found[name] = raised(call)
        for name, grad in grads.items():
            handed.ready(name, grad)
    opt.after_step.append(lambda _: opt.save(path))
    opt.step()
    found["saved"] = str(path.exists() or comm.rank != 0)
    opt.after_step.clear()
    found["after"] = raised(lambda: opt.step(grads))
    return found


def averaged(comm: Any, kind: str) -> list[str]:
    """Average as a hook of the optimizer, and as a call after each step."""
    found = []
    for hooked in (False, True):
        params = model("mixed")
        opt: Any = KINDS[kind](made("AdamW", params), comm, time_limit=LIMIT)
        ema = fastopt.EMA(opt, decay=0.5)
        if hooked:
            opt.after_step.append(ema.update)
        for step in range(3):
            opt.step(gradients(params, step * comm.size + comm.rank, missing=False))
            if not hooked:
                ema.update()
        found.append(digest(ema.average))
    return found


def watched(comm: Any) -> str:
    """Watch shares, which is refused."""
    opt = Sharded(made("AdamW", model("mixed")), comm, time_limit=LIMIT)
    return raised(lambda: fastopt.watch(opt))


def loaded(comm: Any, kind: str, folder: str) -> dict[str, Any]:
    """Load where a companion does not fit on one rank: nothing changes on any."""
    params = model("mixed")
    opt: Any = KINDS[kind](made("AdamW", params), comm, time_limit=LIMIT)
    path = Path(folder) / f"{kind}.safetensors"
    ema = fastopt.EMA(params, decay=0.5)
    opt.step(gradients(params, comm.rank))
    opt.save(path, also={"ema": ema})
    opt.step(gradients(params, 9 + comm.rank))
    other = fastopt.EMA({"x": np.ones(3)}) if comm.rank == 1 else ema
    return tried(opt, params, lambda: opt.load(path, also={"ema": other}))


def interrupted(comm: Any, kind: str) -> list[str]:
    """Fail in the middle of adding, alone; what was added of it is dropped."""
    from fastopt.distributed import sums

    params, expected = model("mixed"), model("mixed")
    made("AdamW", expected, max_grad_norm=1.0).step(gradients(expected, 3))
    opt: Any = KINDS[kind](made("AdamW", params, max_grad_norm=1.0), comm, time_limit=LIMIT)
    usual, calls = sums._add, []

    def failing(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        usual(*given)

    sums._add = failing
    with suppress(KeyboardInterrupt):
        opt.add(gradients(params, 1))
    sums._add = usual
    opt.step(gradients(params, 3))
    return [digest(params), digest(expected), str(opt.count)]
