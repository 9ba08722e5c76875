"""Steps that a device decides on: they wait for nothing, and end in the bits of NumPy's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.backends.cupy.launch import Kernels
from fastopt.engine import tables
from helpers.cuda.device import no_waiting
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.planted import planted
from helpers.cuda.runs import DTYPES, differences, on_host, some_values
from helpers.cuda.training import Training, train
from helpers.variants import ONE_PASS, VARIANT_OF, VARIANTS, Variant

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
ADAM, SGD, MOMENTUM = (VARIANT_OF[name] for name in ("adam", "sgd", "momentum"))
FEW = ((5,), (70, 3))
FETCHED = ["Device.synchronize", "memcpyAsync to pageable memory", "Stream.synchronize"]
TRANSFERS = ("cudaMalloc", "cudaMemcpy", "cudaMemcpyAsync")


@pytest.fixture(autouse=True)
def short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tables written anew several times."""
    monkeypatch.setattr(tables, "MOST", 16)


def falling(step: int) -> float:
    return 0.1 / (1 + step)


def unlike(training: Training, variant: Variant, cupy: Any, **options: Any) -> dict[str, int]:
    """Return how the device's end differs from that of NumPy."""
    return differences(
        train(training, variant, np, **options), train(training, variant, cupy, **options)
    )


# The same bits -------------------------------------------------------------------------------


@each_dtype
@each_variant
def test_clipped_and_skipped_steps_end_in_the_bits_of_numpy(
    cupy: Any, variant: Variant, dtype: Any
) -> None:
    training = Training(dtypes=[dtype], bad=(0, 3, 4, 5, 20, 39), scale=lambda step: 0.5 + step)
    options = {"max_grad_norm": 30.0, "on_nonfinite": "skip", "weight_decay": 0.01}
    assert unlike(training, variant, cupy, **options) == {}


@each_dtype
@each_variant
def test_so_they_do_with_schedules_and_gradients_that_are_missing_for_a_while(
    cupy: Any, variant: Variant, dtype: Any
) -> None:
    def missing(step: int, k: int) -> bool:
        return (k == 1 and 5 <= step < 12) or (k == 4 and step < 2) or (k == 0 and step >= 30)

    training = Training(dtypes=[dtype], missing=missing)
    options = {"lr": falling, "weight_decay": lambda t: 0.01 * t, "maximize": True}
    assert unlike(training, variant, cupy, max_grad_norm=2.0, **options) == {}


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e19, 1e200, 1e-170])
@pytest.mark.parametrize("limit", [1e-3, 1e300])
def test_buckets_of_two_dtypes_have_one_norm(cupy: Any, size: float, limit: float) -> None:
    # 1e200 overflows in float32: the norm is infinite, and the step is left out.
    shapes = [(n,) for n in (1, 63, 64, 65, 4095, 4096, 4097, 9000, 3)]
    training = Training(3, shapes, (np.float32, np.float64), size)
    options = {"max_grad_norm": limit, "on_nonfinite": "skip"}
    with np.errstate(over="ignore"):
        assert unlike(training, SGD, cupy, **options) == {}


@pytest.mark.parametrize("size", [1e-320, 1e-170, 1e-160, 1e-150, 1.0, 1e150, 1e200, 1e307])
def test_a_norm_in_float64_is_numpys_however_large_or_small(cupy: Any, size: float) -> None:
    training = Training(2, [(300,)] * 70, [np.float64], size)
    assert unlike(training, SGD, cupy, max_grad_norm=1.0) == {}


@pytest.mark.parametrize("limit", [1.0, np.inf])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_norm_that_is_no_number_spreads_as_with_numpy(
    cupy: Any, value: float, limit: float
) -> None:
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(np.ones(3)), xp.asarray(np.ones(2))]
        opt = fastopt.SGD(params, lr=1.0, max_grad_norm=limit)
        with np.errstate(invalid="ignore"):
            opt.step([xp.asarray(np.array([1.0, value, 2.0])), xp.asarray(np.ones(2))])
        ends.append([opt.grad_norm, opt.step_count, *(x for p in params for x in host(p))])
    np.testing.assert_array_equal(*ends)
    assert not np.isfinite(ends[1][0])
    others = ends[1][2], ends[1][4]  # elements whose own gradients are 1 and 2
    if limit == np.inf:  # it only measures
        assert others == (0.0, -1.0)
    else:
        np.testing.assert_array_equal(others, (np.nan if np.isnan(value) else 1.0,) * 2)


