"""Whatever hyperparameter is scheduled: PyTorch's results, checked values, asked once per step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastopt
from fastopt.core.hyperparameters import Schedulable
from fastopt.engine.step import Scalars
from fastopt.schedules import ReduceLROnPlateau, linear, one_cycle
from helpers.cuda.runs import on_host
from helpers.schedule_specs import RECORDED, made
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)

SCHEDULED = {
    "momentum": (fastopt.SGD, {"momentum": 0.5}),
    "dampening": (fastopt.SGD, {"momentum": 0.5}),
    "beta": (fastopt.Momentum, {}),
    "rmsprop_momentum": (fastopt.RMSprop, {"momentum": 0.5}),
    "rmsprop_beta": (fastopt.RMSprop, {}),
    "momentum_corrected_beta": (fastopt.Momentum, {"bias_correction": True}),
    "rho": (fastopt.Adadelta, {}),
    "lr": (fastopt.Adam, {}),
    "weight_decay": (fastopt.AdamW, {}),
    "eps": (fastopt.Adam, {}),
    "alpha": (fastopt.AdEMAMix, {}),
    "eps_root": (fastopt.AdaBelief, {}),
}
each_scheduled = pytest.mark.parametrize("case", SCHEDULED)


def of(case: str, schedule: Any, params: Any, **more: Any) -> Any:
    """Return an optimizer of which one hyperparameter is a schedule."""
    make, options = SCHEDULED[case]
    return make(params, **{**options, **more, name_of(case): schedule})


def whole_state(opt: Any) -> dict[str, Any]:
    return {k: v for k, v in opt.state_dict().items() if k not in ("groups", "described")}


def name_of(case: str) -> str:
    return case.removeprefix("rmsprop_").removeprefix("momentum_corrected_")


@each_backend
@pytest.mark.parametrize("record", RECORDED["runs"], ids=lambda r: r["optimizer"])
def test_a_run_under_schedules_equals_pytorchs(record: dict[str, Any], backend: str) -> None:
    options = {name: made(value) for name, value in record["options"].items()}
    limit = options.pop("max_grad_norm", None)  # a number, which is set for every step
    param = np.ones(3)
    opt = getattr(fastopt, record["optimizer"])(param, **options, backend=backend)
    for step, (grad, expected) in enumerate(zip(record["grads"], record["params"], strict=True)):
        opt.max_grad_norm = limit if limit is None else limit(step)
        opt.step(np.array(grad))
        np.testing.assert_allclose(param, expected, rtol=1e-11)


@each_backend
@each_scheduled
def test_a_schedule_is_the_same_as_setting_its_values(case: str, backend: str) -> None:
    name, values = name_of(case), [0.5, 0.25, 0.75, 0.125]
    shape = {"a": np.ones(3), "b": [np.ones((2, 2), np.float32)]}
    params = [shape, {"a": np.ones(3), "b": [np.ones((2, 2), np.float32)]}]
    opts = [
        of(case, first, tree, backend=backend)
        for first, tree in zip((values.__getitem__, 0.5), params, strict=True)
    ]
    for step, value in enumerate(values):
        opts[1].param_groups[0][name] = value
        for opt in opts:
            opt.step({"a": np.full(3, 1.0 + step), "b": [np.ones((2, 2), np.float32)]})
        np.testing.assert_array_equal(params[0]["a"], params[1]["a"])
        np.testing.assert_array_equal(params[0]["b"][0], params[1]["b"][0])


@each_backend
@each_scheduled
def test_a_schedule_is_asked_once_for_every_step(case: str, backend: str) -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5

    params = [np.ones(2), np.ones(3, np.float32)]  # two buckets
    opt = of(case, schedule, params, backend=backend)
    opt.step([np.ones(2), np.ones(3, np.float32)])
    opt.step([None, np.ones(3, np.float32)])
    opt.step([np.ones(2, np.float32), np.ones(3)])
    with pytest.raises(ValueError, match="shape"):
        opt.step([np.ones(2), np.ones(4)])
    opt.step([np.ones(2), np.ones(3, np.float32)])
    assert [step for step in asked if step < 3] == [0, 1, 2]
    assert set(asked[3:]) == {3}
    assert len(asked[3:]) <= 2  # the step that failed may have asked


BAD = [(-1.0, ValueError), (math.nan, ValueError), (None, TypeError), (True, TypeError)]
BAD += [("0.5", TypeError), (np.ones(2), TypeError), (lambda t: 0.5, TypeError)]
BAD += [(1j, TypeError), (np.array("0.5"), TypeError), (np.array(True), TypeError)]


@each_backend
@each_scheduled
def test_a_bad_value_of_a_schedule_is_refused_with_name_and_step(case: str, backend: str) -> None:
    name = name_of(case)
    bad = [(value, kind) for value, kind in BAD if name != "dampening" or repr(value) != "-1.0"]
    bad += [(1.0, ValueError)] if name in ("beta", "rho") else []
    bad += [(math.inf, ValueError)]
    values: list[Any] = [0.5]
    param = np.ones(2)
    opt = of(case, lambda step: values[-1], param, backend=backend)
    opt.step(np.ones(2))
    before, state = param.copy(), opt.state_dict()
    for value, kind in bad:
        values.append(value)
        with pytest.raises(kind, match=f"{name} at step 1 must be a number .*got"):
            opt.step(np.ones(2))
        np.testing.assert_array_equal(param, before)
        np.testing.assert_equal(opt.state_dict(), state)
    values.append(0.25)
    opt.step(np.ones(2))
    assert opt.step_count == 2


def test_a_bad_value_names_the_group() -> None:
    groups = [{"params": np.ones(1)}, {"params": np.ones(1), "momentum": lambda t: -1}]
    opt = fastopt.SGD(groups, momentum=0.5, backend="numpy")
    with pytest.raises(ValueError, match=r"SGD, params\[1\]: momentum at step 0 must be"):
        opt.step([np.ones(1)] * 2)


@each_variant
def test_without_a_schedule_nothing_is_worked_out_twice(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    work_out = Scalars.work_out_constants

    def counted(self: Any, options: Any) -> None:
        calls.append(1)
        work_out(self, options)

    monkeypatch.setattr(Scalars, "work_out_constants", counted)
    opt = variant(np.ones(2), backend="numpy")
    for _ in range(5):
        opt.step(np.ones(2))
    assert len(calls) == 1
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(2))
    by_rate = "l1" in variant.options or type(opt)._decay(opt.param_groups[0]) == "parameter"
    assert len(calls) == (2 if by_rate else 1)
    opt.param_groups[0]["weight_decay"] = 0.125
    calls.clear()
    opt.step(np.ones(2))
    assert len(calls) == 1


# Of momentum -------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("make", [fastopt.SGD, fastopt.RMSprop])
def test_a_momentum_that_is_a_schedule_has_a_buffer_at_any_value(make: Any, backend: str) -> None:
    param, opt_values = np.ones(2), [0.0, 0.5, 0.0]
    opt = make(param, 1.0, momentum=opt_values.__getitem__, backend=backend)
    for _ in opt_values:
        opt.step(np.ones(2))
    assert "buf" in opt.state_dict()["state"]["params"]
    if make is fastopt.SGD:
        np.testing.assert_array_equal(param, 1.0 - (1.0 + 1.5 + 1.0))
    opt.param_groups[0]["momentum"] = 0.25  # the same state
    with pytest.raises(ValueError, match="needs other state"):
        opt.param_groups[0]["momentum"] = 0.0


def test_no_schedule_can_be_set_where_there_is_no_buffer() -> None:
    opt = fastopt.SGD(np.ones(1))
    with pytest.raises(ValueError, match="needs other state"):
        opt.param_groups[0]["momentum"] = linear(0.9, 0.5, 1.0, 10)


def test_nesterov_takes_a_scheduled_momentum_and_no_dampening() -> None:
    fastopt.SGD(np.ones(1), momentum=linear(0.9, 0.5, 1.0, 10), nesterov=True)
    with pytest.raises(ValueError, match=r"nesterov=True needs .* dampening=linear"):
        fastopt.SGD(np.ones(1), momentum=0.9, dampening=linear(0.9, 0, 1, 9), nesterov=True)


# Of betas ----------------------------------------------------------------------------------------

OF_BETAS: list[tuple[Any, dict[str, Any]]] = [
    (fastopt.Adam, {}),
    (fastopt.Adam, {"amsgrad": True, "bias_correction": False}),
    (fastopt.Adam, {"eps_inside_sqrt": True}),
    (fastopt.AdamW, {"cautious": True}),
    (fastopt.AdamW, {"mask_zero": True}),
    (fastopt.LAMB, {"weight_decay": 0.1}),
    (fastopt.Prodigy, {"beta3": 0.99, "d0": 1e-2}),
]
each_of_betas = pytest.mark.parametrize(("make", "options"), OF_BETAS)
BETA1, BETA2 = linear(0.95, 1.0, 0.5, 30), linear(0.999, 0.5, 1.0, 30)


@pytest.mark.parametrize("record", RECORDED["cycles"], ids=lambda r: r["optimizer"])
def test_a_run_under_one_cycle_equals_pytorchs(
    record: dict[str, Any], place: tuple[Any, str]
) -> None:
    """PyTorch's OneCycleLR cycles the momentum of SGD and Adam's beta1 the other way."""
    xp, backend = place
    given = record["options"]
    shape = {
        "total_steps": given["total_steps"],
        "pct_start": given["pct_start"],
        "anneal": {"cos": "cosine", "linear": "linear"}[given["anneal_strategy"]],
        "three_phase": given["three_phase"],
    }
    lr = one_cycle(given["max_lr"], final_div_factor=given["final_div_factor"], **shape)
    share = one_cycle(0.85, div_factor=0.85 / 0.95, final_div_factor=1.0, **shape)
    momentum = {"momentum": share} if record["optimizer"] == "SGD" else {"betas": (share, 0.999)}
    param = xp.ones(3)
    make: Any = getattr(fastopt, record["optimizer"])
    opt = make(param, lr, **momentum, backend=backend)
    for grad, expected in zip(record["grads"], record["params"], strict=True):
        opt.step(xp.asarray(grad))
        np.testing.assert_allclose(on_host(param), expected, rtol=1e-11)


def test_the_mixture_of_ademamix_follows_the_schedules_of_its_paper(
    place: tuple[Any, str],
) -> None:
    """They are written in its docstring; alpha rises in a line, and the half-life of beta3."""
    xp, backend = place
    way = 8

    def alpha(t: int) -> float:
        return min((t + 1) / way, 1.0) * 5.0

    def beta3(t: int) -> float:
        a, b = math.log(0.9), math.log(0.9999)
        return math.exp(a * b / (b + min((t + 1) / way, 1.0) * (a - b)))

    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta)

    lives = [half_life(beta3(t)) for t in range(12)]
    risen = half_life(0.9) + (half_life(0.9999) - half_life(0.9)) / way
    np.testing.assert_allclose(lives[0], risen, rtol=1e-9)
    np.testing.assert_allclose(np.diff(lives)[7:], 0, atol=1e-9)
    params = [xp.ones(40, "float32") for _ in range(2)]
    told = fastopt.AdEMAMix(
        params[0], betas=(0.9, 0.999, beta3), alpha=alpha, lr=0.01, backend=backend
    )
    by_hand = fastopt.AdEMAMix(params[1], lr=0.01, backend=backend)
    assert told.state_dict()["groups"][0]["betas"] == (0.9, 0.999, None)
    rng = np.random.default_rng(5)
    for step in range(12):
        by_hand.param_groups[0]["betas"] = (0.9, 0.999, beta3(step))
        by_hand.param_groups[0]["alpha"] = alpha(step)
        grad = xp.asarray(rng.standard_normal(40).astype("float32"))
        for opt in (told, by_hand):
            opt.step(grad)
        np.testing.assert_array_equal(*map(on_host, params))
    np.testing.assert_equal(whole_state(told), whole_state(by_hand))


@each_of_betas
@pytest.mark.parametrize("policy", [{}, {"on_nonfinite": "skip", "max_grad_norm": 1.0}], ids=len)
@pytest.mark.parametrize("foreseeable", [True, False])
def test_betas_that_are_functions_are_those_that_are_set(
    make: Any, options: Any, policy: Any, foreseeable: bool, place: tuple[Any, str]
) -> None:
    """Schedules of this package are asked ahead, a function of the user's own in every step."""
    xp, backend = place
    first, second = (BETA1, BETA2) if foreseeable else (lambda t: BETA1(t), lambda t: BETA2(t))
    params = [{"a": xp.ones(40, "float32"), "b": xp.ones((3, 4))} for _ in range(2)]
    told = make(params[0], betas=(first, second), **options, **policy, backend=backend)
    by_hand = make(params[1], **options, **policy, backend=backend)
    assert told.param_groups[0].foreseeable is foreseeable
    rng = np.random.default_rng(3)
    for step in range(12):
        grads: Any = {
            "a": xp.asarray(rng.standard_normal(40).astype("float32")),
            "b": None if step == 5 else xp.asarray(rng.standard_normal((3, 4))),
        }
        by_hand.param_groups[0]["betas"] = (BETA1(step), BETA2(step))
        for opt in (told, by_hand):
            opt.step(grads)
        for name in "ab":
            np.testing.assert_array_equal(*(on_host(tree[name]) for tree in params))
    np.testing.assert_equal(whole_state(told), whole_state(by_hand))


