"""``watch``: what it records of a run is what the steps have done, whatever stands around."""

from __future__ import annotations

import copy
import csv
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.viz.watch import OF_PARAMETERS, OF_RUN
from helpers.cuda.runs import on_host
from helpers.variants import OF_MATRICES, VARIANTS, Variant


def draw(seed: int, *shape: int, dtype: Any = np.float64) -> Array:
    found: Array = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return found


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.abs(np.asarray(values, np.float64))))))


def close(one: Any, two: Any) -> None:
    np.testing.assert_allclose(one, two, rtol=1e-12, atol=0)


# What is recorded --------------------------------------------------------------------------------


def test_numbers_are_those_of_the_run(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = {"W": xp.asarray(draw(1, 4, 3)), "b": xp.asarray(draw(2, 3))}
    opt = fastopt.Adam(
        params, lambda t: 0.1 / (t + 1), max_grad_norm=1.5, on_nonfinite="skip", backend=backend
    )
    seen = fastopt.watch(opt, every=2)
    expected: dict[str, list[Any]] = {
        name: [] for name in ("rms", "update", "weight", "norm", "lr")
    }
    for step in range(5):
        grads = {"W": xp.asarray(draw(10 + step, 4, 3)), "b": xp.asarray(draw(20 + step, 3))}
        grads["b"][1] = 0.0
        held = {name: on_host(p).copy() for name, p in params.items()}
        rate = opt.lr
        seen.record(loss=xp.asarray(1.0 / (step + 1)))
        opt.step(grads, grad_scale=-0.5)
        if step % 2 == 0:
            hosts = {name: on_host(g) for name, g in grads.items()}
            expected["rms"].append([0.5 * rms(hosts[name]) for name in params])
            expected["update"].append([rms(on_host(params[n]) - held[n]) for n in params])
            expected["weight"].append([rms(held[n]) for n in params])
            expected["norm"].append(
                0.5 * math.sqrt(sum(float((g**2).sum()) for g in hosts.values()))
            )
            expected["lr"].append(rate)
    history = seen.history
    assert seen.names == ("W", "b")
    assert len(seen) == 3
    assert history["step"].tolist() == [1.0, 3.0, 5.0]
    close(history["loss"], [1.0, 1 / 3, 1 / 5])
    close(history["grad_rms"], expected["rms"])
    close(history["update_rms"], expected["update"])
    close(history["weight_rms"], expected["weight"])
    close(history["update_ratio"], np.divide(expected["update"], expected["weight"]))
    close(history["grad_norm"], expected["norm"])
    close(history["clip_factor"], np.minimum(1.0, 1.5 / (np.array(expected["norm"]) + 1e-6)))
    close(history["lr"], expected["lr"])
    close(history["grad_zeros"], [[0.0, 1 / 3]] * 3)
    assert (history["made"] == 1).all()
    state = opt.state_dict()["state"]
    close(history["m_rms"][-1], [rms(state[name]["m"]) for name in params])
    close(history["v_rms"][-1], [rms(state[name]["v"]) for name in params])
    assert (np.diff(history["time"]) > 0).all()


@pytest.mark.parametrize("variant", [*VARIANTS, *OF_MATRICES], ids=str)
def test_a_run_is_the_same_to_the_bit_with_and_without(variant: Variant) -> None:
    ends = []
    for watched in (False, True):
        params = {"W": draw(1, 5, 4, dtype=np.float32), "V": draw(2, 4, 4, dtype=np.float32)}
        opt = variant(params, max_grad_norm=1.0)
        seen = fastopt.watch(opt, every=2) if watched else None
        for step in range(4):
            opt.step({n: draw(step + k, *p.shape) for k, (n, p) in enumerate(params.items())})
        if seen is not None:
            assert np.isfinite(seen.history["update_rms"]).all()
            state = opt.state_dict()["state"]
            names = {q[:-4] for q in seen._quantities if q not in OF_PARAMETERS}
            assert names <= {slot for own in state.values() for slot in own}
        ends.append((params, opt.state_dict()))
    np.testing.assert_equal(*ends)


@pytest.mark.parametrize("dtype", [np.float16, np.complex64])
def test_other_dtypes(dtype: Any) -> None:
    param, grad = draw(1, 6, dtype=np.float32).astype(dtype), draw(2, 6).astype(dtype)
    if dtype is np.complex64:
        grad += np.complex64(2j)
    opt = fastopt.SGD(param, 0.5, momentum=0.9)
    seen = fastopt.watch(opt)
    held = param.copy()
    opt.step(grad)
    wide = np.complex128 if param.dtype.kind == "c" else np.float64
    close(seen.history["grad_rms"], [[rms(np.abs(grad.astype(wide)))]])
    close(seen.history["update_rms"], [[rms(np.abs(param.astype(wide) - held.astype(wide)))]])


def numbers_of(saved: dict[str, Any], slot: str, signed: bool) -> Array:
    """Return what a slot of a state_dict stands for: 8-bit floats of a block's scale, or numbers.

    A sign where there is one, three bits of exponent or four, four of fraction, with denormals.
    """
    codes = saved[slot]
    if codes.dtype != np.uint8:
        return codes.astype(np.complex128 if codes.dtype.kind == "c" else np.float64)
    order = saved.get("order")
    flat = (codes if order is None else codes.transpose(order)).reshape(-1)
    size = (flat & (127 if signed else 255)).astype(int)
    exponent, fraction = size >> 4, size & 15
    magnitude = np.where(exponent, (16.0 + fraction) * 2.0 ** (exponent - 1), fraction)
    scales = saved[f"{slot}_scale"].astype(float).repeat(256)[: flat.size]
    found: Array = magnitude * 2.0 ** (-10 if signed else -18) * scales
    return found  # without signs


CODED: list[tuple[Any, str]] = [
    (np.float32, "int8"),
    (np.float32, "bfloat16"),
    (np.complex64, "int8"),
    (np.float32, "float64"),
]


@pytest.mark.parametrize(("dtype", "state"), CODED, ids=str)
def test_state_in_codes_is_recorded_as_the_numbers_it_stands_for(
    dtype: Any, state: Any, place: tuple[Any, str]
) -> None:
    xp, backend = place
    shapes = {"a": (40_000,), "b": (31, 17), "c": (), "d": (0, 3)}
    params = {name: xp.asarray(draw(1, *shape, dtype=dtype)) for name, shape in shapes.items()}
    params["b"] = params["b"].T  # another order in memory than that of the gradients
    opt = fastopt.Adam(params, 1e-3, amsgrad=True, state_dtype=state, backend=backend)
    seen = fastopt.watch(opt)
    for step in range(2):
        opt.step({n: xp.asarray(draw(step, *p.shape, dtype=dtype)) for n, p in params.items()})
    saved = opt.state_dict()["state"]
    for slot in ("m", "v", "vmax"):
        for k, name in enumerate(seen.names):
            numbers = numbers_of(saved[name], slot, slot == "m")
            count = math.prod(shapes[name])
            recorded = seen.history[f"{slot}_rms"][-1, k]
            if count:
                close(recorded, math.sqrt((np.abs(numbers) ** 2).sum() / count))
            else:
                assert math.isnan(recorded)


def test_state_in_codes_that_is_not_finite_is_recorded_as_nan() -> None:
    opt = fastopt.Adam(np.ones(300, np.float32), state_dtype="int8")
    seen = fastopt.watch(opt)
    grad = np.ones(300, np.float32)
    grad[280] = np.nan
    opt.step(grad)
    assert np.isnan(seen.history["m_rms"]).all()


def test_steps_that_are_skipped_missing_gradients_and_frozen_groups(
    place: tuple[Any, str],
) -> None:
    xp, backend = place
    groups = [{"params": {"a": xp.ones(2)}}, {"params": {"b": xp.ones(2)}, "trainable": False}]
    opt = fastopt.SGD(groups, 0.5, on_nonfinite="skip", backend=backend)
    seen = fastopt.watch(opt)
    opt.step([{"a": xp.asarray([np.nan, 3.0])}, {"b": xp.ones(2)}])
    opt.step([{"a": None}, {"b": xp.ones(2)}])
    opt.step([{"a": xp.asarray([3.0, 4.0])}, {"b": xp.ones(2)}])
    history = seen.history
    assert history["made"].tolist() == [0.0, 1.0, 1.0]
    a, b = (seen.names.index(next(n for n in seen.names if n.endswith(end))) for end in "ab")
    np.testing.assert_equal(history["grad_nonfinite"][:, a], [1.0, np.nan, 0.0])
    np.testing.assert_equal(history["grad_max"][:, a], [np.nan, np.nan, 4.0])
    np.testing.assert_equal(history["update_rms"][:, a], [0.0, 0.0, 0.5 * rms([3.0, 4.0])])
    assert np.isnan(history["grad_rms"][:, b]).all()
    np.testing.assert_equal(history["grad_norm"], [np.nan, 0.0, 5.0])


def test_rows_and_members() -> None:
    opt = fastopt.SGD({"E": np.ones((5, 2))}, 1.0)
    seen = fastopt.watch(opt)
    opt.step({"E": fastopt.RowGrad([-1, 0, 4], np.array([[1.0, 0.0], [2.0, 2.0], [1.0, 0.0]]))})
    close(seen.history["grad_rms"], [[rms([[2.0, 0.0], [2.0, 2.0]])]])
    close(seen.history["update_rms"], [[math.sqrt(12.0 / 10.0)]])
    fits = fastopt.SGD(np.ones((4, 2)), np.arange(4.0), members=4, on_nonfinite="skip")
    seen = fastopt.watch(fits)
    grads = np.ones((4, 2))
    grads[1] = np.inf
    fits.step(grads)
    history = seen.history
    assert (history["made"].tolist(), history["lr"].tolist()) == ([0.75], [1.5])
    assert history["step"].tolist() == [1.0]


def test_some_parameters_alone() -> None:
    opt = fastopt.SGD({"a": np.ones(2), "b": np.full(2, 2.0)}, 0.5)
    seen = fastopt.watch(opt, parameters=["b"])
    opt.step({"a": np.array([3.0, 0.0]), "b": np.array([4.0, 0.0])})
    assert seen.names == ("b",)
    close(seen.history["grad_norm"], [5.0])


def test_parameters_that_come_and_are_resized() -> None:
    params = {"a": np.ones(3)}
    opt = fastopt.SGD(params, 0.5)
    seen = fastopt.watch(opt)
    opt.step({"a": np.ones(3)})
    opt.resize("a", np.ones(5))
    opt.step({"a": np.ones(5)})
    opt.add_param_group({"params": [np.ones(2)]})
    opt.step([{"a": np.ones(5)}, [np.ones(2)]])
    names, table = seen.names, seen.history["update_rms"]
    assert table.shape == (3, len(names)) == (3, 3)
    np.testing.assert_equal(
        table, [[0.5, np.nan, np.nan], [0.5, np.nan, np.nan], [np.nan, 0.5, 0.5]]
    )


# Around others -----------------------------------------------------------------------------------


def test_around_wrappers_the_optimizers_own_steps_are_recorded() -> None:
    opt = fastopt.SGD({"a": np.zeros(2)}, 1.0)
    outer = fastopt.Accumulator(fastopt.Lookahead(opt, k=2), every=2)
    seen = fastopt.watch(outer)
    for step in range(8):
        outer.add({"a": np.full(2, float(step))})
    close(seen.history["grad_rms"][:, 0], [0.5, 2.5, 4.5, 6.5])
    assert seen.history["step"].tolist() == [1, 2, 3, 4]


def test_gradients_of_a_scaled_loss_are_recorded_as_they_act() -> None:
    scaler, opt = fastopt.LossScaler(1024.0), fastopt.SGD(np.ones(2, np.float32), 1.0)
    seen = fastopt.watch(opt)
    average = fastopt.EMA(opt)
    scaler.step(opt, np.array([1024.0, 0.0], np.float32))
    scaler.update()
    average.update()
    close(seen.history["grad_max"], [[1.0]])
    close(seen.history["grad_norm"], [1.0])


def test_several_watch_at_once_and_each_stops_by_itself() -> None:
    opt = fastopt.SGD(np.ones(2), 0.1)
    other: list[int] = []
    opt.after_step.append(lambda own: other.append(own.step_count))
    with fastopt.watch(opt) as often, fastopt.watch(opt, every=3) as rarely:
        for _ in range(4):
            opt.step(np.ones(2))
        assert often.stop() is often
        assert not often.active
        for _ in range(3):
            opt.step(np.ones(2))
    opt.step(np.ones(2))
    assert (len(often), len(rarely), len(other)) == (4, 3, 8)
    assert (opt.before_step, len(opt.after_step)) == ([], 1)
    assert repr(often) == "<Watch of SGD: 4 records, every=1, stopped>"


def test_what_is_handed_in_belongs_to_the_coming_step() -> None:
    opt = fastopt.SGD(np.ones(2), 0.1)
    seen = fastopt.watch(opt, every=2)
    for step in range(4):
        seen.record(loss=step, accuracy=np.float32(0.5))
        opt.step(np.ones(2))
    opt.step(np.ones(2))
    np.testing.assert_equal(seen.history["loss"], [0.0, 2.0, np.nan])
    assert seen.history["accuracy"][:2].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="watch records lr by itself"):
        seen.record(lr=1.0)
    seen.every = 1
    seen.record(loss=[1.0, 2.0])
    with pytest.raises(TypeError, match="watch records numbers"):
        opt.step(np.ones(2))


