"""minimize: known minima, reasons to stop, bounds, trees, batches, callbacks, hostile functions."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.optimize

import fastopt
from helpers.cuda.emulation.cuda import Cuda
from helpers.functions import UNCONSTRAINED, Problem
from helpers.functions import rosenbrock as rosen

KNOWN = {problem.name: problem for problem in UNCONSTRAINED}
METHODS = ["adam", "lbfgs"]
minimize = fastopt.minimize


def bowl(x: Any) -> Any:
    """A quadratic function with the minimum 0 at (1, 2)."""
    way = x - np.array([1.0, 2.0])
    return way @ way, 2 * way


def ended(result: Any, status: int, words: str) -> None:
    assert result.status == status, result
    assert re.search(words, result.message), result.message
    assert result.message.endswith(".")
    assert result.success is (status in (0, 4, 5, 8))


# Known minima ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["rosenbrock_2", "rosenbrock_10", "beale", "booth", "himmelblau"])
def test_known_minima(name: str, method: str) -> None:
    known: Problem = KNOWN[name]
    options = {"lr": 0.02, "maxiter": 20_000} if method == "adam" else {}
    result = minimize(known.function, np.array(known.start), method=method, **options)
    ended(result, 0, r"^The largest element of the gradient, .* at most gtol = 1e-08\.$")
    assert known.reached(result.fun)
    value, gradient = known.function(result.x)
    assert value == result.fun
    assert abs(gradient).max() == result.grad_norm <= 1e-8
    assert result.nfev >= result.nit + 1
    assert len(result.history.value) == result.nit + 1
    np.testing.assert_array_equal(result.history.best, np.minimum.accumulate(result.history.value))
    assert result.history.grad_norm[-1] <= 1e-8
    assert (np.diff(result.history.seconds) >= 0).all()


def test_the_steps_are_the_optimizers_own_and_the_best_point_is_returned() -> None:
    x = np.array([-1.2, 1.0])
    opt = fastopt.Adam(x, lr=0.3)
    points, values = [], []
    for _ in range(26):
        value, gradient = rosen(x)
        points.append(x.copy())
        values.append(float(value))
        opt.step(gradient)
    result = minimize(rosen, [-1.2, 1.0], lr=0.3, maxiter=25)
    np.testing.assert_array_equal(result.history.value, values)
    best = int(np.argmin(values))
    assert best < 25  # it is not the last
    np.testing.assert_array_equal(result.x, points[best])
    assert (result.fun, result.nit, result.nfev) == (values[best], 25, 26)


@pytest.mark.parametrize(
    "method", ["lion", "RMSprop", fastopt.SGD, "schedule_free_sgd", "momo", "Muon", "soap"]
)
def test_any_optimizer_by_name_or_class(method: Any) -> None:
    start = np.full((3, 2), 4.0)

    def fun(x: Any) -> Any:
        return (x**2).sum(), 2 * x

    result = minimize(fun, start, method=method, lr=0.1, maxiter=300)
    assert result.fun < 0.05 * fun(start)[0]
    np.testing.assert_array_equal(start, 4.0)


def test_a_schedule_and_options_reach_the_optimizer() -> None:
    x = np.zeros(2)
    opt = fastopt.AdamW(x, lr=lambda t: 0.5 / (1 + t), betas=(0.5, 0.9), weight_decay=0.1)
    for _ in range(5):
        opt.step(bowl(x)[1])
    result = minimize(
        bowl,
        np.zeros(2),
        method="adamw",
        lr=lambda t: 0.5 / (1 + t),
        maxiter=5,
        options={"betas": (0.5, 0.9), "weight_decay": 0.1},
    )
    np.testing.assert_array_equal(result.x, x)


# Starts, trees, dtypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_trees_with_numbers_and_mixed_dtypes(method: str) -> None:
    start = {
        "a": 4.0,
        "b": [np.zeros((2, 2), np.float32), np.asfortranarray(np.ones((2, 3)))],
        "z": np.array([1j], np.complex64),
        "h": np.ones(2, np.float16),
    }
    aim = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)

    def fun(x: Any) -> Any:
        assert x["a"].shape == ()
        parts = [x["a"] - 1, x["b"][0] - aim, x["b"][1], x["z"] - (2 + 1j), x["h"] - 2]
        grads = [2 * one for one in parts]
        value = sum(float((abs(one) ** 2).sum()) for one in map(np.asarray, parts))
        return value, {"a": grads[0], "b": grads[1:3], "z": grads[3], "h": grads[4]}

    result = minimize(fun, start, method=method, lr=0.05 if method == "adam" else None, gtol=1e-4)
    assert result.success, result
    x = result.x
    np.testing.assert_allclose(x["b"][0], aim, atol=1e-3)
    np.testing.assert_allclose(x["z"], [2 + 1j], atol=1e-3)
    assert abs(x["a"] - 1) < 1e-3
    assert [x["b"][0].dtype, x["b"][1].dtype, x["z"].dtype, x["h"].dtype, x["a"].dtype] == [
        *map(np.dtype, ("float32", "float64", "complex64", "float16", "float64"))
    ]
    assert start["a"] == 4.0
    assert not start["b"][0].any()  # type: ignore[index]  # a list


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("start", "shape"),
    [
        (3, (1,)),
        ([3, 3.0], (2,)),
        (np.array(3), ()),
        (np.array([3, 3]), (2,)),
        ([[3], [1]], (2, 1)),
    ],
)
def test_numbers_lists_and_whole_numbers_are_starts_as_in_scipy(
    start: Any, shape: Any, method: str
) -> None:
    def fun(x: Any) -> Any:
        assert (x.shape, x.dtype) == (shape, np.float64)
        return ((x - 1) ** 2).sum(), (2 * (x - 1)).tolist()

    result = minimize(fun, start, method=method, lr=0.1 if method == "adam" else None)
    np.testing.assert_allclose(result.x, np.ones(shape), atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_read_only_start_is_not_written_and_fun_may_write_and_keep_what_it_gets(
    method: str,
) -> None:
    start = np.zeros(2)
    start.flags.writeable = False
    kept = []

    def fun(x: Any) -> Any:
        value, gradient = bowl(x)
        kept.append(x)
        x[:] = np.nan
        return value, gradient

    result = minimize(fun, start, method=method, lr=0.1 if method == "adam" else None)
    np.testing.assert_allclose(result.x, [1, 2], atol=1e-7)
    assert len({id(x) for x in kept}) == result.nfev
    assert not any(np.shares_memory(x, result.x) for x in kept)
    assert not start.any()


def test_the_gradient_may_be_the_point_itself_and_may_be_one_buffer() -> None:
    buffer = np.empty(3)

    def fun(x: Any) -> Any:
        buffer[:] = x
        return 0.5 * x @ x, buffer

    for method in METHODS:
        lr = 0.1 if method == "adam" else None
        assert minimize(lambda x: (0.5 * x @ x, x), np.ones(3), method=method, lr=lr).success
        assert minimize(fun, np.ones(3), method=method, lr=lr).success


@pytest.mark.parametrize("jac", [lambda x: bowl(x)[1], "2-point", None, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_of_its_own_or_by_differences(jac: Any, method: str) -> None:
    def fun(x: Any) -> Any:
        assert 0 <= x[0] <= 0.5
        return bowl(x)[0]

    lr = 0.1 if method == "adam" else None
    result = minimize(
        fun, [0, 0], jac, method, lr=lr, gtol=1e-6, maxiter=3000, bounds=[(0, 0.5), (None, None)]
    )
    ended(result, 0, "gradient")
    np.testing.assert_allclose(result.x, [0.5, 2], atol=1e-6)
    per_point = 1 if callable(jac) else 3
    assert result.nfev % per_point == 0


def test_differences_stay_within_narrow_and_closed_bounds() -> None:
    low, high = np.array([0.25, 1.0, 0.0]), np.array([0.25, 1.0 + 1e-12, 1.0])

    def fun(x: Any) -> Any:
        assert (x >= low).all()
        assert (x <= high).all()
        return ((x - 1) ** 2).sum()

    for start in (high, low):
        bounds = scipy.optimize.Bounds(low, high)
        result = minimize(fun, start, "2-point", "lbfgs", bounds=bounds, gtol=1e-6)
        assert result.success, result
        np.testing.assert_allclose(result.x, [0.25, 1.0, 1.0], atol=1e-6)


# Bounds -------------------------------------------------------------------------------------------

INF = np.inf


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "bounds",
    [
        [(-1, 0.5), (None, 1.5)],
        np.array([[-1, 0.5], [-INF, 1.5]]),
        scipy.optimize.Bounds([-1, -INF], [0.5, 1.5]),
        scipy.optimize.Bounds(-1, [0.5, 1.5]),
    ],
    ids=["pairs", "array", "Bounds", "broadcast"],
)
def test_bounds_in_scipys_forms(bounds: Any, method: str) -> None:
    seen = []

    def fun(x: Any) -> Any:
        seen.append(x.copy())
        return bowl(x)

    lr = 0.05 if method == "adam" else None
    result = minimize(fun, [9.0, 0.0], method=method, lr=lr, bounds=bounds)
    ended(result, 0, "projected gradient")
    np.testing.assert_array_equal(result.x, [0.5, 1.5])
    points = np.array(seen)
    assert (points <= [0.5, 1.5]).all()
    np.testing.assert_array_equal(points[0], [0.5, 0.0])  # the start was moved within them


@pytest.mark.parametrize("method", METHODS)
def test_bounds_of_trees(method: str) -> None:
    start = [np.full((2, 2), 0.9, np.float32), np.array(3.0)]

    def fun(x: Any) -> Any:
        return sum((one**2).sum() for one in x), [2 * one for one in x]

    lr = 0.05 if method == "adam" else None
    low = np.array([[0.1, -1], [-1, 0.3]])
    result = minimize(fun, start, method=method, lr=lr, bounds=[(low, None), (1, None)])
    ended(result, 0, "projected gradient")
    assert (result.x[0] >= low).all()  # float32 rounds 0.1 up, and so inwards
    np.testing.assert_allclose(result.x[0], [[0.1, 0], [0, 0.3]], atol=1e-6)
    assert result.x[1] == 1
    both = minimize(fun, start, method=method, lr=lr, bounds=(0.25, None))
    assert both.x[1] == 0.25
    np.testing.assert_array_equal(both.x[0], np.full((2, 2), 0.25))


@pytest.mark.parametrize("method", METHODS)
def test_bounds_of_trees_as_the_optimizers_take_them(method: str) -> None:
    def fun(p: Any) -> Any:
        return sum((one**2).sum() for one in p.values()), {k: 2 * one for k, one in p.items()}

    start = {"a": np.full(2, 3.0), "b": 4.0}
    lr = 0.05 if method == "adam" else None
    for bounds in (
        ({"a": np.array([1.0, 2.0]), "b": 0.5}, {"a": 5, "b": None}),
        ({"a": np.array([1.0, 2.0]), "b": 0.5}, 9),
    ):
        result = minimize(fun, start, method=method, lr=lr, bounds=bounds)
        np.testing.assert_array_equal(result.x["a"], [1.0, 2.0])
        assert result.x["b"] == 0.5
    with pytest.raises(ValueError, match=r"or a pair of trees.*missing bounds\["):
        minimize(fun, start, method=method, bounds=({"a": 0.0}, None))
    with pytest.raises(ValueError, match=r"as x0 is: missing bounds\[.b.\]\. Use None for"):
        minimize(fun, start, method=method, bounds={"a": (0.0, None)})
    advised = minimize(fun, start, method=method, lr=lr, bounds={"a": (1.0, None), "b": None})
    np.testing.assert_array_equal(advised.x["a"], [1.0, 1.0])


def test_a_success_by_another_point_than_the_best_one_is_said() -> None:
    result = minimize(lambda x: float(((x - 3.0) ** 2).sum()), np.zeros(3), "2-point", lr=0.1)
    assert result.history.grad_norm[-1] <= 1e-8 < result.grad_norm  # by differences
    best = int(result.history.value.argmin())
    ended(result, 0, f"x is the point of iteration {best}, whose value is lower")
    assert f"{result.grad_norm:.3g}" in result.message


def test_the_class_of_lbfgs_is_a_method_too() -> None:
    named = minimize(bowl, [1.0, 2.0], method="lbfgs")
    np.testing.assert_array_equal(minimize(bowl, [1.0, 2.0], method=fastopt.LBFGS).x, named.x)


BAD_BOUNDS: list[tuple[Any, type[Exception], str]] = [
    ([(0, 1)], TypeError, "must be a pair .lower, upper."),
    ([(0, 1), (2, 1)], ValueError, "lower bound of .* exceeds"),
    ([(0, 1), ("a", 1)], TypeError, "bounds of x"),
    (scipy.optimize.Bounds([0, 0, 0], 1), ValueError, r"have its shape, \(2,\); got \(3,\)"),
    ([(0, 1), (np.nan, 1)], ValueError, "NaN"),
    (5, TypeError, "must be a pair"),
]


@pytest.mark.parametrize(("bounds", "error", "words"), BAD_BOUNDS)
def test_bounds_that_are_refused(bounds: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        minimize(bowl, [0.0, 0.0], bounds=bounds)


# Reasons to stop ----------------------------------------------------------------------------------


def test_maxiter() -> None:
    result = minimize(bowl, [0.0, 0.0], lr=1e-3, maxiter=20)
    ended(result, 1, r"^The limit of maxiter = 20 iterations is reached. The value was still fall")
    none = minimize(lambda x, _: bowl(x), [0.0, 0.0], batches=[1], maxiter=0)
    ended(none, 1, "maxiter = 0")
    assert np.isnan(none.fun)
    assert (none.nfev, none.x.tolist()) == (0, [0.0, 0.0])
    assert (result.nit, result.nfev) == (20, 21)
    none = minimize(bowl, [0.0, 0.0], maxiter=0)
    assert (none.nit, none.nfev, none.fun) == (0, 1, 5.0)
    assert minimize(rosen, [-1.2, 1], method="lbfgs", maxiter=3).nit == 3


@pytest.mark.parametrize("method", METHODS)
def test_maxfun(method: str) -> None:
    result = minimize(rosen, [-1.2, 1], method=method, maxfun=7)
    ended(result, 6, "^The limit of maxfun = 7 evaluations is reached.")
    assert result.nfev == 7


def test_max_time() -> None:
    result = minimize(bowl, [0.0, 0.0], maxiter=10**9, max_time=1e-9)
    ended(result, 7, "^The limit of max_time = 1e-09 s is reached.")
    assert result.nfev == 1


def test_ftol_and_xtol_are_measured_on_the_best_over_ten_iterations() -> None:
    flat = minimize(bowl, [0.0, 0.0], lr=0.1, tol=None, maxiter=9999, ftol=1e-3)
    ended(flat, 4, "best value has fallen by .* last 10 iterations.*ftol = 0.001")
    assert flat.nit % 10 == 0
    best = flat.history.best
    assert best[-11] - best[-1] <= 1e-3 < best[-21] - best[-11]
    still = minimize(bowl, [0.0, 0.0], lr=0.1, tol=None, maxiter=9999, xtol=1e-3)
    ended(still, 5, "the last one are .* 10 iterations ago.*xtol = 0.001")
    assert abs(still.x - [1, 2]).max() < 0.02
    never = minimize(bowl, [0.0, 0.0], lr=0.1, tol=None, maxiter=3000)
    ended(never, 1, "maxiter")


def test_tol_stands_for_gtol_where_that_is_not_given() -> None:
    loose = minimize(bowl, [0.0, 0.0], lr=0.1, tol=0.1)
    assert 1e-3 < loose.grad_norm <= 0.1
    both = minimize(bowl, [0.0, 0.0], lr=0.1, tol=0.1, gtol=1e-6)
    assert both.grad_norm <= 1e-6


def test_a_start_at_the_minimum_ends_at_once() -> None:
    for method in METHODS:
        result = minimize(bowl, [1.0, 2.0], method=method)
        ended(result, 0, "gradient")
        assert (result.nit, result.nfev, result.fun) == (0, 1, 0.0)


def test_without_tolerances_lbfgs_ends_where_the_gradient_is_0() -> None:
    result = minimize(bowl, [0.0, 0.0], method="lbfgs", tol=None)
    ended(result, 0, "^The gradient is 0: no direction leads down.$")
    np.testing.assert_array_equal(result.x, [1, 2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["fun", "callback"])
def test_ctrl_c_returns_the_best_so_far(place: str, method: str) -> None:
    calls = 0

    def fun(x: Any) -> Any:
        nonlocal calls
        calls += 1
        if place == "fun" and calls == 8:
            raise KeyboardInterrupt
        return rosen(x)

    def callback(intermediate_result: Any) -> None:
        if place == "callback" and intermediate_result.nit == 6:
            raise KeyboardInterrupt

    result = minimize(fun, [-1.2, 1], method=method, callback=callback)
    ended(result, 9, r"^Interrupted at iteration \d+ \(Ctrl-C\)\.$")
    assert result.fun == rosen(result.x)[0] < rosen(np.array([-1.2, 1]))[0]
    assert len(result.history.best) == result.nit + 1


def test_ctrl_c_before_there_is_anything_to_return_goes_through() -> None:
    def fun(x: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimize(fun, [0.0])


# Callbacks and progress ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_callbacks_of_both_forms(method: str) -> None:
    found: list[Any] = []
    points: list[Any] = []

    def new(intermediate_result: Any) -> None:
        found.append(intermediate_result)
        intermediate_result.x[:] = 7  # a copy

    first = minimize(rosen, [-1.2, 1], method=method, maxiter=12, callback=new)
    second = minimize(rosen, [-1.2, 1], method=method, maxiter=12, callback=points.append)
    np.testing.assert_array_equal(first.x, second.x)
    assert [one.nit for one in found] == list(range(1, 13))
    np.testing.assert_array_equal([one.fun for one in found], first.history.value[1:])
    np.testing.assert_array_equal([one.grad_norm for one in found], first.history.grad_norm[1:])
    np.testing.assert_array_equal([rosen(x)[0] for x in points], first.history.value[1:])
    assert isinstance(found[0], scipy.optimize.OptimizeResult)


def test_stop_iteration_in_a_callback_ends_the_run() -> None:
    def callback(xk: Any) -> None:
        if xk[0] > 0.2:
            raise StopIteration

    result = minimize(bowl, [0.0, 0.0], lr=0.1, callback=callback)
    ended(result, 99, "^The callback raised StopIteration.")
    assert result.x[0] > 0.2


def test_stop_iteration_in_fun_is_an_error_like_any_other() -> None:
    for error in (StopIteration, ZeroDivisionError):

        def fun(x: Any, error: Any = error) -> Any:
            raise error("mine")

        with pytest.raises(error, match="mine"):
            minimize(fun, [0.0])


def test_progress_is_shown_by_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    minimize(bowl, [0.0, 0.0], maxiter=30, progress=True)
    said = capsys.readouterr().err
    assert "adam" in said
    assert "30/30" in said
    assert "gradient" in said


def test_progress_without_tqdm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        minimize(bowl, [0.0, 0.0], progress=True)


# Batches ------------------------------------------------------------------------------------------


def of_batch(x: Any, batch: Any) -> Any:
    way = x - batch
    return way @ way, 2 * way


def batches(count: int) -> Iterator[Any]:
    rng = np.random.default_rng(3)
    for _ in range(count):
        yield np.array([1.0, 2.0]) + 0.1 * rng.standard_normal(2)


def test_every_batch_is_a_step_and_the_run_ends_with_them() -> None:
    x = np.zeros(2)
    opt = fastopt.Adam(x, lr=0.02)
    points, values = [], []
    for batch in batches(60):
        value, gradient = of_batch(x, batch)
        opt.step(gradient)
        points.append(x.copy())
        values.append(float(value))
    result = minimize(of_batch, [0.0, 0.0], lr=0.02, batches=batches(60))
    ended(result, 8, "^The batches have come to their end, after 60 iterations.$")
    assert (result.nit, result.nfev) == (60, 60)
    np.testing.assert_array_equal(result.history.value, values)
    means = [np.mean(values[k - 9 : k + 1]) for k in range(9, 60)]
    best = int(np.argmin(means))
    np.testing.assert_array_equal(result.x, points[best + 9])
    np.testing.assert_allclose(result.fun, means[best], rtol=1e-13)


def test_of_few_batches_the_last_point_is_returned() -> None:
    x = np.zeros(2)
    opt = fastopt.SGD(x, lr=0.1)
    for batch in batches(4):
        opt.step(of_batch(x, batch)[1])
    result = minimize(of_batch, [0.0, 0.0], method="sgd", lr=0.1, batches=[*batches(4)])
    np.testing.assert_array_equal(result.x, x)
    assert result.fun == pytest.approx(np.mean(result.history.value))


def test_batches_end_at_maxiter_without_taking_one_more_and_gtol_is_off() -> None:
    endless = itertools.repeat(np.zeros(2))
    result = minimize(of_batch, [0.0, 0.0], batches=endless, maxiter=25)
    ended(result, 1, "maxiter = 25")
    taken = batches(10)
    minimize(of_batch, [0.0, 0.0], batches=taken, maxiter=4)
    assert len([*taken]) == 6
    asked = minimize(of_batch, [0.0, 0.0], batches=endless, gtol=1e-8)
    ended(asked, 0, "gradient")
    assert asked.nit == 10


def test_a_batch_that_is_not_finite_ends_the_run_or_is_skipped() -> None:
    given = [*batches(30)]
    given[20] = np.array([np.nan, 0.0])
    stopped = minimize(of_batch, [0.0, 0.0], lr=0.02, batches=given)
    ended(stopped, 3, r"the value is nan at iteration 20; x is the best point before")
    options = {"on_nonfinite": "skip"}
    skipped = minimize(of_batch, [0.0, 0.0], lr=0.02, batches=given, options=options)
    ended(skipped, 8, "after 30 iterations")
    del given[20]
    without = minimize(of_batch, [0.0, 0.0], lr=0.02, batches=given)
    np.testing.assert_array_equal(skipped.x, without.x)


# Hostile functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_regions_of_nan(method: str) -> None:
    def fun(x: Any) -> Any:
        value, gradient = bowl(x)
        return (value if x[0] < 0.8 else np.nan), gradient

    result = minimize(fun, [0.0, 2.0], method=method, lr=0.1 if method == "adam" else None)
    assert 0 < result.x[0] < 0.8
    assert result.fun == bowl(result.x)[0]
    if method == "adam":
        best = result.nit - 1
        words = rf"the value is nan at iteration {result.nit}; .* of iteration {best}\.$"
        ended(result, 3, words)
    else:  # it shortens its steps, and comes close
        ended(result, 2, "No lower value was found")
        assert result.x[0] > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_at_the_start_or_in_one_leaf_is_named(method: str) -> None:
    result = minimize(lambda x: (np.nan, x), [1.0], method=method)
    ended(
        result, 3, "^The function is not finite: the value is nan at x0; begin where it is finite"
    )
    assert (result.x, result.nfev) == (1.0, 1)
    assert np.isnan(result.fun)
    for bad, word in ((np.nan, "NaN"), (np.inf, "infinity")):

        def fun(x: Any, bad: float = bad) -> Any:
            return 1.0, {"a": x["a"], "b": [x["b"][0], np.array([0.0, bad])]}

        start = {"a": np.ones(1), "b": [np.ones(1), np.ones(2)]}
        result = minimize(fun, start, method=method)
        ended(result, 3, rf'the gradient of x\["b"\]\[1\] holds {word} at x0')
    down = minimize(lambda x: (-np.inf if x[0] < 0.9 else x[0], [1.0]), [1.0], lr=0.03)
    ended(down, 3, "the value is -inf at iteration 4")


@pytest.mark.parametrize("method", METHODS)
def test_flat_functions_end_at_once(method: str) -> None:
    result = minimize(lambda x: (3.0, np.zeros(2)), [1.0, 1.0], method=method)
    ended(result, 0, "gradient")
    assert result.nit == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [-1.0, [1.0, -7.0]])
def test_a_gradient_that_contradicts_the_function_is_said_with_both_numbers(
    wrong: Any, method: str
) -> None:
    def fun(x: Any) -> Any:
        value, gradient = bowl(x)
        return value, gradient * wrong

    result = minimize(fun, [1.0, 3.0], method=method, maxiter=40)
    assert not result.success
    number = r"-?\d[\d.e+-]*"
    assert re.search(r"gradient contradicts the function", result.message)
    assert len(re.findall(number, result.message.split("contradicts")[1])) >= 3
    np.testing.assert_array_equal(result.x, [1.0, 3.0])


def test_a_right_gradient_is_not_blamed_for_a_learning_rate_that_is_too_large() -> None:
    result = minimize(bowl, [0.0, 0.0], method="sgd", lr=1.0, maxiter=60)
    ended(result, 1, "Nothing lower .* a smaller lr may")
    kink = minimize(lambda x: (abs(x).sum(), np.sign(x)), [0.05, 0.3], lr=0.1, maxiter=60)
    assert "contradicts" not in kink.message


def test_a_function_that_draws_is_not_blamed_for_its_gradient() -> None:
    rng = np.random.default_rng(7)

    def fun(x: Any) -> Any:
        value, gradient = bowl(x)
        return value + rng.random(), gradient

    result = minimize(fun, [1.1, 2.1], lr=1e-3, maxiter=4000, tol=None)
    assert not result.success
    assert "another one each time" in result.message
    assert "hand them in as batches" in result.message


def test_a_discontinuity_keeps_the_best_point() -> None:
    def fun(x: Any) -> Any:
        value, gradient = bowl(x)
        return value + 100.0 * (x[0] > 0.5), gradient

    for method in METHODS:
        lr = 0.1 if method == "adam" else None
        result = minimize(fun, [0.0, 0.0], method=method, lr=lr, maxiter=200)
        assert result.fun == fun(result.x)[0] < 5.0
        assert result.x[0] <= 0.5


RETURNS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda x: x @ x, TypeError, "a pair, the value and the gradient.*jac=grad"),
    (lambda x: (x, x), TypeError, "one real number.*sum or the mean"),
    (lambda x: (None, x), TypeError, "one real number.*NoneType"),
    (lambda x: (1j, x), TypeError, "one real number"),
    (lambda x: ("1", x), TypeError, "one real number"),
    (lambda x: (1.0, x[:, None]), ValueError, r"\(2,\); got \(2, 1\).*reshape"),
    (lambda x: (1.0, x[:1]), ValueError, r"its shape, \(2,\); got \(1,\)"),
    (lambda x: (1.0, 2.0), ValueError, r"its shape, \(2,\); got \(\)"),
    (lambda x: (1.0, x + 0j), TypeError, r"real numbers; got complex128.*\.real"),
    (lambda x: (1.0, None), TypeError, "got None. Return it from fun"),
    (lambda x: (1.0, [1.0, "a"]), TypeError, "real numbers"),
    (lambda x: (1.0, [[1.0], 2.0]), TypeError, "must be an array"),
]


@pytest.mark.parametrize(("fun", "error", "words"), RETURNS)
def test_what_fun_must_not_return(fun: Any, error: type[Exception], words: str) -> None:
    for method in METHODS:
        with pytest.raises(error, match=f"(?s){words}"):
            minimize(fun, [1.0, 1.0], method=method)


def test_a_gradient_of_another_structure_is_named() -> None:
    with pytest.raises(ValueError, match=r'nested as x0 is: missing the gradient\["b"\]'):
        minimize(lambda x: (1.0, {"a": x["a"]}), {"a": np.ones(1), "b": np.ones(1)})


def test_whole_numbers_lists_and_wide_dtypes_are_taken() -> None:
    for give in (list, tuple, np.float32, np.longdouble, np.int64):
        fixed = give(np.array([2, 2]))
        result = minimize(lambda x, g=fixed: (np.array([2]) * x.sum(), g), [1.0, 1.0], maxiter=3)
        assert result.history.value.tolist() == pytest.approx([4.0, 3.996, 3.992, 3.988])


# Arguments ----------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "adma"}, ValueError, "did you mean .*'Adam'"),
    ({"method": 3}, TypeError, "by name or class"),
    ({"method": "lbfgs", "lr": 0.1}, ValueError, "leave out lr"),
    ({"method": "lbfgs", "options": {"histroy": 3}}, TypeError, "history and max_line_steps"),
    ({"method": "lbfgs", "batches": []}, ValueError, "take an optimizer"),
    ({"method": "sophia"}, ValueError, "minimize has none; take another"),
    ({"options": {"maximize": True}}, ValueError, "hand in -fun"),
    ({"options": {"bounds": (0, 1)}}, ValueError, "bounds=..."),
    ({"options": [1]}, TypeError, "must be a dict"),
    ({"jac": "3-point"}, TypeError, "jac must be True"),
    ({"callback": 3}, TypeError, "callback must be a function"),
    ({"maxiter": -1}, ValueError, "maxiter"),
    ({"maxfun": 0}, ValueError, "maxfun"),
    ({"max_time": 0}, ValueError, "above 0, in seconds"),
    ({"gtol": -1.0}, ValueError, "gtol must be 0 or more"),
    ({"tol": "a"}, TypeError, "tol must be a number or None"),
    ({"ftol": np.nan}, ValueError, "ftol"),
    ({"progress": 1}, TypeError, "progress"),
    ({"x0": []}, ValueError, "at least one array"),
    ({"x0": bowl}, TypeError, r"^x0 must be .*got function.*if isinstance.v, np.ndarray.}\.$"),
    ({"x0": ["a"]}, TypeError, r"^x0\[0\] must be .*got str"),
    ({"x0": [{"params": np.ones(2), "lr": 1.0}]}, TypeError, "got parameter groups"),
    ({"x0": np.ones(2, bool)}, TypeError, "bool"),
    ({"x0": {"a": np.ones(2, bool)}, "method": "lbfgs"}, TypeError, "astype.'float64'"),
    ({"x0": [[1.0, 2.0], [3.0]]}, ValueError, "rows of different lengths"),
    ({"batches": []}, ValueError, "batches must hold some"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD)
def test_arguments_that_are_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        minimize(bowl, arguments.pop("x0", [0.0, 0.0]), **arguments)


def test_scipy_is_imported_by_the_first_call_and_tqdm_only_for_progress() -> None:
    text = """
