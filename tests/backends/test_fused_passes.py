"""Rules with sums and memory in one compiled call end in the bits of those done pass by pass."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.backends.numba.codegen import memory_source
from fastopt.core.passes import Pass, derived_of
from fastopt.engine.step import HostEngine
from fastopt_kernels import Memory
from helpers.variants import HAS_NUMBA, OF_MATRICES, VARIANTS, Variant

# Some of one tile, one of several, one of more tiles than there are lanes.
SHAPES = ((7,), (), (30, 40), (9_000,), (3, 5), (300_001,))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "lr": lambda t: 0.1 / (1 + t)},
    "clipped": {"max_grad_norm": 0.5},
    "fragments": {"cautious": True, "clip_each": 0.7},
}


def passes(opt: fastopt.Optimizer) -> list[Pass]:
    buckets = opt._state.buckets
    return [one for bucket in buckets for one in derived_of(bucket.rule, bucket.spec).passes]


def takes_value(opt: fastopt.Optimizer) -> bool:
    return any(one.memory.takes_value for one in passes(opt))


def derives(variant: Variant) -> bool:
    return bool(passes(variant([np.ones((2, 2), np.float32)], backend="numpy")))


DERIVING = [variant for variant in VARIANTS if variant not in OF_MATRICES and derives(variant)]
CASES = [
    pytest.param(variant, name, id=f"{variant.name}-{name}")
    for variant in DERIVING
    for name in OPTIONS
] + [
    pytest.param(variant, "fragments", id=f"{variant.name}-fragments")
    for variant in VARIANTS
    if variant.name in ("adam", "sgd", "lion")
]


def run(variant: Variant, options: Mapping[str, Any], fused: bool) -> tuple[list[bytes], int]:
    """Return the bits that a run ends in, and how many of its steps were one call."""
    rng = np.random.default_rng(1)
    params = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    doubles = [rng.standard_normal(6), rng.standard_normal((5_000, 2))]
    groups = [{"params": params}, {"params": doubles}]
    made: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        if not fused:
            patch.setattr(HostEngine, "_fuse", lambda *_: None)
        opt = variant(groups, **options, backend="numba")
        right = HostEngine._step_fused

        def noted(*given: Any) -> bool:
            made.append(right(*given))
            return made[-1]

        patch.setattr(HostEngine, "_step_fused", noted)
        for step in range(8):
            if step == 4 and "lr" not in options:
                opt.lr = opt.lr / 3
            grads = [
                [rng.standard_normal(p.shape).astype(p.dtype) for p in g] for g in (params, doubles)
            ]
            if step == 7:  # from then on the arrays have made different steps
                grads[0][2] = None
            if step == 2:
                grads[1][0] = grads[1][0][::-1]
            extra = {"value": 3.0 / (1 + step)} if takes_value(opt) else {}
            opt.step(grads, grad_scale=0.5 if step % 3 else 1.0, **extra)
        saved = opt.state_dict()
    state = [np.asarray(v) for entry in saved["state"].values() for v in entry.values()]
    memory = [np.asarray(v) for v in saved.get("memory", {}).values()]
    return [a.tobytes() for a in (*params, *doubles, *state, *memory)], sum(made)


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(("variant", "options"), CASES)
def test_one_call_ends_in_the_bits_of_one_pass_after_another(
    variant: Variant, options: str
) -> None:
    try:
        together, calls = run(variant, OPTIONS[options], fused=True)
    except (ValueError, TypeError) as refused:
        pytest.skip(f"it has no such option: {refused}"[:200])
    apart, none = run(variant, OPTIONS[options], fused=False)
    assert together == apart
    assert none == 0
    assert calls == 6  # not those with a missing or a reversed gradient


@pytest.mark.parametrize("variant", DERIVING, ids=lambda variant: variant.name)
def test_what_every_rule_makes_of_its_sums_can_be_compiled(variant: Variant) -> None:
    opt = variant([np.ones((2, 2), np.float32)], backend="numpy")
    for one in passes(opt):
        assert memory_source(one) is not None


def _renamed(scalars: Any, memory: Any, sums: Any) -> Any:
    coming = {"way": memory["way"] + sums["size"]}
    return coming, {"share": scalars["rate"]}


def _looped(scalars: Any, memory: Any, sums: Any) -> Any:
    total = sum(memory.values())
    return {"way": total}, {"share": scalars["rate"]}


def _unknown(scalars: Any, memory: Any, sums: Any) -> Any:
    return {"way": memory["way"]}, {"share": scalars["beta"]}


def _plain(scalars: Any, memory: Any, sums: Any) -> Any:
    both = memory["way"], sums["size"]
    return {"way": both[0] + both[1]}, {"share": scalars["rate"]}


def _of(host: Callable[..., Any]) -> Pass:
    made = "way = way + size; share = rate;"
    memory = Memory("array", ("share",), host, made, inputs=("rate",), names=("way",))
    return Pass(1, None, memory, None, slice(0, 0), slice(0, 1), slice(0, 1))


def test_what_is_written_otherwise_is_not_compiled() -> None:
    assert memory_source(_of(_plain)) is not None
    for host in (_renamed, _looped, _unknown):
        assert memory_source(_of(host)) is None


def test_a_text_that_is_not_the_functions_own_is_not_compiled() -> None:
    """A file that was changed after its import."""
    other = "def host(scalars, memory, sums):\n    return {'way': 1.0}, {'share': 2.0}\n"
    scope: dict[str, Any] = {}
    exec(compile(other, "<a rule>", "exec"), scope)
    one = _of(scope["host"])
    assert memory_source(one) is None  # there is no text at all
    lines = other.replace("2.0", "3.0").splitlines(keepends=True)
    linecache.cache["<a rule>"] = (len(other), None, lines, "<a rule>")
    try:
        assert memory_source(one) is None
        linecache.cache["<a rule>"] = (
            len(other),
            None,
            other.splitlines(keepends=True),
            "<a rule>",
        )
        assert memory_source(one) is not None
    finally:
        del linecache.cache["<a rule>"]
