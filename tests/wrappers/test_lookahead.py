"""Lookahead: optax's fast and slow weights, with any optimizer inside."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from helpers.around import cases, copied, leaves, make_grads, make_params, same, vectors
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

RECORDED, CASES = vectors("lookahead"), cases("lookahead")
INNER: dict[str, Any] = {
    "sgd": lambda params, backend: fastopt.SGD(params, lr=0.1, backend=backend),
    "sgd_momentum": lambda params, backend: fastopt.SGD(
        params, lr=0.05, momentum=0.9, backend=backend
    ),
    "adam": lambda params, backend: fastopt.Adam(params, lr=0.01, backend=backend),
}
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_fast_and_slow_weights_are_those_of_optax(number: int, dtype: str, backend: str) -> None:
    case = CASES[number]
    params = [RECORDED[f"p{k}"].astype(dtype) for k in range(3)]
    grads = [RECORDED[f"g{k}"].astype(dtype) for k in range(3)]
    look = fastopt.Lookahead(INNER[case["inner"]](params, backend), case["k"], case["alpha"])
    for t in range(len(grads[0])):
        look.step([np.asarray(g[t]) for g in grads])
        near = 1e-12 if dtype == "float64" else 4 * (t + 1) * 2.0**-23
        for k in range(3):
            for got, name in ((params[k], "fast"), (look.slow[k], "slow")):
                expected = RECORDED[f"{number}/{name}{k}"][t]
                np.testing.assert_allclose(got, expected, rtol=near, atol=near)


@each_backend
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_is_the_formula_around_any_optimizer(variant: Variant, backend: str) -> None:
    params = make_params(np.float32)
    fast, slow = copied(params), copied(params)
    look = fastopt.Lookahead(variant(params, backend=backend), k=3, alpha=0.25)
    plain = variant(fast, backend=backend)
    for step in range(7):
        grads = make_grads(fast, step)
        look.step(grads, grad_scale=0.5)
        plain.step(grads, grad_scale=0.5)
        if step % 3 == 2:
            for p, s in zip(leaves(fast), leaves(slow), strict=True):
                s += np.float32(0.25) * (p - s)
                p[...] = s
        assert same(params, fast)
        assert same(look.slow, slow)
    assert look.step_count == plain.step_count == 7


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_slow_weights_of_half_precision_are_float32(dtype: Any, backend: str) -> None:
    """Moves of a thousandth: rounded to half precision, the slow weights would stand still."""
    param = np.full(3, 1.0, dtype)
    opt = fastopt.SGD(param, lr=1.0, backend=backend, master_weights=False)
    look = fastopt.Lookahead(opt, 1, 2.0**-10)
    for _ in range(512):
        look.step(np.full(3, 1.0, dtype))  # to 0, and a thousandth of the way there
    assert look.slow.dtype == np.float32
    assert param.dtype == dtype
    assert look.slow[0] == pytest.approx(0.5, abs=0.01)


def test_alpha_1_changes_nothing() -> None:
    params, others = make_params(), make_params()
    look, plain = fastopt.Lookahead(fastopt.Adam(params), 2, 1.0), fastopt.Adam(others)
    for step in range(6):
        look.step(make_grads(params, step))
        plain.step(make_grads(params, step))
    assert same(params, others)


def test_what_the_optimizer_says_and_takes_is_passed_on() -> None:
    opt = fastopt.SGD([{"params": np.ones(2)}, {"params": np.ones(3), "lr_scale": 0.5}], lr=0.25)
    look = fastopt.Lookahead(opt)
    assert look.opt is opt
    assert look.lr == 0.25
    look.lr = 0.125
    assert opt.lr == 0.125
    assert look.param_groups[1]["lr"] == 0.125
    look.param_groups[1]["lr"] = 0.5
    look.step([np.ones(2), None])
    assert look.step_count == opt.step_count == 1
    assert look.slow[1].tolist() == [1.0] * 3
    assert look.on_nonfinite == "propagate"
    with pytest.raises(AttributeError, match="has no attribute 'alpha'"):
        look.alpha = 0.5  # type: ignore[attr-defined]
    assert repr(look).startswith("<Lookahead(k=5, alpha=0.5) of <SGD(")


@each_backend
def test_a_skipped_step_does_not_count(backend: str) -> None:
    param, plain = np.ones(2), np.ones(2)
    look = fastopt.Lookahead(fastopt.SGD(param, lr=0.1, on_nonfinite="skip", backend=backend), 2)
    other = fastopt.Lookahead(fastopt.SGD(plain, lr=0.1, backend=backend), 2)
    for step in range(9):
        if step % 3 == 1:
            look.step(np.array([math.nan, 1.0]))
        else:
            look.step(np.ones(2))
            other.step(np.ones(2))
        assert param.tobytes() == plain.tobytes()
    assert look.skipped_steps == 3


@each_backend
def test_a_step_that_raises_changes_nothing(backend: str) -> None:
    params = {"a": np.ones(2), "b": np.ones(3)}
    look = fastopt.Lookahead(fastopt.Adam(params, backend=backend, on_nonfinite="raise"), 1, 0.5)
    look.step({"a": np.ones(2), "b": np.ones(3)})
    before = copied(params), look.state_dict(), look.opt.state_dict()
    for bad, kind in [
        ({"a": np.ones(2)}, ValueError),
        ({"a": np.ones(2), "b": np.ones(2)}, ValueError),
        ({"a": np.ones(2), "b": np.full(3, math.nan)}, FloatingPointError),
    ]:
        with pytest.raises(kind):
            look.step(bad)
        np.testing.assert_equal((params, look.state_dict(), look.opt.state_dict()), before)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"k": 0}, ValueError, "Lookahead: k must be a whole number"),
        ({"k": 2.0}, TypeError, "Lookahead: k"),
        ({"k": True}, TypeError, "Lookahead: k"),
        ({"alpha": 0.0}, ValueError, r"Lookahead: alpha must be a number in \(0, 1\]"),
        ({"alpha": 1.5}, ValueError, "Lookahead: alpha"),
        ({"alpha": math.nan}, ValueError, "Lookahead: alpha"),
        ({"alpha": "x"}, TypeError, "Lookahead: alpha"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        fastopt.Lookahead(fastopt.SGD(np.ones(1)), **options)
    with pytest.raises(TypeError, match="Lookahead takes an optimizer"):
        fastopt.Lookahead([np.ones(1)])  # type: ignore[arg-type]


# What is written from outside ---------------------------------------------------------------------


def still(params: Any, k: int, **options: Any) -> fastopt.Lookahead:
    """Return a Lookahead whose optimizer moves by nothing or by what the gradients say."""
    return fastopt.Lookahead(fastopt.SGD(params, lr=1.0, **options), k)


@each_backend
def test_weights_that_are_written_before_the_first_step_are_where_it_begins(backend: str) -> None:
    param = np.full(2, -100.0)
    look = still({"w": param}, 2, backend=backend)
    param[...] = 5.0
    assert look.slow["w"].tolist() == [5.0] * 2
    for _ in range(2):
        look.step({"w": np.zeros(2)})
    assert param.tolist() == look.slow["w"].tolist() == [5.0] * 2


@each_backend
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_weights_from_a_file_are_where_it_goes_on(before: int, backend: str, tmp_path: Any) -> None:
    """Whatever the steps before have done: at 5, a step of -1 in each of a pull's two steps."""
    saved = np.full(2, 5.0)
    fastopt.SGD({"w": saved}).save(tmp_path / "five")
    param = np.full(2, -100.0)
    look = still({"w": param}, 2, backend=backend)
    for _ in range(before):
        look.step({"w": np.full(2, -64.0)})
    look.innermost.load(tmp_path / "five")
    look.param_groups[0]["lr"] = 1.0
    if before % 2:
        look.step({"w": np.zeros(2)})
    assert param.tolist() == look.slow["w"].tolist() == [5.0] * 2
    for _ in range(2):
        look.step({"w": np.ones(2)})
    assert param.tolist() == look.slow["w"].tolist() == [4.0] * 2


