"""LossScaler where a device decides: nothing waits, and the scale is NumPy's after every step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.backends.cupy import control
from fastopt.engine import tables
from fastopt.engine.policy import Outcome
from fastopt.wrappers.loss_scaler import POLL_EVERY
from helpers.cuda.device import no_waiting
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.planted import planted
from helpers.cuda.runs import DTYPES, differences, on_host, some_values
from helpers.cuda.scaling import POLICY, Wrap, remembered, scaled, scaled_replays
from helpers.cuda.training import Training, captured
from helpers.variants import CAPTURED, VARIANT_OF, VARIANTS, Variant

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
ADAM, SGD = VARIANT_OF["adam"], VARIANT_OF["sgd"]
FEW = ((5,), (70, 3))
BAD = (1, 2, 8, 9, 10, 30, 39)
HOPELESS: dict[str, Any] = {"init_scale": 1.0, "min_scale": 0.25, "max_skips": 3}


@pytest.fixture(autouse=True)
def short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tables written anew several times, and come to an end."""
    monkeypatch.setattr(tables, "MOST", 16)
    monkeypatch.setattr(tables, "CAPTURED", 64)


def unlike(training: Training, variant: Variant, cupy: Any, **more: Any) -> dict[str, int]:
    """Return how the device's end differs from that of NumPy; its steps wait for nothing."""
    here = scaled(training, variant, np, **more)
    return differences(here, scaled(training, variant, cupy, no_waiting, **more))


# The same bits, and nothing waits -----------------------------------------------------------------


@each_dtype
@each_variant
def test_scaled_steps_end_in_the_bits_of_numpy(cupy: Any, variant: Variant, dtype: Any) -> None:
    training = Training(dtypes=[dtype], bad=BAD)
    assert unlike(training, variant, cupy) == {}
    limits = {"max_grad_norm": 30.0, "lr": lambda t: 0.1 / (1 + t)}
    assert unlike(training, variant, cupy, **limits) == {}


@pytest.mark.parametrize("late", [0, 3, 10**9])
@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_a_hundred_scaled_steps_wait_for_nothing(
    cupy: Any, cuda: Cuda, policy: str, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "OUTCOMES", 7)
    training = Training(100, FEW, bad=range(1, 100, 7))
    options = {"on_nonfinite": policy, "capturable": policy == "skip"}
    with cuda.late(late):
        assert unlike(training, ADAM, cupy, **options) == {}


def test_reading_waits(cupy: Any, cuda: Cuda) -> None:
    refused = cupy.cuda.runtime.CUDARuntimeError
    opt, scaler = fastopt.SGD([cupy.zeros(3)]), fastopt.LossScaler()
    for read in (lambda: scaler.scale, scaler.state_dict, lambda: repr(scaler)):
        answer = scaler.step(opt, [cupy.zeros(3)])
        scaler.update()
        with pytest.raises(refused, match="cudaErrorNotPermitted"), no_waiting():
            read()
        with pytest.raises(refused, match="cudaErrorNotPermitted"), no_waiting():
            bool(answer)
        assert "the device knows" in repr(answer)
        read()
        with no_waiting():
            read()  # nothing has been stepped since


