"""Gradients that are clipped before the step, by PyTorch's functions and in 50 digits.

Clipping looks at nothing but the gradient, so the oracles of the optimizers are handed others.
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext
from math import inf

import numpy as np
import torch

from . import oracle_closed_form, oracle_torch
from .oracle_closed_form import CONTEXT, exact, exact_array, to_float64
from .vector_cases import Array, Case, Hyper, Result

Inputs = dict[str, list[Array]]
CLIPS = ("clip_value", "clip_each")
EPS = Decimal("1e-6")
"""Added to the norm, as PyTorch does."""


def without_clips(case: Case) -> Case:
    """Return the case of an optimizer that does not clip."""

    def plain(hyper: Hyper) -> Hyper:
        return {name: value for name, value in hyper.items() if name not in CLIPS}

    return replace(case, kwargs=plain(case.kwargs), groups=tuple(map(plain, case.groups)))


def clipped(case: Case, inputs: Inputs, clip: Callable[[Array, float, float], Array]) -> Inputs:
    """Return the inputs with the gradients of every step clipped, infinite limits for none."""
    made = []
    for index, grads in enumerate(inputs["g"]):
        limits = [case.hyper(index).get(name) or inf for name in CLIPS]
        made.append(np.stack([clip(grad, *limits) for grad in grads]))
    return inputs | {"g": made}


def by_torchs_functions(grad: Array, value: float, norm: float) -> Array:
    param = torch.zeros(grad.shape, dtype=torch.float64)
    param.grad = torch.tensor(grad)
    if value < inf:
        torch.nn.utils.clip_grad_value_([param], value)
    if norm < inf:
        torch.nn.utils.clip_grad_norm_([param], norm)
    return np.array(param.grad.numpy())


def in_digits(grad: Array, value: float, norm: float) -> Array:
    g = exact_array(grad)
    if value < inf:
        g = np.array([max(min(x, exact(value)), -exact(value)) for x in g], dtype=object)
    if norm < inf:
        ratio = exact(norm) / (sum(x * x for x in g).sqrt() + EPS)
        g = g * min(ratio, Decimal(1))
    return to_float64(g, grad.shape)


def by_torch(case: Case, inputs: Inputs) -> Result:
    return oracle_torch.run(without_clips(case), clipped(case, inputs, by_torchs_functions))


def closed(case: Case, inputs: Inputs) -> Result:
    with localcontext(CONTEXT):
        given = clipped(case, inputs, in_digits)
    return oracle_closed_form.run(without_clips(case), given)
