"""RowGrad: steps of some rows of a parameter, which leave all others alone."""

from __future__ import annotations

import pydoc_data.topics
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import RowGrad
from fastopt.core.arrays import Array, on_host
from fastopt.optimizers.base import Optimizer
from helpers.variant import Variant
from helpers.variants import CPU_BACKENDS, VARIANTS

RECORDED = np.load(Path(__file__).parents[1] / "golden" / "rows" / "torch.npz")
HAT: dict[str, Any] = {"betas": (0.8, 0.99), "eps": 1e-3, "eps_hat": True}
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def takes_rows(variant: Variant) -> bool:
    """Return whether its update is of each element alone, and remembers nothing else."""
    estimates = variant.optimizer._estimate is not None
    return variant.is_elementwise and not variant.sums and not estimates


TAKE_ROWS = [v for v in VARIANTS if takes_rows(v)]
REFUSE_ROWS = [v for v in VARIANTS if not takes_rows(v)]


def table(dtype: Any = np.float64, rows: int = 6, width: int = 5) -> Array:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, width))
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal((rows, width))
    return values.astype(dtype)


def end_of(opt: Optimizer, param: Array) -> Any:
    """Return a parameter and its state, in host memory."""
    state = opt.state_dict()["state"]
    return on_host(param), {k: on_host(v) for k, v in state[next(iter(state))].items()}


def same(one: Any, two: Any) -> None:
    np.testing.assert_equal(one, two)


# The right numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda p, b: fastopt.Adam(p, 0.05, backend=b, **HAT)),
        ("sgd", lambda p, b: fastopt.SGD(p, 0.1, backend=b)),
        ("adagrad", lambda p, b: fastopt.Adagrad(p, 0.3, lr_decay=0.01, eps=1e-6, backend=b)),
    ],
)
def test_pytorchs_sparse_gradients(name: str, make: Any, place: tuple[Any, str]) -> None:
    xp, backend = place
    param = xp.asarray(RECORDED["param"].copy())
    opt = make(param, backend)
    for indices, values, right in zip(
        RECORDED["indices"], RECORDED["values"], RECORDED[name], strict=True
    ):
        opt.step(RowGrad(xp.asarray(indices), xp.asarray(values)))
        np.testing.assert_allclose(on_host(param), right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", TAKE_ROWS, ids=str)
def test_rows_are_updated_as_an_array_of_their_own(
    variant: Variant, place: tuple[Any, str]
) -> None:
    xp, backend = place
    rows = np.array([4, 1, -1])
    param = table(np.float32)
    alone = xp.asarray(param[rows])
    whole = xp.asarray(param)
    opt, own = variant([whole], backend=backend), variant([alone], backend=backend)
    before = end_of(opt, whole)
    rng = np.random.default_rng(1)
    for _ in range(4):
        values = xp.asarray(rng.standard_normal((3, 5)).astype(np.float32))
        opt.step([RowGrad(rows, values)])
        own.step([values])
    (now, state), (right, its) = end_of(opt, whole), end_of(own, alone)
    rest = [0, 2, 3]
    same(now[rows], right)
    same(now[rest], before[0][rest])
    assert state.keys() == its.keys()
    for slot, values in state.items():
        if slot == "step":
            same(values, its[slot])
        else:
            same(values[rows], its[slot])
            same(values[rest], before[1][slot][rest])


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_first_step_is_that_of_the_dense_gradient(dtype: Any, order: Any, backend: str) -> None:
    ends = []
    grad = RowGrad([2, 0, 2], table(dtype, 3))
    for dense in (False, True):
        params = {"E": np.array(table(dtype), order=order), "b": np.ones(3, dtype)}
        opt = fastopt.Adam(params, max_grad_norm=0.1, backend=backend)
        grads = {"E": grad.dense(params["E"]) if dense else grad, "b": np.ones(3, dtype)}
        opt.step(grads)
        ends.append((params, opt.grad_norm, opt.state_dict()["state"]))
    same(ends[0][0], ends[1][0])
    for slot, values in ends[0][2]["E"].items():  # a master is kept of rows that have moved
        right = ends[1][2]["E"][slot]
        rows: Any = [2, 0] if slot == "master" else ...
        same(np.asarray(values)[rows], np.asarray(right)[rows])
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-14)