def test_a_scaled_iteration_is_two_launches_more_and_sends_nothing(cupy: Any, cuda: Cuda) -> None:
    opt, scaler = fastopt.SGD([cupy.zeros(3, np.float32)]), fastopt.LossScaler()
    grads = [cupy.zeros(3, np.float32)]
    scaler.step(opt, grads)
    scaler.update()
    copies = 0
    for _ in range(50):
        cuda.clear()
        scaler.step(opt, grads)
        scaler.update()
        names = [launch.name.removeprefix("fastopt_") for launch in cuda.launches]
        assert names == [
            "squares_to_decide",
            "decide",
            "sgd_from_table",
            "note",
            "rescale",
        ]
        assert [cuda.calls(name) for name in ("cudaMalloc", "cudaMemcpy")] == [0, 0]
        copies += cuda.calls("cudaMemcpyAsync")
    assert copies <= 50 // POLL_EVERY  # to the host


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("gggbn"), max_size=40),
    st.integers(1, 4),
    st.floats(1.1, 8),
    st.floats(0.1, 0.9),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_scale_after_every_step_is_numpys(
    cupy: Any,
    pattern: list[str],
    interval: int,
    growth: float,
    backoff: float,
    max_skips: int,
    reads: bool,
) -> None:
    # Who does not read hears of too many skips later; then nothing may be too many here.
    most = max_skips if reads else 1 + len(pattern)
    limits: dict[str, Any] = {"min_scale": 0.3, "max_scale": 50.0, "max_skips": most}
    values = {"g": 1.0, "b": math.inf, "n": math.nan}
    ends: list[Any] = []
    for xp in (np, cupy):
        scaler = fastopt.LossScaler(1.0, growth, backoff, interval, **limits)
        param = xp.asarray(np.zeros(2))
        opt = fastopt.SGD([param], lr=1.0)
        seen: list[Any] = []
        answers = []
        for kind in pattern:
            grad = scaler.multiply(xp.asarray(np.array([1.0, values[kind]])))
            try:
                answer = iterate(scaler, opt, [grad])
                if reads:
                    assert scaler.scale > 0.0  # raises on a device what the host has raised
                    seen.append(bool(answer))
                answers.append(answer)
            except FloatingPointError as error:
                seen.append(str(error))
            if reads:
                seen.append(sorted(remembered(scaler).items()))
        seen += map(bool, answers)
        ends.append([seen, remembered(scaler), on_host(param).tolist()])
    assert ends[0] == ends[1]


# The answer -------------------------------------------------------------------------------------


def test_an_answer_holds_for_its_own_step_whenever_it_is_asked(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "OUTCOMES", 4)
    opt, scaler = fastopt.SGD([cupy.zeros(2)]), fastopt.LossScaler()
    pattern = [number % 3 == 1 for number in range(20)]
    good, bad = cupy.zeros(2), cupy.asarray(np.array([0.0, np.nan]))
    answers = [iterate(scaler, opt, [bad if now else good]) for now in pattern]
    assert all(isinstance(answer, Outcome) for answer in answers)
    assert [bool(answer) for answer in answers] == [not now for now in pattern]
    assert answers[0] == True  # noqa: E712 - it is no bool, and is equal to one
    assert answers[1] == False  # noqa: E712
    assert answers[1] != answers[0]
    assert answers[0] != 1.5
    assert repr(answers[1]) == "<Outcome: skipped, grad_norm=nan>"
    if scaler.step(opt, [bad]):
        pytest.fail("a skipped step is no step")


# No end to skipping -------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 5])
def test_skipping_for_ever_ends_in_an_error_although_nobody_reads(
    cupy: Any, cuda: Cuda, late: int
) -> None:
    param = cupy.zeros(2)
    opt, scaler = fastopt.SGD([param], lr=1.0), fastopt.LossScaler(**HOPELESS)
    bad = cupy.asarray(np.array([0.0, np.nan]))

    said = "steps in a row were skipped at the smallest scale, 0.25"

    def steps() -> int:
        for made in range(3 * POLL_EVERY):
            try:
                scaler.step(opt, [bad])
                scaler.update()
            except FloatingPointError as raised:
                errors.append(str(raised))
                return made
        return 0

    errors: list[str] = []
    with no_waiting(), cuda.late(late):
        assert POLL_EVERY - 1 <= steps() <= POLL_EVERY + late
        assert POLL_EVERY - 1 <= steps() <= POLL_EVERY + late
    assert all(said in error for error in errors)
    scaler.step(opt, [cupy.zeros(2)])
    scaler.update()
    for _ in range(2):
        scaler.step(opt, [bad])
        scaler.update()
    for _ in range(3 * POLL_EVERY):
        scaler.step(opt, [cupy.zeros(2)])
        scaler.update()
    assert scaler.state_dict()["skips"] == 0
    assert opt.step_count == 1 + 3 * POLL_EVERY


@pytest.mark.parametrize("read", ["scale", "state_dict", "save", "another optimizer"])
def test_whatever_reads_raises_it_once(cupy: Any, read: str, tmp_path: Path) -> None:
    opt, scaler = fastopt.SGD([cupy.zeros(2)]), fastopt.LossScaler(**HOPELESS)
    bad = cupy.asarray(np.array([0.0, np.nan]))
    for _ in range(5):
        iterate(scaler, opt, [bad])
    assert "scale 0.25" in repr(scaler)  # which is for looking, and raises nothing
    other = fastopt.SGD([np.zeros(2)], backend="numpy")
    reads: dict[str, Any] = {
        "scale": lambda: scaler.scale,
        "state_dict": scaler.state_dict,
        "save": lambda: opt.save(tmp_path / "a", also={"scaler": scaler}),
        "another optimizer": lambda: iterate(scaler, other, [np.zeros(2)]),
    }
    with pytest.raises(FloatingPointError, match="3 steps in a row were skipped"):
        reads[read]()
    reads[read]()
    assert scaler.state_dict()["skips"] == (0 if read == "another optimizer" else 3)
    assert (opt.step_count, opt.skipped_steps) == (0, 5)


