"""Groups keep the ratio of their learning rates: lr * lr_scale, under schedules and when lr is set.

"recorded" is what PyTorch 2.13 gives for two groups with lr and 0.3 * lr, in float64::

    opt = cls([{"params": [a]}, {"params": [b], "lr": 0.3 * settings["lr"]}], **settings)
    warm_up = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min(1.0, (t + 1) / 4))
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.backends.cupy.source import Addresses, kernel
from fastopt.backends.numba.codegen import loop_source
from fastopt.core.arrays import Array
from fastopt.core.dtypes import LR_SCALE
from fastopt.interop import load_keras, load_optax, load_torch, to_torch
from fastopt.optimizers.base import Optimizer
from fastopt.schedules import ReduceLROnPlateau, cosine, linear, warmup
from helpers.moved_runs import HALF, STEPS, built, deviation, go, runs
from helpers.variants import (
    APART,
    CPU_BACKENDS,
    ELEMENTWISE,
    OF_MATRICES,
    VARIANT_OF,
    VARIANTS,
    Variant,
)

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", [*VARIANTS, *OF_MATRICES], ids=str)

GRADS = [
    [0.5, -1.0, 2.0],
    [-0.25, 0.75, 1.5],
    [1.0, 1.0, -3.0],
    [0.125, -2.0, 0.5],
    [0.75, 0.25, 1.0],
]
RECORDED: dict[str, Any] = {
    "SGD": (
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
        [0.5376902335026368, -1.7193193486458984, 2.4437269334151366],
        [0.8606663466972879, -1.9154402316585213, 2.831472431788976],
    ),
    "AdamW": (
        {"lr": 0.02, "weight_decay": 0.3},
        [0.9355446980450798, -1.9485588289947873, 2.9177863462302924],
        [0.9805588243540309, -1.9844797829835825, 2.975174449056494],
    ),
    "Adagrad": (
        {"lr": 0.1, "lr_decay": 0.1},
        [0.893468900047318, -1.9881985348000024, 2.968387363454092],
        [0.9680406700141954, -1.9964595604400006, 2.990516209036228],
    ),
    "RMSprop": (
        {"lr": 0.01, "beta": 0.9, "momentum": 0.5},
        [0.9241763457769087, -1.9929114916366655, 2.970091053229705],
        [0.9772529037330725, -1.9978734474909998, 2.9910273159689114],
    ),
}
"""By class: the settings, and what [1, -2, 3] becomes in the two groups."""


def pair(dtype: Any = float) -> dict[str, Array]:
    return {"a": np.array([1.0, -2.0, 3.0], dtype), "b": np.array([1.0, -2.0, 3.0], dtype)}


def scaled(params: Any, scale: Any, pattern: str = "b") -> Any:
    return fastopt.groups(params, {pattern: {"lr_scale": scale}})


@each_backend
@pytest.mark.parametrize("name", RECORDED)
def test_both_groups_follow_a_warm_up_as_in_pytorch(name: str, backend: str) -> None:
    settings, first, second = RECORDED[name]
    lr = warmup(settings["lr"], 3, start_factor=0.25)  # 1/4, 2/4, 3/4, 1, 1
    params = pair()
    opt = getattr(fastopt, name)(scaled(params, 0.3), **{**settings, "lr": lr}, backend=backend)
    for grad in GRADS:
        opt.step({"a": np.array(grad), "b": np.array(grad)})
    np.testing.assert_allclose(params["a"], first, rtol=1e-14)
    np.testing.assert_allclose(params["b"], second, rtol=1e-14)


# A matrix, so that all optimizers take it.
def matrices(seed: int, dtype: Any) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((6, 4)).astype(dtype) for name in "ab"}


def end(variant: Variant, dtype: Any, by_scale: bool, **more: Any) -> list[bytes]:
    """Return the end of a run in which the second group has three tenths of each step's rate."""
    rates = [0.25, 0.5, 0.125, 0.0625, 0.75, 0.3, 0.1, 0.2, 0.7, 0.6]
    params = matrices(0, dtype)
    own = {"lr_scale": 0.3} if by_scale else {}
    opt = variant(fastopt.groups(params, {"b": own}), **{**more, "lr": rates[0]})
    for step, rate in enumerate(rates):
        if by_scale:
            opt.lr = rate
        else:
            opt.param_groups[0]["lr"], opt.param_groups[1]["lr"] = rate, rate * 0.3
        opt.step(matrices(step + 1, dtype))
    state = opt.state_dict()["state"]
    slots = [entry[slot] for entry in state.values() for slot in entry]
    return [np.asarray(array).tobytes() for array in (*params.values(), *slots)]


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_variant
def test_a_scale_gives_the_bits_of_the_product(variant: Variant, dtype: Any, backend: str) -> None:
    more = {"weight_decay": 0.1, "backend": backend}
    assert end(variant, dtype, True, **more) == end(variant, dtype, False, **more)


