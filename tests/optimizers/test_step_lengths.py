"""How many learning rates long a step can be, as the docstrings of ``lr`` say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fastopt

QUIET = 2000


def lengths(name: str, gradients: Sequence[float] | np.ndarray[Any, Any], **options: Any) -> Any:
    """Return the length of each step of one parameter, in learning rates."""
    p = np.zeros(1)
    opt = getattr(fastopt, name)(p, lr=1.0, **options)
    found = []
    for g in gradients:
        before = p.copy()
        opt.step(np.array([g]))
        found.append(abs(p - before)[0])
    return np.array(found)


def worst(beta1: float, beta2: float) -> Any:
    """Return gradients whose last Adam step is the longest that there can be, after quiet."""
    growing = (beta1 / beta2) ** np.arange(150)[::-1]  # by the inequality of Cauchy and Schwarz
    return np.concatenate([np.full(5000, 1e-9), growing])


@pytest.mark.parametrize(
    "name", ["Adam", "AdamP", "Adamax", "Adan", "LaProp", "Mars", "StableAdamW", "Yogi", "ADOPT"]
)
def test_a_step_is_about_lr_long_where_gradients_are_steady(name: str) -> None:
    found = lengths(name, [1.0] * 2000, weight_decay=0.0)
    assert found[-1] == pytest.approx(1.0, abs=0.1)
    assert found.max() < 1.01


@pytest.mark.parametrize(
    ("name", "betas", "low", "high"),
    [
        ("Adam", (0.9, 0.999), 7.2, 7.3),
        ("AdamP", (0.9, 0.999), 7.2, 7.3),
        ("Yogi", (0.9, 0.999), 6.5, 7.3),
        ("Mars", (0.9, 0.99), 2.3, 2.35),
    ],
)
def test_it_is_several_times_as_long_after_a_quiet_time(
    name: str, betas: tuple[float, float], low: float, high: float
) -> None:
    beta1, beta2 = betas
    bound = (1 - beta1) / np.sqrt(1 - beta2) / np.sqrt(1 - beta1**2 / beta2)
    assert low < bound < high
    free = {"max_norm": np.inf} if name == "Mars" else {}
    found = lengths(name, worst(beta1, beta2), weight_decay=0.0, **free)
    assert low < found.max() < high
    assert found.argmax() == len(found) - 1


def test_stable_adamw_is_longer_behind_large_gradients_alone() -> None:
    found = lengths("StableAdamW", [1e-6] * QUIET + [1.0] * 12 + [1e-6] * 30, weight_decay=0.0)
    while_large, behind = found[QUIET : QUIET + 12], found[QUIET + 12 :]
    assert while_large.max() < 1 < 1.9 < behind.max() < 2.35


def test_adamax_is_hardly_ever_longer() -> None:
    # The worst gradients fall as slowly as the maximum forgets.
    found = lengths("Adamax", 0.999 ** np.arange(QUIET))
    assert 1.009 < found.max() < 1.01


def test_adan_is_never_above_a_fifth_longer() -> None:
    beta1, beta2, beta3 = 0.98, 0.92, 0.99
    # Where all of h = g + beta2 * d is 0 but one, the rule's numerator is this:
    g = m = v = 0.0
    answer = []
    for h in [1.0] + [0.0] * 1499:
        last, g = g, (h + beta2 * g) / (1 + beta2)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g - last)
        answer.append(m + beta2 * v)
    weights = (1 - beta3) * beta3 ** np.arange(1500)
    bound = np.sqrt((np.array(answer) ** 2 / weights).sum())
    assert 1.2 < bound < 1.21
    gradients, g = [], 0.0
    for h in (np.array(answer) / weights)[::-1] / 100:  # and these h reach it
        g = (h + beta2 * g) / (1 + beta2)
        gradients.append(g)
    found = lengths("Adan", [1e-9] * QUIET + gradients, weight_decay=0.0)
    assert found.max() == pytest.approx(bound, rel=1e-4)


def test_laprop_has_a_bound_whatever_beta1_is_and_adam_has_none() -> None:
    spike = [1e-6] * QUIET + [1.0] + [1e-6] * 300
    assert lengths("Adam", spike, betas=(0.99, 0.9)).max() > 100
    assert lengths("LaProp", spike, betas=(0.99, 0.9)).max() < 1 / np.sqrt(0.1)
    growing = [1e-12] * QUIET + [1e-12 * 10.0**k for k in range(1, 40)]
    longest = lengths("LaProp", growing, eps=1e-30).max()
    assert 0.9 / np.sqrt(0.001) < longest < 1 / np.sqrt(0.001)


def test_adopt_stays_below_its_own_bound() -> None:
    found = lengths("ADOPT", [1e-6] * QUIET + [1.0] * 500, weight_decay=0.0)
    assert 5 < found.max() < (QUIET + 499) ** 0.25
