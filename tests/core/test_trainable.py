"""trainable=False: parameters, state and counts stay, and nobody looks at the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant
from helpers.vectors import VECTORS, Vector, run, worst

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
fixed = settings(max_examples=60)

BRANCHES = ("body", "head", "neck")


def arrays(seed: int) -> dict[str, Any]:
    """Return three branches; each has two dtypes and a view with gaps."""
    rng = np.random.default_rng(seed)
    return {
        branch: {
            "W": rng.standard_normal((3, 4)).astype(np.float32),
            "b": [rng.standard_normal(5), rng.standard_normal((4, 6))[::2].T],
        }
        for branch in BRANCHES
    }


def none() -> dict[str, Any]:
    """Return what says of a branch that it has no gradients."""
    return {"W": None, "b": [None, None]}


def flat(tree: dict[str, Any]) -> list[Array]:
    return [array for part in tree.values() for array in (part["W"], *part["b"])]


def by_pattern(variant: Variant, params: Any, **options: Any) -> Optimizer:
    """Return an optimizer whose groups 0, 1 and 2 are body, head and neck."""
    settings_of = {"head.**": {"lr": 0.25}, "neck.**": {"weight_decay": 0.5}}
    return variant(fastopt.groups(params, settings_of), **options)


def listed(variant: Variant, params: Any, **options: Any) -> Optimizer:
    own: list[dict[str, Any]] = [{}, {"lr": 0.25}, {"weight_decay": 0.5}]
    groups = [{"params": params[b], **more} for b, more in zip(BRANCHES, own, strict=True)]
    return variant(groups, **options)


Form = tuple[Callable[..., Optimizer], Callable[[Any], Any]]
FORMS: dict[str, Form] = {
    "by_pattern": (by_pattern, lambda tree: tree),
    "listed": (listed, lambda tree: [tree[branch] for branch in BRANCHES]),
}
each_form = pytest.mark.parametrize("form", FORMS)


def freeze(opt: Optimizer, numbers: Any) -> None:
    for number, group in enumerate(opt.param_groups):
        group["trainable"] = number not in numbers


def without_settings(opt: Optimizer) -> dict[str, Any]:
    return {key: value for key, value in opt.state_dict().items() if key != "groups"}


class Trap:
    """Anything but a gradient."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"somebody looked at a frozen gradient's {name}")


FREEZING = [{1}, {1}, {0, 1}, set(), {2}, {0, 1, 2}, {0}, set(), {0, 2}, {1, 2}, set()]


@each_form
@each_backend
@each_variant
@pytest.mark.parametrize("policy", [{}, {"max_grad_norm": 0.5, "on_nonfinite": "raise"}])
def test_frozen_groups_are_as_if_without_gradients(
    variant: Variant, backend: str, form: str, policy: Any
) -> None:
    make, nested = FORMS[form]
    one, two = arrays(0), arrays(0)
    frozen = make(variant, one, backend=backend, **policy)
    plain = make(variant, two, backend=backend, **policy)
    for step, numbers in enumerate(FREEZING, start=1):
        freeze(frozen, numbers)
        grads = arrays(step)
        for number in numbers:
            grads[BRANCHES[number]] = {"W": Trap(), "b": [Trap(), np.full(3, math.nan)]}
        frozen.step(nested(grads), grad_scale=0.5)
        for number in numbers:
            grads[BRANCHES[number]] = none()
        plain.step(nested(grads), grad_scale=0.5)
        assert frozen.grad_norm == plain.grad_norm
    for first, second in zip(flat(one), flat(two), strict=True):
        np.testing.assert_array_equal(first, second, strict=True)
    np.testing.assert_equal(without_settings(frozen), without_settings(plain))
    assert frozen.step_count == len(FREEZING)


MISSING = [v for v in VECTORS if v.info["missing"] and not v.info["groups"]]


@each_backend
@pytest.mark.parametrize("vector", MISSING, ids=str)
def test_recorded_missing_gradients_are_met_by_freezing(vector: Vector, backend: str) -> None:
    def make(params: list[Array], **options: Any) -> Any:
        kind: Any = getattr(fastopt, vector.info["optimizer"])

        class Freezing(kind):  # type: ignore[misc]  # any of them
            def step(self, grads: Any, **handed: Any) -> None:
                for group, grad in zip(self.param_groups, grads, strict=True):
                    group["trainable"] = grad is not None
                super().step([Trap() if grad is None else grad for grad in grads], **handed)

        return Freezing(fastopt.groups(params, {str(k): {} for k in range(3)}), **options)

    assert worst(vector, run(vector, np.float64, backend, make)) <= 1e-11


