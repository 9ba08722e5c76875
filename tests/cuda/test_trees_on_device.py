"""Trees of any classes, frozen whole numbers, and advice that is followed, on CuPy's arrays."""

from __future__ import annotations

import re
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt


class Bunch(dict[str, Any]):
    """A dict of a class of its own."""


POLICIES: list[dict[str, Any]] = [{}, {"max_grad_norm": 0.5, "on_nonfinite": "skip"}]


def model(xp: Any) -> Any:
    return Bunch(layers=[Bunch(W=xp.zeros((3, 2)), b=xp.zeros(2))], n=xp.asarray(3))


@pytest.mark.parametrize("policy", POLICIES)
def test_trees_of_other_classes_with_whole_numbers(cupy: Any, policy: Any, tmp_path: Path) -> None:
    runs = []
    for xp in (np, cupy):
        params = model(xp)
        groups = fastopt.groups(params, {"n": {"trainable": False}, "layers[0].b": {"lr": 0.25}})
        opt = fastopt.Adam(groups, lr=0.5, **policy)
        for grad in (1.0, -2.0):
            layer = UserDict(W=xp.full((3, 2), grad), b=xp.full(2, grad))
            opt.step({"layers": (layer,), "n": None})
        buffers = opt.gradient_buffers()
        assert buffers["n"] is None
        buffers["layers"][0]["W"][...] = 3.0
        opt.step(buffers)
        opt.save(tmp_path / xp.__name__)
        params["n"][...] = 5
        opt.load(tmp_path / xp.__name__)
        assert int(params["n"]) == 3
        runs.append(opt)
    of_numpy, of_cupy = (opt.params["layers"][0] for opt in runs)
    for name in ("W", "b"):
        np.testing.assert_array_equal(of_cupy[name].get(), of_numpy[name])
    np.testing.assert_equal(runs[1].state_dict()["state"], runs[0].state_dict()["state"])


def test_gradients_of_other_kinds(cupy: Any) -> None:
    params = {"W": cupy.zeros((1,), np.float32)}
    opt = fastopt.SGD(params, lr=1.0)
    for grad in (1.0, 2, np.ones(1), [1.0], np.float32(1.0), np.int64(1)):
        grads: dict[str, Any] = {"W": grad}
        with pytest.raises(TypeError) as caught:
            opt.step(grads)
        found = re.search(r"cupy\.asarray\(.*\)", str(caught.value))
        assert found is not None, str(caught.value)
        grads["W"] = eval(found[0])
        opt.step(grads)
    assert params["W"].get().tolist() == [-7.0]
    host = fastopt.SGD(np.zeros(1), lr=1.0)
    grads = {"W": cupy.ones(1)}
    with pytest.raises(TypeError, match=r"cupy\.asnumpy\(grads\)"):
        host.step(grads["W"])