@each_dtype
def test_three_hundred_arrays_have_one_norm(cupy: Any, dtype: Any) -> None:
    training = Training(3, [(n % 90,) for n in range(300)], [dtype])
    assert unlike(training, ADAM, cupy, max_grad_norm=1.0) == {}


def test_strided_parameters_are_copied_there_and_back(cupy: Any) -> None:
    ends = []
    for xp in (np, cupy):
        memory = xp.asarray(np.arange(40.0))
        opt = fastopt.Adam([memory[::2]], lr=0.1, on_nonfinite="skip")
        for step in range(6):
            grad = np.full(20, np.nan if step == 2 else step + 1.0)
            opt.step([xp.asarray(grad)])
        ends.append({"memory": np.array(memory.get() if xp is cupy else memory)})
    assert differences(*ends) == {}
    assert (ends[0]["memory"][1::2] == np.arange(1.0, 40.0, 2.0)).all()


def test_what_is_set_between_steps_holds_from_the_next_step_on(cupy: Any) -> None:
    def change(opt: Any) -> None:
        opt.param_groups[0]["betas"] = (0.5, 0.6)
        opt.param_groups[0]["eps_inside_sqrt"] = True  # another rule
        opt.max_grad_norm = None
        opt.warmup()

    before = {k: lambda opt, k=k: setattr(opt, "lr", 0.1 / k) for k in range(1, 12)}
    before |= {
        15: lambda opt: setattr(opt, "max_grad_norm", 0.5),
        20: change,
        24: lambda opt: setattr(opt, "lr", falling),
    }
    training = Training(28, FEW, bad=(3, 16, 22, 26), before=before)
    assert unlike(training, ADAM, cupy, on_nonfinite="skip", max_grad_norm=1.0) == {}


def test_host_and_device_take_turns(cupy: Any) -> None:
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(param) for param in Training(shapes=FEW).params()]
        opt = fastopt.Adam(params, lr=falling)
        for step, policy in enumerate(["skip", "propagate", "skip", "raise", "propagate"] * 4):
            opt.on_nonfinite = policy
            opt.max_grad_norm = 1.0 if step % 3 else None
            bad = [step] if policy == "skip" and step % 4 == 2 else []
            opt.step([xp.asarray(grad) for grad in Training(20, FEW, bad=bad).grads(step)])
            # Read at times only, so that it is behind at others.
            if step % 7 == 0:
                assert opt.lr == falling(opt.step_count)
        norm = opt.grad_norm
        assert norm is None or np.isfinite(norm)
        ends.append({str(k): np.array(on) for k, on in enumerate(map(host, params))})
        ends[-1]["counts"] = np.array([opt.step_count, opt.skipped_steps])
    assert differences(*ends) == {}
    assert ends[0]["counts"].tolist() == [18, 2]


def host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


def test_a_state_dict_is_taken_over_in_the_middle(cupy: Any) -> None:
    def again(opt: Any) -> None:
        saved = opt.state_dict()
        saved["step_count"] += 5
        saved["state"]["0"]["step"] += 100
        opt.load_state_dict(saved)

    before = {7: again, 21: again}
    for bad in ((), (3, 20)):
        training = Training(30, FEW, bad=bad, before=before)
        assert unlike(training, ADAM, cupy, on_nonfinite="skip", lr=falling) == {}
    assert unlike(Training(30, FEW, before=before), ADAM, cupy, max_grad_norm=1.0) == {}