@each_of_betas
@pytest.mark.parametrize("entry", [0, 1])
@pytest.mark.parametrize("bad", [1.0, -0.1, math.nan, "0.9", None, True, 1j])
def test_a_beta_that_is_no_good_is_an_error_in_its_step(
    make: Any, options: Any, entry: int, bad: Any, place: tuple[Any, str]
) -> None:
    xp, backend = place
    values: list[Any] = [0.5, 0.5]
    betas: list[Any] = [0.9, 0.99]
    betas[entry] = lambda step: values[step] if step < len(values) else bad
    param = xp.ones(5)
    opt = make(param, betas=betas, **options, backend=backend)
    for _ in range(2):
        opt.step(xp.ones(5))
    before, state = on_host(param).copy(), opt.state_dict()
    kind = ValueError if type(bad) is float else TypeError
    with pytest.raises(kind, match=rf"{make.__name__}: betas\[{entry}\] at step 2 must be .*got"):
        opt.step(xp.ones(5))
    np.testing.assert_array_equal(on_host(param), before)
    np.testing.assert_equal(opt.state_dict(), state)
    values.append(np.float32(0.25))
    opt.step(xp.ones(5))
    assert opt.step_count == 3


@each_backend
def test_groups_have_betas_of_their_own(backend: str) -> None:
    groups = [
        {"params": np.ones(3), "betas": (BETA1, 0.99)},
        {"params": np.ones(3), "betas": (0.5, lambda step: 0.25)},
        {"params": np.ones(3)},
    ]
    opt = fastopt.Adam(groups, backend=backend)
    alone = []
    for group in groups:
        own = {k: v for k, v in group.items() if k != "params"}
        alone.append(fastopt.Adam(np.ones(3), **own, backend=backend))  # type: ignore[arg-type]
    for step in range(5):
        opt.step([np.full(3, 1.0 + step)] * 3)
        for number, one in enumerate(alone):
            one.step(np.full(3, 1.0 + step))
            np.testing.assert_array_equal(groups[number]["params"], one.params)
    bad = [{"params": np.ones(1)}, {"params": np.ones(1), "betas": (lambda step: 2.0, 0.9)}]
    with pytest.raises(ValueError, match=r"Adam, params\[1\]: betas\[0\] at step 0 must be"):
        fastopt.Adam(bad, backend=backend).step([np.ones(1)] * 2)


