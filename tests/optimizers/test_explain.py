"""``explain``: what the next step would do, in the numbers of that step; nothing changes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.explain import Explanation, ParameterStep
from helpers.cuda.runs import on_host
from helpers.variants import CPU_BACKENDS, OF_MATRICES, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
LOSS = 16.0


def draw(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    found: Array = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return found


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.abs(np.asarray(values, np.float64))))))


def only(why: Explanation) -> ParameterStep:
    """Return what is said of the one parameter that there is."""
    (one,) = why.parameters
    return one


def close(one: Any, two: Any) -> None:
    np.testing.assert_allclose(one, two, rtol=1e-12, atol=0)


def saved(opt: Any) -> Any:
    """Return all there is of an optimizer that a step can change, as values of their own."""
    engine = opt._engine
    leaves = [on_host(leaf.array).tobytes() for leaf in opt._state.tree.leaves]
    counts = np.copy(opt.step_count), np.copy(opt.skipped_steps), str(opt.grad_norm)
    rows = [(one._prepared_for, len(one._ahead), one._ahead_from) for one in engine.scalars]
    spent = None if engine.later is None else engine.later.spent
    kernels = [id(kernel) for kernel in engine.kernels]
    return leaves, opt.state_dict(), counts, rows, spent, kernels, opt.backend


def unchanged(opt: Any, before: Any) -> None:
    np.testing.assert_equal(saved(opt), before)


def handed(opt: Any) -> dict[str, Any]:
    return {"value": LOSS} if opt._takes_value else {}


# Every optimizer ---------------------------------------------------------------------------------


def check_against_the_step(
    variant: Variant, xp: Any, backend: str, shapes: tuple[tuple[int, ...], ...], **more: Any
) -> None:
    params = {f"p{k}": xp.asarray(draw(k, *shape)) for k, shape in enumerate(shapes)}

    def grads(step: int) -> dict[str, Any]:
        return {n: xp.asarray(draw(hash((step, n)) % 1000, *p.shape)) for n, p in params.items()}

    opt = variant(params, backend=backend, **more)
    for step in range(2):
        opt.step(grads(step))
    coming = grads(2)
    before, held = saved(opt), {name: on_host(p).astype(float) for name, p in params.items()}
    why = opt.explain(coming, **handed(opt))
    unchanged(opt, before)
    assert opt.step(coming) == why.made
    state = opt.state_dict()["state"]
    assert why.step_count == 2
    for name, param in params.items():
        one = why[name]
        new, grad = on_host(param).astype(float), on_host(coming[name]).astype(float)
        close(one.grad_rms, rms(grad))
        close(one.grad_max, np.abs(grad).max())
        close(one.weight_rms, rms(held[name]))
        exact = {"rtol": 1e-12} if not isinstance_of_matrices(variant, xp) else {"rtol": 1e-4}
        np.testing.assert_allclose(one.update_rms, rms(new - held[name]), atol=1e-12, **exact)
        np.testing.assert_allclose(
            one.update_max, np.abs(new - held[name]).max(), atol=1e-12, **exact
        )
        assert one.step == 3
        own = {k: v for k, v in state[name].items() if k in one.state}
        assert own.keys() == one.state.keys()
        for slot, values in own.items():
            expected = rms(values) if np.ndim(values) else float(values)
            np.testing.assert_allclose(one.state[slot], expected, atol=1e-300, **exact)
    # What the step was worked out by is what the next one begins with.
    assert {n: why[n].state for n in params} == {
        n: opt.explain(coming, **handed(opt))[n].state_before for n in params
    } or isinstance_of_matrices(variant, xp)


def isinstance_of_matrices(variant: Variant, xp: Any) -> bool:
    """Return whether a GPU's libraries may round otherwise."""
    return xp is not np


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@each_backend
def test_what_it_says_is_what_the_step_does_and_nothing_changes(
    variant: Variant, backend: str
) -> None:
    check_against_the_step(variant, np, backend, ((6, 5), (7,)))


@pytest.mark.parametrize("variant", OF_MATRICES, ids=str)
def test_so_it_is_with_rules_on_whole_arrays(variant: Variant) -> None:
    check_against_the_step(variant, np, "numpy", ((6, 5), (4, 8)))


ON_DEVICE = [
    v for v in VARIANTS if v.name in {"adam", "sgd_momentum", "adamw_clip_each", "schedulefreesgd"}
]


@pytest.mark.parametrize("variant", ON_DEVICE, ids=str)
def test_so_it_is_on_a_device(variant: Variant, cupy: Any) -> None:
    check_against_the_step(variant, cupy, "cupy", ((6, 5), (7,)), max_grad_norm=0.5)


