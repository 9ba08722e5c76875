"""SAM and ASAM: where the second gradient is taken, and that nothing else is changed."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.norms import norm_there
from fastopt.errors import CheckpointError
from fastopt.wrappers.sam import SAM
from helpers.around import cases, copied, leaves, make_grads, make_params, same, vectors
from helpers.interruption import interrupted, whole_traces
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_wrapper = pytest.mark.parametrize("make", [fastopt.SAM, fastopt.ASAM])
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64, np.complex128]
INNER: dict[str, Any] = {
    "sgd": lambda params, **o: fastopt.SGD(params, lr=0.1, **o),
    "sgd_momentum": lambda params, **o: fastopt.SGD(params, lr=0.05, momentum=0.9, **o),
    "adam": lambda params, **o: fastopt.Adam(params, lr=0.01, **o),
}


# Against others ---------------------------------------------------------------------------------


def recorded(letter: str) -> list[Any]:
    return [vectors("sam")[f"{letter}{k}"] for k in range(3)]


def made(case: dict[str, Any], params: Any, **options: Any) -> SAM:
    opt = INNER[case["inner"]](params, **options)
    if case["eta"] is None:
        return fastopt.SAM(opt, case["rho"])
    return fastopt.ASAM(opt, case["rho"], case["eta"])


@each_backend
@pytest.mark.parametrize("number", range(11))
def test_it_ends_where_others_do(number: int, backend: str) -> None:
    case, params = cases("sam")[number], [x.copy() for x in recorded("p")]
    sam = made(case, params, backend=backend)
    # po works the norm out in float32.
    limits = {"rtol": 1e-12, "atol": 1e-6 if case["oracle"] == "po" else 1e-14}
    for t in range(10):
        with sam.ascent([g[t] for g in recorded("g")]):
            for k, param in enumerate(params):
                np.testing.assert_allclose(param, vectors("sam")[f"{number}/up{k}"][t], **limits)
        sam.step([h[t] for h in recorded("h")])
        for k, param in enumerate(params):
            np.testing.assert_allclose(param, vectors("sam")[f"{number}/p{k}"][t], **limits)


class WithoutTheRoot(SAM):
    def _move(self, uphill: Any, along: Any) -> None:
        norm = float(norm_there(along))
        super()._move(uphill, [array * norm for array in along])
        for one in uphill:
            one.param[...] *= norm


class EachByItself(SAM):
    def _move(self, uphill: Any, along: Any) -> None:
        for one, array in zip(uphill, along, strict=True):
            super()._move([one], [array])


class Downhill(SAM):
    def _move(self, uphill: Any, along: Any) -> None:
        super()._move(uphill, [-array for array in along])


class BySigns(SAM):
    def _move(self, uphill: Any, along: Any) -> None:
        super()._move(uphill, [np.sign(array) for array in along])


class WithoutEta(fastopt.ASAM):
    def _scaled(self, step: Any, param: Any) -> Any:
        return step * abs(param)


MUTANTS: dict[str, tuple[Any, bool]] = {
    "without the root": (WithoutTheRoot, False),
    "each array by itself": (EachByItself, False),
    "downhill": (Downhill, False),
    "by signs": (BySigns, False),
    "without eta": (WithoutEta, True),
    "no way back": (None, False),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_one_is_caught(name: str) -> None:
    kind, adaptive = MUTANTS[name]
    number = 9 if adaptive else 1
    case, params = cases("sam")[number], [x.copy() for x in recorded("p")]
    opt = INNER[case["inner"]](params)
    right = made(case, params)
    wrong: Any = right if kind is None else kind(opt, **right._made_with())
    caught = False
    for t in range(10):
        with wrong.ascent([g[t] for g in recorded("g")]):
            kept = [param.copy() for param in params]
            ups = [vectors("sam")[f"{number}/up{k}"][t] for k in range(3)]
            caught |= not all(map(np.allclose, params, ups))
        if kind is None:
            for param, up in zip(params, kept, strict=True):
                param[...] = up
        wrong.step([h[t] for h in recorded("h")])
        ends = [vectors("sam")[f"{number}/p{k}"][t] for k in range(3)]
        caught |= not all(map(np.allclose, params, ends))
    assert caught


# The way up and back ----------------------------------------------------------------------------


def bits(tree: Any) -> list[bytes]:
    return [leaf.tobytes() for leaf in leaves(tree)]


@each_backend
@each_wrapper
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_way_is_as_long_as_said_and_back_to_the_bits(
    make: Any, dtype: Any, backend: str
) -> None:
    params = make_params(dtype)
    before, start = bits(params), copied(params)
    sam = make(fastopt.SGD(params, lr=0.1, backend=backend), 0.5)
    grads = make_grads(params, 1)
    given = bits(grads)
    with sam.ascent(grads):
        assert bits(params) != before
        wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
        way = [
            np.ravel(new.astype(wide) - old.astype(wide))
            for new, old in zip(leaves(params), leaves(start), strict=True)
        ]
        eta = getattr(sam, "eta", None)
        if eta is not None:
            units = [np.ravel(abs(old.astype(wide))) + eta for old in leaves(start)]
            way = [one / unit for one, unit in zip(way, units, strict=True)]
        coarse = float(ml_dtypes.finfo(np.dtype(dtype)).eps)
        np.testing.assert_allclose(np.linalg.norm(np.concatenate(way)), 0.5, rtol=40 * coarse)
    assert bits(params) == before
    assert bits(grads) == given


@each_wrapper
@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.close], ids=str)
def test_a_run_with_the_same_gradients_is_the_run_without(make: Any, variant: Variant) -> None:
    ends = []
    for wrapped in (False, True):
        params = make_params(np.float32)
        opt = variant(params)
        sam = make(opt)
        for step in range(5):
            grads = make_grads(params, step)
            if step == 2:
                grads["W"] = None
            if not wrapped:
                opt.step(grads)
                continue
            with sam.ascent(grads):
                second = copied({k: v for k, v in grads.items() if v is not None})
            outcome = sam.step({"W": None} | second)
            assert outcome
        ends.append((bits(params), repr(opt.state_dict())))
    assert ends[0] == ends[1]


@each_wrapper
def test_an_exception_and_writing_end_it_too(make: Any) -> None:
    params = make_params()
    sam = make(fastopt.Adam(params))
    before = bits(params)

    def fail() -> None:
        for leaf in leaves(params):
            leaf[...] = np.nan
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), sam.ascent(make_grads(params, 1)):
        fail()
    assert bits(params) == before
    sam.step(make_grads(params, 1))


def test_no_number_is_lost() -> None:
    params = [np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e308])]
    sam = fastopt.ASAM(fastopt.SGD(params))
    before = bits(params)
    with sam.ascent([np.ones(7)]):
        pass
    assert bits(params) == before


def test_the_second_gradients_may_be_written_over_the_first() -> None:
    params = make_params()
    opt = fastopt.SGD(params, lr=1.0)
    sam, grads = fastopt.SAM(opt), opt.gradient_buffers()
    for grad in leaves(grads):
        grad[...] = 1.0
    start = copied(params)
    with sam.ascent(grads):
        for grad in leaves(grads):
            grad[...] = 0.25
    sam.step(grads)
    for param, old in zip(leaves(params), leaves(start), strict=True):
        np.testing.assert_array_equal(param, old - 0.25)


# Which parameters, and how far -------------------------------------------------------------------


def test_what_has_no_gradient_or_is_not_trained_stays_and_does_not_count() -> None:
    a, b, c, n = np.zeros(2), np.ones(3), np.ones(4), np.arange(3)
    groups = [{"params": [a, b]}, {"params": [c, n], "trainable": False}]
    sam = fastopt.SAM(fastopt.SGD(groups), 0.5)
    with sam.ascent([[np.array([3.0, 4.0]), None], [np.full(4, 9.0), None]]):
        np.testing.assert_array_equal(a, [0.3, 0.4])
        np.testing.assert_array_equal(b, 1.0)
        np.testing.assert_array_equal(c, 1.0)
    with sam.ascent([[None, None], [None, None]]):
        np.testing.assert_array_equal(a, 0.0)


def test_uphill_is_against_the_gradient_where_it_is_maximized() -> None:
    a, b = np.zeros(1), np.zeros(1)
    opt = fastopt.SGD([{"params": a, "maximize": True}, {"params": b}])
    with fastopt.SAM(opt, 1.0).ascent([np.array([3.0]), np.array([4.0])]):
        assert (a[0], b[0]) == (-3 / 5, 4 / 5)


def test_it_ends_at_the_bounds() -> None:
    for bounds in [(-0.25, 0.25), ([np.array([-0.25, -0.25])], 0.25)]:
        params = [np.zeros(2)]
        sam = fastopt.SAM(fastopt.SGD(params, bounds=bounds), 1.0)
        with sam.ascent([np.array([3.0, -4.0])]):
            np.testing.assert_array_equal(params[0], [0.25, -0.25])


@each_wrapper
def test_gradients_of_0_go_nowhere(make: Any) -> None:
    params = make_params()
    before = bits(params)
    zeros = make_grads(params, 0)
    for leaf in leaves(zeros):
        leaf[...] = 0
    with make(fastopt.SGD(params)).ascent(zeros):
        assert bits(params) == before


@pytest.mark.parametrize("size", [1e-300, 5e-324, 1e300, 1e-40, 1e38])
def test_any_size_of_gradient_goes_as_far(size: float) -> None:
    for dtype in (np.float64, np.float32):
        if not 1e-42 < size < 1e39 and dtype is np.float32:
            continue
        params = [np.zeros(3, dtype), np.zeros((), dtype)]
        grads = [np.full(3, size, dtype), np.array(size, dtype)]
        with fastopt.SAM(fastopt.SGD(params), 1.0).ascent(grads):
            for param in params:
                np.testing.assert_allclose(param, 0.5, rtol=1e-6)


def test_what_is_not_finite_is_left_to_the_optimizer() -> None:
    param = np.ones(3)
    opt = fastopt.SGD([param], on_nonfinite="skip")
    sam = fastopt.SAM(opt)
    with sam.ascent([np.array([1.0, np.nan, 1.0])]):
        second = param * 2
    assert not sam.step([second])
    assert opt.skipped_steps == 1
    np.testing.assert_array_equal(param, 1.0)


# What is refused --------------------------------------------------------------------------------


@each_wrapper
def test_inside_there_are_no_steps_and_nothing_is_saved(make: Any, tmp_path: Path) -> None:
    params = make_params()
    opt = fastopt.Adam(params)
    ahead = fastopt.Lookahead(opt, k=2)
    sam = make(ahead)
    grads = make_grads(params, 1)
    sam.step(grads)
    slow, before, saved = copied(ahead.slow), bits(params), repr(opt.state_dict())
    with sam.ascent(grads):
        for attempt in (
            lambda: sam.step(grads),
            lambda: opt.step(grads),
            lambda: opt.state_dict(),
            lambda: opt.save(tmp_path / "run"),
            lambda: opt.rebind(make_params()),
            lambda: sam.ascent(grads).__enter__(),
            lambda: copy.deepcopy(sam),
        ):
            with pytest.raises(RuntimeError, match="until the block of ascent ends"):
                attempt()
        assert same(ahead.slow, slow)
        assert opt.lr == 1e-3
    assert bits(params) == before
    assert repr(opt.state_dict()) == saved
    sam.step(grads)


def test_gradients_that_do_not_fit_change_nothing() -> None:
    params = {"W": np.ones((2, 2)), "b": np.ones(2)}
    opt = fastopt.SGD(params)
    sam = fastopt.SAM(opt)
    for grads, kind, said in [
        ({"W": np.ones((2, 2))}, ValueError, "b"),
        ({"W": np.ones((2, 2)), "b": np.ones(3)}, ValueError, "shape"),
        ({"W": np.ones((2, 2)), "b": np.ones(2, int)}, TypeError, "dtype"),
        ({"W": np.ones((2, 2)), "b": [1.0, 1.0]}, TypeError, "b"),
        ({"W": params["W"], "b": np.ones(2)}, ValueError, "memory"),
    ]:
        with pytest.raises(kind, match=said), sam.ascent(grads):
            raise AssertionError
        assert all((param == 1).all() for param in params.values())
    params["b"] = np.ones(2)
    right = {"W": np.ones((2, 2)), "b": np.ones(2)}
    with pytest.raises(ValueError, match="no longer"), sam.ascent(right):
        raise AssertionError
    opt.rebind(params)
    sam.step(right)


def test_schedule_free_goes_up_in_training_alone() -> None:
    params = make_params()
    opt = fastopt.ScheduleFreeSGD(params, lr=0.1)
    sam = fastopt.SAM(opt)
    for step in range(4):
        grads = make_grads(params, step)
        with opt.eval(), pytest.raises(RuntimeError, match=r"opt\.train"), sam.ascent(grads):
            raise AssertionError
        with sam.ascent(grads), pytest.raises(RuntimeError, match="until the block"):
            opt.eval()
        sam.step(grads)
    before = bits(params)
    with opt.eval():
        assert bits(params) != before
    assert bits(params) == before


def test_what_it_is_made_of() -> None:
    opt = fastopt.SGD(np.ones(3))
    sam: Any
    for make, name in [(fastopt.SAM, "rho"), (fastopt.ASAM, "rho"), (fastopt.ASAM, "eta")]:
        for bad in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"{make.__name__}: {name} must be"):
                make(opt, **{name: bad})
        for wrong in (None, "0.1", [0.1], lambda t: 0.1):
            with pytest.raises(TypeError, match=f"{make.__name__}: {name} must be"):
                make(opt, **{name: wrong})
        sam = make(opt)
        setattr(sam, name, 0.25)
        assert getattr(sam, name) == 0.25
        with pytest.raises(ValueError, match="must be"):
            setattr(sam, name, -1)
        assert getattr(sam, name) == 0.25
    with pytest.raises(TypeError, match="SAM takes an optimizer"):
        fastopt.SAM(np.ones(3))  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="rho"):
        fastopt.SAM(opt).rh0 = 0.1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="members"):
        fastopt.SAM(fastopt.SGD(np.ones((2, 3)), members=2))
    assert (fastopt.SAM(opt).rho, fastopt.ASAM(opt).rho, fastopt.ASAM(opt).eta) == (0.05, 0.5, 0.01)
    assert repr(fastopt.ASAM(opt)).startswith("<ASAM(rho=0.5, eta=0.01) of <SGD(")


# What stands around, and copies -----------------------------------------------------------------


@each_wrapper
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves(make: Any, duplicate: Any) -> None:
    params = make_params()
    sam = make(fastopt.Adam(params), rho=0.25)
    sam.step(make_grads(params, 0))
    other = duplicate(sam)
    assert other._made_with() == sam._made_with()
    for one in (sam, other):
        with one.ascent(make_grads(params, 1)):
            second = copied(one.params)
        one.step(second)
    assert same(other.params, params)
    saved = sam.state_dict()
    other.load_state_dict(saved)
    with pytest.raises(CheckpointError, match="this is"):
        other.load_state_dict(fastopt.EMA(params).state_dict())


def test_inside_and_around_others() -> None:
    params = make_params(np.float32)
    opt = fastopt.SGD(params, lr=0.1)
    sam = fastopt.SAM(opt, 0.5)
    acc, scaler = fastopt.Accumulator(sam, every=2), fastopt.LossScaler(64.0)
    for step in range(4):
        grads = make_grads(params, step)
        scaled = copied(grads)
        for leaf in leaves(scaled):
            leaf *= 64
        with sam.ascent(grads):
            here = bits(params)
        with sam.ascent(scaled):
            assert bits(params) == here  # a power of two
        scaler.step(acc, scaled)
        scaler.update()
    assert opt.step_count == 2


@whole_traces
@each_wrapper
def test_an_interrupt_leaves_all_or_nothing(make: Any) -> None:
    before, at = bits(make_params()), 0
    came: bool | None = True
    while came is not None:
        params = make_params()
        sam = make(fastopt.SGD(params))

        def run(sam: Any = sam, grads: Any = make_grads(params, 1)) -> None:  # noqa: B008
            with sam.ascent(grads):
                pass

        came = interrupted(run, at)
        if bits(params) != before:  # right after the way up: the block is left to the collector
            gc.collect()
        assert bits(params) == before, at
        sam.step(make_grads(params, 2))
        at += 29  # of thousands of places, which take a while