# In CUDA graphs ---------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("variant", CAPTURED, ids=str)
def test_replays_of_a_scaled_step_are_scaled_steps(cupy: Any, variant: Variant, dtype: Any) -> None:
    training = Training(50, dtypes=[dtype], bad=BAD)
    options = {"max_grad_norm": 20.0, "on_nonfinite": "skip"}
    here = scaled(training, variant, np, **options)
    assert differences(here, scaled_replays(training, variant, cupy, **options)) == {}
    some = range(0, 50, 3)
    assert differences(here, scaled_replays(training, variant, cupy, some, **options)) == {}


def iterate(scaler: fastopt.LossScaler, opt: Any, grads: Any) -> Any:
    """Make a step of one optimizer and let the scale follow; return the outcome."""
    outcome = scaler.step(opt, grads)
    scaler.update()
    return outcome


def test_a_captured_step_must_be_prepared(cupy: Any) -> None:
    grads = [cupy.zeros(2)]
    opt = fastopt.SGD([cupy.zeros(2)], capturable=True).warmup()
    scaler = fastopt.LossScaler()
    for step in (
        lambda: iterate(scaler, opt, grads),
        lambda: scaler.multiply(grads[0], out=grads[0]),
    ):
        with pytest.raises(RuntimeError, match=r"scaler.warmup\(opt\)"):
            captured(cupy, step)
    assert scaler.warmup(opt) is scaler
    with pytest.raises(RuntimeError, match=r"on_nonfinite='skip'.*'propagate'"):
        captured(cupy, lambda: iterate(scaler, opt, grads))
    opt.on_nonfinite = "skip"
    scaler.warmup(opt)
    graph, answer = captured(cupy, lambda: iterate(scaler, opt, grads))
    assert (opt.step_count, scaler.scale) == (0, 65536.0)
    graph.launch()
    assert opt.step_count == 1
    with pytest.raises(RuntimeError, match="was captured in a CUDA graph"):
        bool(answer)


def test_what_a_captured_scaler_cannot_do(cupy: Any) -> None:
    grads = [cupy.asarray(np.array([0.0, np.inf]))]
    opt = fastopt.SGD([cupy.zeros(2)], capturable=True, on_nonfinite="skip")
    scaler = fastopt.LossScaler().warmup(opt)
    saved = scaler.state_dict()
    for read in (lambda: scaler.scale, scaler.state_dict, lambda: scaler.load_state_dict(saved)):
        with pytest.raises(RuntimeError, match="while a stream is captured"):
            captured(cupy, read)
    graph, _ = captured(cupy, lambda: iterate(scaler, opt, grads))
    graph.launch()
    assert scaler.scale == 32768.0
    graph.launch()
    assert scaler.scale == 16384.0  # although the host has made no step
    there = np.zeros(2)
    iterate(scaler, fastopt.SGD([there], lr=1.0, backend="numpy"), [np.full(2, 16384.0)])
    assert there.tolist() == [-1.0, -1.0]  # elsewhere the scale is read
    opt.on_nonfinite = "propagate"
    with pytest.raises(RuntimeError, match="a LossScaler's step was captured"):
        opt.refresh()
    opt.on_nonfinite = "skip"
    opt.refresh()
    scaler.load_state_dict({**saved, "scale": 4.0, "good_steps": 1999})
    grads[0][...] = cupy.zeros(2)
    graph.launch()
    assert (scaler.scale, opt.step_count, opt.skipped_steps) == (8.0, 1, 2)


def test_replays_that_skip_for_ever_are_noticed_by_reading(cupy: Any) -> None:
    grads = [cupy.asarray(np.array([0.0, np.inf]))]
    opt = fastopt.SGD([cupy.zeros(2)], capturable=True, on_nonfinite="skip")
    scaler = fastopt.LossScaler(**HOPELESS).warmup(opt)
    graph, _ = captured(cupy, lambda: iterate(scaler, opt, grads))
    for _ in range(9):
        graph.launch()
    with pytest.raises(FloatingPointError, match="7 steps in a row"):
        _ = scaler.scale
    assert scaler.scale == 0.25
    graph.launch()
    with pytest.raises(FloatingPointError, match="8 steps in a row"):
        scaler.state_dict()


