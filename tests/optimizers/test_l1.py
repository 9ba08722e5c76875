"""l1: every element comes closer to 0 by lr * l1, and to 0 where that would go past it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt_kernels.around import l1
from fastopt_kernels.around.fragment import Fragment
from helpers.bits import differences
from helpers.clipping import drawn, run
from helpers.rule_forms import FORMS, kept
from helpers.variants import CPU_BACKENDS, OF_MATRICES, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def estimates(variant: Variant) -> bool:
    memory = variant.rule.memory
    return memory is not None and memory.over == "optimizer"


EVERY = [v for v in (*VARIANTS, *OF_MATRICES) if "l1" not in v.options]
ESTIMATING = [v for v in EVERY if estimates(v)]
FROM_START = [v for v in EVERY if v.rule.from_start and not estimates(v)]
PLAIN = [v for v in EVERY if not estimates(v) and v not in FROM_START]


def shrunk(values: Array, by: float) -> Array:
    return np.asarray(np.sign(values) * np.maximum(np.abs(values) - by, 0.0))


def matrices(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in ((4, 3), (3, 4))]


@each_backend
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_it_is_a_step_and_then_a_proximal_one(variant: Variant, backend: str) -> None:
    params, plain = matrices(0), matrices(0)
    options = {"lr": 0.125, "weight_decay": 0.25, "backend": backend}
    opt, other = variant(params, l1=1.5, **options), variant(plain, **options)
    for step in range(1, 6):
        opt.step(matrices(step))
        other.step(matrices(step))
        for p in plain:
            p[...] = shrunk(p, 0.125 * 1.5)
    for one, two in zip(params, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(one == 0.0, two == 0.0)


@each_backend
@pytest.mark.parametrize("variant", FROM_START, ids=str)
def test_who_goes_from_the_start_refuses_it(variant: Variant, backend: str) -> None:
    with pytest.raises(ValueError, match=r"l1 is lost with the next step, since .* leave out l1"):
        variant(variant.one_parameter, backend=backend, l1=0.5)


@each_backend
@pytest.mark.parametrize("variant", ESTIMATING, ids=str)
def test_who_estimates_the_learning_rate_refuses_it(variant: Variant, backend: str) -> None:
    with pytest.raises(ValueError, match=r"l1 is in units of the learning rate, which .* leave"):
        variant(variant.one_parameter, backend=backend, l1=0.5)


@each_backend
def test_what_the_gradient_does_not_hold_becomes_exactly_0(backend: str) -> None:
    """Of 1/2 (p - c)^2 + |p| the minimum is at c shrunk by 1."""
    centre = np.array([3.0, -2.0, 0.75, -0.5, 0.0])
    param = np.ones(5)
    opt = fastopt.SGD(param, lr=0.25, l1=1.0, backend=backend)
    for _ in range(200):
        opt.step(param - centre)
    np.testing.assert_allclose(param[:2], [2.0, -1.0], rtol=1e-12)
    np.testing.assert_array_equal(param[2:], [0.0, 0.0, 0.0])


@each_backend
def test_it_goes_by_schedules_of_lr_and_by_lr_scale(backend: str) -> None:
    params = [np.full(3, 8.0), np.full(3, -8.0)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr_scale": 0.5}]
    opt = fastopt.SGD(groups, lr=lambda step: 2.0**-step, l1=1.0, backend=backend)
    zeros = [[np.zeros(3)], [np.zeros(3)]]
    for step in range(4):
        opt.step(zeros)
        gone = 2.0 - 2.0**-step
        np.testing.assert_array_equal(params, [[8.0 - gone] * 3, [-8.0 + gone / 2] * 3])


@each_backend
def test_a_learning_rate_that_is_set_between_steps_is_followed(backend: str) -> None:
    param = np.array([8.0])
    opt = fastopt.SGD(param, lr=1.0, l1=1.0, backend=backend)
    for lr, end in ((1.0, 7.0), (2.0, 5.0), (0.0, 5.0), (0.5, 4.5)):
        opt.lr = lr
        opt.step(np.zeros(1))
        assert param.item() == end


@each_backend
@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_rates_of_elements_multiply_it(name: str, backend: str) -> None:
    param, scale = np.full(4, 8.0), np.array([1.0, 0.5, 0.0, 3.0])
    make = {"sgd": fastopt.SGD, "lamb": fastopt.LAMB}[name]
    opt = make(param, lr=2.0, l1=1.0, lr_scale=scale, backend=backend)
    opt.step(np.zeros(4))
    np.testing.assert_array_equal(param, 8.0 - 2.0 * scale)


@each_backend
def test_it_comes_before_bounds_and_what_is_masked_stays(backend: str) -> None:
    param, grad = np.array([2.0, 2.0, -2.0]), np.array([1.0, 0.0, -1.0])
    options: dict[str, Any] = {"bounds": (1.5, None), "mask_zero": True, "backend": backend}
    fastopt.SGD(param, lr=1.0, l1=0.25, **options).step(grad)
    np.testing.assert_array_equal(param, [1.5, 2.0, 1.5])
    fastopt.SGD(param, lr=0.0, l1=0.25, **options).step(grad)
    np.testing.assert_array_equal(param, [1.5, 2.0, 1.5])


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.complex128, np.float16])
def test_0_changes_nothing(dtype: Any, backend: str) -> None:
    grads: list[list[Any]] = [drawn(seed, dtype) for seed in range(1, 5)]
    plain = run(fastopt.Adam, drawn(0, dtype), grads, backend=backend)
    other = run(fastopt.Adam, drawn(0, dtype), grads, l1=0.0, backend=backend)
    assert differences(plain, other) == {}


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_and_the_edge_becomes_0(form: str) -> None:
    after = np.array([np.nan, 0.5, -0.5, 0.75, -0.75, -0.25, np.inf, -0.0])
    with np.errstate(invalid="ignore"):  # as in a step
        got, _ = kept(l1.FRAGMENT, form, {"after": after}, {"l1": 0.5})
    np.testing.assert_array_equal(got, [np.nan, 0, 0, 0.25, -0.25, 0, np.inf, 0])


@each_backend
def test_it_differs_between_groups_is_set_between_steps_and_stays_a_number(backend: str) -> None:
    params = [np.full(1, 8.0), np.full(1, 8.0)]
    groups = [{"params": [params[0]], "l1": 1.0}, {"params": [params[1]]}]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend)
    zeros = [[np.zeros(1)], [np.zeros(1)]]
    opt.step(zeros)
    kernels = list(opt._engine.kernels)
    opt.param_groups[0]["l1"] = 2.0
    opt.step(zeros)
    assert opt._engine.kernels == kernels  # nothing was compiled anew
    assert [p.item() for p in params] == [5.0, 8.0]
    with pytest.raises(ValueError, match=r"or with 0\.0, which acts on nothing"):
        opt.param_groups[1]["l1"] = 1.0
    with pytest.raises(ValueError, match=r"set it to 0\.0, which acts on nothing"):
        opt.param_groups[0]["l1"] = None


@each_backend
def test_what_float32_does_not_hold_is_refused(backend: str) -> None:
    param = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"lr \* l1 comes to 1e\+39, which is infinite in float32"):
        fastopt.SGD(param, lr=1e3, l1=1e36, backend=backend)
    opt = fastopt.SGD(param, lr=1e-30, l1=1e-30, backend=backend)  # 0, as decay would be
    opt.step(np.zeros(1, np.float32))
    assert param.item() == 1.0


def test_what_the_learning_rate_multiplies_is_a_scalar_that_acts_after_the_rule() -> None:
    def form(grad: Any, l1: Any) -> Any:
        return grad + l1

    right: dict[str, Any] = {"name": "add", "numpy": form, "numba": form, "scalars": ("l1",)}
    right |= {"at": "after", "cupy": "kept = grad + l1;", "lr_scalars": ("l1",)}
    assert Fragment(**right).lr_scalars == ("l1",)
    for wrong in ({"lr_scalars": ("lr",)}, {"at": "gradient"}):
        with pytest.raises(TypeError, match="are no scalars of it at 'after'"):
            Fragment(**right | wrong)
