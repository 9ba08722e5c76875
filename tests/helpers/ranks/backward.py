"""Gradients that are handed in one by one, in any order, and errors while they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
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


def taking_turns(comm: Any) -> dict[str, Any]:
    """Return how much had been sent after each gradient of a pass in the order of the model.

    The parameters are named as hand-written networks have them, so that their names in order are
    not those of the layers, and rank 1 has them the other way round. A second and a third pass go
    from the first layer to the last. No thread sends, so that what is sent is no matter of time.
    """
    cut_short(replace(RUNS["float32"], pieces=True))
    names = [f"{kind}{layer}" for layer in range(9, 13) for kind in ("W", "b")]
    shapes = {"W": (100, 90), "b": (90,)}
    found: dict[str, Any] = {}
    for kind in KINDS:
        params = {name: np.ones(shapes[name[0]], np.float32) for name in names}
        if comm.rank == 1:
            params = dict(reversed(params.items()))
        opt = adamw(kind, comm, params)
        sections = opt._layout.sections
        of = {p: number for number, one in enumerate(sections) for p in one.positions}
        passes = []
        for order in (names[::-1], names, names):
            sent: list[list[str]] = []
            with opt.backward() as handed:
                for name in order:
                    handed.ready(name, np.full(shapes[name[0]], 0.5, np.float32))
                    gone = set(opt._turns[: handed._next])
                    sent.append([one for one in order if of[opt._positions[one]] in gone])
            opt.step()
            passes.append([order, sent])
        found[kind] = {"passes": passes, "digest": digest([params[name] for name in names])}
    return found
