"""Arrays that cannot be updated rightly are refused; the error names the leaf and the remedy.

The ids a1 to a17 are those of the reliability list. a16 (more than 2^31 elements) needs 8 GB per
array, so only the arithmetic of addresses and chunks is tested here.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastopt
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.errors import BackendMismatchError
from helpers.variants import CPU_BACKENDS, HAS_NUMBA, VARIANT_OF, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


class Pair(NamedTuple):
    W: Array
    b: Array


def says(error: BaseException, kind: type[Exception], *parts: str) -> None:
    """Hold an error against its exact class and what its message must tell."""
    assert type(error) is kind, repr(error)
    for part in parts:
        assert part in str(error), f"{part!r} is not in: {error}"


def refuses(params: Any, kind: type[Exception], *parts: str, **options: Any) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is looked at by says
        fastopt.SGD(params, **options)
    says(caught.value, kind, *parts)


def step_refuses(
    params: list[Array], grads: Any, kind: type[Exception], *parts: str, backend: str
) -> None:
    """Hold that a step raises, at once and after a good one, and changes nothing."""
    for good_before in (False, True):
        opt = VARIANT_OF["sgd"](params, backend=backend)
        if good_before:
            opt.step([np.zeros_like(param) for param in params])
        before, count = [param.tobytes() for param in params], opt.step_count
        with pytest.raises(Exception) as caught:  # noqa: PT011 - says looks at its class
            opt.step(grads)
        says(caught.value, kind, *parts)
        assert [param.tobytes() for param in params] == before
        assert opt.step_count == count


def f32(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


# Which leaf, and what to do ----------------------------------------------------------------------


@each_backend
def test_a_leaf_is_named_by_its_path_in_the_users_tree(backend: str) -> None:
    bad = np.zeros(3, int)
    named = Pair(f32(2), bad)
    for params, path in [
        (bad, "params must be"),
        ([f32(1), bad], "params[1]"),
        ((f32(1), bad), "params[1]"),
        ({"layers": [{"W": bad}]}, 'params["layers"][0]["W"]'),
        ({"layers": [f32(1), {3: (f32(1), bad)}]}, 'params["layers"][1][3][1]'),
        ({"net": named}, 'params["net"].b'),
        ([{"params": f32(1)}, {"params": {"W": bad}}], 'params[1]["params"]["W"]'),
    ]:
        refuses(params, TypeError, path, "int64", "astype", backend=backend)


@each_backend
def test_a_gradient_is_named_by_its_path_in_the_users_tree(backend: str) -> None:
    params: dict[str, Any] = {
        "layers": [{"W": f32(2, 3), "b": f32(3)}],
        "net": Pair(f32(1), f32(2)),
    }
    opt = fastopt.SGD(params, backend=backend)
    good: dict[str, Any] = {"layers": [{"W": f32(2, 3), "b": f32(3)}], "net": Pair(f32(1), f32(2))}
    for grads, path in [
        ({**good, "layers": [{"W": f32(3, 2), "b": None}]}, 'grads["layers"][0]["W"]'),
        ({**good, "net": Pair(f32(1), f32(3))}, 'grads["net"].b'),
    ]:
        with pytest.raises(ValueError, match="shape") as caught:
            opt.step(grads)
        says(caught.value, ValueError, path, path.replace("grads", "params"), "broadcast")
    groups = [{"params": {"W": f32(2)}}, {"params": [f32(3)]}]
    with pytest.raises(ValueError, match="shape") as caught:
        fastopt.SGD(groups, backend=backend).step([{"W": f32(2)}, [f32(4)]])
    says(caught.value, ValueError, "grads[1][0]", 'params[1]["params"][0]')


def test_two_leaves_of_one_name_are_refused() -> None:
    refuses({"a": {"b": f32(1)}, "a.b": f32(1)}, ValueError, 'params["a"]["b"]', 'params["a.b"]')


# What is no array that can be updated -----------------------------------------------------------


class Sub(np.ndarray):
    pass


@dataclasses.dataclass
class Fields:
    W: Array


@dataclasses.dataclass(slots=True)
class SlottedFields:
    W: Array


def of_library(module: str, name: str, users: str | None = None) -> Any:
    """Return an object of a class that says it is of a library, or of a user's class below it."""
    kind = type(name, (), {"__module__": module})
    return (type("Own", (kind,), {"__module__": users}) if users else kind)()


