"""Accumulator: micro-batches end where the whole batch does, in PyTorch's values too."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from helpers.around import copied, make_grads, make_params, mapped, same, vectors
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

RECORDED = vectors("accumulation")
TORCH: dict[str, Any] = {
    "sgd": lambda p, b: fastopt.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.25, backend=b),
    "adamw": lambda p, b: fastopt.AdamW(p, lr=0.01, weight_decay=0.1, backend=b),
}
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
fixed = settings(max_examples=60)


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TORCH)
def test_the_steps_are_those_of_pytorch(name: str, dtype: str, backend: str) -> None:
    params = [RECORDED[f"p{k}"].astype(dtype) for k in range(3)]
    grads = [RECORDED[f"g{k}"].astype(dtype) for k in range(3)]
    every = int(RECORDED["every"])
    acc = fastopt.Accumulator(TORCH[name](params, backend), every)
    for t in range(len(grads[0])):
        stepped = acc.step([np.asarray(g[t]) for g in grads])
        assert stepped == (True if t % every == every - 1 else None)
        assert acc.count == (t + 1) % every
        if stepped:
            near = 1e-12 if dtype == "float64" else 8 * (t + 1) * 2.0**-23
            for k, param in enumerate(params):
                expected = RECORDED[f"{name}/p{k}"][t // every]
                np.testing.assert_allclose(param, expected, rtol=near, atol=near)


def adds_up(variant: Variant) -> bool:
    """Return whether an optimizer steps by gradients alone."""
    optimizer = variant.optimizer
    return not optimizer._takes_value and optimizer._estimate is None


@each_backend
@pytest.mark.parametrize("variant", [v for v in VARIANTS if adds_up(v)], ids=str)
def test_micro_batches_end_where_the_whole_batch_does(variant: Variant, backend: str) -> None:
    """With small whole numbers and powers of two no sum is rounded: every bit is the same."""
    params, others = make_params(np.float32), make_params(np.float32)
    options = {"backend": backend, "weight_decay": 0.125, "max_grad_norm": 2.0}
    acc = fastopt.Accumulator(variant(params, **options), 4)
    plain = variant(others, **options)
    rng = np.random.default_rng(0)
    for _ in range(3):
        micro = [
            mapped(lambda p: rng.integers(-64, 64, p.shape).astype(p.dtype), params)
            for _ in range(4)
        ]
        assert [acc.step(grads, grad_scale=0.5) for grads in micro] == [None] * 3 + [True]
        plain.step(total(*micro), grad_scale=0.5 / 4)
        assert same(params, others)
    assert acc.step_count == plain.step_count == 3


def total(*trees: Any) -> Any:
    if isinstance(trees[0], dict):
        return {name: total(*(tree[name] for tree in trees)) for name in trees[0]}
    if isinstance(trees[0], list | tuple):
        return type(trees[0])(total(*parts) for parts in zip(*trees, strict=True))
    return np.asarray(sum(trees))


@fixed
@given(st.data())
def test_any_cut_into_micro_batches_steps_as_the_whole(data: Any) -> None:
    """A least squares fit: gradients of means over parts of the data."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    every, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    backend = data.draw(st.sampled_from(CPU_BACKENDS))
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((every * size, 3)), rng.standard_normal(every * size)
    one, two = np.zeros(3), np.zeros(3)
    acc = fastopt.Accumulator(fastopt.Adam(one, lr=0.1, backend=backend), every)
    plain = fastopt.Adam(two, lr=0.1, backend=backend)
    for _ in range(3):
        plain.step(x.T @ (x @ two - y) / len(y))
        for cut in np.split(np.arange(every * size), every):
            acc.step(x[cut].T @ (x[cut] @ one - y[cut]) / size)
    np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8)
    assert acc.step_count == 3