# Nothing waits -------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 1.0},
    "skipping": {"on_nonfinite": "skip"},
    "both": {"max_grad_norm": 1.0, "on_nonfinite": "skip"},
    "scheduled": {"on_nonfinite": "skip", "lr": falling, "weight_decay": falling},
    "capturable": {"capturable": True, "lr": falling},
    "all": {"capturable": True, "on_nonfinite": "skip", "max_grad_norm": 1.0},
}


@pytest.mark.parametrize("late", [0, 3, 10**9])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_hundred_steps_wait_for_nothing(
    cupy: Any, cuda: Cuda, options: str, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `late`: the device is so many looks behind the host; in the end, for ever.
    monkeypatch.setattr(tables, "CAPTURED", 64)
    training = Training(100, FEW, bad=range(1, 100, 7) if "skip" in str(OPTIONS[options]) else ())
    with cuda.late(late):
        assert unlike(training, ADAM, cupy, **OPTIONS[options]) == {}


def test_what_would_wait_is_noticed(cupy: Any, cuda: Cuda) -> None:
    refused = cupy.cuda.runtime.CUDARuntimeError
    opt = fastopt.Adam([cupy.zeros(3)], on_nonfinite="skip", max_grad_norm=1.0)
    opt.step([cupy.zeros(3)])
    for name in ("step_count", "grad_norm", "skipped_steps"):
        opt.step([cupy.zeros(3)])
        with pytest.raises(refused, match="cudaErrorNotPermitted"), no_waiting():
            getattr(opt, name)
        cuda.clear()
        getattr(opt, name)
        assert cuda.waits == FETCHED
        with no_waiting():
            assert (opt.step_count, opt.grad_norm, opt.skipped_steps)[0] > 0
    raising = fastopt.Adam([cupy.zeros(3)], on_nonfinite="raise")
    with pytest.raises(refused, match="cudaErrorNotPermitted"), no_waiting():
        raising.step([cupy.zeros(3)])


def test_a_copy_to_the_host_is_there_when_its_event_is_done(cupy: Any, cuda: Cuda) -> None:
    memory, event = cupy.arange(3), cupy.cuda.Event(disable_timing=True)
    pinned = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(24), 0)
    there = np.frombuffer(pinned, np.int64, 3)
    with cuda.late(1):
        memory.data.copy_to_host_async(pinned.ptr, 24)
        event.record()
    memory += 1  # after the copy
    assert [there.tolist(), event.done] == [[-1, -1, -1], False]
    assert [event.done, there.tolist()] == [True, [0, 1, 2]]


def test_without_skipping_only_the_norm_is_on_the_device(cupy: Any) -> None:
    opt = fastopt.Adam([cupy.zeros(3)], lr=falling, max_grad_norm=1.0)
    opt.step([cupy.asarray(np.array([3.0, 0.0, 4.0]))])
    with no_waiting():
        assert opt.step_count == 1
        assert opt.lr == falling(1)
        assert opt.skipped_steps == 0
    assert opt.grad_norm == 5.0
    opt.max_grad_norm = 2.0
    with no_waiting():
        assert opt.grad_norm is None


def test_while_steps_may_be_skipped_other_missing_gradients_wait_once(
    cupy: Any, cuda: Cuda
) -> None:
    params = [cupy.zeros(3), cupy.zeros(4)]
    opt = fastopt.Adam(params, on_nonfinite="skip")
    full = [cupy.zeros(3), cupy.zeros(4)]
    opt.step(full)
    for grads in ([full[0], None], full):
        cuda.clear()
        for _ in range(3):
            opt.step(grads)
        assert cuda.waits == FETCHED
    saved = opt.state_dict()["state"]
    assert [saved[name]["step"] for name in "01"] == [7, 4]


# Launches ------------------------------------------------------------------------------------


def launches(cuda: Cuda, opt: Any, grads: Any) -> list[str]:
    cuda.clear()
    with no_waiting():
        opt.step(grads)
    return [launch.name.removeprefix("fastopt_") for launch in cuda.launches]


