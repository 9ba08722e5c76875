"""Losses and estimates of the Hessian that steps on a device are handed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import BackendMismatchError
from helpers.cuda.device import no_waiting
from helpers.cuda.runs import differences
from helpers.cuda.training import Training, end_of

TRAINING = Training(steps=10, shapes=((5,), (3, 4), (1030,)))
LOSSES = [2.0 - 0.5 * step for step in range(10)]
LOSSES[4] = float("nan")


def trained(
    make: Any, xp: Any, there: bool, policy: str, waits: bool = False, estimates: bool = False
) -> dict[str, Any]:
    """Return the end of a run; with ``there`` losses and scales are arrays like the parameters."""
    params = [xp.asarray(param) for param in TRAINING.params()]
    opt = make(params, lr=0.05, on_nonfinite=policy, backend="numpy" if xp is np else "cupy")
    for step in range(TRAINING.steps):
        grads = [xp.asarray(grad) for grad in TRAINING.grads(step)]
        handed: dict[str, Any] = {"grad_scale": 0.5}
        if not estimates:
            loss = LOSSES[step] if policy == "skip" or step != 4 else 1.0
            handed["value"] = xp.asarray(loss) if there else loss
            if there:
                handed["grad_scale"] = xp.asarray(0.5)
        elif step % 3 == 0:
            handed["hessian"] = [grad[::-1] for grad in grads]
        if waits:
            opt.step(grads, **handed)
            continue
        with no_waiting():
            opt.step(grads, **handed)
    return end_of(opt, params)


@pytest.mark.parametrize("policy", ["propagate", "skip"])
@pytest.mark.parametrize("there", [False, True], ids=["number", "array"])
@pytest.mark.parametrize("make", [fastopt.MoMo, fastopt.MoMoAdam])
def test_losses_on_a_device_are_not_waited_for(
    cupy: Any, make: Any, there: bool, policy: str
) -> None:
    here = trained(make, np, False, policy)
    assert not differences(here, trained(make, cupy, there, policy))


def test_where_the_host_decides_a_loss_on_a_device_is_fetched(cupy: Any) -> None:
    params = [cupy.ones(5)]
    opt = fastopt.MoMo(params, on_nonfinite="raise")
    opt.step([cupy.ones(5)], value=cupy.asarray(1.0))
    with pytest.raises(FloatingPointError, match="value, the loss, is nan at step 1"):
        opt.step([cupy.ones(5)], value=cupy.asarray(np.nan))


def test_bad_losses_on_a_device(cupy: Any) -> None:
    opt = fastopt.MoMo([cupy.ones(5)])
    for value in (cupy.ones(1), cupy.asarray(1), cupy.asarray(1j)):
        with pytest.raises(TypeError, match=r"a CuPy array of shape \(\) and a floating dtype"):
            opt.step([cupy.ones(5)], value=value)
    with pytest.raises(TypeError, match="value must be one real number"):
        opt.step([cupy.ones(5)], value="1")
    assert opt.step_count == 0


def test_a_loss_on_another_device(cupy2: Any) -> None:
    opt = fastopt.MoMo([cupy2.ones(5)])
    with cupy2.cuda.Device(1):
        value = cupy2.asarray(1.0)
    with pytest.raises(BackendMismatchError, match="value must be on device 0"):
        opt.step([cupy2.ones(5)], value=value)


@pytest.mark.parametrize("make", [fastopt.Sophia, fastopt.AdaHessian])
@pytest.mark.parametrize("policy", ["propagate", "skip"])
def test_estimates_end_in_the_bits_of_numpy(cupy: Any, make: Any, policy: str) -> None:
    here = trained(make, np, False, policy, estimates=True)
    waits = policy == "skip"
    assert not differences(here, trained(make, cupy, False, policy, waits, estimates=True))


def test_estimates_that_a_device_cannot_take(cupy: Any) -> None:
    params, grads = [cupy.ones(5)], [cupy.ones(5)]
    opt = fastopt.Sophia(params)
    with pytest.raises(BackendMismatchError, match="hessian"):
        opt.step(grads, hessian=[np.ones(5)])
    with pytest.raises(TypeError, match="grad_scale must be a number"):
        opt.step(grads, hessian=grads, grad_scale=cupy.asarray(1.0))
    assert opt.step_count == 0


@pytest.mark.parametrize("make", [fastopt.Sophia, fastopt.MoMo])
def test_what_is_handed_in_is_not_captured(cupy: Any, make: Any) -> None:
    params, grads = [cupy.ones(5)], [cupy.ones(5)]
    opt = make(params, capturable=True).warmup()
    handed: Any = {"hessian": grads} if make is fastopt.Sophia else {"value": 1.0}
    opt.step(grads, **handed)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match="CUDA graph"):
                opt.step(grads, **handed)
        finally:
            stream.end_capture()
    assert opt.step_count == 1