WRONG_KINDS: dict[str, tuple[Any, str]] = {
    "python_int": (1, 'np.array(params["W"], np.float32)'),
    "python_float": (1.5, 'np.array(params["W"], np.float32)'),
    "text": ("weights", "Hand in arrays alone"),
    "bytes": (b"weights", "Hand in arrays alone"),
    "none": (None, "Leave it out"),
    "set": ({1.0, 2.0}, 'list(params["W"])'),
    "function": (np.zeros, "Hand in arrays alone"),
    "float32_scalar": (np.float32(1), "0-d array"),
    "float64_scalar": (np.float64(1), "0-d array"),
    "matrix": (np.eye(2).view(np.matrix), 'np.asarray(params["W"])'),
    "masked": (np.ma.masked_array(np.zeros(3), [0, 1, 0]), 'np.asarray(params["W"])'),
    "subclass": (np.zeros(3).view(Sub), 'np.asarray(params["W"])'),
    "record": (np.zeros(3, [("a", "f4")]).view(np.recarray), 'np.asarray(params["W"])'),
    "torch_tensor": (of_library("torch", "Tensor"), 'params["W"].detach().numpy()'),
    "torch_module_of_a_user": (of_library("torch.nn", "Module", "__main__"), "torch.optim"),
    "jax_array": (of_library("jaxlib._jax", "ArrayImpl"), "cannot change in place; use np.array"),
    "tensorflow_variable": (of_library("tensorflow.python", "Variable"), 'np.array(params["W"])'),
    "generator": ((array for array in [np.zeros(1)]), 'list(params["W"])'),
    "dict_values": ({"W": np.zeros(1)}.values(), 'list(params["W"])'),
    "dict_keys": ({"W": np.zeros(1)}.keys(), 'list(params["W"])'),
    "map": (map(np.zeros, [1]), 'list(params["W"])'),
    "dataclass": (Fields(np.zeros(1)), 'vars(params["W"]) (dataclasses.asdict copies'),
    "dataclass_with_slots": (SlottedFields(np.zeros(1)), "{'W': params[\"W\"].W}"),
    "dataclass_itself": (Fields, "Hand in arrays alone"),
    "groups": (fastopt.groups(np.zeros(1), {}), "by itself"),
}


@each_backend
@pytest.mark.parametrize("name", WRONG_KINDS)
def test_a_leaf_that_is_no_array_is_refused_with_the_remedy(name: str, backend: str) -> None:
    value, remedy = WRONG_KINDS[name]
    got = type(value).__name__
    refuses({"W": value}, TypeError, 'params["W"] must be', got, remedy, backend=backend)
    refuses({"V": f32(1), "W": value}, TypeError, 'params["W"]', backend=backend)


def test_parameters_that_advice_was_followed_on_are_taken() -> None:
    fields = Fields(f32(2))
    fastopt.SGD(vars(fields), lr=1.0).step({"W": f32(2) + 1})
    np.testing.assert_array_equal(fields.W, [-1, -1])
    fastopt.SGD(list({"W": f32(2)}.values())).step([f32(2)])


def test_lists_of_numbers_are_refused_as_such() -> None:
    refuses([1.0, 2.0], TypeError, "params[0]", "float", "np.array(params[0], np.float32)")
    refuses({"W": [[1.0, 2.0]]}, TypeError, 'params["W"][0][0]', "np.array(params")


def test_no_parameters_are_refused() -> None:
    for nothing in ([], {}, (), [[], {}], [{"params": []}, {"params": {}}]):
        refuses(nothing, ValueError, "no parameters")


WRONG_DTYPES = ("?", "b", "B", "i4", "i8", "u2", "O", "S3", "U3", "M8[s]", "m8[s]", "V4", "g")
SWAPPED = (">f4", ">f8") if np.dtype("=f4") == np.dtype("<f4") else ("<f4", "<f8")