@pytest.mark.parametrize("variant", ONE_PASS, ids=str)
def test_a_step_is_squares_a_decision_and_an_update(
    cupy: Any, cuda: Cuda, variant: Variant
) -> None:
    for dtype, squares in ((np.float32, "squares"), (np.float64, "all_squares")):
        grads = [cupy.zeros(n, dtype) for n in (3, 1024, 5000, 1)]
        opt = variant([cupy.zeros(g.shape, dtype) for g in grads], max_grad_norm=1.0).warmup()
        rule = opt.param_groups and opt._state.buckets[0].rule.name
        for _ in range(20):
            names = [f"{squares}_to_decide", "decide", f"{rule}_from_table"]
            assert launches(cuda, opt, grads) == names


def test_each_bucket_adds_squares_and_an_update_and_nothing_else(cupy: Any, cuda: Cuda) -> None:
    sizes = [5] * 300
    groups = [
        {"params": [cupy.zeros(n, np.float32) for n in sizes]},
        {"params": [cupy.zeros(4, np.float64)], "lr": 0.5},
    ]
    grads = [[cupy.zeros(p.shape, p.dtype) for p in group["params"]] for group in groups]
    both = ["all_squares_to_decide"] * 2 + ["decide"] + ["sgd_from_table"] * 2
    opt = fastopt.SGD(groups, max_grad_norm=1.0)
    assert launches(cuda, opt, grads) == both
    assert launches(cuda, opt, [grads[0], [None]]) == both[:-1]
    counted = fastopt.SGD(groups, capturable=True)
    assert launches(cuda, counted, grads) == ["decide"] + ["sgd_from_table"] * 2
    by_value = fastopt.SGD(groups)
    assert launches(cuda, by_value, grads) == ["sgd"] * 2


def test_nothing_is_sent_while_nothing_changes(cupy: Any, cuda: Cuda) -> None:
    grads = [cupy.asarray(np.ones(3, np.float32))]
    opt = fastopt.SGD([cupy.zeros(3, np.float32)], max_grad_norm=1.0, on_nonfinite="skip")
    opt.step(grads)
    # Its rows are the same in every eighth step, so eight are enough for ever.
    cuda.clear()
    for _ in range(50):
        opt.step(grads)
    assert [cuda.calls(name) for name in TRANSFERS] == [0, 0, 0]
    assert opt.step_count == 51


def test_a_device_that_never_answers_costs_little_memory(cupy: Any, cuda: Cuda) -> None:
    opt = fastopt.Adam([cupy.zeros(3)], lr=falling, on_nonfinite="skip")
    with cuda.late(10**9):
        for _ in range(300):
            opt.step([cupy.zeros(3)])
    assert opt._engine.device is not None
    outgrown = opt._engine._control._outgrown  # type: ignore[attr-defined]  # CuPy's
    assert len(outgrown) <= 7  # each twice as large as the one before


def test_a_schedule_of_one_group_that_turns_later_is_followed(cupy: Any) -> None:
    # For long it says what it will say in the end, and the other group's rows never change.
    def dips(step: int) -> float:
        return 0.5 if 40 <= step < 50 else 1.0

    ends = []
    for xp in (np, cupy):
        groups = [{"params": [xp.asarray(np.zeros(3))], "lr": lr} for lr in (0.25, dips)]
        opt = fastopt.SGD(groups, max_grad_norm=1e9, on_nonfinite="skip")
        for _ in range(60):
            opt.step([[xp.asarray(np.ones(3))]] * 2)
        ends.append([host(group["params"][0]) for group in groups])
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[1], [[-15.0] * 3, [-55.0] * 3])


# Schedules are asked ahead --------------------------------------------------------------------


SLOW: dict[str, tuple[Any, int]] = {
    "adam": (lambda p: fastopt.Adam(p, lr=0.01, betas=(0.9, 0.9999), max_grad_norm=1e9), 104_000),
    "adam, late": (lambda p: fastopt.Adam(p, lr=0.01, max_grad_norm=1e9), 13_900),
    "rmsprop": (
        lambda p: fastopt.RMSprop(p, lr=0.01, beta=0.9999, bias_correction=True, max_grad_norm=1e9),
        104_000,
    ),
    "adagrad": (lambda p: fastopt.Adagrad(p, lr=0.01, lr_decay=1e-9, max_grad_norm=1e9), 0),
}
"""With how many steps have been made before: from there on float32 scalars change once in 50 steps,
late by no more than some units in the last place altogether."""


