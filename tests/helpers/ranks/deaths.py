"""A rank ends, or is late, and the others come to know."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from fastopt.errors import RankError
from helpers.ranks.faults import LIMIT, tried, wait_less
from helpers.ranks.models import gradients, made, model
from helpers.ranks.runs import KINDS


def die(*_: Any, **__: Any) -> Any:
    """End this process as nothing can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(comm: Any, kind: str, moment: str, limit: float, folder: str) -> dict[str, Any]:
    """Kill the last rank at some moment; return what the others hear of it."""
    params = model("mixed")
    opt = KINDS[kind](made("AdamW", params, backend="numpy"), comm, time_limit=LIMIT)
    opt.step(gradients(params, comm.rank))
    wait_less(opt, comm, limit)
    dies = comm.rank == comm.size - 1
    grads = gradients(params, 3 + comm.rank, missing=False)
    work: Callable[[], Any] = lambda: opt.step(grads)  # noqa: E731  # it is replaced below
    if moment == "add" and dies:
        die()
    if moment == "exchange" and dies:
        opt._ranks.exchange = die
    if moment == "agreement" and dies:
        opt.innermost._engine.prepare = die
    if moment == "save":
        work = lambda: opt.save(f"{folder}/run.safetensors")  # noqa: E731
        if dies:
            opt.innermost._engine.synchronize = die
            opt._ranks.exchange = die
    if moment == "backward":

        def work() -> Any:
            with opt.backward() as handed:
                handed.ready("wide", grads["wide"])
                if dies:
                    die()
                for name in grads:
                    if name != "wide":
                        handed.ready(name, grads[name])
            opt.step()

    result = tried(opt, params, work)
    result["again"] = tried(opt, params, lambda: opt.step(grads))
    return result


def late(comm: Any, kind: str, seconds: float, limit: float) -> dict[str, Any]:
    """Let one rank come later than the others."""
    params = model("mixed")
    opt = KINDS[kind](made("AdamW", params, backend="numpy"), comm, time_limit=LIMIT)
    wait_less(opt, comm, limit)
    if comm.rank == 1:
        time.sleep(seconds)
    return tried(opt, params, lambda: opt.step(gradients(params, comm.rank)))


def late_at_the_start(comm: Any, kind: str, seconds: float, limit: float) -> dict[str, Any]:
    """Let one rank come later than the others to the construction; return what they hear."""
    if comm.rank == 1:
        time.sleep(seconds)
    try:
        KINDS[kind](made("AdamW", model("mixed"), backend="numpy"), comm, time_limit=limit)
    except RankError as error:
        return {"ranks": error.ranks, "message": str(error)}
    return {"ranks": None}
