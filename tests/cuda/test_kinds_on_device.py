"""Rules with sums, rules on whole arrays and fragments end on a device where they end on NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.engine.whole import decides
from fastopt.optimizers.base import Optimizer
from helpers.cuda.device import no_waiting
from helpers.cuda.runs import differences
from helpers.cuda.training import Training, end_of, replayed, train
from helpers.variant import Variant
from helpers.variants import OF_MATRICES

LATE = Training(steps=20, missing=lambda step, k: (step * (k + 1)) % 5 == 3)
NEVER = Training(steps=12, missing=lambda step, k: k == 1)
NONE = Training(steps=12, missing=lambda step, k: step % 4 == 2)
BAD = Training(steps=20, bad=(3, 4, 11))
AROUND: tuple[dict[str, Any], ...] = (
    {},
    {"cautious": True},
    {"mask_zero": True},
    {"clip_value": 0.5, "clip_each": 1.0, "weight_decay": 0.1},
    {"cautious": True, "clip_each": 0.5, "mask_zero": True},
    {"cautious": True, "mask_zero": True, "weight_decay": 0.1, "bounds": (-1.0, 1.0)},
)
RULES: dict[str, Any] = {
    "lamb": lambda params, **o: fastopt.LAMB(params, lr=0.05, **o),
    "prodigy": lambda params, **o: fastopt.Prodigy(params, **o),
    "schedule_free": lambda params, **o: fastopt.ScheduleFreeAdamW(params, lr=0.05, **o),
    "adam": lambda params, **o: fastopt.Adam(params, lr=0.05, **o),
    "sgd": lambda params, **o: fastopt.SGD(params, lr=0.05, **o),
}


def as_numpy(training: Training, rule: Any, cupy: Any, **options: Any) -> dict[str, int]:
    here = train(training, rule, np, **options)
    there = train(training, rule, cupy, **options)
    return differences(here, there)


@pytest.mark.parametrize("options", AROUND, ids=str)
@pytest.mark.parametrize("training", [LATE, NEVER, NONE], ids=["late", "never", "none"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_without_waiting_the_bits_are_numpys(
    cupy: Any, rule: Any, training: Training, options: dict[str, Any]
) -> None:
    assert not as_numpy(training, rule, cupy, capturable=True, **options)


DECAYS: dict[str, Any] = {"weight_decay": 0.5, "cautious_decay": True, "l1": 0.1}
OTHERS: tuple[dict[str, Any], ...] = ({"cautious": True, "mask_zero": True}, {"lr_scale": 0.5})


@pytest.mark.parametrize("more", OTHERS, ids=str)
@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_decays_beside_a_schedule_have_numpys_bits(
    cupy: Any, name: str, more: dict[str, Any]
) -> None:
    def rule(params: Any, **options: Any) -> Optimizer:
        optimizer: Optimizer = getattr(fastopt, name)(params, lr=lambda t: 0.1 / (t + 1), **options)
        return optimizer

    assert not as_numpy(LATE, rule, cupy, capturable=True, **DECAYS, **more)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("state", [None, "bfloat16", "int8", "float64"])
@pytest.mark.parametrize("rule", ["lamb", "prodigy", "schedule_free"])
def test_whatever_the_storage(cupy: Any, rule: str, state: str | None, dtype: Any) -> None:
    if dtype is np.float64 and state in ("bfloat16", "int8"):
        state = None
    training = Training(steps=10, dtypes=[dtype], missing=LATE.missing)
    options = {"state_dtype": state, "cautious": True, "max_grad_norm": 1.0}
    assert not as_numpy(training, RULES[rule], cupy, **options)


@pytest.mark.parametrize("rule", ["lamb", "prodigy", "schedule_free"])
def test_steps_that_are_skipped_leave_memory_alone(cupy: Any, rule: str) -> None:
    assert not as_numpy(BAD, RULES[rule], cupy, on_nonfinite="skip", cautious=True)


@pytest.mark.parametrize("rule", ["lamb", "prodigy", "schedule_free"])
def test_host_and_device_take_turns(cupy: Any, rule: str) -> None:
    def to(policy: str) -> Any:
        return lambda opt: setattr(opt, "on_nonfinite", policy)

    before = {4: to("skip"), 8: to("propagate"), 11: to("skip"), 14: Optimizer.state_dict}
    training = Training(steps=18, before=before)
    here = train(training, RULES[rule], np, cautious=True)
    params = [cupy.asarray(param) for param in training.params()]
    opt = RULES[rule](params, cautious=True)
    for step in range(training.steps):
        if step in (2, 6, 12):  # those wait
            policy, opt.on_nonfinite = opt.on_nonfinite, "raise"
            opt.step([cupy.asarray(grad) for grad in training.grads(step)])
            opt.on_nonfinite = policy
            continue
        if step in before:
            before[step](opt)
        opt.step([cupy.asarray(grad) for grad in training.grads(step)])
    assert not differences(here, end_of(opt, params))


@pytest.mark.parametrize("options", AROUND, ids=str)
@pytest.mark.parametrize("rule", ["lamb", "prodigy", "schedule_free", "adam"])
def test_replays_of_a_captured_step_are_steps(
    cupy: Any, rule: str, options: dict[str, Any]
) -> None:
    training = Training(steps=30, bad=(5, 6), before={9: lambda opt: setattr(opt, "lr", 0.02)})
    options = options | {"on_nonfinite": "skip", "max_grad_norm": 2.0}
    here = train(training, RULES[rule], np, **options)
    assert not differences(here, replayed(training, RULES[rule], cupy, **options))


def test_memory_is_saved_and_goes_on(cupy: Any) -> None:
    training = Training(steps=16)
    here = train(training, RULES["prodigy"], np, on_nonfinite="skip")

    def reload(opt: Optimizer) -> None:
        saved = opt.state_dict()
        opt.load_state_dict(saved)

    again = Training(steps=16, before={5: reload, 9: reload})
    assert not differences(here, train(again, RULES["prodigy"], cupy, on_nonfinite="skip"))


MATRICES = Training(steps=12, shapes=((6, 4), (3, 9), (6, 4), (0, 4), (1, 1)))


def muon(params: Any, **options: Any) -> fastopt.Muon:
    return fastopt.Muon(params, lr=0.05, **options)


WHOLE = [
    variant
    for variant in OF_MATRICES
    if variant.optimizer is not fastopt.Muon and not decides(variant.rule)
]
DECIDED = [variant for variant in OF_MATRICES if decides(variant.rule)]
ANY = Training(steps=6, shapes=((6, 4), (3, 9), (6, 4), (0, 4), (5,), (), (2, 3, 4)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 1.0, "on_nonfinite": "skip"},
        {"bounds": (-1.0, 1.0), "reset_at_bounds": True, "capturable": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("variant", WHOLE, ids=str)
def test_state_of_any_shape_without_waiting(
    cupy: Any, variant: Variant, dtype: Any, options: dict[str, Any]
) -> None:
    training = Training(
        steps=ANY.steps,
        shapes=ANY.shapes if variant.shape == (1,) else MATRICES.shapes,
        dtypes=[dtype],
        bad=(4,) if "on_nonfinite" in options else (),
        missing=lambda step, k: "on_nonfinite" not in options and step % 5 == k,
    )
    ends = [train(training, variant, xp, **options) for xp in (np, cupy)]
    close(*ends, dtype)


@pytest.mark.parametrize("variant", DECIDED, ids=str)
@pytest.mark.parametrize("vectors", [True, False])
def test_what_the_host_decides_is_the_same_on_a_device(
    cupy: Any, variant: Variant, vectors: bool
) -> None:
    shapes: Any = ((5,), (), (5,))
    if not vectors:
        shapes = ((4, 4), (3, 4), (2, 3, 4), (5,), ())
    training = Training(steps=6, shapes=shapes)
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(param) for param in training.params()]
        opt = variant(params, max_grad_norm=1.0, on_nonfinite="skip")
        for step in range(training.steps):
            grads = [xp.asarray(grad) for grad in training.grads(step)]
            assert opt.step(grads)
            assert not opt.step([xp.full_like(grad, np.nan) for grad in grads])
        ends.append(end_of(opt, params))
    close(*ends, np.float32)


def test_what_the_host_decides_takes_no_scale_from_the_device(cupy: Any) -> None:
    param = cupy.ones(3)
    opt = fastopt.SOAP(param)
    with pytest.raises(TypeError, match="grad_scale"):
        opt.step(cupy.ones(3), grad_scale=cupy.asarray(2.0))
    opt.step(cupy.ones(3), grad_scale=2.0)
    assert opt.step_count == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 1.0, "on_nonfinite": "skip"},
        {"bounds": (-1.0, 1.0), "reset_at_bounds": True, "capturable": True},
        {"state_dtype": "float64", "capturable": True},
        {"clip_value": 0.8, "clip_each": 1.5, "capturable": True},
        {"nesterov": False, "adjust_lr": "match_rms_adamw", "on_nonfinite": "skip"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_whole_arrays_without_waiting(cupy: Any, dtype: Any, options: dict[str, Any]) -> None:
    training = Training(
        steps=12,
        shapes=MATRICES.shapes,
        dtypes=[dtype],
        bad=(4,) if "on_nonfinite" in options else (),
        missing=lambda step, k: "on_nonfinite" not in options and step % 5 == k,
    )
    close(train(training, muon, np, **options), train(training, muon, cupy, **options), dtype)


def test_whole_arrays_are_clipped_where_the_host_decides(cupy: Any) -> None:
    options = {"clip_value": 0.8, "clip_each": 1.5, "on_nonfinite": "raise"}
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(param) for param in MATRICES.params()]
        opt = muon(params, **options)
        for step in range(4):
            opt.step([xp.asarray(grad) for grad in MATRICES.grads(step)])
        ends.append(end_of(opt, params))
    close(*ends, np.float32)


def close(here: dict[str, Any], there: dict[str, Any], dtype: Any) -> None:
    """The products of matrices are sums in another order on each side."""
    assert here.keys() == there.keys()
    least = {np.float16: 2e-3, np.float32: 2e-5, np.float64: 1e-12}[dtype]
    for name, values in here.items():
        np.testing.assert_allclose(
            np.asarray(there[name], float), np.asarray(values, float), rtol=least, atol=least
        )


def test_whole_arrays_are_not_captured(cupy: Any) -> None:
    params = [cupy.asarray(param) for param in MATRICES.params()]
    grads = [cupy.asarray(grad) for grad in MATRICES.grads(0)]
    opt = muon(params, capturable=True).warmup()
    opt.step(grads)
    before = end_of(opt, params)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"muon cannot be captured.*cuBLAS"):
                opt.step(grads)
        finally:
            stream.end_capture()
    assert not differences(before, end_of(opt, params))
    with no_waiting():
        opt.step(grads)
    assert opt.step_count == 2


def test_what_fails_in_a_computation_counts_nothing(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(steps=1, shapes=MATRICES.shapes)
    params = [cupy.asarray(param) for param in training.params()]
    opt = muon(params, on_nonfinite="skip")
    opt.step([cupy.asarray(grad) for grad in training.grads(0)])
    before = end_of(opt, params)

    def full(parts: Any) -> None:
        raise MemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(cupy, "stack", full)
        with pytest.raises(MemoryError), no_waiting():
            opt.step([cupy.asarray(grad) for grad in training.grads(1)])
    assert not differences(before, end_of(opt, params))
