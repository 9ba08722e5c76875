"""Gradients that are handed in one by one, in any order, and errors while they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastopt import RowGrad
from helpers.ranks import faults as faults_module
from helpers.ranks.faults import LIMIT, adamw, tried
from helpers.ranks.models import Arrays, digest, gradients, model, weight
from helpers.ranks.runs import KINDS, RUNS, cut_short


def handed_in(comm: Any, runs: Sequence[str], in_threads: bool) -> dict[str, str]:
    """Return the digests of runs by kind and name."""
    found = {}
    for name in runs:
        run = RUNS[name]
        cut_short(run)
        for kind in KINDS:
            params = run.params()
            opt = KINDS[kind](run.made(params), comm, time_limit=LIMIT)
            assert opt._ranks.in_threads == in_threads
            for step in range(run.steps):
                for k in range(comm.rank, run.batches, comm.size):
                    number = 12 * step + k
                    grads = list(run.grads(params, number).items())
                    random.Random(number).shuffle(grads)
                    with opt.backward(weight(number), grad_scale=0.5) as handed:
                        for key, grad in grads:
                            if grad is not None:
                                handed.ready(key, grad)
                opt.step()
            found[f"{kind} {name}"] = digest(params)
    return found


def block(opt: Any, grads: Arrays) -> None:
    with opt.backward() as handed:
        for name, grad in grads.items():
            handed.ready(name, grad)
    opt.step()


def raises(opt: Any, grads: Arrays) -> None:
    with opt.backward() as handed:
        handed.ready("wide", grads["wide"])
        raise ZeroDivisionError("planted")


def other_name(opt: Any, grads: Arrays) -> None:
    with opt.backward() as handed:
        handed.ready("wid", grads["wide"])


def twice(opt: Any, grads: Arrays) -> None:
    with opt.backward() as handed:
        handed.ready("bias", grads["bias"])
        handed.ready("bias", grads["bias"])


def other_shape(opt: Any, grads: Arrays) -> None:
    with opt.backward() as handed:
        handed.ready("wide", grads["wide"][:4])


def rows(opt: Any, grads: Arrays) -> None:
    with opt.backward() as handed:
        handed.ready("wide", RowGrad(np.array([1]), grads["wide"][:1]))


def steps(opt: Any, grads: Arrays) -> None:
    opt.step(grads)


def negative_weight(opt: Any, grads: Arrays) -> None:
    with opt.backward(weight=-1.0):
        pass


FAULTS: dict[str, Callable[[Any, Arrays], None]] = {
    one.__name__: one
    for one in (raises, other_name, twice, other_shape, rows, steps, negative_weight)
}


def faults(comm: Any, guilty: int) -> dict[str, Any]:
    """Let each fault happen on one rank, with a proper step after each."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        params = model("mixed")
        opt = adamw(kind, comm, params)
        for number, (name, fault) in enumerate(FAULTS.items()):
            grads = gradients(params, number, missing=False)
            do = fault if comm.rank == guilty else block
            found[f"{kind} {name}"] = tried(opt, params, partial(do, opt, grads))
            block(opt, gradients(params, 100 + comm.size * number + comm.rank, missing=False))
        with opt.backward() as handed:
            pass
        found[f"{kind} afterwards"] = tried(
            opt, params, partial(handed.ready, "bias", params["bias"])
        )
        opt.reset()
        found[f"{kind} digest"] = digest(params)
    return found


def without(count: int) -> str:
    """Return the digest of the parameters after the proper steps alone, in one process."""
    return digest(faults_module.without(count, len(FAULTS), missing=False))