@pytest.mark.parametrize("name", SLOW)
def test_scalars_that_change_very_slowly_are_followed(cupy: Any, name: str) -> None:
    make, begin = SLOW[name]
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(np.zeros(40, np.float32)), xp.asarray(np.zeros((3, 3), np.float32))]
        opt = make(params)
        saved = opt.state_dict()
        saved["step_count"] = begin
        for entry in saved["state"].values():
            entry["step"] = begin
        opt.load_state_dict(saved)
        rng = np.random.default_rng(0)
        end = {}
        for step in range(130):
            opt.step([xp.asarray(rng.standard_normal(p.shape).astype(np.float32)) for p in params])
            if step % 10 == 9:
                end |= {f"{step} {k}": on_host(param) for k, param in enumerate(params)}
        ends.append(end)
    assert differences(*ends) == {}


@pytest.mark.parametrize(
    ("make", "for_ever"),
    [
        (lambda p: fastopt.SGD(p, max_grad_norm=1.0), True),
        (lambda p: fastopt.Adagrad(p, max_grad_norm=1.0), True),
        (lambda p: fastopt.Adagrad(p, lr_decay=1e-9, max_grad_norm=1.0), False),
        (lambda p: fastopt.Adagrad(p, lr_decay=1e-15, max_grad_norm=1.0), False),
    ],
)
def test_rows_come_again_if_they_never_change(cupy: Any, make: Any, for_ever: bool) -> None:
    # 1e-15 is nothing beside 1 for millions of steps, and then it is.
    opt = make([cupy.asarray(np.ones(5, np.float32))])
    for _ in range(20):
        opt.step([cupy.asarray(np.ones(5, np.float32))])
    assert opt._engine._tables.has(20, least=2**50) == for_ever


@pytest.mark.parametrize("skip", [True, False])
def test_a_schedule_that_ends_raises_when_its_end_has_come(cupy: Any, skip: bool) -> None:
    rates = [0.1, 0.2, 0.3, 0.4, 0.5]
    options: dict[str, Any] = {"on_nonfinite": "skip"} if skip else {"max_grad_norm": 1.0}
    ends = []
    for xp in (np, cupy):
        param = xp.asarray(np.zeros(3))
        opt = fastopt.SGD([param], lr=lambda t: rates[t], **options)
        made = 0
        for step in range(12):
            bad = skip and step % 3 == 1
            grad = xp.asarray(np.full(3, np.nan if bad else 1.0))
            if made < 5:
                opt.step([grad])
                made += not bad
            else:
                with pytest.raises(IndexError):
                    opt.step([xp.asarray(np.ones(3))])
                assert opt.step_count == 5
        ends.append({"param": np.array(host(param)), "n": np.array(opt.skipped_steps)})
    assert differences(*ends) == {}


@pytest.mark.parametrize("options", [{"max_grad_norm": 1.0}, {"on_nonfinite": "skip"}])
def test_a_schedule_with_a_memory_is_followed(cupy: Any, options: dict[str, Any]) -> None:
    ends = []
    for xp in (np, cupy):
        rate = [1.0]
        param = xp.asarray(np.zeros(3))
        opt = fastopt.SGD([param], lr=lambda t, rate=rate: rate[0], **options)
        for step in range(40):
            if step % 9 == 4:
                rate[0] /= 2
            opt.step([xp.asarray(np.full(3, np.nan if step % 5 == 0 else 0.1))])
            if "max_grad_norm" in options and step % 5 == 0:
                param[...] = 0.0
        ends.append({"param": np.array(host(param))})
    assert differences(*ends) == {}