@each_backend
@pytest.mark.parametrize("dtype", [*WRONG_DTYPES, *SWAPPED])
def test_a5_a9_other_dtypes_are_refused(dtype: str, backend: str) -> None:
    refuses(
        {"W": np.zeros(3, dtype)}, TypeError, 'params["W"]', "dtype", ".astype", backend=backend
    )


@each_backend
def test_a9_a_structured_array_is_refused(backend: str) -> None:
    refuses([np.zeros(3, [("a", "f4")])], TypeError, "params[0]", "dtype", backend=backend)


@each_backend
def test_a9_an_unaligned_parameter_is_refused(backend: str) -> None:
    raw = np.zeros(13, np.uint8)[1:].view(np.float32)
    refuses({"W": raw}, ValueError, 'params["W"]', "aligned", "copy", backend=backend)


@each_backend
def test_a7_a_read_only_parameter_is_refused_at_construction(backend: str) -> None:
    frozen = f32(3)
    frozen.flags.writeable = False
    refuses({"W": frozen}, ValueError, 'params["W"]', "read-only", "copy", backend=backend)
    broadcast = np.broadcast_to(np.zeros(1), (3,))
    refuses([broadcast], ValueError, "params[0]", "read-only", backend=backend)


@each_backend
def test_a7_a_parameter_that_became_read_only_is_refused_in_step(backend: str) -> None:
    params = [f32(3), f32(3)]
    opt = VARIANT_OF["adam"](params, backend=backend)
    opt.step([f32(3) + 1, f32(3) + 1])
    before, state = params[0].copy(), opt.state_dict()
    params[1].flags.writeable = False
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only") as caught:
            opt.step([f32(3) + 1, f32(3) + 1])
        says(caught.value, ValueError, "params[1]", "read-only")
        np.testing.assert_array_equal(params[0], before)
    np.testing.assert_equal(opt.state_dict(), state)
    params[1].flags.writeable = True
    opt.step([f32(3) + 1, f32(3) + 1])


# Memory that is shared ---------------------------------------------------------------------------


@each_backend
def test_a1_a_view_is_updated_in_the_users_memory(backend: str) -> None:
    whole = f32(4, 6)
    VARIANT_OF["sgd"](whole[::2, ::-2], backend=backend, lr=1.0).step(np.ones((2, 3), np.float32))
    assert whole.sum() == -6
    assert whole[0, 1] == whole[2, 5] == -1


@each_backend
def test_a2_the_same_array_twice_is_refused(backend: str) -> None:
    same = f32(3)
    twice = {"tied": same, "W": [f32(2), same]}
    says_both = ("same array", 'params["W"][1]', 'params["tied"]', "once")
    refuses(twice, ValueError, *says_both, backend=backend)
    groups = [{"params": [same]}, {"params": {"b": same}, "lr": 0.1}]
    says_both = ("same array", 'params[0]["params"][0]', 'params[1]["params"]["b"]')
    refuses(groups, ValueError, *says_both, backend=backend)


OVERLAPPING: dict[str, Callable[[Array], list[Array]]] = {
    "parts": lambda a: [a[:3], a[2:]],
    "transposed": lambda a: [a, a.T],
    "all_and_one": lambda a: [a, a[2, 2, ...]],
    "one_and_all": lambda a: [a[2, 2, ...], a],
    "strided": lambda a: [a.reshape(-1)[::2], a.reshape(-1)[::3]],
    "other_dtype": lambda a: [a, a.view(np.float32)[:1]],
    "rows_and_a_column": lambda a: [a[0], a[3], a[:, 1]],
    "reversed": lambda a: [a[:2], a[::-1][3:]],
}


@each_backend
@pytest.mark.parametrize("name", OVERLAPPING)
def test_a2_parameters_that_share_memory_are_refused(name: str, backend: str) -> None:
    views = OVERLAPPING[name](np.zeros((5, 5)))
    refuses(views, ValueError, "params[", "share memory", "updated twice", backend=backend)
    groups = [{"params": [view]} for view in views]
    refuses(groups, ValueError, "share memory", backend=backend)