def test_on_a_device_with_what_is_done_around(cupy: Any) -> None:
    params = {"E": cupy.asarray(draw(1, 6, 4)), "h": cupy.asarray(draw(2, 5).astype(np.float16))}
    upper = {"E": cupy.full((6, 4), 0.25, np.float32), "h": np.inf}
    opt = fastopt.Adam(
        params, 1e-2, bounds=(None, upper), lr_scale={"E": cupy.ones(4), "h": 0.5}, clip_value=0.5
    )
    rows = fastopt.RowGrad([5, 0], cupy.asarray(1024 * draw(3, 2, 4)))
    grads = {"E": rows, "h": cupy.asarray(draw(4, 5))}
    before = saved(opt)
    why = opt.explain(grads, grad_scale=1.0 / 1024.0)
    unchanged(opt, before)
    held = on_host(params["E"]).copy()
    opt.step(grads, grad_scale=1.0 / 1024.0)
    moved = (on_host(params["E"]).astype(float) - held)[[0, 5]]
    close(why["E"].update_rms, rms(moved))
    assert why["E"].rows == 2
    assert why["E"].at_bounds == int((on_host(params["E"]) >= 0.25).sum())
    assert why["h"].clipped_elements == 0.0
    with pytest.raises(Exception, match="numpy"):
        opt.explain({**grads, "E": fastopt.RowGrad([0], np.ones((1, 4), np.float32))})
    with pytest.raises(Exception, match="numpy"):
        opt.explain({**grads, "h": np.ones(5, np.float16)})


def test_a_scale_that_is_kept_on_a_device_is_fetched(cupy: Any) -> None:
    opt = fastopt.SGD({"a": cupy.ones(2)}, 1.0)
    scaler = fastopt.LossScaler(1024.0).warmup(opt)
    scaler.step(opt, {"a": cupy.full(2, cupy.inf)})
    scaler.update()
    why = scaler.explain(opt, {"a": cupy.full(2, 512.0)})
    close(why["a"].grad_max, 1.0)
    close(opt.explain({"a": cupy.ones(2)}, grad_scale=cupy.asarray(0.5))["a"].update_max, 0.5)
    outer = fastopt.Accumulator(opt, 2)
    outer.add({"a": cupy.full(2, 3.0)})
    close(outer.explain({"a": cupy.ones(2)})["a"].grad_max, 2.0)


def test_while_a_stream_is_captured_it_refuses(cupy: Any) -> None:
    opt = fastopt.Adam({"a": cupy.ones(4)}, capturable=True)
    grads = {"a": cupy.ones(4)}
    opt.warmup()
    opt.step(grads)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="explain reads"):
                opt.explain(grads)
        finally:
            stream.end_capture()
    assert opt.explain(grads).step_count == 1


STORED: list[tuple[Any, dict[str, Any]]] = [
    (np.float64, {}),
    (np.float16, {}),
    (ml_dtypes.bfloat16, {"master_weights": False, "stochastic_rounding": True}),
    (np.complex64, {}),
    (np.float32, {"state_dtype": "int8"}),
    (np.float32, {"state_dtype": "bfloat16", "seed": 3}),
    (np.float32, {"state_dtype": "float64"}),
]


@pytest.mark.parametrize(("dtype", "options"), STORED, ids=str)
@each_backend
def test_random_bits_codes_and_masters_stay_as_they_are(
    dtype: Any, options: dict[str, Any], backend: str
) -> None:
    param = np.asfortranarray(draw(1, 80, 64).astype(dtype))
    opt = fastopt.Adam(param, 1e-2, backend=backend, **options)
    grads = [draw(k, 80, 64).astype(dtype) for k in (2, 3, 4)]
    opt.step(grads[0])
    other = copy.deepcopy(opt)
    before = saved(opt)
    why = opt.explain(grads[1])
    unchanged(opt, before)
    held = param.copy()
    for grad in grads[1:]:
        opt.step(grad)
        other.step(grad)
        if grad is grads[1] and dtype != np.float16:  # of which the master moves
            wide = np.complex128 if held.dtype.kind == "c" else np.float64
            close(only(why).update_rms, rms(np.abs(param.astype(wide) - held.astype(wide))))
    assert param.tobytes() == np.asfortranarray(other.params).tobytes()


@each_backend
def test_it_has_no_part_in_what_a_run_compiles_or_when_it_goes_over(backend: str) -> None:
    opt = fastopt.Adam(np.ones(3))  # auto
    opt.step(np.ones(3))
    before = saved(opt)
    for _ in range(3):
        opt.explain(np.ones(3))
    unchanged(opt, before)


# Numbers by hand, in float64 ---------------------------------------------------------------------


