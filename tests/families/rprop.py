"""Rprop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import pair
from helpers.mutants import given, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("rprop", fastopt.Rprop, led_by_lr=False, close=True),
    Variant(
        "rprop_bounded",
        fastopt.Rprop,
        {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.02), "weight_decay": 0.1},
        close=True,
        led_by_lr=False,
    ),
]
BAD = {
    "etas": pair(-1.0, 0.0, 1.0),
    "step_sizes": [*pair(-1e-300, -1), ((2.0, 1.0), ValueError), ((0.0, 0.0), ValueError)],
}


def rprop(
    u: SimpleNamespace,
    waits: bool = True,
    forgets: bool = True,
    goes_back: bool = False,
    bounds: tuple[bool, bool] = (True, True),
    first: bool = True,
    late: bool = False,
    of_lr: bool = False,
    size: bool = False,
    always: bool = False,
) -> None:
    u.length += u.first * ((u.lr if first else 0.01) - u.length)
    before = u.length.copy()
    turn = np.sign(u.grad) * np.sign(u.prev)
    if of_lr:
        u.length[turn == 0] = u.lr
    u.length *= np.where(turn > 0, u.grow, np.where(turn < 0, u.shrink, 1.0))
    if always:
        u.length[(turn == 0)] *= u.grow
    if bounds[0]:
        np.maximum(u.length, u.smallest, out=u.length)
    if bounds[1]:
        np.minimum(u.length, u.largest, out=u.length)
    way = np.where(turn < 0, 0.0, u.grad) if waits else u.grad
    step = (before if late else u.length) * (way if size else np.sign(way))
    if goes_back:
        step = np.where(turn < 0, before * np.sign(u.grad), step)
    u.param -= step
    u.prev[...] = np.where(turn < 0, 0.0, u.grad) if forgets else u.grad


PROP = fastopt.Rprop
MUTANTS = {
    "Rprop_does_not_wait_after_a_turn": (PROP, rule(PROP, lambda u: rprop(u, waits=False))),
    "Rprop_remembers_the_turn": (PROP, rule(PROP, lambda u: rprop(u, forgets=False))),
    "Rprop_goes_back": (PROP, rule(PROP, lambda u: rprop(u, goes_back=True))),
    "Rprop_no_smallest": (PROP, rule(PROP, lambda u: rprop(u, bounds=(False, True)))),
    "Rprop_no_largest": (PROP, rule(PROP, lambda u: rprop(u, bounds=(True, False)))),
    "Rprop_first_length_not_lr": (PROP, rule(PROP, lambda u: rprop(u, first=False))),
    "Rprop_old_length": (PROP, rule(PROP, lambda u: rprop(u, late=True))),
    "Rprop_begins_anew_after_a_turn": (PROP, rule(PROP, lambda u: rprop(u, of_lr=True))),
    "Rprop_steps_as_long_as_gradients": (PROP, rule(PROP, lambda u: rprop(u, size=True))),
    "Rprop_grows_where_a_sign_is_0": (PROP, rule(PROP, lambda u: rprop(u, always=True))),
    "Rprop_etas_ignored": (
        PROP,
        given(PROP, lambda o, lr, t: ({**o, "etas": (0.5, 1.2)}, lr, t)),
    ),
    "Rprop_step_sizes_ignored": (
        PROP,
        given(PROP, lambda o, lr, t: ({**o, "step_sizes": (1e-6, 50.0)}, lr, t)),
    ),
    "Rprop_lr_in_every_step": (PROP, scalars(PROP, lambda made, o, t: {"first": 1.0})),
}