def test_a_bad_value_of_a_schedule_changes_nothing(cupy: Any) -> None:
    param = cupy.zeros(3)
    opt = fastopt.SGD([param], lr=lambda t: -1.0 if t == 3 else 0.5, max_grad_norm=100.0)
    for _ in range(3):
        opt.step([cupy.asarray(np.ones(3))])
    for _ in range(2):
        with pytest.raises(ValueError, match="lr at step 3 must be"):
            opt.step([cupy.asarray(np.ones(3))])
    assert opt.step_count == 3
    assert param.get().tolist() == [-1.5] * 3
    opt.lr = 1.0
    opt.step([cupy.asarray(np.ones(3))])
    assert param.get().tolist() == [-2.5] * 3


# A scale on the device ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
def test_a_scale_on_the_device_is_read_there(cupy: Any, kind: Any, options: dict[str, Any]) -> None:
    training = Training(20, FEW, bad=(3,) if "skip" in str(options) else ())
    training.scale = lambda step: 2.0**-step if step % 2 else -3.0
    at_host = train(training, ADAM, np, **options)
    on_device = train(training, ADAM, cupy, lambda x: cupy.asarray(np.array(x, kind)), **options)
    assert differences(at_host, on_device) == {}


def test_numbers_and_arrays_take_turns_as_scales(cupy: Any) -> None:
    training = Training(20, FEW, scale=lambda step: 1.0 + step)
    mixed = train(training, ADAM, cupy, lambda x: x if x % 3 else cupy.asarray(np.array(x)))
    assert differences(train(training, ADAM, np), mixed) == {}


def test_a_scale_that_is_not_finite_skips_the_step(cupy: Any) -> None:
    param = cupy.asarray(np.ones(3))
    opt = fastopt.SGD([param], lr=1.0, on_nonfinite="skip")
    for bad in (np.inf, np.nan):
        opt.step([cupy.zeros(3)], grad_scale=cupy.asarray(np.array(bad)))
    assert opt.skipped_steps == 2
    assert opt.step_count == 0
    assert param.get().tolist() == [1.0] * 3


def test_other_scales_are_refused(cupy: Any) -> None:
    opt = fastopt.SGD([cupy.zeros(3)], max_grad_norm=1.0)
    grads = [cupy.zeros(3)]
    for scale, message in (
        (cupy.zeros(1), r"shape \(\)"),
        (cupy.asarray(np.array(1)), "float32 or float64"),
        ("2", "must be a number"),
    ):
        with pytest.raises(TypeError, match=message):
            opt.step(grads, grad_scale=scale)
    with pytest.raises(ValueError, match="must be a number"):
        opt.step(grads, grad_scale=np.inf)
    there = cupy.asarray(np.array(2.0))
    for other in (
        fastopt.SGD([np.zeros(3)], backend="numpy"),
        fastopt.SGD([cupy.zeros(3)], on_nonfinite="raise"),
    ):
        with pytest.raises(TypeError, match="here it must be a number"):
            other.step([None], grad_scale=there)
    assert opt.step_count == 0


# Several devices, and the host -----------------------------------------------------------------


def test_a_device_decides_for_its_own_parameters(cupy2: Any) -> None:
    params, grads = [cupy2.zeros(3)], [cupy2.asarray(np.ones(3))]
    with cupy2.cuda.Device(1):
        params.append(cupy2.zeros(4))
        grads.append(cupy2.asarray(np.array([1.0, np.nan, 1.0, 1.0])))
    for options in ({}, {"capturable": True}, {"on_nonfinite": "skip"}):
        with pytest.raises(fastopt.BackendMismatchError, match="Make one optimizer for each"):
            fastopt.SGD(params, **options)
    alone = fastopt.SGD(params[1:], lr=1.0, on_nonfinite="skip")
    alone.step(grads[1:])
    assert (alone.step_count, alone.skipped_steps) == (0, 1)
    with cupy2.cuda.Device(1):
        scale = cupy2.asarray(np.array(1.0))
    alone.step(grads[1:], grad_scale=scale)
    with pytest.raises(fastopt.BackendMismatchError, match="device 1"):
        alone.step(grads[1:], grad_scale=cupy2.asarray(np.array(1.0)))