@each_backend
def test_setting_lr_keeps_the_ratio(backend: str) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    opt = fastopt.SGD(scaled(params, 0.25), lr=1.0, backend=backend)
    opt.lr *= 0.5
    assert opt.lr == 0.5
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.5]
    opt.step({"a": np.ones(2), "b": np.ones(2)})
    assert (params["a"].tolist(), params["b"].tolist()) == ([-0.5] * 2, [-0.125] * 2)


@each_backend
def test_a_scale_can_be_set_between_steps_and_be_a_function(backend: str) -> None:
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = fastopt.SGD(scaled(params, lambda t: 2.0**-t), lr=1.0, backend=backend)
    ones = {"a": np.ones(1), "b": np.ones(1)}
    for _ in range(3):
        opt.step(ones)
    assert (params["a"].item(), params["b"].item()) == (-3.0, -1.75)
    for scale in (0.5, 0.0, 0.125):
        opt.param_groups[1]["lr_scale"] = scale
        opt.step(ones)
        opt.lr = opt.lr  # without a review
        opt.step(ones)
    assert (params["a"].item(), params["b"].item()) == (-9.0, -3.0)


@each_backend
def test_a_decoupled_decay_follows_a_scale_that_is_set(backend: str) -> None:
    param = np.ones(1)
    opt = fastopt.AdamW(param, lr=0.5, weight_decay=0.5, backend=backend)
    opt.step(np.zeros(1))
    opt.param_groups[0]["lr_scale"] = 0.5
    opt.step(np.zeros(1))
    assert param.item() == 0.75 * 0.875


# Setting lr while groups differ in it -------------------------------------------------------------


def of_rates(*rates: Any, **more: Any) -> Any:
    return fastopt.SGD([{"params": np.zeros(1), "lr": lr} for lr in rates], **more)


def no_rate(t: int) -> float:
    return 0.5


@each_backend
@pytest.mark.parametrize(
    "rates",
    [
        (0.1, 0.1, 0.2),
        (0.1, cosine(0.1, 10)),
        (cosine(0.1, 10), cosine(0.2, 10)),
        (ReduceLROnPlateau(0.5), ReduceLROnPlateau(0.5)),
        (no_rate, lambda t: 0.5),
    ],
    ids=["numbers", "number_and_schedule", "schedules", "memories", "functions"],
)
@pytest.mark.parametrize("value", [0.5, 1e9, cosine(1.0, 5)], ids=["low", "high", "schedule"])
def test_lr_is_not_set_while_groups_differ(rates: Any, value: Any, backend: str) -> None:
    opt = of_rates(*rates, backend=backend)
    with pytest.raises(ValueError, match=r"param_groups\[[12]\]\[\"lr\"\].*lr_scale"):
        opt.lr = value
    assert [group["lr"] for group in opt.param_groups] == list(rates)
    last = len(rates) - 1
    with pytest.raises(ValueError, match=rf"got .*{rates[0]!r:.20}".replace("(", r"\(")) as caught:
        opt.lr = value
    assert f"param_groups[{last}]" in str(caught.value)


