"""NAdam's product of momenta, which is summed up in closed form, and RAdam's share of a step."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.optimizers.common import one_minus_risen, power, rectification


def by_hand(beta1: float, rise: float, t: int) -> float:
    with localcontext(prec=40):
        product = Decimal(1)
        for step in range(1, t + 1):
            fallen = (Decimal("0.96").ln() * step * Decimal(rise)).exp()
            product *= Decimal(beta1) * (1 - fallen / 2)
        return float(1 - product)


@pytest.mark.parametrize("beta1", [0.0, 0.1, 0.9, 0.9999])
@pytest.mark.parametrize("rise", [0.0, 1e-9, 4e-3, 1.0, 50.0, 1e300])
def test_it_is_the_product_of_all_steps(beta1: float, rise: float) -> None:
    for t in (1, 2, 3, 10, 60):
        got = one_minus_risen(beta1, rise, t)
        assert got == pytest.approx(by_hand(beta1, rise, t), rel=1e-14)


def test_a_far_step_is_as_good_as_a_near_one() -> None:
    near = -math.expm1(math.fsum(math.log(0.9999 * (1 - 0.96**k / 2)) for k in range(1, 5001)))
    assert one_minus_risen(0.9999, 1.0, 5000) == pytest.approx(near, rel=1e-13)
    for t in (10**6, 2**53 + 1):
        assert one_minus_risen(0.9, 4e-3, t) == 1.0


def test_members_have_products_of_their_own() -> None:
    rises: Any = np.array([0.0, 0.5, 0.5, 2.0])
    got = one_minus_risen(0.9, rises, 7)
    np.testing.assert_array_equal(got, [one_minus_risen(0.9, rise, 7) for rise in rises.tolist()])


def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not() -> None:
    ends = []
    for stop in (None, 6):
        rng, param = np.random.default_rng(0), np.ones(9, np.float32)
        opt = fastopt.NAdam(param, lr=0.01, momentum_decay=0.2)
        for step in range(12):
            grad = rng.standard_normal(9).astype(np.float32)
            opt.step(None if step % 4 == 2 else grad)
            if step == stop:
                saved = opt.state_dict()
                opt = fastopt.NAdam(param, lr=0.01, momentum_decay=0.2)
                opt.load_state_dict(saved)
        ends.append(param.tobytes())
    assert ends[0] == ends[1]


def test_steps_adapt_where_rho_is_above_five() -> None:
    assert [rectification(0.999, t) > 0 for t in (1, 4, 5, 6, 7)] == [False] * 3 + [True] * 2
    assert all(rectification(beta2, 10**6) == 0.0 for beta2 in (0.0, 0.5, 2 / 3 - 1e-9))
    assert rectification(0.9, 10**6) == 1.0


def test_a_power_that_is_too_large_is_infinite() -> None:
    assert power(1e200, 2.0) == math.inf
    np.testing.assert_array_equal(power(np.array([2.0, 1e200]), 2.0), [4.0, math.inf])