@each_backend
def test_adams_numbers(backend: str) -> None:
    p, g = np.array([1.0, -2.0, 0.5, 4.0]), np.array([0.1, 0.0, -0.3, 0.2])
    opt = fastopt.Adam(p.copy(), 0.01, betas=(0.8, 0.9), eps=1e-3, backend=backend)
    opt.step(g)
    now = opt.params.copy()
    second = np.array([0.3, 0.1, 0.0, -0.1])
    one = only(opt.explain(second, grad_scale=2.0))
    m = 0.8 * (0.2 * g) + 0.2 * (2 * second)
    v = 0.9 * (0.1 * g**2) + 0.1 * (2 * second) ** 2
    c1, c2 = 1 - 0.8**2, 1 - 0.9**2
    update = 0.01 * (m / c1) / (np.sqrt(v / c2) + 1e-3)
    close(one.state["m"], rms(m))
    close(one.state["v"], rms(v))
    close(one.state_before["m"], rms(0.2 * g))
    close((one.filled["beta1"], one.filled["beta2"]), (c1, c2))
    close(one.scalars["step_size"], 0.01 * math.sqrt(c2) / c1)
    close(one.scalars["eps"], 1e-3 * math.sqrt(c2))
    close(one.update_rms, rms(update))
    close(one.ratio, rms(update) / rms(now))
    close(one.grad_rms, rms(2 * second))
    close(one.grad_max, 0.6)
    rates = np.abs(update)[[0, 1, 3]] / np.abs(2 * second)[[0, 1, 3]]
    close(one.effective_lr, np.quantile(rates, (0.1, 0.5, 0.9)))
    assert (one.zeros, one.nonfinite, one.unmoved, one.lr) == (0.25, 0, 0.0, 0.01)


@each_backend
def test_sgds_effective_rate_is_lr_and_momentum_adds_to_it(backend: str) -> None:
    p, g = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.5, -0.25], [0.0, 0.0]])
    plain = only(fastopt.SGD(p.copy(), 0.125, backend=backend).explain(g))
    close(plain.effective_lr, (0.125,) * 3)
    assert (plain.zero_rows, plain.zero_columns, plain.zeros) == (1, 0, 0.5)
    opt = fastopt.SGD(p.copy(), 0.125, momentum=0.5, backend=backend)
    opt.step(g)
    close(only(opt.explain(g)).effective_lr, (0.1875,) * 3)


@each_backend
def test_weight_decay_schedules_and_rates_of_groups(backend: str) -> None:
    params = [{"params": np.full(3, 2.0), "lr_scale": 0.5}, {"params": np.ones(2), "lr": 0.25}]
    opt = fastopt.SGD(
        params, lambda t: 0.1 * (t + 1), weight_decay=0.5, maximize=True, backend=backend
    )
    opt.step([np.ones(3), np.ones(2)])
    held = opt.params[0].copy()
    why = opt.explain([np.ones(3), None])
    first, second = why.parameters
    assert (first.name, second.name) == ("0.params", "1.params")
    close(first.lr, 0.1)
    close(first.update_rms, rms(0.1 * (-1.0 + 0.5 * held)))
    close(first.scalars["l2"], 0.5)
    assert (first.group, second.group) == (0, 1)
    assert (second.status, second.lr, second.grad_rms) == ("no gradient", 0.25, None)
    assert second.update_rms is second.ratio is second.effective_lr is None


def test_squares_that_no_float64_holds_are_measured_all_the_same() -> None:
    g = np.array([3e200, 4e200, 0.0, 0.0])
    why = fastopt.SGD(np.ones(4), 1e-200).explain(g)
    close(only(why).grad_rms, 2.5e200)
    close(only(fastopt.SGD(np.ones(4)).explain(g * 1e-200 * 1e-180)).grad_rms, 2.5e-180)


def test_of_large_arrays_quantiles_are_those_of_a_sample() -> None:
    g = np.full(3 << 20, 0.5, np.float32)
    g[::3] = 2.0
    one = only(fastopt.SGD(np.ones(3 << 20, np.float32), 0.25).explain(g))
    close(one.effective_lr, (0.25,) * 3)
    close(one.grad_rms, math.sqrt((4.0 + 0.25 * 2) / 3))


# What is done with gradients ---------------------------------------------------------------------


@each_backend
def test_clipping_by_norm_by_value_and_of_each_array(backend: str) -> None:
    params = {"a": np.zeros(4), "b": np.zeros((2, 2))}
    grads = {"a": np.array([3.0, 0.0, -4.0, 0.0]), "b": np.full((2, 2), 6.0)}
    opt = fastopt.SGD(params, 1.0, max_grad_norm=6.5, backend=backend)
    why = opt.explain(grads)
    close(why.grad_norm, 13.0)
    close(why.clip_factor, 6.5 / (13.0 + 1e-6))
    close(why["b"].update_max, 6.0 * 6.5 / (13.0 + 1e-6))
    opt = fastopt.SGD(params, 1.0, clip_value=3.5, clip_each=2.0, backend=backend)
    why = opt.explain(grads)
    assert why.clip_factor == 1.0
    close(why.grad_norm, 13.0)
    assert (why["a"].clipped_elements, why["b"].clipped_elements) == (0.25, 1.0)
    close(why["a"].clip_each_factor, 2.0 / (math.hypot(3.0, 3.5) + 1e-6))
    close(why["b"].clip_each_factor, 2.0 / (7.0 + 1e-6))
    # After the factor of max_grad_norm less is cut off.
    opt = fastopt.SGD(params, 1.0, clip_value=1.75, max_grad_norm=6.5, backend=backend)
    assert opt.explain(grads)["a"].clipped_elements == 0.25
    opt = fastopt.SGD(params, 1.0, clip_value=7.0, clip_each=50.0, backend=backend)
    one = opt.explain(grads)["a"]
    assert (one.clipped_elements, one.clip_each_factor) == (0.0, 1.0)