@each_backend
def test_a_missing_gradient_is_zero_unless_it_is_missing_in_all(backend: str) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(2)}
    opt = fastopt.SGD(params, lr=1.0, momentum=0.5, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    for _ in range(2):
        acc.step({"a": np.ones(2), "b": None, "c": None})
        acc.step({"a": np.ones(2), "b": np.ones(2), "c": None})
    steps = {name: entry["step"] for name, entry in opt.state_dict()["state"].items()}
    assert steps == {"a": 2, "b": 2, "c": 0}
    assert [params[name][0] for name in "abc"] == [-2.5, -1.25, 0.0]


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float64", ">f4"])
@each_backend
def test_sums_do_not_have_the_gradients_dtype(dtype: Any, backend: str) -> None:
    param = np.zeros(3, np.float32)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0, backend=backend), 4096)
    grad = np.ones(3, dtype)
    for _ in range(4096):  # in float16 the sum would stop at 2048, in bfloat16 at 256
        acc.step(grad)
    assert param.tolist() == [-1.0] * 3


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
@each_backend
def test_sums_for_half_precision_are_float32(dtype: Any, backend: str) -> None:
    param = np.zeros(3, dtype)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0, backend=backend), 4096)
    for _ in range(4096):
        acc.step(np.ones(3, dtype))
    assert (param == -1.0).all()
    acc.step(np.ones(3, dtype))
    assert acc.state_dict()["sum"]["params"].dtype == np.float32


@each_backend
def test_complex_gradients_are_added(backend: str) -> None:
    param = np.zeros(3, np.complex64)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0, backend=backend), 2)
    acc.step(np.full(3, 1 + 2j, np.complex64))
    acc.step(np.full(3, 3 - 4j, np.complex128))
    assert param.tolist() == [-2 + 1j] * 3


@each_backend
def test_gradients_are_neither_kept_nor_written(backend: str) -> None:
    param, grad = np.zeros((2, 3)), np.ones((2, 3))
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0, backend=backend), 2)
    acc.step(grad)
    grad[...] = 3.0
    grad.flags.writeable = False
    acc.step(grad)
    assert (param == -2.0).all()
    assert (grad == 3.0).all()
    grad = np.full((2, 3), 5.0)
    acc.step(grad, grad_scale=2.0)
    grad[...] = 0.0
    assert acc.flush()
    assert (param == -12.0).all()


@each_backend
def test_flush_steps_with_the_mean_of_what_is_there(backend: str) -> None:
    param = np.zeros(2)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0, backend=backend), 5)
    assert not acc.flush()
    assert acc.step_count == 0
    acc.step(np.array([1.0, 2.0]))
    acc.step(np.array([2.0, 6.0]))
    assert acc.flush()
    assert param.tolist() == [-1.5, -4.0]
    assert (acc.count, acc.step_count) == (0, 1)
    acc.step(np.array([8.0, 8.0]))
    acc.reset()
    assert acc.count == 0
    assert not acc.flush()
    assert param.tolist() == [-1.5, -4.0]
    for _ in range(5):
        acc.step(np.array([1.0, 1.0]))
    assert param.tolist() == [-2.5, -5.0]


@each_backend
def test_parameter_groups_take_a_list_of_trees(backend: str) -> None:
    groups = [{"params": {"a": np.zeros(2)}}, {"params": [np.zeros(1, np.float32)], "lr": 0.5}]
    acc = fastopt.Accumulator(fastopt.SGD(groups, lr=1.0, backend=backend), 2)
    acc.step([{"a": np.ones(2)}, [np.ones(1)]])
    assert acc.step([{"a": np.full(2, 3.0)}, [None]])
    assert groups[0]["params"]["a"].tolist() == [-2.0, -2.0]  # type: ignore[index]
    assert groups[1]["params"][0].tolist() == [-0.25]  # type: ignore[index]
    with pytest.raises(ValueError, match="list of 2 trees"):
        acc.step({"a": np.ones(2)})