@pytest.mark.parametrize("saved_by", ["state_dict", "file"])
@each_backend
def test_of_betas_a_checkpoint_has_those_that_are_numbers(
    backend: str, saved_by: str, tmp_path: Path
) -> None:
    def over(opt: Any, other: Any) -> None:
        if saved_by == "file":
            opt.save(tmp_path / "a.safetensors", params=False)
            other.load(tmp_path / "a.safetensors")
        else:
            other.load_state_dict(opt.state_dict())

    params = [np.ones(4) for _ in range(3)]
    opt = fastopt.Adam(params[0], betas=(BETA1, 0.75), backend=backend)
    straight = fastopt.Adam(params[1], betas=(BETA1, 0.75), backend=backend)
    for step in range(3):
        for one in (opt, straight):
            one.step(np.full(4, 1.0 + step))
    assert opt.state_dict()["groups"][0]["betas"] == (None, 0.75)
    params[2][...] = params[0]
    resumed = fastopt.Adam(params[2], betas=(BETA1, 0.999), backend=backend)
    over(opt, resumed)
    assert resumed.param_groups[0]["betas"] == (BETA1, 0.75)
    for step in range(3, 6):
        for one in (resumed, straight):
            one.step(np.full(4, 1.0 + step))
    np.testing.assert_array_equal(params[1], params[2])
    number = fastopt.Adam(np.ones(4), betas=(0.5, BETA2), backend=backend)
    over(opt, number)  # what was saved of a function changes no number, and a function stays
    assert number.param_groups[0]["betas"] == (0.5, BETA2)
    for broken in ([None], (None, 1.0), (None, 0.9, 0.9), "ab", (None, "x"), 0.5):
        state = opt.state_dict()
        state["groups"][0]["betas"] = broken
        with pytest.raises(fastopt.CheckpointError, match="betas"):
            resumed.load_state_dict(state)
        assert resumed.param_groups[0]["betas"] == (BETA1, 0.75)


