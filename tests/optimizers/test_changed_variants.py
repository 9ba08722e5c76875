"""Options that say how a formula is written, changed in an optimizer in use, saved and loaded.

Where the state stays what it is, so may the option be changed; where it would mean something else,
the change is refused and nothing has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import CheckpointError
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
GRADS = np.random.default_rng(5).standard_normal((6, 4))

FREE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "adam_eps_hat": (fastopt.Adam, {"eps": 0.1}, "eps_hat"),
    "adamw_eps_hat_amsgrad": (fastopt.AdamW, {"eps": 0.1, "amsgrad": True}, "eps_hat"),
    "adagrad_eps_inside": (fastopt.Adagrad, {"eps": 0.1}, "eps_inside_sqrt"),
    "adam_eps_inside": (fastopt.Adam, {"eps": 0.1}, "eps_inside_sqrt"),
    "rmsprop_eps_inside": (fastopt.RMSprop, {"eps": 0.1}, "eps_inside_sqrt"),
}


@each_backend
@pytest.mark.parametrize("name", FREE)
def test_an_option_that_leaves_state_as_it_is_can_be_changed(name: str, backend: str) -> None:
    make, options, switch = FREE[name]
    params = [np.ones(4), np.ones(4)]
    changed = make(params[0], backend=backend, **options)
    for grad in GRADS[:3]:
        changed.step(grad)
    params[1][...] = params[0]
    built = make(params[1], backend=backend, **{**options, switch: True})
    saved = changed.state_dict()
    saved["groups"][0][switch] = True
    built.load_state_dict(saved)
    changed.param_groups[0][switch] = True
    for grad in GRADS[3:]:
        changed.step(grad)
        built.step(grad)
    np.testing.assert_array_equal(*params)
    other = make(np.ones(4), backend=backend, **options)
    for grad in GRADS:
        other.step(grad)
    assert np.abs(other.params - params[0]).max() > 1e-6


@each_backend
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (fastopt.SGD, {}),
        (fastopt.SGD, {"nesterov": True}),
        (fastopt.RMSprop, {}),
        (fastopt.RMSprop, {"centered": True}),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_buffer_is_not_taken_for_a_velocity(
    inside: bool, make: Any, options: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    def made(inside: bool) -> fastopt.Optimizer:
        opt: fastopt.Optimizer = make(
            np.ones(4), 0.1, momentum=0.9, lr_inside=inside, backend=backend, **options
        )
        return opt

    opt = made(inside)
    for grad in GRADS:
        opt.step(grad)
    before, param = opt.state_dict(), opt.params.copy()
    with pytest.raises(ValueError, match="this change needs other state"):
        opt.param_groups[0]["lr_inside"] = not inside
    other = made(not inside)
    other.step(GRADS[0])
    saved = other.state_dict()
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        opt.load_state_dict(saved)
    with pytest.raises(CheckpointError):
        opt.load(tmp_path / "other.safetensors")
    np.testing.assert_equal(opt.state_dict(), before)
    np.testing.assert_array_equal(opt.params, param)
    opt.step(GRADS[0])  # and it goes on


@each_backend
def test_nesterov_can_be_switched_with_lr_inside(backend: str) -> None:
    opt = fastopt.SGD(np.zeros(1), 1.0, momentum=0.5, lr_inside=True, backend=backend)
    opt.step(np.ones(1))
    opt.param_groups[0]["nesterov"] = True
    opt.step(np.ones(1))  # v = -1, then -1.5; the steps -1, then -.75 - 1
    np.testing.assert_allclose(opt.params, [-2.75], rtol=1e-15)


@each_backend
def test_groups_may_differ_in_it(backend: str) -> None:
    def rate(t: int) -> float:
        return 1.0 if t == 0 else 0.25

    params = [np.zeros(1), np.zeros(1)]
    opt = fastopt.SGD(
        [{"params": [params[0]], "lr_inside": True}, {"params": [params[1]]}],
        lr=rate,
        momentum=0.5,
        backend=backend,
    )
    for grad in (1.0, 0.0):
        opt.step([[np.full(1, grad)], [np.full(1, grad)]])
    np.testing.assert_allclose(params, [[-1.5], [-1.125]], rtol=1e-15)
    slots = [set(entry) for entry in opt.state_dict()["state"].values()]
    assert slots == [{"step", "v"}, {"step", "buf"}]


@pytest.mark.parametrize("make", [fastopt.Adam, fastopt.AdamW, fastopt.Adagrad, fastopt.SGD])
def test_state_that_was_saved_before_these_options_is_taken_over(make: Any) -> None:
    old = make(np.ones(4))
    old.step(GRADS[0])
    saved = old.state_dict() | {"fastopt": "0.0.1"}
    for name in ("eps_hat", "lr_inside"):
        saved["groups"][0].pop(name, None)
    if make is fastopt.Adagrad:
        del saved["groups"][0]["eps_inside_sqrt"]
    new = make(old.params.copy())
    new.load_state_dict(saved)
    for grad in GRADS:
        old.step(grad)
        new.step(grad)
    np.testing.assert_array_equal(new.params, old.params)


def test_rmsprop_says_first_that_others_keep_more() -> None:
    first, _, second = (fastopt.RMSprop.__doc__ or "").split("\n")[:3]
    assert "beta is 0.9 by default" in first
    assert "0.99" in second
    assert "PyTorch" in second
    assert "cs231n" in second
    assert "beta=0.99" in second