@each_backend
def test_a_frozen_group_is_not_looked_at(backend: str) -> None:
    params = {"W": np.zeros(2), "b": np.zeros(2)}
    given = fastopt.groups(params, {"b": {"lr": 0.5}})
    opt = fastopt.SGD(given, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    opt.param_groups[1]["trainable"] = False
    acc.step({"W": np.ones(2), "b": "nothing to see"})
    acc.step({"W": np.ones(2), "b": np.ones(2)})
    assert [params["W"][0], params["b"][0]] == [-1.0, 0.0]
    opt.param_groups[1]["trainable"] = True
    for _ in range(2):
        acc.step({"W": np.ones(2), "b": np.ones(2)})
    assert [params["W"][0], params["b"][0]] == [-2.0, -0.5]
    for group in opt.param_groups:
        group["trainable"] = False
    assert [acc.step({"W": np.ones(2), "b": np.ones(2)}) for _ in range(2)] == [None, True]
    assert [params["W"][0], params["b"][0]] == [-2.0, -0.5]


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (np.ones(3), ValueError, r'grads\["b"\] must have the shape'),
        (np.ones(2, int), TypeError, r'grads\["b"\] must be of a real floating dtype'),
        (np.ones(2, complex), TypeError, "real floating dtype"),
        (1.0, TypeError, r'grads\["b"\] must be a numpy array'),
        ([np.ones(2)], TypeError, "got list"),
    ],
)
@each_backend
def test_bad_gradients_are_refused_and_nothing_of_them_is_added(
    bad: Any, kind: type[Exception], message: str, backend: str
) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    acc = fastopt.Accumulator(fastopt.SGD(params, lr=1.0, backend=backend), 2)
    acc.step({"a": np.ones(2), "b": np.ones(2)})
    before = acc.state_dict()
    with pytest.raises(kind, match=message):
        acc.step({"a": np.ones(2), "b": bad})
    with pytest.raises(ValueError, match=r'missing grads\["b"\]'):
        acc.step({"a": np.ones(2)})
    for scale in (math.nan, "1", None):
        with pytest.raises((ValueError, TypeError), match="grad_scale"):
            acc.step({"a": np.ones(2), "b": np.ones(2)}, grad_scale=scale)  # type: ignore[arg-type]
    np.testing.assert_equal(acc.state_dict(), before)
    acc.step({"a": np.ones(2), "b": np.ones(2)})
    assert params["b"].tolist() == [-1.0, -1.0]


@each_backend
def test_a_step_that_raises_keeps_the_sums(backend: str) -> None:
    rates: list[Any] = [0.5, "no rate", 0.25]
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=lambda t: rates[0], backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    acc.step(np.ones(2))
    del rates[0]
    with pytest.raises(TypeError, match="lr"):
        acc.step(np.full(2, 3.0))
    assert acc.count == 2
    with pytest.raises(RuntimeError, match=r"flush\(\) to try it again, or reset\(\)"):
        acc.step(np.ones(2))
    with pytest.raises(TypeError, match="lr"):
        acc.flush()
    saved = acc.state_dict()
    del rates[0]
    assert acc.flush()
    assert param.tolist() == [-0.5, -0.5]
    acc.load_state_dict(saved)
    acc.reset()
    assert not acc.step(np.ones(2))


# What is not finite -------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_micro_batch_that_is_not_finite_is_dropped(bad: float, backend: str) -> None:
    param = np.ones(2)
    opt = fastopt.SGD(param, lr=0.5, on_nonfinite="skip", backend=backend)
    acc = fastopt.Accumulator(opt, 3)
    assert [acc.step(np.array([1.0, 1.0])), acc.step(np.array([1.0, bad]))] == [None, None]
    assert (acc.count, acc.dropped) == (2, 1)
    outcome = acc.step(np.array([3.0, 1.0]))
    assert outcome
    assert param.tolist() == [0.0, 0.5]  # by the mean of the two that are left
    assert (acc.dropped, acc.skipped_steps, acc.step_count, acc.count) == (1, 0, 1, 0)