@each_backend
def test_gradients_of_one_row_are_added_in_their_order(backend: str) -> None:
    param = np.zeros((3, 1), np.float32)
    values = np.array([1e8, 7.0, 1.0, -1e8, 3.0], np.float32)[:, None]
    fastopt.SGD(param, 1.0, backend=backend).step(RowGrad([1, 0, 1, 1, 1], values))
    same(param.ravel(), np.float32([-7.0, -3.0, 0.0]))  # (1e8 + 1) - 1e8 + 3
    again = np.zeros((3, 1), np.float32)
    np.add.at(again, [1, 0, 1, 1, 1], values)
    same(-param, again)


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="numba is not installed")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize(
    ("rows", "width", "given"),
    [(3, 2, 40), (5_000, 3, 700), (5_000, 1, 6_000), (3_000_000, 1, 300), (4, 5_000, 9)],
)
def test_numba_lays_rows_out_as_numpy_does(dtype: Any, rows: int, width: int, given: int) -> None:
    rng = np.random.default_rng(rows + given)
    indices = rng.integers(-rows, rows, given)
    indices[given // 2 :] = indices[: given - given // 2] % rows  # each comes again
    values = table(dtype, given, width)
    ends = []
    for backend in ("numpy", "numba"):
        param = np.zeros((rows, width), dtype)
        opt = fastopt.SGD(param, 1.0, momentum=0.5, backend=backend)
        for order in (indices, np.sort(indices), indices.astype(np.int32)[::-1]):
            opt.step(RowGrad(order, values))
        ends.append(end_of(opt, param))
    same(ends[0], ends[1])


@each_backend
def test_gradients_of_any_layout_and_indices_of_any_integers(backend: str) -> None:
    values, right = table(np.float32, 3), None
    wide = np.zeros((3, 10), np.float32)
    wide[:, ::2] = values
    for given in (values, np.asfortranarray(values), wide[:, ::2], values.astype(np.float64)):
        for kind in (np.int64, np.uint8, np.uint64, np.int32):
            param = table(np.float32)
            fastopt.Adam(param, backend=backend).step(RowGrad(np.array([4, 0, 4], kind), given))
            right = param if right is None else right
            same(param, right)
    param = table(np.float32)
    opt = fastopt.SGD(param, 1.0, backend=backend)
    opt.step(RowGrad([1, 0, 0], param[:3]))  # memory of the parameter's own
    before = table(np.float32)
    same(param[:2], np.array([before[0] - (before[1] + before[2]), before[1] - before[0]]))
    with pytest.raises(IndexError, match="names row 18446744073709551615"):
        opt.step(RowGrad(np.array([2**64 - 1], np.uint64), np.ones((1, 5), np.float32)))


@each_backend
def test_dense_steps_and_steps_of_rows_in_turns(backend: str) -> None:
    params, right = {"E": table(), "w": np.ones(3)}, {"E": table(), "w": np.ones(3)}
    opt = fastopt.SGD(params, lambda t: 0.1 * (t + 1), momentum=0.5, backend=backend)
    other = fastopt.SGD(right, lambda t: 0.1 * (t + 1), momentum=0.5, backend="numpy")
    every = np.arange(6)
    for k in range(8):
        values = table(rows=6) * (k + 1)
        grad = RowGrad(every, values) if k in (1, 2, 5) else values
        opt.step({"E": grad, "w": None if k == 2 else np.ones(3)})
        other.step({"E": values, "w": None if k == 2 else np.ones(3)})
    same(end_of(opt, params["E"]), end_of(other, right["E"]))
    same(params["w"], right["w"])
    assert opt.step_count == 8


@each_backend
def test_constants_of_rows_go_with_them(backend: str) -> None:
    param, lower = np.zeros((4, 2)), np.array([[-9.0], [-0.5], [-9.0], [-9.0]]) * np.ones((4, 2))
    opt = fastopt.SGD(param, 1.0, bounds=(lower, 9.0), backend=backend)
    opt.step(RowGrad([1, 3], np.ones((2, 2))))
    same(param, np.array([[0, 0], [-0.5, -0.5], [0, 0], [-1, -1]]))


@each_backend
def test_other_parameters_groups_and_missing_gradients(backend: str) -> None:
    params = {"E": np.zeros((4, 2)), "F": np.zeros((3, 2)), "w": np.zeros(2), "x": np.zeros(2)}
    groups = fastopt.groups(params, {"F": {"lr": 0.5}})
    opt = fastopt.SGD(groups, lr=1.0, momentum=0.5, backend=backend)
    grads = {
        "E": RowGrad([3], np.ones((1, 2))),
        "F": RowGrad([0], np.ones((1, 2))),
        "w": np.ones(2),
        "x": None,
    }
    opt.step(grads)
    opt.step(grads)
    same(params["E"][:, 0], np.array([0, 0, 0, -2.5]))
    same(params["F"][:, 0], np.array([-1.25, 0, 0]))
    same(params["w"], np.array([-2.5, -2.5]))
    same(params["x"], np.zeros(2))
    steps = {name: int(one["step"]) for name, one in opt.state_dict()["state"].items()}
    assert steps == {"E": 2, "F": 2, "w": 2, "x": 0}
    opt.param_groups[1]["trainable"] = False
    opt.step(grads)
    same(params["F"][:, 0], np.array([-1.25, 0, 0]))


@each_backend
@pytest.mark.parametrize("width", [3, 3000])
def test_tables_side_by_side_are_as_each_alone(width: int, backend: str) -> None:
    ends = []
    for together in (True, False):
        params = {name: table(np.float32, 6, width) for name in "abc"}
        opts = (
            [fastopt.Adam(params, backend=backend)]
            if together
            else [fastopt.Adam({name: param}, backend=backend) for name, param in params.items()]
        )
        rng = np.random.default_rng(0)
        for _ in range(3):
            grads = {
                name: RowGrad(rng.integers(0, 6, 4), table(np.float32, 4, width)) for name in "abc"
            }
            for opt in opts:
                names = opt.state_dict()["state"]
                opt.step({name: grads[name] for name in names})
        states = [opt.state_dict()["state"] for opt in opts]
        ends.append((params, {k: v for state in states for k, v in state.items()}))
    same(ends[0], ends[1])


@each_backend
def test_a_gradient_of_no_rows_moves_nothing_and_counts(backend: str) -> None:
    param = np.ones((4, 2))
    opt = fastopt.Adam(param, backend=backend, max_grad_norm=1.0)
    assert opt.step(RowGrad([], np.ones((0, 2)))).made
    same(param, np.ones((4, 2)))
    assert (opt.step_count, opt.grad_norm) == (1, 0.0)


@each_backend
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_scale_policy_and_schedules(scale: float, backend: str) -> None:
    param = np.zeros((4, 2))
    opt = fastopt.SGD(
        param, lambda t: 1.0 / (t + 1), on_nonfinite="skip", max_grad_norm=1e9, backend=backend
    )
    opt.step(RowGrad([2], np.ones((1, 2))), grad_scale=scale)
    assert not opt.step(RowGrad([1], np.full((1, 2), np.nan))).made
    opt.step(RowGrad([2], np.ones((1, 2))), grad_scale=scale)
    same(param[:, 0], np.array([0, 0, -1.5 * scale, 0]))
    assert opt.skipped_steps == 1


@each_backend
def test_a_run_goes_on_from_a_checkpoint(backend: str, tmp_path: Path) -> None:
    def grad(k: int) -> RowGrad:
        rng = np.random.default_rng(k)
        return RowGrad(rng.integers(0, 6, 4), rng.standard_normal((4, 5)))

    param = table()
    opt = fastopt.AdamW(param, backend=backend)
    for k in range(3):
        opt.step(grad(k))
    opt.save(tmp_path / "run")
    other = np.zeros_like(param)
    again = fastopt.AdamW(other, backend=backend)
    again.load(tmp_path / "run")
    for k in range(3, 6):
        opt.step(grad(k))
        again.step(grad(k))
    same(end_of(opt, param), end_of(again, other))


def words_of_pythons_manual() -> tuple[Array, int]:
    """Return the words of some of its pages, by number, and how many different ones there are."""
    text = " ".join(pydoc_data.topics.topics[name] for name in ("assignment", "if", "while"))
    words = re.findall(r"[a-z]+", text.lower())
    known = sorted(set(words))
    return np.array([known.index(word) for word in words]), len(known)


def embeddings(known: int, xp: Any) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        name: xp.asarray(rng.standard_normal((known, 12)) * 0.1) for name in ("inputs", "outputs")
    }


