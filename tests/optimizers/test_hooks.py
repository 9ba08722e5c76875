"""Functions that are called around steps, and the change that a step would make."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from helpers.cuda.runs import on_host
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

# Hooks ------------------------------------------------------------------------------------------


def test_they_are_called_in_order_around_every_step(place: tuple[Any, str]) -> None:
    xp, backend = place
    param = xp.zeros(2)
    opt = fastopt.SGD(param, 1.0, backend=backend)
    assert opt.before_step == []
    assert opt.after_step == []
    seen: list[Any] = []

    def note(when: str) -> Any:
        return lambda made: seen.append((when, made is opt, made.step_count))

    opt.before_step += [note("first"), note("second")]
    opt.after_step.append(note("after"))
    opt.step(xp.ones(2))
    assert seen == [("first", True, 0), ("second", True, 0), ("after", True, 1)]
    opt.before_step.clear()
    opt.after_step.clear()
    opt.step(xp.ones(2))
    assert len(seen) == 3
    assert on_host(param).tolist() == [-2, -2]


def test_before_a_step_settings_and_parameters_may_change(place: tuple[Any, str]) -> None:
    xp, backend = place
    param = xp.zeros(2)
    opt = fastopt.SGD(param, 1.0, backend=backend)

    def halve(made: fastopt.Optimizer) -> None:
        made.lr *= 0.5
        param[...] += 1

    opt.before_step.append(halve)
    opt.step(xp.ones(2))
    opt.step(xp.ones(2))
    assert on_host(param).tolist() == [1.25, 1.25]


def test_after_a_step_one_may_project_save_and_take_itself_off(
    place: tuple[Any, str], tmp_path: Any
) -> None:
    xp, backend = place
    param = xp.zeros(2)
    opt = fastopt.SGD(param, 1.0, backend=backend, on_nonfinite="skip")
    counts: list[tuple[int, int]] = []

    def save(made: fastopt.Optimizer) -> None:
        made.save(tmp_path / "run.safetensors")
        made.after_step.remove(save)

    def project(made: fastopt.Optimizer) -> None:
        xp.clip(param, -1.5, None, out=param)
        counts.append((made.step_count, made.skipped_steps))

    opt.after_step += [save, project]
    opt.step(xp.ones(2))
    opt.step(xp.ones(2))
    opt.step(xp.full(2, np.inf))
    assert counts == [(1, 0), (2, 0), (2, 1)]
    assert on_host(param).tolist() == [-1.5, -1.5]
    other = fastopt.SGD(xp.zeros(2), backend=backend)
    assert other.load(tmp_path / "run.safetensors").step_count == 1


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_one_that_raises_stops_what_comes_after_it(backend: str) -> None:
    param = np.zeros(1)
    opt = fastopt.SGD(param, 1.0, backend=backend)

    def fail(made: fastopt.Optimizer) -> None:
        raise KeyError("mine")

    opt.before_step.append(fail)
    with pytest.raises(KeyError):
        opt.step(np.ones(1))
    assert (opt.step_count, param.item()) == (0, 0)
    opt.before_step.clear()
    opt.after_step.append(fail)
    with pytest.raises(KeyError):
        opt.step(np.ones(1))
    assert (opt.step_count, param.item()) == (1, -1)
    opt.after_step[:] = [lambda made: pytest.fail("after a step that raised")]
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(2))
    opt.after_step.clear()
    opt.step(np.ones(1))
    assert param.item() == -2


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_step_from_within_a_hook_is_another_step(backend: str) -> None:
    """Between two steps everything may be done, so also that; it is the user's to end it."""
    param = np.zeros(1)
    opt = fastopt.SGD(param, 1.0, backend=backend)

    def again(made: fastopt.Optimizer) -> None:
        made.after_step.clear()
        made.step(np.ones(1))

    opt.after_step.append(again)
    opt.step(np.ones(1))
    assert (opt.step_count, param.item()) == (2, -2)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_wrappers_steps_call_them_too(backend: str) -> None:
    calls: list[int] = []
    opt = fastopt.SGD(np.zeros(1), 1.0, backend=backend)
    opt.after_step.append(lambda made: calls.append(made.step_count))
    fastopt.Lookahead(opt).step(np.ones(1))
    gathered = fastopt.Accumulator(opt, every=2)
    gathered.step(np.ones(1))
    assert calls == [1]
    gathered.step(np.ones(1))
    scaler = fastopt.LossScaler(2.0)
    scaler.step(opt, np.ones(1))
    assert calls == [1, 2, 3]