@each_backend
def test_a_step_of_which_all_are_dropped_is_skipped(backend: str) -> None:
    params = {"a": np.ones(2), "b": np.ones((3, 2)).T, "none": np.ones(0), "c": np.ones(())}
    opt = fastopt.Adam(params, on_nonfinite="skip", backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    before = copied(params), opt.state_dict()
    bad = {"a": np.ones(2), "b": np.full((2, 3), np.inf), "none": np.ones(0), "c": None}
    assert acc.step(bad) is None
    outcome = acc.step(bad)
    assert outcome is not None
    assert not outcome.made
    assert (acc.dropped, acc.skipped_steps, acc.step_count, acc.count) == (2, 1, 0, 0)
    np.testing.assert_equal((params, opt.state_dict()), before)
    for _ in range(2):
        acc.step({"a": np.ones(2), "b": np.ones((2, 3)), "none": None, "c": None})
    assert (acc.dropped, acc.skipped_steps, acc.step_count) == (2, 1, 1)
    assert params["c"] == 1.0


@each_backend
def test_what_is_added_is_what_has_to_be_finite(backend: str) -> None:
    """Times its factors, in the dtype of the sum."""
    param = np.zeros(2, np.float32)
    opt = fastopt.SGD(param, lr=1.0, on_nonfinite="skip", backend=backend)
    acc = fastopt.Accumulator(opt, 4)
    acc.step(np.array([1e300, 0.0]))
    acc.step(np.array([1e30, 0.0], np.float32), grad_scale=1e10)
    acc.add(np.array([1e30, 0.0], np.float32), 1e10)
    assert acc.dropped == 3
    assert acc.step(np.array([1e39, 3.0]), grad_scale=1e-3) == False  # noqa: E712
    assert acc.dropped == 4
    for _ in range(4):
        assert acc.step(np.array([1e37, 3.0]), grad_scale=1e-37) in (None, True)
    assert acc.dropped == 4
    assert param.tolist() == pytest.approx([-1.0, 0.0])


@each_backend
def test_a_gradient_that_was_in_dropped_micro_batches_alone_counts_as_zero(backend: str) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(2)}
    opt = fastopt.SGD(params, lr=1.0, on_nonfinite="skip", backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    acc.step({"a": np.full(2, math.nan), "b": np.ones(2), "c": None})
    acc.step({"a": np.ones(2), "b": None, "c": None})
    steps = {name: entry["step"] for name, entry in opt.state_dict()["state"].items()}
    assert steps == {"a": 1, "b": 1, "c": 0}
    assert [params[name][0] for name in "abc"] == [-1.0, 0.0, 0.0]


@each_backend
def test_under_raise_adding_refuses_it_by_name_and_changes_nothing(backend: str) -> None:
    params = {"a": np.ones(2), "b": np.ones(40_000)}
    opt = fastopt.SGD(params, lr=0.5, on_nonfinite="raise", backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    bad = np.ones(40_000)
    bad[-1] = math.nan
    for made in range(2):
        before = acc.state_dict(), copied(params)
        with pytest.raises(
            FloatingPointError, match=rf'grads\["b"\] .* {made + 1} of 2; it was not'
        ):
            acc.step({"a": np.ones(2), "b": bad})
        np.testing.assert_equal((acc.state_dict(), params), before)
        acc.step({"a": np.ones(2), "b": np.ones(40_000)})
    assert (params["a"] == 0.5).all()
    assert (params["b"] == 0.5).all()
    assert acc.dropped == 0


@each_backend
def test_by_default_what_is_not_finite_is_added(backend: str) -> None:
    param = np.ones(2)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=0.5, backend=backend), 2)
    acc.step(np.array([math.inf, 1.0]))
    assert acc.step(np.ones(2))
    assert param.tolist() == [-math.inf, 0.5]
    assert (acc.dropped, acc.skipped_steps) == (0, 0)


@each_backend
@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_a_loss_scaler_skips_the_whole_step_and_falls(policy: Any, backend: str) -> None:
    param = np.ones(2)
    acc = fastopt.Accumulator(fastopt.SGD(param, on_nonfinite=policy, backend=backend), 2)
    scaler = fastopt.LossScaler(8.0)
    assert scaler.step(acc, np.array([math.inf, 1.0])) is None
    outcome = scaler.step(acc, np.ones(2))
    assert outcome is not None
    assert not outcome.made
    scaler.update()
    assert (scaler.scale, acc.dropped, acc.skipped_steps) == (4.0, 0, 1)
    assert param.tolist() == [1.0, 1.0]


def test_a_policy_that_changes_between_micro_batches() -> None:
    """What was dropped stays so, and a step with nothing in it is never made of NaN."""
    param = np.ones(2)
    opt = fastopt.SGD(param, on_nonfinite="skip")
    acc = fastopt.Accumulator(opt, 2)
    for policy in ("propagate", "raise"):
        opt.on_nonfinite = "skip"
        acc.step(np.full(2, math.nan))
        opt.on_nonfinite = policy  # type: ignore[assignment]
        assert acc.flush() == False  # noqa: E712
        assert param.tolist() == [1.0, 1.0]
    assert (acc.dropped, acc.skipped_steps) == (2, 2)