@each_backend
def test_gradients_that_are_transformed(backend: str) -> None:
    p, g = np.full((2, 4), 0.5), np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    why = fastopt.SGD(p.copy(), adaptive_clip=0.1, backend=backend).explain(g)
    close(only(why).transformed, (0.1 * 1.0) / 2.0)
    close(why.grad_norm, math.hypot(0.1, 0.1))
    why = fastopt.SGD(p.copy(), centralize=True, backend=backend).explain(g)
    close(only(why).transformed, math.sqrt((1.5**2 + 3 * 0.5**2) / 8.0))


def test_bounds_are_counted_where_elements_stand_after_the_step() -> None:
    opt = fastopt.SGD(np.array([0.1, 0.9, 0.5, 0.0]), 1.0, bounds=(0.0, 1.0))
    one = only(opt.explain(np.array([1.0, -1.0, 0.1, 1.0])))
    assert one.at_bounds == 3
    assert "3 at bounds" in str(opt.explain(np.array([1.0, -1.0, 0.1, 1.0])))
    upper = np.array([1.0, np.inf])
    opt = fastopt.SGD(np.zeros(2), 1.0, bounds=(None, upper))
    assert only(opt.explain(np.array([-2.0, -2.0]))).at_bounds == 1


@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
@each_backend
def test_gradients_that_are_not_finite(policy: Any, backend: str) -> None:
    params = {"a": np.ones(3), "b": np.ones(2)}
    grads = {"a": np.array([1.0, np.nan, -np.inf]), "b": np.full(2, 2.0)}
    opt = fastopt.Adam(params, on_nonfinite=policy, backend=backend)
    before = saved(opt)
    why = opt.explain(grads)
    unchanged(opt, before)
    assert why.made == (policy == "propagate")
    assert (why["a"].nonfinite, why["b"].nonfinite) == (2, 0)
    close((why["a"].grad_rms, why["a"].grad_max), (1.0, 1.0))
    assert why.grad_norm is None
    assert [one.about for one in why.advice] == ["nonfinite"]
    json.dumps(why.to_dict(), allow_nan=False)
    if policy == "propagate":
        assert why.reason == ""
        return
    assert "2 elements of the gradient of a are not finite" in why.reason
    assert ("FloatingPointError" in why.reason) == (policy == "raise")
    assert why["b"].status == "skipped"
    assert why["b"].update_rms is None
    assert why["a"].state == why["a"].state_before


def test_what_nan_makes_of_factors_and_sums_goes_through_json_as_none() -> None:
    params = {"W": np.ones((2, 2)), "b": np.ones(2)}
    grads = {"W": np.full((2, 2), np.nan), "b": np.array([np.inf, 0.1])}
    for make in (
        lambda: fastopt.LAMB(params, max_grad_norm=1.0, clip_each=1.0),
        lambda: fastopt.Prodigy(params, max_grad_norm=math.inf),
        lambda: fastopt.SOAP(params, clip_value=0.5),
    ):
        why = make().explain(grads)
        assert why.made
        json.dumps(why.to_dict(), allow_nan=False)
        assert about(why) == ["nonfinite"]
        assert str(why)
        assert why._repr_html_()


def test_squares_that_overflow_float32_and_a_loss_that_is_not_finite() -> None:
    opt = fastopt.Adam(np.ones(2, np.float32), on_nonfinite="skip")
    why = opt.explain(np.full(2, 1e19, np.float32))
    assert not why.made
    assert "squares overflow" in why.reason
    why = fastopt.MoMo(np.ones(2), on_nonfinite="raise").explain(np.ones(2), value=np.inf)
    assert not why.made
    assert "the loss is inf" in why.reason


# Kinds of optimizers -----------------------------------------------------------------------------


@each_backend
def test_members_each_have_their_own_numbers(backend: str) -> None:
    params = {"W": np.ones((3, 2, 2)), "b": np.ones((3, 2))}
    rates = np.array([0.1, 0.2, 0.4])
    opt = fastopt.SGD(
        params, rates, members=3, max_grad_norm=1.0, on_nonfinite="skip", backend=backend
    )
    grads = {"W": np.zeros((3, 2, 2)), "b": np.array([[0.3, 0.4], [np.nan, 1.0], [6.0, 8.0]])}
    opt.step({"W": grads["W"], "b": grads["b"].copy()})
    before = saved(opt)
    why = opt.explain(grads)
    unchanged(opt, before)
    assert why.made == (True, False, True)
    assert why.step_count == (1, 0, 1)
    assert isinstance(why.grad_norm, tuple)
    close((why.grad_norm[0], why.grad_norm[2]), (0.5, 10.0))
    assert isinstance(why.clip_factor, tuple)
    close((why.clip_factor[0], why.clip_factor[2]), (1.0, 1.0 / (10.0 + 1e-6)))
    one = why["b"]
    assert one.lr == tuple(rates)
    assert one.zero_rows is None
    held = on_host(opt.params["b"]).copy()
    opt.step(grads)
    close(one.update_rms, rms(opt.params["b"] - held))
    assert "2 of 3" in str(why)
    lost = fastopt.SGD(np.ones((3, 2, 2), np.float32), rates * 1e-12, members=3, backend=backend)
    lost.step(np.ones((3, 2, 2), np.float32))
    assert about(lost.explain(np.ones((3, 2, 2), np.float32))) == ["small_step"]
    alone = fastopt.Adam(params, members=3, backend=backend).explain({"W": grads["W"], "b": None})
    assert (alone.made, alone.grad_norm, alone.clip_factor) == (True, None, 1.0)


