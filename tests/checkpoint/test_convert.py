"""Checkpoints are taken over in other dtypes when that is asked for: each value rounded once."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.quantization import rounded
from fastopt.errors import CheckpointError
from helpers.variants import CPU_BACKENDS, VARIANT_OF, VARIANTS, Variant

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
REAL = [np.dtype(name) for name in ("float32", "float64", "float16")] + [BFLOAT16]
COMPLEX = [np.dtype("complex64"), np.dtype("complex128")]
PAIRS = [*product(REAL, REAL), *product(COMPLEX, COMPLEX)]
HALF = [dtype for dtype in REAL if dtype.itemsize == 2]

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_pair = pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def make(dtype: Any, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    whole = {
        "W": rng.standard_normal((5, 4)),
        "t": rng.standard_normal((2, 6)).T,
        "b": rng.random(),
    }
    turned = 1 + 0.5j if np.dtype(dtype).kind == "c" else 1.0
    return {name: np.asarray(value * turned).astype(dtype) for name, value in whole.items()}


def trained(variant: Variant, dtype: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    params = make(dtype)
    opt = variant(params, **options)
    for seed in range(1, 5):
        opt.step(make(dtype, seed))
    return opt, params


def nearest(values: Array, dtype: Any) -> Array:
    """Return values rounded once; to bfloat16 by fractions, one after another."""
    if dtype != BFLOAT16:
        return values.astype(dtype)
    return np.array([nearest_bfloat16(float(v)) for v in values.flat], dtype).reshape(values.shape)


def nearest_bfloat16(value: float) -> Any:
    close = np.array(value, np.float32).astype(BFLOAT16).view(np.uint16)
    codes = {0, 0x8000, *(int(close) + by for by in (-1, 0, 1))} & set(range(2**16))
    around = [np.array(code, np.uint16).view(BFLOAT16) for code in codes]
    finite = [number for number in around if np.isfinite(number)]
    even = {id(number): int(number.view(np.uint16)) % 2 for number in finite}
    return min(finite, key=lambda n: (abs(Fraction(float(n)) - Fraction(value)), even[id(n)]))


def real_of(dtype: Any) -> Any:
    return np.dtype(np.float32) if np.dtype(dtype).itemsize == 2 else np.dtype(dtype)


@each_variant
@each_pair
def test_everything_is_rounded_once_and_named(
    variant: Variant, before: Any, after: Any, tmp_path: Path
) -> None:
    opt, params = trained(variant, before)
    opt.save(tmp_path / "run")
    for strict in (True, False):
        check_load(variant, opt, params, after, tmp_path / "run", strict)


def check_load(
    variant: Variant, opt: Any, params: dict[str, Any], after: Any, path: Path, strict: bool
) -> None:
    before = params["W"].dtype
    got = make(after, 9)
    other = variant(got)
    report = other.load(path, strict=strict, convert=True)
    assert report.mismatched == report.missing == report.unexpected == ()
    old, new = opt.state_dict()["state"], other.state_dict()["state"]
    for name, param in params.items():
        whole = old[name].get("master", param)  # they have not been written by anybody else
        if after in HALF:
            master = whole.astype(np.float32)
            np.testing.assert_array_equal(new[name]["master"], master)
            np.testing.assert_array_equal(got[name], nearest(master, after))
        else:
            assert "master" not in new[name]
            np.testing.assert_array_equal(got[name], nearest(whole, after))
        check_remembered(variant, new[name], old[name])
        for slot in new[name].keys() - {"step", "master"} - variant.remembered:
            assert new[name][slot].dtype == real_of(after)
            np.testing.assert_array_equal(new[name][slot], old[name][slot].astype(real_of(after)))
        assert new[name]["step"] == 4
        assert (f"param:{name}: {before} -> {after}" in report.converted) == (before != after)
    wide = real_of(before), real_of(after)
    slots = set(new["W"]) - {"step", "master"} - variant.remembered
    named = {f"state:W.{slot}: {wide[0]} -> {wide[1]}" for slot in slots}
    assert not any(f"state:W.{name}" in " ".join(report.converted) for name in variant.remembered)
    assert named & set(report.converted) == (named if wide[0] != wide[1] else set())
    assert ("state:W.master: from the parameter" in report.converted) == (
        after in HALF and before not in HALF
    )
    assert ("state:W.master: left out" in report.converted) == (
        before in HALF and after not in HALF
    )
    assert ("converted: " in str(report)) == (before != after) == bool(report.converted)


def check_remembered(variant: Variant, new: dict[str, Any], old: dict[str, Any]) -> None:
    for name in variant.remembered:
        assert new[name].dtype == np.float64
        assert new[name] == old[name]


@each_backend
@each_pair
def test_the_run_goes_on(before: Any, after: Any, backend: str, tmp_path: Path) -> None:
    opt, params = trained(VARIANT_OF["adam"], before, backend=backend)
    opt.save(tmp_path / "run")
    got = make(after, 9)
    other = fastopt.Adam(got, backend=backend)
    other.load(tmp_path / "run", convert=True)
    for seed in range(5, 8):
        opt.step(make(before, seed))
        other.step(make(before, seed) if after not in HALF or before in HALF else make(after, seed))
    coarse = max(float(ml_dtypes.finfo(d).eps) for d in (before, after))
    for name, param in params.items():
        wide = np.complex128 if before.kind == "c" else np.float64
        np.testing.assert_allclose(got[name].astype(wide), param.astype(wide), rtol=4 * coarse)


@each_variant
@pytest.mark.parametrize("before", HALF, ids=str)
def test_master_weights_come_and_go(variant: Variant, before: Any, tmp_path: Path) -> None:
    kept, params = trained(variant, before)
    kept.save(tmp_path / "kept")
    got = make(before, 9)
    without = variant(got, master_weights=False)
    with pytest.raises(CheckpointError, match="master"):
        without.load(tmp_path / "kept")
    report = without.load(tmp_path / "kept", convert=True)
    assert "state:b.master: left out" in report.converted
    assert all((got[name] == params[name]).all() for name in params)
    without.save(tmp_path / "without")
    back = make(before, 8)
    again = variant(back)
    with pytest.raises(CheckpointError, match="master"):
        again.load(tmp_path / "without")
    again.load(tmp_path / "without", convert=True)
    entries = again.state_dict()["state"]
    for name in params:
        np.testing.assert_array_equal(entries[name]["master"], params[name].astype(np.float32))
        np.testing.assert_array_equal(back[name], params[name])


@pytest.mark.parametrize("after", [*REAL], ids=str)
def test_a_parameter_that_was_written_counts_and_not_its_master(after: Any, tmp_path: Path) -> None:
    opt, params = trained(VARIANT_OF["adam"], np.float16)
    params["W"][2] = 0.75
    opt.save(tmp_path / "run")
    got = make(after, 9)
    other = fastopt.Adam(got, master_weights=after != np.float16)
    other.load(tmp_path / "run", convert=True)
    assert (got["W"][2] == 0.75).all()
    if after == BFLOAT16:
        assert (other.state_dict()["state"]["W"]["master"][2] == 0.75).all()


@each_variant
@each_pair
def test_state_alone_leaves_the_parameters(variant: Variant, before: Any, after: Any) -> None:
    opt, _ = trained(variant, before)
    got = make(after, 9)
    other = variant(got)
    report = other.load_state_dict(opt.state_dict(), convert=True)
    assert all((got[name] == value).all() for name, value in make(after, 9).items())
    old, new = opt.state_dict()["state"], other.state_dict()["state"]
    check_remembered(variant, new["W"], old["W"])
    for slot in new["W"].keys() - {"step", "master"} - variant.remembered:
        np.testing.assert_array_equal(new["W"][slot], old["W"][slot].astype(real_of(after)))
    if after in HALF and before not in HALF:
        np.testing.assert_array_equal(new["W"]["master"], got["W"].astype(np.float32))
        assert "state:W.master: from the parameter" in report.converted
    other.step(make(after, 3))


@each_variant
@pytest.mark.parametrize(("before", "after"), [p for p in PAIRS if p[0] != p[1]], ids=str)
def test_unasked_it_is_refused(variant: Variant, before: Any, after: Any, tmp_path: Path) -> None:
    opt, _ = trained(variant, before)
    got = make(after, 9)
    other = variant(got)
    entries = other.state_dict()["state"]
    if variant.name == "adam":
        opt.save(tmp_path / "run")
        with pytest.raises(CheckpointError, match="expected"):
            other.load(tmp_path / "run")
    saved = opt.state_dict()["state"]["W"]
    other_slots = saved.keys() != entries["W"].keys()  # master weights on one side
    if other_slots or (saved.keys() != {"step"} and real_of(before) != real_of(after)):
        with pytest.raises(CheckpointError, match="expected"):
            other.load_state_dict(opt.state_dict())
    assert all((got[name] == value).all() for name, value in make(after, 9).items())
    for name, entry in other.state_dict()["state"].items():
        for slot, value in entry.items():
            np.testing.assert_array_equal(value, entries[name][slot])


BAD: dict[str, tuple[Any, Any, str]] = {
    "complex_to_real": (np.complex64, np.float32, "expected float32"),
    "real_to_complex": (np.float32, np.complex64, "expected complex64"),
    "complex_to_half": (np.complex64, np.float16, "lacks|expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_more_than_a_dtype_is_refused(name: str, tmp_path: Path) -> None:
    before, after, message = BAD[name]
    opt, _ = trained(VARIANT_OF["adam"], before)
    opt.save(tmp_path / "run")
    got = make(after, 9)
    with pytest.raises(CheckpointError, match=message):
        fastopt.Adam(got).load(tmp_path / "run", convert=True)
    assert all((got[key] == value).all() for key, value in make(after, 9).items())


def test_a_shape_is_refused_or_left(tmp_path: Path) -> None:
    opt, _ = trained(VARIANT_OF["adam"], np.float64)
    opt.save(tmp_path / "run")
    got = make(np.float32, 9)
    got["W"] = np.ones((4, 5), np.float32)
    other = fastopt.Adam(got)
    with pytest.raises(CheckpointError, match=r"expected float32 \(4, 5\)"):
        other.load(tmp_path / "run", convert=True)
    report = other.load(tmp_path / "run", convert=True, strict=False)
    assert len(report.mismatched) == 2
    assert (got["W"] == 1).all()
    assert "param:b: float64 -> float32" in report.converted


@pytest.mark.parametrize(("before", "after"), [("float64", "float32"), ("float32", "float16")])
def test_a_number_that_would_be_infinite_is_refused(
    before: str, after: str, tmp_path: Path
) -> None:
    params = make(before)
    opt = fastopt.SGD(params, momentum=0.9)
    params["W"][1, 1] = 1e39 if before == "float64" else 1e6
    opt.save(tmp_path / "run")
    got = make(after, 9)
    other = fastopt.SGD(got, momentum=0.9)
    with pytest.raises(CheckpointError, match=rf"param:W|master.*infinite in {after}"):
        other.load(tmp_path / "run", convert=True)
    assert all((got[key] == value).all() for key, value in make(after, 9).items())
    params["W"][1, 1] = np.inf  # this one is no loss
    opt.save(tmp_path / "run")
    other.load(tmp_path / "run", convert=True)
    assert np.isinf(got["W"][1, 1])


def test_convert_is_true_or_false(tmp_path: Path) -> None:
    opt, _ = trained(VARIANT_OF["adam"], np.float32)
    opt.save(tmp_path / "run")
    with pytest.raises(TypeError, match="convert must be True or False"):
        opt.load(tmp_path / "run", convert="float64")  # type: ignore[arg-type]  # that is tested
    with pytest.raises(TypeError, match="convert must be True or False"):
        opt.load_state_dict(opt.state_dict(), convert=1)  # type: ignore[arg-type]  # that is tested
    with pytest.raises(CheckpointError, match="expected a state_dict"):
        opt.load_state_dict([], convert=True)  # type: ignore[arg-type]  # that is tested


@given(st.floats(allow_nan=False, width=64) | st.integers(-(2**16), 2**16).map(float))
def test_float64_becomes_the_nearest_bfloat16(value: float) -> None:
    got = rounded(np.array([value]), BFLOAT16)[0]
    if abs(value) < 3e38:
        assert float(got) == float(nearest_bfloat16(value))


@pytest.mark.parametrize("tie", [1.00390625, 1.01171875, 257.0, 259.0, 2.0**-140])
def test_beside_a_tie_the_nearer_neighbour_is_taken(tie: float) -> None:
    """A cast by way of float32 would make a tie of all of them."""
    below, above = np.nextafter(tie, 0), np.nextafter(tie, 1e9)
    for value in (below, tie, above, -below, -tie, -above):
        got = rounded(np.array([value]), BFLOAT16)[0]
        assert float(got) == float(nearest_bfloat16(float(value)))
