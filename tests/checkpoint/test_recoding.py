"""State that was saved in another storage is taken over on request, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS

KINDS = [None, "bfloat16", "int8"]
LARGEST = {None: 2.0**-24, "bfloat16": 2.0**-8, "int8": 2.0**-4}
"""By how much a number may change, relative to itself (in 8 bits to what is normal there)."""


def params(dtype: Any) -> list[np.ndarray[Any, Any]]:
    """Parameters in several orders in memory; the first ones are large enough for 8 bits."""
    ones = np.ones((70, 80), dtype)
    return [
        ones,
        np.asfortranarray(ones),
        ones.copy()[::-1],
        np.ones((3, 2), dtype),
        ones.T.copy().T[:, ::-1],
        np.ones((), dtype),
        np.ones((0, 3), dtype),
    ]


def trained(kind: str | None, dtype: Any, backend: str) -> fastopt.Optimizer:
    opt = fastopt.AdamW(params(dtype), state_dtype=kind, backend=backend)
    rng = np.random.default_rng(3)
    for _ in range(4):
        drawn = [rng.standard_normal((2, *p.shape)) for p in params(dtype)]
        opt.step(
            [np.asarray(g[0] + 1j * g[1] if dtype == np.complex64 else g[0], dtype) for g in drawn]
        )
    return opt


def numbers(opt: fastopt.Optimizer, dtype: Any) -> dict[str, Any]:
    """Return the state in float32, as another optimizer takes it over."""
    plain = fastopt.AdamW(params(dtype), backend="numpy")
    plain.load_state_dict(opt.state_dict(), convert=True)
    return {
        f"{name}.{slot}": np.atleast_1d(entry[slot]).view(np.float32)
        for name, entry in plain.state_dict()["state"].items()
        for slot in ("m", "v")
    }


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_state_changes_its_storage_on_request(
    here: str | None, there: str | None, dtype: Any
) -> None:
    saved = trained(there, dtype, CPU_BACKENDS[-1])
    opt = fastopt.AdamW(params(dtype), state_dtype=here)
    report = opt.load_state_dict(saved.state_dict(), convert=True)
    changed = [name for name in report.converted if name.startswith("state:0.m")]
    assert len(changed) == (here != there)
    assert opt.step_count == 4
    before, after = numbers(saved, dtype), numbers(opt, dtype)
    for name, expected in before.items():
        allowed = LARGEST[here] * np.abs(expected) + 2.0**-10 * np.abs(expected).max(initial=0)
        assert (np.abs(after[name] - expected) <= allowed).all(), name
        assert (after[name][expected != 0] != 0).all() or name.endswith("m")
    if here == there:
        for name, expected in before.items():
            np.testing.assert_array_equal(after[name], expected)


def test_blocks_find_their_elements_in_any_order() -> None:
    saved = trained("int8", np.float32, "numpy")
    state = numbers(saved, np.float32)
    turned = [p.copy(order="F" if k % 2 == 0 else "C") for k, p in enumerate(params(np.float32))]
    opt = fastopt.AdamW(turned, state_dtype="int8")
    with pytest.raises(fastopt.CheckpointError, match="consecutive in memory"):
        opt.load_state_dict(saved.state_dict())
    opt.load_state_dict(saved.state_dict(), convert=True)
    for name, after in numbers(opt, np.float32).items():
        np.testing.assert_allclose(
            after, state[name], rtol=0.07, atol=0.002 * np.abs(state[name]).max(initial=0)
        )


@pytest.mark.parametrize(
    ("here", "there"), [(None, "int8"), ("int8", "bfloat16"), ("bfloat16", None)]
)
def test_without_being_asked_it_is_refused(here: str | None, there: str | None) -> None:
    saved = trained(there, np.float32, "numpy").state_dict()
    opt = fastopt.AdamW(params(np.float32), state_dtype=here)
    with pytest.raises(fastopt.CheckpointError, match="state_dtype"):
        opt.load_state_dict(saved)
    assert opt.step_count == 0


@pytest.mark.parametrize("damage", ["scales", "codes", "order", "text"])
def test_what_does_not_fit_is_refused_and_changes_nothing(damage: str) -> None:
    saved = trained("int8", np.float32, "numpy").state_dict()
    entry = saved["state"]["1"]
    if damage == "scales":
        entry["m_scale"] = entry["m_scale"][1:]
    elif damage == "codes":
        entry["m"] = entry["m"][1:]
    elif damage == "order":
        entry["order"] = [0, 5]
    else:
        entry["m"] = "m"
    opt = fastopt.AdamW(params(np.float32))
    before = opt.state_dict()
    with pytest.raises(fastopt.CheckpointError):
        opt.load_state_dict(saved, convert=True)
    np.testing.assert_equal(opt.state_dict(), before)