import sys, fastopt
fastopt.minimize, fastopt.ravel
assert not {"scipy", "tqdm"} & sys.modules.keys()
fastopt.minimize(lambda x: (x @ x, 2 * x), [1.0])
assert "scipy" in sys.modules and "tqdm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", text], check=True)


# On a device --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_arrays_of_a_device_stay_there(cupy: Any, method: str) -> None:
    aim = {"a": np.array([1.0, 2.0, 0.25]), "b": np.array([[3.0]], np.float32)}

    def fun(x: Any, xp: Any) -> Any:
        way = {k: x[k] - xp.asarray(aim[k]) for k in x}
        return sum((one**2).sum() for one in way.values()), {k: 2 * v for k, v in way.items()}

    start = {"a": np.zeros(3), "b": np.zeros((1, 1), np.float32)}
    bounds = {"a": [(None, 0.5), (None, None), (0.5, None)], "b": None}
    options: dict[str, Any] = {"method": method, "bounds": bounds, "gtol": 1e-5}
    options["lr"] = 0.1 if method == "adam" else None
    host = minimize(lambda x: fun(x, np), start, **options)
    there = minimize(
        lambda x: fun(x, cupy), {k: cupy.asarray(v) for k, v in start.items()}, **options
    )
    ended(there, 0, "projected gradient")
    assert isinstance(there.x["a"], cupy.ndarray)
    assert isinstance(there.fun, float)
    np.testing.assert_allclose(there.x["a"].get(), [0.5, 2.0, 0.5], atol=1e-5)
    np.testing.assert_allclose(there.history.value, host.history.value, rtol=1e-4, atol=1e-9)
    with pytest.raises(fastopt.BackendMismatchError, match="must be a cupy array"):
        minimize(lambda x: (1.0, np.ones(2)), cupy.ones(2), method=method)


def test_an_iteration_fetches_from_a_device_once(cupy: Any, cuda: Cuda) -> None:
    def fun(x: Any) -> Any:
        return sum((one**2).sum() for one in x.values()), {k: 2 * v for k, v in x.items()}

    start = {"a": cupy.ones(300), "b": cupy.ones((5, 2), np.float32)}
    fetched = []
    for iterations in (3, 7):
        cuda.clear()
        minimize(fun, start, maxiter=iterations)
        fetched.append(cuda.waits.count("memcpyAsync to pageable memory"))
    assert fetched[1] - fetched[0] == 4
    assert fetched[0] <= 5