def test_an_optimizer_without_elements_counts(cupy: Any) -> None:
    opt = fastopt.Adam([cupy.zeros((0, 3))], max_grad_norm=1.0, on_nonfinite="skip").warmup()
    for grad in (cupy.zeros((0, 3)), None):
        opt.step([grad])
    assert (opt.step_count, opt.skipped_steps, opt.grad_norm) == (2, 0, 0.0)


def test_warmup_changes_nothing(cupy: Any) -> None:
    training = Training(
        10, FEW, bad=(2,), before={0: lambda o: o.warmup(), 5: lambda o: o.warmup()}
    )
    assert unlike(training, ADAM, cupy, on_nonfinite="skip", max_grad_norm=1.0) == {}
    assert unlike(training, MOMENTUM, cupy, on_nonfinite="skip", capturable=True) == {}


def test_a_step_that_is_refused_leaves_the_counts_alone(cupy: Any) -> None:
    params = [cupy.zeros(3), cupy.zeros(4)]
    opt = fastopt.Adam(params, on_nonfinite="skip")
    good = [cupy.asarray(np.ones(3)), cupy.asarray(np.ones(4))]
    opt.step(good)
    with pytest.raises(ValueError, match="shape"):
        opt.step([None, cupy.zeros(3)])
    opt.step(good)
    opt.step([good[0], None])
    saved = opt.state_dict()
    assert (saved["step_count"], saved["state"]["0"]["step"], saved["state"]["1"]["step"]) == (
        3,
        3,
        2,
    )


# Faults that must not pass ---------------------------------------------------------------------

