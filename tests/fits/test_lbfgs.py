"""L-BFGS beside SciPy's on the classic functions, with and without bounds; hostile functions."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.fits.lbfgs import Iteration, Minimizer
from fastopt.fits.line_search import LineSearch, Verdict
from helpers.functions import BOUNDED, UNCONSTRAINED, Problem, beale, rosenbrock

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "lbfgs.json").read_text())["runs"]
PROBLEMS = {problem.name: problem for problem in (*UNCONSTRAINED, *BOUNDED)}

quiet = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid", "ignore:divide")
each_problem = pytest.mark.parametrize("name", PROBLEMS)


def minimizer_of(problem: Problem, dtype: Any = np.float64, **options: Any) -> Minimizer:
    if problem.lower is not None and problem.upper is not None:
        options["lower"] = np.array(problem.lower, dtype)
        options["upper"] = np.array(problem.upper, dtype)
    return Minimizer(np.array(problem.start, dtype), **options)


def recorded(name: str) -> Problem:
    minima = tuple(RECORDED[name]["minima"])
    problem = PROBLEMS[name]
    return Problem(name, problem.function, problem.start, minima, problem.lower, problem.upper)


def run(
    minimizer: Minimizer, function: Callable[[Array], Any], most: int = 20_000, gtol: float = 1e-10
) -> tuple[list[Iteration], list[float]]:
    """Return the iterations until one is good enough or failed, and all values told."""
    iterations, values = [], []
    for _ in range(most):
        value, gradient = function(minimizer.point)
        values.append(float(value))
        found = minimizer.tell(value, gradient)
        if found is not None:
            iterations.append(found)
            if found.failed or found.projected <= gtol:
                break
    return iterations, values


def evaluations(problem: Problem) -> int:
    """Return how many evaluations it takes to come within 1e-6 (1 + |f*|) of the minimum."""
    minimizer = minimizer_of(problem)
    for count in range(1, 20_000):
        value, gradient = problem.function(minimizer.point)
        if problem.reached(value):
            return count
        minimizer.tell(value, gradient)
    pytest.fail(f"{problem.name}: the minimum is not reached")


@quiet
@each_problem
def test_gradients_of_the_functions_are_those_of_complex_steps(name: str) -> None:
    problem = PROBLEMS[name]
    x = np.array(problem.start) + 0.013 * np.arange(1.0, len(problem.start) + 1.0)
    gradient = problem.function(x)[1]
    for k in range(min(len(x), 12)):
        step = x.astype(complex)
        step[k] += 1e-30j
        expected = problem.function(step)[0].imag / 1e-30
        assert gradient[k] == pytest.approx(expected, rel=1e-12, abs=1e-12 * abs(gradient).max())


@quiet
@pytest.mark.parametrize("problems", [UNCONSTRAINED, BOUNDED], ids=["free", "bounded"])
def test_takes_no_more_evaluations_than_scipy(problems: list[Problem]) -> None:
    ratios = {}
    for problem in problems:
        count, theirs = evaluations(recorded(problem.name)), RECORDED[problem.name]["evaluations"]
        if theirs is not None:  # SciPy's stays at another point of Jennrich and Sampson's
            ratios[problem.name] = count / theirs
    assert len(ratios) >= len(problems) - 1
    assert math.exp(np.mean(np.log(list(ratios.values())))) <= 1.2, ratios
    assert np.median(list(ratios.values())) <= 1.1, ratios
    assert max(ratios.values()) <= 1.5, ratios


@quiet
@pytest.mark.parametrize("problem", BOUNDED, ids=lambda problem: problem.name)
def test_no_point_is_beyond_the_bounds(problem: Problem) -> None:
    lower, upper = np.array(problem.lower), np.array(problem.upper)
    minimizer = minimizer_of(problem)
    for _ in range(60):
        assert (minimizer.point >= lower).all()
        assert (minimizer.point <= upper).all()
        found = minimizer.tell(*problem.function(minimizer.point))
        if found is not None and (found.failed or found.projected <= 1e-10):
            return


def test_an_iteration_says_where_it_is() -> None:
    iterations, _ = run(Minimizer(np.array([1.0, 1.0])), beale)
    start, end = iterations[0], iterations[-1]
    assert start.x.tolist() == [1.0, 1.0]
    assert start.value == 14.203125
    np.testing.assert_allclose(end.x, [3.0, 0.5], atol=1e-9)
    for found in iterations:  # its arrays are its own
        value, gradient = beale(found.x)
        assert (found.value, found.gradient.tolist()) == (value, gradient.tolist())
        assert found.projected == abs(gradient).max()
    assert all(a.value > b.value for a, b in itertools.pairwise(iterations))


def test_the_projected_gradient_is_what_bounds_leave_of_it() -> None:
    lower = np.array([-10.0, 1.5])
    minimizer = Minimizer(np.array([-1.2, 1.0]), lower=lower)
    iterations, _ = run(minimizer, rosenbrock, gtol=1e-8)
    end = iterations[-1]
    assert end.x[1] == 1.5
    assert abs(end.gradient[1]) > 1.0
    expected = np.maximum(end.x - end.gradient, lower) - end.x
    assert end.projected == abs(expected).max() <= 1e-8


# The quadratic model ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_matrices_are_those_of_bfgs(seed: int) -> None:
    """H and B of the compact forms against the updates one by one, as the pairs come and go."""
    rng = np.random.default_rng(seed)
    size, history = 7, 4
    matrix = rng.standard_normal((size, size))
    matrix = matrix @ matrix.T + np.eye(size)
    minimizer = Minimizer(rng.standard_normal(size), lower=np.full(size, -1e9), history=history)
    points: list[Iteration] = []
    while len(points) < 9:
        x = minimizer.point
        found = minimizer.tell(0.25 * (x @ x) ** 2 + x @ matrix @ x, (x @ x) * x + 2 * matrix @ x)
        points += [found] if found is not None else []
    pairs = [(b.x - a.x, b.gradient - a.gradient) for a, b in itertools.pairwise(points)][-history:]
    s, y = pairs[-1]
    bfgs = (y @ y) / (s @ y) * np.eye(size)
    for s, y in pairs:
        moved = bfgs @ s
        bfgs += np.outer(y, y) / (s @ y) - np.outer(moved, moved) / (s @ moved)
    model = minimizer._pairs.model()
    whole = model.theta * np.eye(size) - model.rows.T @ model.inner @ model.rows
    np.testing.assert_allclose(whole, bfgs, rtol=1e-8, atol=1e-8)
    direction = np.empty(size)
    slope = minimizer._pairs.newton(direction)
    np.testing.assert_allclose(direction, -np.linalg.solve(bfgs, points[-1].gradient), rtol=1e-7)
    assert slope == pytest.approx(points[-1].gradient @ direction)


def test_large_vectors_are_multiplied_in_pieces() -> None:
    from fastopt.fits import pairs

    size = 2 * pairs.CHUNK + 3
    weights = np.linspace(1.0, 9.0, size)
    minimizer = Minimizer(np.cos(np.arange(size)), history=3)
    iterations, _ = run(
        minimizer, lambda x: (0.5 * (weights * x * x).sum(), weights * x), gtol=1e-6, most=100
    )
    assert iterations[-1].projected <= 1e-6
    kept = minimizer._pairs
    np.testing.assert_allclose(
        kept.dots_g[: 1 + 2 * kept.used],
        kept.rows[: 1 + 2 * kept.used] @ iterations[-1].gradient,
        rtol=1e-9,
        atol=1e-14,
    )


# Hostile functions --------------------------------------------------------------------------------


def test_steps_to_where_the_function_is_not_finite_are_shortened() -> None:
    def barrier(x: Array) -> tuple[float, Array]:
        with np.errstate(all="ignore"):
            return float(100.0 * x[0] - np.log(x).sum()), np.array([100.0, 0.0]) - 1.0 / x

    minimizer = Minimizer(np.array([1.0, 1e-3]), upper=np.array([np.inf, 3.0]))
    iterations, values = run(minimizer, barrier, gtol=1e-7)
    assert any(map(math.isnan, values))
    np.testing.assert_allclose(iterations[-1].x, [0.01, 3.0], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_named(bad: float) -> None:
    found = Minimizer(np.ones(2)).tell(bad, np.ones(2))
    assert found is not None
    assert found.failed is not None
    assert "at the start" in found.failed
    found = Minimizer(np.ones(2)).tell(1.0, np.array([1.0, bad]))
    assert found is not None
    assert found.failed == "the gradient is not finite at the start"


def test_a_function_that_is_finite_at_the_start_alone_is_named() -> None:
    ahead = iter([1.0])
    iterations, values = run(Minimizer(np.ones(2)), lambda x: (next(ahead, math.nan), 2.0 * x))
    assert "not finite" in str(iterations[-1].failed)
    assert iterations[-1].x.tolist() == [1.0, 1.0]
    assert len(values) <= 21


@pytest.mark.parametrize("bounds", [{}, {"upper": np.full(3, 9.0)}], ids=["free", "bounded"])
@pytest.mark.parametrize("beyond", [-math.inf, math.nan])
def test_at_a_wall_it_ends_instead_of_trying_the_same_step_again(
    beyond: float, bounds: dict[str, Array]
) -> None:
    def falls_to_the_wall(x: Array) -> tuple[float, Array]:
        return (float(-x[0]) if x[0] <= 0.5 else beyond), np.array([-1.0, 0.0, 0.0])

    iterations, values = run(Minimizer(np.zeros(3), **bounds), falls_to_the_wall)
    assert iterations[-1].x.tolist() == [0.5, 0.0, 0.0]
    assert "not finite at 17 of 19 points on the line" in str(iterations[-1].failed)
    assert len(values) < 30


def bowl(scale: float, dtype: str) -> Callable[[Array], tuple[float, Array]]:
    def function(x: Array) -> tuple[float, Array]:
        way = x.astype(np.float64) - 3.0
        return float(scale * (way @ way)), (2.0 * scale * way).astype(dtype)

    return function


OVERFLOWS = [(1e200, "float64", "over"), (1e36, "float32", "over")]
UNDERFLOWS = [(1e-200, "float64", "under"), (1e-30, "float32", "under")]


@quiet
@pytest.mark.parametrize(("scale", "dtype", "how"), OVERFLOWS + UNDERFLOWS)
def test_squares_that_overflow_are_named_and_the_advice_helps(
    scale: float, dtype: str, how: str
) -> None:
    iterations, _ = run(Minimizer(np.zeros(3, dtype)), bowl(scale, dtype), gtol=0.0)
    said = str(iterations[-1].failed)
    assert f"{how}flow {dtype}" in said
    factor = float(said.split(" by ")[-1])
    iterations, _ = run(Minimizer(np.zeros(3, dtype)), bowl(scale * factor, dtype))
    assert iterations[-1].x.tolist() == pytest.approx([3.0] * 3)


@quiet
@pytest.mark.parametrize(("scale", "dtype", "how"), OVERFLOWS)
def test_squares_that_overflow_within_bounds_are_no_pair(
    scale: float, dtype: str, how: str
) -> None:
    box = {"lower": np.full(3, -10.0, dtype), "upper": np.full(3, 10.0, dtype)}
    minimizer = Minimizer(np.zeros(3, dtype), **box)
    iterations, _ = run(minimizer, bowl(scale, dtype), most=60)
    assert iterations[-1].x.tolist() == pytest.approx([3.0] * 3)
    assert minimizer._pairs.live == []


@pytest.mark.parametrize("height", [1.0, 3.5, 6.0, 9.0])
def test_a_trial_far_beyond_a_pole_is_no_reason_to_blame_the_gradient(height: float) -> None:
    """In float32 the step after it rounds to none, and its value to that at the start."""
    t = np.array([0.4, 0.9333, 1.4667, 2.0, 2.5333], np.float32)
    y = 5.0 * np.exp(-t / 0.45).astype(np.float32)

    def fun(x: Array) -> tuple[Any, Array]:
        fallen = np.exp(-t / x[1])
        error = x[0] * fallen - y
        slopes = 2.0 * error @ fallen, 2.0 * (error * x[0] * fallen * t).sum() / x[1] ** 2
        return error @ error, np.array(slopes, np.float32)

    ends = []
    for width in np.linspace(0.15, 2.0, 19):
        start = np.array([height, width], np.float32)
        with np.errstate(all="ignore"):
            found = fastopt.minimize(fun, start, method="lbfgs")
        assert "contradicts" not in found.message
        ends.append(float(found.fun))
    assert sum(end < 1e-10 for end in ends) >= 17  # others run away to where all is flat
    near = fastopt.minimize(fun, np.array([3.5, 0.7], np.float32), method="lbfgs")
    np.testing.assert_allclose(near.x, [5.0, 0.45], rtol=1e-5)
    assert "x0.astype(float)" in near.message


@pytest.mark.parametrize("size", [1, 2, 30])
def test_a_wrong_gradient_is_named(size: int) -> None:
    iterations, _ = run(Minimizer(np.full(size, 2.0)), lambda x: (float(x @ x), -2.0 * x))
    assert "the gradient contradicts the function" in str(iterations[-1].failed)
    assert iterations[-1].value == 4.0 * size


def test_the_end_of_precision_is_named() -> None:
    iterations, values = run(
        Minimizer(np.array([3.0, 4.0])), lambda x: (1e6 + x @ x / 7, 2 * x / 7)
    )
    precise = iterations[-1]
    assert precise.failed is None or "precision" in precise.failed
    problem = recorded("brown_dennis")
    iterations, values = run(minimizer_of(problem), problem.function, gtol=0.0)
    assert "precision" in str(iterations[-1].failed)
    assert len(values) < 60


def test_a_gradient_of_zero_is_the_end() -> None:
    minimizer = Minimizer(np.zeros(3))
    found = minimizer.tell(0.0, np.zeros(3))
    assert found is not None
    assert (found.projected, found.failed) == (0.0, None)
    found = minimizer.tell(0.0, np.zeros(3))
    assert found is not None
    assert "gradient is 0" in str(found.failed)


def test_after_a_failure_it_begins_anew() -> None:
    minimizer = Minimizer(np.full(2, 2.0))
    iterations, _ = run(minimizer, lambda x: (float(x @ x), -2.0 * x))
    assert iterations[-1].failed
    iterations, _ = run(minimizer, lambda x: (float(x @ x), 2.0 * x))
    assert iterations[0].x.tolist() == [2.0, 2.0]
    assert iterations[-1].value < 1e-15


# Single precision, state, errors ------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("name", ["rosenbrock_10", "beale", "bard", "wood_bounded", "bard_bounded"])
def test_float32_comes_as_far_as_it_can(name: str) -> None:
    problem = recorded(name)
    minimizer = minimizer_of(problem, np.float32)
    iterations, _ = run(minimizer, problem.function, most=600)
    assert minimizer.point.dtype == np.float32
    assert all(found.x.dtype == found.gradient.dtype == np.float32 for found in iterations)
    least = min(problem.minima)
    assert iterations[-1].value - least <= 1e-5 * (1 + abs(least))


@quiet
@pytest.mark.parametrize("name", ["rosenbrock_10", "gulf", "osborne_1_bounded"])
def test_a_run_is_resumed_in_the_same_bits_from_any_point(name: str) -> None:
    problem = recorded(name)
    minimizer = minimizer_of(problem, history=4)
    points, states = [], []
    for _ in range(45):
        points.append(minimizer.point.tobytes())
        states.append(minimizer.state_dict())
        minimizer.tell(*problem.function(minimizer.point))
    inside = [state["search"] is not None and state["search"]["trials"] > 0 for state in states]
    assert any(inside)
    for start in {0, 1, inside.index(True), 12, 13, 30}:
        other = minimizer_of(problem, history=4)
        other.load_state_dict(states[start])
        for point in points[start:]:
            assert other.point.tobytes() == point
            other.tell(*problem.function(other.point))


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    minimizer = Minimizer(np.array([-1.2, 1.0]))
    run(minimizer, rosenbrock, most=9)
    state, point = minimizer.state_dict(), minimizer.point.tobytes()
    other = Minimizer(np.zeros(3)).state_dict()
    damaged = [{**state, "pairs": {}}, {**state, "search": {"step": 1.0}}, {**state, "value": "x"}]
    short = Minimizer(np.zeros(2), history=3).state_dict()
    for wrong in (other, {"kind": "EMA"}, short, {}, *damaged):
        with pytest.raises(CheckpointError):
            minimizer.load_state_dict(wrong)
    assert minimizer.point.tobytes() == point
    assert minimizer.state_dict()["pairs"]["live"] == state["pairs"]["live"]


def test_arguments_are_checked() -> None:
    for wrong in ([1.0, 2.0], np.ones((2, 2)), np.ones(2, np.float16), np.ones(2, int)):
        with pytest.raises(TypeError, match="1-D array of float32 or float64"):
            Minimizer(wrong)  # type: ignore[arg-type]  # that is tested
    with pytest.raises(ValueError, match="lower must be an array like x"):
        Minimizer(np.ones(2), lower=np.zeros(3))
    for lower in (np.full(2, 3.0), np.array([np.nan, 0.0])):
        with pytest.raises(ValueError, match="lower must not be above upper"):
            Minimizer(np.ones(2), lower=lower, upper=np.full(2, 2.0))
    with pytest.raises(ValueError, match="the gradient must be an array like the point"):
        Minimizer(np.ones(2)).tell(1.0, np.ones(3))


# The line search ----------------------------------------------------------------------------------


LINES: dict[str, tuple[Callable[[float], tuple[float, float]], float]] = {
    # Moré and Thuente's functions 5.1 and 5.2: value and slope, and where the slope is 0.
    "5.1": (lambda t: (-t / (t * t + 2), (t * t - 2) / (t * t + 2) ** 2), math.sqrt(2.0)),
    "5.2": (
        lambda t: ((t + 0.004) ** 5 - 2 * (t + 0.004) ** 4, (t + 0.004) ** 3 * (5 * t - 7.98)),
        1.596,
    ),
}


@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize("name", LINES)
def test_the_line_search_ends_where_the_conditions_hold(name: str, first: float) -> None:
    line, minimum = LINES[name]
    value, slope = line(0.0)
    search = LineSearch(value, slope, first, 1e10, 20, 2.0**-52)
    while True:
        step = search.step
        here = line(step)
        verdict = search.tell(*here)
        if verdict is not Verdict.GO_ON:
            break
    assert search.trials <= 12
    if verdict is Verdict.TAKE_BEST:  # the bracket has become narrow: 5.2 is flat at its start
        assert name == "5.2"
        step, here = search.best, line(search.best)
        assert step == pytest.approx(minimum, rel=0.1)
    else:
        assert verdict is Verdict.ACCEPT
        assert abs(here[1]) <= 0.9 * abs(slope)
    assert here[0] <= value + 1e-3 * step * slope


def test_the_line_search_stops_at_the_largest_step() -> None:
    search = LineSearch(0.0, -1.0, 1.0, 7.0, 20, 2.0**-52)
    steps = []
    while search.tell(-search.step, -1.0) is Verdict.GO_ON:
        steps.append(search.step)
    assert steps == [5.0, 7.0]
