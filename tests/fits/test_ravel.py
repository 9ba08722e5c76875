"""A tree as one vector and back: values, dtypes, views and copies, and what is refused."""

from __future__ import annotations

import pickle
from collections import namedtuple
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt

Point = namedtuple("Point", "x y")  # optree reads this kind, too

BF16, F16, F32, F64 = ml_dtypes.bfloat16, np.float16, np.float32, np.float64


def test_mappings_are_sorted_elements_in_c_order_and_none_stays() -> None:
    tree = {
        "b": [np.asfortranarray(np.arange(6.0).reshape(2, 3)), None],
        "a": Point(np.array(7.0), np.arange(4.0)[::-2]),
    }
    flat, unravel = fastopt.ravel(tree)
    np.testing.assert_array_equal(flat, [7, 3, 1, 0, 1, 2, 3, 4, 5])
    back = unravel(flat)
    assert type(back["a"]) is Point
    assert back["b"][1] is None
    np.testing.assert_array_equal(back["b"][0], tree["b"][0])
    assert back["a"].x.shape == ()
    assert flat.base is None
    flat[:] = 0
    np.testing.assert_array_equal(tree["a"].y, [3, 1])  # a copy


def test_leaves_of_the_vectors_dtype_are_views_and_others_copies() -> None:
    flat, unravel = fastopt.ravel({"wide": np.zeros(2), "narrow": np.zeros((2, 1), F32)})
    assert flat.dtype == F64
    back = unravel(flat)
    assert back["narrow"].dtype == F32
    back["wide"][...] = 5
    back["narrow"][...] = 3
    np.testing.assert_array_equal(flat, [0, 0, 5, 5])
    strided = np.arange(8.0)[::2]
    assert np.shares_memory(unravel(strided)["wide"], strided)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        # What jax.flatten_util.ravel_pytree of JAX 0.4 and later gives with jax_enable_x64.
        ((F32, F64), F64),
        ((F16, BF16), F32),
        ((BF16, np.int64), BF16),
        ((F16, np.int32), F16),
        ((F32, np.int64), F32),
        ((np.complex64, F32), np.complex64),
        ((np.complex64, F64), np.complex128),
        ((np.int8, np.uint8), np.int16),
        ((np.bool_, np.int32), np.int32),
        ((np.bool_, F16, BF16, F64), F64),
        ((), F32),
    ],
)
def test_the_dtype_is_jaxs(dtypes: tuple[Any, ...], expected: Any) -> None:
    tree = [np.ones(2, dtype) for dtype in dtypes]
    flat, unravel = fastopt.ravel(tree)
    assert flat.dtype == expected
    assert flat.shape == (2 * len(dtypes),)
    assert [one.dtype for one in unravel(flat)] == list(map(np.dtype, dtypes))


def test_from_complex_the_real_part_goes_back() -> None:
    flat, unravel = fastopt.ravel([np.ones(1), np.ones(1, np.complex64)])
    back = unravel(flat * (1 + 2j))
    np.testing.assert_array_equal(back[0], [1])
    np.testing.assert_array_equal(back[1], [1 + 2j])


def test_numbers_are_arrays_and_other_mappings_are_read() -> None:
    flat, unravel = fastopt.ravel(MappingProxyType({"b": 2.0, "a": np.array([1.0])}))
    np.testing.assert_array_equal(flat, [1, 2])
    assert unravel(flat)["b"] == 2


def test_an_optimizer_steps_the_vector_and_the_tree_follows() -> None:
    flat, unravel = fastopt.ravel({"w": np.ones((2, 2)), "b": np.ones(2)})
    params = unravel(flat)
    fastopt.SGD(flat, lr=0.5).step(np.ones(6))
    np.testing.assert_array_equal(params["w"], np.full((2, 2), 0.5))


def test_what_is_refused() -> None:
    flat, unravel = fastopt.ravel([np.zeros(2), np.zeros(1)])
    with pytest.raises(TypeError, match=r"float64.*float32.*Convert it"):
        unravel(flat.astype(F32))
    with pytest.raises(TypeError, match="got list"):
        unravel([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"shape \(3,\).*\(2,\)"):
        unravel(flat[:2])
    with pytest.raises(TypeError, match=r'tree\["a"\]\[1\] must be .* got str'):
        fastopt.ravel({"a": [None, "text"]})
    with pytest.raises(TypeError, match="arrays of numbers"):
        fastopt.ravel([np.array(["text"])])


def test_arrays_of_a_device_stay_there(cupy: Any) -> None:
    flat, unravel = fastopt.ravel({"a": cupy.ones((2, 2), F32), "b": 3.0, "c": cupy.arange(2)})
    assert isinstance(flat, cupy.ndarray)
    back = unravel(2 * flat)
    assert isinstance(back["a"], cupy.ndarray)
    np.testing.assert_array_equal(back["c"].get(), [0, 2])
    with pytest.raises(fastopt.BackendMismatchError, match="in one place"):
        fastopt.ravel([np.ones(1), cupy.ones(1)])


def test_the_way_back_can_be_pickled() -> None:
    tree = {"a": [np.ones((2, 2), np.float32), 1.0], "b": Point(np.arange(3), None)}
    flat, unravel = fastopt.ravel(tree)
    found = pickle.loads(pickle.dumps(unravel))(2.0 * flat)
    np.testing.assert_array_equal(found["a"][0], np.full((2, 2), 2.0))
    assert found["a"][0].dtype == np.float32
    assert found["a"][1] == 2.0
    assert found["b"].x.tolist() == [0, 2, 4]
    assert found["b"].y is None
