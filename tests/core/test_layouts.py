"""Whatever the memory layout: the user's own array changes, as a contiguous one would, alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.core import arrays
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS, SUMMING, VARIANT_OF, VARIANTS, Variant

DTYPES = (np.float32, np.float64)
GRAD_DTYPES = ("<f2", "<f4", "<f8", ">f4", ">f8", "g")

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
fixed = settings(max_examples=120)


@dataclass(frozen=True)
class View:
    """A way to cut an array of some shape out of a larger buffer."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # the buffer's axes, in the order of the view's
    starts: tuple[int, ...]  # per axis of the view: elements before it,
    steps: tuple[int, ...]  # ... every how many-th,
    reverse: tuple[bool, ...]  # ... backwards
    offset: int  # elements before all

    @property
    def room(self) -> int:
        return self.offset + prod(self._lengths()) + 3

    def _lengths(self) -> list[int]:
        rows = zip(self.shape, self.starts, self.steps, strict=True)
        return [start + length * step for length, start, step in rows]

    def of(self, buffer: Array) -> Array:
        """Return the view of a flat buffer with ``room`` elements."""
        lengths = self._lengths()
        turned = tuple(lengths[axis] for axis in self.order)
        whole = buffer[self.offset : self.offset + prod(lengths)].reshape(turned)
        inverse = tuple(self.order.index(axis) for axis in range(len(self.shape)))
        cut = tuple(
            slice(start, start + length * step, step)
            for length, start, step in zip(self.shape, self.starts, self.steps, strict=True)
        )
        flip = tuple(slice(None, None, -1) if back else slice(None) for back in self.reverse)
        return whole.transpose(inverse)[(..., *cut)][(..., *flip)]


def views_of(shape: tuple[int, ...]) -> st.SearchStrategy[View]:
    def each(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.tuples(*[values] * len(shape))

    return st.builds(
        View,
        shape=st.just(shape),
        order=st.permutations(range(len(shape))).map(tuple),
        starts=each(st.sampled_from([0, 0, 1, 2])),
        steps=each(st.sampled_from([1, 1, 2, 3])),
        reverse=each(st.booleans()),
        offset=st.integers(0, 5),
    )


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
view_pairs = shapes.flatmap(lambda shape: st.tuples(views_of(shape), views_of(shape)))


def buffer_for(view: View, dtype: Any, seed: int) -> Array:
    """Return a buffer of numbers that every floating dtype holds exactly."""
    return (np.random.default_rng(seed).integers(-40, 40, view.room) / 8).astype(dtype)


def contiguous_run(
    variant: Variant, backend: str, param: Array, grads: Sequence[Array]
) -> tuple[Array, dict[str, Any]]:
    """Return where a C-ordered copy ends, and its state."""
    copy = np.array(param, order="C")
    opt = variant(copy, backend=backend, weight_decay=0.25)
    for grad in grads:
        opt.step(np.array(grad, param.dtype, order="C"))
    return copy, opt.state_dict()["state"]["params"]


def assert_equal_entries(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name, strict=True)


@each_backend
@fixed
@given(
    views=view_pairs,
    variant=st.sampled_from([variant for variant in VARIANTS if variant not in SUMMING]),
    dtype=st.sampled_from(DTYPES),
    grad_dtype=st.sampled_from(GRAD_DTYPES),
    readonly=st.booleans(),
)
def test_any_view_changes_as_a_contiguous_copy_and_nothing_beside_it(
    backend: str,
    views: tuple[View, View],
    variant: Variant,
    dtype: Any,
    grad_dtype: str,
    readonly: bool,
) -> None:
    view, grad_view = views
    buffer = buffer_for(view, dtype, 0)
    param = view.of(buffer)
    assert param.base is not None
    given_grads = [buffer_for(grad_view, grad_dtype, seed) for seed in (1, 2, 3)]
    grads = [grad_view.of(whole) for whole in given_grads]
    before = [whole.tobytes() for whole in given_grads]
    for whole, grad in zip(given_grads, grads, strict=True):
        whole.flags.writeable = grad.flags.writeable = not readonly
    expected = buffer.copy()
    end, state = contiguous_run(variant, backend, param, grads)
    view.of(expected)[...] = end

    opt = variant(param, backend=backend, weight_decay=0.25)
    for grad in grads:
        opt.step(grad)

    assert buffer.tobytes() == expected.tobytes()
    assert [whole.tobytes() for whole in given_grads] == before
    assert_equal_entries(opt.state_dict()["state"]["params"], state)


# Every variant over a fixed list of layouts ------------------------------------------------------

LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "whole": lambda a: a,
    "every_second": lambda a: a[::2],
    "every_second_column": lambda a: a[:, ::2],
    "first_columns": lambda a: a[:, :3],
    "reversed_rows": lambda a: a[::-1],
    "reversed_both": lambda a: a[::-1, ::-1],
    "reversed_columns_of_some": lambda a: a[1:4, 6:1:-1],
    "transposed": lambda a: a.T,
    "transposed_part": lambda a: a[1:, 2:5].T,
    "transposed_reversed": lambda a: a.T[::-1],
    "diagonal": lambda a: a.reshape(-1)[:: a.shape[1] + 1],
    "three_axes_turned": lambda a: a.reshape(3, 2, 8).transpose(2, 0, 1),
    "one_row": lambda a: a[2:3],
    "one_column": lambda a: a[:, 4:5],
    "one_element": lambda a: a[3:4, 5:6],
    "no_axes": lambda a: a[3, 5, ...],
    "empty": lambda a: a[:, 2:2],
    "empty_reversed": lambda a: a[3:3, ::-1],
    "new_axes": lambda a: a[None, 1:3, None, ::3],
}