def test_only_lists_of_functions_are_there() -> None:
    opt = fastopt.SGD(np.zeros(1))
    own = [print]
    opt.before_step = own
    assert opt.before_step is own
    wrong: list[Any] = [print, (print,), [1], None]
    for hooks in wrong:
        with pytest.raises(TypeError, match="after_step is a list of functions"):
            opt.after_step = hooks
    assert opt.after_step == []


# Updates ----------------------------------------------------------------------------------------

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_adding_the_updates_makes_the_steps(place: tuple[Any, str], variant: Variant) -> None:
    xp, backend = place
    rng = np.random.default_rng(3)
    start = [5 + rng.standard_normal(shape) for shape in ((4, 3), (), (70,))]
    stepped, added = ({"a": [xp.array(v) for v in start]} for _ in range(2))
    opt = variant(stepped, backend=backend)
    other = variant(added, backend=backend)
    for _ in range(6):
        grads = {"a": [xp.asarray(rng.standard_normal(v.shape)) for v in start]}
        opt.step(grads)
        before = [on_host(value).copy() for value in added["a"]]
        updates = other.updates(grads)
        for value, kept, update in zip(added["a"], before, updates["a"], strict=True):
            assert on_host(value).tobytes() == kept.tobytes(), "parameters stay"
            assert update.dtype == value.dtype
            value[...] += update
    for one, two in zip(stepped["a"], added["a"], strict=True):
        assert on_host(one).tobytes() == on_host(two).tobytes()
    assert other.step_count == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_they_have_the_parameters_dtype(place: tuple[Any, str], dtype: Any) -> None:
    xp, backend = place
    param = xp.asarray(np.full(5, 2.0).astype(dtype))
    opt = fastopt.SGD(param, 0.25, backend=backend)
    update = opt.updates(xp.asarray(np.ones(5).astype(dtype)))
    assert update.dtype == param.dtype
    assert on_host(update).tolist() == [-0.25] * 5
    assert on_host(param).tolist() == [2.0] * 5


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_where_no_step_is_made_they_are_zeros(backend: str) -> None:
    params = [{"params": np.ones(2), "trainable": False}, {"params": {"a": np.ones(2)}}]
    opt = fastopt.Adam(params, 0.5, on_nonfinite="skip", max_grad_norm=1.0, backend=backend)
    first, second = opt.updates([np.ones(2), {"a": None}])
    assert [*first, *second["a"]] == [0] * 4
    _, second = opt.updates([np.ones(2), {"a": np.array([np.nan, 1])}])
    assert [*second["a"]] == [0, 0]
    assert opt.skipped_steps == 1
    with pytest.raises(ValueError, match="shape"):
        opt.updates([np.ones(2), {"a": np.ones(3)}])
    assert params[1]["params"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_hooks_are_called_and_bounds_hold(backend: str) -> None:
    param = np.array([0.25])
    opt = fastopt.SGD(param, 1.0, bounds=(0, 1), backend=backend)
    calls: list[str] = []
    opt.before_step.append(lambda made: calls.append("before"))
    opt.after_step.append(lambda made: calls.append("after"))
    assert opt.updates(np.ones(1), grad_scale=2.0).item() == -0.25
    assert calls == ["before", "after"]
    assert param.item() == 0.25
