"""What an error says to write is written here, and works."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def refused(call: Callable[[], Any], kind: type[Exception] = TypeError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def advised(
    said: str, before: str = r"(?:[Hh]and in|before|equal|transposed|gradient|use):?"
) -> str:
    """Return the expression that a message ends with, before what is said of copies."""
    said = said.partition(" A program that replaces")[0]
    found = re.search(rf"{before} ([^ ].*?)(?: \(dataclasses.*\))?\.?$", said)
    assert found is not None, said
    return found[1]


# Gradients ---------------------------------------------------------------------------------------


class Like:
    """Of another library: an array that is reached by one method alone."""

    def __init__(self, values: Any) -> None:
        self._values = np.array(values)
        self.shape = self._values.shape


def of_library(module: str, method: str, values: Any) -> Any:
    """Return something whose class says that it is of a library that is not installed here."""
    kind = type(
        "Other", (Like,), {"__module__": module, method: lambda self, *_, **__: self._values}
    )
    return kind(values)


class Tensor(Like):
    """A tensor that takes part in autograd, as PyTorch's."""

    def __init__(self, values: Any, attached: bool = True, on_device: bool = True) -> None:
        super().__init__(values)
        self._attached, self._on_device = attached, on_device

    def detach(self) -> Tensor:
        return Tensor(self._values, False, self._on_device)

    def cpu(self) -> Tensor:
        return Tensor(self._values, self._attached, False)

    def numpy(self) -> Array:
        if self._attached or self._on_device:
            raise RuntimeError("call detach and cpu first")
        return np.asarray(self._values)


Tensor.__module__ = "torch"


SPARSE = scipy.sparse.csr_array(np.array([[1.0, 0.0], [0.0, 2.0]]))
SERIES = of_library("pandas.core.series", "to_numpy", [1.0, 2.0])
Gradients = dict[str, tuple[Any, tuple[int, ...], Any]]
GRADIENTS: Gradients = {
    "matrix": (np.array([[1.0, 2.0]]).view(np.matrix), (1, 2), [[1.0, 2.0]]),
    "matrix_for_a_vector": (np.array([[1.0, 2.0]]).view(np.matrix), (2,), [1.0, 2.0]),
    "masked": (np.ma.masked_array([1.0, 2.0], [False, True]), (2,), [1.0, 0.0]),
    "sparse": (SPARSE, (2, 2), [[1.0, 0.0], [0.0, 2.0]]),
    "sparse_matrix": (scipy.sparse.coo_matrix(SPARSE), (2, 2), [[1.0, 0.0], [0.0, 2.0]]),
    "series": (SERIES, (2,), [1.0, 2.0]),
    "series_for_a_column": (SERIES, (2, 1), [[1.0], [2.0]]),
    "torch": (Tensor([1.0, 2.0]), (2,), [1.0, 2.0]),
    "jax": (of_library("jaxlib._jax", "__array__", [1.0, 2.0]), (2,), [1.0, 2.0]),
    "polars": (of_library("polars.series", "to_numpy", [1.0]), (1,), [1.0]),
    "xarray": (of_library("xarray.core", "to_numpy", [1.0]), (1,), [1.0]),
    "tensorflow": (of_library("tensorflow.python", "numpy", [1.0]), (1,), [1.0]),
    "mxnet": (of_library("mxnet.numpy", "asnumpy", [1.0]), (1,), [1.0]),
    "other": (of_library("unknown", "__array__", [1.0]), (1,), [1.0]),
    "list": ([1.0, 2.0], (2,), [1.0, 2.0]),
    "list_of_integers": ([1, 2], (2,), [1.0, 2.0]),
    "tuple": ((1.0, 2.0), (2,), [1.0, 2.0]),
    "nested_list": ([[1.0, 2.0]], (1, 2), [[1.0, 2.0]]),
    "float": (1.5, (1,), [1.5]),
    "float_without_axes": (1.5, (), 1.5),
    "int": (2, (1, 1), [[2.0]]),
    "bool": (True, (), 1.0),
    "float32_scalar": (np.float32(1.5), (1,), [1.5]),
    "float64_scalar": (np.float64(1.5), (1,), [1.5]),
    "int64_scalar": (np.int64(2), (), 2.0),
    "float_for_many": (1.5, (2,), [1.5, 1.5]),
    "integers": (np.array([1, 2]), (2,), [1.0, 2.0]),
    "truth_values": (np.array([True, False]), (2,), [1.0, 0.0]),
    "complex": (np.array([1.0 + 2.0j]), (1,), [1.0]),
    "objects": (np.array([1.0, 2], object), (2,), [1.0, 2.0]),
}
SHAPES: Gradients = {
    "row": (np.array([[1.0, 2.0]]), (2,), [1.0, 2.0]),
    "column": (np.array([1.0, 2.0]), (2, 1), [[1.0], [2.0]]),
    "transposed": (np.array([[1.0, 2.0]]), (2, 1), [[1.0], [2.0]]),
    "no_axes": (np.array(1.0), (1,), [1.0]),
    "one_axis": (np.array([1.0]), (), 1.0),
}