# Weights ------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_a_step_is_that_of_the_weighted_mean(dtype: str, backend: str) -> None:
    """Sums of w * g over sums of w, with numbers that are not rounded."""
    param = np.zeros(3, dtype)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0, backend=backend), 3)
    grads = [np.array(g, dtype) for g in ([1, 2, 4], [8, 0, 4], [-4, 16, 4])]
    made = [acc.add(g, w) for g, w in zip(grads, (4, 2.0, np.float32(2)), strict=True)]
    assert made == [None, None, True]
    assert param.tolist() == [-1.5, -5.0, -4.0]


@each_backend
def test_batches_of_any_size_end_where_the_whole_does(backend: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((17, 3)), rng.standard_normal(17)
    one, two = np.zeros(3), np.zeros(3)
    acc = fastopt.Accumulator(fastopt.Adam(one, lr=0.1, backend=backend), 3)
    plain = fastopt.Adam(two, lr=0.1, backend=backend)
    for _ in range(5):
        plain.step(x.T @ (x @ two - y) / 17)
        for cut in np.split(np.arange(17), [2, 13]):
            acc.add(x[cut].T @ (x[cut] @ one - y[cut]) / len(cut), weight=len(cut))
    np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8)
    assert acc.step_count == 5


@each_backend
@pytest.mark.parametrize("weight", [1.0, 3, 0.1, 1e-300, 1e300, np.float32(7)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_equal_weights_give_the_bits_of_none(dtype: str, weight: Any, backend: str) -> None:
    ends = []
    for weighted in (False, True):
        params = make_params(dtype)
        acc = fastopt.Accumulator(fastopt.Adam(params, lr=0.1, backend=backend), 3)
        for step in range(6):
            grads = make_grads(params, step)
            if weighted:
                acc.add(grads, weight, grad_scale=0.3)
            else:
                acc.step(grads, grad_scale=0.3)
        ends.append(copied(params))
    assert same(*ends)


def test_weights_give_the_same_bits_on_every_backend() -> None:
    ends = []
    for backend in CPU_BACKENDS:
        params = make_params(np.float32)
        opt = fastopt.Adam(params, lr=0.1, on_nonfinite="skip", backend=backend)
        acc = fastopt.Accumulator(opt, 3)
        for step in range(12):
            grads = make_grads(params, step)
            grads["W"][0, 0] = math.inf if step in (4, 6, 7, 8) else 1.0
            acc.add(grads, (step * 7) % 5 + 0.3, grad_scale=0.7)
        assert (acc.dropped, acc.skipped_steps, acc.step_count) == (4, 1, 3)
        ends.append(copied(params))
    for end in ends[1:]:
        assert same(ends[0], end)


@each_backend
def test_a_weight_of_0_leaves_a_micro_batch_out_whatever_is_in_it(backend: str) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(opt, 3)
    acc.add(np.full(2, math.nan), 0)
    acc.add(np.array([1.0, 2.0]), 2.0)
    assert acc.add(np.array([4.0, 8.0]), 1.0)
    assert param.tolist() == [-2.0, -4.0]
    assert acc.dropped == 0
    for policy in ("skip", "raise"):
        opt.on_nonfinite = policy  # type: ignore[assignment]
        acc.add(np.full(2, math.nan), 0.0)
    assert (acc.dropped, acc.count) == (0, 2)


@each_backend
@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_weights_that_are_all_0_are_an_error(policy: Any, backend: str) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=1.0, on_nonfinite=policy, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    acc.add(np.ones(2), 0.0)
    before = acc.state_dict()
    for call in (lambda: acc.add(np.ones(2), 0.0), acc.flush):
        with pytest.raises(ValueError, match=r"weights of all . micro-batches .* call reset\(\)"):
            call()
        np.testing.assert_equal(acc.state_dict(), before)
    assert param.tolist() == [0.0, 0.0]
    acc.reset()
    acc.add(np.ones(2), 0.5)
    assert acc.add(np.ones(2), 0.0)
    assert param.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "1", None, True, np.ones(2)])