# From place to place ----------------------------------------------------------------------------


def test_a_scaler_is_saved_on_one_backend_and_goes_on_on_another(cupy: Any, tmp_path: Path) -> None:
    ends = []
    for places in ((np, np, np), (cupy, np, cupy), (np, cupy, np)):
        for leg, xp in enumerate(places):
            param = xp.asarray(np.zeros(3))
            opt, scaler = fastopt.Adam([param]), fastopt.LossScaler(**POLICY)
            if leg:
                opt.load(tmp_path / "a", also={"scaler": scaler})
            for step in range(5 + leg):
                grad = some_values(3, np.float64, 10 * leg + step)
                if step == 3:
                    grad[1] = np.nan
                scaler.step(opt, [scaler.multiply(xp.asarray(grad))])
                scaler.update()
            opt.save(tmp_path / "a", also={"scaler": scaler})
        ends.append(remembered(scaler) | {"param": on_host(param)})
    assert differences(ends[0], ends[1]) == {}
    assert differences(ends[0], ends[2]) == {}


def test_what_is_loaded_holds_and_what_was_asked_for_before_is_forgotten(cupy: Any) -> None:
    opt, scaler = fastopt.SGD([cupy.zeros(2)]), fastopt.LossScaler(**HOPELESS)
    saved = scaler.state_dict()
    bad = cupy.asarray(np.array([0.0, np.nan]))
    for _ in range(POLL_EVERY):
        scaler.step(opt, [bad])
        scaler.update()
    scaler.load_state_dict({**saved, "scale": 8.0, "good_steps": 7})
    with no_waiting():
        for _ in range(3):
            scaler.step(opt, [cupy.zeros(2)])
            scaler.update()
    assert (scaler.scale, scaler.state_dict()["good_steps"]) == (8.0, 10)


@pytest.mark.parametrize("kind", ["accumulator", "lookahead", "both"])
@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16, np.complex64])
def test_wrappers_end_in_the_bits_of_numpy(cupy: Any, kind: str, dtype: Any) -> None:
    around: dict[str, Wrap] = {
        "accumulator": lambda opt: fastopt.Accumulator(opt, 3),
        "lookahead": lambda opt: fastopt.Lookahead(opt, 2, 0.5),
        "both": lambda opt: fastopt.Lookahead(fastopt.Accumulator(opt, 2), 2, 0.25),
    }
    ends = []
    for xp in (np, cupy):
        param = xp.asarray(some_values(200, dtype, 0))
        opt, scaler = fastopt.Adam([param]), fastopt.LossScaler(**POLICY)
        wrapped = around[kind](opt)
        made = []
        for step in range(24):
            grad = some_values(200, dtype, 1 + step)
            grad[9] = np.inf if step in (4, 5, 13) else grad[9]
            made.append(bool(iterate(scaler, wrapped, [scaler.multiply(xp.asarray(grad))])))
        counts = np.array([opt.step_count, opt.skipped_steps, *made])
        ends.append(remembered(scaler) | {"param": on_host(param), "counts": counts})
    assert differences(*ends) == {}


def test_with_an_accumulator_nothing_waits(cupy: Any) -> None:
    def wrap(opt: Any) -> Any:
        return fastopt.Accumulator(opt, 2)

    assert unlike(Training(40, FEW, bad=BAD), ADAM, cupy, wrap=wrap) == {}


def test_optimizers_that_share_a_scaler_take_turns_as_on_numpy(cupy: Any) -> None:
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(np.zeros(3)), xp.asarray(np.zeros(4))]
        opts = [fastopt.Adam([param]) for param in params]
        scaler = fastopt.LossScaler(**POLICY)
        for step in range(30):
            for opt, param in zip(opts, params, strict=True):
                grad = np.full(param.shape, np.nan if step % 7 == len(param) else 1.0 + step)
                scaler.step(opt, [scaler.multiply(xp.asarray(grad))])
                scaler.update()
        ends.append(remembered(scaler) | {str(k): on_host(p) for k, p in enumerate(params)})
    assert differences(*ends) == {}