@each_backend
def test_a2_a_parameter_that_overlaps_itself_is_refused(backend: str) -> None:
    strided = np.lib.stride_tricks.as_strided
    for shape, strides in [((3,), (0,)), ((2, 3), (4, 4)), ((3, 2), (4, 8)), ((2, 3), (8, 4))]:
        bad = strided(f32(100), shape, strides)
        refuses([bad], ValueError, "params[0]", "share memory", "copy", backend=backend)


@each_backend
def test_a2_interleaved_views_are_allowed(backend: str) -> None:
    whole = f32(10)
    opt = VARIANT_OF["sgd"]([whole[::2], whole[1::2]], backend=backend, lr=1.0)
    opt.step([np.ones(5, np.float32), np.full(5, 2, np.float32)])
    np.testing.assert_array_equal(whole, [-1, -2] * 5)


@each_backend
def test_a15_a_gradient_that_is_its_parameter_is_refused(backend: str) -> None:
    param, parts = np.arange(6.0), ("grads[0] shares memory with params[0]",)
    for grad in (param, param[:], param[::-1], param.view()):
        step_refuses([param], [grad], ValueError, *parts, backend=backend)


@each_backend
def test_a15_a_gradient_that_shares_memory_with_another_parameter_is_refused(backend: str) -> None:
    whole = np.arange(12.0)
    params = [whole[:4], whole[4:8], np.zeros(4)]
    parts = ("grads[2]", "shares memory with params[1]", "memory of its own")
    step_refuses(params, [None, None, whole[4:8]], ValueError, *parts, backend=backend)
    step_refuses(params, [None, None, whole[7:11]], ValueError, *parts, backend=backend)
    parts = ("grads[0]", "shares memory with params[1]")
    step_refuses(params, [whole[2:6][::-1][:4], None, None], ValueError, backend=backend)
    step_refuses(params, [whole[5:9], None, None], ValueError, *parts, backend=backend)


@each_backend
def test_a15_a_gradient_that_shares_memory_with_a_parameter_of_another_dtype_is_refused(
    backend: str,
) -> None:
    single, double = f32(4), np.zeros(4)
    step_refuses(
        [single, double], [double, None], ValueError, "grads[0]", "params[1]", backend=backend
    )
    step_refuses(
        [single, double], [None, single], ValueError, "grads[1]", "params[0]", backend=backend
    )


@each_backend
def test_a15_a_gradient_that_shares_memory_with_a_parameter_of_another_group_is_refused(
    backend: str,
) -> None:
    first, second = np.ones(4), np.ones(4)
    opt = VARIANT_OF["sgd"]([{"params": [first]}, {"params": [second]}], backend=backend)
    for grads, path, other in [
        ([[second], [None]], "grads[0][0]", 'params[1]["params"][0]'),
        ([[None], [first[::-1]]], "grads[1][0]", 'params[0]["params"][0]'),
        ([[second], [np.ones(4)]], "grads[0][0]", 'params[1]["params"][0]'),
    ]:
        with pytest.raises(ValueError, match="shares memory") as caught:
            opt.step(grads)
        says(caught.value, ValueError, f"{path} shares memory with {other}")
    np.testing.assert_array_equal([first, second], np.ones((2, 4)))


@each_backend
def test_a15_two_parameters_may_have_one_gradient(backend: str) -> None:
    params, grad = [np.zeros(3), np.zeros(3)], np.ones(3)
    VARIANT_OF["sgd"](params, backend=backend, lr=1.0).step([grad, grad])
    np.testing.assert_array_equal(params, -np.ones((2, 3)))


@each_backend
def test_a15_state_shares_no_memory_with_parameters_or_gradients(backend: str) -> None:
    param, grad = np.zeros(3), np.ones(3)
    opt = VARIANT_OF["adam"](param, backend=backend)
    opt.step(grad)
    for slot in ("m", "v"):
        got = opt.state_dict()["state"]["params"][slot]
        assert not np.shares_memory(got, param)
        assert not np.shares_memory(got, grad)


# Gradients ---------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 5), (7, 1), (5, 7), (35,), (1, 7, 5), (7, 6)]
)
def test_a3_a_gradient_is_never_broadcast(shape: tuple[int, ...], backend: str) -> None:
    parts = ("grads[1]", "shape", "(7, 5)", str(shape))
    params = [f32(2), f32(7, 5)]
    for bad in (f32(*shape), np.zeros(shape)):
        step_refuses(params, [f32(2), bad], ValueError, *parts, backend=backend)