def grid(dtype: Any, seed: int) -> Array:
    return (np.random.default_rng(seed).integers(-40, 40, (6, 8)) / 8).astype(dtype)


@each_backend
@each_dtype
@each_variant
def test_each_layout_changes_as_a_contiguous_copy(
    variant: Variant, dtype: Any, backend: str
) -> None:
    grids = {name: grid(dtype, 0) for name in LAYOUTS}
    expected = {name: grid(dtype, 0) for name in LAYOUTS}
    params = {name: view(grids[name]) for name, view in LAYOUTS.items()}
    copies = {name: np.array(param, order="C") for name, param in params.items()}
    strided = variant(params, backend=backend, weight_decay=0.25)
    plain = variant(copies, backend=backend, weight_decay=0.25)
    for seed in (1, 2, 3):
        grads = {name: view(grid(dtype, seed)) for name, view in LAYOUTS.items()}
        strided.step(grads)
        plain.step({name: np.array(grad, order="C") for name, grad in grads.items()})
    for name, view in LAYOUTS.items():
        view(expected[name])[...] = copies[name]
        close = 64 * float(np.finfo(dtype).eps) if variant in SUMMING else 0.0
        np.testing.assert_allclose(
            grids[name], expected[name], rtol=close, atol=close, err_msg=name
        )
    found, wanted = strided.state_dict()["state"], plain.state_dict()["state"]
    for name in LAYOUTS:
        if variant not in SUMMING:
            assert_equal_entries(found[name], wanted[name])


def backwards(array: Array) -> Array:
    return array[(..., *[slice(None, None, -1)] * array.ndim)]


GRADIENTS: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "c_order": lambda shape: np.zeros(shape, np.float32),
    "fortran": lambda shape: np.zeros(shape, np.float32, "F"),
    "reversed": lambda shape: backwards(np.zeros(shape, np.float32)),
    "reversed_fortran": lambda shape: backwards(np.zeros(shape, np.float32, "F")),
    "gaps": lambda shape: np.zeros((*shape, 2), np.float32)[..., 1],
    "first_axis_last": lambda shape: (
        np.moveaxis(np.zeros((*shape[1:], *shape[:1])), -1, 0) if shape else np.zeros(())
    ),
}


@each_backend
@pytest.mark.parametrize("order", GRADIENTS)
def test_a_gradient_keeps_its_partners_whatever_the_two_layouts(order: str, backend: str) -> None:
    for name, view in LAYOUTS.items():
        param = view(grid(np.float32, 0))
        grad = GRADIENTS[order](param.shape)
        grad[...] = np.arange(grad.size).reshape(grad.shape)
        expected = param - np.float32(0.5) * grad.astype(np.float32)
        VARIANT_OF["sgd"](param, backend=backend, lr=0.5).step(grad)
        np.testing.assert_array_equal(param, expected, err_msg=name)


WITHOUT_GAPS = ("whole", "transposed", "reversed_rows", "reversed_both", "transposed_reversed")


@pytest.mark.parametrize(
    "name", [*WITHOUT_GAPS, "three_axes_turned", "one_row", "no_axes", "empty"]
)
def test_an_array_without_gaps_is_updated_without_a_copy(name: str) -> None:
    array = LAYOUTS[name](grid(np.float32, 0))
    flat = arrays.flat_view(array, arrays.layout_of(array))
    assert flat is not None
    assert flat.shape == (array.size,)
    assert np.shares_memory(flat, array) or array.size == 0
    np.testing.assert_array_equal(arrays.layout_of(array).in_shape(flat), array, strict=True)


@each_backend
@each_dtype
@pytest.mark.parametrize("scalar", [np.float16, np.float32, np.float64, np.longdouble])
def test_a_numpy_scalar_is_a_gradient_of_a_parameter_without_axes(
    backend: str, dtype: Any, scalar: Any
) -> None:
    param = np.array(2.0, dtype)
    opt = VARIANT_OF["sgd"](param, backend=backend, lr=0.5)
    opt.step(scalar(3.0))
    opt.step((np.ones(3, dtype) * 2).sum())
    assert param == 2.0 - 1.5 - 3.0
    assert param.dtype == dtype