def test_one_iteration_of_several_optimizers_is_that_of_numpy(cupy: Any) -> None:
    """All divide by the scale of the iteration, which then changes once, and nothing waits."""
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(np.zeros(3)), xp.asarray(np.zeros(4)), xp.asarray(np.zeros(2))]
        opts: list[Any] = [fastopt.Adam([param]) for param in params]
        opts[2] = fastopt.Accumulator(opts[2], 2)
        scaler = fastopt.LossScaler(8.0, growth_interval=1, max_skips=99)
        grads = [
            [
                xp.asarray(np.full(p.shape, np.inf if step % 7 == n else 1.0))
                for n, p in enumerate(params)
            ]
            for step in range(20)
        ]
        scaler.warmup(opts[0])
        scales = []
        for step in range(20):
            with no_waiting():
                scaled = [scaler.multiply(grad) for grad in grads[step]]
                for opt, grad in zip(opts, scaled, strict=True):
                    scaler.step(opt, [grad])
            with pytest.raises(RuntimeError, match="stepped already"):
                scaler.step(opts[0], [grads[step][0]])
            if step % 2:
                scales.append(scaler.scale)
            scaler.update()
        counts = [opt.step_count for opt in opts] + [opt.skipped_steps for opt in opts]
        firsts = opts[1].state_dict()["state"]["0"]["m"]
        end = remembered(scaler) | {str(k): on_host(p) for k, p in enumerate(params)}
        ends.append(end | {"counts": np.array([*scales, *counts]), "m": firsts})
    assert differences(*ends) == {}


def test_both_optimizers_of_a_backward_pass_divide_by_its_scale(cupy: Any) -> None:
    params = [cupy.asarray(np.zeros(2, np.float32)) for _ in range(2)]
    opts = [fastopt.Adam([param]) for param in params]
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    for opt in opts:
        scaler.step(opt, [cupy.asarray(np.full(2, 8.0, np.float32))])
    scaler.update()
    assert scaler.scale == 16.0
    for opt in opts:
        np.testing.assert_allclose(opt.state_dict()["state"]["0"]["m"], [0.1, 0.1], rtol=1e-6)


def test_a_scaler_goes_from_device_to_device_and_to_the_host(cupy2: Any) -> None:
    here, host = cupy2.zeros(2), np.zeros(2)
    with cupy2.cuda.Device(1):
        far = cupy2.zeros(2)
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    opts = [fastopt.SGD([param], lr=1.0) for param in (here, far, host)]
    grads = [cupy2.zeros(2), None, np.zeros(2)]
    with cupy2.cuda.Device(1):
        grads[1] = cupy2.zeros(2)
    for opt, grad in zip(opts, grads, strict=True):
        assert scaler.step(opt, [grad])
        scaler.update()
    assert scaler.scale == 64.0
    product = scaler.multiply(grads[1])
    assert product.device == cupy2.cuda.Device(1)
    for opt, grad in zip(opts, grads, strict=True):  # all in one iteration
        assert scaler.step(opt, [grad])
    scaler.update()
    assert scaler.scale == 128.0
    grads[2][0] = np.inf
    made = [bool(scaler.step(opt, [grad])) for opt, grad in zip(opts, grads, strict=True)]
    scaler.update()
    assert (made, scaler.scale) == ([True, True, False], 64.0)


# The loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["on the host", "on the device"])
@pytest.mark.parametrize("dtype", [*DTYPES, np.float16, ml_dtypes.bfloat16, np.complex64])
def test_a_loss_is_multiplied_in_its_own_dtype(cupy: Any, dtype: Any, before: bool) -> None:
    scaler = fastopt.LossScaler(65536.0 * 1.1, growth_factor=1.7, growth_interval=1)
    if not before:
        scaler.step(fastopt.SGD([cupy.zeros(2)]), [cupy.zeros(2)])
        scaler.update()
        assert scaler.scale == 65536.0 * 1.1 * 1.7
    for shape in ((), (3, 5)):
        values = np.asarray(some_values(15, dtype, 3)[: math.prod(shape)].reshape(shape) / 1000)
        values = values.astype(dtype)
        there = cupy.asarray(values)
        factor = scaler.scale
        with no_waiting():
            product = scaler.multiply(there)
        assert product.dtype == dtype
        wide = (
            np.complex64 if dtype is np.complex64 else np.float64 if dtype is np.float64 else "f4"
        )
        right = (values.astype(wide) * np.dtype(wide).type(0).real.dtype.type(factor)).astype(dtype)
        assert product.get().tobytes() == right.tobytes()
        assert np.asarray(scaler.multiply(values)).tobytes() == right.tobytes()
        for loss in (there, values):
            out = loss.copy()
            assert scaler.multiply(loss, out=out) is out
            assert scaler.multiply(loss, out=loss) is loss
            assert on_host(out).tobytes() == on_host(loss).tobytes() == right.tobytes()


