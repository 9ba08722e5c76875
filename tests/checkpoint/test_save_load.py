"""Save and load: the same bits in a new process and on another backend, all of it or nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import optree
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file
from test_state_dict import make_grads, make_params

import fastopt
from fastopt import LoadReport
from fastopt.checkpoint import file as checkpoint_file
from fastopt.checkpoint.file import Encoder, decode
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.around import leaves
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant, script

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
DTYPES = (np.float32, np.float64)


def mixed() -> dict[str, Any]:
    """Return parameters of both dtypes: 0-d, empty, strided, turned."""
    params: dict[str, Any] = {np.dtype(dtype).name: make_params(dtype) for dtype in DTYPES}
    params["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    params["reversed"] = np.linspace(-1, 1, 5, dtype=np.float32)[::-1]
    return params


def zeroed(tree: Any) -> Any:
    for leaf in leaves(tree):
        leaf[...] = 0
    return tree


def mixed_grads(step: int) -> dict[str, Any]:
    grads: dict[str, Any] = {np.dtype(dtype).name: make_grads(dtype, step) for dtype in DTYPES}
    rng = np.random.default_rng(step)
    grads["fortran"] = rng.standard_normal((2, 3))
    grads["reversed"] = rng.standard_normal(5).astype(np.float32) if step % 2 else None
    return grads


def go(opt: Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        opt.step(mixed_grads(step))


def assert_same(one: tuple[Any, Optimizer], two: tuple[Any, Optimizer]) -> None:
    for first, second in zip(leaves(one[0]), leaves(two[0]), strict=True):
        np.testing.assert_array_equal(first, second, strict=True)
    np.testing.assert_equal(one[1].state_dict(), two[1].state_dict())


class Memo:
    """A companion that remembers a number and an array."""

    def __init__(self, number: float = 0.0, size: int = 2) -> None:
        self.number = number
        self.average = {"W": np.full(size, number)}
        self.commits = 0

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "average": self.average, "spread": (1, None)}

    def _restorer(self, saved: Mapping[str, Any]) -> Callable[[], None]:
        if saved["average"]["W"].shape != self.average["W"].shape:
            raise CheckpointError("the average has another shape")
        assert saved["spread"] == (1, None)

        def commit() -> None:
            self.number = saved["number"]
            self.average["W"][...] = saved["average"]["W"]
            self.commits += 1

        return commit


# The same bits -----------------------------------------------------------------------------------

HALVES = """
import sys
from pathlib import Path
from test_save_load import VARIANTS, go, mixed, zeroed
for variant in VARIANTS:
    path = Path(sys.argv[1]) / variant.name
    opt = variant(zeroed(mixed()), backend=sys.argv[2])
    assert opt.load(path).step_count == 4
    go(opt, 4, 8)
    opt.save(path)