@fixed
@given(
    frozen=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=8),
    variant=st.sampled_from(VARIANTS),
    backend=st.sampled_from(CPU_BACKENDS),
    data=st.data(),
)
def test_any_order_of_freezing_is_as_if_without_gradients(
    frozen: list[set[int]], variant: Variant, backend: str, data: Any
) -> None:
    names = ["a.0", "a.1", "a.b.x", "a.b.y", "c", "d.0.0", "d.0.1"]
    group_of = [data.draw(st.integers(0, 3), label=name) for name in names]

    def tree(leaves: list[Any]) -> dict[str, Any]:
        p, q, x, y, c, d, e = leaves
        return {"a": {0: p, 1: q, "b": {"x": x, "y": y}}, "c": c, "d": ([d, e], [])}

    def made() -> tuple[list[Array], Optimizer]:
        leaves = [np.full(2, 1.0 + k) for k in range(7)]
        own = {n: {"lr": 0.125 * (1 + group_of[k])} for k, n in enumerate(names) if group_of[k]}
        return leaves, variant(fastopt.groups(tree(leaves), own), backend=backend)

    def is_frozen(name: str, numbers: set[int]) -> bool:
        return group_of[names.index(name)] in numbers

    (one, opt), (two, plain) = made(), made()
    for step, numbers in enumerate(frozen):
        for group in opt.param_groups:
            group["trainable"] = not is_frozen(next(iter(group["params"])), numbers)
        grads: list[Any] = [np.full(2, 1.0 + step + k) for k in range(7)]
        hidden = [is_frozen(name, numbers) for name in names]
        given_grads = tree([Trap() if h else g for g, h in zip(grads, hidden, strict=True)])
        if all(hidden[2:4]):
            given_grads["a"]["b"] = data.draw(st.sampled_from([None, Trap(), {}]), label="a.b")
        if all(hidden[5:7]):
            given_grads["d"] = (data.draw(st.sampled_from([None, [], ()]), label="d"), [])
        opt.step(given_grads)
        plain.step(tree([None if h else g for g, h in zip(grads, hidden, strict=True)]))
    np.testing.assert_equal(one, two)
    np.testing.assert_equal(without_settings(opt), without_settings(plain))


ANYTHING: dict[str, Any] = {
    "none": None,
    "text": "no gradient",
    "trap": Trap(),
    "number": 1.0,
    "other_tree": {"x": [1, 2]},
    "other_shape": {"W": np.zeros(7), "b": [np.zeros(1), np.zeros(1)]},
    "integers": {"W": np.zeros((3, 4), int), "b": [np.zeros(5, int), np.zeros((6, 2), int)]},
    "not_finite": {
        "W": np.full((3, 4), math.inf),
        "b": [np.full(5, math.nan), np.full((6, 2), math.nan)],
    },
}


@each_form
@each_backend
@pytest.mark.parametrize("name", ANYTHING)
def test_the_gradients_of_a_frozen_branch_can_be_anything(
    name: str, form: str, backend: str
) -> None:
    make, nested = FORMS[form]
    params = arrays(0)
    opt = make(VARIANTS[1], params, backend=backend, max_grad_norm=math.inf, on_nonfinite="raise")
    freeze(opt, {1})
    kept = [array.copy() for array in flat({"head": params["head"]})]
    opt.step(nested({**arrays(1), "head": ANYTHING[name]}))
    opt.step(nested({**arrays(2), "head": params["head"]}))  # the parameters themselves
    for before, now in zip(kept, flat({"head": params["head"]}), strict=True):
        np.testing.assert_array_equal(before, now)
    rest = {branch: array for branch, array in arrays(2).items() if branch != "head"}
    squares = math.fsum(float(x) ** 2 for array in flat(rest) for x in array.ravel())
    assert opt.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert opt.step_count == 2


@each_backend
@each_variant
@pytest.mark.parametrize("policy", [{}, {"max_grad_norm": 0.5}, {"on_nonfinite": "skip"}])
def test_all_groups_can_be_frozen(variant: Variant, backend: str, policy: Any) -> None:
    for make in (variant, lambda p, **o: by_pattern(variant, p, **o)):
        params = arrays(0)
        opt = make(params, backend=backend, **policy)
        opt.step(arrays(1))
        freeze(opt, {0, 1, 2})
        before, kept = opt.state_dict(), [array.copy() for array in flat(params)]
        for anything in (None, Trap(), arrays(2), "text"):
            opt.step(anything)
        np.testing.assert_equal(opt.state_dict(), {**before, "step_count": 5})
        np.testing.assert_equal(flat(params), kept)
        assert opt.grad_norm == (0.0 if policy else None)
        freeze(opt, set())
        opt.step(arrays(3))
        assert not np.array_equal(params["head"]["W"], kept[3])


@each_form
@each_backend
def test_a_frozen_groups_schedules_are_not_asked(form: str, backend: str) -> None:
    make, nested = FORMS[form]
    opt = make(VARIANTS[0], arrays(0), backend=backend)
    asked: list[int] = []

    def lr(t: int) -> float:
        asked.append(t)
        return 0.5

    opt.param_groups[2]["lr"] = lr
    for numbers in ({2}, set(), {2}, set()):
        freeze(opt, numbers)
        opt.step(nested(arrays(1)))
    assert asked == [1, 3]