FAULTS = {
    "elements that are counted twice": ("k = whole + mine * WIDTH", "k = mine * WIDTH"),
    "the sum of another tile": ("(shared[group], mine)", "(shared[0], mine)"),
    "another order of the lanes": ("k < count; k += LANES", "k < count; k += 1"),
    "halves in another order": ("+ width]", "^ 1]"),
    "a sum that leaves out the last": ("k < count", "k < count - 1"),
    "no first barrier": ("int mine) {\n    __syncthreads();", "int mine) {"),
    "no barrier between halves": ("+ width];\n        __syncthreads();", "+ width];"),
    "a skipped step counts": ("if (row >= 0) counts", "if (true) counts"),
    "nothing is skipped": ("bool go = !skips ||", "bool go = true ||"),
    "the row of the step before": ("= row_of(steps,", "= row_of(steps - 1,"),
    "rows after the end": ("beyond % period", "(beyond + 1) % period"),
    "no update asks for the row": ("if (counts[0] >= 0)", "if (true)"),
    "the scale is left out": ("row[0] * scale[0]", "row[0]"),
    "a limit that is never kept": ("scale *= factor;", "scale *= 1;"),
    "another eps of the limit": ("norm + CLIP_EPS", "norm + CLIP_EPS / 10"),
    "a sign of the scale in the norm": ("fabs(scale);", "scale;"),
    "large gradients as small ones": ("large ? 1 : 2", "large ? 2 : 1"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_noticed(cupy: Any, fault: str) -> None:
    many = [*((3 + n % 2,) for n in range(150)), (200,), (70,)]
    trainings = [
        Training(20, many, [np.float64], size, bad=(2, 7), scale=lambda step: -1.0)
        for size in (1.0, 1e-275, 1e200)  # as usual; flushed; squared too large for float64
    ]
    options: dict[str, Any] = {"on_nonfinite": "skip", "max_grad_norm": 1.0}
    with planted(cupy, *FAULTS[fault]):
        try:
            unequal: Any = any(unlike(one, MOMENTUM, cupy, **options) for one in trainings)
        except RuntimeError as error:  # threads that wait for ever; steps without a row
            unequal = error
    assert unequal
    assert "g++" not in str(unequal)  # the text compiles


# Together with what else there is ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.complex64])
@pytest.mark.parametrize("capturable", [True, False])
def test_groups_frozen_groups_and_every_dtype_end_in_the_bits_of_numpy(
    cupy: Any, dtype: Any, capturable: bool
) -> None:
    ends = []
    for xp in (np, cupy):
        params = {
            layer: {
                name: xp.asarray(some_values(size, dtype, size))
                for name, size in (("w", 700), ("b", 3))
            }
            for layer in ("one", "two")
        }
        given = fastopt.groups(params, {"**/b": {"weight_decay": 0.0}, "two.*": {"lr": 0.01}})
        more: dict[str, Any] = {"max_grad_norm": 40.0, "on_nonfinite": "skip"}
        opt = fastopt.AdamW(given, lr=lambda t: 0.1 / (1 + t), capturable=capturable, **more)
        for step in range(20):
            grads: dict[str, Any] = {
                layer: {
                    name: xp.asarray(some_values(param.size, dtype, 100 * step + param.size))
                    for name, param in tree.items()
                }
                for layer, tree in params.items()
            }
            if step % 7 == 3:
                grads["one"]["w"][5] = np.inf
            if step % 5 == 4:
                grads["two"]["b"] = None
            opt.param_groups[1]["trainable"] = step % 6 > 1
            opt.step(grads)
        arrays = [on_host(param) for tree in params.values() for param in tree.values()]
        end: dict[str, Any] = {str(k): array for k, array in enumerate(arrays)}
        state = opt.state_dict()
        end |= {f"{n}.{s}": np.asarray(x) for n, e in state["state"].items() for s, x in e.items()}
        ends.append(end | {"norm": np.array(opt.grad_norm), "n": np.array(opt.step_count)})
        assert opt.skipped_steps == 3
    assert differences(*ends) == {}


# Limits of the norm that are set between steps ---------------------------------------------------


def tightened(steps: int) -> dict[int, Any]:
    """Return what sets another limit before every step."""
    return {k: lambda opt, k=k: setattr(opt, "max_grad_norm", 30.0 / (1 + k)) for k in range(steps)}


@each_dtype
@each_variant
def test_a_limit_that_is_set_for_every_step_ends_in_the_bits_of_numpy(
    cupy: Any, variant: Variant, dtype: Any
) -> None:
    more: dict[str, Any] = {"dtypes": [dtype], "before": tightened(40)}
    training = Training(bad=(0, 3, 4, 20, 39), scale=lambda step: 0.5 + step, **more)
    assert unlike(training, variant, cupy, on_nonfinite="skip", lr=falling) == {}
    # Without skipping the host counts for itself.
    assert unlike(Training(**more), variant, cupy) == {}


@pytest.mark.parametrize("late", [0, 3, 10**9])
def test_limits_take_turns_and_wait_for_nothing(cupy: Any, cuda: Cuda, late: int) -> None:
    limits = {3: 0.5, 9: 20.0, 30: 0.1, 31: 0.2, 32: 0.3, 70: None, 75: np.inf, 77: 0.01}
    before = {k: lambda opt, v=v: setattr(opt, "max_grad_norm", v) for k, v in limits.items()}
    training = Training(100, FEW, bad=range(1, 100, 7), before=before)
    options = {"on_nonfinite": "skip", "max_grad_norm": 30.0}
    with cuda.late(late):
        assert unlike(training, ADAM, cupy, **options) == {}


@pytest.mark.parametrize("size", [1.0, 1e200])  # 1e200: added up again, of smaller numbers
@pytest.mark.parametrize("arrays", [3, 1_024, 1_100])
def test_many_threads_decide_with_the_same_bits(
    cupy: Any, cuda: Cuda, arrays: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from 2 048 tiles on, by 1 024 sums at a time."""
    monkeypatch.setattr("fastopt.backends.cupy.control.MANY_TILES", 1)
    monkeypatch.setattr("fastopt.backends.cupy.control_source.FETCHED", 1_024)
    monkeypatch.setattr("fastopt.backends.cupy.backend._KERNELS", Kernels(cupy))
    training = Training(3, [(1 + n % 3,) for n in range(arrays)], [np.float64], size)
    assert unlike(training, MOMENTUM, cupy, max_grad_norm=1.0) == {}
    decisions = [launch for launch in cuda.launches if launch.name == "fastopt_decide"]
    assert {launch.block for launch in decisions} == {1_024}