def test_a_bad_weight_is_refused_and_nothing_is_added(bad: Any) -> None:
    acc = fastopt.Accumulator(fastopt.SGD(np.ones(2)), 2)
    acc.add(np.ones(2), 2.0)
    before = acc.state_dict()
    with pytest.raises(
        (ValueError, TypeError), match=r"Accumulator: weight must be a number in \["
    ):
        acc.add(np.ones(2), bad)
    np.testing.assert_equal(acc.state_dict(), before)


# Hooks, and other parameters ----------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("outside", [False, True])
def test_a_hook_that_raises_leaves_no_sums_that_were_stepped_with(
    outside: bool, backend: str
) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    wrapped: Any = fastopt.Lookahead(acc, 5) if outside else acc
    counts: list[int] = []

    def fail(made: fastopt.Optimizer) -> None:
        counts.append(acc.state_dict()["count"])
        raise ZeroDivisionError

    opt.after_step.append(fail)
    wrapped.step(np.ones(2))
    with pytest.raises(ZeroDivisionError):
        wrapped.step(np.ones(2))
    assert (acc.count, counts, acc.flush()) == (0, [0], None)
    assert param.tolist() == [-1.0, -1.0]
    assert not outside or wrapped.state_dict()["steps"] == 1


@each_backend
def test_parameters_may_be_rebound_between_micro_batches(backend: str) -> None:
    params = {"w": np.zeros((2, 3))}
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    grad = np.arange(6.0).reshape(2, 3)
    acc.step({"w": grad})
    params["w"] = np.asfortranarray(np.full((2, 3), 9.0))
    opt.rebind(params)
    assert acc.step({"w": grad})
    assert np.array_equal(params["w"], 9.0 - grad)


@each_backend
def test_resizing_waits_for_the_end_of_a_step(backend: str) -> None:
    params = {"w": np.zeros(3)}
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    opt.resize("w", np.zeros(4))
    for _ in range(2):
        acc.step({"w": np.ones(4)})
    assert params["w"].tolist() == [-1.0] * 4
    acc.step({"w": np.ones(4)})
    opt.resize("w", np.zeros(2))
    for call in (lambda: acc.step({"w": np.ones(2)}), acc.flush, acc.state_dict):
        with pytest.raises(RuntimeError, match=r"resized or added to after 1 micro-batches"):
            call()
    acc.reset()
    for _ in range(2):
        acc.step({"w": np.ones(2)})
    assert params["w"].tolist() == [-1.0] * 2


@each_backend
def test_its_own_resize_refuses_in_the_middle_of_a_step_with_nothing_changed(backend: str) -> None:
    params = {"w": np.zeros(3)}
    acc = fastopt.Accumulator(fastopt.SGD(params, lr=1.0, backend=backend), 2)
    before = params["w"]
    acc.step({"w": np.ones(3)})
    for call in (
        lambda: acc.resize("w", np.zeros(4)),
        lambda: acc.add_param_group({"params": np.zeros(1)}),
        lambda: fastopt.Lookahead(acc).resize("w", np.zeros(4)),
    ):
        with pytest.raises(RuntimeError, match=r"after 1 micro-batches.*call flush\(\)"):
            call()
    assert params["w"] is before
    assert acc.flush()
    assert acc.resize("w", np.zeros(4)) is acc
    assert acc.add_param_group({"params": np.zeros(1)}) is acc
    for _ in range(2):
        acc.step([{"w": np.ones(4)}, np.ones(1)])
    assert acc.params[0]["w"].tolist() == [-1.0] * 4


