"""Parameters that are replaced, get other rows, or are joined by others, while training goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import BackendMismatchError
from helpers.cuda.runs import on_host
from helpers.variants import APART, CPU_BACKENDS, ELEMENTWISE, VARIANTS, Variant

STATES = [None, "float64", "bfloat16", "int8"]
LARGE = 5_000
"""Elements: from 4 096 on state in 8 bits is kept in codes."""


def draw(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# Rebinding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_state_goes_on_in_other_arrays(place: tuple[Any, str], variant: Variant) -> None:
    xp, backend = place
    ends = []
    for replaced in (False, True):
        params = {"a": xp.asarray(draw(1, 3, 4)), "b": [xp.asarray(draw(2, 70))]}
        opt = variant(params, backend=backend, max_grad_norm=2.0)
        for step in range(6):
            if replaced and step in (2, 3, 5):
                params = {"a": params["a"].copy(), "b": [params["b"][0].copy()]}
                assert opt.rebind(params) is opt
                assert opt.params is params
                assert opt.param_groups[0]["params"] is params
            grads = [xp.asarray(draw(10 + step, 3, 4)), xp.asarray(draw(20 + step, 70))]
            opt.step({"a": grads[0], "b": [grads[1]]})
        ends.append([on_host(params["a"]).tobytes(), on_host(params["b"][0]).tobytes()])
        assert opt.step_count == 6
    assert ends[0] == ends[1]


@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("order", ["F", "strided", "reversed"])
def test_arrays_may_lie_otherwise_in_memory(
    place: tuple[Any, str], state_dtype: str | None, order: str
) -> None:
    xp, backend = place
    start = draw(1, 100, LARGE // 100)

    def laid_out(values: Any) -> Any:
        if order == "F":
            return xp.asarray(values.T.copy()).T
        wide = xp.zeros((200, values.shape[1]), np.float32)
        view = wide[::2] if order == "strided" else wide[99::-1]
        view[...] = xp.asarray(values)
        return view

    ends = []
    for replaced in (False, True):
        params = [xp.array(start)]
        opt = fastopt.Adam(params, 0.1, backend=backend, state_dtype=state_dtype)
        for step in range(5):
            if replaced and step == 3:
                params = [laid_out(on_host(params[0]))]
                opt.rebind(params)
            opt.step([xp.asarray(draw(5 + step, *start.shape))])
        ends.append(on_host(params[0]))
    if state_dtype in (None, "float64"):
        assert ends[0].tobytes() == ends[1].tobytes()
    elif state_dtype == "bfloat16":  # random bits follow the order in memory
        np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=2e-3)
    else:  # and so do blocks: their scales are others
        np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=5e-2)


@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.float64])
def test_master_weights_and_complex_state_go_along(place: tuple[Any, str], dtype: Any) -> None:
    xp, backend = place
    start = draw(1, 6, 7).astype(dtype)
    ends = []
    for replaced in (False, True):
        param = xp.array(start)
        opt = fastopt.AdamW(param, 1e-3, backend=backend)
        for step in range(8):
            if replaced and step == 4:
                param = xp.asarray(on_host(param).T.copy()).T
                opt.rebind(param)
            opt.step(xp.asarray(draw(step, 6, 7).astype(dtype)))
        ends.append(on_host(param).tobytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_groups_and_bounds_of_arrays(backend: str) -> None:
    low = np.full(3, -0.2)
    params = [{"params": {"w": np.zeros(3)}, "lr": 0.5, "bounds": ({"w": low}, None)}]
    params.append({"params": np.zeros(2), "lr": 1.0})
    opt = fastopt.SGD(params, 1.0, backend=backend)
    opt.step([{"w": np.ones(3)}, np.ones(2)])
    w, b = np.full(3, 0.5), np.zeros(2)
    opt.rebind([{"w": w}, b])
    opt.step([{"w": np.ones(3)}, np.ones(2)])
    assert w.tolist() == [0.0] * 3
    opt.step([{"w": np.ones(3)}, np.ones(2)])
    assert w.tolist() == [-0.2] * 3
    assert b.tolist() == [-2, -2]
    assert opt.param_groups[0]["params"]["w"] is w
    again = {"w": np.zeros(3)}
    opt.rebind([{"params": again}, {"params": b}])
    assert opt.params[0] is again


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_groups_by_pattern_show_the_new_arrays(backend: str) -> None:
    groups = fastopt.groups({"a": np.zeros(2), "b": np.zeros(2)}, {"b": {"lr": 0.5}})
    opt = fastopt.SGD(groups, 1.0, backend=backend)
    other = {"a": np.zeros(2), "b": np.zeros(2)}
    opt.rebind(other)
    assert opt.param_groups[0]["params"]["a"] is other["a"]
    assert opt.param_groups[1]["params"]["b"] is other["b"]
    opt.step({"a": np.ones(2), "b": np.ones(2)})
    assert other["a"].tolist() == [-1, -1]
    assert other["b"].tolist() == [-0.5, -0.5]


def test_what_does_not_fit_is_refused_with_nothing_changed(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = {"a": xp.zeros(2), "b": xp.zeros((2, 3))}
    opt = fastopt.Momentum(params, 1.0, backend=backend)
    opt.step({"a": xp.ones(2), "b": xp.ones((2, 3))})
    block = xp.zeros(8)
    other = np.zeros if xp is not np else SimpleNamespace(shape=(2,))
    cases: list[tuple[Any, type[Exception], str]] = [
        ({"a": xp.zeros(2)}, ValueError, r"missing \['b'\], unexpected \[\]"),
        ({**params, "c": xp.zeros(1)}, ValueError, r"unexpected \['c'\].*add_param_group"),
        ({**params, "b": xp.zeros((4, 3))}, ValueError, r"opt\.resize\('b', array, keep=rows\)"),
        ({**params, "b": xp.zeros((2, 3), np.float32)}, ValueError, "must be float64 of shape"),
        ({"a": block[:2], "b": block[1:7].reshape(2, 3)}, ValueError, "share"),
        ({**params, "a": other}, TypeError, "numpy.ndarray or cupy.ndarray"),
        ([xp.zeros(2), xp.zeros((2, 3))], ValueError, r"missing \['a', 'b'\]"),
    ]
    for given, kind, message in cases:
        with pytest.raises(kind, match=message):
            opt.rebind(given)
        with pytest.raises(kind, match=message):
            opt.step({"a": xp.ones(2), "b": xp.ones((2, 3))}, params=given)
    assert opt.params is params
    opt.step({"a": xp.ones(2), "b": xp.ones((2, 3))})
    assert on_host(params["a"]).tolist() == pytest.approx([-0.29, -0.29])
    listed = fastopt.SGD([{"params": xp.zeros(1)}], 1.0, backend=backend)
    with pytest.raises(TypeError, match="rebind takes arrays alone"):
        listed.rebind([{"params": xp.zeros(1), "lr": 2.0}])


def test_another_kind_of_array_is_refused(cupy: Any) -> None:
    opt = fastopt.SGD({"a": np.zeros(2)}, 1.0)
    with pytest.raises(BackendMismatchError, match="must be where it was, in host memory"):
        opt.rebind({"a": cupy.zeros(2)})


def test_a_captured_step_keeps_its_arrays(cupy: Any) -> None:
    param = cupy.zeros(3, np.float32)
    opt = fastopt.SGD(param, 1.0, capturable=True).warmup()
    stream = cupy.cuda.Stream(non_blocking=True)
    grad = cupy.ones(3, np.float32)
    with stream:
        stream.begin_capture()
        try:
            opt.step(grad)
        finally:
            graph = stream.end_capture()
    for change in (
        lambda: opt.rebind(cupy.zeros(3, np.float32)),
        lambda: opt.resize("params", cupy.zeros(4, np.float32)),
        lambda: opt.add_param_group({"params": cupy.zeros(4, np.float32)}),
    ):
        with pytest.raises(RuntimeError, match="a step has been captured in a CUDA graph"):
            change()
    graph.launch(stream)
    stream.synchronize()
    assert on_host(param).tolist() == [-1, -1, -1]


# Programs that replace their arrays ---------------------------------------------------------------


class Model:
    """Of a program that knows nothing of in place."""

    def __init__(self) -> None:
        self.params = {"w": np.array([4.0, -2.0]), "b": np.array([1.0])}

    def grads(self) -> dict[str, Any]:
        return {name: 2 * value for name, value in self.params.items()}

    def set_params(self, params: dict[str, Any]) -> None:
        self.params = params


def by_hand(steps: int, restored_before: int) -> list[float]:
    """Momentum on w^2, whose parameters a program sets back once."""
    w, m = np.array([4.0, -2.0, 1.0]), np.zeros(3)
    best = w.copy()
    for step in range(steps):
        if step == restored_before:
            w = best.copy()
        m = 0.9 * m + 2 * w
        w = w - 0.1 * m
    return [*map(float, w)]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("follows", ["rebind", "params"])
def test_the_best_parameters_put_back_are_trained_on(backend: str, follows: str) -> None:
    model = Model()
    opt = fastopt.SGD(model.params, 0.1, momentum=0.9, backend=backend)
    best = {name: value.copy() for name, value in model.params.items()}
    for step in range(6):
        if step == 4:
            model.set_params({name: value.copy() for name, value in best.items()})
            if follows == "rebind":
                opt.rebind(model.params)
        if follows == "rebind":
            opt.step(model.grads())
        else:
            opt.step(model.grads(), params=model.params)
    assert [*model.params["w"], *model.params["b"]] == pytest.approx(by_hand(6, 4), rel=1e-12)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_replaced_entry_is_refused_and_the_advice_works(backend: str) -> None:
    model = Model()
    opt = fastopt.SGD(model.params, 0.1, momentum=0.9, backend=backend)
    opt.step(model.grads())
    model.params["w"] = model.params["w"] * 2
    with pytest.raises(ValueError, match=r"opt\.rebind\(params\), or opt\.step\(grads, params="):
        opt.step(model.grads())
    opt.step(model.grads(), params=model.params)
    opt.rebind(model.params)
    opt.step(model.grads())
    assert opt.step_count == 3


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_an_array_that_was_moved_or_resized_in_place_is_gone_on_with(backend: str) -> None:
    param, other = np.zeros(4), np.zeros(3)
    opt = fastopt.SGD({"a": param, "b": other}, 1.0, momentum=1.0, backend=backend)
    grads = {"a": np.arange(4.0), "b": np.ones(3)}
    opt.step(grads)
    before = param.ctypes.data
    param.resize((40_000,), refcheck=False)
    fence = [np.ones(4) for _ in range(8)]  # where it was
    with pytest.raises(ValueError, match=r"opt\.resize\('a', array"):
        opt.step(grads)
    with pytest.raises(ValueError, match=r"opt\.resize\('a', array"):
        opt.rebind({"a": param, "b": other})
    param.resize((4,), refcheck=False)
    assert param.ctypes.data != before
    assert len(fence) == 8
    with pytest.raises(ValueError, match=r"moved in memory.*Call opt\.rebind\(params\)"):
        opt.step(grads)
    opt.rebind(opt.params)
    opt.step({"a": np.zeros(4), "b": np.zeros(3)})
    assert param.tolist() == [0, -2, -4, -6]
    param.resize((6,), refcheck=False)
    opt.resize("a", param)
    opt.step({"a": np.zeros(6), "b": np.zeros(3)})
    assert param.tolist() == [0, -3, -6, -9, 0, 0]
    assert other.tolist() == [-3, -3, -3]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_parameters_that_are_in_use_cost_nothing(backend: str) -> None:
    params = [np.zeros(2), np.zeros(3)]
    opt = fastopt.SGD(params, 1.0, backend=backend)
    opt.step([np.ones(2), np.ones(3)], params=params)
    engine, kernels = opt._engine, opt._engine.kernels
    opt.step([np.ones(2), np.ones(3)], params=list(params))
    assert opt._engine is engine
    assert opt._engine.kernels is kernels
    assert params[1].tolist() == [-2, -2, -2]


# Other rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [v for v in ELEMENTWISE if not v.rule.begun], ids=str)
def test_rows_keep_their_state_and_new_ones_begin(place: tuple[Any, str], variant: Variant) -> None:
    """A kept row ends as in an optimizer of its own; a new one begins at the step that it is."""
    xp, backend = place
    keep = np.array([4, 0, 4, 2])
    start, fresh = draw(1, 5, 3, dtype=np.float64), draw(2, 2, 3, dtype=np.float64)
    first = [draw(10 + k, 5, 3, dtype=np.float64) for k in range(3)]
    then = [draw(20 + k, 6, 3, dtype=np.float64) for k in range(4)]

    params = {"other": xp.ones(2), "xyz": xp.array(start)}
    opt = variant(params, backend=backend)
    for grad in first:
        opt.step({"other": xp.ones(2), "xyz": xp.asarray(grad)})
    new = xp.concatenate([params["xyz"][keep], xp.asarray(fresh)])
    opt.resize("xyz", new, keep=keep)
    assert params["xyz"] is new
    for grad in then:
        opt.step({"other": xp.ones(2), "xyz": xp.asarray(grad)})

    rows = xp.asarray(start[keep])
    kept = variant({"other": xp.ones(2), "xyz": rows}, backend=backend)
    for grad in first:
        kept.step({"other": xp.ones(2), "xyz": xp.asarray(grad[keep])})
    for grad in then:
        kept.step({"other": xp.ones(2), "xyz": xp.asarray(grad[:4])})
    assert on_host(new)[:4].tobytes() == on_host(rows).tobytes()

    late = xp.array(fresh)
    begun = variant({"other": xp.ones(2), "xyz": late}, backend=backend)
    begun.step({"other": xp.ones(2), "xyz": None})
    saved = begun.state_dict()
    saved["step_count"] = saved["state"]["other"]["step"] = saved["state"]["xyz"]["step"] = 3
    for slot in variant.rule.places:  # which a parameter's first step would set
        saved["state"]["xyz"][slot] = fresh.copy()
    begun.load_state_dict(saved)
    for grad in then:
        begun.step({"other": xp.ones(2), "xyz": xp.asarray(grad[4:])})
    assert on_host(new)[4:].tobytes() == on_host(late).tobytes()


@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("rows", [(2_000, 1_500), (2_000, 10), (10, 2_000)])
def test_stored_state_goes_along(
    place: tuple[Any, str], state_dtype: str | None, rows: tuple[int, int]
) -> None:
    """Also over the size from which state in 8 bits is kept in codes."""
    xp, backend = place
    before, after = rows
    kept = min(rows)
    param = xp.asarray(draw(1, before, 3))
    opt = fastopt.Adam({"xyz": param}, 0.01, backend=backend, state_dtype=state_dtype)
    for step in range(3):
        opt.step({"xyz": xp.asarray(draw(step, before, 3))})
    old = opt.state_dict()["state"]["xyz"]
    new = xp.zeros((after, 3), np.float32)
    new[:kept] = param[:kept]
    opt.resize("xyz", new)
    now = opt.state_dict()["state"]["xyz"]
    assert now["step"] == 3
    for slot in "mv":
        then, here = (numbers(entry, slot, slot == "m") for entry in (old, now))
        largest = np.abs(then).max()
        tolerance = 0.04 * largest if state_dtype == "int8" else 0.0
        np.testing.assert_allclose(here[:kept], then[:kept], rtol=0, atol=tolerance)
        assert not here[kept:].any()
    opt.step({"xyz": xp.asarray(draw(9, after, 3))})
    assert np.isfinite(on_host(new)).all()


def numbers(entry: dict[str, Any], slot: str, signed: bool) -> Any:
    values = entry[slot]
    if values.dtype != np.uint8:
        return values.astype(np.float64)
    from fastopt.core.quantization import BLOCK, from_int8

    flat = np.zeros(-(-values.size // BLOCK) * BLOCK, np.uint8)
    flat[: values.size] = values.reshape(-1)
    return from_int8(flat, entry[slot + "_scale"], signed)[: values.size].reshape(values.shape)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_keep_may_be_a_mask_or_nothing(backend: str) -> None:
    def made() -> fastopt.Optimizer:
        opt = fastopt.SGD({"p": np.zeros((4, 1))}, 1.0, momentum=1.0, backend=backend)
        opt.step({"p": np.array([[1.0], [2.0], [3.0], [4.0]])})
        return opt

    zero = {"p": np.zeros((3, 1))}
    for keep, moved in ((np.array([False, True, False, True]), [-2, -4, 0]), (None, [-1, -2, -3])):
        opt = made()
        new = np.zeros((3, 1))
        opt.resize("p", new, keep=keep)
        opt.step(zero)
        assert new.ravel().tolist() == moved
    opt = made()
    opt.resize("p", np.zeros((3, 1)), keep=[])
    opt.step(zero)
    assert opt.params["p"].ravel().tolist() == [0, 0, 0]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_new_array_is_put_into_the_tree(backend: str) -> None:
    new = np.zeros(3)
    nested: dict[str, Any] = {"a": [np.zeros(2), (np.zeros(2), np.zeros(1))]}
    opt = fastopt.SGD(nested, 1.0, backend=backend)
    opt.resize("a.0", new)
    assert nested["a"][0] is new
    assert opt.params is nested
    opt.resize("a.1.0", new.copy())  # in a tuple: another tree
    assert opt.params["a"][0] is new
    assert opt.params["a"][1][0].shape == (3,)
    assert nested["a"][1][0].shape == (2,)
    opt.step({"a": [np.ones(3), (np.ones(3), np.ones(1))]})
    assert opt.params["a"][1][0].tolist() == [-1, -1, -1]
    bare = fastopt.SGD(np.zeros(2), 1.0, backend=backend)
    bare.resize("params", new := np.zeros(4))
    assert bare.params is new
    grouped = fastopt.SGD([{"params": {"w": np.zeros(2)}, "lr": 0.5}, {"params": np.ones(1)}], 1.0)
    grouped.resize("0.w", new := np.zeros(3))
    assert grouped.param_groups[0]["params"]["w"] is new
    grouped.step([{"w": np.ones(3)}, np.ones(1)])
    assert new.tolist() == [-0.5] * 3


def test_rows_that_cannot_be_are_refused(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = {"xyz": xp.zeros((4, 3)), "one": xp.zeros(())}
    opt = fastopt.Adam(params, backend=backend)
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        (("xzy", xp.zeros((2, 3))), ValueError, "such as 'xyz'; got 'xzy'"),
        (("xyz", xp.zeros((2, 4))), ValueError, r"of shape \(rows, 3\); got float64 of shape"),
        (("xyz", xp.zeros((2, 3), np.float32)), ValueError, "must be float64"),
        (("one", xp.zeros(())), ValueError, "changes the number of rows"),
        (("xyz", xp.zeros((2, 3)), [0, 1, 2]), ValueError, "names 3 rows, and the new 'xyz' has 2"),
        (("xyz", xp.zeros((2, 3)), [0, 4]), ValueError, "numbers of old rows, 0 to 3; got 0 to 4"),
        (("xyz", xp.zeros((2, 3)), [-1]), ValueError, "got -1 to -1"),
        (("xyz", xp.zeros((2, 3)), [0.5]), TypeError, "or a mask of 4 truth values"),
        (("xyz", xp.zeros((2, 3)), [True]), TypeError, "or a mask of 4 truth values"),
        (("xyz", "rows"), TypeError, "must be a numpy.ndarray or cupy.ndarray; got str"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            opt.resize(*arguments)
    assert params["xyz"].shape == (4, 3)
    opt.step({"xyz": xp.ones((4, 3)), "one": xp.ones(())})
    bounded = fastopt.SGD(xp.zeros(3), bounds=(xp.zeros(3), None), backend=backend)
    with pytest.raises(ValueError, match="bounds or an lr_scale that are arrays"):
        bounded.resize("params", xp.zeros(4))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("variant", [v for v in APART if not v.rule.begun], ids=str)
def test_other_parameters_are_not_touched(backend: str, variant: Variant) -> None:
    ends = []
    for resized in (False, True):
        params = {"a": draw(1, 9), "b": draw(2, 4, 2), "c": draw(3, 5)}
        opt = variant(params, backend=backend)
        for step in range(5):
            if resized and step == 2:
                opt.resize("b", np.zeros((7, 2), np.float32))
            grads = {name: draw(step, *value.shape) for name, value in params.items()}
            opt.step(grads)
        ends.append([params[name].tobytes() for name in "ac"])
    assert ends[0] == ends[1]


# More parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", APART, ids=str)
def test_an_added_group_is_trained_beside_the_others(
    place: tuple[Any, str], variant: Variant
) -> None:
    xp, backend = place
    head, body = xp.asarray(draw(1, 7)), xp.asarray(draw(2, 3, 4))
    opt = variant({"head": head}, backend=backend)
    for step in range(3):
        opt.step({"head": xp.asarray(draw(step, 7))})
    group = {"params": {"body": body}, "lr": 0.25}
    assert opt.add_param_group(group) is opt
    assert opt.param_groups[1]["lr"] == 0.25
    for step in range(3, 6):
        grads = [{"head": xp.asarray(draw(step, 7))}, {"body": xp.asarray(draw(step, 3, 4))}]
        opt.step(grads)

    alone = xp.asarray(draw(1, 7))
    other = variant({"head": alone}, backend=backend)
    for step in range(6):
        other.step({"head": xp.asarray(draw(step, 7))})
    assert on_host(head).tobytes() == on_host(alone).tobytes()
    late = xp.asarray(draw(2, 3, 4))
    fresh = variant({"body": late}, backend=backend)
    fresh.param_groups[0]["lr"] = 0.25
    for step in range(3, 6):
        fresh.step({"body": xp.asarray(draw(step, 3, 4))})
    assert on_host(body).tobytes() == on_host(late).tobytes()
    assert [*opt.state_dict()["state"]] == ["0.head", "1.body"]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_group_has_the_constructors_options_and_follows_settings(backend: str) -> None:
    opt = fastopt.SGD([{"params": np.zeros(1), "momentum": 0.5}], 2.0, maximize=True)
    groups = opt.param_groups
    opt.add_param_group({"params": np.zeros(2)})
    assert opt.param_groups is groups
    assert [group["momentum"] for group in groups] == [0.5, 0.0]
    assert groups[1]["maximize"]
    opt.lr = 1.0
    assert [group["lr"] for group in groups] == [1.0, 1.0]
    groups[1]["trainable"] = False
    opt.step([np.ones(1), None])
    assert opt.params[0].tolist() == [1]
    opt.add_param_group({"params": {"x": np.zeros(1)}})
    groups[1]["trainable"] = True
    opt.step([None, np.ones(2), {"x": np.ones(1)}])
    assert opt.params[1].tolist() == [1, 1]
    assert opt.params[2]["x"].tolist() == [2], "the constructor's learning rate"


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_groups_that_cannot_be_added_are_refused(backend: str) -> None:
    param = np.zeros(3)
    opt = fastopt.Adam(param, backend=backend)
    cases: list[tuple[Any, type[Exception], str]] = [
        (np.zeros(2), TypeError, "takes a dict with 'params'"),
        ({"lr": 0.1}, TypeError, "takes a dict with 'params'"),
        ({"params": {}}, ValueError, "got no parameters"),
        ({"params": param[1:]}, ValueError, "share"),
        ({"params": np.zeros(1), "lr": -1}, ValueError, r"Adam, params\[1\]: lr must be"),
        ({"params": np.zeros(1), "momentum": 1}, TypeError, "no hyperparameter 'momentum'"),
        ({"params": np.zeros(1, int)}, TypeError, "must be of one of the dtypes"),
    ]
    for given, kind, message in cases:
        with pytest.raises(kind, match=message):
            opt.add_param_group(given)
    assert len(opt.param_groups) == 1
    opt.step(np.ones(3))
    patterned = fastopt.groups({"a": np.zeros(1), "b": np.zeros(1)}, {"b": {"lr": 1.0}})
    with pytest.raises(ValueError, match="groups were made by pattern"):
        fastopt.SGD(patterned, backend=backend).add_param_group({"params": np.zeros(1)})


# What goes with the parameters --------------------------------------------------------------------


@pytest.mark.parametrize("change", ["rebind", "resize", "add"])
def test_gradient_buffers_of_before_are_refused(place: tuple[Any, str], change: str) -> None:
    xp, backend = place
    opt = fastopt.SGD({"w": xp.zeros(3)}, 1.0, backend=backend)
    old = opt.gradient_buffers()
    opt.step(old)
    grads: Any = old
    if change == "rebind":
        opt.rebind({"w": xp.zeros(3)})
    elif change == "resize":
        opt.resize("w", xp.zeros(4))
    else:
        opt.add_param_group({"params": xp.zeros(1)})
        grads = [old, None]
    with pytest.raises(ValueError, match=r"ask for those of today's: opt\.gradient_buffers\(\)"):
        opt.step(grads)
    new = opt.gradient_buffers()
    leaf = new[0]["w"] if change == "add" else new["w"]
    leaf[...] = 1
    opt.step(new)
    assert on_host(opt.params[0]["w"] if change == "add" else opt.params["w"])[0] == -1


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_checkpoints_go_on_over_a_resize(backend: str, tmp_path: Any) -> None:
    params = {"xyz": draw(1, 6, 3)}
    opt = fastopt.Adam(params, backend=backend)
    opt.step({"xyz": draw(2, 6, 3)})
    opt.resize("xyz", draw(1, 4, 3), keep=[5, 1])
    opt.step({"xyz": draw(3, 4, 3)})
    opt.save(tmp_path / "run.safetensors")
    other = {"xyz": np.zeros((4, 3), np.float32)}
    resumed = fastopt.Adam(other, backend=backend)
    resumed.load(tmp_path / "run.safetensors")
    for each in (opt, resumed):
        each.step({"xyz": draw(4, 4, 3)})
    assert other["xyz"].tobytes() == params["xyz"].tobytes()


def test_under_auto_the_change_to_numba_can_still_come() -> None:
    params = {"w": draw(1, 50)}
    opt = fastopt.Adam(params)
    began = opt.backend
    opt.rebind({"w": params["w"].copy()})
    opt.add_param_group({"params": draw(2, 3)})
    assert opt.backend == began
    opt.warmup()
    assert opt.backend == CPU_BACKENDS[-1]
    opt.step([{"w": draw(3, 50)}, draw(4, 3)])
    assert opt.step_count == 1
