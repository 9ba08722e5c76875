"""L-BFGS works on CuPy's arrays, and brings to the host only the numbers that decide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.fits.lbfgs import Minimizer

WEIGHTS = np.linspace(1.0, 40.0, 300)


def valley(xp: Any, x: Any) -> tuple[float, Any]:
    """Return a function without quadratic parts, and its gradient, where the point is."""
    weights = xp.asarray(WEIGHTS.astype(x.dtype))
    apart = x - 1.0
    square = apart * apart
    return float((weights * (square + square * square)).sum()), weights * apart * (
        2.0 + 4.0 * square
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bounded", [False, True], ids=["free", "bounded"])
def test_a_run_goes_as_on_the_host(cupy: Any, bounded: bool, dtype: Any) -> None:
    start = np.cos(np.arange(300.0)).astype(dtype)
    limits = {"lower": np.full(300, -0.5, dtype), "upper": np.linspace(0.5, 2.0, 300).astype(dtype)}
    ends = {}
    for xp in (np, cupy):
        box = {name: xp.asarray(limit) for name, limit in limits.items()} if bounded else {}
        minimizer = Minimizer(xp.asarray(start), **box, history=4)
        for _ in range(90):
            assert isinstance(minimizer.point, xp.ndarray)
            found = minimizer.tell(*valley(xp, minimizer.point))
            if found is not None and (found.failed or found.projected <= 1e-4):
                break
        assert found is not None
        assert found.projected <= (1e-4 if dtype is np.float64 else 5e-3)
        assert isinstance(found.gradient, xp.ndarray)
        ends[xp] = found
    there = ends[cupy].x.get()
    np.testing.assert_allclose(there, ends[np].x, atol=1e-4)
    assert there.dtype == dtype
    if bounded:
        assert (there == limits["upper"]).sum() > 50


def test_a_run_is_resumed_in_the_same_bits_and_on_the_host(cupy: Any) -> None:
    params = {"W": cupy.asarray(np.cos(np.arange(300.0)).reshape(20, 15))}

    def closure_of(tree: dict[str, Any], xp: Any) -> Any:
        def closure() -> tuple[float, Any]:
            value, gradient = valley(xp, tree["W"].reshape(-1))
            return value, {"W": gradient.reshape(20, 15)}

        return closure

    opt = fastopt.LBFGS(params, history=4)
    for _ in range(3):
        opt.step(closure_of(params, cupy))
    state = opt.state_dict()
    resumed, moved = {"W": cupy.zeros((20, 15))}, {"W": np.zeros((20, 15))}
    other, here = fastopt.LBFGS(resumed, history=4), fastopt.LBFGS(moved, history=4)
    other.load_state_dict(state)
    here.load_state_dict(state)
    for _ in range(3):
        outcome = opt.step(closure_of(params, cupy))
        assert outcome == other.step(closure_of(resumed, cupy))
        on_host = here.step(closure_of(moved, np))
    assert params["W"].get().tobytes() == resumed["W"].get().tobytes()
    np.testing.assert_allclose(moved["W"], params["W"].get(), rtol=1e-9)
    assert on_host.value == pytest.approx(outcome.value)


def test_arrays_of_another_kind_are_refused(cupy: Any) -> None:
    with pytest.raises(ValueError, match="the gradient must be an array like the point"):
        Minimizer(cupy.ones(3)).tell(1.0, np.ones(3))
    with pytest.raises(ValueError, match="lower must be an array like x"):
        Minimizer(cupy.ones(3), lower=np.zeros(3))
    x = cupy.ones(3)
    with pytest.raises(TypeError, match="must be an array a CuPy array on device 0"):
        fastopt.LBFGS(x).step(lambda: (1.0, np.ones(3)))


def test_the_manuals_fit_ends_as_on_the_host(cupy: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "start" / "fit.md").read_text(encoding="utf-8")
    (fit,) = (part for part in re.findall(r"```python\n(.*?)```", text, re.S) if '"lbfgs"' in part)
    found = {}
    for xp in (np, cupy):
        names: dict[str, Any] = {"xp": xp, "fastopt": fastopt, "print": lambda *_: None}
        exec(fit.replace("xp = fastopt.array_namespace()\n", ""), names)
        found[xp] = names["result"]
        assert isinstance(found[xp].x["rate"], xp.ndarray)
        assert found[xp].success
    assert found[cupy].nfev == found[np].nfev
    assert float(found[cupy].x["rate"]) == pytest.approx(1.5, abs=1e-6)
    assert float(found[cupy].x["height"]) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("starts", [1, 3])
def test_minimize_with_bounds_goes_along_breakpoints_there(cupy: Any, starts: int) -> None:
    """Of 300 elements most meet a bound, at breakpoints that are sorted on the device."""
    start = np.cos(np.arange(300.0 * starts)).reshape(starts, 300) / 2
    lower, upper = np.full(300, -0.5), np.linspace(0.2, 1.5, 300)

    def fun(x: Any) -> Any:
        xp = cupy.get_array_module(x)
        apart = x - 1.0
        square = apart * apart
        weights = xp.asarray(WEIGHTS)
        value = (weights * (square + square * square)).sum(axis=-1)
        return value, weights * apart * (2.0 + 4.0 * square)

    found = {}
    for xp in (np, cupy):
        found[xp] = fastopt.minimize(
            fun,
            xp.asarray(start if starts > 1 else start[0]),
            method="lbfgs",
            bounds=(lower, upper),
            gtol=1e-6,
            starts=starts,
        )
        assert found[xp].success, found[xp].message
    there = found[cupy].x
    assert isinstance(there, cupy.ndarray)
    np.testing.assert_allclose(there.get(), found[np].x, atol=1e-7)
    np.testing.assert_allclose(there.get(), np.minimum(1.0, upper), atol=1e-7)
    assert found[cupy].fun == pytest.approx(found[np].fun)