def learn_the_next_word(opt: Optimizer, params: Any, xp: Any, rounds: int, dense: bool) -> Any:
    """Train a log-bilinear model of the next word; return the mean loss of each round."""
    tokens, known = words_of_pythons_manual()
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(rounds):
        total, start = 0.0, 0
        while start + 65 <= len(tokens):
            now, then = tokens[start : start + 64], tokens[start + 1 : start + 65]
            drawn = rng.integers(0, known, 64)  # words that stand elsewhere
            e, o, n = (
                on_host(params[name])[rows]
                for name, rows in (("inputs", now), ("outputs", then), ("outputs", drawn))
            )
            right, wrong = (e * o).sum(axis=1), (e * n).sum(axis=1)
            total += float(np.logaddexp(0, -right).sum() + np.logaddexp(0, wrong).sum())
            at_right, at_wrong = -1 / (1 + np.exp(right)), 1 / (1 + np.exp(-wrong))
            of_e = at_right[:, None] * o + at_wrong[:, None] * n
            of_o = np.concatenate([at_right[:, None] * e, at_wrong[:, None] * e])
            grads: dict[str, Any] = {
                "inputs": RowGrad(now, xp.asarray(of_e)),
                "outputs": RowGrad(np.concatenate([then, drawn]), xp.asarray(of_o)),
            }
            if dense:
                grads = {name: grad.dense(params[name]) for name, grad in grads.items()}
            opt.step(grads)
            start += 64
        losses.append(total / start)
    return losses