@each_backend
def test_sums_do_not_stay_with_the_numbers_of_rows(backend: str) -> None:
    opt = fastopt.SGD({"w": np.zeros(2)}, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(opt, 2)
    acc.step({"w": np.ones(2)})
    opt.resize("w", np.zeros(2), keep=[1, 0])  # as many, in another order
    with pytest.raises(RuntimeError, match=r"resized or added to after 1 micro-batches"):
        acc.step({"w": np.ones(2)})


@each_backend
def test_micro_batches_take_the_parameters_as_they_are_now(backend: str) -> None:
    acc = fastopt.Accumulator(fastopt.SGD(np.zeros(2), lr=1.0, backend=backend), 3)
    now = np.full(2, 9.0)
    acc.add(np.ones(2), params=now)
    assert acc.params is now
    acc.step(np.ones(2), params=now)
    now = np.full(2, 5.0)
    scaler = fastopt.LossScaler(1.0)
    assert scaler.step(acc, np.ones(2), params=now)
    assert now.tolist() == [4.0] * 2
    scaler.update()
    now = np.full(2, 7.0)
    assert acc.rebind(now) is acc
    assert acc.params is now


# Saving -------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7, 8])
def test_weights_and_drops_go_on_in_the_same_bits(stop: int, backend: str, tmp_path: Any) -> None:
    def make() -> tuple[Any, fastopt.Accumulator]:
        params = {"a": np.zeros(5, np.float32), "b": np.zeros((2, 2))}
        opt = fastopt.Adam(params, lr=0.1, on_nonfinite="skip", backend=backend)
        return params, fastopt.Accumulator(opt, 4)

    def train(params: Any, acc: fastopt.Accumulator, steps: range) -> None:
        for step in steps:
            grads = make_grads(params, step)
            grads["a"][2] = math.nan if step in (1, 4, 5, 6, 7) else 1.0
            acc.add(grads, 1.7 + step)

    params, acc = make()
    train(params, acc, range(stop))
    acc.innermost.save(tmp_path / "a", also={"acc": acc})
    train(params, acc, range(stop, 12))
    resumed, other = make()
    other.innermost.load(tmp_path / "a", also={"acc": other})
    train(resumed, other, range(stop, 12))
    assert same(resumed, params)
    np.testing.assert_equal(other.state_dict(), acc.state_dict())
    assert (acc.dropped, acc.step_count) == (5, 2)


def test_what_older_versions_have_saved_is_read() -> None:
    param = np.zeros(2)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0), 3)
    old = {"fastopt": "0", "kind": "Accumulator", "count": 2, "sum": {"params": np.full(2, 4.0)}}
    acc.load_state_dict(old)
    assert acc.step(np.full(2, 5.0))
    assert param.tolist() == [-3.0, -3.0]
    acc.load_state_dict({**old, "count": 0, "sum": {}})
    acc.add(np.ones(2), 5.0)
    assert acc.flush()
    assert param.tolist() == [-4.0, -4.0]


@pytest.mark.parametrize("name", ["weight", "first_weight", "dropped"])
@pytest.mark.parametrize("bad", [-1, math.nan, "1", None, True])
def test_what_does_not_fit_is_refused(name: str, bad: Any) -> None:
    acc = fastopt.Accumulator(fastopt.SGD(np.zeros(2)), 3)
    acc.step(np.ones(2))
    saved = acc.state_dict()
    with pytest.raises(fastopt.CheckpointError, match=f"Accumulator: {name} must be"):
        acc.load_state_dict({**saved, name: bad})
    np.testing.assert_equal(acc.state_dict(), saved)


# Around and inside --------------------------------------------------------------------------------


def test_it_goes_around_a_lookahead_and_inside_one() -> None:
    ends = []
    for outside in (True, False):
        params = make_params()
        opt = fastopt.SGD(params, lr=0.1)
        acc: Any = (
            fastopt.Accumulator(fastopt.Lookahead(opt, 2), 3)
            if outside
            else fastopt.Lookahead(fastopt.Accumulator(opt, 3), 2)
        )
        acc.lr = 0.05
        for step in range(12):
            acc.step(make_grads(params, step))
        assert (opt.lr, acc.step_count, acc.lr) == (0.05, 4, 0.05)
        ends.append(copied(params))
    assert same(*ends)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, None, "4"])
def test_bad_arguments_are_refused(bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="Accumulator: every must be a whole number"):
        fastopt.Accumulator(fastopt.SGD(np.ones(1)), bad)
    with pytest.raises(TypeError, match="Accumulator takes an optimizer"):
        fastopt.Accumulator(np.ones(1), 2)  # type: ignore[arg-type]
    acc = fastopt.Accumulator(fastopt.SGD(np.ones(1)), 2)
    assert repr(acc).startswith("<Accumulator(0 of 2) of <SGD(")
