"""The examples of kernels/README.md are whole: what they make runs, and does what they say."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core import options
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS

README = Path(__file__).parents[2] / "kernels" / "README.md"
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what writes an example to a file and imports it."""
    text = README.read_text(encoding="utf-8")
    parts = re.findall(r"^```python\n(\"\"\".*?)^```", text, re.DOTALL | re.MULTILINE)

    def made(mark: str, name: str) -> Any:
        (code,) = [part for part in parts if mark in part]
        path = tmp_path / f"{name.rpartition('.')[2]}.py"
        path.write_text(code, encoding="utf-8")
        module = types.ModuleType(name)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, module)
        package, _, own = name.rpartition(".")
        if package:
            monkeypatch.setattr(sys.modules[package], own, module, raising=False)
        exec(compile(code, str(path), "exec"), module.__dict__)
        return module

    return made


def optimizer_of(rule: Any, **numbers: float) -> type[Optimizer]:
    """Return an optimizer of a rule whose scalars are these numbers, and lr."""

    class Example(Optimizer):
        _lr_scalars = ("lr",)

        def __init__(self, params: Any, lr: float = 0.5, **common: Any) -> None:
            super().__init__(params, lr=lr, weight_decay=0.0, **common)

        @staticmethod
        def _rule(options: Any) -> Any:
            return rule

        @staticmethod
        def _scalars(options: Any, lr: float, t: int, guard: float) -> dict[str, float]:
            return {"lr": lr, **numbers}

    return Example


def test_what_a_new_optimizer_has_to_be_named_in_is_there() -> None:
    places = README.read_text(encoding="utf-8").split("**3. `fastopt/__init__.py`**")[1]
    files = re.findall(r"`((?:[\w<>]+/)+[\w<>]+\.\w+)`", places)
    assert len(files) >= 9
    root = README.parents[1]
    missing = [one for one in files if not (root / one.replace("<family>", "signs")).exists()]
    assert missing == []


@each_backend
def test_the_elementwise_rule_and_its_optimizer(example: Any, backend: str) -> None:
    example('name="maxnorm"', "fastopt_kernels.maxnorm")
    module = example("class MaxNorm", "fastopt_example_maxnorm")
    params = np.array([1.0, 2.0])
    opt = module.MaxNorm(params, lr=0.25, keep=0.5, eps=0.0, backend=backend)
    opt.step(np.array([4.0, -1.0]))
    np.testing.assert_allclose(params, [0.75, 2.25])
    opt.step(np.array([1.0, -1.0]))  # peak is 2 and 1
    np.testing.assert_allclose(params, [0.625, 2.5])
    assert opt.state_dict()["state"]["params"]["peak"].tolist() == [2.0, 1.0]


@each_backend
def test_the_rule_with_sums_and_memory_of_each_array(example: Any, backend: str) -> None:
    rule = example('name="share"', "fastopt_example_share").RULE
    params = {"a": np.array([3.0, 4.0]), "b": np.array([[1.0]]), "none": np.ones((0, 2))}
    make = optimizer_of(rule)
    opt: Any = make(params, backend=backend)
    grads = {"a": np.array([0.0, 10.0]), "b": np.array([[0.0]]), "none": np.ones((0, 2))}
    opt.step(grads)
    np.testing.assert_allclose(params["a"], [3.0, 4.0 - 0.5 * 5.0])
    assert params["b"].tolist() == [[1.0]]
    opt.step({**grads, "b": None})
    saved = opt.state_dict()
    assert "memory" not in saved
    ways = {name: float(entry["way"]) for name, entry in saved["state"].items()}
    assert ways == pytest.approx({"a": 5.0 + np.hypot(3.0, 1.5), "b": 1.0, "none": 0.0})

    later: Any = make({name: param.copy() for name, param in params.items()}, backend=backend)
    later.load_state_dict(saved)
    for one in (opt, later):
        one.step(grads)
    np.testing.assert_equal(later.state_dict(), opt.state_dict())
    np.testing.assert_equal(later.params, opt.params)
    before = later.state_dict()
    saved["state"]["a"]["way"] = np.ones(2)
    with pytest.raises(CheckpointError, match=r"state:a\.way: expected float64 \(\)"):
        later.load_state_dict(saved)
    np.testing.assert_equal(later.state_dict(), before)


@each_backend
def test_the_memory_of_an_array_goes_along_where_state_is_converted(
    example: Any, backend: str
) -> None:
    rule = example('name="share"', "fastopt_example_share").RULE
    make = optimizer_of(rule)
    single: Any = make({"a": np.ones(4, np.float32)}, backend=backend)
    single.step({"a": np.ones(4, np.float32)})
    double: Any = make({"a": np.ones(4)}, backend=backend)
    double.load_state_dict(single.state_dict(), convert=True)
    assert double.state_dict()["state"]["a"]["way"] == 2.0


@each_backend
def test_the_rule_on_whole_arrays(example: Any, backend: str) -> None:
    rule = example('name="centred"', "fastopt_example_centred").RULE
    params = np.zeros((2, 2))
    opt: Any = optimizer_of(rule, one_minus_keep=0.5)(params, backend=backend)
    opt.step(np.array([[4.0, 0.0], [2.0, 2.0]]))
    np.testing.assert_allclose(params, [[-0.5, 0.5], [0.0, 0.0]])
    assert opt.state_dict()["state"]["params"]["m"].tolist() == [[2.0, 0.0], [1.0, 1.0]]


@each_backend
def test_the_fragment(example: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fragment = example('name="hold"', "fastopt_example_hold").FRAGMENT
    # In the place of an option that is there: what a new one needs besides is its line in Common.
    monkeypatch.setitem(options.FRAGMENTS, "mask_zero", fragment)
    params = np.array([1.0, 1.0, 0.0])
    opt = fastopt.SGD(params, lr=1.0, mask_zero=True, backend=backend)
    opt.step(np.array([0.5, -3.0, 1.0]))
    np.testing.assert_allclose(params, [0.5, 1.0, 0.0])
