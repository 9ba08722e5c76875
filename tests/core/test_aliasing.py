"""Which parameters share memory: as NumPy's exact search finds, and without comparing all pairs."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.core import arrays
from fastopt.core.arrays import Array, check_apart
from fastopt.core.tree import Leaf
from helpers.variants import CPU_BACKENDS

fixed = settings(max_examples=400)


def leaves_of(views: list[Any]) -> list[Leaf]:
    return [Leaf("params", f"[{k}]", str(k), view) for k, view in enumerate(views)]


def are_apart(views: list[Any]) -> bool:
    try:
        check_apart(leaves_of(views))
    except ValueError:
        return False
    return True


def exactly_apart(views: list[Array]) -> bool:
    return not any(np.shares_memory(one, two) for one, two in combinations(views, 2))


class OnDevice:
    """A cupy.ndarray as far as its place in memory goes."""

    def __init__(self, like: Array, number: int = 0) -> None:
        self.shape, self.strides, self.size, self.ndim = (
            *(like.shape, like.strides, like.size),
            like.ndim,
        )
        self.itemsize, self.nbytes, self.flags = like.itemsize, like.nbytes, like.flags
        self.device = type("Device", (), {"id": number})()
        self.data = type("Pointer", (), {"ptr": arrays.address(like)})()


@pytest.fixture(autouse=True)
def _cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnDevice, "__module__", "cupy")
    cupy = type("cupy", (), {"ndarray": OnDevice})
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)


BUFFER = np.zeros(32_768, np.uint8)


@st.composite
def any_view(draw: Any) -> Array:
    """Return an array of any strides whose elements do not overlap each other."""
    dtype = np.dtype(draw(st.sampled_from(["f4", "f8", "f2", "c16"])))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    unit = draw(st.sampled_from([1, dtype.itemsize]))
    strides = tuple(unit * draw(st.integers(-40, 40)) for _ in shape)
    offset = 16_384 + draw(st.integers(-60, 60)) * unit
    view = np.lib.stride_tricks.as_strided(
        BUFFER[offset : offset + dtype.itemsize].view(dtype)[0, ...], shape, strides
    )
    assume(not arrays.overlaps_itself(view))
    return view


@st.composite
def cut_matrix(draw: Any) -> list[Array]:
    """Return pieces of one matrix that are apart: tiles and columns, turned and reversed."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    whole = np.zeros((rows, columns, 2), draw(st.sampled_from([np.float32, np.float64])))
    edges = sorted({0, columns, *draw(st.lists(st.integers(0, columns), max_size=4))})
    pieces: list[Array] = []
    for first, last in pairwise(edges):
        block = whole[:, first:last]
        kind = draw(st.sampled_from(["whole", "halves", "every_second", "rows", "last_axis"]))
        pieces += {
            "whole": lambda b=block: [b],
            "halves": lambda b=block: [b[: rows // 2], b[rows // 2 :]],
            "every_second": lambda b=block: [b[::2], b[1::2]],
            "rows": lambda b=block: list(b),
            "last_axis": lambda b=block: [b[..., 0], b[..., 1]],
        }[kind]()
    turned = [piece[::-1] if draw(st.booleans()) else piece for piece in pieces]
    return draw(st.permutations(turned))  # type: ignore[no-any-return]


@fixed
@given(st.lists(any_view(), min_size=2, max_size=6))
def test_any_views_are_told_apart_exactly(views: list[Array]) -> None:
    expected = exactly_apart(views)
    assert are_apart(views) == expected
    assert are_apart([OnDevice(view) for view in views]) == expected


@fixed
@given(pieces=cut_matrix(), data=st.data())
def test_pieces_of_a_matrix_are_apart_until_two_hold_the_same_element(
    pieces: list[Array], data: Any
) -> None:
    assert are_apart(pieces)
    assert are_apart([OnDevice(piece) for piece in pieces])
    full = [piece for piece in pieces if piece.size]
    chosen = data.draw(st.sampled_from(full))
    place = data.draw(st.tuples(*(st.integers(0, length - 1) for length in chosen.shape)))
    more = [*pieces, chosen[(*place, ...)]]
    assert not are_apart(data.draw(st.permutations(more)))
    assert not are_apart([OnDevice(piece) for piece in more])


def test_arrays_on_different_devices_are_apart_whatever_their_addresses() -> None:
    whole = np.zeros(4)
    assert are_apart([OnDevice(whole, 0), OnDevice(whole, 1), whole])
    assert not are_apart([OnDevice(whole, 1), OnDevice(whole, 1)])


MANY = {
    "columns": lambda: list(np.zeros((5, 1000)).T),
    "reversed_columns": lambda: list(np.zeros((5, 1000))[::-1].T),
    "pairs_of_columns": lambda: np.split(np.zeros((5, 1000)), 500, axis=1),
    "tiles": lambda: [t for s in np.split(np.zeros((64, 64)), 32) for t in np.split(s, 32, axis=1)],
    "last_of_three_axes": lambda: list(np.moveaxis(np.zeros((4, 5, 1000))[:, :-1], -1, 0)),
    "real_and_imaginary": lambda: [
        x for c in np.zeros((5, 500), complex).T for x in (c.real, c.imag)
    ],
    "every_second_of_some_columns": lambda: [
        c[::2] if k % 2 else c for k, c in enumerate(np.zeros((9, 1000)).T)
    ],
    "arrays": lambda: [np.zeros(3) for _ in range(1000)],
}


@pytest.mark.parametrize("name", MANY)
def test_no_pair_of_many_interleaved_arrays_is_compared(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []

    def share(one: Array, two: Array) -> bool:
        compared.append((one, two))
        return bool(np.shares_memory(one, two))

    monkeypatch.setattr(arrays, "share_memory", share)
    views = MANY[name]()
    check_apart(leaves_of(views))
    assert compared == []
    with pytest.raises(ValueError, match="share memory"):
        check_apart(leaves_of([*views, views[len(views) // 2][:1]]))
    assert len(compared) == 1


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_thousand_columns_are_stepped(backend: str) -> None:
    whole = np.zeros((3, 1000))
    opt = fastopt.SGD([whole[:, k] for k in range(1000)], lr=1.0, backend=backend)
    opt.step(list(np.ones((1000, 3))))
    np.testing.assert_array_equal(whole, -np.ones((3, 1000)))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_gradient_shares_memory_with_a_parameter_that_reaches_over_another(backend: str) -> None:
    whole = np.zeros(30)
    params = [whole[::3], whole[4:5]]  # the second lies between two elements of the first
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    with pytest.raises(ValueError, match=r"grads\[1\] shares memory with params\[0\]"):
        opt.step([np.ones(10), whole[9:10]])
    opt.step([np.ones(10), whole[10:11]])
    assert whole.sum() == -10.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_gradient_shares_memory_with_a_parameter_that_lies_within_another(backend: str) -> None:
    whole = np.zeros(30)
    params = [whole[::3], whole[4:5], whole[16:18]]
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    for grads, one, two in (
        ([whole[1::3], None, None], 0, "[12]"),  # with both
        ([whole[17:27], None, None], 0, 2),  # begins within it
        ([whole[7:17], None, None], 0, 2),  # ends within it
        ([None, whole[17:18], None], 1, 2),
        ([None, None, whole[4:6]], 2, 1),
        ([None, whole[15:16], None], 1, 0),
        ([np.ones(10), np.ones(1), whole[3:5]], 2, 1),
    ):
        with pytest.raises(ValueError, match=rf"grads\[{one}\] shares memory with params\[{two}\]"):
            opt.step(grads)
    assert not whole.any()
    opt.step([np.ones(10), whole[5:6], whole[7:9]])
    assert whole.sum() == -10.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@fixed
@given(data=st.data())
def test_a_gradient_is_refused_exactly_if_it_shares_memory_with_a_parameter(
    backend: str, data: Any
) -> None:
    whole = np.zeros(90)
    params: list[Array] = []
    for step in data.draw(st.permutations([1, 1, 2, 3, 7, 30])):
        first, count = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 8))
        view = whole[first::step][:count]
        if not any(np.shares_memory(view, other) for other in params):
            params.append(view[::-1] if data.draw(st.booleans()) else view)
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    grads: list[Any] = [np.zeros(param.size) for param in params]
    chosen = data.draw(st.integers(0, len(params) - 1))
    step, size = data.draw(st.integers(1, 9)), params[chosen].size
    first = data.draw(st.integers(0, 89 - step * (size - 1)))
    grads[chosen] = whole[first::step][:size]
    if data.draw(st.booleans()):
        grads[chosen] = grads[chosen][::-1]
    if not any(np.shares_memory(grads[chosen], param) for param in params):
        opt.step(grads)
        return
    with pytest.raises(ValueError, match=rf"grads\[{chosen}\] shares memory"):
        opt.step(grads)
    assert opt.step_count == 0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("first", [7, 8, 9, 10, 12, 13, 17, 20, 23])
def test_a_gradient_that_reaches_into_a_parameter_or_out_of_it_is_refused(
    first: int, backend: str
) -> None:
    whole = np.zeros(40)
    opt = fastopt.SGD([whole[20:24], whole[10:14]], lr=1.0, backend=backend)
    for apart in (6, 14, 16, 24):  # as close as can be
        opt.step([np.zeros(4), whole[apart : apart + 4]])
    with pytest.raises(ValueError, match=r"grads\[1\] shares memory with params"):
        opt.step([np.ones(4), whole[first : first + 4]])
    assert opt.step_count == 4


def test_a_gradient_between_the_elements_of_a_parameter_on_a_device_is_apart() -> None:
    whole = np.zeros(10)
    one, two = OnDevice(whole[::2]), OnDevice(whole[1::2])
    assert not arrays.share_memory(one, two)  # type: ignore[arg-type]  # as far as that goes
    assert arrays.share_memory(one, OnDevice(whole[2:3]))  # type: ignore[arg-type]