def test_a_step_that_raises_is_not_recorded() -> None:
    opt = fastopt.SGD(np.ones(2), 0.1, on_nonfinite="raise")
    seen = fastopt.watch(opt)
    with pytest.raises(FloatingPointError):
        opt.step(np.full(2, np.nan))
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(3))
    opt.step(np.ones(2))
    assert len(seen) == 1


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_apart(way: Any) -> None:
    opt = fastopt.SGD({"a": np.ones(2)}, 0.1)
    seen = fastopt.watch(opt, every=2)
    opt.step({"a": np.ones(2)})
    other = way(seen)
    assert other._opt is not opt
    assert other.active
    for _ in range(2):
        other._opt.step({"a": np.ones(2)})
    assert (len(seen), len(other)) == (1, 2)
    copied = way(opt)
    (its,) = copied.before_step
    assert its is copied.after_step[0]
    copied.step({"a": np.ones(2)})
    copied.step({"a": np.ones(2)})
    assert (len(its), len(seen), opt.step_count) == (2, 1, 1)
    assert 0 < its.history["time"][0] < its.history["time"][1]
    assert its.stop()._opt is copied


def test_on_a_device_steps_that_are_not_recorded_wait_for_nothing(cupy: Any, cuda: Any) -> None:
    opt = fastopt.Adam({"a": cupy.ones(8), "b": cupy.ones(3)}, max_grad_norm=1.0)
    grads = {"a": cupy.ones(8), "b": cupy.ones(3)}
    seen = fastopt.watch(opt, every=3)
    loss = cupy.ones(())
    opt.step(grads)
    with cuda.no_waiting():
        for _ in range(2):
            seen.record(loss=loss)
            opt.step(grads)
    opt.step(grads)
    assert len(seen) == 2
    assert seen.history["step"].tolist() == [1.0, 4.0]


