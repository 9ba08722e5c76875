"""Rules on whole arrays: what is tested of all other optimizers, with matrices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from fastopt_kernels import ArrayRule
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
OTHERS: dict[str, tuple[int, ...]] = {
    "number": (),
    "vector": (5,),
    "again": (5,),
    "cube": (2, 3, 4),
    "no_columns": (3, 0),
    "nothing": (0,),
}
"""Of those that take any array."""


def shapes_of(variant: Variant) -> dict[str, tuple[int, ...]]:
    return SHAPES if variant.shape == (1, 1) else SHAPES | OTHERS


def arrays(variant: Variant, seed: int, dtype: Any = np.float64) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = shapes_of(variant)
    # What comes out of the generator without a shape is a number.
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def slots_of(opt: Any) -> dict[str, Array]:
    """Return all state of an optimizer in one dict."""
    entries = opt.state_dict()["state"].items()
    return {f"{name}.{slot}": v for name, e in entries for slot, v in e.items() if slot != "step"}


def run(
    variant: Variant, backend: str, steps: int = 4, dtype: Any = np.float64, **options: Any
) -> tuple[dict[str, Array], Any]:
    params = arrays(variant, 0, dtype)
    opt = variant(params, backend=backend, **options)
    for seed in range(1, steps + 1):
        opt.step(arrays(variant, seed, dtype))
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


def every(step: int, array: Array) -> Array:
    """Return a view of some elements, along each axis every so many."""
    found: Array = array[(..., *[slice(None, None, step)] * array.ndim)]
    return found


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": partial(np.array, order="F"),  # asfortranarray makes numbers vectors
    "every_second": lambda a: every(2, np.kron(a, np.ones((2,) * a.ndim, a.dtype))),
    "reversed": lambda a: every(-1, every(-1, a).copy()),
    "transposed": lambda a: a.T.copy().T,
    "columns": lambda a: np.stack([a, a], axis=max(a.ndim - 1, 0))[..., 0, :] if a.ndim else a,
}


@each_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_changes_as_a_contiguous_copy(
    variant: Variant, layout: str, backend: str
) -> None:
    view = LAYOUTS[layout]
    expected, plain = run(variant, backend)
    params = {name: view(array) for name, array in arrays(variant, 0).items()}
    opt = variant(params, backend=backend)
    for seed in range(1, 5):
        opt.step({name: view(array) for name, array in arrays(variant, seed).items()})
    close(params, expected)
    close(slots_of(opt), slots_of(plain))


@each_variant
def test_matrices_side_by_side_go_as_each_would_alone(variant: Variant, backend: str) -> None:
    together, _ = run(variant, backend)
    for name in shapes_of(variant):
        alone = arrays(variant, 0)[name]
        opt = variant(alone, backend=backend)
        for seed in range(1, 5):
            opt.step(arrays(variant, seed)[name])
        np.testing.assert_allclose(alone, together[name], rtol=1e-10)


@each_variant
def test_groups_and_missing_gradients_go_their_own_way(variant: Variant, backend: str) -> None:
    params, alone = arrays(variant, 0), arrays(variant, 0)
    opt = variant(
        [{"params": [params["a"], params["same"]], "lr": 0.5}, {"params": params["wide"]}],
        backend=backend,
    )
    one = variant(alone["same"], lr=0.5, backend=backend)
    for seed in range(1, 6):
        grads = arrays(variant, seed)
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
    grads = arrays(variant, 9)
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
    expected = arrays(variant, 0)
    plain = variant(expected, backend=backend)
    for seed in range(1, 5):
        grads = arrays(variant, seed)
        norm = math.sqrt(sum(float(np.sum(g * g)) for g in grads.values()))
        plain.step({name: grad * (0.5 / (norm + 1e-6)) for name, grad in grads.items()})
    assert opt.grad_norm == pytest.approx(norm, rel=1e-12)
    close(params, expected)


@each_variant
@pytest.mark.parametrize("kind", ["numbers", "arrays"])
def test_bounds_hold_and_forget_what_pushes_against_them(
    variant: Variant, kind: str, backend: str
) -> None:
    start, free = np.zeros((2, 3)), np.zeros((2, 3))
    grad = np.random.default_rng(0).standard_normal((2, 3))
    variant(free, lr=0.5, backend=backend).step(grad)
    lower, upper = 0.9 * float(free.min()), 0.7 * float(free.max())
    bounds: Any = (lower, upper)
    if kind == "arrays":
        bounds = (np.full((2, 3), lower), np.full((2, 3), upper))
    opt = variant(start, lr=0.5, bounds=bounds, reset_at_bounds=True, backend=backend)
    opt.step(grad)
    at_bound = (start == lower) | (start == upper)
    assert at_bound.sum() >= 2
    np.testing.assert_array_equal(start, np.clip(free, lower, upper))
    for slot, value in opt.state_dict()["state"]["params"].items():
        if slot in variant.rule.signed and value.shape == start.shape:
            np.testing.assert_array_equal(value == 0, at_bound)


@each_variant
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": "bfloat16"}, "and keeps .* leave out state_dtype='bfloat16', or set"),
        ({"state_dtype": "int8"}, "and keeps .* leave out state_dtype='int8', or set"),
        (
            {"stochastic_rounding": True, "master_weights": False},
            "for which there is no stochastic_rounding; leave it out: master_weights=True",
        ),
        ({"cautious": True}, "for which there is no cautious; leave it out"),
        ({"mask_zero": True}, "for which there is no mask_zero; leave it out"),
    ],
)
def test_options_of_single_elements_are_refused(
    variant: Variant, options: dict[str, Any], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        variant(np.ones((2, 2), np.float32), backend=backend, **options)
    named = {name for name in ("state_dtype", "stochastic_rounding") if name in str(caught.value)}
    assert named == {"state_dtype", "stochastic_rounding"} & options.keys()
    assert str(caught.value).startswith(f"{variant.optimizer.__name__} updates whole arrays")


@each_variant
def test_state_in_float64_is_the_run_in_float64_rounded(variant: Variant, backend: str) -> None:
    params, opt = run(variant, backend, dtype=np.float32, state_dtype="float64")
    expected = {name: array.astype(float) for name, array in arrays(variant, 0, np.float32).items()}
    plain = variant(expected, backend=backend)
    for seed in range(1, 5):
        plain.step({k: g.astype(float) for k, g in arrays(variant, seed, np.float32).items()})
    close({k: p.astype(float) for k, p in params.items()}, expected, 1e-6)
    assert {value.dtype for value in slots_of(opt).values()} == {np.dtype(float)}


@each_variant
@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_that_of_float32_rounded(
    variant: Variant, dtype: Any, master: bool, backend: str
) -> None:
    params = {name: array.astype(dtype) for name, array in arrays(variant, 0, np.float32).items()}
    wide = {name: array.astype(np.float32) for name, array in params.items()}
    opt = variant(params, backend=backend, master_weights=master)
    plain = variant(wide, backend=backend)
    for seed in range(1, 5):
        grads = {name: array.astype(dtype) for name, array in arrays(variant, seed).items()}
        opt.step(grads)
        plain.step({name: array.astype(np.float32) for name, array in grads.items()})
        if not master:
            for array in wide.values():
                array[...] = array.astype(dtype)
    for name in shapes_of(variant):
        np.testing.assert_array_equal(params[name], wide[name].astype(dtype), err_msg=name)
    masters = {f"{name}.master" for name in params} if master else set()
    assert slots_of(opt).keys() == slots_of(plain).keys() | masters


@each_variant
def test_trainable_maximize_and_schedules(variant: Variant, backend: str) -> None:
    params, other = arrays(variant, 0), arrays(variant, 0)
    up = variant(params, maximize=True, lr=lambda t: 0.5 * (1 - t / 10), backend=backend)
    down = variant(other, lr=0.5, backend=backend)
    for seed in range(1, 4):
        down.lr = 0.5 * (1 - (seed - 1) / 10)
        up.step(arrays(variant, seed))
        down.step({name: -grad for name, grad in arrays(variant, seed).items()})
    close(params, other, 1e-12)
    before = everything(params, up)["params"]
    up.param_groups[0]["trainable"] = False
    up.step(arrays(variant, 7))
    np.testing.assert_equal(everything(params, up)["params"], before)


# Whole steps, checkpoints, wrappers --------------------------------------------------------------


@each_variant
def test_a_step_that_raises_changes_nothing(variant: Variant, backend: str) -> None:
    params, opt = run(variant, backend)
    before = everything(params, opt)
    grads: dict[str, Any] = arrays(variant, 9)
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
        opt.step(arrays(variant, 9))
    assert calls
    np.testing.assert_equal(everything(params, opt), before)
    monkeypatch.undo()
    opt.step(arrays(variant, 9))
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
        opt.step(arrays(variant, seed))
        resumed.step(arrays(variant, seed))
    np.testing.assert_equal(everything(later, resumed), everything(params, opt))
    saved = opt.state_dict()
    slot = next(iter(saved["state"]["a"].keys() - {"step"}))
    saved["state"]["a"][slot] = np.ones(3)
    with pytest.raises(CheckpointError, match=rf"state:a\.{slot}"):
        resumed.load_state_dict(saved)
    np.testing.assert_equal(everything(later, resumed), everything(params, opt))


@each_variant
def test_state_is_converted_if_asked(variant: Variant, backend: str) -> None:
    _, opt = run(variant, backend, dtype=np.float32)
    target = variant(arrays(variant, 0), backend=backend)
    with pytest.raises(CheckpointError):
        target.load_state_dict(opt.state_dict())
    report = target.load_state_dict(opt.state_dict(), convert=True)
    assert set(report.converted) >= {f"state:{s}: float32 -> float64" for s in slots_of(opt)}
    close(slots_of(target), slots_of(opt))


@each_variant
def test_wrappers_go_round_it(variant: Variant, backend: str) -> None:
    params = arrays(variant, 0)
    opt = variant(params, backend=backend)
    ema = fastopt.EMA(params, 0.5)
    scaler = fastopt.LossScaler(init_scale=8.0)
    for seed in range(1, 4):
        scaled = {name: grad * scaler.scale for name, grad in arrays(variant, seed).items()}
        scaler.step(opt, scaled)
        scaler.update()
        ema.update()
    expected, _ = run(variant, backend, 3)
    close(params, expected)

    params, whole = arrays(variant, 0), arrays(variant, 0)
    parts = fastopt.Accumulator(variant(params, backend=backend), 2)
    plain = variant(whole, backend=backend)
    for seed in range(1, 5):
        parts.step(arrays(variant, seed))
    for seed in (1, 3):
        one, two = arrays(variant, seed), arrays(variant, seed + 1)
        plain.step({name: (one[name] + two[name]) / 2 for name in shapes_of(variant)})
    close(params, whole)

    params, slow = arrays(variant, 0), arrays(variant, 0)
    ahead = fastopt.Lookahead(variant(params, backend=backend), k=2)
    plain = variant(slow, backend=backend)
    start = arrays(variant, 0)
    for seed in (1, 2):
        ahead.step(arrays(variant, seed))
        plain.step(arrays(variant, seed))
    close(params, {name: (start[name] + slow[name]) / 2 for name in shapes_of(variant)})


# State of other shapes than the parameter's -----------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_state_by_row_follows_the_rows_that_are_kept(dtype: Any, backend: str) -> None:
    params = {k: np.random.default_rng(1).standard_normal((6, 2)).astype(dtype) for k in "ab"}
    params["v"] = np.arange(6.0).astype(dtype)
    opt = fastopt.Adafactor(params, backend=backend)
    grads = {k: np.random.default_rng(5).standard_normal(p.shape) for k, p in params.items()}
    opt.step(grads)
    before = {name: value.copy() for name, value in slots_of(opt).items()}
    opt.resize("a", np.ones((3, 2), dtype), keep=[4, 0])
    opt.resize("v", np.ones(7, dtype), keep=[5])
    after = slots_of(opt)
    np.testing.assert_array_equal(after["a.r"], [before["a.r"][4], before["a.r"][0], [0.0]])
    np.testing.assert_array_equal(after["a.c"], before["a.c"])
    np.testing.assert_array_equal(after["v.v"], [before["v.v"][5], *[0.0] * 6])
    for name in ("b.r", "b.c"):
        np.testing.assert_array_equal(after[name], before[name])
    opt.step({"a": np.ones((3, 2)), "b": grads["b"], "v": np.ones(7)})
    assert opt.step_count == 2


def test_state_of_all_rows_together_refuses_others(backend: str) -> None:
    class Together(fastopt.Adafactor):
        @staticmethod
        def _rule(options: Any) -> ArrayRule:
            right = fastopt.Adafactor._rule(options)
            both = [("r", lambda shape: (shape[0], shape[0])), *right.shapes[1:]]
            return dataclasses.replace(right, shapes=tuple(both))

    opt = Together({"a": np.ones((3, 2)), "b": np.ones((3, 2))}, backend=backend)
    with pytest.raises(ValueError, match=r"Together: 'a' cannot have other rows.*'r', of shape"):
        opt.resize("a", np.ones((4, 2)))
    assert opt.params["a"].shape == (3, 2)


def test_state_takes_no_more_memory_than_it_has_numbers(backend: str) -> None:
    opt = fastopt.Adafactor({"a": np.ones((100, 200)), "b": np.ones(7)}, backend=backend)
    assert {name: value.shape for name, value in slots_of(opt).items()} == {
        "a.r": (100, 1),
        "a.c": (1, 200),
        "b.v": (7,),
    }
    assert sum(bucket.nbytes for bucket in opt._state.buckets) == 8 * (100 + 200 + 7)


def test_an_entry_lacks_the_state_that_its_parameter_does_not_have(backend: str) -> None:
    opt = fastopt.Adafactor({"a": np.ones((2, 3)), "b": np.ones(3)}, backend=backend)
    saved = opt.state_dict()
    saved["state"]["b"], saved["state"]["a"] = saved["state"]["a"], saved["state"]["b"]
    with pytest.raises(CheckpointError, match=r"a: expected step and \['c', 'r'\]; got"):
        opt.load_state_dict(saved)


def test_a_rule_with_shapes_of_no_state_is_refused(backend: str) -> None:
    right = fastopt.Adafactor._rule({"eps1": None})
    with pytest.raises(TypeError, match="shapes names no state: \\['q'\\]"):
        dataclasses.replace(right, shapes=(("q", lambda shape: shape),))


# Several rules in a group ------------------------------------------------------------------------


def test_each_parameter_goes_as_with_its_own_optimizer(backend: str) -> None:
    variant = next(v for v in OF_MATRICES if v.name == "muon_with_adamw")
    params, opt = run(variant, backend, weight_decay=0.2, adamw_weight_decay=0.3, lr_scale=0.5)
    expected = arrays(variant, 0)
    kinds: dict[str, Any] = {
        name: fastopt.Muon(expected[name], lr=0.01, weight_decay=0.2, backend=backend)
        if rule == "muon"
        else fastopt.AdamW(expected[name], lr=0.005, weight_decay=0.3, backend=backend)
        for name, rule in opt.rules.items()
    }
    for seed in range(1, 5):
        for name, one in kinds.items():
            one.step(arrays(variant, seed)[name])
    close(params, expected)
    assert opt.rules == {k: "muon" if len(p.shape) == 2 else "adamw" for k, p in params.items()}


def test_which_rule_can_be_set_by_pattern_and_stays(backend: str) -> None:
    params = {"table": np.ones((3, 2)), "W": np.ones((3, 2)), "b": np.ones(3)}
    settings = {"table": {"rule": "adamw", "adamw_lr": 0.1}}
    opt = fastopt.MuonWithAdamW(fastopt.groups(params, settings), backend=backend)
    assert opt.rules == {"table": "adamw", "W": "muon", "b": "adamw"}
    opt.step({"table": np.ones((3, 2)), "W": np.ones((3, 2)), "b": np.ones(3)})
    assert params["table"][0, 0] == pytest.approx(1 - 0.1 * 0.01 - 0.1)
    assert params["b"][0] == pytest.approx(1 - 1e-3 * 0.01 - 1e-3)
    for rule, wrong in [("adamw", r'"W"'), ("muon", r'"b"')]:
        with pytest.raises(ValueError, match=rf"MuonWithAdamW: .*params\[{wrong}\]"):
            opt.param_groups[0]["rule"] = rule
    assert opt.param_groups[0]["rule"] == "auto"
    opt.param_groups[1]["rule"] = "adamw"  # as it is
    with pytest.raises(ValueError, match=r'must be a matrix.*for rule="muon"; got one of shape'):
        fastopt.MuonWithAdamW(params, rule="muon", backend=backend)


def test_adamws_rate_can_follow_a_schedule_of_its_own(backend: str) -> None:
    variant = next(v for v in OF_MATRICES if v.name == "muon_with_adamw")
    rates = [0.1, 0.05, 0.02, 0.0]
    params, _ = run(variant, backend, adamw_lr=lambda t: rates[t])
    expected = arrays(variant, 0)
    opt = variant(expected, backend=backend)
    for seed, rate in enumerate(rates, 1):
        opt.param_groups[0]["adamw_lr"] = rate
        opt.step(arrays(variant, seed))
    close(params, expected, 1e-14)
    with pytest.raises(ValueError, match="adamw_lr at step 0"):
        variant(expected, backend=backend, adamw_lr=lambda t: -1.0).step(arrays(variant, 1))


def test_groups_of_adamw_alone_take_what_muon_refuses(backend: str) -> None:
    with pytest.raises(ValueError, match="no cautious"):
        fastopt.MuonWithAdamW(np.ones((2, 2)), cautious=True, backend=backend)
    with pytest.raises(TypeError, match="MuonWithAdamW takes real arrays"):
        fastopt.MuonWithAdamW(np.ones((2, 2), complex), backend=backend)
    param, other = np.ones((2, 2), complex), np.ones((2, 2), complex)
    grad = np.array([[1.0 + 2j, -1.0], [0.5j, 0.0]])
    fastopt.MuonWithAdamW(param, rule="adamw", cautious=True, backend=backend).step(grad)
    fastopt.AdamW(other, cautious=True, backend=backend).step(grad)
    np.testing.assert_array_equal(param, other)


# Decisions of the host, decompositions ------------------------------------------------------------


def test_what_the_host_decides_cannot_be_captured(backend: str) -> None:
    with pytest.raises(ValueError, match=r"SOAP cannot be captured.*leave out capturable"):
        fastopt.SOAP(np.ones((2, 2)), capturable=True, backend=backend)


def test_a_rule_with_decisions_by_no_scalar_is_refused(backend: str) -> None:
    right = fastopt.SOAP(np.ones((2, 2)), backend=backend)._state.buckets[0].rule
    with pytest.raises(TypeError, match="decisions names no scalar: \\['q'\\]"):
        dataclasses.replace(right, decisions=("q",))


@pytest.mark.parametrize(  # both at the steps 2, 4, ... from 0
    ("name", "what", "at"), [("soap", "eigh", 0), ("soap", "qr", 2), ("shampoo", "eigh", 2)]
)
def test_a_decomposition_that_fails_changes_nothing(
    name: str, what: str, at: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = next(v for v in OF_MATRICES if v.name == name)
    params, opt = run(variant, backend, at)
    expected, plain = run(variant, backend, at)
    before, calls = everything(params, opt), []
    right = getattr(np.linalg, what)

    def fails(*arguments: Any) -> Any:
        calls.append(right(*arguments))
        if len(calls) > 2:
            raise np.linalg.LinAlgError("Eigenvalues did not converge")
        return calls[-1]

    monkeypatch.setattr(np.linalg, what, fails)
    with pytest.raises(np.linalg.LinAlgError):
        opt.step(arrays(variant, 9))
    assert len(calls) == 3
    np.testing.assert_equal(everything(params, opt), before)
    monkeypatch.undo()
    opt.step(arrays(variant, 9))
    plain.step(arrays(variant, 9))
    np.testing.assert_equal(everything(params, opt), everything(expected, plain))


def test_the_first_step_only_begins_and_vectors_go_as_with_adam(backend: str) -> None:
    variant = next(v for v in OF_MATRICES if v.name == "soap")
    start = arrays(variant, 0)
    params, opt = run(variant, backend, 1)
    np.testing.assert_equal(params, start)
    vector, adam = start["vector"].copy(), start["vector"].copy()
    options: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.0}
    opt = fastopt.SOAP(vector, lr=0.1, backend=backend, **options)
    plain = fastopt.Adam(adam, lr=0.1, eps_hat=True, backend=backend, **options)
    for seed in range(5):
        grad = arrays(variant, seed)["vector"]
        opt.step(grad)
        if seed:
            plain.step(grad)
    np.testing.assert_allclose(vector, adam, rtol=1e-12)
    assert slots_of(opt).keys() == {"params.m", "params.v"}


def test_state_by_axis_stays_that_of_its_shapes(backend: str) -> None:
    params = {"a": np.ones((6, 2)), "b": np.ones((2, 3))}
    opt = fastopt.SOAP(params, max_precondition_dim=5, backend=backend)
    assert {name: value.shape for name, value in slots_of(opt).items() if name[2] in "gb"} == {
        "a.gram1": (2, 2),
        "a.basis1": (2, 2),
        "b.gram0": (2, 2),
        "b.gram1": (3, 3),
        "b.basis0": (2, 2),
        "b.basis1": (3, 3),
    }
    with pytest.raises(ValueError, match=r"SOAP: this change needs state of other shapes.*\"a\""):
        opt.param_groups[0]["max_precondition_dim"] = 6
    opt.param_groups[0]["max_precondition_dim"] = 4  # as it is
    opt.param_groups[0]["precondition_frequency"] = 3
    with pytest.raises(ValueError, match=r"'a' cannot have the shape \(5, 2\).*'gram0'"):
        opt.resize("a", np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"'b' cannot have other rows.*'gram0'"):
        opt.resize("b", np.ones((4, 3)))
    opt.resize("a", np.ones((7, 2)))
    opt.step({"a": np.ones((7, 2)), "b": np.ones((2, 3))})


def test_arrays_of_nine_axes_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=r"SOAP: params must have at most 8 axes; got float64"):
        fastopt.SOAP(np.ones((1,) * 9), backend=backend)


@pytest.mark.parametrize("optimizer", [fastopt.CAME, fastopt.Adafactor])
def test_a_row_without_gradients_beside_large_ones(optimizer: Any, backend: str) -> None:
    """In float32 the quotient of their averages is less than there is."""
    grad = np.zeros((2, 4), np.float32)
    grad[1] = 1e8
    param, wide = np.ones((2, 4), np.float32), np.ones((2, 4))
    for own, dtype in ((param, np.float32), (wide, np.float64)):
        opt = optimizer(own, lr=0.1, backend=backend)
        for _ in range(3):
            opt.step(grad.astype(dtype))
    np.testing.assert_allclose(param, wide, rtol=1e-5)
    assert (param[0] == 1).all()
    assert (param[1] < 1).all()