@each_backend
def test_the_advice_leads_on(backend: str) -> None:
    opt = of_rates(0.5, 0.5, backend=backend)
    opt.lr = 0.25
    opt.param_groups[1]["lr"] = 0.125
    with pytest.raises(ValueError, match="lr_scale"):
        opt.lr *= 0.5
    opt.param_groups[1]["lr"] = 0.25  # all the same, and each a scale
    opt.param_groups[1]["lr_scale"] = 0.5
    opt.lr *= 0.5
    assert [group["lr"] for group in opt.param_groups] == [0.125, 0.125]
    opt.step([np.ones(1), np.ones(1)])
    (first,), (second,) = (group["params"] for group in opt.param_groups)
    assert (first, second) == (-0.125, -0.0625)


@each_backend
def test_lr_is_set_where_schedules_are_equal(backend: str) -> None:
    opt = of_rates(cosine(0.1, 10), cosine(0.1, 10), backend=backend)
    opt.lr = shared = linear(1.0, 0.0, 1.0, 4)
    opt.lr = 0.25
    opt.lr = no_rate
    opt.lr = shared
    assert all(group["lr"] is shared for group in opt.param_groups)


@pytest.mark.parametrize("wrap", [fastopt.Lookahead, fastopt.Accumulator], ids=["look", "add"])
def test_wrappers_pass_it_on(wrap: Callable[..., Any]) -> None:
    opt = wrap(of_rates(0.1, 0.2), *([2] if wrap is fastopt.Accumulator else []))
    with pytest.raises(ValueError, match="lr_scale"):
        opt.lr = 0.5
    opt.param_groups[1]["lr"] = 0.1
    opt.lr = 0.5
    assert opt.lr == 0.5


# Values that are out of range ---------------------------------------------------------------------


@each_backend
def test_a_rate_that_float32_does_not_hold_is_refused_where_it_is_set(backend: str) -> None:
    params = pair(np.float32)
    opt = fastopt.SGD(scaled(params, 1e30), lr=1.0, backend=backend)
    with pytest.raises(ValueError, match="lr comes to 1e\\+39, which is infinite in float32"):
        opt.lr = 1e9
    assert [group["lr"] for group in opt.param_groups] == [1.0, 1.0]
    with pytest.raises(ValueError, match="infinite in float32"):
        opt.param_groups[0]["lr_scale"] = 1e39
    assert opt.param_groups[0]["lr_scale"] == 1.0
    wide = fastopt.SGD(pair(), lr=1e200, backend=backend)
    with pytest.raises(ValueError, match=r"SGD: lr \* lr_scale must be finite.*lr_scale=1e\+200"):
        wide.param_groups[0]["lr_scale"] = 1e200
    scheduled = fastopt.SGD(pair(), lr=lambda t: 1e200, lr_scale=lambda t: 1e200, backend=backend)
    with pytest.raises(ValueError, match=r"at step 0: lr \* lr_scale must be finite"):
        scheduled.step(pair())


@each_backend
def test_a_rate_that_vanishes_is_zero(backend: str) -> None:
    params = pair(np.float32)
    opt = fastopt.Adam(scaled(params, 1e-30), lr=1e-30, backend=backend)
    opt.step(pair(np.float32))
    np.testing.assert_equal(params, pair(np.float32))
    assert opt.state_dict()["state"]["b"]["step"] == 1


# Members, checkpoints, other libraries ------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("kind", [fastopt.SGD, fastopt.AdamW], ids=lambda kind: kind.__name__)
def test_members_have_scales_of_their_own(kind: Any, backend: str) -> None:
    scales = np.array([1.0, 0.3, 0.0])
    together = np.arange(6, dtype=np.float32).reshape(3, 2)
    opt = kind(together, lr=0.5, lr_scale=scales, members=3, backend=backend)
    assert "lr_scale=array" in repr(opt)
    alone = [together[k].copy() for k in range(3)]
    each = [
        kind(param, lr=0.5, lr_scale=scale, backend=backend)
        for param, scale in zip(alone, scales.tolist(), strict=True)
    ]
    for step in range(9):
        grads = np.random.default_rng(step).standard_normal((3, 2)).astype(np.float32)
        opt.step(grads)
        opt.lr *= 0.9
        for one, grad in zip(each, grads, strict=True):
            one.step(grad.copy())
            one.lr *= 0.9
    assert together.tobytes() == np.array(alone).tobytes()


