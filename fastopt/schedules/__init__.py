"""Schedules: hyperparameters as functions of the step number, used as ``lr=cosine(0.1, 1000)``.

A schedule is called with the number of the step, 0 for the first, and returns the value of that
step. It knows nothing else, so there is nothing to step and nothing to save: an optimizer asks it
with its own ``step_count``, and goes on rightly after ``load_state_dict`` or a skipped step. It
cannot be changed, can be pickled, and equals another one of the same kind and numbers. Every
schedule that ends holds its last value from then on.

Any function of the step number can be used as well, and may return anything that ``float()``
takes (but text): a number, or an array or tensor of one element of any library; one on a device is
fetched at every step, which waits for it. What all optimizers take as a function are ``lr`` and
``weight_decay``, and ``eps``, betas (each entry of a pair), momentum, dampening and rho where they
have them. As in PyTorch, bias corrections are 1 - beta^t with the step's own beta.

``ReduceLROnPlateau`` is the one with a memory; it is saved with the optimizer.
"""

from fastopt.schedules.cycles import chebyshev, cosine, cosine_restarts, cyclic, one_cycle
from fastopt.schedules.functions import (
    Schedule,
    constant,
    exponential,
    inverse_sqrt,
    inverse_time,
    linear,
    multistep,
    polynomial,
    rex,
    step_decay,
)
from fastopt.schedules.phases import join, product, warmup, wsd
from fastopt.schedules.plateau import ReduceLROnPlateau

__all__ = [
    "ReduceLROnPlateau",
    "Schedule",
    "chebyshev",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "join",
    "linear",
    "multistep",
    "one_cycle",
    "polynomial",
    "product",
    "rex",
    "step_decay",
    "warmup",
    "wsd",
]
