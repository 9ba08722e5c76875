"""What steps are handed beside gradients: the loss, and estimates of the Hessian's diagonal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS, public_optimizers

TAKE_A_VALUE = [fastopt.MoMo, fastopt.MoMoAdam]
TAKE_A_HESSIAN = [fastopt.Sophia, fastopt.AdaHessian]
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
by_the_loss = pytest.mark.parametrize("optimizer", TAKE_A_VALUE)
by_curvature = pytest.mark.parametrize("optimizer", TAKE_A_HESSIAN)


def numbers(seed: int, dtype: Any = np.float64) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    made = {"W": rng.standard_normal((3, 4)), "b": rng.standard_normal(7)}
    return {name: values.astype(dtype) for name, values in made.items()}


def turned(grads: dict[str, Array]) -> dict[str, Array]:
    return {name: grad[::-1] for name, grad in grads.items()}


def same(one: Any, two: Any) -> None:
    np.testing.assert_equal(one, two)


def end_of(opt: Optimizer, params: Any) -> Any:
    return params, opt.state_dict()


@pytest.mark.parametrize("optimizer", TAKE_A_HESSIAN)
@pytest.mark.parametrize("kind", [np.float32, np.complex64])
def test_advice_for_an_estimate_of_the_other_kind_leads_to_a_step(
    optimizer: Any, kind: Any
) -> None:
    param, given = (
        np.ones(2, kind),
        np.ones(2, np.float32 if kind is np.complex64 else np.complex64),
    )
    opt = optimizer([param])
    hessian = [given]
    with pytest.raises(TypeError, match=r"^hessian\[0\] must be of a .* dtype") as caught:
        opt.step([np.ones(2, kind)], hessian=hessian)
    text = str(caught.value)
    assert "gradient" not in text
    assert "conjugate" not in text
    advised = eval(text.rpartition(": ")[2].rstrip("."), {"hessian": hessian})
    assert advised.tolist() == ([1 + 1j] * 2 if kind is np.complex64 else [1.0] * 2)
    opt.step([np.ones(2, kind)], hessian=[advised])
    assert opt.step_count == 1


# Who takes what -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", public_optimizers())
def test_what_an_optimizer_does_not_take_is_refused(optimizer: Any) -> None:
    params = [np.ones((2, 2))]
    opt = optimizer(params)
    name = optimizer.__name__
    if optimizer not in TAKE_A_VALUE:
        with pytest.raises(TypeError, match=f"^{name} takes no value"):
            opt.step([np.ones((2, 2))], value=1.0)
    if optimizer not in TAKE_A_HESSIAN:
        with pytest.raises(TypeError, match=f"^{name} takes no hessian"):
            opt.step([np.ones((2, 2))], hessian=[np.ones((2, 2))])
    assert opt.step_count == 0
    assert (params[0] == 1).all()


@by_the_loss
def test_a_loss_that_is_missing_is_asked_for(optimizer: Any) -> None:
    opt = optimizer([np.ones(2)])
    for step in (opt.step, opt.updates):
        with pytest.raises(TypeError, match=r"needs the loss of every step: .*value=loss"):
            step([np.ones(2)])
    assert opt.step_count == 0


def test_a_first_estimate_that_is_missing_is_asked_for() -> None:
    params = {"W": np.ones(2), "b": np.ones(3)}
    opt = fastopt.AdaHessian(params)
    grads = {"W": np.ones(2), "b": np.ones(3)}
    for hessian, missing in ((None, "W"), ({"W": np.ones(2), "b": None}, "b")):
        with pytest.raises(TypeError, match=rf"needs an estimate .* first step of .*{missing}"):
            opt.step(grads, hessian=hessian)
    assert opt.step_count == 0
    opt.step({"W": np.ones(2), "b": None}, hessian={"W": np.ones(2), "b": None})
    with pytest.raises(TypeError, match=r"first step of .*b"):
        opt.step(grads)
    opt.step(grads, hessian={"W": None, "b": np.ones(3)})
    opt.step(grads)
    assert opt.step_count == 3


# Bad losses ---------------------------------------------------------------------------------------


@by_the_loss
@pytest.mark.parametrize(
    "value", ["1", True, 1j, [1.0], np.ones(2), np.ones(0), np.array(True), object(), {}]
)
def test_a_loss_is_one_real_number(optimizer: Any, value: Any) -> None:
    param = np.ones(2)
    opt = optimizer([param])
    with pytest.raises(TypeError, match="value must be one real number"):
        opt.step([np.ones(2)], value=value)
    assert (param == 1).all()
    assert opt.step_count == 0


@by_the_loss
@each_backend
def test_losses_of_other_types_are_the_same_numbers(optimizer: Any, backend: str) -> None:
    ends = []
    for value in (0.5, np.float32(0.5), np.array(0.5), np.array([0.5], np.float16)):
        params = numbers(0)
        opt = optimizer(params, backend=backend)
        opt.step(numbers(1), value=value)
        ends.append(end_of(opt, params))
    for end in ends[1:]:
        same(end, ends[0])


@by_the_loss
@each_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(optimizer: Any, value: float, backend: str) -> None:
    params = numbers(0)
    opt = optimizer(params, backend=backend, on_nonfinite="skip")
    opt.step(numbers(1), value=1.0)
    before = {k: p.copy() for k, p in params.items()}, opt.state_dict()
    assert not opt.step(numbers(2), value=value)
    assert opt.skipped_steps == 1
    same((params, opt.state_dict()), before)
    opt.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r"value, the loss, is .* at step 1"):
        opt.step(numbers(2), value=value)
    same((params, opt.state_dict() | {"policy": before[1]["policy"]}), before)
    opt.on_nonfinite = "propagate"
    assert opt.step(numbers(2), value=value)
    if math.isnan(value):
        assert all(np.isnan(param).all() for param in params.values())


# Scales and signs ---------------------------------------------------------------------------------


def runs(optimizer: Any, scale: float, backend: str, **options: Any) -> Any:
    """Return the end of a run whose loss is multiplied by a number, which steps take back."""
    params = numbers(0)
    opt = optimizer(params, backend=backend, lr=0.05, **options)
    takes_value = optimizer in TAKE_A_VALUE
    for step in range(6):
        grads = {k: scale * g for k, g in numbers(step + 1).items()}
        handed: Any = {"value": scale * (2.0 - 0.5 * step)} if takes_value else {}
        if not takes_value and step % 2 == 0:
            handed["hessian"] = turned(grads)
        opt.step(grads, grad_scale=1.0 / scale, **handed)
    return end_of(opt, params)


@each_backend
@pytest.mark.parametrize("optimizer", [*TAKE_A_VALUE, *TAKE_A_HESSIAN])
def test_all_that_is_handed_in_has_the_scale_of_the_gradients(optimizer: Any, backend: str) -> None:
    same(runs(optimizer, 64.0, backend), runs(optimizer, 1.0, backend))


@each_backend
@pytest.mark.parametrize("optimizer", [*TAKE_A_VALUE, *TAKE_A_HESSIAN])
def test_to_maximize_is_to_minimize_the_negative(optimizer: Any, backend: str) -> None:
    up, down = runs(optimizer, -1.0, backend), runs(optimizer, 1.0, backend)
    same(up[0], down[0])
    params = numbers(0)
    opt = optimizer(params, backend=backend, lr=0.05, maximize=True)
    for step in range(6):
        grads = {k: -g for k, g in numbers(step + 1).items()}
        handed: Any = {"value": -(2.0 - 0.5 * step)} if optimizer in TAKE_A_VALUE else {}
        if optimizer in TAKE_A_HESSIAN and step % 2 == 0:
            handed["hessian"] = turned(grads)
        opt.step(grads, **handed)
    same(params, down[0])


@each_backend
@by_curvature
def test_clipping_leaves_estimates_as_they_are(optimizer: Any, backend: str) -> None:
    ends = []
    for limit in (1e-3, None):
        params = numbers(0)
        opt = optimizer(params, backend=backend, max_grad_norm=limit)
        opt.step(numbers(1), hessian=numbers(2))
        slot = "h" if optimizer is fastopt.Sophia else "v"
        ends.append([entry[slot] for entry in opt.state_dict()["state"].values()])
    same(*ends)


# Bad estimates ------------------------------------------------------------------------------------


@by_curvature
@pytest.mark.parametrize(
    ("hessian", "error", "said"),
    [
        (
            {"W": np.ones((4, 3)), "b": np.ones(7)},
            ValueError,
            r'hessian\["W"\] must have the shape',
        ),
        ({"W": np.ones((3, 4)), "b": np.ones(7, int)}, TypeError, r'hessian\["b"\] must be of a'),
        ({"W": np.ones((3, 4)), "b": [1.0] * 7}, (TypeError, ValueError), "hessian"),
        ({"W": np.ones((3, 4))}, ValueError, "hessian"),
        ({"W": np.ones((3, 4)), "b": 1j * np.ones(7)}, TypeError, r'hessian\["b"\] must be of a'),
    ],
)
def test_estimates_are_checked_as_gradients_are(
    optimizer: Any, hessian: Any, error: Any, said: str
) -> None:
    params = numbers(0)
    opt = optimizer(params)
    with pytest.raises(error, match=said):
        opt.step(numbers(1), hessian=hessian)
    same(params, numbers(0))
    assert opt.step_count == 0


@by_curvature
def test_an_estimate_must_not_be_a_parameter(optimizer: Any) -> None:
    params = numbers(0)
    opt = optimizer(params)
    with pytest.raises(ValueError, match=r'hessian\["W"\]'):
        opt.step(numbers(1), hessian={"W": params["W"], "b": np.ones(7)})


@by_curvature
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_estimate_that_is_not_finite(optimizer: Any, bad: float, backend: str) -> None:
    params = numbers(0)
    opt = optimizer(params, backend=backend, on_nonfinite="skip")
    opt.step(numbers(1), hessian=numbers(1))
    before = {k: p.copy() for k, p in params.items()}, opt.state_dict()
    hessian = numbers(2)
    hessian["b"][3] = bad
    assert not opt.step(numbers(2), hessian=hessian)
    same((params, opt.state_dict()), before)
    opt.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match="hessian holds NaN or infinity at step 1"):
        opt.step(numbers(2), hessian=hessian)
    same(params, before[0])
    grads = numbers(2)
    grads["W"][0] = bad
    opt.on_nonfinite = "skip"
    assert not opt.step(grads, hessian=numbers(2)), "and is not taken in with bad gradients"
    same((params, opt.state_dict()), before)


@each_backend
def test_an_estimate_whose_squares_overflow(backend: str) -> None:
    """AdaHessian averages squares of estimates, in float32 no larger than 1e19."""
    params = numbers(0, np.float32)
    opt = fastopt.AdaHessian(params, backend=backend, on_nonfinite="skip")
    grads, hessian = numbers(1, np.float32), numbers(2, np.float32)
    opt.step(grads, hessian=hessian)
    before = {k: p.copy() for k, p in params.items()}, opt.state_dict()
    hessian["b"][3] = 3e19
    assert not opt.step(grads, hessian=hessian)
    same((params, opt.state_dict()), before)
    opt.on_nonfinite = "raise"
    with pytest.raises(
        FloatingPointError, match=r"hessian has a norm of 3e.19.*state_dtype='float64'"
    ):
        opt.step(grads, hessian=hessian)
    same(params, before[0])
    assert opt.step(grads, hessian=hessian, grad_scale=2.0**-10), (
        "it is scaled before it is squared"
    )
    wide = fastopt.AdaHessian(params, backend=backend, on_nonfinite="raise", state_dtype="float64")
    assert wide.step(grads, hessian=hessian)
    assert all(np.isfinite(param).all() for param in params.values())


@each_backend
def test_sophia_squares_no_estimates(backend: str) -> None:
    params = numbers(0, np.float32)
    opt = fastopt.Sophia(params, backend=backend, on_nonfinite="raise")
    hessian = numbers(2, np.float32)
    hessian["b"][3] = 3e19
    assert opt.step(numbers(1, np.float32), hessian=hessian)
    assert all(np.isfinite(param).all() for param in params.values())


# The same bits ------------------------------------------------------------------------------------


@by_curvature
@pytest.mark.skipif(len(CPU_BACKENDS) < 2, reason="numba is not installed")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.complex64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state_dtype": "bfloat16"},
        {"state_dtype": "int8"},
        {"cautious": True, "clip_value": 0.5},
        {"bounds": (-1.0, 1.0), "reset_at_bounds": True},
        {"master_weights": False},
        {"lr_scale": "each"},
    ],
    ids=str,
)
def test_estimates_enter_in_the_same_bits(
    optimizer: Any, dtype: Any, options: dict[str, Any]
) -> None:
    coded = options.get("state_dtype") and dtype == np.float64
    if coded or (np.dtype(dtype).kind == "c" and {"cautious", "bounds"} & options.keys()):
        pytest.skip("there is no such thing for this dtype")
    ends = []
    for backend in CPU_BACKENDS:
        params = {"W": numbers(0, dtype)["W"], "b": numbers(0, dtype)["b"]}
        params["gaps"] = np.ones((6, 5), dtype)[::2, 1:4]
        own = dict(options)
        if own.get("lr_scale") == "each":
            own["lr_scale"] = {k: np.abs(p).real.astype(np.float64) for k, p in params.items()}
        opt = optimizer(params, backend=backend, eps=0.1, **own)
        for step in range(10):
            grads = numbers(step + 1, dtype)
            grads["gaps"] = np.full((3, 3), 0.1 * step, dtype).T
            hessian = {k: g[::-1] for k, g in grads.items()} if step % 3 == 0 else None
            if step == 6 and hessian:
                hessian["b"] = None
            opt.step(grads, hessian=hessian)
        ends.append(end_of(opt, params))
    same(ends[0], ends[1])


def test_the_parameter_is_left_alone_and_fragments_do_not_see_estimates() -> None:
    ends = []
    for options in ({}, {"mask_zero": True, "clip_value": 1e-3, "cautious": True}):
        params = numbers(0)
        opt = fastopt.Sophia(params, lr=0.0, **options)
        opt.step(numbers(1), hessian=numbers(2))
        same(params, numbers(0))
        ends.append([entry["h"] for entry in opt.state_dict()["state"].values()])
    same(*ends)


# Wrappers -----------------------------------------------------------------------------------------


def test_lookahead_passes_all_of_it_on() -> None:
    params = numbers(0)
    opt = fastopt.Lookahead(fastopt.MoMo(params, lr=0.1), k=3)
    twin = numbers(0)
    plain = fastopt.MoMo(twin, lr=0.1)
    for step in range(2):
        opt.step(numbers(step + 1), value=1.0)
        plain.step(numbers(step + 1), value=1.0)
    same(params, twin)
    with pytest.raises(TypeError, match="needs the loss"):
        opt.step(numbers(1))
    ada = fastopt.Lookahead(fastopt.AdaHessian(numbers(0)))
    ada.step(numbers(1), hessian=numbers(1))


def test_an_accumulator_adds_up_gradients_alone() -> None:
    with pytest.raises(TypeError, match="Accumulator: MoMo steps by the loss"):
        fastopt.Accumulator(fastopt.MoMo(numbers(0)), 2)
    with pytest.raises(TypeError, match="Accumulator: Sophia takes estimates"):
        fastopt.Accumulator(fastopt.Sophia(numbers(0)), 2)
    opt = fastopt.Accumulator(fastopt.Adam(numbers(0)), 2)
    with pytest.raises(TypeError, match="Accumulator: gradients alone"):
        fastopt.LossScaler().step(opt, numbers(1), hessian=numbers(1))
    assert opt.count == 0


@each_backend
@pytest.mark.parametrize("optimizer", [*TAKE_A_VALUE, *TAKE_A_HESSIAN])
def test_a_loss_scaler_scales_all_of_it(optimizer: Any, backend: str) -> None:
    scaler = fastopt.LossScaler(init_scale=1024.0)
    params, twin = numbers(0), numbers(0)
    opt, plain = (optimizer(some, backend=backend) for some in (params, twin))
    for step in range(3):
        own: Any = {"value": 1.5} if optimizer in TAKE_A_VALUE else {"hessian": numbers(step)}
        plain.step(numbers(step + 1), **own)
        if "value" in own:
            own = {"value": scaler.multiply(np.array(1.5))}
        else:
            own = {"hessian": {k: h * 1024.0 for k, h in own["hessian"].items()}}
        grads = {k: g * 1024.0 for k, g in numbers(step + 1).items()}
        scaler.step(opt, grads, **own)
        scaler.update()
    same(params, twin)
    if optimizer in TAKE_A_VALUE:
        with pytest.raises(TypeError, match="needs the loss"):
            scaler.step(opt, numbers(1))


@by_curvature
def test_updates_are_what_the_step_adds(optimizer: Any) -> None:
    params, twin = numbers(0), numbers(0)
    opt, plain = optimizer(params), optimizer(twin)
    added = opt.updates(numbers(1), hessian=numbers(2))
    plain.step(numbers(1), hessian=numbers(2))
    same(params, numbers(0))
    for name, update in added.items():
        np.testing.assert_allclose(params[name] + update, twin[name], rtol=1e-15)
