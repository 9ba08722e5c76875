"""The places where published forms of a formula differ: fastopt does what its table says.

The ids f1 to f9 are those of the reliability list. Of f6 and f7 the parts on LAMB and LARS come
with those optimizers. Expected values are worked out by hand here, in a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import APART, CLIPPING, CPU_BACKENDS, VARIANTS, Variant

pytestmark = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def path(
    optimizer: Any, grads: Sequence[float | None], start: float = 0.0, **options: Any
) -> list[float]:
    """Return where one parameter goes, step by step, in float64; in float32 it must go there too.

    ``lr`` may be a list with the value of each step.
    """
    rates = options.pop("lr")
    rates = rates if isinstance(rates, list) else [rates] * len(grads)
    found: list[list[float]] = []
    for dtype in (np.float64, np.float32):
        param = np.full(3, start, dtype)
        opt = optimizer(param, lr=rates[0], **options)
        found.append([])
        for rate, grad in zip(rates, grads, strict=True):
            opt.lr = rate
            opt.step(None if grad is None else np.full(3, grad, dtype))
            found[-1].append(float(param[0]))
            assert np.all(param == param[0])
    np.testing.assert_allclose(found[1], found[0], rtol=2e-6, atol=1e-7)
    return found[0]


def near(got: Sequence[float], expected: Sequence[float]) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


def state_of(opt: Any, slot: str) -> float:
    return float(opt.state_dict()["state"]["params"][slot].reshape(-1)[0])


# f1: where eps stands ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.AdamW])
def test_f1_adams_eps_is_outside_the_root_and_after_the_bias_correction(
    make: Any, backend: str
) -> None:
    first, second = path(make, [2, 2], lr=1, eps=0.5, weight_decay=0, backend=backend)
    near([first, second], [-2 / 2.5, -4 / 2.5])  # of constant gradients m / c1 = g, v / c2 = g^2


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.AdamW])
def test_f1_adams_eps_inside_the_root_is_after_the_bias_correction_too(
    make: Any, backend: str
) -> None:
    options = {"eps": 0.5, "eps_inside_sqrt": True, "weight_decay": 0}
    near(path(make, [2, 2], lr=1, backend=backend, **options), [-2 / sqrt(4.5), -4 / sqrt(4.5)])


def test_f1_adams_eps_without_bias_correction(backend: str) -> None:
    options = {"betas": (0.5, 0.75), "eps": 0.5, "bias_correction": False, "backend": backend}
    near(path(fastopt.Adam, [2], lr=1, **options), [-1 / (1 + 0.5)])  # m = 1, v = 1
    inside = path(fastopt.Adam, [2], lr=1, eps_inside_sqrt=True, **options)
    near(inside, [-1 / sqrt(1.5)])


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_f1_adams_eps_hat_is_added_before_the_bias_correction(
    make: Any, amsgrad: bool, backend: str
) -> None:
    options = {"betas": (0.5, 0.75), "eps": 0.5, "weight_decay": 0, "amsgrad": amsgrad}
    hat = {"eps_hat": True, "backend": backend, **options}
    # m = 1, then 1.5; v = 1, then 1.75; c1 = .5, .75; c2 = .25, .4375
    steps = [sqrt(0.25) / 0.5 * 1 / 1.5, sqrt(0.4375) / 0.75 * 1.5 / (sqrt(1.75) + 0.5)]
    near(path(make, [2, 2], lr=1, **hat), [-steps[0], -sum(steps)])
    inside = sqrt(0.25) / 0.5 * 1 / sqrt(1 + 0.5)
    near(path(make, [2], lr=1, eps_inside_sqrt=True, **hat), [-inside])


def test_f1_without_bias_correction_both_eps_are_one(backend: str) -> None:
    options = {"betas": (0.5, 0.75), "eps": 0.5, "bias_correction": False, "backend": backend}
    ends = [path(fastopt.Adam, [2, -1], lr=1, eps_hat=hat, **options) for hat in (False, True)]
    assert ends[0] == ends[1]


def test_f1_with_an_eps_of_zero_both_are_one(backend: str) -> None:
    ends = [
        path(fastopt.Adam, [2, -1, 0.5], lr=1, eps=0.0, eps_hat=hat, backend=backend)
        for hat in (False, True)
    ]
    near(ends[1], ends[0])


def test_f1_rmsprops_eps_is_where_it_was_asked_for(backend: str) -> None:
    options = {"beta": 0.75, "eps": 0.5, "backend": backend}  # v = 1 after a gradient of 2
    near(path(fastopt.RMSprop, [2], lr=1, **options), [-2 / 1.5])
    near(path(fastopt.RMSprop, [2], lr=1, eps_inside_sqrt=True, **options), [-2 / sqrt(1.5)])
    near(path(fastopt.RMSprop, [2], lr=1, bias_correction=True, **options), [-2 / 2.5])
    corrected = {"bias_correction": True, "eps_inside_sqrt": True}
    near(path(fastopt.RMSprop, [2], lr=1, **corrected, **options), [-2 / sqrt(4.5)])


def test_f1_the_eps_of_centred_rmsprop_is_added_to_the_standard_deviation(backend: str) -> None:
    options = {"beta": 0.75, "eps": 0.5, "centered": True, "backend": backend}
    variance = 1 - 0.5**2  # v = 1, a = 0.5
    near(path(fastopt.RMSprop, [2], lr=1, **options), [-2 / (sqrt(variance) + 0.5)])
    inside = path(fastopt.RMSprop, [2], lr=1, eps_inside_sqrt=True, **options)
    near(inside, [-2 / sqrt(variance + 0.5)])


def test_f1_adagrads_eps_is_outside_the_root(backend: str) -> None:
    near(path(fastopt.Adagrad, [2], lr=1, eps=0.5, backend=backend), [-2 / 2.5])


def test_f1_adagrads_eps_is_inside_the_root_where_it_was_asked_for(backend: str) -> None:
    options = {"eps": 0.5, "eps_inside_sqrt": True, "backend": backend}
    near(path(fastopt.Adagrad, [2], lr=1, **options), [-2 / sqrt(4.5)])
    begun = path(fastopt.Adagrad, [2], lr=1, initial_accumulator_value=1.75, **options)
    near(begun, [-2 / sqrt(6.25)])


def test_f1_adadeltas_eps_is_inside_both_roots(backend: str) -> None:
    first = path(fastopt.Adadelta, [2], lr=1, rho=0.75, eps=0.5, backend=backend)
    near(first, [-sqrt(0.5) / sqrt(1.5) * 2])


# f2: the bias correction -------------------------------------------------------------------------


def test_f2_the_step_is_counted_before_it_is_used(backend: str) -> None:
    small = {"lr": 0.1, "eps": 0.0, "backend": backend}
    near(path(fastopt.Adam, [3, 3, 3], **small), [-0.1, -0.2, -0.3])
    near(path(fastopt.AdamW, [-5], weight_decay=0, **small), [0.1])
    near(path(fastopt.RMSprop, [3, 3], bias_correction=True, **small), [-0.1, -0.2])
    corrected = path(fastopt.Momentum, [3, 3], lr=1, bias_correction=True, backend=backend)
    near(corrected, [-3, -6])


def test_f2_the_correction_is_of_the_power_and_not_of_beta(backend: str) -> None:
    got = path(fastopt.Momentum, [1, 0], lr=1, beta=0.5, bias_correction=True, backend=backend)
    near(got, [-1, -1 - 0.25 / 0.75])
    near(path(fastopt.Momentum, [1, 0], lr=1, beta=0.5, backend=backend), [-0.5, -0.75])


# f3 and f4 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.AdamW])
def test_f3_amsgrad_takes_the_maximum_of_the_raw_average(make: Any, backend: str) -> None:
    options = {"betas": (0.0, 0.5), "eps": 0.0, "amsgrad": True, "weight_decay": 0}
    # v = 2, then 1 + 0.5; c2 = 0.5, then 0.75. The maximum of v / c2 would be 4, not 2 / 0.75.
    got = path(make, [2, 1], lr=1, backend=backend, **options)
    near(got, [-1, -1 - 1 / sqrt(2 / 0.75)])


@each_variant
def test_f4_the_first_gradient_already_moves_the_parameter_against_it(
    variant: Variant, backend: str
) -> None:
    param, grad = np.zeros(2), np.array([1.0, -2.0])
    opt = variant(param, backend=backend)
    if variant.waits:
        opt.step(grad)
        assert not param.any()
    opt.step(grad)
    assert param[0] < 0 < param[1]


@each_variant
def test_f4_each_step_uses_the_gradient_it_was_given(variant: Variant, backend: str) -> None:
    ends = []
    for last in (1.0, -2.0):  # the other way, for steps by the sign
        param = np.zeros(2)  # two, so that a step of a given length has a direction
        opt = variant(param, backend=backend)
        opt.step(np.full(2, 0.125))  # small enough for every limit
        opt.step(0.125 * np.array([-last, 1.0]))
        ends.append(float(param[0]))
    assert ends[0] != ends[1]


@each_variant
def test_maximizing_goes_where_the_turned_gradient_goes(variant: Variant, backend: str) -> None:
    params = [np.full(4, 2.0), np.full(4, 2.0)]
    opts = [variant(params[0], maximize=True), variant(params[1])]
    rng = np.random.default_rng(0)
    for _ in range(5):
        grad = rng.standard_normal(4)
        takes = variant.optimizer._takes_value
        loss, turned = ({"value": 2.0}, {"value": -2.0}) if takes else ({}, {})
        opts[0].step(grad, **loss)
        opts[1].step(-grad, **turned)
    np.testing.assert_array_equal(*params)


# f5: AdaBelief -----------------------------------------------------------------------------------


def test_f5_adabelief_keeps_its_inner_eps_in_v(backend: str) -> None:
    options = {"betas": (0.5, 0.75), "eps": 0.5, "eps_root": 0.75, "backend": backend}
    # m = 1, 1.5, the distances from it 1, 0.5; v = 1, then 0.75 + 0.25 * 0.25 + 0.75
    steps = [2 / (sqrt(1 / 0.25) + 0.5), 2 / (sqrt(1.5625 / 0.4375) + 0.5)]
    near(path(fastopt.AdaBelief, [2, 2], lr=1, **options), [-steps[0], -sum(steps)])


def test_f5_the_distance_is_that_from_the_new_average(backend: str) -> None:
    options = {"betas": (0.5, 0.75), "eps": 0.5, "eps_root": 0.0, "backend": backend}
    # m = 1, 0.5; the distances 1, -0.5; v = 0.25, then 0.75 * 0.25 + 0.25 * 0.25
    steps = [2 / (1 + 0.5), 0.5 / 0.75 / (sqrt(0.25 / 0.4375) + 0.5)]
    near(path(fastopt.AdaBelief, [2, 0], lr=1, **options), [-steps[0], -sum(steps)])


# f6 and f7: decay, and the learning rate ---------------------------------------------------------


def decaying(where: str) -> list[Variant]:
    """Return the variants whose decay acts there; what is within a rule is held to the vectors."""
    return [v for v in VARIANTS if v.optimizer._decay(v(np.ones(1)).param_groups[0]) == where]


# A gradient is clipped before the term, see test_clip_value.
COUPLED = [v for v in decaying("gradient") if v not in CLIPPING]
DECOUPLED = [v for v in decaying("parameter") if "cautious_decay" not in v.options]


@pytest.mark.parametrize("variant", COUPLED, ids=str)
def test_f6_coupled_decay_is_a_term_of_the_gradient(variant: Variant, backend: str) -> None:
    params = [np.full(3, 2.0), np.full(3, 2.0)]
    decayed = variant(params[0], weight_decay=0.25, backend=backend)
    plain = variant(params[1], weight_decay=0.0, backend=backend)
    for value in (1.0, -0.5, 0.25):
        decayed.step(np.full(3, value))
        plain.step(value + 0.25 * params[1])
        np.testing.assert_allclose(*params, rtol=1e-14)


@pytest.mark.parametrize("variant", DECOUPLED, ids=str)
def test_f6_decoupled_decay_is_scaled_by_lr_and_comes_first(variant: Variant, backend: str) -> None:
    params = [np.full(3, 2.0), np.full(3, 2.0)]
    decayed = variant(params[0], lr=0.5, weight_decay=0.25, backend=backend)
    plain = variant(params[1], lr=0.5, weight_decay=0.0, backend=backend)
    for value in (1.0, -0.5, 0.25):
        decayed.step(np.full(3, value))
        params[1][:] *= 1 - 0.5 * 0.25
        plain.step(np.full(3, value))
        np.testing.assert_allclose(*params, rtol=1e-14)
    at_rest = np.full(3, 2.0)
    variant(at_rest, lr=0.5, weight_decay=0.25, backend=backend).step(np.zeros(3))
    np.testing.assert_array_equal(at_rest, np.full(3, 1.75))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.led_by_lr], ids=str)
def test_f6_without_a_learning_rate_nothing_decays(variant: Variant, backend: str) -> None:
    param = np.full(3, 2.0)
    variant(param, lr=0.0, weight_decay=0.5, backend=backend).step(np.ones(3))
    np.testing.assert_array_equal(param, np.full(3, 2.0))


def test_f7_a_new_learning_rate_acts_on_the_whole_buffer_at_once(backend: str) -> None:
    rates = [1.0, 0.25]
    sgd = path(fastopt.SGD, [1, 0], lr=rates, momentum=0.5, backend=backend)
    near(sgd, [-1, -1 - 0.25 * 0.5])
    nesterov = path(fastopt.SGD, [1, 0], lr=rates, momentum=0.5, nesterov=True, backend=backend)
    near(nesterov, [-1.5, -1.5 - 0.25 * (0 + 0.5 * 0.5)])
    near(path(fastopt.Momentum, [1, 0], lr=rates, beta=0.5, backend=backend), [-0.5, -0.5625])
    options = {"beta": 0.0, "eps": 0.0, "momentum": 0.5, "backend": backend}
    near(path(fastopt.RMSprop, [2, 2], lr=rates, **options), [-1, -1 - 0.25 * (0.5 + 1)])


def test_f7_with_lr_inside_what_was_gathered_goes_on_at_its_own_rate(backend: str) -> None:
    rates = [1.0, 0.25, 0.25]
    options = {"momentum": 0.5, "lr_inside": True, "backend": backend}
    # v = -1, then -.5, then -.25 - .25 * 2
    near(path(fastopt.SGD, [1, 0, 2], lr=rates, **options), [-1, -1.5, -2.25])
    # steps: -.5 - 1, then -.25, then -.375 - .5
    nesterov = path(fastopt.SGD, [1, 0, 2], lr=rates, nesterov=True, **options)
    near(nesterov, [-1.5, -1.75, -2.625])


@pytest.mark.parametrize("nesterov", [False, True])
def test_f7_with_a_constant_rate_inside_and_outside_are_one(nesterov: bool, backend: str) -> None:
    options = {"lr": 0.125, "momentum": 0.5, "nesterov": nesterov, "backend": backend}
    ends = [path(fastopt.SGD, [1, -2, 3], lr_inside=x, **options) for x in (False, True)]
    near(ends[1], ends[0])


def test_f7_a_rate_inside_of_zero_stops_no_velocity(backend: str) -> None:
    options = {"momentum": 0.5, "lr_inside": True, "backend": backend}
    near(path(fastopt.SGD, [1, 1, 1], lr=[1.0, 0.0, 0.0], **options), [-1, -1.5, -1.75])


@pytest.mark.parametrize("centered", [False, True])
def test_f7_rmsprops_rate_is_inside_where_it_was_asked_for(centered: bool, backend: str) -> None:
    options = {"eps": 2.0, "momentum": 0.5, "lr_inside": True, "backend": backend}
    # Of a beta of 0 d = 2 / (2 + 2), and 2 / 2 where it is centred, for the variance is 0.
    d = 1.0 if centered else 0.5
    got = path(fastopt.RMSprop, [2, 2], lr=[1.0, 0.25], beta=0.0, centered=centered, **options)
    near(got, [-d, -d - (0.5 * d + 0.25 * d)])


def test_lr_inside_without_momentum_is_plain(backend: str) -> None:
    near(path(fastopt.SGD, [1, 2], lr=0.5, lr_inside=True, backend=backend), [-0.5, -1.5])
    options = {"lr": 0.5, "eps": 0.0, "beta": 0.0, "lr_inside": True, "backend": backend}
    near(path(fastopt.RMSprop, [1, 2], **options), [-0.5, -1.0])


def test_lr_inside_takes_no_dampening(backend: str) -> None:
    for dampening in (0.5, lambda t: 0.5):
        with pytest.raises(ValueError, match="SGD: lr_inside=True needs dampening = 0"):
            fastopt.SGD(
                np.ones(1), momentum=0.9, dampening=dampening, lr_inside=True, backend=backend
            )


# f8 and f9: first steps and missing gradients ----------------------------------------------------


def test_f8_the_momentum_buffer_begins_as_the_first_gradient(backend: str) -> None:
    options = {"momentum": 0.5, "dampening": 0.75, "backend": backend}
    near(path(fastopt.SGD, [1, 1], lr=1, **options), [-1, -1 - (0.5 + 0.25)])


def test_f8_each_parameter_has_a_first_gradient_of_its_own(backend: str) -> None:
    options = {"momentum": 0.5, "dampening": 0.75, "backend": backend}
    near(path(fastopt.SGD, [None, 1, None, 1], lr=1, **options), [0, -1, -1, -1.75])
    params = [np.zeros(2), np.zeros(2)]
    opt = fastopt.SGD(params, 1.0, **options)
    opt.step([np.ones(2), None])
    opt.step([np.ones(2), np.ones(2)])
    np.testing.assert_array_equal(params, [[-1.75, -1.75], [-1, -1]])


@each_variant
def test_f9_a_missing_gradient_leaves_parameter_state_and_count_alone(
    variant: Variant, backend: str
) -> None:
    params = {"a": np.ones(3), "b": np.ones((2, 2), np.float32), "c": np.ones(4)[::2]}
    opt = variant(params, backend=backend, weight_decay=0.1)
    full = {name: param * 0.5 for name, param in params.items()}
    opt.step(full)
    for missing in ({"b"}, {"a", "c"}, {"a", "b", "c"}, {"a"}):
        before = {name: params[name].tobytes() for name in missing}
        entries = opt.state_dict()["state"]
        opt.step({name: None if name in missing else grad for name, grad in full.items()})
        after = opt.state_dict()["state"]
        for name in params:
            if name in missing:
                assert params[name].tobytes() == before[name]
                np.testing.assert_equal(after[name], entries[name])
            else:
                assert after[name]["step"] == entries[name]["step"] + 1
    assert opt.step_count == 5


@pytest.mark.parametrize("variant", APART, ids=str)
def test_f9_a_parameter_goes_by_its_own_count_of_steps(variant: Variant, backend: str) -> None:
    present = [True, False, False, True, True, False, True]
    params = [np.ones(3), np.ones(3)]
    opt = variant(params, backend=backend)
    alone = np.ones(3)
    expected = variant(alone, backend=backend)
    for step, here in enumerate(present):
        grad = np.array([1.0, -2.0, 0.5]) / (1 + step)
        opt.step([grad, grad if here else None])
        if here:
            expected.step(grad)
    np.testing.assert_array_equal(params[1], alone)
    entries = opt.state_dict()["state"]
    assert (entries["0"]["step"], entries["1"]["step"], opt.step_count) == (7, 4, 7)
    np.testing.assert_equal(entries["1"], expected.state_dict()["state"]["params"])


@each_variant
def test_f9_a_schedule_goes_by_the_count_of_the_optimizer(variant: Variant, backend: str) -> None:
    asked: list[int] = []

    def lr(t: int) -> float:
        asked.append(t)
        return 0.1

    opt = variant([np.ones(2), np.ones(2)], lr=lr, backend=backend)
    for grads in ([np.ones(2), None], [None, None], [np.ones(2), np.ones(2)]):
        opt.step(grads)
    assert sorted(set(asked)) == [0, 1, 2]
    assert all(type(t) is int for t in asked)