@each_backend
def test_rows_alone_are_looked_at_where_rows_are_handed_in(backend: str) -> None:
    table = {"E": np.arange(1.0, 13.0).reshape(6, 2), "W": np.ones(2)}
    rows = fastopt.RowGrad([4, 1, 4], np.array([[1.0, 0.0], [2.0, 2.0], [1.0, 0.0]]))
    opt = fastopt.SGD(table, 0.5, max_grad_norm=100.0, backend=backend)
    before = saved(opt)
    why = opt.explain({"E": rows, "W": None})
    unchanged(opt, before)
    one = why["E"]
    assert (one.rows, one.zeros, one.grad_max) == (2, 0.25, 2.0)
    close(one.grad_rms, rms([[2.0, 2.0], [2.0, 0.0]]))
    close(one.weight_rms, rms(table["E"][[1, 4]]))
    close(one.update_rms, 0.5 * one.grad_rms)
    close(why.grad_norm, math.sqrt(12.0))
    assert "2 of 6 rows" in str(why)


def test_the_loss_and_the_hessian_are_taken_as_by_a_step() -> None:
    opt = fastopt.MoMo(np.ones(3), 1.0)
    with pytest.raises(TypeError, match="needs the loss"):
        opt.explain(np.ones(3))
    assert only(opt.explain(np.ones(3), value=2.0)).update_rms
    opt2 = fastopt.AdaHessian({"a": np.ones(3)})
    with pytest.raises(TypeError, match="needs an estimate"):
        opt2.explain({"a": np.ones(3)})
    hessian = {"a": np.array([1.0, 4.0, 9.0])}
    why = opt2.explain({"a": np.ones(3)}, hessian=hessian)
    opt2.step({"a": np.ones(3)}, hessian=hessian)
    close(why["a"].update_rms, rms(opt2.params["a"] - 1.0))
    with pytest.raises(TypeError, match="takes no value"):
        fastopt.SGD(np.ones(1)).explain(np.ones(1), value=1.0)


def test_schedule_free_explains_where_steps_go_on() -> None:
    opt = fastopt.ScheduleFreeSGD(np.ones(3), 0.1)
    opt.step(np.ones(3))
    opt.eval()
    with pytest.raises(RuntimeError, match="explain in eval mode"):
        opt.explain(np.ones(3))
    opt.train()
    held, why = opt.params.copy(), opt.explain(np.ones(3))
    opt.step(np.ones(3))
    close(only(why).update_rms, rms(opt.params - held))


def test_what_is_remembered_of_all_is_there_and_what_sums_make() -> None:
    opt = fastopt.Prodigy(np.ones(4), d0=1e-2)
    opt.step(np.full(4, 0.1))
    why = opt.explain(np.full(4, 0.1))
    opt.step(np.full(4, 0.1))
    assert why.memory == opt._remembered()
    assert why.memory
    lamb = fastopt.LAMB({"W": np.full((2, 2), 3.0)}, 0.1, weight_decay=0.0)
    one = lamb.explain({"W": np.ones((2, 2))})["W"]
    close(one.update_rms, 0.1 * 3.0)  # lr times the norm of the parameter, by its trust ratio
    assert set(one.scalars) - {"l2", "decay"}


def test_a_schedule_with_a_memory_is_asked_and_not_told() -> None:
    plateau = fastopt.schedules.ReduceLROnPlateau(0.5, factor=0.1, patience=0)
    opt = fastopt.SGD(np.ones(2), plateau)
    opt.step(np.ones(2))
    plateau.report(1.0)
    plateau.report(2.0)
    before = plateau.state_dict()
    why = opt.explain(np.ones(2))
    close(only(why).lr, 0.05)
    assert plateau.state_dict() == before


def test_what_is_frozen_and_counters() -> None:
    params = {"W": np.ones(2), "steps": np.arange(3)}
    opt = fastopt.SGD(fastopt.groups(params, {"steps": {"trainable": False}}))
    why = opt.explain({"W": np.ones(2), "steps": None})
    assert [one.name for one in why.parameters] == ["W"]
    for group in opt.param_groups:
        group["trainable"] = False
    why = opt.explain({"W": np.ones(2), "steps": None})
    assert why["W"].status == "frozen"
    assert [one.about for one in why.advice] == ["no_gradient"]
    assert "trainable" in why.advice[0].text


# Wrappers ----------------------------------------------------------------------------------------


