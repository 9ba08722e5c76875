"""Members: each is clipped, skipped and counted by itself, with the bits of an optimizer alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from fastopt.schedules import cosine
from helpers.bits import bits
from helpers.members import hyperparameters_of, of_all, of_member
from helpers.variants import CPU_BACKENDS, ELEMENTWISE, Variant

MEMBERS, STEPS = 5, 24
SHAPES = ((MEMBERS, 3), (MEMBERS,), (MEMBERS, 5, 1000), (MEMBERS, 0), (MEMBERS, 65))

BY_GRADIENTS = [variant for variant in ELEMENTWISE if variant.optimizer._estimate is None]
"""Those that take no estimates of the Hessian, which nobody has of one member alone."""

POLICIES: tuple[dict[str, Any], ...] = (
    {"max_grad_norm": 1.0},
    {"on_nonfinite": "skip"},
    {"max_grad_norm": 0.5, "on_nonfinite": "skip"},
    {"max_grad_norm": np.inf},
)


def random(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> Array:
    found = rng.standard_normal((*shape, 2))
    mixed = found[..., 0] + 1j * found[..., 1] if np.dtype(dtype).kind == "c" else found[..., 0]
    return np.array(mixed).astype(dtype)


def begun(dtype: Any) -> list[Array]:
    rng = np.random.default_rng(0)
    return [random(shape, dtype, rng) for shape in SHAPES]


def gradients(dtype: Any) -> list[list[Array | None]]:
    """Return those of all steps: of many sizes, some missing, some not finite, some too large."""
    rng = np.random.default_rng(1)
    found: list[list[Array | None]] = []
    for step in range(STEPS):
        large = 10.0 ** rng.uniform(-4, 4)
        given: list[Array | None] = [random(shape, dtype, rng) * large for shape in SHAPES]
        given = [None if g is None else g.astype(dtype) for g in given]
        if step % 3 == 1:
            given[0][step % MEMBERS, 1] = np.nan
        if step % 7 == 3:
            given[1][:] = np.inf
        if step % 5 == 2:
            given[2] = None
        if step % 6 == 4:
            given[4][2] *= 1e18
        found.append(given)
    return found


def of(member: int, given: Sequence[Array | None]) -> list[Array | None]:
    return [None if one is None else np.array(one[member]) for one in given]


def state_of(opt: Optimizer) -> dict[str, Array]:
    return {
        f"{name}.{slot}": np.asarray(value)
        for name, entry in opt.state_dict()["state"].items()
        for slot, value in entry.items()
        if slot != "step"
    }


def same_number(one: Any, two: Any) -> bool:
    return np.array_equal(np.float64(one), np.float64(two), equal_nan=True)


def same_bits(one: Array, two: Array) -> bool:
    pairs = (
        (bits(first), bits(second))
        for first, second in ((one.real, two.real), (one.imag, two.imag))
    )
    return all(first.tobytes() == second.tobytes() for first, second in pairs)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: "-".join(policy))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("variant", BY_GRADIENTS, ids=str)
def test_each_is_judged_by_itself(
    variant: Variant, dtype: Any, policy: dict[str, Any], backend: str
) -> None:
    settings = hyperparameters_of(variant)
    params = begun(dtype)
    own = {name: of_all(name, value) for name, value in settings.items()}
    opt = variant(params, **own, members=MEMBERS, backend=backend, **policy)
    steps = gradients(dtype)
    with np.errstate(all="ignore"):
        outcomes = [opt.step(given) for given in steps]
    norm, state = opt.grad_norm, state_of(opt)
    for member in range(MEMBERS):
        alone = [np.array(param[member]) for param in begun(dtype)]
        own = {name: of_member(name, value, member) for name, value in settings.items()}
        separate = variant(alone, **own, backend=backend, **policy)
        for outcome, given in zip(outcomes, steps, strict=True):
            with np.errstate(all="ignore"):
                made = separate.step(of(member, given))
            assert made.made == outcome.made[member]
            assert same_number(made.grad_norm, outcome.grad_norm[member])
        for one, together in zip(alone, params, strict=True):
            assert same_bits(one, together[member])
        for name, values in state_of(separate).items():
            assert same_bits(values, state[name][member]), name
        assert separate.step_count == opt.step_count[member]
        assert separate.skipped_steps == opt.skipped_steps[member]
        assert same_number(separate.grad_norm, norm[member])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_schedules_follow_the_steps_of_each(backend: str) -> None:
    params = begun(np.float32)
    opt = fastopt.Adam(
        params, cosine(0.1, 20), members=MEMBERS, on_nonfinite="skip", backend=backend
    )
    for given in gradients(np.float32):
        opt.step(given)
    assert len(set(opt.step_count)) > 2
    for member in range(MEMBERS):
        alone = [np.array(param[member]) for param in begun(np.float32)]
        separate = fastopt.Adam(alone, cosine(0.1, 20), on_nonfinite="skip", backend=backend)
        for given in gradients(np.float32):
            separate.step(of(member, given))
        for one, together in zip(alone, params, strict=True):
            assert one.tobytes() == np.ascontiguousarray(together[member]).tobytes()


def test_the_policy_may_come_and_go() -> None:
    params, steps = begun(np.float32), gradients(np.float32)
    opt = fastopt.Adam(params, members=MEMBERS)
    for number, given in enumerate(steps):
        opt.on_nonfinite = "skip" if number < 12 else "propagate"
        opt.step([None if g is None else np.nan_to_num(g, posinf=1) for g in given]
                 if number >= 12 else given)  # fmt: skip
    assert opt.grad_norm is not None
    opt.max_grad_norm = None
    assert opt.grad_norm is None
    for member in range(MEMBERS):
        alone = [np.array(param[member]) for param in begun(np.float32)]
        separate = fastopt.Adam(alone)
        for number, given in enumerate(steps):
            separate.on_nonfinite = "skip" if number < 12 else "propagate"
            own = of(member, given)
            if number >= 12:
                own = [None if g is None else np.nan_to_num(g, posinf=1) for g in own]
            separate.step(own)
        for one, together in zip(alone, params, strict=True):
            assert one.tobytes() == np.ascontiguousarray(together[member]).tobytes()


def test_raise_names_the_member() -> None:
    params = np.ones((3, 2), np.float32)
    opt = fastopt.Adam(params, members=3, on_nonfinite="raise")
    grads = np.ones((3, 2), np.float32)
    grads[1, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"gradient of member 1 holds NaN .* step 0"):
        opt.step(grads)
    grads[1, 0], grads[2] = 1.0, 1e19
    with pytest.raises(FloatingPointError, match=r"gradient of member 2 has a norm of 1\.4"):
        opt.step(grads)
    assert (params == 1).all()
    assert opt.step_count.tolist() == [0, 0, 0]


def test_an_outcome_says_who_stepped() -> None:
    opt = fastopt.Adam(np.ones((3, 2)), members=3, on_nonfinite="skip")
    grads = np.ones((3, 2))
    assert opt.step(grads)
    assert repr(opt.step(grads)) == "<Outcome: made for 3 of 3 members>"
    grads[0] = np.inf
    outcome = opt.step(grads)
    assert not outcome
    assert outcome != True  # noqa: E712 - an outcome is equal to a truth value
    assert outcome.made.tolist() == [False, True, True]
    assert outcome.grad_norm.tolist() == [np.inf, 2**0.5, 2**0.5]
    assert opt.step(np.full((3, 2), np.nan)).made.tolist() == [False] * 3
    assert opt.skipped_steps.tolist() == [2, 1, 1]
    assert opt.step_count.tolist() == [2, 3, 3]


# Saved, copied, selected -------------------------------------------------------------------------


def run(opt: Optimizer, steps: Sequence[Sequence[Array | None]]) -> None:
    for given in steps:
        opt.step([*given])


def made(params: list[Array]) -> Optimizer:
    rates = np.linspace(0.01, 0.1, len(params[0]))
    return fastopt.AdamW(params, rates, members=len(params[0]), on_nonfinite="skip")


def as_file(opt: Optimizer, folder: Path) -> list[Array]:
    opt.save(folder / "opt.safetensors")
    params = [np.zeros_like(param) for param in opt.params]
    copied = made(params)
    copied.load(folder / "opt.safetensors")
    run(copied, gradients(np.float32)[STEPS // 2 :])
    return params


def as_dict(opt: Optimizer, folder: Path) -> list[Array]:
    params = [param.copy() for param in opt.params]
    copied = made(params)
    copied.step([np.full_like(p, np.nan if k else 1) for k, p in enumerate(params)])
    copied.load_state_dict(opt.state_dict())
    run(copied, gradients(np.float32)[STEPS // 2 :])
    return params


def as_copy(opt: Optimizer, folder: Path) -> list[Array]:
    copied = pickle.loads(pickle.dumps(copy.deepcopy(opt)))
    assert copied.skipped_steps.tolist() == opt.skipped_steps.tolist()
    run(copied, gradients(np.float32)[STEPS // 2 :])
    return [*copied.params]


@pytest.mark.parametrize("way", [as_file, as_dict, as_copy])
def test_runs_go_on(way: Any, tmp_path: Path) -> None:
    whole, half = begun(np.float32), begun(np.float32)
    run(made(whole), gradients(np.float32))
    opt = made(half)
    run(opt, gradients(np.float32)[: STEPS // 2])
    assert len(set(opt.step_count)) > 1
    for one, two in zip(way(opt, tmp_path), whole, strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_saved_state_that_does_not_fit_is_refused() -> None:
    opt = made(begun(np.float32))
    run(opt, gradients(np.float32))
    saved = opt.state_dict()
    alone = fastopt.AdamW(begun(np.float32))
    groups = alone.state_dict()["groups"]
    with pytest.raises(fastopt.CheckpointError, match="members="):
        alone.load_state_dict({**saved, "groups": groups})
    for wrong in ([1, 2], [1.5] * MEMBERS, [-1] * MEMBERS):
        with pytest.raises(fastopt.CheckpointError, match="missed: steps must be 5 whole numbers"):
            opt.load_state_dict({**saved, "missed": {"steps": wrong, "state": {}}})
    with pytest.raises(fastopt.CheckpointError, match="missed must be a dict"):
        opt.load_state_dict({**saved, "missed": [1]})


@pytest.mark.parametrize("keep", [[3, 0], [-1], np.array([True, False, True, True, False])])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_selected_members_go_on_as_they_were(keep: Any, backend: str) -> None:
    rows = np.arange(MEMBERS)[keep]
    rates = np.linspace(0.01, 0.1, MEMBERS)
    lower = [np.full(shape, -0.5 - np.arange(1.0)) for shape in SHAPES]

    def optimizer(params: list[Array]) -> Optimizer:
        return fastopt.AdamW(
            params,
            lambda step: rates / (1 + step),
            betas=(np.linspace(0.5, 0.9, MEMBERS), 0.99),
            bounds=(lower, None),
            members=MEMBERS,
            on_nonfinite="skip",
            backend=backend,
        )

    whole, some = begun(np.float32), begun(np.float32)
    all_of_them, opt = optimizer(whole), optimizer(some)
    called: list[Any] = []
    opt.after_step.append(called.append)
    steps = gradients(np.float32)
    run(all_of_them, steps)
    run(opt, steps[:10])
    before = [param.copy() for param in some]
    assert opt.select(keep) is opt
    assert opt.step_count.shape == rows.shape
    run(opt, [[None if g is None else g[rows] for g in given] for given in steps[10:]])
    assert len(called) == STEPS
    for one, two, old, shown in zip(opt.params, whole, before, some, strict=True):
        assert one.tobytes() == two[rows].tobytes()
        assert shown.tobytes() == old.tobytes()
    assert opt.skipped_steps.tolist() == all_of_them.skipped_steps[rows].tolist()


def test_select_refuses_what_it_cannot_keep() -> None:
    opt = made(begun(np.float32))
    for wrong in ([], [5], [-6], [0.5], [[1]], [True, False]):
        with pytest.raises(ValueError, match="numbers of the members to keep"):
            opt.select(wrong)
    with pytest.raises(ValueError, match="construct it with members="):
        fastopt.Adam(np.ones(3)).select([0])


@pytest.mark.parametrize("choices", [[[1, 0, 2, 3, 4]], [[3, 1], [1]], [[4, 0, 2], [2, 0]]])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_averages_and_slow_weights_go_along_with_their_members(
    choices: list[list[int]], backend: str
) -> None:
    """Also where as many are left in another order, and where two choices are made at once."""

    def both(params: Any, lr: Any, **options: Any) -> tuple[Any, Any]:
        opt = fastopt.SGD(params, lr=lr, momentum=0.9, backend=backend, **options)
        ahead = fastopt.Lookahead(opt, k=3)
        return ahead, fastopt.EMA(ahead, decay=0.5)

    rates = np.linspace(0.1, 0.5, MEMBERS)
    start = np.random.default_rng(0).standard_normal((MEMBERS, 3))
    steps = np.random.default_rng(1).standard_normal((10, MEMBERS, 3))
    ahead, ema = both(start.copy(), rates, members=MEMBERS)
    alone = [both(start[k].copy(), rates[k]) for k in range(MEMBERS)]
    left = np.arange(MEMBERS)
    for number, grads in enumerate(steps):
        if number == 4:  # one step after a pull
            for indices in choices:
                ahead._innermost.select(indices)
                left = left[indices]
        ahead.step(grads[left])
        ema.update()
        for member in left:
            alone[member][0].step(grads[member])
            alone[member][1].update()
    for place, member in enumerate(left):
        its, average = alone[member]
        assert ahead.params[place].tobytes() == its.params.tobytes()
        assert ahead.slow[place].tobytes() == its.slow.tobytes()
        assert ema.average[place].tobytes() == average.average.tobytes()


@pytest.mark.parametrize("wrapper", [fastopt.Lookahead, fastopt.Accumulator])
def test_wrappers_that_count_for_all_members_leave_none_out_alone(wrapper: Any) -> None:
    params = np.ones((2, 3))
    opt = fastopt.SGD(params, lr=1.0, members=2, on_nonfinite="skip", max_grad_norm=np.inf)
    around = wrapper(opt, 1)
    bad = np.array([[1.0] * 3, [np.nan] * 3])
    with pytest.raises(ValueError, match=r"set opt\.on_nonfinite to 'propagate' or 'raise'"):
        around.step(bad)
    assert (params == 1).all()
    assert opt.step_count.tolist() == [0, 0]
    opt.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError):
        around.step(bad)
    assert (params == 1).all()
    around.step(np.ones((2, 3)))
    assert opt.step_count.tolist() == [1, 1]


def test_advice_for_members_is_that_for_members() -> None:
    opt = fastopt.SGD(np.ones((3, 2)), lr=1.0, members=3)
    with pytest.raises(ValueError, match=r"opt\.select\(indices\) keeps some of the members"):
        opt.rebind(np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"or an array of 3 of them.* such as np\.array\("):
        opt.lr = [1.0, 2.0, 3.0]
    opt.lr = np.array([1.0, 2.0, 3.0])
    assert opt.select([2, 0]).lr.tolist() == [3.0, 1.0]


def test_a_loss_scaler_refuses_members() -> None:
    opt = made(begun(np.float32))
    with pytest.raises(ValueError, match=r"members .* scale of their own"):
        fastopt.LossScaler().step(opt, begun(np.float32))
