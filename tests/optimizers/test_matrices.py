"""Rules on whole arrays: what is tested of all other optimizers, with matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from helpers.variants import CPU_BACKENDS, OF_MATRICES, Variant

pytestmark = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", OF_MATRICES, ids=str)
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SHAPES = {
    "a": (4, 4),
    "same": (4, 4),
    "wide": (3, 7),
    "high": (6, 2),
    "row": (1, 5),
    "none": (0, 3),
}


def arrays(seed: int, dtype: Any = np.float64) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def run(
    variant: Variant, backend: str, steps: int = 4, dtype: Any = np.float64, **options: Any
) -> tuple[dict[str, Array], Any]:
    params = arrays(0, dtype)
    opt = variant(params, backend=backend, **options)
    for seed in range(1, steps + 1):
        opt.step(arrays(seed, dtype))
    return params, opt


def everything(params: dict[str, Array], opt: Any) -> dict[str, Any]:
    counts = {"skipped": opt.skipped_steps}
    return {"params": {k: p.copy() for k, p in params.items()}, "opt": opt.state_dict()} | counts


def close(one: dict[str, Array], two: dict[str, Array], rtol: float = 1e-10) -> None:
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=rtol, atol=rtol, err_msg=name)


# Which arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (1, 1, 1)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...], backend: str) -> None:
    with pytest.raises(ValueError, match=r'Muon: params\["b"\] must be a real matrix.*AdamW'):
        fastopt.Muon({"W": np.ones((2, 2)), "b": np.ones(shape)}, backend=backend)


def test_complex_matrices_are_refused(backend: str) -> None:
    with pytest.raises(TypeError, match=r"Muon takes real arrays; params is complex64"):
        fastopt.Muon(np.ones((2, 2), np.complex64), backend=backend)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "every_second": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda a: a.T.copy().T,
    "columns": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
}


@each_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_changes_as_a_contiguous_copy(
    variant: Variant, layout: str, backend: str
) -> None:
    view = LAYOUTS[layout]
    expected, plain = run(variant, backend)
    params = {name: view(array) for name, array in arrays(0).items()}
    opt = variant(params, backend=backend)
    for seed in range(1, 5):
        opt.step({name: view(array) for name, array in arrays(seed).items()})
    close(params, expected)
    state, wanted = opt.state_dict()["state"], plain.state_dict()["state"]
    close({k: e["m"] for k, e in state.items()}, {k: e["m"] for k, e in wanted.items()})


@each_variant
def test_matrices_side_by_side_go_as_each_would_alone(variant: Variant, backend: str) -> None:
    together, _ = run(variant, backend)
    for name in SHAPES:
        alone = arrays(0)[name]
        opt = variant(alone, backend=backend)
        for seed in range(1, 5):
            opt.step(arrays(seed)[name])
        np.testing.assert_allclose(alone, together[name], rtol=1e-10)


@each_variant
def test_groups_and_missing_gradients_go_their_own_way(variant: Variant, backend: str) -> None:
    params, alone = arrays(0), arrays(0)
    opt = variant(
        [{"params": [params["a"], params["same"]], "lr": 0.5}, {"params": params["wide"]}],
        backend=backend,
    )
    one = variant(alone["same"], lr=0.5, backend=backend)
    for seed in range(1, 6):
        grads = arrays(seed)
        here = grads["same"] if seed % 2 else None
        opt.step([[grads["a"], here], grads["wide"]])
        if here is not None:
            one.step(here)
    np.testing.assert_allclose(params["same"], alone["same"], rtol=1e-12)
    counts = [entry["step"] for entry in opt.state_dict()["state"].values()]
    assert counts == [5, 3, 5]
    before = everything(params, opt)
    opt.step([[None, None], None])
    after = everything(params, opt)
    assert after["opt"].pop("step_count") == before["opt"].pop("step_count") + 1
    np.testing.assert_equal(after, before)


# Options of every optimizer ----------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("policy", ["skip", "raise"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite_change_nothing(
    variant: Variant, policy: Any, bad: float, backend: str
) -> None:
    params, opt = run(variant, backend, on_nonfinite=policy)
    before = everything(params, opt)
    grads = arrays(9)
    grads["wide"][1, 2] = bad
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="wide"):
            opt.step(grads)
    else:
        assert not opt.step(grads)
        before["skipped"] += 1
    np.testing.assert_equal(everything(params, opt), before)


@each_variant
def test_the_norm_is_clipped_over_all_matrices(variant: Variant, backend: str) -> None:
    params, opt = run(variant, backend, max_grad_norm=0.5)
    expected = arrays(0)
    plain = variant(expected, backend=backend)
    for seed in range(1, 5):
        grads = arrays(seed)
        norm = math.sqrt(sum(float(np.sum(g * g)) for g in grads.values()))
        plain.step({name: grad * (0.5 / (norm + 1e-6)) for name, grad in grads.items()})
    assert opt.grad_norm == pytest.approx(norm, rel=1e-12)
    close(params, expected)


@each_variant
@pytest.mark.parametrize("kind", ["numbers", "arrays"])
def test_bounds_hold_and_forget_what_pushes_against_them(
    variant: Variant, kind: str, backend: str
) -> None:
    start = np.zeros((2, 3))
    bounds: Any = (-0.01, 0.02)
    if kind == "arrays":
        bounds = (np.full((2, 3), -0.01), np.full((2, 3), 0.02))
    opt = variant(start, lr=0.5, bounds=bounds, reset_at_bounds=True, backend=backend)
    opt.step(np.random.default_rng(0).standard_normal((2, 3)))
    assert start.min() == -0.01
    assert start.max() == 0.02
    at_bound = (start == -0.01) | (start == 0.02)
    np.testing.assert_array_equal(opt.state_dict()["state"]["params"]["m"] == 0, at_bound)


@each_variant
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": "bfloat16"}, "keeps its state in the precision of its arithmetic"),
        ({"state_dtype": "int8"}, "keeps its state in the precision of its arithmetic"),
        ({"stochastic_rounding": True, "master_weights": False}, "keeps its state in the prec"),
        ({"cautious": True}, "updates whole arrays, for which there is no cautious"),
        ({"mask_zero": True}, "updates whole arrays, for which there is no mask_zero"),
    ],
)
def test_options_of_single_elements_are_refused(
    variant: Variant, options: dict[str, Any], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=f"Muon {message}"):
        variant(np.ones((2, 2), np.float32), backend=backend, **options)


@each_variant
def test_state_in_float64_is_the_run_in_float64_rounded(variant: Variant, backend: str) -> None:
    params, opt = run(variant, backend, dtype=np.float32, state_dtype="float64")
    expected = {name: array.astype(float) for name, array in arrays(0, np.float32).items()}
    plain = variant(expected, backend=backend)
    for seed in range(1, 5):
        plain.step({k: g.astype(float) for k, g in arrays(seed, np.float32).items()})
    close({k: p.astype(float) for k, p in params.items()}, expected, 1e-6)
    assert {e["m"].dtype for e in opt.state_dict()["state"].values()} == {np.dtype(float)}


@each_variant
@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_that_of_float32_rounded(
    variant: Variant, dtype: Any, master: bool, backend: str
) -> None:
    params = {name: array.astype(dtype) for name, array in arrays(0, np.float32).items()}
    wide = {name: array.astype(np.float32) for name, array in params.items()}
    opt = variant(params, backend=backend, master_weights=master)
    plain = variant(wide, backend=backend)
    for seed in range(1, 5):
        grads = {name: array.astype(dtype) for name, array in arrays(seed).items()}
        opt.step(grads)
        plain.step({name: array.astype(np.float32) for name, array in grads.items()})
        if not master:
            for array in wide.values():
                array[...] = array.astype(dtype)
    for name in SHAPES:
        np.testing.assert_array_equal(params[name], wide[name].astype(dtype), err_msg=name)
    slots = {"step", "m", "master"} if master else {"step", "m"}
    assert all(entry.keys() == slots for entry in opt.state_dict()["state"].values())


@each_variant
def test_trainable_maximize_and_schedules(variant: Variant, backend: str) -> None:
    params, other = arrays(0), arrays(0)
    up = variant(params, maximize=True, lr=lambda t: 0.5 * (1 - t / 10), backend=backend)
    down = variant(other, lr=0.5, backend=backend)
    for seed in range(1, 4):
        down.lr = 0.5 * (1 - (seed - 1) / 10)
        up.step(arrays(seed))
        down.step({name: -grad for name, grad in arrays(seed).items()})
    close(params, other, 1e-12)
    before = everything(params, up)["params"]
    up.param_groups[0]["trainable"] = False
    up.step(arrays(7))
    np.testing.assert_equal(everything(params, up)["params"], before)


# Whole steps, checkpoints, wrappers --------------------------------------------------------------


@each_variant
def test_a_step_that_raises_changes_nothing(variant: Variant, backend: str) -> None:
    params, opt = run(variant, backend)
    before = everything(params, opt)
    grads: dict[str, Any] = arrays(9)
    for wrong, kind in [(np.ones((2, 9)), ValueError), (np.ones((1, 5), int), TypeError)]:
        with pytest.raises(kind):
            opt.step({**grads, "row": wrong})
        np.testing.assert_equal(everything(params, opt), before)


@each_variant
def test_an_interrupt_while_products_are_made_changes_nothing(
    variant: Variant, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastopt.engine import whole

    params, opt = run(variant, backend)
    before = everything(params, opt)
    right, calls = whole.computed, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(right(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "computed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.step(arrays(9))
    assert calls
    np.testing.assert_equal(everything(params, opt), before)
    monkeypatch.undo()
    opt.step(arrays(9))
    assert opt.step_count == 5


@each_variant
@pytest.mark.parametrize("way", ["dict", "file"])
def test_resumed_runs_end_in_the_same_bits(
    variant: Variant, way: str, backend: str, tmp_path: Path
) -> None:
    params, opt = run(variant, backend)
    later = {name: param.copy() for name, param in params.items()}
    resumed = variant(later, backend=backend)
    if way == "dict":
        resumed.load_state_dict(opt.state_dict())
    else:
        opt.save(tmp_path / "run")
        resumed.load(tmp_path / "run")
    for seed in range(20, 24):
        opt.step(arrays(seed))
        resumed.step(arrays(seed))
    np.testing.assert_equal(everything(later, resumed), everything(params, opt))
    saved = opt.state_dict()
    saved["state"]["a"]["m"] = np.ones(3)
    with pytest.raises(CheckpointError, match=r"state:a\.m"):
        resumed.load_state_dict(saved)
    np.testing.assert_equal(everything(later, resumed), everything(params, opt))


@each_variant
def test_state_is_converted_if_asked(variant: Variant, backend: str) -> None:
    _, opt = run(variant, backend, dtype=np.float32)
    target = variant(arrays(0), backend=backend)
    with pytest.raises(CheckpointError):
        target.load_state_dict(opt.state_dict())
    report = target.load_state_dict(opt.state_dict(), convert=True)
    assert "state:a.m: float32 -> float64" in report.converted
    close({"a": target.state_dict()["state"]["a"]["m"]}, {"a": opt.state_dict()["state"]["a"]["m"]})


@each_variant
def test_wrappers_go_round_it(variant: Variant, backend: str) -> None:
    params = arrays(0)
    opt = variant(params, backend=backend)
    ema = fastopt.EMA(params, 0.5)
    scaler = fastopt.LossScaler(init_scale=8.0)
    for seed in range(1, 4):
        scaled = {name: grad * scaler.scale for name, grad in arrays(seed).items()}
        scaler.step(opt, scaled)
        scaler.update()
        ema.update()
    expected, _ = run(variant, backend, 3)
    close(params, expected)

    params, whole = arrays(0), arrays(0)
    parts = fastopt.Accumulator(variant(params, backend=backend), 2)
    plain = variant(whole, backend=backend)
    for seed in range(1, 5):
        parts.step(arrays(seed))
    for seed in (1, 3):
        one, two = arrays(seed), arrays(seed + 1)
        plain.step({name: (one[name] + two[name]) / 2 for name in SHAPES})
    close(params, whole)

    params, slow = arrays(0), arrays(0)
    ahead = fastopt.Lookahead(variant(params, backend=backend), k=2)
    plain = variant(slow, backend=backend)
    start = arrays(0)
    for seed in (1, 2):
        ahead.step(arrays(seed))
        plain.step(arrays(seed))
    close(params, {name: (start[name] + slow[name]) / 2 for name in SHAPES})