def test_embeddings_learn_which_words_stand_side_by_side(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = embeddings(words_of_pythons_manual()[1], xp)
    opt = fastopt.Adam(params, lr=0.05, backend=backend)
    losses = learn_the_next_word(opt, params, xp, 9 if xp is np else 1, dense=False)
    if xp is np:
        assert losses[0] > 1.3  # 2 * log(2) before anything is learned
        assert losses[-1] < 0.6


@each_backend
@pytest.mark.parametrize(
    "make",
    [
        lambda p, b: fastopt.SGD(p, lambda t: 0.1 / (1 + 0.01 * t), backend=b),
        lambda p, b: fastopt.Adagrad(p, 0.1, lr_decay=0.01, backend=b),
    ],
)
def test_embeddings_end_as_those_of_dense_steps(make: Any, backend: str) -> None:
    """By rules that leave alone what has a gradient of 0: the others' averages fade there."""
    ends = []
    for dense in (False, True):
        params = embeddings(words_of_pythons_manual()[1], np)
        opt = make(params, backend)
        losses = learn_the_next_word(opt, params, np, 3, dense)
        ends.append((params, losses, opt.state_dict()["state"]))
    same(ends[0], ends[1])
    assert ends[0][1][-1] < ends[0][1][0]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", REFUSE_ROWS, ids=str)
def test_who_needs_all_rows_says_so_and_the_advice_helps(variant: Variant) -> None:
    params = {"E": table()}
    opt = variant(params, backend="numpy")
    grads = {"E": RowGrad([1], np.ones((1, 5)))}
    with pytest.raises(TypeError, match=r'^grads\["E"\] is a RowGrad, which \w+ does not take'):
        opt.step(grads)
    same(params["E"], table())
    assert opt.step_count == 0
    opt.step({"E": grads["E"].dense(params["E"])})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"state_dtype": "bfloat16"}, "state_dtype='bfloat16' is coded"),
        ({"cautious": True}, "cautious goes by sums"),
        ({"clip_each": 1.0}, "clip_each goes by sums"),
        ({"stochastic_rounding": True, "master_weights": False}, "stochastic_rounding draws"),
    ],
)
def test_options_that_need_all_rows(options: dict[str, Any], why: str) -> None:
    param = np.ones((5000, 2), np.float16)
    opt = fastopt.Adam(param, **options)
    with pytest.raises(TypeError, match=f"is a RowGrad, which Adam does not take here: {why}"):
        opt.step(RowGrad([1], np.ones((1, 2), np.float16)))
    assert (param == 1).all()


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: RowGrad([7], np.ones((1, 2))), IndexError, "names row 7, .* 4 rows, 0 to 3"),
    (lambda: RowGrad([0, -5], np.ones((2, 2))), IndexError, "names row -5"),
    (lambda: RowGrad([0], np.ones((1, 3))), ValueError, r"must have the shape \(n, 2\)"),
    (lambda: RowGrad([0], np.ones((1, 2, 1))), ValueError, r"must have the shape \(n, 2\)"),
    (lambda: RowGrad([0], np.ones((1, 2), complex)), TypeError, "real floating dtype"),
    (lambda: RowGrad([0], np.ones((1, 2), int)), TypeError, "real floating dtype"),
]