def test_a_beta_with_a_memory_is_saved_too() -> None:
    def made() -> tuple[Any, Any]:
        falling = ReduceLROnPlateau(0.5, patience=0)
        return falling, fastopt.Adam(np.ones(2), betas=(falling, 0.9))

    falling, opt = made()
    for loss in (1.0, 2.0):
        falling.report(loss)
    assert falling(0) == pytest.approx(0.05)
    other, resumed = made()
    resumed.load_state_dict(opt.state_dict())
    assert other(0) == falling(0)
    plain = fastopt.Adam(np.ones(2))
    with pytest.raises(fastopt.CheckpointError, match=r"groups\[0\]: betas\[0\]: 1 schedules"):
        plain.load_state_dict(opt.state_dict())
    report = plain.load_state_dict(opt.state_dict(), strict=False)
    assert "betas[0]" in str(report)
    assert plain.param_groups[0]["betas"] == (0.9, 0.9)


def test_prodigy_estimates_by_one_beta3() -> None:
    text = "give beta3 a number"
    with pytest.raises(ValueError, match=rf"Prodigy: beta3=None .*{text}.*got betas\[1\]=linear"):
        fastopt.Prodigy(np.ones(1), betas=(0.9, BETA2))
    opt = fastopt.Prodigy(np.ones(1), betas=(BETA1, 0.99))
    with pytest.raises(ValueError, match=text):
        opt.param_groups[0]["betas"] = (0.9, BETA2)
    opt.param_groups[0].update(beta3=math.sqrt(0.999), betas=(0.9, BETA2))


