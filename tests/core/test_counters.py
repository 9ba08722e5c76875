"""Arrays of whole numbers in a frozen group: they have no state, and stay as they are."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)

DTYPES = ["i8", "i4", "i2", "b", "B", "u4", "u8", "?"]
FROZEN: dict[str, Any] = {"bn.**": {"trainable": False}}


def model(seed: int = 0) -> dict[str, Any]:
    """Return two layers of weights, and statistics of which some are no floating numbers."""
    rng = np.random.default_rng(seed)
    return {
        "W": rng.standard_normal((3, 4)).astype(np.float32),
        "bn": {
            "count": np.array(7 + seed),
            "mean": rng.standard_normal(4).astype(np.float32),
            "seen": np.arange(4) > seed,
            "key": np.array([seed, 2**32 - 1], np.uint32),
        },
        "b": rng.standard_normal(4),
    }


def gradients(seed: int, statistics: Any = None) -> dict[str, Any]:
    rng = np.random.default_rng(100 + seed)
    return {
        "W": rng.standard_normal((3, 4)).astype(np.float32),
        "bn": statistics,
        "b": rng.standard_normal(4),
    }


def weights(params: dict[str, Any]) -> dict[str, Array]:
    return {"W": params["W"], "b": params["b"]}


@each_backend
@each_variant
@pytest.mark.parametrize("policy", [{}, {"max_grad_norm": 0.5, "on_nonfinite": "raise"}])
def test_a_run_is_that_of_the_weights_alone(variant: Variant, backend: str, policy: Any) -> None:
    params, alone = model(), weights(model())
    statistics = model()["bn"]
    opt = variant(fastopt.groups(params, FROZEN), backend=backend, **policy)
    plain = variant(alone, backend=backend, **policy)
    nothing: list[Any] = [None, {}, statistics, params["bn"], "text", dict.fromkeys(statistics)]
    for step, given in enumerate(nothing):
        opt.step(gradients(step, given))
        plain.step(weights(gradients(step)))
    np.testing.assert_equal(weights(params), alone)
    np.testing.assert_equal(params["bn"], statistics)
    entries = opt.state_dict()["state"]
    assert set(entries) == {"W", "b", "bn.mean"}
    del entries["bn.mean"]
    np.testing.assert_equal(entries, plain.state_dict()["state"])
    assert opt.grad_norm == plain.grad_norm
    assert list(opt.param_groups[1]["params"]) == ["bn.count", "bn.key", "bn.mean", "bn.seen"]


@each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_whole_numbers_can_be_frozen(dtype: str, backend: str) -> None:
    counter = np.ones((2, 3), dtype)[:, ::2]
    forms: list[tuple[Any, Any]] = [
        (fastopt.groups([np.zeros(2), counter], {"1": {"trainable": False}}), [np.ones(2), None]),
        ([{"params": np.zeros(2)}, {"params": [counter], "trainable": False}], [np.ones(2), None]),
    ]
    for params, grads in forms:
        opt = fastopt.Adam(params, backend=backend)
        opt.step(grads)
        opt.step(grads)
        assert list(opt.state_dict()["state"]) in (["0"], ["0.params"])
    assert (counter == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_frozen_group_the_error_says_what_to_write(dtype: str) -> None:
    params = {"bn": {"count": np.ones(3, dtype)}, "W": np.zeros(2)}
    with pytest.raises(TypeError, match=r'params\["bn"\]\["count"\] must be .* got') as caught:
        fastopt.SGD(params)
    said = re.search(r"fastopt\.groups\(.*\)", str(caught.value))
    assert said is not None
    fastopt.SGD(eval(said[0])).step({"bn": None, "W": np.ones(2)})
    cast = re.search(r'params\["bn"\]\["count"\]\.astype\([^)]*\)', str(caught.value))
    assert cast is not None
    params["bn"]["count"] = eval(cast[0])
    fastopt.SGD(params).step(params_like(params))


def params_like(params: dict[str, Any]) -> dict[str, Any]:
    return {"bn": {"count": np.ones(3)}, "W": np.ones(2)}


def test_without_a_frozen_group_in_a_list_the_error_says_what_to_write() -> None:
    params = [{"params": [np.zeros(2), np.array(3)]}]
    with pytest.raises(TypeError, match=r'params\[0\]\["params"\]\[1\] must be') as caught:
        fastopt.SGD(params)
    said = re.search(r'\{"params": .*\}', str(caught.value))
    assert said is not None
    group = eval(said[0])
    fastopt.SGD([{"params": [params[0]["params"][0]]}, group]).step([[np.ones(2)], None])


@each_backend
def test_a_group_with_whole_numbers_cannot_be_trained(backend: str) -> None:
    params = model()
    opt = fastopt.SGD(fastopt.groups(params, FROZEN), lr=1.0, backend=backend)
    opt.step(gradients(1))
    with pytest.raises(TypeError, match=r'params\["bn"\]\["count"\] must be .*int64'):
        opt.param_groups[1]["trainable"] = True
    assert opt.param_groups[1]["trainable"] is False
    opt.step(gradients(2))
    assert opt.step_count == 2


def test_there_has_to_be_something_that_is_trained() -> None:
    with pytest.raises(ValueError, match="no parameters; params holds no floating array"):
        fastopt.SGD(np.array(3), trainable=False)
    with pytest.raises(TypeError, match="must be of one of the dtypes") as caught:
        fastopt.SGD([np.array(3)])
    assert "groups" not in str(caught.value)  # freezing it would leave nothing


@pytest.mark.parametrize("dtype", ["O", "S3", "U3", "M8[s]", "m8[s]", "V4", ">i4"])
def test_only_whole_numbers_can_be_frozen(dtype: str) -> None:
    params = [np.zeros(2), np.zeros(2, dtype)]
    with pytest.raises(TypeError, match=r"params\[1\] must be of one of the dtypes"):
        fastopt.SGD(fastopt.groups(params, {"1": {"trainable": False}}))


@each_backend
@each_variant
def test_they_are_saved_and_restored(variant: Variant, backend: str, tmp_path: Path) -> None:
    params, later = model(), model(1)
    opt = variant(fastopt.groups(params, FROZEN), backend=backend)
    for step in range(3):
        params["bn"]["count"] += 1
        opt.step(gradients(step))
    opt.save(tmp_path / "run")
    resumed = variant(fastopt.groups(later, FROZEN), backend=backend)
    resumed.load(tmp_path / "run")
    np.testing.assert_equal(later, params)
    assert later["bn"]["count"] == 10
    for one in (opt, resumed):
        one.step(gradients(5))
    np.testing.assert_equal(later, params)
    np.testing.assert_equal(resumed.state_dict(), opt.state_dict())


def test_one_that_was_replaced_is_saved_as_it_is_now(tmp_path: Path) -> None:
    params, later = model(), model(1)
    opt = fastopt.SGD(fastopt.groups(params, FROZEN))
    params["bn"]["count"] = params["bn"]["count"] + 5
    params["bn"]["key"] = np.array([3, 4], np.uint32)
    opt.save(tmp_path / "run")
    fastopt.SGD(fastopt.groups(later, FROZEN)).load(tmp_path / "run")
    assert (later["bn"]["key"].tolist(), later["bn"]["count"]) == ([3, 4], 12)
    with pytest.raises(ValueError, match=r'params\["bn"\]\["count"\] is written in place'):
        opt.load(tmp_path / "run")
    params["bn"]["count"] = 12
    with pytest.raises(ValueError, match=r'params\["bn"\]\["count"\] was an array of int64'):
        opt.save(tmp_path / "run")


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    params = model()
    opt = fastopt.SGD(fastopt.groups(params, FROZEN))
    opt.save(tmp_path / "run")
    other = model(1)
    other["bn"]["key"] = np.zeros(3, np.uint32)
    target = fastopt.SGD(fastopt.groups(other, FROZEN))
    with pytest.raises(CheckpointError, match=r"param:bn\.key"):
        target.load(tmp_path / "run")
    target.load(tmp_path / "run", strict=False)
    assert other["bn"]["key"].tolist() == [0, 0, 0]
    assert other["bn"]["count"] == 7
    params["bn"]["count"][...] = 9
    params["W"][...] = 1.0
    params["bn"]["count"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.load(tmp_path / "run")
    assert (params["W"] == 1.0).all()


@each_backend
def test_groups_of_whole_numbers_alone_are_saved(backend: str, tmp_path: Path) -> None:
    def made(seed: int) -> tuple[dict[str, Any], fastopt.Optimizer]:
        params = {"W": np.full(2, seed, float), "n": np.array(seed), "k": np.array([seed])}
        each: dict[str, Any] = {"n": {"trainable": False}, "k": {"trainable": False, "lr": 0.25}}
        return params, fastopt.Adam(fastopt.groups(params, each), backend=backend)

    (params, opt), (later, other) = made(1), made(2)
    opt.step({"W": np.ones(2), "n": None, "k": None})
    opt.save(tmp_path / "run")
    other.load(tmp_path / "run")
    np.testing.assert_equal(later, params)
    assert [group["lr"] for group in other.param_groups] == [1e-3, 1e-3, 0.25]


@each_backend
def test_buffers_of_gradients_have_none_for_them(backend: str) -> None:
    params = model()
    opt = fastopt.SGD(fastopt.groups(params, FROZEN), lr=1.0, backend=backend)
    before = params["W"].copy()
    grads = opt.gradient_buffers()
    assert [grads["bn"][name] for name in ("count", "seen", "key")] == [None, None, None]
    grads["W"][...] = 1.0
    opt.step(grads)
    opt.step(gradients(1))
    opt.step(grads)
    np.testing.assert_allclose(params["W"], before - 2.0 - gradients(1)["W"], rtol=1e-5)
    grads["W"] = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="not its gradient buffer any more"):
        opt.step(grads)


@each_backend
def test_members_and_bounds_are_no_matter_to_them(backend: str) -> None:
    params = {"W": np.zeros((3, 2)), "n": np.array(5), "key": np.zeros(7, np.uint8)}
    frozen: dict[str, Any] = {"n": {"trainable": False}, "key": {"trainable": False}}
    bounds = (None, {"W": np.full((3, 2), 0.5), "n": None, "key": None})
    opt = fastopt.SGD(fastopt.groups(params, frozen), lr=1.0, bounds=bounds, backend=backend)
    opt.step({"W": -np.ones((3, 2)), "n": None, "key": None})
    assert params["W"].max() == 0.5
    many = fastopt.SGD(fastopt.groups(params, frozen), lr=1.0, backend=backend, members=3)
    many.step({"W": -np.ones((3, 2)), "n": None, "key": None})
    assert params["W"].max() == 1.5


def test_rules_that_choose_their_arrays_do_not_look_at_them() -> None:
    params = {"W": np.ones((3, 2)), "n": np.array(5)}
    opt = fastopt.Muon(fastopt.groups(params, {"n": {"trainable": False}}))
    opt.step({"W": np.ones((3, 2)), "n": None})
    assert params["n"] == 5


@each_backend
def test_they_stay_beside_parameters_that_are_others(backend: str) -> None:
    params = model()
    opt = fastopt.SGD(fastopt.groups(params, FROZEN), lr=1.0, backend=backend)
    before = params["W"].copy()
    added = opt.updates(gradients(1))
    np.testing.assert_array_equal(before + added["W"], before - gradients(1)["W"])
    np.testing.assert_equal(added["bn"], {name: 0 * params["bn"][name] for name in params["bn"]})
    np.testing.assert_array_equal(params["W"], before)
    opt.gradient_buffers()
    other = model(1)
    opt.rebind(other)
    opt.step(gradients(1), params=other)
    np.testing.assert_array_equal(other["W"], model(1)["W"] - gradients(1)["W"])
    twin = copy.deepcopy(opt)
    twin.step(gradients(2))
    np.testing.assert_equal(twin.params["bn"], model(1)["bn"])
    with pytest.raises(ValueError, match=r'params\["bn"\]\["count"\] must be int64 of shape'):
        opt.rebind({**other, "bn": {**other["bn"], "count": np.zeros(2, int)}})


@each_backend
def test_they_are_resized_and_added(backend: str) -> None:
    params: dict[str, Any] = {"W": np.zeros(2), "seen": np.arange(3)}
    frozen: dict[str, Any] = {"seen": {"trainable": False}}
    opt = fastopt.SGD(fastopt.groups(params, frozen), lr=1.0, backend=backend)
    opt.resize("seen", np.arange(4))
    assert params["seen"].tolist() == [0, 1, 2, 3]
    opt.step({"W": np.ones(2), "seen": None})
    assert params["W"].tolist() == [-1.0, -1.0]
    more = fastopt.SGD([{"params": [np.zeros(2)]}], lr=1.0, backend=backend)
    more.add_param_group({"params": {"n": np.array(3)}, "trainable": False})
    more.step([[np.ones(2)], None])
    with pytest.raises(TypeError, match="must be of one of the dtypes"):
        more.add_param_group({"params": {"n": np.array(3)}})
    more.step([[np.ones(2)], None])
    assert more.params[0][0].tolist() == [-2.0, -2.0]
