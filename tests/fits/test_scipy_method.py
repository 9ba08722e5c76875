"""scipy_method: what scipy.optimize.minimize and basinhopping hand on, and what they get."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from scipy import optimize

import fastopt

ADAM = fastopt.scipy_method("adam", lr=0.05, maxiter=5000)
LBFGS = fastopt.scipy_method("lbfgs")


@pytest.mark.parametrize("method", [ADAM, LBFGS], ids=["adam", "lbfgs"])
@pytest.mark.parametrize("size", [2, 5])
def test_rosen_with_a_gradient_of_its_own_ends_where_scipys_own_method_does(
    size: int, method: Any
) -> None:
    start = np.full(size, 1.3)
    own = optimize.minimize(optimize.rosen, start, jac=optimize.rosen_der, method="L-BFGS-B")
    got = optimize.minimize(optimize.rosen, start, jac=optimize.rosen_der, method=method)
    assert got.success
    np.testing.assert_allclose(got.x, own.x, atol=1e-4)
    assert isinstance(got, optimize.OptimizeResult)
    direct = fastopt.minimize(
        optimize.rosen,
        start,
        optimize.rosen_der,
        *(["adam"] if method is ADAM else ["lbfgs"]),
        lr=0.05 if method is ADAM else None,
        maxiter=5000,
    )
    np.testing.assert_array_equal(got.x, direct.x)


@pytest.mark.parametrize("method", [ADAM, LBFGS], ids=["adam", "lbfgs"])
def test_bounds_args_and_value_with_gradient(method: Any) -> None:
    def fun(x: Any, aim: Any, weight: float) -> Any:
        return weight * ((x - aim) ** 2).sum(), 2 * weight * (x - aim)

    aim = np.array([3.0, -1.0])
    for bounds in ([(0, 1), (None, None)], optimize.Bounds([0, -np.inf], [1, np.inf])):
        got = optimize.minimize(fun, [0, 0], (aim, 2.0), jac=True, method=method, bounds=bounds)
        assert got.success
        np.testing.assert_allclose(got.x, [1.0, -1.0], atol=1e-6)
    separate = optimize.minimize(
        lambda x, a: ((x - a) ** 2).sum(), [0.0], 4.0, method=method, jac=lambda x, a: 2 * (x - a)
    )
    np.testing.assert_allclose(separate.x, [4.0], atol=1e-6)


@pytest.mark.parametrize("method", [ADAM, LBFGS], ids=["adam", "lbfgs"])
@pytest.mark.parametrize("jac", [None, "2-point", "3-point", False])
def test_without_a_gradient_differences_are_taken_as_by_scipys_methods(
    jac: Any, method: Any
) -> None:
    calls = 0

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        return optimize.rosen(x)

    got = optimize.minimize(fun, [1.2, 1.3], jac=jac, method=method, options={"gtol": 1e-3})
    assert got.success, got
    np.testing.assert_allclose(got.x, [1, 1], atol=2e-2)
    assert got.nfev == calls


def test_tol_options_and_callback_are_handed_on(capsys: pytest.CaptureFixture[str]) -> None:
    loose = optimize.minimize(
        optimize.rosen, [1.2, 1.3], jac=optimize.rosen_der, method=ADAM, tol=0.5
    )
    assert loose.success
    assert 1e-3 < loose.grad_norm <= 0.5
    seen = []

    def callback(intermediate_result: Any) -> None:
        seen.append(intermediate_result.fun)
        if len(seen) == 4:
            raise StopIteration

    options = {"maxiter": 9, "disp": True, "betas": (0.5, 0.9), "lr": 0.01}
    named: dict[str, Any] = {"jac": optimize.rosen_der, "method": ADAM, "options": options}
    got = optimize.minimize(optimize.rosen, [1.2, 1.3], callback=callback, **named)
    assert (got.status, got.nit) == (99, 4)
    assert "StopIteration" in capsys.readouterr().out
    x = np.array([1.2, 1.3])
    opt = fastopt.Adam(x, lr=0.01, betas=(0.5, 0.9))
    for _ in range(9):
        opt.step(optimize.rosen_der(x))
    rest = optimize.minimize(optimize.rosen, [1.2, 1.3], **named)
    assert rest.nit == 9
    assert rest.history.value[-1] == optimize.rosen(x)
    few = optimize.minimize(optimize.rosen, [1.2, 1.3], method=ADAM, options={"maxfev": 3})
    assert few.status == 6


def test_basinhopping_finds_the_lowest_of_many_minima() -> None:
    def fun(x: Any) -> Any:
        return float(np.cos(14.5 * x[0] - 0.3) + (x[0] + 0.2) * x[0]), np.array(
            [-14.5 * np.sin(14.5 * x[0] - 0.3) + 2 * x[0] + 0.2]
        )

    # SciPy 1.15 has given the argument another name.
    seeded = "rng" if "rng" in inspect.signature(optimize.basinhopping).parameters else "seed"
    found = optimize.basinhopping(
        fun, [1.0], 60, **{seeded: 3}, minimizer_kwargs={"method": LBFGS, "jac": True}
    )
    np.testing.assert_allclose(found.x, [-0.1951], atol=1e-3)  # as SciPy's documentation has it


def test_constraints_are_refused_and_hessians_warned_of() -> None:
    line = optimize.LinearConstraint([[1, 1]], 0, 1)
    for constraints in (line, [line], {"type": "eq", "fun": lambda x: x[0]}):
        with pytest.raises(ValueError, match="bounds and no constraints"):
            optimize.minimize(optimize.rosen, [1, 1], method=ADAM, constraints=constraints)
    with pytest.warns(RuntimeWarning, match="do not use hess"):
        optimize.minimize(
            optimize.rosen,
            [1.0, 1.0],
            jac=optimize.rosen_der,
            hess=optimize.rosen_hess,
            method=LBFGS,
        )


def test_a_method_can_be_pickled() -> None:
    copied = pickle.loads(pickle.dumps(LBFGS))
    got = optimize.minimize(optimize.rosen, [1.3, 0.7], jac=optimize.rosen_der, method=copied)
    own = optimize.minimize(optimize.rosen, [1.3, 0.7], jac=optimize.rosen_der, method=LBFGS)
    np.testing.assert_array_equal(got.x, own.x)


def test_a_method_that_does_not_exist_is_refused_before_it_is_used() -> None:
    with pytest.raises(ValueError, match=r"there is no optimizer 'bfgs'.*'lbfgs' is a method too"):
        fastopt.scipy_method("bfgs")
    with pytest.raises(ValueError, match="leave out lr"):
        fastopt.scipy_method("lbfgs", lr=0.1)
    with pytest.raises(TypeError, match=r"SciPy's maxcor and maxls.; got maxcor"):
        fastopt.scipy_method("lbfgs", options={"maxcor": 5})


def test_settings_and_options_that_nobody_takes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got betas. What the optimizer takes goes to options"):
        fastopt.scipy_method("adam", betas=(0.9, 0.9))
    with pytest.raises(TypeError, match="maxcor"):
        optimize.minimize(optimize.rosen, [1, 1], method=LBFGS, options={"maxcor": 3})
