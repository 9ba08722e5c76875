"""State of other libraries goes to a device and comes from there, in the bits that NumPy has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastopt.interop import load_keras, load_optax, load_torch, to_torch
from helpers.moved_runs import HALF, Run, built, runs

NAMES = ["SGD.momentum", "Adam.amsgrad", "RMSprop.both", "rms_momentum", "injected", "adam"]
SOME = [r for lib in ("torch", "optax", "keras") for r in runs(lib) if r.name in NAMES]
LOAD: dict[str, Any] = {"torch": load_torch, "optax": load_optax, "keras": load_keras}


def moved(tree: Any, cupy: Any) -> Any:
    """Return a state whose arrays are on the device."""
    if isinstance(tree, np.ndarray):
        return cupy.asarray(tree)
    if isinstance(tree, dict):
        return {key: moved(part, cupy) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(moved(part, cupy) for part in tree))
    return type(tree)(moved(p, cupy) for p in tree) if isinstance(tree, list | tuple) else tree


@pytest.mark.parametrize("run", SOME, ids=str)
def test_a_state_goes_to_the_device_from_the_host_and_from_a_device(run: Run, cupy: Any) -> None:
    assert {r.origin for r in SOME} == LOAD.keys()
    info = run.info
    unknown = run.origin == "torch" or info["optimizer"] == "RMSprop"
    more = {"step_count": HALF} if run.origin != "keras" and unknown else {}
    host = built(info, info["p10"], "numpy")
    LOAD[run.origin](host, info["state"], **more)
    for state in (info["state"], moved(info["state"], cupy)):
        opt = built(info, [cupy.asarray(p) for p in info["p10"]], "cupy")
        LOAD[run.origin](opt, state, **more)
        np.testing.assert_equal(opt.state_dict(), host.state_dict())
    if run.origin == "torch":
        np.testing.assert_equal(to_torch(opt), to_torch(host))