@each_backend
def test_an_accumulator_explains_the_step_with_the_mean(backend: str) -> None:
    parts = [np.array([1.0, 2.0, 4.0]), np.array([3.0, -2.0, 0.0])]
    opt = fastopt.Adam(np.ones(3), backend=backend)
    both = fastopt.Accumulator(opt, every=2)
    both.add(parts[0], weight=2.0, grad_scale=0.5)
    before = saved(opt), both.state_dict()
    why = both.explain(parts[1], grad_scale=0.5)
    np.testing.assert_equal((saved(opt), both.state_dict()), before)
    close(only(why).grad_rms, rms((0.5 * 2 * parts[0] + 0.5 * parts[1]) / 3.0))
    held = opt.params.copy()
    both.add(parts[1], grad_scale=0.5)
    close(only(why).update_rms, rms(opt.params - held))
    opt.on_nonfinite = "skip"
    both.add(parts[0])
    dropped = both.explain(np.full(3, np.nan))
    assert dropped.made
    close(only(dropped).grad_rms, rms(parts[0]))


@each_backend
def test_a_scaler_explains_with_its_scale_and_policy(backend: str) -> None:
    scaler = fastopt.LossScaler(1024.0)
    opt = fastopt.SGD(np.ones(2, np.float32), 1.0, backend=backend)
    before, scale = saved(opt), scaler.state_dict()
    why = scaler.explain(opt, np.array([1024.0, 0.0], np.float32))
    close(only(why).grad_max, 1.0)
    assert why.grad_scale == 1.0 / 1024.0
    bad = scaler.explain(opt, np.array([np.inf, 0.0], np.float32))
    assert (bad.made, bad.policy) == (False, "skip")
    unchanged(opt, before)
    assert scaler.state_dict() == scale
    scaler.step(opt, np.ones(2, np.float32))  # nothing was noted


@pytest.mark.parametrize(
    "around", [lambda opt: fastopt.Lookahead(opt, k=2), fastopt.SAM, fastopt.ASAM]
)
def test_others_explain_the_step_of_their_optimizer(around: Callable[[Any], Any]) -> None:
    opt = fastopt.Adam({"a": np.ones(3)})
    outer = around(opt)
    outer.step({"a": np.ones(3)})
    before = saved(opt), outer.state_dict()
    why = outer.explain({"a": np.full(3, 0.5)})
    np.testing.assert_equal((saved(opt), outer.state_dict()), before)
    assert why.to_dict() == opt.explain({"a": np.full(3, 0.5)}).to_dict()
    assert outer.summary() == opt.summary()
    assert type(outer).__name__ in outer._repr_html_()


# What it refuses ---------------------------------------------------------------------------------


def test_what_a_step_refuses_it_refuses(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = {"a": xp.ones(3), "b": xp.ones((2, 2))}
    opt = fastopt.Adam(params, backend=backend)
    good = {"a": xp.ones(3), "b": xp.ones((2, 2))}
    before = saved(opt)
    bad: list[tuple[Any, Any, str]] = [
        ({"a": xp.ones(3)}, ValueError, "b"),
        ({**good, "b": xp.ones(4)}, ValueError, r'grads\["b"\] must have the shape'),
        ({**good, "a": [1.0, 2.0, 3.0]}, Exception, "grads"),
        ({**good, "a": params["a"]}, ValueError, "shares memory"),
        ({**good, "a": xp.ones(3, int)}, TypeError, r'grads\["a"\]'),
    ]
    for grads, error, match in bad:
        with pytest.raises(error, match=match):
            opt.explain(grads)
    with pytest.raises(ValueError, match="grad_scale"):
        opt.explain(good, grad_scale=math.inf)
    unchanged(opt, before)
    for grads, error, match in bad:
        with pytest.raises(error, match=match):
            opt.step(grads)
    params["a"] = xp.zeros(3)
    with pytest.raises(ValueError, match="no longer the array"):
        opt.explain(good)


def test_buffers_of_before_are_refused_and_those_of_today_are_read() -> None:
    params = {"a": np.ones(3)}
    opt = fastopt.SGD(params, 1.0)
    old = opt.gradient_buffers()
    old["a"][...] = 2.0
    close(opt.explain(old)["a"].update_rms, 2.0)
    opt.rebind({"a": np.ones(3)})
    opt.param_groups[0]["trainable"] = False
    assert opt.explain(old)["a"].status == "frozen"
    opt.param_groups[0]["trainable"] = True
    with pytest.raises(ValueError, match="gradient buffer"):
        opt.explain(old)


def test_within_a_step_it_is_refused_and_from_hooks_it_is_allowed() -> None:
    seen: list[Any] = []
    opt = fastopt.SGD(np.ones(2), lambda t: seen.append(opt.explain(np.ones(2))) or 0.1)
    with pytest.raises(RuntimeError, match="in a step already"):
        opt.step(np.ones(2))
    opt2 = fastopt.SGD(np.ones(2), 0.5)
    opt2.before_step.append(lambda own: seen.append(own.explain(np.ones(2))))
    opt2.step(np.ones(2))
    assert isinstance(seen[-1], Explanation)
    assert len(seen) == 1  # hooks are not called by it


# How it is shown ---------------------------------------------------------------------------------


def usual() -> tuple[Any, dict[str, Array]]:
    params = {"W<b>": draw(1, 6, 5), "[red]b": draw(2, 5)}
    opt = fastopt.Adam(params, 1e-3, max_grad_norm=1.0)
    grads = {"W<b>": draw(3, 6, 5), "[red]b": draw(4, 5)}
    grads["W<b>"][:, 2] = 0.0
    opt.step(grads)
    return opt, grads


def test_as_data_it_goes_through_json() -> None:
    opt, grads = usual()
    why = opt.explain(grads)
    again = json.loads(json.dumps(why.to_dict(), allow_nan=False))
    assert again["optimizer"] == "Adam"
    assert again["parameters"][0]["name"] == "W<b>"
    with pytest.raises(KeyError, match="there are W<b>"):
        why["nothing"]
    with pytest.raises(AttributeError):
        why.made = False


def test_as_text_html_and_by_rich() -> None:
    opt, grads = usual()
    why = opt.explain(grads)
    text = str(why)
    assert text.startswith("Adam, step 2: would be made\nnorm of all gradients ")
    assert "clipped to 1" in text
    assert "1 of 5 columns dead" in text
    assert "W<b>" in text
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("name"))
    assert "update/weight" in head
    page = why._repr_html_()
    assert "W&lt;b&gt;" in page
    assert "W<b>" not in page
    assert page.count("<tr>") == 3
    assert "color:#" not in page  # it takes the colours of the page around it
    rich_console = pytest.importorskip("rich.console")
    console = rich_console.Console(width=90, record=True, quiet=False, file=None)
    with console.capture() as shown:
        console.print(why)
    assert "[red]b" in shown.get()
    assert "would be made" in shown.get()


