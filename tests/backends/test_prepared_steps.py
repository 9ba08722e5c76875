"""The NumPy backend's prepared steps end in the bits of those that look everything up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt
from fastopt import backends
from fastopt.backends.numpy import fused
from fastopt.engine.step import HostEngine
from fastopt.optimizers.base import Optimizer
from helpers.variants import VARIANT_OF, VARIANTS, Variant

# Some are gathered with their neighbours, some stand alone, one is cut.
SHAPES = ((7,), (), (30, 40), (9_000,), (3, 5), (0, 4), (70_001,))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"lr": lambda t: 0.1 / (1 + t)},
    {"max_grad_norm": 3.0},
    {"on_nonfinite": "skip"},
)
NAMED = ["plain", "decay", "maximize", "schedule", "clipped", "skipping"]
KINDS = (
    *("usual", "a view", "read-only", "fortran order", "float64", "missing", "reversed"),
    *("infinite", "huge", "tiny"),
)
LARGE = {"infinite": np.inf, "huge": 1e30, "tiny": 1e-42}


def gradient(kind: str, values: Any) -> Any:
    """Return a gradient of one of the kinds."""
    if kind == "a view":
        return np.concatenate([values.reshape(-1), values.reshape(-1)])[: values.size].reshape(
            values.shape
        )
    if kind == "read-only":
        values.flags.writeable = False
    elif kind == "fortran order":
        return np.array(values, order="F")
    elif kind == "float64":
        return values.astype(np.float64)
    elif kind == "missing":
        return None
    elif kind == "reversed":
        return np.flip(np.flip(values).copy())
    elif kind in LARGE:
        return np.full_like(values, LARGE[kind])
    return values


def params_of(dtype: Any) -> list[Any]:
    rng = np.random.default_rng(1)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def run(variant: Variant, options: dict[str, Any], dtype: Any, history: Any) -> list[bytes]:
    params = params_of(dtype)
    opt = variant(params, **options, backend="numpy")
    told = []
    for step, (where, kind, scale, rate) in enumerate(history):
        if rate is not None and "lr" not in options:
            opt.lr = rate
        rng = np.random.default_rng(10 + step)
        grads = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
        grads[where] = gradient(kind, grads[where])
        outcome = opt.step(grads, grad_scale=scale)
        told.append(repr((bool(outcome), outcome.grad_norm, opt.grad_norm)).encode())
    return [*(param.tobytes() for param in params), *state_of(opt), *told]


def state_of(opt: Optimizer) -> list[bytes]:
    saved = opt.state_dict()["state"]
    return [np.asarray(value).tobytes() for entry in saved.values() for value in entry.values()]


def looked_up(*arguments: Any) -> list[bytes]:
    """Return what a run without prepared steps ends in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostEngine, "_fuse", lambda *_: None)
        return run(*arguments)


def count_calls(patch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows with what every prepared step returns."""
    made: list[bool] = []
    call = fused.FusedStep.__call__

    def counted(*arguments: Any) -> bool:
        made.append(call(*arguments))
        return made[-1]

    patch.setattr(fused.FusedStep, "__call__", counted)
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=NAMED)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_rule_ends_in_the_same_bits(
    variant: Variant, options: dict[str, Any], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [(0, "usual", scale, None) for scale in [1.0, 0.5, 1.0, 3.0] * 5]
    expected = looked_up(variant, options, dtype, history)
    made = count_calls(monkeypatch)
    assert run(variant, options, dtype, history) == expected
    assert not made or all(made)


histories = st.lists(
    st.tuples(
        st.integers(0, len(SHAPES) - 1),
        st.sampled_from(KINDS),
        st.sampled_from([1.0, 0.25]),
        st.sampled_from([None, 0.01, 0.3]),
    ),
    min_size=1,
    max_size=12,
)


POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"max_grad_norm": 3.0},
    {"max_grad_norm": 1e-3, "on_nonfinite": "skip"},
    {"on_nonfinite": "skip"},
)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd_momentum", "rmsprop_centered_momentum"])
@given(history=histories, policy=st.sampled_from(POLICIES))
def test_random_histories_end_in_the_same_bits(
    name: str, history: Any, policy: dict[str, Any]
) -> None:
    arguments = VARIANT_OF[name], {"weight_decay": 0.01, **policy}, np.float32, history
    assert run(*arguments) == looked_up(*arguments)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_end_in_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [(2, "usual", 1.0, None)] * 3
    arguments = VARIANT_OF["adam"], {}, np.float32, history
    expected = looked_up(*arguments)
    monkeypatch.setattr(fused, "PARALLEL_FROM", 1)
    monkeypatch.setattr(fused, "PIECE_BYTES", 4_096)
    monkeypatch.setattr(backends, "most_threads", lambda: threads)
    fused._pool.cache_clear()
    made = count_calls(monkeypatch)
    with np.errstate(all="raise"):  # which other threads do not inherit
        assert run(*arguments) == expected
    assert made == [True] * 3
    fused._pool.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unusual_is_left_to_the_general_way(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = count_calls(monkeypatch)
    run(VARIANT_OF["adam"], {}, np.float32, [(2, kind, 1.0, None)])
    assert made == [kind in ("usual", "a view", *LARGE)]


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("policy", POLICIES[1:], ids=["clips", "clips and skips", "skips"])
def test_a_norm_that_is_not_ordinary_is_left_to_the_general_way(
    kind: str, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = count_calls(monkeypatch)
    history = [(2, "usual", 1.0, None), (2, kind, 1.0, None), (2, "usual", 1.0, None)]
    arguments = VARIANT_OF["adam"], policy, np.float32, history
    assert run(*arguments) == looked_up(*arguments)
    usual = kind == "tiny" or (kind == "huge" and "max_grad_norm" in policy)
    assert made == [True, usual, True]


def test_parameters_that_have_changed_are_left_to_the_general_way() -> None:
    def resized(param: Any) -> None:
        param.resize((20_000,), refcheck=False)

    def moved(param: Any) -> None:
        before = param.ctypes.data
        param.resize((20_000,), refcheck=False)
        kept.append(np.ones(10))  # where the parameter was
        param.resize((10,), refcheck=False)
        assert param.ctypes.data != before

    def frozen(param: Any) -> None:
        param.flags.writeable = False

    def reshaped(param: Any) -> None:
        param.shape = (2, 5)

    kept: list[Any] = []
    for change, said in (
        (resized, "Construct a new"),
        (moved, "has been moved in memory|Construct a new"),
        (frozen, "read-only"),
        (reshaped, "Construct a new"),
    ):
        for steps in (0, 1):
            param, other = np.ones(10), np.ones(3)
            opt = fastopt.Adam({"a": param, "b": other}, backend="numpy")
            for _ in range(steps):
                opt.step({"a": np.ones(10), "b": np.ones(3)})
            before = other.copy()
            change(param)
            with pytest.raises(ValueError, match=said):
                opt.step({"a": np.ones(10), "b": np.ones(3)})
            assert (other == before).all()


def test_a_gradient_that_shares_memory_with_a_parameter_is_refused() -> None:
    block = np.ones(20)
    param, other = block[:10], np.ones(3)
    opt = fastopt.Adam({"a": param, "b": other}, backend="numpy")
    for grad in (param, block[5:15], block[:10].view()):
        with pytest.raises(ValueError, match="shares memory"):
            opt.step({"a": grad, "b": np.ones(3)})
    owner = np.ones(10)
    opt = fastopt.Adam({"a": owner[:], "b": other}, backend="numpy")
    with pytest.raises(ValueError, match="shares memory"):
        opt.step({"a": owner, "b": np.ones(3)})