@each_form
@each_backend
def test_frozen_parameters_are_looked_at_when_they_are_trained_again(
    form: str, backend: str
) -> None:
    make, nested = FORMS[form]
    params = arrays(0)
    opt = make(VARIANTS[0], params, backend=backend)
    freeze(opt, {1})
    kept = params["head"]["W"]
    params["head"]["W"] = "somewhere else"
    opt.step(nested(arrays(1)))
    freeze(opt, set())
    with pytest.raises(ValueError, match=r'\["W"\] is no longer the array'):
        opt.step(nested(arrays(1)))
    params["head"]["W"] = kept
    opt.step(nested(arrays(1)))
    assert opt.step_count == 2


@each_backend
def test_the_structure_around_frozen_branches_is_held(backend: str) -> None:
    opt = by_pattern(VARIANTS[0], arrays(0), backend=backend)
    freeze(opt, {1})
    good = {**arrays(1), "head": None}
    for bad, said in [
        ({**good, "body": {"W": None}}, r'missing grads\["body"\]\["b"\]\[0\], grads\["body"\]'),
        ({**good, "leg": None}, r'unexpected grads\["leg"\]'),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            opt.step(bad)
        assert '["head"]["W"]' not in str(caught.value)
    opt.step(good)
    opt.step({b: good[b] for b in ("body", "neck")})  # it may be left out
    assert opt.step_count == 2


@each_form
def test_freezing_is_saved_with_the_groups(form: str) -> None:
    make, _ = FORMS[form]
    source, target = make(VARIANTS[0], arrays(0)), make(VARIANTS[0], arrays(0))
    freeze(source, {1})
    saved = source.state_dict()
    assert [group["trainable"] for group in saved["groups"]] == [True, False, True]
    target.load_state_dict(saved)
    assert [group["trainable"] for group in target.param_groups] == [True, False, True]


@each_backend
def test_all_but_some_are_frozen_from_the_start(backend: str) -> None:
    params = arrays(0)
    kept = params["body"]["W"].copy()
    given_groups = fastopt.groups(params, {"head.**": {"trainable": True}})
    opt = fastopt.Adam(given_groups, lr=0.5, trainable=False, backend=backend)
    opt.step({"body": None, "neck": None, "head": arrays(1)["head"]})
    steps = {name: entry["step"] for name, entry in opt.state_dict()["state"].items()}
    assert {name for name, step in steps.items() if step} == {"head.W", "head.b.0", "head.b.1"}
    np.testing.assert_array_equal(params["body"]["W"], kept)
    whole = fastopt.Adam(arrays(0), trainable=False, backend=backend)
    whole.step(None)
    assert whole.step_count == 1


@each_backend
def test_a_step_that_raises_leaves_frozen_and_other_groups_alone(backend: str) -> None:
    params = arrays(0)
    opt = by_pattern(VARIANTS[1], params, backend=backend)
    opt.step(arrays(1))
    freeze(opt, {0})
    before, kept = opt.state_dict(), [array.copy() for array in flat(params)]
    bad = arrays(2)
    bad["neck"]["b"][1] = np.zeros(3)
    with pytest.raises(ValueError, match="shape"):
        opt.step(bad)
    np.testing.assert_equal(opt.state_dict(), before)
    np.testing.assert_equal(flat(params), kept)


@each_backend
def test_one_array_is_frozen_and_trained_again(backend: str) -> None:
    forms: list[tuple[Callable[[Array], Any], Callable[[Any], Any]]] = [
        (lambda p: p, lambda g: g),
        (lambda p: [{"params": p}], lambda g: [g]),
        (lambda p: fastopt.groups(p, {"**": {}}), lambda g: g),
    ]
    for wrap, nested in forms:
        param = np.zeros(3)
        opt = fastopt.SGD(wrap(param), lr=1.0, backend=backend)
        for trainable, grad in [(True, np.ones(3)), (False, np.ones(3)), (False, None)] * 2:
            opt.param_groups[0]["trainable"] = trainable
            opt.step(nested(grad))
        np.testing.assert_array_equal(param, [-2, -2, -2])
        assert opt.step_count == 6
        assert next(iter(opt.state_dict()["state"].values()))["step"] == 2


@each_backend
def test_an_empty_branch_is_held_too(backend: str) -> None:
    params = {"a": np.ones(2), "b": np.ones(2), "none": []}
    opt = fastopt.SGD(fastopt.groups(params, {"b": {"trainable": False}}), backend=backend)
    opt.step({"a": np.ones(2), "b": None, "none": []})
    with pytest.raises(ValueError, match="grads must be nested"):
        opt.step({"a": np.ones(2), "b": None, "none": None})


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_group_is_frozen_whose_settings_have_changed_less_often_than_others(backend: str) -> None:
    params = [np.zeros(2), np.zeros(2)]
    opt = fastopt.SGD([{"params": p} for p in params], lr=0.5, backend=backend)
    for _ in range(3):
        opt.param_groups[0]["maximize"] = False
    opt.step([np.ones(2)] * 2)
    opt.param_groups[1]["trainable"] = False
    opt.step([np.ones(2)] * 2)
    np.testing.assert_array_equal(params, [[-1.0, -1.0], [-0.5, -0.5]])
