"""Whole gradients that are clipped by units and centralized before a step.

``adaptive_clip``: timm's function before PyTorch's optimizers, optax's before its own (given the
axes of PyTorch's units), and the paper's formula in 50 digits.
``centralize``: that of pytorch_optimizer, that of optax, and in 50 digits.
Where a case has both, gradients are clipped first, as Ranger21 of pytorch_optimizer does it.
"""

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from . import oracle_torch
from .oracle_closed_form import CONTEXT, State, exact, exact_array, step_one, to_float64
from .oracle_decays import without
from .oracles import Inputs, Oracle, by_optax, gathered, of_timm
from .vector_cases import DECOUPLED, Array, Case, Hyper, Result

OPTIONS = ("adaptive_clip", "centralize")
LEAST = Decimal("1e-3")
"""The norm that parameters have at least."""


def hooks(case: Case, opt: torch.optim.Optimizer) -> None:
    """Have each step preceded by the functions of timm and pytorch_optimizer."""
    from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient

    clip = of_timm("agc", "adaptive_clip_grad", "utils")
    settings = [hyper for _, hyper in case.parts()]

    @torch.no_grad()
    def precede(*_: Any) -> None:
        for group, hyper in zip(opt.param_groups, settings, strict=True):
            if hyper.get("adaptive_clip"):
                clip(group["params"], hyper["adaptive_clip"], eps=1e-3)
            for param in group["params"] if hyper.get("centralize") else ():
                if param.grad is not None:
                    centralize_gradient(param.grad)

    opt.register_step_pre_hook(precede)


def by_torch(case: Case, inputs: Inputs) -> Result:
    return oracle_torch.run(without(case, OPTIONS), inputs, around=partial(hooks, case))


def of_optax(optimizer: str) -> Callable[[Hyper], Any]:
    import optax

    def rows(clip: float) -> Any:
        """Return optax's clipping by the units of PyTorch's layers."""

        def update(updates: Any, state: Any, params: Any) -> Any:
            axes = tuple(range(1, params.ndim)) or None
            return optax.adaptive_grad_clip(clip, axis=axes).update(updates, state, params)

        return optax.GradientTransformation(optax.adaptive_grad_clip(clip).init, update)

    def transform(hyper: Hyper) -> Any:
        decay = optax.add_decayed_weights(hyper["weight_decay"])
        parts = [rows(hyper["adaptive_clip"])] if hyper.get("adaptive_clip") else []
        parts += [optax.centralize()] if hyper.get("centralize") else []
        if optimizer == "SGD":
            own = [decay] + [optax.trace(hyper["momentum"])] * (hyper["momentum"] > 0)
        else:
            rule = optax.scale_by_adam(*hyper["betas"], hyper["eps"])
            own = [rule, decay] if optimizer in DECOUPLED else [decay, rule]
        return optax.chain(*parts, *own, optax.scale(-hyper["lr"]))

    return transform


def by_optax_of(optimizer: str) -> Oracle:
    state = {"trace": "buf"} if optimizer == "SGD" else {"mu": "m", "nu": "v"}

    def read(kept: Any, name: str) -> Any:
        import optax

        found = optax.tree.get_all_with_path(kept, name)
        return found[0][1] if found else None

    return by_optax(of_optax(optimizer), state, with_rate=True, read=read)


def of_case(case: Case, inputs: Inputs) -> Result:
    return by_optax_of(case.optimizer)(case, inputs)


def norm(numbers: Any) -> Decimal:
    found: Decimal = sum((x * x for x in numbers.ravel()), Decimal(0)).sqrt()
    return found


def given(g: Any, p: Any, shape: tuple[int, ...], hyper: Hyper) -> Any:
    """Go row by row: clip, and take the mean off."""
    rows = shape[0] if len(shape) > 1 else 1
    parts = []
    for one, own in zip(g.reshape(rows, -1), p.reshape(rows, -1), strict=True):
        if hyper.get("adaptive_clip") and norm(one):
            limit = hyper["adaptive_clip"] * max(norm(own), LEAST)
            one = one * min(limit / norm(one), Decimal(1))
        if hyper.get("centralize") and len(shape) > 1:
            one = one - one.sum() / one.size
        parts.append(one)
    return np.concatenate(parts)


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, dict[str, Array], int]:
    hyper = {key: exact(value) for key, value in case.hyper(index).items()}
    shape = inputs["p"][index].shape
    p, state, count, path = exact_array(inputs["p"][index]), State(), 0, []
    for at in range(case.steps):
        if not case.is_missing(index, at):
            count += 1
            g = given(exact_array(inputs["g"][index][at, ...]), p, shape, hyper)
            p = step_one(case, p, g, state, count, hyper)
        path.append(to_float64(p, shape))
    return np.stack(path), {k: to_float64(x, shape) for k, x in state.items()}, count


def closed(case: Case, inputs: Inputs) -> Result:
    with localcontext(CONTEXT):
        return gathered([closed_one(case, inputs, index) for index in range(len(inputs["p"]))])