@pytest.mark.parametrize("nesterov", [True, False])
def test_muons_momentum_that_is_a_function_is_the_one_that_is_set(
    nesterov: bool, place: tuple[Any, str]
) -> None:
    xp, backend = place
    rise = linear(0.95, 0.9, 1.0, 8)
    params = [xp.ones((3, 4)) for _ in range(2)]
    told, by_hand = (
        fastopt.Muon(param, momentum=momentum, nesterov=nesterov, backend=backend)
        for param, momentum in zip(params, (rise, 0.9), strict=True)
    )
    rng = np.random.default_rng(3)
    for step in range(10):
        by_hand.param_groups[0]["momentum"] = rise(step)
        grad = xp.asarray(rng.standard_normal((3, 4)))
        for opt in (told, by_hand):
            opt.step(grad)
        np.testing.assert_array_equal(*map(on_host, params))


@each_backend
def test_members_have_betas_of_their_own_by_functions(backend: str) -> None:
    shares = np.array([0.0, 0.5, 0.9])
    together = np.ones((3, 4))
    opt = fastopt.Adam(
        together, betas=(lambda step: shares / (1 + step), 0.9), members=3, backend=backend
    )
    apart = np.ones((3, 4))
    opts = [
        fastopt.Adam(
            apart[k], betas=(lambda step, k=k: shares[k] / (1 + step), 0.9), backend=backend
        )
        for k in range(3)
    ]
    for step in range(4):
        opt.step(np.full((3, 4), 1.0 + step))
        for one in opts:
            one.step(np.full(4, 1.0 + step))
    np.testing.assert_array_equal(together, apart)


# Of eps ------------------------------------------------------------------------------------------

WITH_EPS = [v for v in VARIANTS if isinstance(v.optimizer._checks.get("eps"), Schedulable)]
each_with_eps = pytest.mark.parametrize("variant", WITH_EPS, ids=str)
DECIDED: dict[str, dict[str, Any]] = {
    "plain": {},
    "decided_on_device": {"on_nonfinite": "skip", "max_grad_norm": 1e30},
}
decided = pytest.mark.parametrize("options", DECIDED.values(), ids=DECIDED)


