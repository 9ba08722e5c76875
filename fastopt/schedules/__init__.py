"""Schedules: hyperparameters as functions of the step number, used as ``lr=cosine(0.1, 1000)``.

A schedule is called with the number of the step, 0 for the first, and returns the value of that
step. It knows nothing else, so there is nothing to step and nothing to save: an optimizer asks it
with its own ``step_count``, and goes on rightly after ``load_state_dict`` or a skipped step. It
cannot be changed, can be pickled, and equals another one of the same kind and numbers. Every
schedule that ends holds its last value from then on.

Any function of the step number can be used as well. What all optimizers take as a function are
``lr`` and ``weight_decay``, and ``eps`` where they have one; the momentum of ``SGD`` (dampening
too), ``RMSprop`` and ``Momentum`` (its beta) can be one. The other betas are numbers: the bias
correction 1 - beta^t is that of one beta, and for a beta that changes it would be a product over
all steps made, a memory.

``ReduceLROnPlateau`` is the one with a memory; it is saved with the optimizer.
"""

from fastopt.schedules.functions import (
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    inverse_sqrt,
    join,
    linear,
    multistep,
    one_cycle,
    polynomial,
    step_decay,
    warmup,
)
from fastopt.schedules.plateau import ReduceLROnPlateau

__all__ = [
    "ReduceLROnPlateau",
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "multistep",
    "one_cycle",
    "polynomial",
    "step_decay",
    "warmup",
]