def follow(
    grad: Any, shape: tuple[int, ...], dtype: Any, kind: type[Exception], backend: str
) -> Any:
    """Return the step that is made after the advice for a gradient was followed."""
    params: dict[str, Any] = {"W": np.zeros(shape, dtype)}
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    grads = {"W": grad}
    said = refused(lambda: opt.step(grads), kind)
    assert 'grads["W"]' in advised(said)
    grads["W"] = eval(advised(said))
    opt.step(grads)
    return -params["W"]


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_of_another_kind(name: str, dtype: Any, backend: str) -> None:
    grad, shape, expected = GRADIENTS[name]
    if name == "complex":
        params = {"W": np.zeros(shape, dtype)}
        grads = {"W": grad}
        opt = fastopt.SGD(params, lr=1.0, backend=backend)
        said = refused(lambda: opt.step(grads))
        assert 'the real part, grads["W"].real,' in said
        assert "conjugate" in said
        opt.step({"W": grads["W"].real})
        np.testing.assert_array_equal(params["W"], -np.array(expected))
        return
    got = follow(grad, shape, dtype, TypeError, backend)
    np.testing.assert_array_equal(got, np.array(expected, dtype), strict=True)


@each_backend
@pytest.mark.parametrize("name", SHAPES)
def test_a_gradient_of_another_shape(name: str, backend: str) -> None:
    grad, shape, expected = SHAPES[name]
    got = follow(grad, shape, np.float64, ValueError, backend)
    np.testing.assert_array_equal(got, np.array(expected), strict=True)


def test_a_gradient_for_every_example() -> None:
    params = np.zeros(3)
    opt = fastopt.SGD(params, lr=1.0)
    grads = np.arange(6.0).reshape(2, 3)
    said = refused(lambda: opt.step(grads), ValueError)
    found = re.search(r"counts examples: (.*), or (\.sum\(axis=0\))", said)
    assert found is not None
    opt.step(eval(found[1]))
    opt.step(eval(f"grads{found[2]}"))
    np.testing.assert_array_equal(params, [-4.5, -7.5, -10.5])


@each_backend
@pytest.mark.parametrize(
    "grad", [1.5, np.float32(1.5), np.array([1.5])], ids=["float", "f4", "array"]
)
def test_a_real_gradient_of_a_complex_parameter(grad: Any, backend: str) -> None:
    params = np.zeros(1, np.complex64)
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    grads = grad
    said = refused(lambda: opt.step(grads))
    if isinstance(grad, np.ndarray):
        for part in ("dL/dRe + i dL/dIm", "JAX", "autograd", "conjugate"):
            assert part in said
        said = said.replace("is 0:", "equal:")
    opt.step(eval(advised(said)))
    np.testing.assert_array_equal(params, np.array([-1.5], np.complex64), strict=True)