def two_eps(step: int) -> float:
    return 1e-3 if step < 5 else 1e-12


def falls(step: int) -> float:
    """Return an eps that moves steps in every digit, for gradients around 1."""
    return float(0.5 / (1 + step))


def some_grads(dtype: Any, steps: int = 20) -> list[Any]:
    """Return gradients that are so small after a few steps that averages are flushed."""
    rng = np.random.default_rng(5)
    grads = rng.standard_normal((steps, 64)).astype(dtype)
    grads[3:, ::2] *= 1e-25
    return list(grads)


@decided
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_with_eps
def test_an_eps_that_changes_is_two_runs_one_after_the_other(
    variant: Variant, dtype: Any, options: Any, place: tuple[Any, str]
) -> None:
    xp, backend = place
    params = [xp.asarray(np.ones(64, dtype)) for _ in range(2)]
    grads = some_grads(dtype)
    opt = variant(params[0], **{**options, "eps": two_eps}, backend=backend)
    first = variant(params[1], **{**options, "eps": 1e-3}, backend=backend)
    second = variant(params[1], **{**options, "eps": 1e-12}, backend=backend)
    for step, grad in enumerate(grads):
        if step == 5:
            saved = first.state_dict()
            saved["groups"][0]["eps"] = 1e-12
            second.load_state_dict(saved)
        opt.step(xp.asarray(grad))
        (first if step < 5 else second).step(xp.asarray(grad))
        np.testing.assert_array_equal(*map(on_host, params))
    np.testing.assert_equal(whole_state(opt), whole_state(second))


def adam(grads: list[Any], inside: bool) -> Any:
    p, m, v = np.ones(64), np.zeros(64), np.zeros(64)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        mean, square, eps = m / (1 - 0.9**t), v / (1 - 0.999**t), falls(t - 1)
        p = p - 0.1 * mean / (np.sqrt(square + eps) if inside else np.sqrt(square) + eps)
    return p


def rmsprop(grads: list[Any], inside: bool) -> Any:
    p, v = np.ones(64), np.zeros(64)
    for t, g in enumerate(grads):
        v = 0.9 * v + 0.1 * g * g
        p = p - 0.1 * g / (np.sqrt(v + falls(t)) if inside else np.sqrt(v) + falls(t))
    return p


def adagrad(grads: list[Any], inside: bool) -> Any:
    p, s = np.ones(64), np.zeros(64)
    for t, g in enumerate(grads):
        s = s + g * g
        p = p - 0.1 * g / (np.sqrt(s) + falls(t))
    return p


def adadelta(grads: list[Any], inside: bool) -> Any:
    p, u, v = np.ones(64), np.zeros(64), np.zeros(64)
    for t, g in enumerate(grads):
        v = 0.9 * v + 0.1 * g * g
        d = np.sqrt(u + falls(t)) / np.sqrt(v + falls(t)) * g
        u = 0.9 * u + 0.1 * d * d
        p = p - 0.1 * d
    return p


