"""Whole gradients that are transformed before a step goes by them: adaptive_clip and centralize."""

from __future__ import annotations

import math
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.bits import differences
from helpers.clipping import run
from helpers.variants import CPU_BACKENDS, OF_MATRICES, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
BOTH: dict[str, Any] = {"adaptive_clip": 0.5, "centralize": True}
SHAPES = ((7,), (), (3, 4), (0, 2), (2, 3, 5), (4, 0))
MATRICES = ((4, 3), (3, 4), (5, 8))


def drawn(seed: int, dtype: Any = np.float64, shapes: Any = SHAPES) -> list[Any]:
    rng = np.random.default_rng(seed)
    made = []
    for shape in shapes:
        values = np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
        made.append((values if np.dtype(dtype).kind == "c" else values.real).astype(dtype))
    return made


def expected(
    grad: Array, param: Array, clip: float, centralize: bool = True, scale: float = 1.0
) -> Array:
    """Return a gradient that was clipped and centralized row by row, each sum exactly rounded."""
    if grad.ndim < 2:
        return grad * factor(grad, param, clip, scale)
    made = grad.copy()
    for row, own in zip(made, param, strict=True):
        row[...] = row * factor(row, own, clip, scale)
        if centralize and row.size:
            flat = row.ravel().tolist()
            real = math.fsum(x.real for x in flat)
            imag = math.fsum(x.imag for x in flat)
            mean = complex(real, imag) / row.size
            row -= mean if row.dtype.kind == "c" else mean.real
    return made


def norm_of(values: Array) -> float:
    flat = values.astype(complex).ravel()
    return math.hypot(*flat.real.tolist(), *flat.imag.tolist())


def factor(grad: Array, param: Array, clip: float, scale: float) -> float:
    norm = norm_of(grad) * abs(scale)
    return min(1.0, clip * max(norm_of(param), 1e-3) / norm) if norm else 1.0