@each_backend
@pytest.mark.parametrize("length", [0, 1, 39_999, 40_001])
def test_a4_a_gradient_of_another_length_is_refused(length: int, backend: str) -> None:
    parts = ("grads[0]", "(40000,)", f"({length},)")
    step_refuses([f32(40_000)], [f32(length)], ValueError, *parts, backend=backend)


@each_backend
def test_a4_a_gradient_that_was_reshaped_in_place_is_refused(backend: str) -> None:
    param, grad = f32(2, 3), f32(2, 3)
    opt = VARIANT_OF["sgd"](param, backend=backend)
    opt.step(grad)
    reshaped = np.lib.stride_tricks.as_strided(grad, (3, 2))
    with pytest.raises(ValueError, match="shape"):
        opt.step(reshaped)


@each_backend
@pytest.mark.parametrize("dtype", ["c8", "c16", "i4", "i8", "?", "O", "M8[s]", "S4", "V4"])
def test_a6_a_gradient_that_is_not_real_and_floating_is_refused(dtype: str, backend: str) -> None:
    remedy = "real part" if dtype.startswith("c") else ".astype"
    bad = np.zeros(3, dtype)
    parts = ("grads[1]", str(bad.dtype), remedy)
    step_refuses([f32(3), f32(3)], [f32(3), bad], TypeError, *parts, backend=backend)


@each_backend
@pytest.mark.parametrize("name", [name for name in WRONG_KINDS if name != "none"])
def test_a9_a_gradient_that_is_no_array_is_refused(name: str, backend: str) -> None:
    value, _ = WRONG_KINDS[name]
    parts = ("grads[1]", "params[1]", type(value).__name__)  # and what to do: test_advice
    step_refuses([f32(3), f32(3)], [f32(3), value], TypeError, *parts, backend=backend)


@each_backend
def test_a_number_is_no_gradient_of_a_parameter_without_axes(backend: str) -> None:
    step_refuses([f32()], [1.0], TypeError, "grads[0]", "float", backend=backend)
    step_refuses([f32()], [np.int64(1)], TypeError, "grads[0]", "int64", backend=backend)
    step_refuses([f32()], [np.complex64(1)], TypeError, "grads[0]", "complex64", backend=backend)
    step_refuses([f32(1)], [np.float32(1)], TypeError, "grads[0]", "float32", backend=backend)


@each_backend
def test_a_gradient_of_another_array_kind_is_refused(backend: str, cupy: Any) -> None:
    parts = ("grads[0]", "params[0]", "cupy", "device", "Move it")
    bad = cupy.zeros(3, np.float32)
    step_refuses([f32(3)], [bad], BackendMismatchError, *parts, backend=backend)


@each_backend
def test_parameters_of_another_array_kind_are_refused_under_a_named_backend(
    backend: str, cupy: Any
) -> None:
    params = {"here": f32(3), "there": cupy.zeros(3, np.float32)}
    parts = (f"backend '{backend}' updates numpy arrays", 'params["there"]', "cupy", "auto")
    refuses(params, BackendMismatchError, *parts, backend=backend)


# The rest of the list ----------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
def test_a8_a_gradient_of_another_floating_dtype_is_cast(dtype: str, backend: str) -> None:
    param = np.array([1.0, 2.0], np.float32)
    grad = np.array([0.1, 1e-3], dtype)
    VARIANT_OF["sgd"](param, backend=backend, lr=1.0).step(grad)
    expected = np.array([1.0, 2.0], np.float32) - grad.astype(np.float32)
    np.testing.assert_array_equal(param, expected, strict=True)


@each_backend
@each_variant
def test_a11_empty_parameters_are_stepped_over(variant: Variant, backend: str) -> None:
    params = {"none": f32(0), "rows": f32(0, 3), "some": f32(2), "wide": np.zeros((3, 0, 2))}
    grads = {name: param + 1 for name, param in params.items()}
    opt = variant(params, backend=backend)
    for _ in range(3):
        opt.step(grads)
    assert np.all(params["some"] != 0)
    alone = variant([f32(0)], backend=backend)
    alone.step([f32(0)])
    assert (opt.step_count, alone.step_count) == (3, 1)