# Advice ------------------------------------------------------------------------------------------


def about(why: Explanation) -> list[str]:
    return [one.about for one in why.advice]


def matrix(scale: float = 1.0, dtype: Any = np.float32) -> Array:
    return scale * draw(5, 20, 10, dtype=dtype)


GRAD = draw(6, 20, 10)


def explained_later(opt: Any) -> Explanation:
    opt.step(GRAD)
    found: Explanation = opt.explain(GRAD)
    return found


DUE: dict[str, tuple[str, Callable[[], Explanation], tuple[str, ...]]] = {
    "a rate that is too large": (
        "large_step",
        lambda: fastopt.Adam(matrix(), 0.5).explain(GRAD),
        ("0.52 times its own RMS", "50 times smaller"),
    ),
    "a rate that is too small": (
        "small_step",
        lambda: fastopt.SGD(matrix(dtype=np.float64), 1e-8).explain(GRAD),
        ("by 1e-08", "1e+06 steps"),
    ),
    "a step that is lost": (
        "small_step",
        lambda: explained_later(fastopt.SGD(matrix(), 1e-12)),
        ("100%", "float32"),
    ),
    "no gradient anywhere": (
        "no_gradient",
        lambda: fastopt.SGD([matrix(), matrix()]).explain([None, None]),
        ("None",),
    ),
    "zeros alone": (
        "zero_gradient",
        lambda: fastopt.SGD([matrix(), np.ones(3)]).explain([0 * GRAD, np.zeros(3)]),
        ("all 203 elements",),
    ),
    "zeros in one": (
        "zero_gradient",
        lambda: fastopt.SGD([matrix(), np.ones(3)]).explain([0 * GRAD, np.ones(3)]),
        ("of the gradient of 0 ",),
    ),
    "one gradient for two": (
        "same_gradient",
        lambda: fastopt.SGD([matrix(), matrix()]).explain([GRAD, GRAD]),
        ("0 and 1 share memory",),
    ),
    "a schedule at 0": (
        "lr_zero",
        lambda: fastopt.SGD(matrix(), fastopt.schedules.linear(0.1, 0.0, 1.0, 10)).explain(GRAD),
        ("lr is 0 in step 1",),
    ),
    "eps above the root": (
        "eps",
        lambda: fastopt.Adam(matrix()).explain(1e-10 * GRAD),
        ("1e-08", "1e-10"),
    ),
    "eps inside above the root": (
        "eps",
        lambda: fastopt.RMSprop(matrix(), eps=1e-4, eps_inside_sqrt=True).explain(1e-5 * GRAD),
        ("0.01",),
    ),
    "a beginning without correction": (
        "beginning",
        lambda: fastopt.RMSprop(matrix(), 1e-4, beta=0.999).explain(GRAD),
        ("32 times as long", "holds 0.001"),
    ),
    "a clip of all": (
        "clipped",
        lambda: fastopt.Adam(matrix(), max_grad_norm=0.1).explain(GRAD),
        ("max_grad_norm=0.1", "times smaller"),
    ),
    "a clip of one": (
        "clipped",
        lambda: fastopt.Adam(matrix(), clip_each=0.1).explain(GRAD),
        ("clip_each=0.1",),
    ),
    "a clip of most elements": (
        "clipped",
        lambda: fastopt.Adam(matrix(), clip_value=0.1).explain(GRAD),
        ("clip_value=0.1", "9"),
    ),
    "underflow": (
        "underflow",
        lambda: fastopt.Adam(matrix(dtype=np.float16)).explain((GRAD * 3e-6).astype(np.float16)),
        ("LossScaler",),
    ),
    "rounding": (
        "rounding",
        lambda: fastopt.SGD(matrix(dtype=np.float16), 1e-5, master_weights=False).explain(
            GRAD.astype(np.float16)
        ),
        ("master_weights=True",),
    ),
    "NaN": (
        "nonfinite",
        lambda: fastopt.Adam(matrix()).explain(np.where(GRAD > 1.0, np.float32(np.nan), GRAD)),
        ('on_nonfinite="skip"',),
    ),
}