FORMULAS: dict[str, tuple[Any, Callable[[list[Any], bool], Any], bool]] = {
    "adam": (fastopt.Adam, adam, False),
    "adam_inside": (fastopt.Adam, adam, True),
    "rmsprop": (fastopt.RMSprop, rmsprop, False),
    "rmsprop_inside": (fastopt.RMSprop, rmsprop, True),
    "adagrad": (fastopt.Adagrad, adagrad, False),
    "adadelta": (fastopt.Adadelta, adadelta, False),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_eps_that_is_a_function_is_that_of_the_formula(
    name: str, place: tuple[Any, str]
) -> None:
    xp, backend = place
    make, formula, inside = FORMULAS[name]
    more = {"eps_inside_sqrt": True} if inside else {}
    grads = list(np.random.default_rng(3).standard_normal((12, 64)))
    param = xp.asarray(np.ones(64))
    opt = make(param, 0.1, eps=falls, **more, backend=backend)
    for grad in grads:
        opt.step(xp.asarray(grad))
    np.testing.assert_allclose(on_host(param), formula(grads, inside), rtol=1e-11)


@decided
@pytest.mark.parametrize("bad", [0.0, -0.0, 1e-36, 5e-324, 1e39])
@each_with_eps
def test_an_eps_that_is_no_good_is_an_error_in_its_step(
    variant: Variant, bad: float, options: Any, place: tuple[Any, str]
) -> None:
    xp, backend = place
    params = {"a": xp.asarray(np.ones(3)), "b": xp.asarray(np.ones(70, np.float32))}
    grads = {name: xp.asarray(np.full(x.shape, 0.5, x.dtype)) for name, x in params.items()}
    values = [1e-8]
    opt = variant(params, **{**options, "eps": lambda step: values[-1]}, backend=backend)
    for _ in range(3):
        opt.step(grads)
    values.append(bad)
    before, state = {k: on_host(x) for k, x in params.items()}, opt.state_dict()
    said = r"eps at step 3 must be (at least .*Let its function|a number in \(0, inf\))"
    if bad == 1e39:
        said = r"at step 3: eps\S* comes to 1e\+39, .*Choose others"
    with pytest.raises(ValueError, match=f"{type(opt).__name__}: {said}"):
        opt.step(grads)
    for key, x in params.items():
        np.testing.assert_array_equal(on_host(x), before[key])
    np.testing.assert_equal(opt.state_dict(), state)
    assert (opt.step_count, opt.skipped_steps) == (3, 0)
    values.append(1e-6)
    opt.step(grads)
    assert opt.step_count == 4


def test_an_eps_of_a_step_fits_the_arithmetic_and_names_the_group() -> None:
    groups = [{"params": np.ones(1)}, {"params": np.ones(1, np.float32), "eps": lambda t: 1e-36}]
    opt = fastopt.Adam(groups, backend="numpy")
    with pytest.raises(
        ValueError, match=r"Adam, params\[1\]: eps at step 0 must be at least 2e-31"
    ):
        opt.step([np.ones(1), np.ones(1, np.float32)])
    wide = fastopt.Adam(np.ones(1, np.float32), eps=lambda t: 1e-36, state_dtype="float64")
    wide.step(np.ones(1, np.float32))
    small = fastopt.Adam(np.ones(1), eps=lambda t: 1e-302)
    with pytest.raises(ValueError, match=r"at least 3.7e-301, .* in float64"):
        small.step(np.ones(1))


@pytest.mark.parametrize("variant", [v for v in WITH_EPS if v.name != "adadelta"], ids=str)
def test_an_eps_of_0_that_is_a_number_is_the_guard(variant: Variant) -> None:
    param = np.ones(3)
    opt = variant(param, eps=0.0)
    opt.step(np.array([0.0, 1.0, -1.0]))
    assert np.isfinite(param).all()


@pytest.mark.parametrize("inside", [False, True])
def test_eps_goes_from_a_number_to_a_function_and_back(
    inside: bool, place: tuple[Any, str]
) -> None:
    xp, backend = place
    params = [xp.asarray(np.ones(64)) for _ in range(2)]
    opts = [fastopt.Adam(p, 0.1, eps_inside_sqrt=inside, backend=backend) for p in params]
    changes: dict[int, Any] = {2: falls, 4: 0.0, 6: two_eps, 8: 1e-4}  # 0 has a rule of its own
    for step, grad in enumerate(some_grads(np.float64, 10)):
        for opt, told in zip(opts, (True, False), strict=True):
            if step in changes and told:
                opt.param_groups[0]["eps"] = changes[step]
                now = changes[step]
            elif not told and step >= 2:
                opt.param_groups[0]["eps"] = now(step) if callable(now) else now
            opt.step(xp.asarray(grad))
        np.testing.assert_array_equal(*map(on_host, params))


@each_backend
def test_an_eps_that_is_a_function_is_no_part_of_a_checkpoint(backend: str, tmp_path: Path) -> None:
    def trained(eps: Any, steps: range, opt: Any = None, param: Any = None) -> Any:
        opt = opt or fastopt.Adam(param, 0.1, eps=eps, backend=backend)
        for step in steps:
            opt.step(some_grads(np.float64)[step])
        return opt

    param, other, number = np.ones(64), np.ones(64), np.ones(64)
    opt = trained(falls, range(7), param=param)
    assert opt.state_dict()["groups"][0]["eps"] is None
    opt.save(tmp_path / "a.safetensors")
    resumed = fastopt.Adam(other, 0.1, eps=falls, backend=backend)
    resumed.load(tmp_path / "a.safetensors")
    assert resumed.param_groups[0]["eps"] is falls
    trained(falls, range(7, 12), resumed)
    # A warm start with a number: it stays, as a number that was saved would not.
    warm = fastopt.Adam(number, 0.1, eps=1e-3, backend=backend)
    warm.load(tmp_path / "a.safetensors")
    assert warm.param_groups[0]["eps"] == 1e-3
    trained(1e-3, range(7, 12), warm)
    trained(falls, range(7, 12), opt)
    np.testing.assert_array_equal(other, param)
    by_hand = np.ones(64)
    again = trained(falls, range(7), param=by_hand)
    again.param_groups[0]["eps"] = 1e-3
    trained(1e-3, range(7, 12), again)
    np.testing.assert_array_equal(number, by_hand)
    resumed.load_state_dict(warm.state_dict())  # a number that was saved: the function stays
    assert resumed.param_groups[0]["eps"] is falls


# Parameters that can be called -------------------------------------------------------------------


class Model(NamedTuple):
    """Parameters in a container that can be called."""

    w: Any

    def __call__(self, step: int) -> str:
        raise AssertionError("this is no schedule")


@each_backend
def test_parameters_that_can_be_called_are_no_schedule(backend: str) -> None:
    model = Model(np.ones(1))
    opt = fastopt.SGD(model, lambda step: 0.5, backend=backend)
    opt.step(Model(np.ones(1)))
    assert model.w[0] == 0.5
    assert opt.param_groups[0]["params"] is model


# Rows of coming steps -----------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("steps", [3, 70])
def test_schedules_of_this_package_are_asked_ahead_and_end_in_the_same_bits(
    backend: str, steps: int
) -> None:
    """A function of the user's own is asked once in every step; ours say the same at any time."""
    cosine = fastopt.schedules.warmup(fastopt.schedules.cosine(0.1, 50), 10)
    ends = []
    for lr in (cosine, lambda step: cosine(step)):
        rng = np.random.default_rng(4)
        params = [rng.standard_normal(40), rng.standard_normal((5, 8))]
        opt = fastopt.AdamW(
            params, lr=lr, weight_decay=0.1, on_nonfinite="skip", max_grad_norm=5.0, backend=backend
        )
        for step in range(steps):
            grads: list[Any] = [rng.standard_normal(p.shape) for p in params]
            if step % 9 == 4:
                grads[1][0, 0] = np.nan  # skipped: the schedule stays where it is
            if step % 13 == 6:
                grads[0] = None
            if step == 20:
                opt.load_state_dict(opt.state_dict())
            if step == 30:
                opt.param_groups[0]["betas"] = (0.8, 0.99)
            opt.step(grads)
        ends.append([*(p.tobytes() for p in params), opt.step_count, opt.lr])
    assert ends[0] == ends[1]


def test_what_holds_a_users_function_is_not_asked_ahead() -> None:
    ours = fastopt.schedules.cosine(0.1, 50)
    theirs: Any = lambda step: 0.1  # noqa: E731 - a function of the user's
    for schedule, foreseeable in (
        (ours, True),
        (fastopt.schedules.warmup(ours, 3), True),
        (fastopt.schedules.warmup(theirs, 3), False),
        (fastopt.schedules.join([0.1, ours], [4]), True),
        (fastopt.schedules.join([theirs, ours], [4]), False),
        (fastopt.schedules.warmup(fastopt.schedules.join([theirs, ours], [4]), 3), False),
        (fastopt.schedules.ReduceLROnPlateau(0.1), False),
        (theirs, False),
        (0.1, True),
    ):
        opt = fastopt.Adam(np.ones(2), lr=schedule)
        assert opt._state.groups[0].foreseeable is foreseeable


@each_backend
def test_a_coming_value_that_is_no_good_stops_no_step_before_its_own(backend: str) -> None:
    param = np.ones(3, np.float32)
    schedule = fastopt.schedules.exponential(1.0, 1e8)
    opt = fastopt.Adam(param, lr=schedule, backend=backend)
    for _ in range(5):
        opt.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"at step 5.*infinite in float32"):
        opt.step(np.zeros(3, np.float32))
    assert opt.step_count == 5