def test_numbers_are_multiplied_and_other_things_refused(cupy: Any) -> None:
    scaler = fastopt.LossScaler(8.0)
    assert scaler.multiply(0.5) == 4.0
    half = scaler.multiply(np.float16(0.5))
    assert (half, half.dtype) == (4.0, np.float16)
    for xp in (np, cupy):
        with pytest.raises(TypeError, match="number or an array of float32"):
            scaler.multiply(xp.asarray(np.arange(3)))
        for out in (xp.zeros(3), xp.zeros(2, np.float32), None if xp is np else np.zeros(2), [1]):
            if out is not None:
                with pytest.raises(ValueError, match="out must be an array like the loss"):
                    scaler.multiply(xp.zeros(2), out=out)
    with pytest.raises(TypeError, match="out is for arrays"):
        scaler.multiply(0.5, out=np.zeros(1))
    with pytest.raises(TypeError):
        scaler.multiply([0.5])
    with pytest.raises(TypeError, match=r"LossScaler.warmup takes an optimizer; got list"):
        scaler.warmup([])  # type: ignore[arg-type]


def test_a_step_that_is_refused_leaves_the_scale(cupy: Any) -> None:
    opt, scaler = fastopt.SGD([cupy.zeros(2)]), fastopt.LossScaler(growth_interval=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="must have the shape"):
            scaler.step(opt, [cupy.zeros(3)])
    assert scaler.scale == 65536.0
    assert scaler.step(opt, [cupy.zeros(2)])
    scaler.update()
    assert scaler.scale == 2 * 65536.0


# Faults that must not pass ------------------------------------------------------------------------

FAULTS = {
    "it falls after every step": ("if (skipped) {", "if (true) {"),
    "it grows a step late": ("good >= policy.growth_interval", "good > policy.growth_interval"),
    "it does not count anew": (
        "good = 0;\n        scale *= policy.backoff",
        "scale *= policy.backoff",
    ),
    "it falls below its limit": ("if (scale < policy.min_scale)", "if (false)"),
    "it grows beyond its limit": ("if (scale > policy.max_scale)", "if (false)"),
    "skips are not forgotten": (
        "} else if (made) {\n        skips = 0;",
        "} else if (made) {",
    ),
    "skips above the limit count": ("scale == policy.min_scale ?", "true ?"),
    "the inverse of the scale before": (
        "= inverse;\n    singles[SCALE]",
        "= 1.0 / 1024;\n    singles[SCALE]",
    ),
    "the inverse in single precision": ("inverse = 1.0 / scale", "inverse = 1.0f / (float)scale"),
    "the loss by the scale before": (
        "[SCALE] = static_cast<float>(scale)",
        "[0] = singles[0]",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_noticed(cupy: Any, fault: str) -> None:
    policy = {**POLICY, "min_scale": 200.0, "max_scale": 5000.0, "max_skips": 100}
    training = Training(40, FEW, bad=(1, 6, 7, 8, 9, 12, 13, 30))
    with planted(cupy, *FAULTS[fault]):
        assert any(
            unlike(Training(steps, training.shapes, bad=training.bad), SGD, cupy, policy=policy)
            for steps in (10, 11, 14, 40)
        )


def test_too_many_replays_change_no_scale(cupy: Any) -> None:
    grads = [cupy.zeros(2)]
    opt = fastopt.SGD([cupy.zeros(2)], lr=lambda t: 1.0, capturable=True, on_nonfinite="skip")
    scaler = fastopt.LossScaler(1.0, growth_interval=30).warmup(opt)
    graph, _ = captured(cupy, lambda: iterate(scaler, opt, grads))
    for _ in range(100):
        graph.launch()
    # The tables had 64 rows.
    assert (scaler.scale, scaler.state_dict()["good_steps"]) == (4.0, 4)