@each_backend
def test_only_the_elements_that_were_written_begin_anew(backend: str) -> None:
    param = np.zeros(3, np.float32)
    look = still(param, 2, backend=backend)
    look.step(np.array([-1.0, -1.0, -1.0]))
    param[1] = 7.0
    param[2] = np.nan
    assert look.slow[:2].tolist() == [0.0, 7.0]
    param[2] = 3.0
    look.step(np.array([-1.0, -1.0, -1.0]))
    assert param.tolist() == [1.0, 7.5, 3.5]  # half of 2 steps, and of one from 7 and from 3
    assert look.slow.tolist() == [1.0, 7.5, 3.5]


@each_backend
def test_a_projection_after_every_step_ends_at_the_bound(backend: str) -> None:
    """A gradient that pushes outwards: elements are at the bound, and stay there."""
    param = np.array([0.75, 0.25])
    look = still(param, 2, backend=backend)
    for _ in range(12):
        look.step(np.array([-0.5, 0.0]))
        np.clip(param, 0.0, 1.0, out=param)
        assert (look.slow >= 0.0).all()
        assert (look.slow <= 1.0).all()
    assert param.tolist() == [1.0, 0.25]


@each_backend
@pytest.mark.parametrize("how", ["frozen", "no gradient"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_has_no_step_is_left_alone(how: str, dtype: str, backend: str) -> None:
    params = {"w": np.zeros(2, dtype), "mean": np.zeros(2, dtype)}
    frozen = {"trainable": False} if how == "frozen" else {}
    look = still(fastopt.groups(params, {"mean": frozen}), 2, backend=backend)
    seen = []
    for _ in range(4):
        params["mean"] += 1
        grad = np.ones(2) if how == "frozen" else None
        look.step({"w": np.full(2, -1.0), "mean": grad})
        seen.append((params["mean"][0], look.slow["mean"][0], params["w"][0]))
    assert seen == [(1, 1, 1), (2, 2, 1), (3, 3, 2), (4, 4, 2)]


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_slow_weights_of_what_has_no_step_are_not_rounded(dtype: Any, backend: str) -> None:
    params = {"a": np.ones(2, dtype), "b": np.ones(2, dtype)}
    opt = fastopt.SGD(params, lr=1.0, backend=backend, master_weights=False)
    look = fastopt.Lookahead(opt, 1, 2.0**-14)
    look.step({"a": np.ones(2, dtype), "b": np.ones(2, dtype)})
    assert look.slow["b"].tolist() == [1 - 2.0**-14] * 2  # which half precision does not hold
    for _ in range(3):
        look.step({"a": np.ones(2, dtype), "b": None})
    assert look.slow["b"].tolist() == [1 - 2.0**-14] * 2
    assert (params["b"] == 1).all()


def test_a_parameter_is_pulled_once_it_is_trained_again() -> None:
    """Half of its way is due since the first step: not while it is frozen, nor without a step."""
    param, other = np.zeros(1), np.zeros(1)
    opt = fastopt.SGD([{"params": [param]}, {"params": [other]}], lr=1.0)
    look = fastopt.Lookahead(opt, 2)
    look.step([[np.full(1, -4.0)], [np.zeros(1)]])
    opt.param_groups[0]["trainable"] = False
    for _ in range(3):
        look.step([[np.full(1, -4.0)], [np.zeros(1)]])
    assert (param[0], look.slow[0][0][0]) == (4.0, 0.0)
    opt.param_groups[0]["trainable"] = True
    look.step([[None], [np.zeros(1)]])
    look.step([[None], [np.zeros(1)]])
    assert (param[0], look.slow[0][0][0]) == (2.0, 2.0)


def test_one_step_of_several_in_a_period_is_pulled() -> None:
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    look = still(params, 3)
    for grad in (None, np.full(1, -4.0), None):
        look.step({"a": np.zeros(1), "b": grad})
    assert params["b"].tolist() == look.slow["b"].tolist() == [2.0]


@each_backend
def test_what_was_not_written_is_not_touched(backend: str) -> None:
    """Infinities and a negative zero would not survive a difference that is added."""
    param = np.array([math.inf, -math.inf, math.nan, -0.0, 1e300])
    look = still({"a": param, "b": np.zeros(2)}, 2, backend=backend)
    before = param.tobytes(), look.slow["a"].tobytes()
    for _ in range(4):
        look.step({"a": None, "b": np.ones(2)})
    assert (param.tobytes(), look.slow["a"].tobytes()) == before


@each_backend
def test_nan_of_a_step_does_not_reach_the_slow_weights_before_the_pull(backend: str) -> None:
    param = np.ones(2)
    look = still(param, 3, backend=backend)
    for _ in range(2):
        look.step(np.array([math.nan, 0.0]))
        assert look.slow.tolist() == [1.0, 1.0]
    param[...] = look.slow
    look.step(np.zeros(2))
    assert param.tolist() == [1.0, 1.0]


@each_backend
@pytest.mark.parametrize("layout", ["C", "turned", "gaps", "back", "scalar"])
def test_what_is_written_is_found_in_any_layout(layout: str, backend: str) -> None:
    room = np.zeros((6, 4), np.float32)
    param = {
        "C": room,
        "turned": room.T,
        "gaps": room[::2, 1:3],
        "back": room[::-1],
        "scalar": np.zeros((), np.float32),
    }[layout]
    params = {"a": np.zeros(3, np.float32), "p": param, "z": np.zeros((0, 2), np.float32)}
    look = still(params, 1, backend=backend)
    values = np.arange(param.size, dtype=np.float32).reshape(param.shape) + 1
    for _ in range(2):
        param[...] = values
        look.step({"a": np.zeros(3), "p": np.zeros(param.shape), "z": None})
        assert np.array_equal(param, values)
        assert np.array_equal(look.slow["p"], values)
        values = -values


@pytest.mark.parametrize("size", [1, 32_767, 32_768, 32_769, 100_000])
def test_the_last_element_of_many_arrays_is_found(size: int) -> None:
    params = [np.zeros(size, dtype) for dtype in (np.float32, np.float64, np.float32) * 3]
    look = still(params, 2)
    for number, param in enumerate(params):
        param[-1] = number + 1
    for _ in range(2):
        look.step([np.zeros(size)] * 9)
    assert [param[-1] for param in params] == list(range(1, 10))
    assert not any(param[:-1].any() for param in params)


@each_backend
@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_it_is_the_formula(seed: int, backend: str) -> None:
    """Every element by itself, with all that can come between two steps."""
    rng = np.random.default_rng(seed)
    k, alpha = int(rng.integers(1, 5)), float(rng.choice([0.25, 0.5, 1.0]))
    params = {name: np.zeros(size) for name, size in (("a", 5), ("b", 1), ("c", 40_000))}
    groups = [{"params": {name: param}} for name, param in params.items()]
    look = fastopt.Lookahead(fastopt.SGD(groups, lr=1.0, backend=backend), k, alpha)
    fast, slow = copied(params), copied(params)
    moved = set()
    for steps in range(1, 26):
        grads: list[Any] = []
        for group, name in zip(look.param_groups, params, strict=True):
            if rng.random() < 0.3:
                some, value = rng.random(params[name].size) < 0.5, rng.random()
                for one in (params[name], fast[name], slow[name]):
                    one[some] = value
            group["trainable"] = bool(rng.random() < 0.8)
            grad = rng.integers(-9, 9, params[name].size) / 2
            grads.append({name: None if rng.random() < 0.3 else grad})
            if group["trainable"] and grads[-1][name] is not None:
                fast[name] -= grad
                moved.add(name)
        look.step(grads)
        for group, name in zip(look.param_groups, params, strict=True):
            if steps % k == 0 and name in moved and group["trainable"]:
                way = alpha * (fast[name] - slow[name])
                slow[name][...] = slow[name] + way if alpha < 1 else fast[name]
                fast[name][...] = slow[name]
                moved.remove(name)
            assert np.array_equal(params[name], fast[name])
        found = {name: one[name] for name, one in zip(params, look._slow, strict=True)}
        assert same(found, slow)


def test_in_the_middle_of_a_step_nothing_is_followed_or_saved() -> None:
    param = np.zeros(2)
    seen: list[Any] = []

    def rate(step: int) -> float:
        if step:
            seen.append(look.slow.tolist())
            with pytest.raises(RuntimeError, match="in the middle of its step"):
                look.state_dict()
        return 1.0

    look = fastopt.Lookahead(fastopt.SGD(param, lr=rate), 2)
    for _ in range(2):
        look.step(np.full(2, -1.0))
    assert seen == [[0.0, 0.0]] * len(seen)
    assert seen
    assert param.tolist() == [1.0, 1.0]


@each_backend
def test_what_hooks_write_is_written_from_outside(backend: str) -> None:
    param = np.full(2, -100.0)
    look = still(param, 2, backend=backend)

    def write(opt: fastopt.Optimizer) -> None:
        param[...] = 5.0

    for hooks in (look.innermost.before_step, look.innermost.after_step):
        param[...] = -100.0
        look.step(np.zeros(2))
        hooks.append(write)
        look.step(np.zeros(2))
        hooks.clear()
        for _ in range(2):
            look.step(np.zeros(2))
        assert param.tolist() == look.slow.tolist() == [5.0, 5.0]


def test_a_hook_may_save_it_and_one_that_raises_leaves_the_step_made() -> None:
    param = np.zeros(2)
    look = still(param, 2)
    seen: list[Any] = []

    def save(opt: fastopt.Optimizer) -> None:
        seen.append((look.state_dict()["steps"], param[0]))
        if len(seen) == 3:
            raise ZeroDivisionError

    look.innermost.after_step.append(save)
    for _ in range(2):
        look.step(np.full(2, -4.0))
    with pytest.raises(ZeroDivisionError):
        look.step(np.full(2, -4.0))
    look.step(np.full(2, -4.0))
    assert seen == [(1, 4.0), (0, 4.0), (1, 8.0), (0, 8.0)]


# Other parameters ---------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("order", "CF")
def test_parameters_that_are_rebound_are_where_it_goes_on(order: Any, backend: str) -> None:
    params = {"w": np.zeros((2, 3)), "b": np.zeros(2)}
    look = still(params, 2, backend=backend)
    look.step({"w": np.full((2, 3), -2.0), "b": np.full(2, -2.0)})
    values = np.arange(6.0).reshape(2, 3)
    params["w"] = np.array(values + 10, order=order)
    look.innermost.rebind(params)
    assert np.array_equal(look.slow["w"], values + 10)
    look.step({"w": np.full((2, 3), -2.0), "b": np.full(2, -2.0)})
    assert np.array_equal(params["w"], values + 11)
    assert np.array_equal(look.slow["w"], values + 11)
    assert params["b"].tolist() == [2.0, 2.0]
    saved = look.state_dict()
    look.load_state_dict(saved)
    np.testing.assert_equal(look.state_dict(), saved)


@each_backend
def test_an_array_that_was_resized_in_place_is_noticed(backend: str) -> None:
    param = np.zeros(3)
    look = still([param], 2, backend=backend)
    look.step([np.full(3, -4.0)])
    param.resize(100_000, refcheck=False)
    for call in (lambda: look.slow, look.state_dict, lambda: look.step([np.zeros(100_000)])):
        with pytest.raises(ValueError, match=r"moved or resized in memory .*rebind\(params\)"):
            call()
    look.resize("0", param)
    assert look.slow[0][:4].tolist() == [0.0] * 4
    look.step([np.full(100_000, -4.0)])
    assert param[:4].tolist() == [4.0, 4.0, 4.0, 2.0]


@each_backend
def test_what_is_resized_or_added_begins_and_the_others_go_on(backend: str) -> None:
    params = {"a": np.zeros(3), "b": np.zeros(3)}
    look = still(params, 2, backend=backend)
    look.step({"a": np.full(3, -4.0), "b": np.full(3, -4.0)})
    look.innermost.resize("b", np.full(5, 7.0), keep=[0])
    assert look.slow["b"].tolist() == [7.0] * 5
    assert look.slow["a"].tolist() == [0.0] * 3
    look.step({"a": np.full(3, -4.0), "b": np.full(5, -4.0)})
    assert params["a"].tolist() == [4.0] * 3
    assert params["b"].tolist() == [9.0] * 5
    look.step({"a": np.full(3, -4.0), "b": None})
    new = np.zeros(1)
    look.innermost.add_param_group({"params": [new]})
    look.step([{"a": np.full(3, -4.0), "b": None}, [np.full(1, -4.0)]])
    assert params["a"].tolist() == [8.0] * 3
    assert new.tolist() == [2.0]
    assert look.slow[1][0].tolist() == [2.0]


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("between", [False, True])
def test_through_its_resize_kept_rows_keep_their_slow_weights(
    between: bool, dtype: str, backend: str
) -> None:
    params = {"xyz": np.zeros((3, 2), dtype), "b": np.zeros(2, dtype)}
    opt: Any = fastopt.SGD(params, 1.0, backend=backend)
    look = fastopt.Lookahead(fastopt.Accumulator(opt, 1) if between else opt, k=2)
    look.step({"xyz": np.ones((3, 2)), "b": np.ones(2)})
    rows = np.concatenate([params["xyz"][[2]], np.full((1, 2), 50.0, dtype)])
    assert look.resize("xyz", rows, keep=[2]) is look
    assert params["xyz"] is rows
    assert look.slow["xyz"].tolist() == [[0.0] * 2, [50.0] * 2]
    look.step({"xyz": np.ones((2, 2)), "b": np.ones(2)})
    assert params["b"].tolist() == [-1.0] * 2
    assert params["xyz"].tolist() == [[-1.0] * 2, [49.5] * 2]


@each_backend
def test_kept_rows_that_are_written_meanwhile_are_where_these_go_on(backend: str) -> None:
    params = {"w": np.zeros(3)}
    look = still(params, 2, backend=backend)
    look.step({"w": np.full(3, -4.0)})
    look.resize("w", np.array([4.0, 7.0]), keep=[2, 0])
    assert look.slow["w"].tolist() == [0.0, 7.0]


@each_backend
def test_slow_weights_do_not_stay_with_the_numbers_of_rows(backend: str) -> None:
    """The optimizer's own resize to as many rows: some are equal to what stood there before."""
    params = {"w": np.zeros(3)}
    look = still(params, 2, backend=backend)
    look.step({"w": np.array([-4.0, 0.0, -4.0])})
    look.innermost.resize("w", np.array([4.0, 4.0, 0.0]), keep=[0, 2, 1])
    assert look.slow["w"].tolist() == [4.0, 4.0, 0.0]


@each_backend
def test_what_errors_advise_is_there(backend: str) -> None:
    look = still(np.zeros(2), 2, backend=backend)
    assert look.rebind(np.full(2, 3.0)) is look
    assert look.params.tolist() == [3.0] * 2
    called: list[str] = []
    look.before_step.append(lambda opt: called.append("before"))
    look.after_step = [lambda opt: called.append("after")]
    now = np.full(2, 5.0)
    look.step(np.full(2, -4.0), params=now)
    assert (now.tolist(), called) == ([9.0] * 2, ["before", "after"])
    assert look.params is now
    look.step(np.full(2, -4.0), params=now)
    assert now.tolist() == [9.0] * 2  # half of the way from 5 to 13
    assert look.innermost.before_step is look.before_step
    assert look.add_param_group({"params": np.ones(1)}) is look
    assert look.step([np.zeros(2), np.zeros(1)])
    with pytest.raises(TypeError, match="after_step is a list"):
        look.after_step = None  # type: ignore[assignment]


# Bounds -------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_bounds_hold_for_the_slow_weights(dtype: str, arrays: bool, backend: str) -> None:
    param = np.array([2.0, 0.5], dtype)
    bounds: Any = ({"w": np.zeros(2)}, {"w": np.ones(2)}) if arrays else (0, 1)
    look = still({"w": param}, 2, bounds=bounds, backend=backend)
    assert look.slow["w"].tolist() == [1.0, 0.5]
    for _ in range(2):
        look.step({"w": np.zeros(2)})
    assert param.tolist() == look.slow["w"].tolist() == [1.0, 0.5]
    param[...] = -3.0
    assert look.slow["w"].tolist() == [0.0, 0.0]
    for step in range(20):
        look.step({"w": np.array([-0.3, 0.7])})
        assert (param >= 0).all()
        assert (param <= 1).all()
        assert (look.slow["w"] >= 0).all(), step
        assert (look.slow["w"] <= 1).all(), step
    assert param.tolist() == pytest.approx([1.0, 0.0], abs=1e-2)


def test_bounds_that_are_changed_hold_at_the_next_pull() -> None:
    param = np.array([4.0])
    look = still(param, 2, bounds=(0, 10))
    look.step(np.zeros(1))
    look.param_groups[0]["bounds"] = (0, 1)
    look.step(np.zeros(1))
    assert param.tolist() == look.slow.tolist() == [1.0]


# Saving -------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("order", ["together", "wrapper first", "optimizer first"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_loaded_run_goes_on_in_the_same_bits(
    stop: int, order: str, backend: str, tmp_path: Any
) -> None:
    def make() -> tuple[Any, fastopt.Lookahead]:
        params = {
            "w": np.linspace(-1, 1, 7, dtype=np.float32),
            "half": np.ones(3, np.float16),
            "mean": np.zeros(2, np.float32),
            "some": np.ones(4, np.float32),
        }
        groups = fastopt.groups(params, {"mean": {"trainable": False}})
        return params, fastopt.Lookahead(fastopt.Adam(groups, lr=0.1, backend=backend), 3, 0.3)

    def train(params: Any, look: fastopt.Lookahead, steps: range) -> None:
        for step in steps:
            params["mean"] += 1
            grads = make_grads(params, step)
            grads["some"] = None if step != 1 else grads["some"]
            look.step(grads)

    straight, look = make()
    train(straight, look, range(stop))
    look.innermost.save(tmp_path / "run", also={"look": look})
    saved = look.state_dict()
    train(straight, look, range(stop, 9))

    resumed, other = make()
    train(resumed, other, range(4))
    if order == "together":
        other.innermost.load(tmp_path / "run", also={"look": other})
    else:
        if order == "wrapper first":
            other.load_state_dict(saved)
        other.innermost.load(tmp_path / "run", strict=False)
        if order == "optimizer first":
            other.load_state_dict(saved)
    train(resumed, other, range(stop, 9))
    assert same(resumed, straight)
    np.testing.assert_equal(other.state_dict(), look.state_dict())


def test_what_older_versions_have_saved_is_read() -> None:
    param, resumed = np.zeros(2), np.zeros(2)
    look = still(param, 3)
    for _ in range(2):
        look.step(np.full(2, -2.0))
    saved = look.state_dict()
    del saved["moved"]
    resumed[...] = param
    other = still(resumed, 3)
    other.load_state_dict(saved)
    for one in (look, other):
        one.step(np.full(2, -2.0))
    assert param.tolist() == resumed.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("moved", [None, [], {}, {"params": 1}, {"params": True, "b": True}])
def test_what_does_not_say_what_has_moved_is_refused(moved: Any) -> None:
    look = still(np.zeros(2), 3)
    saved = look.state_dict()
    with pytest.raises(fastopt.CheckpointError, match="moved must say True or False for every"):
        look.load_state_dict({**saved, "moved": moved})
    np.testing.assert_equal(look.state_dict(), saved)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_counters_in_a_frozen_group_are_left_alone(backend: str) -> None:
    count = np.array([1, 2])
    params = fastopt.groups({"w": np.zeros(2), "n": count}, {"n": {"trainable": False}})
    opt = fastopt.SGD(params, 1.0, backend=backend)
    look = fastopt.Lookahead(opt, k=2, alpha=0.5)
    for _ in range(4):
        count += 1
        look.step({"w": np.ones(2), "n": None})
    assert count.tolist() == [5, 6]
    assert opt.params["w"].tolist() == [-2, -2]
    assert look.slow["n"].tolist() == [5, 6]
