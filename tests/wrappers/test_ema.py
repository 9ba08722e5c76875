"""EMA: PyTorch's averages, TensorFlow's warmup, a swap that always comes back."""

from __future__ import annotations

import copy
import pickle
import signal
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from helpers.around import copied, leaves, make_grads, make_params, mapped, same, vectors

RECORDED = vectors("ema")
DECAYS = RECORDED["decays"].tolist()
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def path_of(number: int | None, dtype: str, **options: Any) -> list[list[Any]]:
    """Return the averages after every update of a recorded path of parameters."""
    given = [RECORDED[f"p{k}"].astype(dtype) for k in range(3)]
    params = [np.array(x[0]) for x in given]
    ema = fastopt.EMA(params, DECAYS[number] if number is not None else "mean", **options)
    ema.update()  # the first one copies
    kept = []
    for t in range(1, len(given[0])):
        for param, x in zip(params, given, strict=True):
            param[...] = x[t]
        ema.update()
        kept.append([average.copy() for average in ema.average])
    return kept


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", range(len(DECAYS)))
def test_the_averages_are_those_of_pytorch(number: int, dtype: str) -> None:
    for t, averages in enumerate(path_of(number, dtype)):
        for k, average in enumerate(averages):
            expected = RECORDED[f"{number}/{dtype}/avg{k}"][t]
            assert average.dtype == expected.dtype == dtype
            near = 4 * (t + 1) * EPS[dtype]
            np.testing.assert_allclose(average, expected, rtol=near, atol=near)