# Files, pictures, refusals -----------------------------------------------------------------------


def recorded() -> Any:
    params = {"W1": draw(1, 8, 6), "b1": np.zeros(6), "odd,name": draw(2, 6, 2)}
    opt = fastopt.Adam(params, fastopt.schedules.cosine(0.02, 60), on_nonfinite="skip")
    seen = fastopt.watch(opt, every=2)
    for step in range(60):
        seen.record(loss=math.exp(-step / 20))
        grads = {n: draw(step, *p.shape) / (step + 1) for n, p in params.items()}
        if step in (20, 21):
            grads["W1"][0, 0] = np.nan
        opt.step(grads)
    return seen.stop()


def test_a_csv_holds_every_digit(tmp_path: Path) -> None:
    seen = recorded()
    path = tmp_path / "run.csv"
    seen.to_csv(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    history = seen.history
    assert len(rows) == 30
    assert list(rows[0])[: len(OF_RUN) + 1] == [*OF_RUN, "loss"]
    assert "grad_rms:odd,name" in rows[0]
    for k, row in enumerate(rows):
        assert float(row["loss"]) == history["loss"][k]
        for number, name in enumerate(seen.names):
            value = history["update_rms"][k, number]
            assert float(row[f"update_rms:{name}"]) == value
    assert rows[10]["grad_rms:W1"] == ""
    assert rows[0]["step"] == "1"


def test_a_picture_shows_what_was_recorded(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    seen = recorded()
    figure = seen.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    panels = figure.axes
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles[:4] == [
        "loss",
        "gradients, RMS",
        "update / weights, RMS",
        "state, RMS: m solid, v dashed",
    ]
    (line,) = [one for one in panels[0].lines if one.get_label() == "loss"]
    np.testing.assert_equal(line.get_ydata(), seen.history["loss"])
    drawn = {one.get_label(): one for one in panels[1].lines}
    assert set(drawn) == {"W1", "b1", "odd,name"}
    column = seen.history["grad_rms"][:, seen.names.index("b1")]
    np.testing.assert_equal(drawn["b1"].get_ydata(), column)
    importable = pytest.importorskip("matplotlib.pyplot")
    importable.close(figure)


def test_what_cannot_be_watched_drawn_or_named() -> None:
    opt = fastopt.SGD({"a": np.ones(2)}, 0.1)
    with pytest.raises(TypeError, match="got LossScaler, which stands beside one"):
        fastopt.watch(fastopt.LossScaler())
    with pytest.raises(TypeError, match="got dict"):
        fastopt.watch({})
    with pytest.raises(ValueError, match="every"):
        fastopt.watch(opt, every=0)
    with pytest.raises(ValueError, match="no parameter is called 'b'; there are a"):
        fastopt.watch(opt, parameters=["b"])
    with pytest.raises(TypeError, match="a list of names"):
        fastopt.watch(opt, parameters="a")
    assert opt.before_step == opt.after_step == []
    with pytest.raises(ValueError, match="make steps first"):
        fastopt.watch(opt).plot()


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        seen.plot()