def close(one: dict[str, Any], two: dict[str, Any]) -> None:
    for name, values in two.items():
        np.testing.assert_allclose(one[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


@each_backend
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_step_is_one_with_gradients_that_were_made_so_before(
    variant: Variant, dtype: Any, backend: str
) -> None:
    options = {"weight_decay": 0.125, "backend": backend}
    params, plain = drawn(0, dtype), drawn(0, dtype)
    one, two = variant(params, **BOTH, **options), variant(plain, **options)
    for step in range(1, 6):
        grads = drawn(step, dtype)
        if step in (3, 4):
            grads[step - 1] = None
        pairs = zip(grads, params, strict=True)
        made = [None if g is None else expected(g, p, 0.5) for g, p in pairs]
        one.step(grads)
        two.step(made)
    names = [str(k) for k in range(len(params))]
    close(dict(zip(names, params, strict=True)), dict(zip(names, plain, strict=True)))


@each_backend
@pytest.mark.parametrize("variant", OF_MATRICES, ids=str)
def test_so_are_matrices_that_have_rules_of_their_own(variant: Variant, backend: str) -> None:
    params, plain = drawn(0, shapes=MATRICES), drawn(0, shapes=MATRICES)
    # SOAP divides by the size of what is left of an eigenvector that centralizing has taken out.
    centralizes = variant.optimizer is not fastopt.SOAP
    on = {"adaptive_clip": 0.5, "centralize": centralizes}
    one, two = variant(params, **on, backend=backend), variant(plain, backend=backend)
    for step in range(1, 4):
        grads = drawn(step, shapes=MATRICES)
        made = [expected(g, p, 0.5, centralizes) for g, p in zip(grads, params, strict=True)]
        one.step(grads)
        two.step(made)
    for got, want in zip(params, plain, strict=True):
        # Eigenvectors of eigenvalues that are close move more than these.
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(len(CPU_BACKENDS) < 2, reason="needs numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("policy", [{}, {"max_grad_norm": 0.3, "on_nonfinite": "skip"}])
def test_numpy_and_numba_have_the_same_bits(policy: dict[str, Any], dtype: Any) -> None:
    def turned(given: list[Any]) -> list[Any]:
        return [np.asfortranarray(g) if g.ndim == 2 else g for g in given]

    ends = []
    for backend in CPU_BACKENDS:
        params = turned(drawn(0, dtype))
        params.append(drawn(9, dtype, [(6, 10)])[0][::2, ::-2])
        grads = [[*drawn(step, dtype), *drawn(step, dtype, [(3, 5)])] for step in range(1, 12)]
        grads[4][2] = None
        if policy:
            grads[6][4][1, 2, 3] = np.nan
        ends.append(run(fastopt.AdamW, params, grads, backend=backend, **BOTH, **policy))
    assert differences(*ends) == {}


@each_backend
@pytest.mark.parametrize("order", ["C", "F"])
def test_many_rows_are_those_of_few(order: Any, backend: str) -> None:
    (param,), (grad,) = (drawn(seed, shapes=[(300, 7, 61)]) for seed in (0, 1))
    old, made = param.copy(), expected(grad, param, 0.5)
    param, grad = (np.asarray(a, order=order) for a in (param, grad))
    fastopt.SGD(param, lr=1.0, backend=backend, **BOTH).step(grad)
    np.testing.assert_allclose(param, old - made, rtol=1e-11, atol=1e-13)


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_not_rounded_on_the_way(dtype: Any, backend: str) -> None:
    shapes = ((3, 4), (5,))
    params, grads = drawn(0, dtype, shapes), drawn(1, dtype, shapes)
    wide = [p.astype(np.float64) for p in params]
    made = [expected(g.astype(np.float64), p, 0.5) for g, p in zip(grads, wide, strict=True)]
    fastopt.SGD(params, lr=1.0, backend=backend, **BOTH).step(grads)
    for param, old, grad in zip(params, wide, made, strict=True):
        want = (old - grad).astype(np.float32).astype(dtype)
        # Only what was in the middle between two halves may have gone to the other one.
        assert (param == want).mean() > 0.9
        np.testing.assert_allclose(param.astype(float), want.astype(float), rtol=2.0**-7)


@each_backend
@pytest.mark.parametrize("scale", [4.0, -0.25, 0.0])
def test_the_limit_is_that_of_scaled_gradients(scale: float, backend: str) -> None:
    params, grads = drawn(0), drawn(1)
    pairs = zip(grads, params, strict=True)
    made = [p - scale * expected(g, p, 0.5, scale=scale) for g, p in pairs]
    fastopt.SGD(params, lr=1.0, backend=backend, **BOTH).step(grads, grad_scale=scale)
    for got, want in zip(params, made, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@each_backend
def test_parameters_count_as_no_smaller_than_a_thousandth(backend: str) -> None:
    params = [np.zeros((2, 2)), np.array([3e-5, 4e-5]), np.zeros(())]
    params[0][1] = 3.0, 4.0
    opt = fastopt.SGD(params, lr=1.0, adaptive_clip=0.5, backend=backend)
    before = [p.copy() for p in params]
    opt.step([np.array([[6.0, 8.0], [0.6, 0.8]]), np.array([0.0, 1.0]), np.array(-2.0)])
    made: list[Any] = [[[3e-4, 4e-4], [0.6, 0.8]], [0.0, 5e-4], -5e-4]
    for param, old, grad in zip(params, before, made, strict=True):
        np.testing.assert_allclose(param, old - grad, rtol=1e-12)


# What is handed in stays as it is, and is refused as always --------------------------------------


@each_backend
def test_gradients_stay_as_they_are_and_buffers_are_taken(backend: str) -> None:
    params, plain = drawn(0), drawn(0)
    opt = fastopt.Adam(params, backend=backend, **BOTH)
    other = fastopt.Adam(plain, backend=backend, **BOTH)
    for step in (1, 2, 3):
        grads = drawn(step)
        buffers = opt.gradient_buffers()
        for buffer, grad in zip(buffers, grads, strict=True):
            buffer[...] = grad
        opt.step(buffers)
        other.step(grads)
        for buffer, grad, again in zip(buffers, grads, drawn(step), strict=True):
            np.testing.assert_array_equal(buffer, again)
            np.testing.assert_array_equal(grad, again)
        for one, two in zip(params, plain, strict=True):
            np.testing.assert_array_equal(one, two)
    some = [*opt.gradient_buffers()]
    some[2] = some[2].copy()
    with pytest.raises(ValueError, match=r"grads\[2\] is not its gradient buffer any more"):
        opt.step(some)
    before = opt.gradient_buffers()
    opt.resize("2", np.ones((5, 4)))
    with pytest.raises(ValueError, match="is a gradient buffer of the parameters that were there"):
        opt.step(before)


@each_backend
def test_a_group_without_them_beside_one_with_them_takes_buffers(backend: str) -> None:
    shapes = ((2, 3), (2, 3), (4,))
    params, plain = drawn(0, shapes=shapes), drawn(0, shapes=shapes)
    groups = [{"params": params[:1], "centralize": True}, {"params": params[1:]}]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend)
    buffers = opt.gradient_buffers()
    for step in (1, 2):
        grads = drawn(step, shapes=shapes)
        for buffer, grad in zip([*buffers[0], *buffers[1]], grads, strict=True):
            buffer[...] = grad
        opt.step(buffers)
        plain[0] -= grads[0] - grads[0].mean(axis=1, keepdims=True)
        plain[1] -= grads[1]
        plain[2] -= grads[2]
    opt.step([buffers[0], [None, buffers[1][1]]])  # not in one call
    plain[0] -= grads[0] - grads[0].mean(axis=1, keepdims=True)
    plain[2] -= grads[2]
    for one, two in zip(params, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-14)


def bad_gradients(params: list[Array]) -> dict[str, Any]:
    good = [np.ones_like(p) for p in params]
    return {
        "shape": [good[0], np.ones((4, 3))],
        "axes": [np.ones((7, 1)), good[1]],
        "dtype": [good[0], np.ones((3, 4), int)],
        "complex": [good[0], np.ones((3, 4), complex)],
        "list": [good[0], good[1].tolist()],
        "number": [1.0, good[1]],
        "tree": {"a": good[0]},
        "fewer": good[:1],
        "parameter": [good[0], params[1]],
        "rows": [good[0], fastopt.RowGrad([0, 3], np.ones((2, 4)))],
        "rows_of_others": [good[0], fastopt.RowGrad([0, 1], np.ones((2, 5)))],
        "rows_of_integers": [good[0], fastopt.RowGrad([0, 1], np.ones((2, 4), int))],
    }


@each_backend
@pytest.mark.parametrize("what", bad_gradients([np.ones(7), np.ones((3, 4))]))
def test_gradients_that_are_none_are_refused_in_the_same_words(what: str, backend: str) -> None:
    said = []
    for options in ({}, BOTH):
        params = [np.ones(7), np.ones((3, 4))]
        opt = fastopt.SGD(params, backend=backend, **options)
        with pytest.raises((ValueError, TypeError, IndexError)) as raised:
            opt.step(bad_gradients(params)[what])
        said.append((type(raised.value), str(raised.value)))
        assert all((p == 1.0).all() for p in params)
        assert opt.step_count == 0
    assert said[0] == said[1]


@each_backend
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("options", [{"adaptive_clip": 0.1}, {"centralize": True}, BOTH], ids=str)
def test_what_is_not_finite_is_seen(
    options: dict[str, Any], at: int, bad: float, backend: str
) -> None:
    shapes = ((3, 4), (5,), ())
    for policy in ("skip", "raise"):
        params = drawn(0, shapes=shapes)
        grads = drawn(1, shapes=shapes)
        grads[at].flat[-1] = bad
        opt = fastopt.Adam(params, backend=backend, on_nonfinite=policy, **options)
        if policy == "skip":
            assert not opt.step(grads)
        else:
            with pytest.raises(FloatingPointError, match=rf"grads\[{at}\] holds NaN or infinity"):
                opt.step(grads)
        for one, two in zip(params, drawn(0, shapes=shapes), strict=True):
            np.testing.assert_array_equal(one, two)


@each_backend
def test_norms_are_of_what_becomes_of_gradients(backend: str) -> None:
    params, grads = drawn(0), drawn(1)
    made = [expected(g, p, 0.5) for g, p in zip(grads, params, strict=True)]
    norm = math.sqrt(sum(norm_of(g) ** 2 for g in made))
    before = [p.copy() for p in params]
    opt = fastopt.SGD(params, lr=1.0, max_grad_norm=norm / 2, backend=backend, **BOTH)
    outcome = opt.step(grads)
    assert opt.grad_norm == pytest.approx(norm, rel=1e-13)
    assert outcome.grad_norm == opt.grad_norm
    for param, old, grad in zip(params, before, made, strict=True):
        np.testing.assert_allclose(param, old - grad / 2, rtol=1e-5, atol=1e-6)


# Settings ----------------------------------------------------------------------------------------


@each_backend
def test_they_differ_between_groups_are_set_between_steps_and_saved(backend: str) -> None:
    ones = [np.ones((1, 2)) for _ in range(4)]
    groups: list[dict[str, Any]] = [
        {"params": [ones[0]], "adaptive_clip": 0.5},
        {"params": [ones[1]], "adaptive_clip": math.inf},
        {"params": [ones[2]], "centralize": True},
        {"params": [ones[3]], "adaptive_clip": 0.5, "trainable": False},
    ]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend)
    grads: Any = [[np.array([[3.0, 5.0]])] for _ in range(3)]
    opt.step([*grads, None])
    share = 0.5 * math.sqrt(2) / math.sqrt(34)
    np.testing.assert_allclose(ones[0], [[1 - 3 * share, 1 - 5 * share]])
    np.testing.assert_array_equal(ones[1], [[-2.0, -4.0]])
    np.testing.assert_array_equal(ones[2], [[2.0, 0.0]])
    np.testing.assert_array_equal(ones[3], [[1.0, 1.0]])
    saved = opt.state_dict()["groups"]
    assert [group["adaptive_clip"] for group in saved] == [0.5, math.inf, None, 0.5]
    assert [group["centralize"] for group in saved] == [False, False, True, False]
    for group in opt.param_groups[:3]:
        group["adaptive_clip"], group["centralize"] = None, False
    before = [one.copy() for one in ones]
    opt.step([*grads, None])
    assert opt._engine.transforms is None  # no work is left,
    assert opt._engine._fused is not None  # and it is one call again
    for one, old, grad in zip(ones[:3], before, grads, strict=False):
        np.testing.assert_array_equal(one, old - grad[0])
    opt.load_state_dict(opt.state_dict() | {"groups": saved})
    copy = pickle.loads(pickle.dumps(opt))
    for one in (opt, copy):
        before = [p.copy() for g in one.param_groups for p in g["params"]]
        one.step([*grads, None])
        got = [p for g in one.param_groups for p in g["params"]]
        np.testing.assert_array_equal(got[2] - before[2], [[1.0, -1.0]])
        np.testing.assert_array_equal(got[1] - before[1], [[-3.0, -5.0]])


def test_they_cost_nothing_where_they_do_nothing() -> None:
    vectors = [np.ones(3), np.ones(())]
    for options in ({}, {"adaptive_clip": math.inf}, {"centralize": True}):
        opt = fastopt.Adam([p.copy() for p in vectors], **options)
        opt.step([np.ones(3), np.ones(())])
        assert opt._engine.transforms is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adaptive_clip": 0.0}, r"adaptive_clip, if it is not None, must be a number in \(0, inf"),
        ({"adaptive_clip": -1.0}, r"must be a number in \(0, inf\]; got -1"),
        ({"adaptive_clip": math.nan}, "must be a number"),
        ({"centralize": 1}, "centralize must be True or False; got 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        fastopt.SGD(np.ones(3), **options)


@each_backend
def test_members_are_fits_of_their_own(backend: str) -> None:
    """The second axis counts the rows of a member; a member's vector is one unit."""
    shapes: Any = ((3, 2, 4), (3, 4), (3,))
    params, grads = drawn(0, shapes=shapes), drawn(1, shapes=shapes)
    alone, clips = [[p[k] for p in drawn(0, shapes=shapes)] for k in range(3)], [0.1, 0.5, 2.0]
    options: dict[str, Any] = {"lr": 0.5, "centralize": True, "backend": backend}
    fastopt.SGD(params, adaptive_clip=np.array(clips), members=3, **options).step(grads)
    for k, clip in enumerate(clips):
        own = [np.array(p) for p in alone[k]]
        fastopt.SGD(own, adaptive_clip=clip, **options).step([np.array(g[k]) for g in grads])
        for together, one in zip(params, own, strict=True):
            np.testing.assert_allclose(together[k], one, rtol=1e-14)


@each_backend
@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 2), (6,)])
@pytest.mark.parametrize("variant", [fastopt.SGD, fastopt.Adagrad])
def test_rows_are_those_of_the_whole_gradient(
    variant: Any, shape: tuple[int, ...], backend: str
) -> None:
    """For optimizers that leave rows alone which have no gradient."""
    rng = np.random.default_rng(0)
    sparse, dense = (drawn(0, shapes=[shape])[0] for _ in range(2))
    one = variant([sparse], lr=0.1, backend=backend, **BOTH)
    two = variant([dense], lr=0.1, backend=backend, **BOTH)
    for indices in ([4, 1, 4], [0], [5, 5, -1]):
        grad = fastopt.RowGrad(np.array(indices), rng.standard_normal((len(indices), *shape[1:])))
        kept = grad.values.copy()
        one.step([grad])
        two.step([grad.dense(dense)])
        np.testing.assert_array_equal(grad.values, kept)
        np.testing.assert_allclose(sparse, dense, rtol=1e-13, atol=1e-15)


# What calls steps ---------------------------------------------------------------------------------


@pytest.mark.skipif(len(CPU_BACKENDS) < 2, reason="needs numba")
def test_going_over_to_numba_changes_no_bit() -> None:
    ends = []
    for goes_over in (False, True):
        params = drawn(0, np.float32)
        opt = fastopt.Adam(params, backend="auto" if goes_over else "numpy", **BOTH)
        for step in range(1, 9):
            if step == 4 and goes_over:
                opt.warmup()
                assert opt.backend == "numba"
            opt.step(drawn(step, np.float32))
        ends.append({str(k): p for k, p in enumerate(params)})
    assert differences(*ends) == {}


def test_updates_are_those_of_a_step() -> None:
    params, stepped = drawn(0), drawn(0)
    found = fastopt.SGD(params, lr=0.5, **BOTH).updates(drawn(1), grad_scale=2.0)
    fastopt.SGD(stepped, lr=0.5, **BOTH).step(drawn(1), grad_scale=2.0)
    for param, update, other in zip(params, found, stepped, strict=True):
        np.testing.assert_allclose(param + update, other, rtol=1e-14)


def test_what_was_added_up_is_transformed() -> None:
    params, plain = drawn(0), drawn(0)
    opt = fastopt.Accumulator(fastopt.SGD(params, lr=0.5, **BOTH), every=2)
    for seed in (1, 2):
        opt.add(drawn(seed))
    mean = [(a + b) / 2 for a, b in zip(drawn(1), drawn(2), strict=True)]
    fastopt.SGD(plain, lr=0.5, **BOTH).step(mean)
    for one, two in zip(params, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-15)


def test_a_loss_scaler_scales_before() -> None:
    params, plain = drawn(0), drawn(0)
    scaler = fastopt.LossScaler(init_scale=1024.0)
    opt = fastopt.SGD(params, lr=0.5, **BOTH)
    scaler.step(opt, [1024.0 * grad for grad in drawn(1)])
    fastopt.SGD(plain, lr=0.5, **BOTH).step(drawn(1))
    for one, two in zip(params, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-13)


def test_what_stands_around_an_optimizer_steps_as_always() -> None:
    """The second gradients of SAM are those of a step from where the parameters were."""
    params, plain = drawn(0), drawn(0)
    opt, other = fastopt.SGD(params, lr=0.5, **BOTH), fastopt.SGD(plain, lr=0.5, **BOTH)
    sam = fastopt.SAM(fastopt.Lookahead(opt, 2, 0.5))
    ema = fastopt.EMA(sam, 0.5)
    slow = drawn(0)
    for step in (1, 2):
        with sam.ascent(drawn(10 + step)):
            second = drawn(step)
        sam.step(second)
        ema.update()
        other.step(drawn(step))
    for param, ended, began in zip(params, plain, slow, strict=True):
        np.testing.assert_allclose(param, (ended + began) / 2, rtol=1e-12)