@pytest.mark.parametrize("case", DUE)
def test_advice_is_given_where_it_is_due(case: str) -> None:
    kind, make, words = DUE[case]
    why = make()
    assert about(why) == [kind]
    for word in words:
        assert word in why.advice[0].text
    assert any(one.isdigit() for one in why.advice[0].text) or kind == "no_gradient"
    assert why.advice[0].text in str(why)


def test_matrices_that_begin_with_zeros_may_grow() -> None:
    param = np.zeros((20, 10), np.float32)
    opt = fastopt.Adam(param, 0.01)
    for _ in range(6):
        assert opt.explain(GRAD).advice == ()
        opt.step(GRAD)


def test_a_velocity_is_no_average_of_squares() -> None:
    assert fastopt.Momentum(matrix(), 1.0, beta=0.999).explain(GRAD).advice == ()


def test_what_velocity_moves_is_not_said_to_stand_still() -> None:
    opt = fastopt.SGD(matrix(), 0.1, momentum=0.9, lr_inside=True)
    opt.step(GRAD)
    opt.lr = 0.0
    assert about(opt.explain(GRAD)) == []
    opt = fastopt.SGD(matrix(), 0.1, momentum=0.9)
    opt.step(GRAD)
    opt.lr = 0.0
    assert about(opt.explain(GRAD)) == ["lr_zero"]


def healthy() -> list[tuple[str, Callable[[Any], Any]]]:
    names = "SGD Momentum Adagrad RMSprop Adadelta Adam AdamW NAdam RAdam Lion AdaBelief LAMB Muon"
    more = ("MuonWithAdamW", "Adafactor", "ScheduleFreeAdamW", "Prodigy", "Adan", "SOAP", "Yogi")
    rates = {
        "Muon": 0.02,
        "SGD": 0.1,
        "Lion": 1e-3,
        "RAdam": 5e-3,
        "Adagrad": 1e-2,
        "RMSprop": 1e-3,
        "SOAP": 1e-3,
    }
    found = []
    for name in (*names.split(), *more):
        rate: dict[str, Any] = {"lr": rates[name]} if name in rates else {}
        if name == "Prodigy":  # whose first steps would else be too long here: it is said
            rate["bias_correction"] = True
        cls = getattr(fastopt, name)
        found.append((name, lambda params, cls=cls, rate=rate: cls(params, **rate)))
    return found


def perceptron(params: Any, x: Array, y: Array) -> tuple[float, dict[str, Array]]:
    """Return the cross-entropy of a small network, and its gradients."""
    hidden = np.maximum(x @ params["W1"] + params["b1"], 0)
    scores = hidden @ params["W2"] + params["b2"]
    scores = np.exp(scores - scores.max(1, keepdims=True))
    share = scores / scores.sum(1, keepdims=True)
    loss = float(-np.log(share[np.arange(len(y)), y] + 1e-12).mean())
    share[np.arange(len(y)), y] -= 1
    error = share / len(y)
    back = (error @ params["W2"].T) * (hidden > 0)
    return loss, {
        "W1": (x.T @ back).astype(np.float32),
        "b1": back.sum(0).astype(np.float32),
        "W2": (hidden.T @ error).astype(np.float32),
        "b2": error.sum(0).astype(np.float32),
    }


@pytest.mark.parametrize(("name", "make"), healthy(), ids=[name for name, _ in healthy()])
def test_runs_that_learn_get_none(name: str, make: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 20)).astype(np.float32)
    y = (x @ rng.standard_normal((20, 4))).argmax(1)
    params = {
        "W1": (rng.standard_normal((20, 32)) * math.sqrt(2 / 20)).astype(np.float32),
        "b1": np.zeros(32, np.float32),
        "W2": (rng.standard_normal((32, 4)) * math.sqrt(1 / 32)).astype(np.float32),
        "b2": np.zeros(4, np.float32),
    }
    if name in ("Muon",):
        x, params = x, {"W1": params["W1"], "W2": params["W2"]}
    opt = make(params)
    full = {"b1": np.zeros(32, np.float32), "b2": np.zeros(4, np.float32)}
    losses = []
    for step in range(60):
        some = rng.integers(0, 400, 64)
        loss, grads = perceptron({**full, **params}, x[some], y[some])
        losses.append(loss)
        grads = {key: grads[key] for key in params}
        if step % 6 == 0:
            assert opt.explain(grads).advice == (), f"step {step}: {opt.explain(grads)}"
        opt.step(grads)
    assert np.mean(losses[-10:]) < np.mean(losses[:5])