def test_a_complex_parameter_goes_against_the_gradient_that_points_uphill() -> None:
    z = np.array([1.0 + 2.0j])  # L = |z|^2, dL/dRe = 2 Re z, dL/dIm = 2 Im z
    fastopt.SGD(z, lr=0.25).step(2.0 * z)
    np.testing.assert_array_equal(z, [0.5 + 1.0j])
    of_jax = 2.0 - 4.0j  # jax.grad(lambda z: abs(z) ** 2)(1.0 + 2.0j), of JAX 0.10
    assert np.conj(of_jax) == 2.0 * (1.0 + 2.0j)


def test_where_complex_numbers_are_mentioned_the_conjugate_is_too() -> None:
    for text in (fastopt.Optimizer.step.__doc__, common_documentation()):
        assert text is not None
        plain = " ".join(text.split())
        for part in ("dL/dRe", "i dL/dIm", "JAX", "autograd", "conjugate"):
            assert plain.count(part) == 1, part


def common_documentation() -> str:
    from fastopt.core.options import Common

    return str(Common.__doc__)


@each_backend
@pytest.mark.parametrize("grad", ["text", b"text", object(), np.zeros, {1.0}, Decimal(1)])
def test_what_is_no_gradient_is_told_of_none(grad: Any, backend: str) -> None:
    opt = fastopt.SGD([np.zeros(1)], backend=backend)
    assert refused(lambda: opt.step([grad])).endswith("Use None for no gradient.")
    opt.step([None])


def test_a_dict_of_gradients_for_one_array() -> None:
    opt = fastopt.SGD({"W": np.zeros(1)})
    said = refused(lambda: opt.step({"W": {"a": np.zeros(1)}}))
    assert "got dict. The parameter is one array, so its gradient is one, too." in said


# Parameters --------------------------------------------------------------------------------------


class Layer:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("W", "name")

    def __init__(self) -> None:
        self.W, self.name = np.zeros(2), "slotted"


def f(*shape: int) -> Array:
    return np.zeros(shape)