@each_backend
def test_a12_a_rebound_parameter_is_refused(backend: str) -> None:
    params: dict[str, Any] = {"layers": [{"W": f32(3)}], "b": f32(2)}
    opt = VARIANT_OF["sgd"](params, backend=backend)
    grads = {"layers": [{"W": f32(3)}], "b": f32(2)}
    opt.step(grads)
    params["layers"][0]["W"] = params["layers"][0]["W"] * 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no longer") as caught:
            opt.step(grads)
        says(caught.value, ValueError, 'params["layers"][0]["W"]', "opt.rebind(params)")
    assert opt.step_count == 1


@each_backend
def test_a12_a_rebound_parameter_is_refused_before_any_is_written(backend: str) -> None:
    params = [f32(3), f32(3), f32(3)]
    opt = VARIANT_OF["sgd"](params, backend=backend)
    first, last = params[0], params[2]
    for other in (f32(3), last[:], last[::-1], np.zeros(3), f32(4), None, "text", [f32(3)]):
        params[2] = other  # type: ignore[call-overload]  # wrong on purpose
        with pytest.raises(ValueError, match=r"params\[2\]|params must be nested"):
            opt.step([f32(3) + 1] * 3)
    assert not first.any()
    assert not last.any()
    params[2] = last
    opt.step([f32(3) + 1] * 3)
    assert first.any()


@each_backend
def test_a12_a_changed_tree_of_parameters_is_refused(backend: str) -> None:
    params: dict[str, Any] = {"W": f32(3), "b": f32(2)}
    opt = VARIANT_OF["sgd"](params, backend=backend)
    params["extra"] = f32(1)
    with pytest.raises(ValueError, match="nested") as caught:
        opt.step({"W": f32(3), "b": f32(2)})
    says(caught.value, ValueError, 'unexpected params["extra"]')
    del params["extra"], params["b"]
    with pytest.raises(ValueError, match="nested") as caught:
        opt.step({"W": f32(3), "b": f32(2)})
    says(caught.value, ValueError, 'missing params["b"]')


@each_backend
def test_a12_a_parameter_that_was_reshaped_in_place_is_refused(backend: str) -> None:
    param = f32(2, 3)
    opt = VARIANT_OF["sgd"](param, backend=backend)
    with warnings.catch_warnings(action="ignore"):  # NumPy 2.5 deprecates it
        param.shape = (3, 2)
    for grad in (f32(2, 3), f32(3, 2)):
        with pytest.raises(ValueError, match="shape") as caught:
            opt.step(grad)
        says(caught.value, ValueError, "(2, 3)", "(3, 2)", "Construct a new optimizer")


@each_backend
def test_a12_a_parameter_whose_dtype_was_changed_in_place_is_refused(backend: str) -> None:
    param = f32(4)
    opt = VARIANT_OF["sgd"](param, backend=backend)
    with warnings.catch_warnings(action="ignore"):  # NumPy 2.5 deprecates it
        param.dtype = np.dtype(np.int32)  # type: ignore[misc]  # NumPy allows it
    with pytest.raises((ValueError, TypeError), match="params"):
        opt.step(np.ones(4, np.float32))
    assert not param.any()


@each_backend
def test_a12_a_resized_parameter_is_refused(backend: str) -> None:
    param = f32(4)
    opt = VARIANT_OF["sgd"](param, backend=backend)
    try:
        param.resize((6,))
    except ValueError:  # NumPy itself refuses while the optimizer holds a view of it
        return
    with pytest.raises(ValueError, match="shape"):
        opt.step(f32(4))


