"""Nothing of a step is left over in a later one: histories end in the bits of the NumPy backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.variants import HAS_NUMBA, VARIANT_OF, VARIANTS, Variant

SHAPES = (((5,), (70, 3)), ((4, 6), (4099,)))
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


class Run:
    """An optimizer with two groups; ``begun`` is the state that it began with."""

    def __init__(self, variant: Variant, backend: str, dtype: Any, xp: Any = np) -> None:
        self._rng = np.random.default_rng(5)
        self._xp, self._dtype = xp, dtype
        self.trees = [self.arrays_like(group) for group in SHAPES]
        self.opt = variant([{"params": tree} for tree in self.trees], backend=backend)
        self.begun = self.opt.state_dict()

    def arrays_like(self, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        made = (self._rng.standard_normal(shape).astype(self._dtype) for shape in shapes)
        return [self._xp.asarray(array) for array in made]

    def step(self, missing: Sequence[int] = (), scale: float = 1.0) -> None:
        """Make a step without the gradients of these numbers."""
        flat: list[Any] = [grad for group in SHAPES for grad in self.arrays_like(group)]
        flat = [None if k in missing else grad for k, grad in enumerate(flat)]
        self.opt.step([flat[:2], flat[2:]], grad_scale=scale)

    def end(self) -> list[Any]:
        """Return everything that a step could have changed, as bits."""
        saved = self.opt.state_dict()
        state = [np.asarray(v).tobytes() for e in saved["state"].values() for v in e.values()]
        counts = [self.opt.step_count, repr(saved.get("memory"))]
        return [*(p.tobytes() for tree in self.trees for p in tree), *state, *counts]


def load_shifted(run: Run, steps: Sequence[int]) -> None:
    """Load the present state, with these step counts."""
    saved = run.opt.state_dict()
    for entry, count in zip(saved["state"].values(), steps, strict=True):
        entry["step"] = count
    saved["step_count"] = max(steps)
    run.opt.load_state_dict(saved)


EVENTS: dict[str, Callable[[Run], object]] = {
    "load what it began with": lambda run: run.opt.load_state_dict(run.begun),
    "load even counts": lambda run: load_shifted(run, (4, 4, 4, 4)),
    "load other counts": lambda run: load_shifted(run, (4, 6, 4, 7)),
    "freeze": lambda run: run.opt.param_groups[1].update(trainable=False),
    "train": lambda run: run.opt.param_groups[1].update(trainable=True),
    "a limit": lambda run: setattr(run.opt, "max_grad_norm", 0.5),
    "no limit": lambda run: setattr(run.opt, "max_grad_norm", None),
    "a rate": lambda run: setattr(run.opt, "lr", 0.03),
    "warm up": lambda run: run.opt.warmup(),
    "step": lambda run: run.step(),
    "step, scaled": lambda run: run.step(scale=0.5),
    "step without the first": lambda run: run.step(missing=(0,)),
    "step without two": lambda run: run.step(missing=(1, 3)),
    "step without any": lambda run: run.step(missing=(0, 1, 2, 3)),
}


class Life(NamedTuple):
    """What happens to an optimizer."""

    name: str
    events: tuple[str, ...]


LIVES = [
    Life(
        "rows of parameters that missed a step",
        ("step without the first", "step", "load what it began with", "step", "step"),
    ),
    Life("rows of other counts", ("step", "load other counts", "step", "load even counts", "step")),
    Life("a gradient that was missing", ("step without two", "load even counts", "step")),
    Life("a scale", ("step", "step, scaled", "step", "step without the first", "step")),
    Life(
        "a limit", ("a limit", "step without two", "load even counts", "step", "no limit", "step")
    ),
    Life(
        "frozen", ("step", "freeze", "step without the first", "train", "step", "warm up", "step")
    ),
]


def end_of(variant: Variant, events: Sequence[str], backend: str, dtype: Any) -> list[Any]:
    run = Run(variant, backend, dtype)
    for event in events:
        EVENTS[event](run)
    return run.end()


@pytest.mark.skipif(not HAS_NUMBA, reason="compares with numba")
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
@each_variant
def test_nothing_is_left_over(variant: Variant, life: Life) -> None:
    ends = [end_of(variant, life.events, b, np.float32) for b in ("numpy", "numba")]
    assert ends[0] == ends[1]


@pytest.mark.skipif(not HAS_NUMBA, reason="compares with numba")
@pytest.mark.parametrize("name", ["adam", "rmsprop_centered_momentum", "lamb"])
@given(events=st.lists(st.sampled_from([*EVENTS, *["step"] * 6]), min_size=2, max_size=16))
@example(events=list(LIVES[0].events))
def test_any_history_ends_in_the_same_bits(name: str, events: list[str]) -> None:
    ends = [end_of(VARIANT_OF[name], events, b, np.float64) for b in ("numpy", "numba")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("limit", [None, 0.5])
@each_variant
def test_warming_up_changes_nothing_whatever_has_happened(
    place: tuple[Any, str], variant: Variant, limit: float | None
) -> None:
    xp, backend = place
    run = Run(variant, backend, np.float32, xp)
    run.opt.max_grad_norm = limit
    run.opt.warmup()
    for missing in ((), (0,), (), (1, 3), (0, 1, 2, 3)):
        run.step(missing)
        before = run.end()
        assert run.opt.warmup() is run.opt
        assert run.end() == before
    run.opt.load_state_dict(run.begun)
    run.step()
    before = run.end()
    run.opt.warmup()
    assert run.end() == before


@settings(max_examples=20)
@given(events=st.lists(st.sampled_from([*EVENTS]), min_size=1, max_size=10))
def test_warming_up_at_any_time_changes_nothing(place: tuple[Any, str], events: list[str]) -> None:
    xp, backend = place
    ends = []
    for warm in (False, True):
        run = Run(VARIANT_OF["adam"], backend, np.float32, xp)
        for event in events:
            EVENTS[event](run)
            if warm:
                run.opt.warmup()
        ends.append(run.end())
    assert ends[0] == ends[1]