OBJECTS: dict[str, tuple[Any, list[str]]] = {
    "arrays_alone": (Layer(W=f(2), b=f(1)), ["W", "b"]),
    "with_other_things": (Layer(W=f(2), name="dense", size=3, act=np.tanh), ["W"]),
    "slots": (Slotted(), ["W"]),
    "layers": (Layer(layers=[Layer(W=f(2)), Layer(W=f(3))], lr=0.1), ["0.W", "1.W"]),
    "some_layers": (Layer(layers=[Layer(W=f(2), act="relu"), Layer()]), ["0.W"]),
    "parts": (
        Layer(enc=Layer(W=f(2)), dec=Layer(W=f(3), n=1), name="net"),
        ["dec.W", "enc.W"],
    ),
    "tree": (Layer(params={"W": f(2), "b": f(1)}, lr=0.1), ["W", "b"]),
    "list": (Layer(weights=[f(2), f(3)], sizes=(2, 3)), ["0", "1"]),
    "many": (Layer(layers=[Layer(W=f(2), n=3) for _ in range(20)]), [f"{k}.W" for k in range(20)]),
    "many_arrays": (
        Layer(name="net", **{f"W{k}": f(2) for k in range(20)}),
        [f"W{k}" for k in range(20)],
    ),
    "dict_of_layers": (Layer(layers={"a": Layer(W=f(2)), "b": Layer(W=f(3))}), ["a.W", "b.W"]),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_told_where_its_arrays_are(name: str) -> None:
    value, names = OBJECTS[name]
    for params, expected in (
        (value, names),
        ({"net": value}, [f"net.{one}" for one in names]),
        ([f(1), value], ["0", *(f"1.{one}" for one in names)]),
    ):
        said = refused(lambda params=params: fastopt.Adam(params))  # type: ignore[misc]  # bound at once
        found = eval(advised(said))
        if isinstance(params, dict):
            found = {"net": found}
        elif isinstance(params, list):
            found = [params[0], found]
        assert sorted(fastopt.Adam(found).state_dict()["state"]) == sorted(expected)


def test_the_arrays_of_an_object_are_its_own() -> None:
    params = Layer(W=np.zeros(2), name="dense")
    given = eval(advised(refused(lambda: fastopt.SGD(params, lr=1.0))))
    fastopt.SGD(given, lr=1.0).step({"W": np.ones(2)})
    assert params.W.tolist() == [-1.0, -1.0]


class Model:
    def __init__(self) -> None:
        self.__weights = [f(2)]

    def parameters(self) -> list[Array]:
        return [f(2)]


def test_an_object_with_a_method_for_its_parameters() -> None:
    class Hidden:
        __slots__ = ()

        def parameters(self) -> list[Array]:
            return [f(2)]

    params = Hidden()
    fastopt.SGD(eval(advised(refused(lambda: fastopt.SGD(params)), "some,")))


NOTHING: dict[str, Any] = {
    "text": "xxx",
    "bytes": b"xxx",
    "function": np.tanh,
    "class": Layer,
    "module": np,
    "empty_object": Layer(name="relu"),
    "object": object(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_holds_no_array_is_told_what_to_hand_in(name: str) -> None:
    for params in (NOTHING[name], {"W": f(1), "other": NOTHING[name]}):
        said = refused(lambda params=params: fastopt.Adam(params))  # type: ignore[misc]  # bound at once
        assert f"got {type(NOTHING[name]).__name__}. Hand in arrays alone" in said
        assert "np.array(" not in said
    layer = Layer(W=f(2), name="dense")
    found = re.search(r"\{k: v .*\}", refused(lambda: fastopt.Adam("xxx")))
    assert found is not None
    fastopt.Adam(eval(found[0], {"np": np, "layer": layer}))


@pytest.mark.parametrize("value", [1, 1.5, True, 2j, np.float32(1.5), np.float64(2.0)])
def test_a_number_is_told_how_it_becomes_a_parameter(value: Any) -> None:
    params = {"W": f(1), "scale": value}
    params["scale"] = eval(
        advised(refused(lambda: fastopt.Adam(params)), "(?:use a 0-d array:|use)")
    )
    fastopt.Adam(params).step(params_like(params))


def params_like(params: dict[str, Any]) -> dict[str, Any]:
    return {name: np.ones_like(param) for name, param in params.items()}


OBJECT_ARRAYS: dict[str, tuple[Any, int]] = {
    "ragged_arrays": ([np.zeros(2), np.zeros(3)], 2),
    "ragged_lists": ([[1.0, 2.0], [3.0]], 2),
    "numbers": ([1.0, 2], 1),
}


@pytest.mark.parametrize("name", OBJECT_ARRAYS)
def test_an_array_of_objects(name: str) -> None:
    entries, count = OBJECT_ARRAYS[name]
    values = np.empty(len(entries), object)
    values[:] = entries
    params: Any = {"W": values}
    said = refused(lambda: fastopt.Adam(params))
    assert ("astype" in said) == (name == "numbers")
    assert ("different lengths" in said) == (name != "numbers")
    params["W"] = eval(advised(said, "(?:entry|before):"))
    assert len(fastopt.Adam(params).state_dict()["state"]) == count


def test_an_array_around_something_else() -> None:
    params = np.array({"W": f(2)})
    fastopt.Adam(eval(advised(refused(lambda: fastopt.Adam(params)))))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(">f4", "f4"), ("i8", "f4"), ("?", "f4"), ("g", "f4")]
)
def test_an_array_of_another_dtype(dtype: str, expected: str) -> None:
    params = {"W": np.ones(2, dtype)}
    params["W"] = eval(advised(refused(lambda: fastopt.Adam(params)), "before:"))
    fastopt.Adam(params).step(params_like(params))
    assert params["W"].dtype == expected


def test_parameters_of_other_libraries() -> None:
    params: Any = {"W": SPARSE}
    params["W"] = eval(advised(refused(lambda: fastopt.Adam(params))))
    fastopt.Adam(params)
    of_jax = of_library("jaxlib._jax", "__array__", [1.0, 2.0])
    for value in (
        of_jax,
        np.eye(1).view(np.matrix),
        of_library("pandas.core.series", "__array__", [1.0]),
    ):
        params["W"] = value
        found = re.search(r"np\.(as)?array\(.*?\)", refused(lambda: fastopt.Adam(params)))
        assert found is not None
        params["W"] = eval(found[0])
        fastopt.Adam(params)
    params["W"] = Tensor([1.0], on_device=False)
    found = re.search(r'params\["W"\]\.detach.*\(\)', refused(lambda: fastopt.Adam(params)))
    assert found is not None
    fastopt.Adam({"W": eval(found[0])})


# Arguments ---------------------------------------------------------------------------------------

CALLED: dict[str, tuple[type[fastopt.Optimizer], Any, str]] = {
    "learning_rate": (fastopt.Adam, 0.5, "lr"),
    "step_size": (fastopt.SGD, 0.5, "lr"),
    "alpha": (fastopt.Adam, 0.5, "lr"),
    "schedule": (fastopt.Adam, lambda t: 0.5, "lr"),
    "beta1": (fastopt.Adam, (0.8, 0.99), "betas"),
    "beta_2": (fastopt.AdamW, (0.8, 0.99), "betas"),
    "b1": (fastopt.Adam, (0.8, 0.99), "betas"),
    "rho": (fastopt.RMSprop, 0.8, "beta"),
    "decay_rate": (fastopt.RMSprop, 0.8, "beta"),
    "epsilon": (fastopt.Adam, 1e-7, "eps"),
    "wd": (fastopt.Adam, 0.1, "weight_decay"),
    "l2": (fastopt.SGD, 0.1, "weight_decay"),
    "clipnorm": (fastopt.Adam, 1.0, "clip_each"),
    "global_clipnorm": (fastopt.Adam, 1.0, "max_grad_norm"),
    "max_norm": (fastopt.Adam, 1.0, "max_grad_norm"),
    "requires_grad": (fastopt.Adam, False, "trainable"),
    "weight_decy": (fastopt.Adam, 0.1, "weight_decay"),
    "onnonfinite": (fastopt.Adam, "skip", "on_nonfinite"),
}


@pytest.mark.parametrize("name", CALLED)
def test_an_argument_that_is_called_otherwise_elsewhere(name: str) -> None:
    kind, value, called = CALLED[name]
    made: Any = kind
    said = refused(lambda: made(f(2), **{name: value}))
    found = re.search(r"did you mean '(\w+)'", said)
    assert found is not None, said
    assert found[1] == called
    made(f(2), **{found[1]: value}).step(np.ones(2))
    for option in ("lr", "weight_decay", "trainable", "max_grad_norm", "on_nonfinite", "backend"):
        assert re.search(rf"\b{option}\b", said)


def test_an_argument_that_nobody_knows_is_told_all_there_are() -> None:
    adam: Any = fastopt.Adam
    said = refused(lambda: adam(f(2), foo=1))
    assert said.startswith("Adam has no hyperparameter 'foo'. It has lr, betas, eps, amsgrad,")
    opt = fastopt.Adam(f(2))
    with pytest.raises(TypeError, match="did you mean 'lr'"):
        opt.param_groups[0]["learning_rate"] = 0.5


def test_what_is_of_all_groups_is_not_of_one() -> None:
    said = refused(lambda: fastopt.Adam([{"params": f(2), "max_grad_norm": 1.0}]))
    assert (
        "not of a group, but of the optimizer as a whole: Adam(params, max_grad_norm=...)" in said
    )
    assert fastopt.Adam([{"params": f(2)}], max_grad_norm=1.0).max_grad_norm == 1.0


@pytest.mark.parametrize("kind", [fastopt.Adam, fastopt.AdamW, fastopt.SGD, fastopt.Muon])
def test_an_optimizer_without_parameters(kind: Any) -> None:
    name = kind.__name__
    assert "takes the parameters first, as one array" in refused(lambda: kind(lr=0.1))
    said = refused(lambda: kind(learning_rate=0.1))
    assert f"{name}(params, lr=...); got learning_rate alone" in said
    assert f"{name}(params, lr=...)" in refused(lambda: kind())
    assert f"{name}(params, ...); got parameters" in refused(lambda: kind(parameters=f(2)))
    assert kind(params=f(2, 2), lr=0.1).lr == 0.1


def test_a_users_own_optimizer_takes_what_it_takes() -> None:
    class Own(fastopt.Adam):
        def __init__(self, model: Layer, rate: float = 0.5) -> None:
            super().__init__(vars(model), lr=rate)

    assert Own(model=Layer(W=f(2))).lr == 0.5
    with pytest.raises(TypeError, match="model"):
        Own()  # type: ignore[call-arg]  # that is the point


def test_signatures_are_as_they_are_written() -> None:
    import inspect

    assert list(inspect.signature(fastopt.Adam).parameters)[:3] == ["params", "lr", "betas"]


# Patterns ----------------------------------------------------------------------------------------

REACHED: dict[str, list[str]] = {
    "layers[0].W": ["layers.0.W"],
    "layers[1]": ["layers[1]"],
    '["layers"][0]["W"]': ["layers.0.W"],
    'params["layers"][0]["b"]': ["layers.0.b"],
    "params['layers'][0]['b']": ["layers.0.b"],
    "layers[*].W": ["layers.0.W"],
    "layers.0.W": ["layers.0.W"],
    "W[0]": ["W[0]"],
    "W[01]": ["W1"],
}


@pytest.mark.parametrize("pattern", REACHED)
def test_a_pattern_is_taken_literally_first(pattern: str) -> None:
    params = {
        "layers": [{"W": f(1), "b": f(1)}],
        "layers0": {"W": f(1), "b": f(1)},
        "layers[1]": f(1),
        "W[0]": f(1),
        "W1": f(1),
        "*": f(1),
    }
    opt = fastopt.SGD(fastopt.groups(params, {pattern: {"lr": 0.5}}))
    assert list(opt.param_groups[1]["params"]) == REACHED[pattern]
    star = fastopt.SGD(fastopt.groups(params, {"*": {"lr": 0.5}}))
    assert list(star.param_groups[1]["params"]) == ["*"]


def test_brackets_and_signs_go_together_where_nothing_is_called_so() -> None:
    params = {"layers": [{"W": f(1), "b": f(1)}, {"W": f(1)}]}
    opt = fastopt.SGD(fastopt.groups(params, {"layers[0].*": {"lr": 0.5}}))
    assert list(opt.param_groups[1]["params"]) == ["layers.0.W", "layers.0.b"]
    with pytest.raises(ValueError, match=r"matches no parameter; the closest are 'layers\.0\.W'"):
        fastopt.groups(params, {"layers[2].W": {"lr": 0.5}})


def test_paths_as_errors_print_them_are_patterns() -> None:
    params = {"net": [{"W": f(2)}, {"W": f(2)}], "odd key": {"a.b": f(2)}}
    opt = fastopt.SGD(params)
    for leaf in opt._state.tree.leaves:
        made = fastopt.SGD(fastopt.groups(params, {leaf.path: {"lr": 0.5}}))
        assert list(made.param_groups[1]["params"]) == [leaf.name]