@each_backend
def test_grads_of_another_structure_are_refused(backend: str) -> None:
    params = {"W": f32(3), "layers": [f32(1), f32(2)]}
    opt = VARIANT_OF["sgd"](params, backend=backend)
    good = {"W": f32(3), "layers": [f32(1), f32(2)]}
    for bad, *parts in [
        ({"W": f32(3)}, 'missing grads["layers"]'),
        ({**good, "extra": f32(1)}, 'unexpected grads["extra"]'),
        ({**good, "layers": [f32(1)]}, 'missing grads["layers"][1]'),
        ({**good, "layers": [f32(1), f32(2), f32(3)]}, 'unexpected grads["layers"][2]'),
        ({**good, "layers": {0: f32(1), 1: f32(2)}}, 'grads["layers"] is a dict where the'),
        ([f32(3), f32(1), f32(2)], "grads must be nested"),
        (f32(3), "grads must be nested"),
        (None, "grads must be nested"),
        ("text", "grads must be nested"),
    ]:
        with pytest.raises(ValueError, match="grads") as caught:
            opt.step(bad)
        says(caught.value, ValueError, *parts, "Use None")
    assert opt.step_count == 0
    opt.step(good)


@each_backend
def test_grads_of_groups_are_a_list_with_a_tree_for_each(backend: str) -> None:
    groups = [{"params": f32(3)}, {"params": [f32(2)], "lr": 1.0}]
    opt = VARIANT_OF["sgd"](groups, backend=backend)
    for bad in (f32(3), [f32(3)], [f32(3), [f32(2)], None], {"a": f32(3)}, None, 1.0):
        with pytest.raises(ValueError, match="grads must be a list of 2 trees"):
            opt.step(bad)
    opt.step([f32(3), [f32(2)]])
    opt.step((None, [None]))


def test_nested_dicts_lists_tuples_and_namedtuples_are_updated_everywhere() -> None:
    params = {"a": [f32(1), (f32(2), {"deep": f32(3)})], "b": Pair(f32(4), f32(5)), "c": f32()}
    grads = {
        "c": np.ones((), np.float32),
        "b": Pair(f32(4) + 1, f32(5) + 1),
        "a": [f32(1) + 1, (f32(2) + 1, {"deep": f32(3) + 1})],
    }
    opt = VARIANT_OF["sgd"](params, lr=1.0)
    opt.step(grads)
    names = ["a.0", "a.1.0", "a.1.1.deep", "b.0", "b.1", "c"]
    got = list(opt.state_dict()["state"])
    assert [name.replace("b.W", "b.0").replace("b.b", "b.1") for name in got] == names
    everything = params["a"][0], *params["a"][1][:1], params["a"][1][1]["deep"], *params["b"]  # type: ignore[index]
    for leaf in (*everything, params["c"]):
        np.testing.assert_array_equal(leaf, -np.ones_like(leaf))


@each_backend
def test_gradients_find_their_parameters_by_key_and_not_by_order(backend: str) -> None:
    def trees(turned: bool) -> list[dict[Any, Any]]:
        made: list[dict[Any, Any]] = [{"a": 1.0, "b": 2.0}, {7: 1.0, "x": 2.0}, {(1,): 1.0, 0: 2.0}]
        return [dict(reversed(tree.items())) for tree in made] if turned else made

    for kind, other in [(dict, dict), (dict, OrderedDict), (OrderedDict, dict)]:
        for tree, turned in zip(trees(False), trees(True), strict=True):
            params = kind((key, np.zeros(2)) for key in tree)
            grads = other((key, np.full(2, value)) for key, value in turned.items())
            VARIANT_OF["sgd"](params, backend=backend, lr=1.0).step(grads)
            for key, value in tree.items():
                np.testing.assert_array_equal(params[key], [-value, -value])


@each_backend
def test_a13_state_belongs_to_a_name_and_not_to_an_address(backend: str) -> None:
    for _ in range(8):  # new arrays take the addresses and ids of the dead ones
        param = np.zeros(3)
        opt = VARIANT_OF["sgd_momentum"](param, backend=backend, lr=1.0)
        opt.step(np.ones(3))
        np.testing.assert_array_equal(param, -np.ones(3))
        del opt, param


@each_backend
def test_a13_the_optimizer_keeps_its_parameters_alive(backend: str) -> None:
    param = np.zeros(3)
    alive = weakref.ref(param)
    opt = VARIANT_OF["sgd"]([param], backend=backend, lr=1.0)
    del param
    gc.collect()
    assert alive() is not None
    opt.step([np.ones(3)])
    np.testing.assert_array_equal(alive(), -np.ones(3))