@each_backend
def test_scales_are_saved_and_older_files_lack_them(tmp_path: Path, backend: str) -> None:
    source = fastopt.Adam(scaled(pair(), 0.25), lr=0.5, backend=backend)
    source.step(pair())
    source.save(tmp_path / "run.safetensors")
    target = fastopt.Adam(scaled(pair(), 0.5), lr=0.1, backend=backend)
    assert target.load(tmp_path / "run.safetensors").missing == ()
    assert [group["lr_scale"] for group in target.param_groups] == [1.0, 0.25]
    saved = source.state_dict()
    for group in saved["groups"]:
        del group["lr_scale"]
    older = {**saved, "fastopt": "0.0.1"}
    kept = fastopt.Adam(scaled(pair(), 0.125), lr=0.1, backend=backend)
    assert kept.load_state_dict(older).missing == ("groups[0].lr_scale", "groups[1].lr_scale")
    assert [group["lr_scale"] for group in kept.param_groups] == [1.0, 0.125]
    function = fastopt.Adam(scaled(pair(), no_rate), backend=backend)
    function.load_state_dict(source.state_dict())
    assert function.param_groups[1]["lr_scale"] is no_rate


def in_order(opt: Optimizer) -> list[tuple[Any, Any]]:
    return [(group["lr"], group["lr_scale"]) for group in opt.param_groups]


def test_pytorch_has_the_product_and_gives_all_of_the_rate() -> None:
    params = pair()
    source = fastopt.Adam(
        [{"params": params["a"]}, {"params": params["b"], "lr_scale": 0.5}], lr=0.5
    )
    source.step([np.ones(3), np.ones(3)])
    theirs = to_torch(source)
    assert [group["lr"] for group in theirs["param_groups"]] == [0.5, 0.25]
    other = pair()
    groups = [{"params": other["a"]}, {"params": other["b"], "lr_scale": 0.125}]
    target = fastopt.Adam(groups, lr=2.0)
    load_torch(target, theirs)
    assert in_order(target) == [(0.5, 1.0), (0.25, 1.0)]
    scheduled = fastopt.Adam(groups, lr=no_rate)
    load_torch(scheduled, theirs)
    assert in_order(scheduled) == [(no_rate, 1.0), (no_rate, 0.125)]
    groups[1]["lr_scale"] = no_rate
    by_scale = fastopt.Adam(groups, lr=2.0)
    load_torch(by_scale, theirs)
    assert in_order(by_scale) == [(0.5, 1.0), (2.0, no_rate)]
    assert to_torch(by_scale)["param_groups"][1]["lr"] == 1.0


MOVED = {
    "optax": ("rms_momentum", "injected", "momentum", "scheduled"),
    "keras": ("rms_momentum", "momentum"),
}


@pytest.mark.parametrize(
    ("library", "name"), [(library, name) for library, names in MOVED.items() for name in names]
)
def test_runs_of_other_libraries_go_on_at_their_rate(library: str, name: str) -> None:
    found = [run.info for run in runs(library) if run.name == name]
    assert len(found) == 2  # dtypes
    for info in found:
        opt = built(info, params := [p.copy() for p in info["p10"]], "numpy")
        for group in opt.param_groups:  # the same rate, by a scale
            lr = group["lr"]
            group["lr"] = (lambda t, lr=lr: 4.0 * lr(t)) if callable(lr) else 4.0 * lr
            group["lr_scale"] = 0.25
        if library == "keras":
            load_keras(opt, info["state"])
        else:
            counted = name in ("injected", "scheduled")
            load_optax(opt, info["state"], step_count=None if counted else HALF)
        theirs = library == "keras" or name == "injected"  # the state holds the rate
        assert {group["lr_scale"] for group in opt.param_groups} == {1.0 if theirs else 0.25}
        go(opt, info, HALF, STEPS)
        assert deviation(params, info) <= 1.0


