"""Under "auto" a run begins on NumPy and goes over to Numba when that pays, in the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.backends import load
from fastopt.engine import later
from fastopt.errors import BackendUnavailableError
from fastopt.optimizers.base import Optimizer
from helpers.processes import python
from helpers.variants import HAS_NUMBA

needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
STEPS = 12
SHAPES = ((5,), (70, 3), (4, 6), (300,))


def two_groups(backend: str) -> Optimizer:
    params = arrays_of(0, np.float32)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr_scale": 0.4}]
    return fastopt.Adam(groups, lr=0.05, max_grad_norm=3.0, backend=backend)


def in_codes(backend: str) -> Optimizer:
    params = [np.ones(5_000, np.float32), *arrays_of(0, np.float32)[1:]]
    return fastopt.AdamW(params, lr=0.05, state_dtype="int8", backend=backend)


def skipping(backend: str) -> Optimizer:
    params = arrays_of(0, np.float64)
    params[2] = np.asfortranarray(params[2])
    return fastopt.RMSprop(
        params, lr=lambda t: 0.1 / (1 + t), momentum=0.5, on_nonfinite="skip", backend=backend
    )


def with_sums(backend: str) -> Optimizer:
    return fastopt.Prodigy(arrays_of(0, np.float32), backend=backend)


KINDS = (two_groups, in_codes, skipping, with_sums)
each_kind = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


def arrays_of(seed: int, dtype: Any) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]


def run(make: Callable[[str], Optimizer], backend: str, changes_at: int | None) -> list[Any]:
    """Return what a run ends in: with missing and bad gradients, and a save that is loaded."""
    opt = make(backend)
    leaves = opt._state.tree.leaves
    for step in range(STEPS):
        if step == changes_at:
            assert opt.backend == "numpy"
            opt.warmup()
            assert opt.backend == "numba"
        rng = np.random.default_rng(100 + step)
        grads: list[Any] = [
            rng.standard_normal(leaf.array.shape).astype(leaf.array.dtype) for leaf in leaves
        ]
        if step % 4 == 1:
            grads[step % len(grads)] = None
        if step == 6 and opt.on_nonfinite == "skip":
            grads[0][1] = np.nan
        if step in (3, 8):
            opt.load_state_dict(opt.state_dict())
        if step == 9:
            opt.lr = 0.01
        opt.step([grads[:2], grads[2:]] if len(opt.param_groups) == 2 else grads)
    state = opt.state_dict()["state"]
    kept = [np.asarray(value).tobytes() for entry in state.values() for value in entry.values()]
    return [*(leaf.array.tobytes() for leaf in leaves), *kept, opt.step_count, repr(opt.grad_norm)]


@needs_numba
@each_kind
def test_the_bits_are_the_same_wherever_the_change_falls(
    make: Callable[[str], Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(later.Later, "due", False)
    expected = run(make, "numpy", None)
    assert run(make, "numba", None) == expected
    for changes_at in range(STEPS):
        assert run(make, "auto", changes_at) == expected, changes_at


@needs_numba
@each_kind
def test_the_change_comes_when_steps_have_taken_as_long_as_it_will(
    make: Callable[[str], Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(make, "numpy", None)
    for seconds in (0.0, 0.0005, 0.002):
        monkeypatch.setattr(later, "LOAD", 0.0)
        monkeypatch.setattr(later.Later, "_seconds", lambda _, cost=seconds: cost)
        assert run(make, "auto", None) == expected


@needs_numba
def test_code_that_is_on_disk_comes_early_and_a_compilation_late(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path / "cache"))
    load("numba")  # which imports it, so that this costs nothing any more

    def waits() -> later.Later:
        found = two_groups("auto")._engine.later
        assert found is not None
        return found

    first = waits()
    first.spent = later.COMPILE - 0.1
    assert not first.due
    first.spent = later.COMPILE + 0.1
    assert first.due
    (tmp_path / "cache" / "adam-float32-something.bin").touch()
    again = waits()
    assert not again.due
    again.spent = later.LOAD + 0.001
    assert again.due


@needs_numba
def test_backends_by_name_and_warmup_do_not_wait() -> None:
    params = np.ones(3)
    assert fastopt.SGD(params, lr=0.1, backend="numba").backend == "numba"
    opt = fastopt.SGD(params, lr=0.1, backend="auto")
    assert opt.backend == "numpy"
    assert opt.warmup().backend == "numba"
    named = fastopt.SGD(params, lr=0.1, backend="numpy").warmup()
    assert named.backend == "numpy"


_SCRIPT = """
params = {"W": np.ones((20, 10), np.float32), "b": np.zeros(10, np.float32)}
opt = fastopt.Adam(params, lr=0.1, backend="auto")
for _ in range(50):
    opt.step({name: param * 2 for name, param in params.items()})
print(opt.backend, "numba" in sys.modules)
"""


def test_a_short_script_never_imports_numba(tmp_path: Any) -> None:
    assert python(_SCRIPT, tmp_path) == "numpy False\n"


@needs_numba
@pytest.mark.parametrize("broken", ["import", "compiler"])
def test_a_numba_that_does_not_work_is_said_once(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise BackendUnavailableError("backend 'numba' cannot run here: it is broken")

    monkeypatch.setattr(later, "_failed", False)
    if broken == "import":
        monkeypatch.setattr(later.Later, "backend", fails)
    else:
        monkeypatch.setattr(type(two_groups("numba")._engine.kernels[0]), "warm_up", fails)
    expected = run(two_groups, "numpy", None)
    monkeypatch.setattr(later.Later, "due", True)
    with pytest.warns(RuntimeWarning, match="goes on with the NumPy backend.*it is broken"):
        assert run(two_groups, "auto", None) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(two_groups, "auto", None) == expected


@needs_numba
def test_an_interrupt_while_code_is_compiled_leaves_the_run_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opt, other = two_groups("auto"), two_groups("numpy")
    grads = arrays_of(1, np.float32)
    tree = [grads[:2], grads[2:]]

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(later.Later, "due", True)
        patch.setattr(later.Later, "backend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt.step(tree)
    assert (opt.backend, opt.step_count) == ("numpy", 0)
    assert opt.warmup().backend == "numba"
    opt.step(tree)
    other.step(tree)
    for one, two in zip(opt._state.tree.leaves, other._state.tree.leaves, strict=True):
        assert one.array.tobytes() == two.array.tobytes()
