"""Steps after which parameters come closer to 0, around PyTorch's optimizers and in 50 digits.

``cautious_decay``: decoupled weight decay where the update goes towards 0 too, or nowhere.
``l1``: every parameter comes closer to 0 by lr * l1, and no further.
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import localcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from . import oracle_torch
from .oracle_closed_form import CONTEXT, RULES, State, exact, exact_array, to_float64
from .oracles import Inputs, gathered
from .vector_cases import DECOUPLED, Array, Case, Hyper, Result

OPTIONS = ("cautious_decay", "l1")


def without(case: Case, names: tuple[str, ...]) -> Case:
    """Return the case of an optimizer that has no such hyperparameters, or has 0 for decay."""

    def plain(hyper: Hyper) -> Hyper:
        kept = {name: value for name, value in hyper.items() if name not in names}
        return kept | ({"weight_decay": 0.0} if "weight_decay" in names else {})

    groups = tuple(plain(group) for group in case.groups)
    return replace(case, kwargs=plain(case.kwargs), groups=groups)


def hooks(case: Case, opt: torch.optim.Optimizer) -> None:
    """Have each step followed by softshrink, and by decay that looks at what the step did."""
    settings = [hyper for _, hyper in case.parts()]
    before: dict[Any, torch.Tensor] = {}

    def every() -> Any:
        for group, hyper in zip(opt.param_groups, settings, strict=True):
            yield from ((p, group["lr"], hyper) for p in group["params"] if p.grad is not None)

    @torch.no_grad()
    def remember(*_: Any) -> None:
        before.update({p: p.detach().clone() for p, _, _ in every()})

    @torch.no_grad()
    def follow(*_: Any) -> None:
        for p, lr, hyper in every():
            old = before[p]
            if hyper.get("cautious_decay"):
                same = (torch.sign(old - p) * torch.sign(old) >= 0).double()
                p -= lr * hyper["weight_decay"] * old * same
            if hyper.get("l1"):
                p.copy_(torch.nn.functional.softshrink(p, lr * hyper["l1"]))

    opt.register_step_pre_hook(remember)
    opt.register_step_post_hook(follow)


def by_torch(case: Case, inputs: Inputs) -> Result:
    decays = ("weight_decay",) if case.base().get("cautious_decay") else ()
    plain = without(case, (*OPTIONS, *decays))
    return oracle_torch.run(plain, inputs, around=partial(hooks, case))


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    """Go element by element: decay, the update, and what is cut off."""
    hyper = {key: exact(value) for key, value in case.hyper(index).items()}
    rule: Callable[..., Any] = RULES[case.optimizer]
    shape, wd, decoupled = inputs["p"][index].shape, hyper["weight_decay"], DECOUPLED
    p, state, count, path = exact_array(inputs["p"][index]), State(), 0, []
    for step in range(case.steps):
        hyper["lr"] = lr = exact(case.lr_changes.get(step, hyper["lr"]))
        if not case.is_missing(index, step):
            count += 1
            g = exact_array(inputs["g"][index][step, ...])
            g = -g if hyper["maximize"] else g
            coupled = g if case.optimizer in decoupled else g + wd * p
            u = rule(coupled, state, count, hyper)
            share = lr * wd if case.optimizer in decoupled else 0 * wd
            p = np.array([one(hyper, x, lr * y, share) for x, y in zip(p, u, strict=True)])
        path.append(to_float64(p, shape))
    return np.stack(path), {k: to_float64(x, shape) for k, x in state.items()}, count


def one(hyper: Hyper, x: Any, u: Any, share: Any) -> Any:
    """Return what becomes of one element by an update, and a share of it that decays."""
    opposed = (u > 0 and x < 0) or (u < 0 and x > 0)
    decays = not (hyper.get("cautious_decay") and opposed)
    moved = x - u - (share * x if decays else 0)
    cut = hyper["lr"] * hyper.get("l1", 0 * x)
    return 0 * x if abs(moved) <= cut else moved - cut.copy_sign(moved)


def closed(case: Case, inputs: Inputs) -> Result:
    with localcontext(CONTEXT):
        return gathered([closed_one(case, inputs, index) for index in range(len(inputs["p"]))])