@each_backend
@pytest.mark.parametrize(("grad", "error", "said"), BAD)
def test_rows_that_do_not_fit_change_nothing(
    grad: Any, error: type[Exception], said: str, backend: str
) -> None:
    params = {"w": np.ones(3), "E": np.ones((4, 2))}
    opt = fastopt.Adam(params, backend=backend)
    with pytest.raises(error, match=said):
        opt.step({"w": np.ones(3), "E": grad()})
    same(params, {"w": np.ones(3), "E": np.ones((4, 2))})
    assert opt.step_count == 0


@pytest.mark.parametrize(
    ("indices", "values", "error", "said"),
    [
        ([1.5], np.ones((1, 2)), TypeError, "must be integers"),
        (np.array([True]), np.ones((1, 2)), TypeError, r"np.flatnonzero\(indices\)"),
        ([0], [[1.0]], TypeError, r"Hand in np.asarray\(values\)"),
        ([0, 1], np.ones((1, 2)), ValueError, r"got \(2,\) and \(1, 2\)"),
        ([[0]], np.ones((1, 2)), ValueError, "first axes count rows together"),
        ([0], np.ones(()), ValueError, r"got \(1,\) and \(\)"),
    ],
)
def test_what_is_no_gradient_of_rows(
    indices: Any, values: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        RowGrad(indices, values)


@each_backend
def test_what_is_not_finite_is_named(backend: str) -> None:
    opt = fastopt.Adam({"E": np.ones((4, 2))}, on_nonfinite="raise", backend=backend)
    with pytest.raises(FloatingPointError, match=r'grads\["E"\].values holds NaN'):
        opt.step({"E": RowGrad([1], np.full((1, 2), np.inf))})


def test_functions_that_take_whole_gradients_say_what_to_do() -> None:
    grad, param = RowGrad([1], np.ones((1, 2))), np.ones((4, 2))
    for function in (fastopt.global_norm, lambda g: fastopt.clip_grad_norm_(g, 1.0)):
        with pytest.raises(TypeError, match="let the step clip it"):
            function({"E": grad})
    with pytest.raises(TypeError, match=r"Hand in the gradient of all rows: .*\.dense\(param\)"):
        fastopt.Accumulator(fastopt.SGD(param), 2).step(grad)


def test_a_0d_parameter_has_no_rows() -> None:
    param = np.ones(())
    with pytest.raises(ValueError, match="must have the shape of rows"):
        fastopt.SGD(param).step(RowGrad([0], np.ones(1)))


# On a device --------------------------------------------------------------------------------------


def test_a_device_ends_in_the_bits_of_numpy(cupy: Any) -> None:
    ends = []
    for xp, backend in ((np, "numpy"), (cupy, "cupy")):
        param = xp.asarray(table(np.float32))
        opt = fastopt.AdamW(param, max_grad_norm=1.0, on_nonfinite="skip", backend=backend)
        rng = np.random.default_rng(3)
        for k in range(5):
            values = rng.standard_normal((7, 5)).astype(np.float32)
            grad = RowGrad(rng.integers(-6, 6, 7), xp.asarray(values))
            opt.step(grad.dense(param) if k == 2 else grad)
        ends.append((*end_of(opt, param), opt.grad_norm, opt.step_count))
    same(ends[0], ends[1])


def test_rows_on_another_kind_of_device_are_refused(cupy: Any) -> None:
    opt = fastopt.Adam(cupy.ones((4, 2)))
    with pytest.raises(fastopt.BackendMismatchError, match=r"cupy.asarray\(grads.values\)"):
        opt.step(RowGrad([1], np.ones((1, 2))))
    assert opt.step_count == 0


def test_they_are_no_part_of_a_graph(cupy: Any) -> None:
    param = cupy.ones((4, 2))
    opt = fastopt.Adam(param, capturable=True)
    opt.step(RowGrad([1], cupy.ones((1, 2))))  # outside of one they are
    assert int(opt.step_count) == 1
    scale = cupy.ones(())
    with pytest.raises(TypeError, match="the host decides on a step that is handed gradients of"):
        opt.step(RowGrad([1], cupy.ones((1, 2))), grad_scale=scale)