@each_backend
@each_dtype
def test_a_broadcast_gradient_is_read_like_its_copy(backend: str, dtype: Any) -> None:
    param = np.zeros((3, 4), dtype)
    row = np.arange(4, dtype=dtype)
    VARIANT_OF["sgd"](param, backend=backend, lr=1.0).step(np.broadcast_to(row, (3, 4)))
    np.testing.assert_array_equal(param, -np.array([row, row, row]))
    VARIANT_OF["sgd"](param, backend=backend, lr=1.0).step(np.broadcast_to(dtype(1), (3, 4)))
    np.testing.assert_array_equal(param, -np.array([row, row, row]) - 1)


@each_backend
def test_an_unaligned_gradient_is_read_like_its_copy(backend: str) -> None:
    raw = np.zeros(4 * 5 + 1, np.uint8)
    grad = raw[1:].view(np.float32)
    grad[:] = [1, 2, 3, 4, 5]
    assert not grad.flags.aligned
    param = np.zeros(5, np.float32)
    VARIANT_OF["sgd"](param, backend=backend, lr=1.0).step(grad)
    np.testing.assert_array_equal(param, [-1, -2, -3, -4, -5])


@each_backend
@pytest.mark.parametrize("strides", [(4, 4), (400, 4), (-8, 4), (0, 4), (0, -4)])
def test_the_stride_of_an_axis_of_length_one_means_nothing(
    backend: str, strides: tuple[int, int]
) -> None:
    buffer = np.zeros(200, np.float32)
    param = np.lib.stride_tricks.as_strided(buffer[100:], (1, 3), strides)
    VARIANT_OF["sgd"](param, backend=backend, lr=1.0).step(np.array([[1.0, 2.0, 3.0]], np.float32))
    np.testing.assert_array_equal(param, [[-1, -2, -3]])
    assert np.count_nonzero(buffer) == 3


@each_backend
@each_dtype
def test_a_memory_map_is_updated_in_its_file(backend: str, dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    mapped = np.memmap(path, dtype, "w+", shape=(6, 8))
    opt = VARIANT_OF["sgd"]({"all": mapped[1:], "row": mapped[0, ::2]}, backend=backend, lr=1.0)
    opt.step({"all": np.ones((5, 8), dtype), "row": np.full(4, 2, dtype)})
    mapped.flush()
    expected = np.full((6, 8), -1.0, dtype)
    expected[0] = [-2, 0] * 4
    np.testing.assert_array_equal(np.fromfile(path, dtype).reshape(6, 8), expected)


@each_backend
@pytest.mark.parametrize("grad_dtype", GRAD_DTYPES)
def test_a_gradient_that_is_filled_anew_is_read_anew(backend: str, grad_dtype: str) -> None:
    params = [np.zeros((3, 4)), np.zeros((4, 3)).T, np.zeros((6, 4))[::2]]
    opt = VARIANT_OF["sgd"](params, backend=backend, lr=1.0)
    grads = [np.zeros((3, 4), grad_dtype) for _ in params]  # the same objects at every step
    for step in range(1, 6):
        for grad in grads:
            grad[...] = step
        opt.step(grads)
        for param in params:
            np.testing.assert_array_equal(param, np.full((3, 4), -step * (step + 1) / 2))


@each_backend
@each_dtype
def test_gradients_that_take_the_place_of_dead_ones_are_looked_at(backend: str, dtype: Any) -> None:
    param, plain = np.zeros((8, 8), dtype), np.zeros((8, 8), dtype)
    opt = VARIANT_OF["sgd_momentum"](param, backend=backend)
    same = VARIANT_OF["sgd_momentum"](plain, backend=backend)
    rng = np.random.default_rng(0)
    for step in range(120):
        values = rng.integers(-8, 8, (8, 8)).astype(GRAD_DTYPES[step % len(GRAD_DTYPES)])
        same.step(values.astype(dtype))
        opt.step(
            values if step % 3 else np.asfortranarray(values)
        )  # it often has the dead one's id
    np.testing.assert_array_equal(param, plain)


@each_backend
@each_dtype
def test_interleaved_parameters_are_updated_apart(backend: str, dtype: Any) -> None:
    whole = np.zeros(12, dtype)
    grads = np.arange(12, dtype=dtype)
    VARIANT_OF["sgd"]([whole[::2], whole[1::2]], backend=backend, lr=1.0).step(
        [grads[::2], grads[1::2]]
    )
    np.testing.assert_array_equal(whole, -grads)


@each_backend
def test_columns_of_one_matrix_are_updated_apart(backend: str) -> None:
    whole, grads = np.zeros((5, 7)), np.arange(35.0).reshape(5, 7)
    opt = VARIANT_OF["sgd"]([whole[:, k] for k in range(7)], backend=backend, lr=1.0)
    opt.step([grads[:, k] for k in range(7)])
    np.testing.assert_array_equal(whole, -grads)


@each_backend
def test_a_gradient_between_the_elements_of_a_parameter_is_allowed(backend: str) -> None:
    whole = np.arange(10.0)
    VARIANT_OF["sgd"](whole[::2], backend=backend, lr=1.0).step(whole[1::2])
    np.testing.assert_array_equal(whole, [-1, 1, -1, 3, -1, 5, -1, 7, -1, 9])
