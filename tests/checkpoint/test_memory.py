"""What a rule remembers of all arrays together is saved, checked and taken over."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.checkpoint.settings import Setting
from fastopt.errors import CheckpointError
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
NAMES = {"d", "d_max", "numerator"}


def arrays(seed: int, dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "W": rng.standard_normal((3, 4)).astype(dtype),
        "b": rng.standard_normal(5).astype(dtype),
        "none": np.zeros((0, 2), dtype),
    }


def made(params: Any, backend: str | None = None, **options: Any) -> fastopt.Prodigy:
    return fastopt.Prodigy(params, **{"d0": 1e-2, "backend": backend, **options})


def trained(
    backend: str | None = None, dtype: Any = np.float64, steps: int = 5, **options: Any
) -> tuple[dict[str, Any], fastopt.Prodigy]:
    params = arrays(0, dtype)
    opt = made(params, backend, **options)
    for seed in range(1, steps + 1):
        opt.step(arrays(seed, dtype))
    return params, opt


def everything(params: dict[str, Any], opt: Any) -> dict[str, Any]:
    return {"params": {k: p.copy() for k, p in params.items()}, "opt": opt.state_dict()}


def test_only_what_is_remembered_is_saved() -> None:
    _, opt = trained()
    memory = opt.state_dict()["memory"]
    assert memory.keys() == NAMES
    assert memory["d"] == opt.d
    assert all(type(value) is float for value in memory.values())
    memory["d"] = 7.0  # a copy
    assert opt.d != 7.0
    for other in (fastopt.LAMB, fastopt.Adam):
        assert "memory" not in other(np.ones(2)).state_dict()


@each_backend
@pytest.mark.parametrize("way", ["dict", "file", "converted"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "on_nonfinite": "skip"}])
def test_resumed_runs_end_in_the_same_bits(
    way: str, options: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    params, opt = trained(backend, **options)
    later = {name: param.copy() for name, param in params.items()}
    resumed = made(later, backend, **options)
    if way == "file":
        opt.save(tmp_path / "run.safetensors")
        for param in later.values():
            param[...] = 0
        resumed.load(tmp_path / "run.safetensors")
    else:
        resumed.load_state_dict(opt.state_dict(), convert=way == "converted")
    assert resumed.d == opt.d
    for seed in range(20, 24):
        opt.step(arrays(seed))
        resumed.step(arrays(seed))
    np.testing.assert_equal(everything(later, resumed), everything(params, opt))


def test_it_goes_along_where_everything_else_is_converted() -> None:
    _, opt = trained(dtype=np.float32)
    target = made(arrays(0))
    report = target.load_state_dict(opt.state_dict(), convert=True)
    assert report.converted
    assert not any("memory" in said for said in report.converted)
    assert target.state_dict()["memory"] == opt.state_dict()["memory"]


BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "memory must be a dict of numbers"),
    "a_list": ([1.0], "memory must be a dict of numbers"),
    "empty": ({}, "memory: 3 not in the file"),
    "one_less": ({"d": 1.0, "d_max": 1.0}, r"memory: 1 not in the file \['numerator'\]"),
    "one_more": ({"d": 1.0, "d_max": 1.0, "numerator": 0.0, "e": 1.0}, r"1 only in the file"),
    "text": ({"d": "1", "d_max": 1.0, "numerator": 0.0}, "memory: d must be a number; got '1'"),
    "a_flag": ({"d": 1.0, "d_max": True, "numerator": 0.0}, "memory: d_max must be a number"),
    "an_array": ({"d": np.ones(1), "d_max": 1.0, "numerator": 0.0}, "memory: d must be a number"),
    "too_large": ({"d": 10**400, "d_max": 1.0, "numerator": 0.0}, "memory: d must be a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_memory_is_refused_and_nothing_changes(case: str) -> None:
    params, source = trained()
    saved = source.state_dict()
    saved["memory"], message = BAD[case]
    target = made(params)
    before = everything(params, target)
    with pytest.raises(CheckpointError, match=message):
        target.load_state_dict(saved)
    np.testing.assert_equal(everything(params, target), before)


def test_memory_that_is_missing_or_of_something_else_is_refused_or_reported() -> None:
    params, source = trained()
    saved = source.state_dict()
    del saved["memory"]
    target = made(params)
    with pytest.raises(CheckpointError, match="memory: 3 not in the file"):
        target.load_state_dict(saved)
    report = target.load_state_dict(saved, strict=False)
    assert report.missing == ("memory:d", "memory:d_max", "memory:numerator")
    assert target.d == 1e-2
    report = target.load_state_dict({**saved, "memory": {"d": 2.0, "e": 1.0}}, strict=False)
    assert report.unexpected == ("memory:e",)
    assert target.state_dict()["memory"] == {"d": 2.0, "d_max": 1e-2, "numerator": 0.0}
    adam = fastopt.Adam(params)
    with pytest.raises(CheckpointError, match=r"memory: 0 not in the file .*1 only in the file"):
        adam.load_state_dict({**adam.state_dict(), "memory": {"d": 1.0}})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_a_run_came_to_is_taken_over_as_it_is(value: float, tmp_path: Path) -> None:
    params, opt = trained()
    saved = opt.state_dict()
    saved["memory"]["numerator"] = value
    opt.load_state_dict(saved)
    opt.save(tmp_path / "run")
    target = made(params)
    target.load(tmp_path / "run")
    assert target.state_dict()["memory"]["numerator"] == pytest.approx(value, nan_ok=True)


def test_a_file_says_it_in_plain_json(tmp_path: Path) -> None:
    _, opt = trained()
    opt.save(tmp_path / "run")
    content = (tmp_path / "run").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    manifest = json.loads(header["__metadata__"]["fastopt"])
    assert manifest["memory"] == opt.state_dict()["memory"]


@each_backend
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_step_that_is_not_made_remembers_nothing(policy: Any, backend: str) -> None:
    params, opt = trained(backend, on_nonfinite=policy)
    before = everything(params, opt)
    grads = arrays(9)
    grads["b"][2] = np.nan
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="b"):
            opt.step(grads)
    else:
        assert not opt.step(grads)
    np.testing.assert_equal(everything(params, opt), before)
    grads["b"] = np.ones(4)  # of another shape
    with pytest.raises(ValueError, match="shape"):
        opt.step(grads)
    np.testing.assert_equal(everything(params, opt), before)


@each_backend
def test_a_step_without_any_gradient_remembers_nothing_new(backend: str) -> None:
    params, opt = trained(backend)
    before = everything(params, opt)
    opt.step(dict.fromkeys(params))
    after = everything(params, opt)
    assert after["opt"].pop("step_count") == before["opt"].pop("step_count") + 1
    np.testing.assert_equal(after, before)


@each_backend
@pytest.mark.parametrize("name", ["cautious", "mask_zero"])
def test_options_that_an_older_checkpoint_lacks_are_reported(name: str, backend: str) -> None:
    params = arrays(0)
    source = fastopt.Adam(params, backend=backend)
    source.step(arrays(1))
    saved = source.state_dict()
    for group in saved["groups"]:
        del group["cautious"], group["mask_zero"]
    saved["fastopt"] = "0.0.1"
    target = fastopt.Adam(params, backend=backend, **{name: True})
    report = target.load_state_dict(saved)
    assert report.missing == ("groups[0].cautious", "groups[0].mask_zero")
    assert target.param_groups[0][name] is True
    (other,) = target.load_state_dict(source.state_dict()).settings
    assert other == Setting(f"groups[0].{name}", False, True, "here")
    assert target.param_groups[0][name] is True