def test_a16_addresses_and_lengths_are_counted_beyond_two_to_the_31() -> None:
    size = 2**31 + 7
    virtual = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (size,), (4,))
    low, high = arrays.extent(virtual)
    assert high - low == 4 * size
    flat = arrays.flat_view(virtual, arrays.layout_of(virtual))
    assert flat is not None
    assert flat.size == size
    back = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (3, size), (-4 * size, 4))
    low, high = arrays.extent(back)
    assert high - low == 12 * size
    assert not arrays.overlaps_itself(back)


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_a16_chunks_cover_more_than_two_to_the_31_elements_once() -> None:
    module: Any = importlib.import_module("fastopt.backends.numba.backend")
    lengths = np.array([3, 2**31 + 7, 0, 5], np.intp)
    leaf, start, count = module._chunks(lengths, module.CHUNK)
    ends = start + count
    for k, length in enumerate(lengths):
        own = leaf == k
        assert count[own].sum() == length
        assert ends[own].max(initial=0) == length
        assert np.all(start[own][1:] == ends[own][:-1])
    assert start.dtype == count.dtype == np.int64


@each_backend
@each_variant
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a17_the_users_error_state_does_not_disturb_a_step(
    variant: Variant, dtype: Any, backend: str
) -> None:
    top = np.finfo(dtype).max
    extreme = np.array([0, 1e-30, -top, top, np.inf, -np.inf, np.nan, 1e-38], dtype)

    def end() -> tuple[Array, dict[str, Any]]:
        params = [np.ones(8, dtype), np.ones((8, 2), dtype)[:, 0], np.array(1, dtype)]
        opt = variant(params, backend=backend, weight_decay=0.1)
        for grad in (extreme, extreme * dtype(0.5), -extreme):
            opt.step([grad, grad, grad[3, ...]])
        return np.concatenate([p.reshape(-1) for p in params]), opt.state_dict()["state"]

    with np.errstate(all="ignore"):
        expected = end()
    with np.errstate(all="raise", under="ignore"):  # 0.5 * 1e-38 above is the test's own
        got = end()
    np.testing.assert_equal(got, expected)


@each_backend
@pytest.mark.parametrize("errors", ["raise", "warn"])
def test_a17_a_gradient_too_large_for_the_parameters_dtype_becomes_infinite(
    errors: Any, backend: str
) -> None:
    param = f32(2)
    opt = VARIANT_OF["sgd"](param, backend=backend, lr=1.0)
    with np.errstate(all=errors):  # warnings are errors in these tests
        opt.step(np.array([1e300, 1e-300]))
    np.testing.assert_array_equal(param, [-np.inf, 0.0])


@each_backend
def test_a17_hyperparameters_at_the_ends_of_float32_disturb_no_step_either(backend: str) -> None:
    param = f32(2)
    with np.errstate(all="raise"):
        opt = fastopt.Adam(param, 1e-41, eps=1e-30, weight_decay=1e-44, backend=backend)
        opt.step(np.ones(2, np.float32), grad_scale=1e-20)
        opt.lr = 3e38
        for _ in range(2):
            opt.step(np.ones(2, np.float32))
    assert np.all(np.isinf(param))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("wrap", [np.asarray, np.frombuffer])
def test_a15_a_parameter_that_reaches_its_gradient_through_a_buffer_is_refused(
    wrap: Any, backend: str
) -> None:
    grad = np.ones(3)
    opt = fastopt.SGD(wrap(memoryview(grad)), lr=0.5, backend=backend)
    with pytest.raises(ValueError, match="shares memory"):
        opt.step(grad)
    assert (grad == 1.0).all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a12_a_parameter_that_was_moved_in_memory_is_refused(backend: str) -> None:
    param = np.ones(4)
    opt = fastopt.SGD(param, lr=1.0, backend=backend)
    param.resize(400_000, refcheck=False)
    param.resize(4, refcheck=False)
    with pytest.raises(ValueError, match=r"moved in memory .* opt\.rebind\(params\)"):
        opt.step(np.ones(4))
    assert (param == 1.0).all()