@pytest.mark.parametrize("number", range(len(DECAYS)))
def test_the_warmup_is_that_of_its_formula(number: int) -> None:
    for t, averages in enumerate(path_of(number, "float64", warmup=True)):
        for k, average in enumerate(averages):
            expected = RECORDED[f"{number}/warmup/avg{k}"][t]
            np.testing.assert_allclose(average, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_by_mean_all_updates_count_alike(dtype: str) -> None:
    """As PyTorch's AveragedModel does by itself: the mean of what it has seen."""
    given = [RECORDED[f"p{k}"].astype(dtype) for k in range(3)]
    for t, averages in enumerate(path_of(None, dtype), 2):
        for average, values in zip(averages, given, strict=True):
            expected = values[:t].mean(axis=0, dtype=np.float64)
            near = 4 * t * EPS[dtype]
            assert average.dtype == dtype
            np.testing.assert_allclose(average, expected, rtol=near, atol=near)


def test_the_mean_of_small_numbers_is_exact() -> None:
    param = np.array([8.0])
    ema = fastopt.EMA([param], "mean")
    seen = []
    for value in (8.0, 4.0, 0.0, -12.0):
        param[...] = value
        seen.append((ema.updates, ema.decay))
        ema.update()
    assert seen == [(0, 0.0), (1, 1 / 2), (2, 2 / 3), (3, 3 / 4)]
    assert ema.average[0].tolist() == [0.0]
    assert repr(ema) == "<EMA(decay='mean'): 1 arrays, 4 updates>"


def test_the_decay_that_comes_next_can_be_read() -> None:
    ema = fastopt.EMA(np.zeros(1), 0.25, warmup=True)
    seen = []
    for _ in range(5):
        seen.append(ema.decay)
        ema.update()
    assert seen == [0.0, 1 / 10, 2 / 11, 0.25, 0.25]
    ema = fastopt.EMA(np.zeros(1), 0.25)
    ema.update()
    assert ema.decay == 0.25


# Where it begins ---------------------------------------------------------------------------------


def test_it_begins_with_the_parameters_of_the_first_update() -> None:
    """Weights that are loaded after it was made are what is averaged, not the random start."""
    param = np.full(2, -100.0)
    ema = fastopt.EMA({"w": param}, 0.999)
    assert ema.average["w"].tolist() == [-100.0] * 2
    param[...] = 5.0
    assert ema.average["w"].tolist() == [5.0] * 2
    with ema.swap():
        assert param.tolist() == [5.0] * 2
    ema.update()
    assert ema.average["w"].tolist() == [5.0] * 2
    param[...] = 6.0
    assert ema.average["w"].tolist() == [5.0] * 2
    ema.update()
    assert ema.average["w"] == pytest.approx([5.001] * 2, rel=1e-12)
    assert ema.updates == 2


def test_weights_loaded_later_leave_the_average_and_reset_begins_anew(tmp_path: Any) -> None:
    param = np.zeros(2)
    opt, ema = fastopt.SGD({"w": param}), fastopt.EMA({"w": param}, 0.5)
    ema.update()
    param[...] = 8.0
    opt.save(tmp_path / "eight")
    ema.update()
    opt.save(tmp_path / "both", also={"ema": ema})
    param[...] = 0.0
    opt.load(tmp_path / "eight")
    assert ema.average["w"].tolist() == [4.0, 4.0]
    ema.update()
    assert ema.average["w"].tolist() == [6.0, 6.0]
    ema.reset()
    assert ema.average["w"].tolist() == [8.0, 8.0]
    ema.update()
    assert (ema.average["w"].tolist(), ema.updates) == ([8.0, 8.0], 1)
    opt.load(tmp_path / "both", also={"ema": ema})
    assert (ema.average["w"].tolist(), ema.updates) == ([4.0, 4.0], 2)


# Other arrays ------------------------------------------------------------------------------------


def test_arrays_that_are_replaced_are_averaged_once_it_is_rebound() -> None:
    params = {"w": np.zeros((2, 3)), "n": np.zeros((), int)}
    ema = fastopt.EMA(params, 0.5)
    ema.update()
    params["w"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    with pytest.raises(ValueError, match=r"rebind\(params\)"):
        ema.update()
    assert ema.rebind(params) is ema
    average = ema.average["w"]
    ema.update()
    assert np.array_equal(average, params["w"] / 2)
    with ema.swap():
        assert np.array_equal(params["w"], np.arange(6.0).reshape(2, 3) / 2)
    assert np.array_equal(params["w"], np.arange(6.0).reshape(2, 3))
    new = {"w": np.ones((2, 3)), "n": np.ones((), int)}
    assert ema.rebind(new).updates == 2
    ema.update()
    assert np.array_equal(ema.average["w"], params["w"] / 4 + 0.5)
    for bad in (
        {"w": new["w"]},
        {**new, "w": np.ones((3, 2))},
        {**new, "w": np.ones((2, 3), "f4")},
    ):
        with pytest.raises(ValueError, match="EMA: "):
            ema.rebind(bad)
    with ema.swap(), pytest.raises(RuntimeError, match="rebind inside a swap"):
        ema.rebind(params)
    ema.update()
    assert ema.updates == 4


def test_groups_are_rebound_as_lists_of_either_kind() -> None:
    for nested in (lambda p: [{"params": [p]}], lambda p: [[p]]):
        one, two = np.zeros(2), np.full(2, 4.0)
        ema = fastopt.EMA([{"params": [one], "lr": 0.1}], 0.5)
        ema.update()
        ema.rebind(nested(two))
        ema.update()
        assert ema.average[0][0].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("nested", [lambda a: a, lambda a: {"w": a}, lambda a: [[a], (a + 1,)]])
def test_update_takes_the_parameters_as_the_program_has_them_now(nested: Any) -> None:
    ema = fastopt.EMA(nested(np.zeros(2)), 0.5)
    ema.update()
    first = leaves(ema.average)[0]
    params = nested(np.full(2, 8.0))  # as by model.params = best
    for expected in (4.0, 6.0):
        ema.update(params)
        assert first.tolist() == [expected] * 2
    with pytest.raises(ValueError, match=r"\(3,\).* ema\.resize\("):
        ema.update(nested(np.zeros(3)))
    assert (ema.updates, leaves(ema.average)[0] is first) == (3, True)


def test_arrays_in_use_may_be_handed_to_update_in_another_tree() -> None:
    params = {"w": np.zeros(2)}
    ema = fastopt.EMA(params, 0.5)
    other = {**params}
    ema.update(other)
    params["w"] = np.ones(2)  # which nobody trains
    other["w"] += 2.0
    ema.update(other)
    assert ema.average["w"].tolist() == [1.0] * 2
    other["w"].resize(3, refcheck=False)
    with pytest.raises(ValueError, match=r"Call ema\.resize\(.w., array"):
        ema.update(other)
    assert ema.resize("w", other["w"]).average["w"].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("around", [False, True])
def test_made_of_an_optimizer_it_follows_that_to_other_arrays(around: bool) -> None:
    opt: Any = fastopt.SGD(np.zeros(2), lr=1.0)
    opt = fastopt.Lookahead(opt, 5) if around else opt
    ema = fastopt.EMA(opt, 0.5)
    ema.update()
    average = ema.average
    opt.rebind(np.full(2, 8.0))
    ema.update()
    assert average.tolist() == [4.0] * 2
    now = np.full(2, 17.0)
    opt.step(np.ones(2), params=now)
    ema.update(now)
    assert (average.tolist(), ema.average is average) == ([10.0] * 2, True)
    with ema.swap():
        assert now.tolist() == [10.0] * 2
    assert now.tolist() == [16.0] * 2
    for call in (ema.rebind, ema.update):
        with pytest.raises(ValueError, match=r"call opt\.rebind\(params\)"):
            call(np.zeros(2))
    assert ema.rebind(now) is ema


def test_what_is_replaced_without_the_optimizer_is_noticed() -> None:
    params = {"w": np.zeros(2), "n": np.zeros((), int)}
    groups = fastopt.groups(params, {"n": {"trainable": False}})
    opt = fastopt.SGD(groups, lr=1.0)
    ema = fastopt.EMA(opt, 0.5)
    for name in params:  # of counters the optimizer does not look at it
        params[name] = np.ones_like(params[name])
        with pytest.raises(ValueError, match=rf'params\["{name}"\] is no .*opt\.rebind\(params\)'):
            ema.update()
        opt.rebind(params)
        ema.update()
    assert (ema.average["w"].tolist(), ema.average["n"]) == ([1.0] * 2, 1)


def test_what_is_resized_or_added_begins_anew_where_it_is_now() -> None:
    params = {"a": np.zeros(2), "b": np.zeros((2, 1))}
    opt = fastopt.SGD(params, lr=1.0)
    ema = fastopt.EMA(opt, 0.5)
    ema.update()
    params["a"] += 4.0
    opt.resize("b", np.full((3, 1), 7.0), keep=[1])
    ema.update()
    assert ema.average["a"].tolist() == [2.0] * 2
    assert ema.average["b"].tolist() == [[7.0]] * 3
    opt.resize("b", np.array([[1.0], [2.0], [3.0]]), keep=[2, 1, 0])  # as many: others all the same
    assert ema.average["b"].tolist() == [[1.0], [2.0], [3.0]]
    new = np.full(1, 6.0)
    opt.add_param_group({"params": {"c": new}})
    assert ema.average[1]["c"].tolist() == [6.0]
    new += 2.0
    ema.update()
    assert ema.average[0]["a"].tolist() == [3.0] * 2
    assert ema.average[1]["c"].tolist() == [7.0]
    assert [*ema.state_dict()["average"]] == ["0.a", "0.b", "1.c"]
    assert "3 arrays" in repr(ema)


@pytest.mark.parametrize("keep", [[2, 0], [True, False, True], None])
@pytest.mark.parametrize("follows", [False, True])
def test_through_resize_kept_rows_keep_their_averages(follows: bool, keep: Any) -> None:
    params = {"a": np.zeros((3, 2)), "b": np.zeros(3, np.float16)}
    opt = fastopt.SGD(params, lr=1.0)
    ema = fastopt.EMA(opt if follows else params, 0.5)
    ema.update()
    params["a"][...] = np.arange(3.0)[:, None] * 2
    params["b"][...] = np.arange(3.0) * 2
    ema.update()
    kept = np.arange(3.0)[[0, 1, 2] if keep is None else np.arange(3)[keep]]
    for name in params:
        opt.resize(name, np.full((4, 2)[: params[name].ndim], 9.0, params[name].dtype), keep=keep)
    for name in params:
        assert ema.resize(name, params[name], keep=keep) is ema
    expected = [*kept, *[9.0] * (4 - len(kept))]
    assert ema.average["a"].tolist() == [[one, one] for one in expected]
    assert (ema.average["b"].tolist(), ema.average["b"].dtype) == (expected, np.float32)
    ema.update()
    assert ema.average["b"].tolist() == [(one + 9.0) / 2 for one in expected]
    with ema.swap():
        assert params["b"].tolist() == [(one + 9.0) / 2 for one in expected]
    if follows:
        with pytest.raises(ValueError, match=r"right after every opt\.resize"):
            ema.resize("a", params["a"])
        with pytest.raises(ValueError, match=r"call opt\.resize\('a', array, keep\) before"):
            ema.resize("a", np.zeros((2, 2)))


def test_what_does_not_fit_is_not_resized_and_errors_lead_on() -> None:
    params = {"w": np.zeros((3, 2))}
    ema = fastopt.EMA(params, 0.5)
    ema.update()
    before = params["w"]
    for array, keep in ((np.zeros((3, 3)), None), (np.zeros((2, 2), "f4"), None)):
        with pytest.raises(ValueError, match="resize changes the number of rows"):
            ema.resize("w", array, keep)
    with pytest.raises(ValueError, match="keep must hold numbers of old rows, 0 to 2"):
        ema.resize("w", np.zeros((2, 2)), [3])
    with pytest.raises(ValueError, match="such as 'w'"):
        ema.resize("W", np.zeros((2, 2)))
    with ema.swap(), pytest.raises(RuntimeError, match="resize inside a swap"):
        ema.resize("w", np.zeros((2, 2)))
    assert params["w"] is before
    params["w"] = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"rebind\(params\)"):
        ema.update()
    with pytest.raises(ValueError, match=r"ema\.resize\('w', array, keep=rows\)"):
        ema.rebind(params)
    ema.resize("w", params["w"], keep=[0]).update()
    assert ema.average["w"].tolist() == [[0.5, 0.5]] + [[1.0, 1.0]] * 3
    opt = fastopt.SGD(params).add_param_group({"params": np.zeros(1)})
    with pytest.raises(ValueError, match=r"make a new EMA; EMA\(opt\) follows"):
        ema.rebind(opt.params)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("around", [False, True])
def test_a_copy_of_both_has_the_two_together(grouped: bool, around: bool) -> None:
    params: Any = [{"params": np.zeros(2)}] if grouped else np.zeros(2)
    opt: Any = fastopt.SGD(params, lr=1.0)
    opt = fastopt.Accumulator(opt, 1) if around else opt
    grads = [np.ones(2)] if grouped else np.ones(2)
    for order in (1, -1):
        ema = fastopt.EMA(opt, 0.5)
        ema.update()
        named = [("opt", opt), ("ema", ema)][::order]
        for copy_of in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
            both = copy_of(dict(named))
            start = leaves(opt.params)[0].copy()
            both["opt"].rebind([start + 4.0] if grouped else start + 4.0)
            both["opt"].step(grads)
            both["ema"].update()
            assert leaves(both["ema"].average)[0].tolist() == (start + 1.5).tolist()
            assert leaves(ema.average)[0].tolist() == start.tolist()
            assert repr(both["ema"]) == "<EMA(decay=0.5): 1 arrays, 2 updates>"


# Counters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.5, "mean"])
@pytest.mark.parametrize("dtype", ["int64", "int16", "uint8", "bool"])
def test_counters_are_carried_over_as_they_are(dtype: str, decay: Any, tmp_path: Any) -> None:
    params = {"w": np.zeros(2), "seen": np.zeros((), dtype), "hits": np.zeros(3, dtype)}
    ema = fastopt.EMA(params, decay)
    for value in (0, 1):
        params["w"][...] = params["seen"][...] = params["hits"][...] = value
        ema.update()
    assert ema.average["w"].tolist() == [0.5, 0.5]
    for name in ("seen", "hits"):
        assert ema.average[name].dtype == dtype
        assert (ema.average[name] == 1).all()
    params["seen"][...] = 0
    with ema.swap():
        assert (params["seen"], params["w"].tolist()) == (1, [0.5, 0.5])
    assert (params["seen"], ema.average["seen"]) == (0, 1)
    opt = fastopt.SGD(params["w"])
    opt.save(tmp_path / "a", also={"ema": ema})
    other = fastopt.EMA(copied(params), decay)
    opt.load(tmp_path / "a", also={"ema": other})
    np.testing.assert_equal(other.state_dict(), ema.state_dict())


def test_other_leaves_are_refused() -> None:
    for bad in (np.array(["a"]), np.array([None]), np.zeros(1, "M8[s]")):
        with pytest.raises(TypeError, match=r"must be of one of the dtypes"):
            fastopt.EMA([np.ones(2), bad])
    with pytest.raises(TypeError, match="must be of one of the dtypes"):
        fastopt.SGD([np.ones(2, int)])


# Trees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_decay_of_zero_is_the_parameters_and_a_constant_stays_itself(dtype: str) -> None:
    params = make_params(dtype)
    ema = fastopt.EMA(params, 0.0)
    for step in range(5):
        for param, new in zip(leaves(params), leaves(make_grads(params, step)), strict=True):
            param[...] = new
        ema.update()
        assert same(params, ema.average)
    params["W"][0, 0], params["W"][1, 1] = np.nan, np.inf
    ema.update()
    params["W"][0, 0] = params["W"][1, 1] = 1.0
    ema.update()
    assert same(params, ema.average)
    for decay in (0.0, 0.3, 0.7, 0.999):
        still = fastopt.EMA(params, decay)
        for _ in range(20):
            still.update()
        assert same(params, still.average)


def test_averages_have_the_parameters_nesting_and_memory_of_their_own() -> None:
    params = make_params(np.float32)
    before = copied(params)
    ema = fastopt.EMA(params)
    ema.update()
    assert same(params, ema.average)
    assert type(ema.average["layers"][1]) is tuple
    for param, average in zip(leaves(params), leaves(ema.average), strict=True):
        assert not np.shares_memory(param, average)
        param += 1.0
    assert same(before, ema.average)
    ema.update()
    for old, average in zip(leaves(before), leaves(ema.average), strict=True):
        np.testing.assert_allclose(average, old + 0.001, rtol=1e-5, atol=1e-6)
    single = fastopt.EMA(np.ones(3), 0.5)
    assert single.average.tolist() == [1.0] * 3


def test_parameter_groups_give_a_list_of_trees() -> None:
    groups = [{"params": {"a": np.zeros(2)}, "lr": 0.1}, {"params": [np.ones(3, np.float32)]}]
    opt, ema = fastopt.SGD(groups, lr=1.0), fastopt.EMA(groups, 0.5)
    ema.update()
    opt.step([{"a": np.ones(2)}, [np.ones(3, np.float32)]])
    ema.update()
    np.testing.assert_allclose(ema.average[0]["a"], -0.05)
    np.testing.assert_allclose(ema.average[1][0], 0.5)
    assert list(ema.state_dict()["average"]) == ["0.a", "1.0"]


def test_groups_by_pattern_give_one_tree() -> None:
    params = {"W": np.zeros(2), "b": np.zeros(2)}
    given = fastopt.groups(params, {"b": {"lr": 0.5}})
    opt, ema = fastopt.SGD(given, lr=1.0), fastopt.EMA(given, 0.5)
    ema.update()
    look = fastopt.Lookahead(opt, 1, 0.5)
    look.step({"W": np.ones(2), "b": np.ones(2)})
    ema.update()
    assert [ema.average["W"][0], ema.average["b"][0]] == [-0.25, -0.125]
    assert [look.slow["W"][0], look.slow["b"][0]] == [-0.5, -0.25]


# Half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_averaged_in_float32(dtype: Any) -> None:
    params = {
        "a": np.ones(4, dtype),
        "b": np.array(1.0, dtype),
        "c": np.ones((4, 6), dtype)[:, ::2],
    }
    ema = fastopt.EMA(params, 0.999)
    ema.update()
    for param in params.values():
        param[...] = 2.0
    for _ in range(1000):
        ema.update()
    expected = 2.0 - 0.999**1000  # in bfloat16 it would still be 1
    for average in ema.average.values():
        assert average.dtype == np.float32
        np.testing.assert_allclose(average, expected, rtol=1e-4)
    kept = copied(ema.average)
    with ema.swap():
        assert same(params, mapped(lambda a: a.astype(dtype), kept))
    assert same(ema.average, kept)
    assert all((param == 2.0).all() and param.dtype == dtype for param in params.values())


# Swapping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_swap_exchanges_in_place_and_back(dtype: str) -> None:
    params = make_params(dtype)
    ema = fastopt.EMA(params, 0.5)
    ema.update()
    for param in leaves(params):
        param *= 3.0
    ema.update()
    arrays = leaves(params)
    now, averages = copied(params), copied(ema.average)
    for _ in range(2):
        with ema.swap():
            assert same(params, averages)
            assert same(ema.average, now)
        assert same(params, now)
        assert same(ema.average, averages)
    with pytest.raises(ZeroDivisionError), ema.swap():
        raise ZeroDivisionError
    assert same(params, now)
    assert same(ema.average, averages)
    assert all(a is b for a, b in zip(leaves(params), arrays, strict=True))
    ema.update()


def test_inside_a_swap_nothing_else_is_allowed() -> None:
    param = np.zeros(2)
    ema = fastopt.EMA(param, 0.5)
    ema.update()
    saved = ema.state_dict()
    param += 1.0
    with ema.swap():
        for call in (ema.update, ema.reset, ema.state_dict, lambda: ema.load_state_dict(saved)):
            with pytest.raises(RuntimeError, match="inside a swap"):
                call()
        with pytest.raises(RuntimeError, match="swap inside a swap"), ema.swap():
            pass
        assert param.tolist() == [0.0, 0.0]
    assert param.tolist() == [1.0, 1.0]


def test_a_swap_that_is_never_left_comes_back_with_its_end() -> None:
    param = np.zeros(2)
    ema = fastopt.EMA(param, 0.5)
    ema.update()
    param += 1.0
    swap = ema.swap()
    swap.__enter__()
    assert param.tolist() == [0.0, 0.0]
    del swap
    assert param.tolist() == [1.0, 1.0]


def test_an_interrupt_in_the_block_comes_out_of_it_and_all_is_back() -> None:
    param = np.zeros(2)
    ema = fastopt.EMA(param, 0.5)
    ema.update()
    param += 1.0
    with pytest.raises(KeyboardInterrupt), ema.swap():
        signal.raise_signal(signal.SIGINT)
    assert param.tolist() == [1.0, 1.0]
    ema.update()


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (1.0, ValueError),
        (-0.1, ValueError),
        (np.nan, ValueError),
        ("x", TypeError),
        (True, TypeError),
    ],
)
def test_a_bad_decay_is_refused(bad: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r'EMA: decay must be a number in \[0, 1\), or "mean"; got'):
        fastopt.EMA(np.zeros(1), bad)
    with pytest.raises(TypeError, match="EMA: warmup"):
        fastopt.EMA(np.zeros(1), warmup=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="warmup=True has no meaning"):
        fastopt.EMA(np.zeros(1), "mean", warmup=True)


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ([], ValueError, "EMA got no parameters"),
        ([1.0], TypeError, r"params\[0\] must be a numpy.ndarray"),
        ([np.ones(2, object)], TypeError, "must be of one of the dtypes"),
        (None, TypeError, "params must be"),
    ],
)
def test_bad_parameters_are_refused(bad: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fastopt.EMA(bad)
    same_twice = np.ones(2)
    with pytest.raises(ValueError, match="are the same array"):
        fastopt.EMA([same_twice, same_twice])


def test_another_array_in_the_tree_is_an_error_and_changes_nothing() -> None:
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    ema = fastopt.EMA(params, 0.5)
    ema.update()
    params["a"] += 1.0
    first = params["b"]
    params["b"] = np.ones(2)
    with pytest.raises(ValueError, match=r'params\["b"\] is no longer the array that the EMA'):
        ema.update()
    with pytest.raises(ValueError, match="no longer"), ema.swap():
        pass
    params["b"] = first
    assert not ema.average["a"].any()
    params["a"].flags.writeable = False
    with pytest.raises(ValueError, match=r'params\["a"\] has become read-only'), ema.swap():
        pass
    ema.update()  # which only reads
    assert ema.average["a"].tolist() == [0.5, 0.5]
    assert ema.updates == 2
    assert "2 updates" in repr(ema)


def test_no_average_is_torn_that_is_read_while_another_thread_updates() -> None:
    """With decay 0 all averages are the parameters: the same number everywhere."""
    params = [np.ones(size) for size in (200_000, 7, 50_000)]
    average = fastopt.EMA(params, decay=0.0)
    average.update()
    stop = threading.Event()

    def updates() -> None:
        while not stop.is_set():
            for param in params:
                param += 1
            average.update()

    thread = threading.Thread(target=updates)
    thread.start()
    try:
        for _ in range(200):
            saved = average.state_dict()
            found = {float(v) for array in saved["average"].values() for v in np.unique(array)}
            assert found == {float(saved["updates"])}
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("optimizer", [fastopt.ScheduleFreeSGD, fastopt.ScheduleFreeAdamW])
def test_the_averages_of_eval_mode_are_not_averaged_again(optimizer: Any) -> None:
    params = np.ones(3)
    opt = optimizer(params, lr=0.1)
    ema, of_arrays = fastopt.EMA(opt), fastopt.EMA(params)
    opt.step(np.ones(3))
    ema.update()
    before = ema.average.copy()
    with opt.eval():
        for update in (ema.update, lambda: of_arrays.update(opt)):
            with pytest.raises(RuntimeError, match=r"eval mode.* call opt\.train\(\) before"):
                update()
        with pytest.raises(RuntimeError, match=r"swap while .* eval mode"), ema.swap():
            pass
    assert (ema.updates, of_arrays.updates) == (1, 0)
    np.testing.assert_array_equal(ema.average, before)
    ema.update()
    assert ema.updates == 2