# A rate of each element ---------------------------------------------------------------------------
#
# With powers of two lr * lr_scale has the same bits wherever it is multiplied.

POWERS = np.array([1.0, 0.5, 0.0, 2.0, 0.125])
SHAPES = ((7, 5), (5,), (1100, 5), (3, 2, 5), (0, 5))


def drawn(seed: int, dtype: Any) -> list[Array]:
    rng = np.random.default_rng(seed)
    made = []
    for shape in SHAPES:
        values: Any = rng.standard_normal(shape)
        if np.dtype(dtype).kind == "c":
            values = values + 1j * rng.standard_normal(shape)
        made.append(values.astype(dtype))
    made[0] = np.asfortranarray(made[0])
    made[3] = np.repeat(made[3], 2, axis=0)[::2]  # with gaps
    return made


def trained(variant: Variant, scale: Any, dtype: Any, **options: Any) -> list[Array]:
    """Return what the parameters become in twelve steps, of which some lack gradients."""
    params = drawn(0, dtype)
    opt = variant(params, lr_scale=scale, **options)
    for step in range(12):
        grads: list[Any] = drawn(step + 1, dtype)
        if step % 5 == 3:
            grads[1] = None
        opt.step(grads)
        opt.lr *= 0.9
    return params


def same_by_element(variant: Variant, dtype: Any, **options: Any) -> None:
    own = trained(variant, [POWERS] * len(SHAPES), dtype, **options)
    for k, power in enumerate(POWERS.tolist()):
        of_all = trained(variant, power, dtype, **options)
        for mine, theirs in zip(own, of_all, strict=True):
            assert mine[..., k].tobytes() == theirs[..., k].tobytes()


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_an_element_goes_by_its_own_rate(variant: Variant, dtype: Any, backend: str) -> None:
    # How fast the steps of ASGD fall goes by the rate of the group: here they do not.
    falls_not = {"lambd": 0.0} if "lambd" in variant([np.ones(1)]).param_groups[0] else {}
    same_by_element(variant, dtype, backend=backend, **falls_not)