"""


def test_resuming_in_another_process_on_another_backend_ends_in_the_same_bits(
    tmp_path: Path,
) -> None:
    for variant in VARIANTS:
        opt = variant(mixed(), backend="numpy")
        go(opt, 0, 4)
        opt.save(tmp_path / variant.name)
    done = script(HALVES, str(tmp_path), CPU_BACKENDS[-1])
    assert done.returncode == 0, done.stderr
    for variant in VARIANTS:
        whole, params = mixed(), zeroed(mixed())
        straight = variant(whole, backend="numpy")
        go(straight, 0, 12)
        opt = variant(params, backend="numpy")
        assert opt.load(tmp_path / variant.name).step_count == 8
        go(opt, 8, 12)
        assert_same((whole, straight), (params, opt))


LAYOUTS: list[Callable[[Any], Any]] = [
    lambda a: a[:20].reshape(4, 5),
    lambda a: a[:20].reshape(4, 5).T,
    lambda a: a[:20][::2],
    lambda a: a[:6][::-1],
    lambda a: a[:1].reshape(()),
    lambda a: a[:0].reshape(0, 3),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_to_cupy_to_numpy_ends_in_the_same_bits(
    cupy: Any, dtype: Any, tmp_path: Path
) -> None:
    def arrays(xp: Any, step: int) -> list[Any]:
        rng = np.random.default_rng(step)
        return [cut(xp.asarray(rng.standard_normal(20).astype(dtype))) for cut in LAYOUTS]

    def on(xp: Any, start: int, stop: int) -> None:
        params = arrays(xp, 1000 + start)
        opt = fastopt.Adam(params, amsgrad=True, backend="numpy" if xp is np else "cupy")
        if start:
            assert opt.load(tmp_path / "a").step_count == start
        for step in range(start, stop):
            opt.step(arrays(xp, step))
        opt.save(tmp_path / "a", notes={"first": params[0]})

    on(np, 0, 12)
    straight = (tmp_path / "a").read_bytes()
    on(np, 0, 4)
    on(cupy, 4, 8)
    on(np, 8, 12)
    found, expected = load_file(tmp_path / "a"), load(straight)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, strict=True)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "complex64", "complex128"])
@pytest.mark.parametrize("master_weights", [True, False])
def test_so_do_half_precision_and_complex_numbers(
    name: str, master_weights: bool, tmp_path: Path
) -> None:
    dtype = np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name))
    turn = 1 + 2j if dtype.kind == "c" else 1

    def made(backend: str) -> tuple[Any, Optimizer]:
        params = make_params(dtype)
        return params, fastopt.Adam(params, master_weights=master_weights, backend=backend)

    def on(opt: Optimizer, start: int, stop: int) -> None:
        for step in range(start, stop):
            grads: Any = optree.tree_map(
                lambda g: np.asarray(g * turn, dtype), make_grads(np.float64, step)
            )
            opt.step(grads)

    whole, straight = made("numpy")
    on(straight, 0, 12)
    for number, backend in enumerate(("numpy", CPU_BACKENDS[-1], "numpy")):
        params, opt = made(backend)
        if number:
            opt.load(tmp_path / "a")
        on(opt, 4 * number, 4 * number + 4)
        opt.save(tmp_path / "a")
    assert_same((whole, straight), (params, opt))


@each_backend
@each_variant
def test_what_is_loaded_is_what_was_saved(variant: Variant, backend: str, tmp_path: Path) -> None:
    first, second = mixed(), zeroed(mixed())
    one, two = variant(first, backend=backend), variant(second, backend=backend)
    go(one, 0, 3)
    before = one.state_dict()
    one.save(tmp_path / "a")
    np.testing.assert_equal(one.state_dict(), before)
    report = two.load(tmp_path / "a")
    assert_same((first, one), (second, two))
    assert report == LoadReport(type(one).__name__, fastopt.__version__, 3, params=True)
    two.save(str(tmp_path / "b"))
    go(two, 3, 4)
    two.load(str(tmp_path / "b"))
    assert_same((first, one), (second, two))


@each_backend
def test_without_parameters_only_the_state_is_taken_over(backend: str, tmp_path: Path) -> None:
    one, second = fastopt.Adam(np.ones(3), backend=backend), np.full(3, 5.0)
    one.step(np.ones(3))
    one.save(tmp_path / "a", params=False)
    two = fastopt.Adam(second, backend=backend)
    report = two.load(tmp_path / "a")
    assert not report.params
    assert "without parameters" in str(report)
    assert second.tolist() == [5.0] * 3
    np.testing.assert_equal(two.state_dict(), one.state_dict())


def test_a_saved_optimizer_is_matched_by_name_and_not_by_order(tmp_path: Path) -> None:
    first = {"a": np.ones(2), "b": np.full(2, 2.0)}
    one = fastopt.Adam(first)
    one.step({"a": np.ones(2), "b": -np.ones(2)})
    one.save(tmp_path / "a")
    params = OrderedDict(b=np.zeros(2), a=np.zeros(2))
    two = fastopt.Adam(params)
    two.load(tmp_path / "a")
    for name, array in first.items():
        np.testing.assert_array_equal(params[name], array)
    np.testing.assert_equal(two.state_dict()["state"], one.state_dict()["state"])


def test_groups_are_saved_with_their_hyperparameters(tmp_path: Path) -> None:
    def made(lr: float) -> Optimizer:
        return fastopt.SGD([{"params": np.ones(2), "lr": lr}, {"params": [np.ones(1)]}], lr / 3)

    made(0.3).save(tmp_path / "a")
    opt = made(0.5)
    opt.load(tmp_path / "a")
    assert [group["lr"] for group in opt.param_groups] == [0.3, 0.3 / 3]


def test_a_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    def lr(t: int) -> float:
        return 1 / (1 + t)

    opt = fastopt.SGD(np.ones(1), lr)
    opt.step(np.ones(1))
    opt.save(tmp_path / "a")
    later = fastopt.SGD(np.ones(1), lr)
    later.load(tmp_path / "a")
    assert later.lr == 0.5


def test_a_schedule_that_remembers_is_saved_with_the_optimizer(tmp_path: Path) -> None:
    def made() -> tuple[Any, Optimizer]:
        plateau = fastopt.schedules.ReduceLROnPlateau(0.5, patience=1)
        return plateau, fastopt.SGD(np.ones(1), plateau)

    plateau, opt = made()
    plateau.report(1.0)
    plateau.report(2.0)
    opt.save(tmp_path / "a")
    later, resumed = made()
    resumed.load(tmp_path / "a")
    plateau.report(3.0)
    later.report(3.0)
    assert resumed.lr == opt.lr < 0.5
    np.testing.assert_equal(later.state_dict(), plateau.state_dict())
    plain = fastopt.SGD(np.ones(1), 0.25)
    refused(plain, tmp_path / "a", None, "groups[0]: lr")
    (told,) = plain.load(tmp_path / "a", strict=False).mismatched
    assert told.startswith("groups[0].lr: expected")
    assert plain.lr == 0.25


def test_groups_by_pattern_are_saved_with_their_hyperparameters(tmp_path: Path) -> None:
    def made(decay: float) -> Optimizer:
        tree = {"W": np.ones(2), "b": np.ones(1)}
        return fastopt.AdamW(fastopt.groups(tree, {"b": {"weight_decay": decay}}))

    made(0.0).save(tmp_path / "a")
    opt = made(0.5)
    opt.load(tmp_path / "a")
    assert sorted(group["weight_decay"] for group in opt.param_groups) == [0.0, 0.01]


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    opt = fastopt.Adam(np.array([np.nan, -0.0, 5e-324, 0.1]), lr=0.1 + 0.2, eps=1e-8 / 3)
    opt.save(tmp_path / "a")
    params = np.ones(4)
    later = fastopt.Adam(params)
    later.load(tmp_path / "a")
    assert (later.lr, later.param_groups[0]["eps"]) == (0.1 + 0.2, 1e-8 / 3)
    assert params.tobytes() == np.array([np.nan, -0.0, 5e-324, 0.1]).tobytes()


# The file ----------------------------------------------------------------------------------------


def test_the_file_is_safetensors_that_anybody_can_read(tmp_path: Path) -> None:
    params = {"W": np.ones((2, 3), np.float32), "b": [np.array(0.5)]}
    opt = fastopt.Adam(params)
    opt.step({"W": np.ones((2, 3), np.float32), "b": [np.array(1.0)]})
    opt.save(tmp_path / "a", notes={"epoch": 3}, also={"ema": Memo(7.0)})
    found = load_file(tmp_path / "a")
    slots = {f"state:{name}/{slot}" for name in ("W", "b.0") for slot in "mv"}
    assert found.keys() == {"param:W", "param:b.0", "also:ema/average/W", *slots}
    np.testing.assert_array_equal(found["param:W"], params["W"], strict=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["state:b.0/m"], opt.state_dict()["state"]["b.0"]["m"])
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        metadata = file.metadata()
    manifest = json.loads(metadata["fastopt"])
    assert manifest["format_version"] == 1
    assert manifest["fastopt"] == fastopt.__version__
    assert (manifest["optimizer"], manifest["step_count"]) == ("Adam", 1)
    assert manifest["groups"][0]["lr"] == 0.001
    assert manifest["state"]["W"]["step"] == 1
    assert manifest["notes"] == {"epoch": 3}
    assert manifest["arrays"].keys() == found.keys()
    for key, entry in manifest["arrays"].items():
        assert entry["dtype"] == found[key].dtype.name
        assert entry["shape"] == list(found[key].shape)
        assert entry["sha256"] == hashlib.sha256(found[key].tobytes()).hexdigest()
    assert metadata["fastopt_sha256"] == hashlib.sha256(metadata["fastopt"].encode()).hexdigest()


ARRAYS: dict[str, Array] = {
    "bfloat16": np.array([[1.5, -0.0], [np.nan, 3e38]], ml_dtypes.bfloat16),
    "float16": np.array([1.5, 6e-8, np.inf], np.float16),
    "complex64": np.array([[1 + 2j, -0.0j]], np.complex64),
    "complex128": np.array(3 - 4j),
    "no_complex": np.zeros((3, 0), np.complex64),
    "int8": np.array([-128, 127], np.int8),
    "int64": np.array(2**62),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([True, False]),
    "nothing": np.zeros((0, 2), np.float32),
    "strided": np.arange(12.0).reshape(3, 4)[::2, ::-1].T,
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "bfloat16_0d": np.array(2.0, ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_dtype_come_back_in_the_same_bits(name: str, tmp_path: Path) -> None:
    array = ARRAYS[name]
    fastopt.SGD(np.ones(1)).save(tmp_path / "a", notes={"x": array})
    got = fastopt.SGD(np.ones(1)).load(tmp_path / "a").notes["x"]
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.ones(1, ">f4"),
        np.ones(1, "M8[s]"),
        np.ones(1, "i4,f4"),
    ],
    ids=str,
)
def test_arrays_that_have_no_place_in_a_file_are_refused(array: Array, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="note:deep/x"):
        fastopt.SGD(np.ones(1)).save(tmp_path / "a", notes={"deep": {"x": array}})
    assert os.listdir(tmp_path) == []


def test_names_may_be_of_any_text(tmp_path: Path) -> None:
    names = ["a/b", "", "__metadata__", "ü\n\x00", "\ud800", "\\ud800", "$array", "x" * 3000]
    params = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    opt = fastopt.Adam(params)
    opt.step(copy.deepcopy(params))
    kept = copy.deepcopy(params)
    opt.save(tmp_path / "a")
    fresh = {name: np.zeros(2, np.float32) for name in names}
    later = fastopt.Adam(fresh)
    later.load(tmp_path / "a")
    assert_same((kept, opt), (fresh, later))


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def test_notes_that_no_header_can_hold_become_an_array(tmp_path: Path) -> None:
    params = np.full(2, 3.0)
    opt = fastopt.SGD(params)
    notes = {"text": '"x' * 25_000_001, "same": "y" * 60_000_000}
    opt.save(tmp_path / "a", notes=notes)
    later = np.zeros(2)
    report = fastopt.SGD(later).load(tmp_path / "a")
    assert report.notes == notes
    assert later.tolist() == [3.0, 3.0]
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        assert set(file.keys()) == {"param:params", "fastopt:manifest"}
        assert file.get_tensor("param:params").tolist() == [3.0, 3.0]


@pytest.mark.parametrize(("most", "numbered"), [(30_000, True), (52_000, False)])
def test_names_that_no_header_can_hold_twice_become_an_array_too(
    most: int, numbered: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"{number:03}" + "x" * 300 for number in range(100)]
    params = {name: np.full(2, float(number)) for number, name in enumerate(names)}
    opt = fastopt.Adam(params, 0.5, backend="numpy")
    opt.step({name: np.ones(2) for name in names})
    kept = copy.deepcopy(params)
    monkeypatch.setattr(checkpoint_file, "LONGEST_HEADER", most * 3)
    opt.save(tmp_path / "a")
    header = header_of(tmp_path / "a")
    about = json.loads(header["__metadata__"]["fastopt"])
    assert (about["format_version"], about["numbered"]) == (2, numbered)
    assert ("299" in header) == numbered
    fresh = {name: np.zeros(2) for name in names}
    later = fastopt.Adam(fresh, 0.5, backend="numpy")
    later.load(tmp_path / "a")
    assert_same((kept, opt), (fresh, later))


def test_arrays_that_no_header_can_list_are_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opt = fastopt.SGD([np.ones(1) for _ in range(100)])
    opt.save(tmp_path / "a", params=False)
    before = (tmp_path / "a").read_bytes()
    monkeypatch.setattr(checkpoint_file, "LONGEST_HEADER", 5000)
    with pytest.raises(ValueError, match=r"101 arrays .*at most 5000.*params=False"):
        opt.save(tmp_path / "a", notes={"x": np.ones(1)})
    assert (tmp_path / "a").read_bytes() == before
    opt.save(tmp_path / "a", params=False)
    assert os.listdir(tmp_path) == ["a", "a.prev"] or os.listdir(tmp_path) == ["a.prev", "a"]


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"seed": {"x": 2**100_000}}, "note:seed/x is a whole number of 100001 bits.*hex"),
        ({"x": nested(100_000)}, "a thousand levels"),
    ],
)
def test_notes_that_json_does_not_hold_are_refused_by_what_to_do(
    notes: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fastopt.SGD(np.ones(1)).save(tmp_path / "a", notes=notes)
    assert os.listdir(tmp_path) == []


# Notes and companions ----------------------------------------------------------------------------


def test_notes_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    notes = {
        "epoch": 7,
        "rng": rng.bit_generator.state,
        "old_rng": np.random.MT19937(5).state,
        "best": math.inf,
        "flags": (True, None, [-math.inf]),
        "nested": {"a/b": np.ones(1), "a": {"b": np.zeros(1)}, "$x": 1, "s": "é\ud800"},
        "loss": np.float32(0.1),
        "count": np.int64(3),
    }
    fastopt.SGD(np.ones(1)).save(tmp_path / "a", notes=notes)
    report = fastopt.SGD(np.ones(1)).load(tmp_path / "a")
    np.testing.assert_equal(report.notes, notes)
    assert type(report.notes["flags"]) is tuple
    assert (type(report.notes["loss"]), type(report.notes["count"])) == (float, int)
    again = np.random.default_rng()
    again.bit_generator.state = report.notes["rng"]
    assert again.random() == rng.random()
    assert math.isnan(decode(Encoder().encode("", math.nan), {}))


def test_names_that_are_written_alike_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two, three = rng.standard_normal((3, 4))
    notes = {"a/b/c": one, "a": {"b/c": two}, "a/b": {"c": three}}
    fastopt.SGD(np.ones(1)).save(tmp_path / "a", notes=notes)
    report = fastopt.SGD(np.ones(1)).load(tmp_path / "a")
    np.testing.assert_equal(report.notes, notes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text() | st.sampled_from(["$array", "$tuple", "$dict"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)


@settings(max_examples=200)
@given(JSON)
def test_plain_values_of_any_nesting_come_back_as_they_were(value: Any) -> None:
    encoder = Encoder()
    text = json.dumps(encoder.encode("x:", value), allow_nan=False)
    got = decode(json.loads(text), encoder.arrays)
    assert repr(got) == repr(value)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"f": print}, "note:f must be None"),
        ({"a": [{1: 2}]}, "note:a/0 must have text as its keys; got 1"),
        ({"z": 1j}, "note:z .* got complex"),
        ({"s": {1, 2}}, "note:s .* got set"),
        ({"m": np.ma.masked_array([1.0])}, "note:m .* got MaskedArray"),
        ([1, 2], "notes must be a dict; got list"),
        ("epoch 3", "notes must be a dict; got str"),
    ],
)
def test_notes_that_would_come_back_as_something_else_are_refused(
    notes: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=message):
        fastopt.SGD(np.ones(1)).save(tmp_path / "a", notes=notes)
    assert os.listdir(tmp_path) == []


def test_companions_are_saved_and_taken_over_together(tmp_path: Path) -> None:
    opt = fastopt.Adam(np.ones(2))
    opt.step(np.ones(2))
    opt.save(tmp_path / "a", also={"one": Memo(1.5), "two/x": Memo(math.inf, size=3)})
    one, two = Memo(), Memo(size=3)
    later = fastopt.Adam(np.ones(2))
    report = later.load(tmp_path / "a", also={"two/x": two, "one": one})
    assert (one.number, two.number) == (1.5, math.inf)
    assert (one.average["W"].tolist(), two.average["W"].tolist()) == ([1.5] * 2, [math.inf] * 3)
    assert (one.commits, two.commits) == (1, 1)
    assert set(report.also) == {"one", "two/x"}
    assert later.step_count == 1


def refused(opt: Optimizer, path: Path, params: Any, *parts: str, **options: Any) -> str:
    """Check that a load is refused, and that nothing has changed."""
    before, kept = opt.state_dict(), copy.deepcopy(params)
    with pytest.raises(CheckpointError) as caught:
        opt.load(path, **options)
    np.testing.assert_equal(opt.state_dict(), before)
    np.testing.assert_equal(params, kept)
    for part in (str(path), *parts):
        assert part in str(caught.value)
    return str(caught.value)


def test_all_that_stands_around_an_optimizer_resumes_in_the_same_bits(tmp_path: Path) -> None:
    class Run:
        def __init__(self, backend: str) -> None:
            self.params = {"W": np.ones((2, 3), ml_dtypes.bfloat16), "b": np.ones(3)}
            self.opt = fastopt.Adam(self.params, 0.1, backend=backend)
            self.lookahead = fastopt.Lookahead(self.opt, k=2)
            self.accumulator = fastopt.Accumulator(self.lookahead, every=3)
            self.scaler = fastopt.LossScaler(2.0**10, growth_interval=3)
            self.ema = fastopt.EMA(self.params, 0.75)
            self.also = {
                "lookahead": self.lookahead,
                "accumulator": self.accumulator,
                "scaler": self.scaler,
                "ema": self.ema,
            }

        def go(self, start: int, stop: int) -> None:
            for step in range(start, stop):
                rng = np.random.default_rng(step)
                large = np.inf if step == 6 else self.scaler.scale
                grads = {
                    name: large * rng.standard_normal(p.shape) for name, p in self.params.items()
                }
                self.scaler.step(self.accumulator, grads)
                self.scaler.update()
                self.ema.update()

    straight = Run("numpy")
    straight.go(0, 24)
    for start, backend in enumerate(("numpy", CPU_BACKENDS[-1], "numpy")):
        run = Run(backend)
        if start:
            assert set(run.opt.load(tmp_path / "a", also=run.also).also) == set(run.also)
        run.go(8 * start, 8 * start + 8)
        run.opt.save(tmp_path / "a", also=run.also)
    assert_same((straight.params, straight.opt), (run.params, run.opt))
    for name, companion in straight.also.items():
        np.testing.assert_equal(run.also[name].state_dict(), companion.state_dict())  # type: ignore[attr-defined]  # all have one
    refused(
        run.opt, tmp_path / "a", run.params, "also['ema']", also={**run.also, "ema": run.scaler}
    )


def test_a_companion_that_does_not_fit_keeps_everything_as_it_is(tmp_path: Path) -> None:
    opt = fastopt.Adam(np.ones(2))
    opt.step(np.ones(2))
    opt.save(tmp_path / "a", also={"one": Memo(1.5), "two": Memo(2.5)})
    params = np.full(2, 9.0)
    later, one, two = fastopt.Adam(params), Memo(), Memo(size=5)
    for strict in (True, False):
        also = {"one": one, "two": two}
        refused(later, tmp_path / "a", params, "another shape", also=also, strict=strict)
    assert (one.commits, two.commits, one.number) == (0, 0, 0.0)


def test_companions_on_one_side_only_are_an_error_or_in_the_report(tmp_path: Path) -> None:
    opt = fastopt.Adam(np.ones(2))
    opt.save(tmp_path / "a", also={"ema": Memo(1.5), "scaler": Memo()})
    params = np.full(2, 9.0)
    later, ema = fastopt.Adam(params), Memo()
    also: dict[str, Any] = {"ema": ema, "plateau": Memo()}
    refused(later, tmp_path / "a", params, "also=", "plateau", "scaler", also=also)
    refused(later, tmp_path / "a", params, "ema", "scaler")
    report = later.load(tmp_path / "a", strict=False, also=also)
    assert (report.missing, report.unexpected) == (("also:plateau",), ("also:scaler",))
    assert (report.also, ema.number) == (("ema",), 1.5)


@pytest.mark.parametrize("bad", [[Memo()], "ema", {"ema": 3}, {"ema": np.ones(2)}, {3: Memo()}])
def test_what_is_no_companion_is_refused(bad: Any, tmp_path: Path) -> None:
    opt = fastopt.SGD(np.ones(1))
    opt.save(tmp_path / "a")
    for call in (opt.save, opt.load):
        with pytest.raises(TypeError, match="also"):
            call(tmp_path / "a", also=bad)  # type: ignore[operator]  # two functions
    with pytest.raises(TypeError, match="companion"):  # an optimizer has a file of its own
        opt.load(tmp_path / "a", also={"other": fastopt.SGD(np.ones(1))})  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == ["a"]


# Refusals ----------------------------------------------------------------------------------------


@each_backend
def test_what_does_not_fit_is_refused_and_changes_nothing(backend: str, tmp_path: Path) -> None:
    params = {"W": np.ones((2, 3), np.float32), "b": np.ones(3)}
    opt = fastopt.Adam(params, backend=backend)
    opt.step(copy.deepcopy(params))
    path = tmp_path / "a"
    opt.save(path)
    others: list[tuple[Any, tuple[str, ...]]] = [
        ({"W": np.ones((2, 3), np.float32)}, ("'b'", "strict=False")),
        ({**copy.deepcopy(params), "c": np.ones(1)}, ("'c'",)),
        ({"V": np.ones((2, 3), np.float32), "b": np.ones(3)}, ("'V'", "'W'")),
        ({"W": np.ones((3, 2), np.float32), "b": np.ones(3)}, ("W.m", "(3, 2)", "(2, 3)")),
        ({"W": np.ones((2, 3)), "b": np.ones(3)}, ("W.m", "float32", "float64")),
    ]
    for tree, parts in others:
        refused(fastopt.Adam(tree, backend=backend), path, tree, *parts)
    same = copy.deepcopy(params)
    refused(fastopt.SGD(same, backend=backend), path, same, "Adam", "SGD")
    refused(fastopt.AdamW(same, backend=backend), path, same, "Adam;", "AdamW")
    refused(fastopt.Adam(same, amsgrad=True, backend=backend), path, same, "other state")
    two = [{"params": {"W": same["W"]}}, {"params": {"c": same["b"]}}]
    refused(fastopt.Adam(two, backend=backend), path, same, "'1.c'")


def test_parameters_of_another_dtype_are_refused_though_there_is_no_state(tmp_path: Path) -> None:
    fastopt.SGD({"W": np.ones((2, 3), np.float32)}).save(tmp_path / "a")
    for array in (np.ones((2, 3)), np.ones((3, 2), np.float32)):
        params = {"W": array}
        refused(
            fastopt.SGD(params), tmp_path / "a", params, "param:W", "cast only with convert=True"
        )
        report = fastopt.SGD(params).load(tmp_path / "a", strict=False)
        (told,) = report.mismatched
        assert told.startswith("param:W: expected")


@each_backend
def test_strict_false_takes_what_fits_and_reports_the_rest(backend: str, tmp_path: Path) -> None:
    first = {"W": np.full((2, 3), 2.0), "b": np.full(3, 2.0), "old": np.ones(1)}
    opt = fastopt.Adam(first, backend=backend)
    opt.step({name: np.ones_like(array) for name, array in first.items()})
    opt.save(tmp_path / "a", notes={"epoch": 1})
    params = {"W": np.full((2, 3), 5.0), "b": np.full(4, 5.0), "new": np.full(1, 5.0)}
    later = fastopt.Adam(params, backend=backend)
    before = later.state_dict()["state"]
    refused(later, tmp_path / "a", params)
    report = later.load(tmp_path / "a", strict=False)
    assert report.missing == ("state:new", "param:new")
    assert report.unexpected == ("state:old", "param:old")
    assert [text.split(":")[1] for text in report.mismatched] == ["b.m", "b"]
    np.testing.assert_array_equal(params["W"], first["W"])
    assert (params["b"].tolist(), params["new"].tolist()) == ([5.0] * 4, [5.0])
    after = later.state_dict()["state"]
    np.testing.assert_equal(after["W"], opt.state_dict()["state"]["W"])
    for name in ("b", "new"):
        np.testing.assert_equal(after[name], before[name])
    told = str(report)
    for part in ("Adam at step 1", "missing: state:new", "unexpected", "mismatched", "epoch"):
        assert part in told
    with pytest.raises(AttributeError):
        report.step_count = 3  # type: ignore[misc]  # it is frozen


def test_parameters_that_are_no_longer_the_users_are_neither_saved_nor_loaded(
    tmp_path: Path,
) -> None:
    params = {"W": np.ones(2), "b": np.ones(2)}
    opt = fastopt.Adam(params)
    opt.save(tmp_path / "a")
    opt.step({"W": np.ones(2), "b": np.ones(2)})
    before, kept = opt.state_dict(), params["W"].copy()
    params["b"] = np.zeros(2)
    for call in (opt.save, opt.load):
        with pytest.raises(ValueError, match=r'params\["b"\] is no longer the array'):
            call(tmp_path / "a")  # type: ignore[operator]  # two functions
    np.testing.assert_equal(opt.state_dict(), before)
    np.testing.assert_array_equal(params["W"], kept)
    opt.save(tmp_path / "b", params=False)
    fastopt.Adam({"W": np.ones(2), "b": np.ones(2)}).load(tmp_path / "b")


def test_parameters_that_have_become_read_only_are_saved_and_not_loaded(tmp_path: Path) -> None:
    params = [np.ones(2), np.ones(2)]
    opt = fastopt.Adam(params)
    opt.save(tmp_path / "a")
    params[0][...] = params[1][...] = 3.0
    params[1].flags.writeable = False
    opt.save(tmp_path / "b")
    with pytest.raises(ValueError, match=r"params\[1\] has become read-only"):
        opt.load(tmp_path / "a")
    assert params[0].tolist() == [3.0] * 2


@pytest.mark.parametrize("method", ["save", "load", "state_dict", "load_state_dict"])
def test_what_touches_state_waits_for_a_step_of_another_thread(tmp_path: Path, method: str) -> None:
    inside, finish, done = threading.Event(), threading.Event(), threading.Event()

    def lr(t: int) -> float:
        inside.set()
        finish.wait()
        return 0.1

    opt = fastopt.SGD(np.ones(1), lr)
    other = fastopt.SGD(np.ones(1))
    other.save(tmp_path / "a")
    calls = {
        "save": lambda: opt.save(tmp_path / "b"),
        "load": lambda: opt.load(tmp_path / "a"),
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict(other.state_dict()),
    }

    def call() -> None:
        calls[method]()
        done.set()

    threads = [threading.Thread(target=opt.step, args=(np.ones(1),)), threading.Thread(target=call)]
    threads[0].start()
    try:
        inside.wait()
        threads[1].start()
        assert not done.wait(0.2)
    finally:
        finish.set()
        for thread in threads:
            thread.join()
    assert done.is_set()
    assert opt.step_count == (0 if "load" in method else 1)


@pytest.mark.parametrize("method", ["save", "load", "state_dict"])
def test_a_schedule_must_not_touch_the_state_of_its_optimizer(tmp_path: Path, method: str) -> None:
    fastopt.SGD(np.ones(1)).save(tmp_path / "a")

    def lr(t: int) -> float:
        getattr(opt, method)(*[tmp_path / "a"] * (method != "state_dict"))
        return 0.1

    opt = fastopt.SGD(np.ones(1), lr)
    with pytest.raises(RuntimeError, match="in this very thread"):
        opt.step(np.ones(1))
    assert opt.step_count == 0


def test_a_step_is_refused_while_the_optimizer_is_saved_or_loaded(tmp_path: Path) -> None:
    class Busy(Memo):
        def state_dict(self) -> dict[str, Any]:
            with pytest.raises(RuntimeError, match="being saved or loaded"):
                opt.step(np.ones(1))
            return super().state_dict()

        def _restorer(self, saved: Mapping[str, Any]) -> Callable[[], None]:
            with pytest.raises(RuntimeError, match="being saved or loaded"):
                opt.step(np.ones(1))
            return super()._restorer(saved)

    opt = fastopt.SGD(np.ones(1))
    opt.save(tmp_path / "a", also={"busy": Busy()})
    opt.load(tmp_path / "a", also={"busy": Busy()})
    opt.step(np.ones(1))
    assert opt.step_count == 1


def test_importing_the_package_does_not_import_what_checkpoints_need() -> None:
    done = script(
        "import fastopt, sys; print({'safetensors', 'ml_dtypes'} & set(sys.modules))",
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