@each_backend
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.float16, {}),
        (np.float16, {"master_weights": False, "stochastic_rounding": True}),
        (np.complex64, {"complex_moment": "modulus"}),
        (np.float32, {"state_dtype": "bfloat16"}),
        (np.float32, {"state_dtype": "int8"}),
        (np.float32, {"state_dtype": "float64"}),
        (np.float32, {"bounds": (-1.0, 0.5), "reset_at_bounds": True}),
        (np.float32, {"bounds": ([np.full(s, -1.0) for s in SHAPES], None)}),
        (np.float32, {"maximize": True, "max_grad_norm": 3.0, "weight_decay": lambda t: 0.1 * t}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_so_it_does_with_common_options(dtype: Any, options: Any, backend: str) -> None:
    same_by_element(VARIANT_OF["adamw"], dtype, **options, backend=backend)


@pytest.mark.parametrize("variant", APART, ids=str)
def test_the_text_that_is_compiled_speaks_of_scales_only_where_elements_have_some(
    variant: Variant,
) -> None:
    for scale, has_some in ((0.5, False), ([0.5, POWERS], True)):
        bucket = variant([np.ones(3), np.ones(5)], lr_scale=scale)._state.buckets[0]
        rule: Any = bucket.rule
        texts = [loop_source(rule, bucket.spec), kernel(rule, bucket.spec, Addresses())["preamble"]]
        assert [LR_SCALE in text for text in texts] == [has_some] * 2


@pytest.mark.skipif(len(CPU_BACKENDS) < 2, reason="numba is not installed")
@pytest.mark.parametrize("variant", APART, ids=str)
def test_rates_of_elements_have_one_end_on_every_backend(variant: Variant) -> None:
    scales = [np.random.default_rng(9).random(shape) for shape in SHAPES]
    ends = [
        [p.tobytes() for p in trained(variant, scales, np.float32, backend=backend)]
        for backend in CPU_BACKENDS
    ]
    assert ends[0] == ends[1]


@each_backend
@pytest.mark.parametrize("name", ["lamb", "adam_cautious", "sgd_cautious"])
def test_what_sums_over_an_array_scales_its_step(name: str, backend: str) -> None:
    variant, grad = VARIANT_OF[name], np.random.default_rng(1).standard_normal((4, 5))
    before = np.random.default_rng(2).standard_normal((4, 5))
    plain, own = before.copy(), before.copy()
    scale = np.array([1.0, 0.5, 0.25, 2.0, 0.125])  # none is 0: of these shares take no account
    options: dict[str, Any] = {"weight_decay": 0.0, "backend": backend}
    variant(plain, **options).step(grad)
    variant(own, lr_scale=scale, **options).step(grad)
    assert np.count_nonzero(plain - before) > 5
    np.testing.assert_allclose(own - before, scale * (plain - before), rtol=1e-12, atol=1e-15)


@each_backend
def test_scales_are_given_as_the_parameters_are_nested(backend: str) -> None:
    def ends(params: Any, grads: Any, **options: Any) -> Any:
        fastopt.SGD(params, lr=1.0, backend=backend, **options).step(grads)
        return grads

    ones = np.ones(2)
    params: Any = {"a": np.zeros((3, 2)), "b": [np.zeros(2), np.zeros(())]}
    grads = {"a": np.ones((3, 2)), "b": [ones, np.ones(())]}
    column = np.array([[0.5], [0.25], [0.0]], np.float32)
    ends(params, grads, lr_scale={"a": column, "b": [None, 3]})
    np.testing.assert_array_equal(params["a"], -np.repeat(column, 2, axis=1))
    assert (params["b"][0].tolist(), params["b"][1].item()) == ([-1.0, -1.0], -3.0)
    params = {"embed": np.zeros(2), "b": np.zeros(2)}
    scale = np.array([2, 0])
    ends(fastopt.groups(params, {"embed": {"lr_scale": scale}}), {"embed": ones, "b": ones})
    assert (params["embed"].tolist(), params["b"].tolist()) == ([-2.0, 0.0], [-1.0, -1.0])
    first, second = np.zeros(2), [np.zeros(2), np.zeros(1)]
    listed = [{"params": first, "lr_scale": scale}, {"params": second, "lr_scale": [0.5, None]}]
    ends(listed, [ones, [ones, np.ones(1)]])
    assert [p.tolist() for p in (first, *second)] == [[-2.0, 0.0], [-0.5, -0.5], [-1.0]]


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": ({"a": np.ones(4), "b": None}, ValueError, r"\[\"a\"\] must broadcast against"),
    "larger": ({"a": np.ones((2, 3, 2)), "b": 1}, ValueError, "must broadcast against"),
    "structure": ({"a": np.ones(2)}, ValueError, "lr_scale"),
    "one_for_two": (np.ones(2), ValueError, "lr_scale"),
    "negative": ({"a": np.array([1.0, -1.0]), "b": 1}, ValueError, "finite numbers >= 0"),
    "nan": ({"a": 1, "b": np.full(2, np.nan)}, ValueError, "finite numbers >= 0"),
    "complex": ({"a": 1, "b": np.ones(2, complex)}, TypeError, "must be a number, None"),
    "truth": ({"a": np.ones(2, bool), "b": 1}, TypeError, "must be a number, None"),
    "text": ({"a": "high", "b": 1}, TypeError, "must be a number, None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_scales_that_do_not_fit_are_refused(name: str) -> None:
    scale, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        fastopt.SGD({"a": np.ones((3, 2)), "b": np.ones(2)}, lr_scale=scale)


def test_rates_of_elements_are_refused_where_there_are_none() -> None:
    matrix, halves = np.ones((2, 2)), np.full((2, 2), 0.5)
    for kind in (fastopt.Muon, fastopt.Prodigy):
        with pytest.raises(ValueError, match=f"{kind.__name__} .*lr_scale must be a number"):
            kind(matrix, lr_scale=halves)
    with pytest.raises(ValueError, match="one for each member"):
        fastopt.SGD(matrix, lr_scale=halves, members=2)
    opt = fastopt.Adam(matrix, lr_scale=halves)
    for scale in (1.0, np.ones((2, 2))):
        with pytest.raises(ValueError, match="construct a new optimizer"):
            opt.param_groups[0]["lr_scale"] = scale
    with pytest.raises(ValueError, match="must stay a number"):
        fastopt.Adam(matrix).param_groups[0]["lr_scale"] = halves
    opt.param_groups[0]["lr_scale"] = opt.param_groups[0]["lr_scale"]
    with pytest.raises(ValueError, match=r"torch\.optim\.Adam has no lr_scale"):
        to_torch(opt)


@each_backend
def test_rates_of_elements_are_given_again_when_a_run_is_loaded(
    tmp_path: Path, backend: str
) -> None:
    def made(param: Array, scale: Any) -> Optimizer:
        return fastopt.AdamW(param, lr=0.5, lr_scale=scale, backend=backend)

    param, grad = np.ones((3, 5)), np.random.default_rng(0).standard_normal((3, 5))
    opt = made(param, POWERS)
    opt.step(grad)
    opt.save(tmp_path / "run.safetensors")
    assert opt.state_dict()["groups"][0]["lr_scale"] is None
    other = np.zeros((3, 5))
    again = made(other, POWERS)
    assert again.load(tmp_path / "run.safetensors").missing == ()
    for one in (opt, again):
        one.step(grad)
    np.testing.assert_array_equal(param, other)
    number = made(np.zeros((3, 5)), 0.5)  # a number and arrays do not replace each other
    number.load(tmp_path / "run.safetensors")
    assert number.param_groups[0]["lr_scale"] == 0.5
    again.load_state_dict(number.state_dict())
    assert f"lr_scale={POWERS!r}" in repr(again)
    assert f"'lr_scale': {POWERS!r}" in repr(again.param_groups[0])
    with pytest.raises(ValueError, match=r"got array\(\[1\., 2\.\]\)"):
        number.param_groups[0]["lr_scale"] = np.array([1.0, 2.0])


@each_backend
def test_a_load_says_of_rates_of_elements_what_differs(tmp_path: Path, backend: str) -> None:
    def loaded(saved: Any, here: Any) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
        source = fastopt.Adam(np.ones(2), lr_scale=saved, backend=backend)
        source.save(tmp_path / "run")
        into = fastopt.Adam(np.ones(2), lr_scale=here, backend=backend)
        report = into.load(tmp_path / "run")
        again = into.load_state_dict(source.state_dict())
        assert (again.settings, again.missing) == (report.settings, report.missing)
        assert repr(into.param_groups[0]["lr_scale"]) == repr(here)
        found = [(s.name, repr(s.saved), repr(s.here), s.holds) for s in report.settings]
        return found, report.missing

    one, other, name = np.array([1.0, 2.0]), np.array([1.0, 3.0]), "groups[0].lr_scale"
    digests = [
        hashlib.sha256(b"<f8 (2,) " + scale.tobytes()).hexdigest()[:16] for scale in (one, other)
    ]
    texts = [f"arrays (sha256 {digest})" for digest in digests]
    assert loaded(one, one.copy()) == ([], ())
    assert loaded(one, other) == ([(name, *texts, "here")], ())
    assert loaded(one, 0.5) == ([(name, texts[0], "0.5", "here")], (name,))
    assert loaded(0.5, other) == ([(name, "0.5", texts[1], "here")], ())


def test_rates_of_elements_that_nobody_described_may_be_the_same() -> None:
    scale = np.array([1.0, 2.0])
    opt, number = fastopt.Adam(np.ones(2), lr_scale=scale), fastopt.Adam(np.ones(2), lr_scale=0.5)
    saved = opt.state_dict()
    del saved["described"]
    assert opt.load_state_dict(saved).settings == ()
    report = number.load_state_dict(saved)
    assert [repr(setting.saved) for setting in report.settings] == ["arrays"]
    assert report.missing == ("groups[0].lr_scale",)
