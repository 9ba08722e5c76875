"""What an optimizer remembers: resumed in the same bits, by name, never cast, all or nothing."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.buckets import memory_names
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.around import leaves
from helpers.variants import CPU_BACKENDS, VARIANT_OF, VARIANTS, Variant

Tree = dict[str, Any]
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def make_params(dtype: Any) -> Tree:
    rng = np.random.default_rng(0)
    return {
        "W": rng.standard_normal((3, 4)).astype(dtype),
        "layers": [rng.standard_normal(5).astype(dtype), np.array(0.5, dtype)],
        "turned": rng.standard_normal((4, 6)).astype(dtype)[::2].T,
        "none": np.zeros((0, 2), dtype),
    }


def copied(tree: Any) -> Any:
    if isinstance(tree, np.ndarray):
        return tree.copy()
    if isinstance(tree, dict):
        return {name: copied(part) for name, part in tree.items()}
    return [copied(part) for part in tree]


def make_grads(dtype: Any, step: int) -> Tree:
    """Return a step's gradients; now and then one is missing."""
    rng = np.random.default_rng(100 + step)
    return {
        "W": None if step == 2 else rng.standard_normal((3, 4)).astype(dtype),
        "layers": [rng.standard_normal(5).astype(dtype), np.array(rng.standard_normal(), dtype)],
        "turned": None if step % 3 == 1 else rng.standard_normal((6, 2)).astype(dtype),
        "none": np.zeros((0, 2), dtype),
    }


def steps(opt: Optimizer, dtype: Any, start: int, stop: int) -> None:
    for step in range(start, stop):
        opt.step(make_grads(dtype, step))


def assert_same_end(one: tuple[Tree, Optimizer], two: tuple[Tree, Optimizer]) -> None:
    for first, second in zip(leaves(one[0]), leaves(two[0]), strict=True):
        np.testing.assert_array_equal(first, second, strict=True)
    np.testing.assert_equal(one[1].state_dict(), two[1].state_dict())


# Resuming ----------------------------------------------------------------------------------------


@each_backend
@each_dtype
@each_variant
def test_resuming_ends_in_the_bits_of_going_on(variant: Variant, dtype: Any, backend: str) -> None:
    settings = {"weight_decay": 0.125, "backend": backend}
    whole = make_params(dtype)
    straight = variant(whole, **settings)
    steps(straight, dtype, 0, 10)
    first = make_params(dtype)
    opt = variant(first, **settings)
    steps(opt, dtype, 0, 5)
    later = copied(first)
    later["turned"] = later["turned"].copy("F")  # sums go in the order of the memory
    resumed = variant(later, **settings)
    resumed.load_state_dict(opt.state_dict())
    steps(resumed, dtype, 5, 10)
    assert_same_end((whole, straight), (later, resumed))


@each_dtype
@each_variant
@pytest.mark.skipif(len(CPU_BACKENDS) < 2, reason="numba is not installed")
def test_resuming_on_another_backend_ends_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    whole = make_params(dtype)
    straight = variant(whole, backend="numpy")
    steps(straight, dtype, 0, 12)
    params, saved = make_params(dtype), None
    for number, backend in enumerate(("numpy", "numba", "numpy")):
        params = copied(params)
        params["turned"] = params["turned"].copy("F")  # sums go in the order of the memory
        opt = variant(params, backend=backend)
        if saved is not None:
            opt.load_state_dict(saved)
        steps(opt, dtype, 4 * number, 4 * number + 4)
        saved = opt.state_dict()
    assert_same_end((whole, straight), (params, opt))


@each_backend
@each_variant
def test_a_schedule_goes_on_where_it_was(variant: Variant, backend: str) -> None:
    def lr(t: int) -> float:
        return 0.1 / (1 + t)

    whole, first = make_params(np.float64), make_params(np.float64)
    straight = variant(whole, lr=lr, backend=backend)
    steps(straight, np.float64, 0, 8)
    opt = variant(first, lr=lr, backend=backend)
    steps(opt, np.float64, 0, 4)
    saved = opt.state_dict()
    later = copied(first)
    later["turned"] = later["turned"].copy("F")  # sums go in the order of the memory
    resumed = variant(later, lr=lr, backend=backend)
    resumed.load_state_dict(saved)
    assert resumed.lr == lr(4)
    steps(resumed, np.float64, 4, 8)
    assert_same_end((whole, straight), (later, resumed))
    assert saved["groups"][0]["lr"] is None


@each_variant
def test_equal_runs_have_equal_state(variant: Variant) -> None:
    states = []
    for _ in range(2):
        opt = variant(make_params(np.float32))
        steps(opt, np.float32, 0, 3)
        states.append(opt.state_dict())
    np.testing.assert_equal(*states)


@each_backend
def test_hyperparameters_are_taken_over_with_the_state(backend: str) -> None:
    source = fastopt.AdamW(np.ones(2), 0.5, betas=(0.5, 0.75), weight_decay=0.25, backend=backend)
    source.step(np.ones(2))
    target = fastopt.AdamW(np.ones(2), backend=backend)
    target.load_state_dict(source.state_dict())
    plain = {name: value for name, value in target.param_groups[0].items() if name != "params"}
    assert plain == source.state_dict()["groups"][0]
    assert target.lr == 0.5


@each_backend
def test_a_schedule_of_the_optimizer_stays_when_a_number_was_saved(backend: str) -> None:
    saved = fastopt.SGD(np.ones(2), 0.5, backend=backend).state_dict()
    opt = fastopt.SGD(np.ones(2), lambda t: 0.25, backend=backend)
    opt.load_state_dict(saved)
    assert opt.lr == 0.25


# What it looks like ------------------------------------------------------------------------------


@each_backend
@each_variant
def test_a_state_dict_is_plain_and_says_whose_it_is(variant: Variant, backend: str) -> None:
    opt = variant(make_params(np.float32), backend=backend)
    steps(opt, np.float32, 0, 3)
    saved = opt.state_dict()
    memory = ["memory"] if memory_names(variant.rule, "optimizer") else []
    parts = ["fastopt", "optimizer", "step_count", "groups", "state", *memory, "policy"]
    assert list(saved) == parts
    assert all(type(value) is float for value in saved.get("memory", {}).values())
    assert saved["fastopt"] == fastopt.__version__
    assert saved["optimizer"] == type(opt).__name__
    assert (type(saved["step_count"]), saved["step_count"]) == (int, 3)
    assert type(saved["groups"]) is list
    assert set(saved["state"]) == {"W", "layers.0", "layers.1", "turned", "none"}
    counts = {name: entry["step"] for name, entry in saved["state"].items()}
    assert counts == {"W": 2, "layers.0": 3, "layers.1": 3, "turned": 2, "none": 3}
    for entry in saved["state"].values():
        assert all(type(value) is np.ndarray for name, value in entry.items() if name != "step")
        assert all(name.isidentifier() for name in entry)
    for group in saved["groups"]:
        plain = (float, bool, int, str, tuple, type(None))
        assert all(type(value) in plain for value in group.values())
    pickle.loads(pickle.dumps(saved))


def test_the_state_of_groups_is_named_by_group_and_path() -> None:
    opt = fastopt.SGD([{"params": np.ones(1)}, {"params": {"a": [np.ones(2)]}}], momentum=0.5)
    assert set(opt.state_dict()["state"]) == {"0.params", "1.a.0"}
    assert len(opt.state_dict()["groups"]) == 2


@each_backend
@each_variant
def test_a_state_dict_is_a_copy_and_so_is_what_is_loaded(variant: Variant, backend: str) -> None:
    params = make_params(np.float64)
    opt = variant(params, backend=backend)
    steps(opt, np.float64, 0, 2)
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    steps(opt, np.float64, 2, 4)
    np.testing.assert_equal(saved, kept)
    others = [variant(make_params(np.float64), backend=backend) for _ in range(2)]
    for other in others:
        other.load_state_dict(saved)
    steps(others[0], np.float64, 2, 4)
    np.testing.assert_equal(saved, kept)
    np.testing.assert_equal(others[1].state_dict(), kept)
    for entry in saved["state"].values():
        for slot in entry.keys() - {"step"}:
            entry[slot][...] = 7
    np.testing.assert_equal(others[1].state_dict(), kept)


@each_backend
@each_variant
def test_state_is_matched_by_name_and_not_by_order(variant: Variant, backend: str) -> None:
    first = {"b": np.ones(3), "a": np.full(3, 2.0), "c": np.ones(2)}
    opt = variant(first, backend=backend)
    grads = {"a": np.ones(3), "b": np.full(3, -5.0), "c": np.ones(2)}
    opt.step(grads)
    saved = opt.state_dict()
    saved["state"] = dict(reversed(saved["state"].items()))
    turned = OrderedDict((name, first[name].copy()) for name in ("c", "a", "b"))
    other = variant(turned, backend=backend)
    other.load_state_dict(saved)
    np.testing.assert_equal(other.state_dict()["state"], opt.state_dict()["state"])
    opt.step(grads)
    other.step(OrderedDict((name, grads[name]) for name in turned))
    for name in first:
        np.testing.assert_array_equal(first[name], turned[name])


# Refusals ----------------------------------------------------------------------------------------


def trained(variant: Variant, backend: str) -> tuple[Tree, Optimizer]:
    params: Tree = {"W": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32), "s": np.ones(2)}
    opt = variant(params, backend=backend)
    opt.step({name: param * 0.5 for name, param in params.items()})
    return params, opt


def refuses(
    opt: Optimizer, saved: Any, *parts: str, strict: bool = True, nothing_changes: bool = True
) -> None:
    before = opt.state_dict()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is looked at below
        opt.load_state_dict(saved, strict=strict)
    after = opt.state_dict()
    np.testing.assert_equal(after, before)
    assert type(caught.value) is CheckpointError, repr(caught.value)
    for part in parts:
        assert part in str(caught.value)


def of(saved: dict[str, Any], *place: Any, value: Any) -> dict[str, Any]:
    """Return a copy of a state_dict in which one thing is another."""
    changed = copy.deepcopy(saved)
    target: Any = changed
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    return changed


def without(saved: dict[str, Any], *place: Any) -> dict[str, Any]:
    """Return a copy of a state_dict in which one thing is missing."""
    changed = copy.deepcopy(saved)
    target: Any = changed
    for name in place[:-1]:
        target = target[name]
    del target[place[-1]]
    return changed


@each_backend
@each_variant
def test_the_state_of_another_class_is_refused(variant: Variant, backend: str) -> None:
    _, opt = trained(variant, backend)
    for other in VARIANTS:
        _, given = trained(other, backend)
        if type(given) is not type(opt):
            names = type(given).__name__, type(opt).__name__
            refuses(opt, given.state_dict(), *names)


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda s: None,
    "text": lambda s: "state",
    "list": lambda s: list(s),
    "empty": lambda s: {},
    "no_class": lambda s: without(s, "optimizer"),
    "class_number": lambda s: of(s, "optimizer", value=3),
    "no_count": lambda s: without(s, "step_count"),
    "count_negative": lambda s: of(s, "step_count", value=-1),
    "count_float": lambda s: of(s, "step_count", value=1.0),
    "count_text": lambda s: of(s, "step_count", value="1"),
    "count_bool": lambda s: of(s, "step_count", value=True),
    "count_huge": lambda s: of(s, "step_count", value=2**63),
    "count_array": lambda s: of(s, "step_count", value=np.array([1])),
    "no_groups": lambda s: without(s, "groups"),
    "groups_dict": lambda s: of(s, "groups", value={"lr": 0.1}),
    "groups_none": lambda s: of(s, "groups", value=[]),
    "groups_two": lambda s: of(s, "groups", value=s["groups"] * 2),
    "group_text": lambda s: of(s, "groups", value=["lr"]),
    "group_unknown_option": lambda s: of(s, "groups", 0, "weight_decy", value=0.1),
    "group_params": lambda s: of(s, "groups", 0, "params", value=0.1),
    "group_bad_number": lambda s: of(s, "groups", 0, "lr", value=-1.0),
    "group_nan": lambda s: of(s, "groups", 0, "lr", value=float("nan")),
    "group_bad_type": lambda s: of(s, "groups", 0, "maximize", value="no"),
    "group_key_number": lambda s: of(s, "groups", 0, 3, value=0.1),
    "group_lacks_lr": lambda s: without(s, "groups", 0, "lr"),
    "no_state": lambda s: without(s, "state"),
    "state_list": lambda s: of(s, "state", value=[]),
    "state_none": lambda s: of(s, "state", value=None),
    "no_entry": lambda s: without(s, "state", "b"),
    "entry_too_many": lambda s: of(s, "state", "x", value=s["state"]["b"]),
    "entry_number_name": lambda s: of(s, "state", 5, value=s["state"]["b"]),
    "entry_none": lambda s: of(s, "state", "b", value=None),
    "entry_text": lambda s: of(s, "state", "b", value="array"),
    "entry_no_step": lambda s: without(s, "state", "b", "step"),
    "entry_slot_too_many": lambda s: of(s, "state", "b", "zz", value=np.zeros(3, np.float32)),
    "entry_slot_number": lambda s: of(s, "state", "b", 7, value=np.zeros(3, np.float32)),
    "step_float": lambda s: of(s, "state", "s", "step", value=1.0),
    "step_negative": lambda s: of(s, "state", "s", "step", value=-1),
    "step_bool": lambda s: of(s, "state", "s", "step", value=True),
    "step_none": lambda s: of(s, "state", "s", "step", value=None),
    "step_array": lambda s: of(s, "state", "s", "step", value=np.array([1, 2])),
    "step_huge": lambda s: of(s, "state", "s", "step", value=2**63),
    "step_immense": lambda s: of(s, "state", "s", "step", value=10**400),
}
SLOT_DAMAGE: dict[str, Callable[[Array], Any]] = {
    "missing_axis": lambda a: a[0],
    "transposed": lambda a: np.zeros((3, 2), a.dtype),
    "too_long": lambda a: np.zeros((3, 3), a.dtype),
    "flat": lambda a: a.reshape(-1),
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "integers": lambda a: a.astype(np.int32),
    "objects": lambda a: a.astype(object),
    "other_byte_order": lambda a: a.astype(a.dtype.newbyteorder()),
    "list": lambda a: a.tolist(),
    "number": lambda a: 0.0,
    "none": lambda a: None,
}


@each_backend
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_dict_is_refused_and_changes_nothing(name: str, backend: str) -> None:
    for variant in ("adam", "sgd"):
        _, opt = trained(VARIANT_OF[variant], backend)
        saved = opt.state_dict()
        for _ in range(2):
            opt.step({"W": None, "b": np.ones(3), "s": np.ones(2)})
        refuses(opt, DAMAGE[name](saved))


@each_backend
@pytest.mark.parametrize("name", SLOT_DAMAGE)
@each_variant
def test_state_is_never_cast_or_reshaped(variant: Variant, name: str, backend: str) -> None:
    _, opt = trained(variant, backend)
    saved = opt.state_dict()
    opt.step({"W": np.ones((2, 3)), "b": np.ones(3), "s": np.ones(2)})
    for slot in saved["state"]["W"].keys() - {"step"}:
        if slot in variant.remembered and name in ("missing_axis", "float64"):
            continue  # a number in float64, without an axis
        bad = of(saved, "state", "W", slot, value=SLOT_DAMAGE[name](saved["state"]["W"][slot]))
        refuses(opt, bad, f"W.{slot}")
        refuses(opt, without(saved, "state", "W", slot), "W", slot)
        if not isinstance(bad["state"]["W"][slot], np.ndarray):
            refuses(opt, bad, f"W.{slot}", strict=False)
            continue
        before = opt.state_dict()["state"]["W"]
        report = opt.load_state_dict(bad, strict=False)
        assert [text.partition(":")[2].partition(":")[0] for text in report.mismatched] == [
            f"W.{slot}"
        ]
        after = opt.state_dict()["state"]
        np.testing.assert_equal(after["W"], before)
        np.testing.assert_equal(after["b"], saved["state"]["b"])


@each_backend
def test_strict_false_takes_what_is_there_and_keeps_the_rest(backend: str) -> None:
    params, opt = trained(VARIANT_OF["adam"], backend)
    saved = opt.state_dict()
    opt.step({name: param * 0.5 for name, param in params.items()})
    now = opt.state_dict()
    fewer = without(saved, "state", "b")
    fewer["state"]["x"] = fewer["state"]["W"]
    refuses(opt, fewer, "'b'", "'x'", "strict=False")
    report = opt.load_state_dict(fewer, strict=False)
    assert (report.missing, report.unexpected) == (("state:b",), ("state:x",))
    assert (report.mismatched, report.params, report.step_count) == ((), False, 1)
    after = opt.state_dict()
    np.testing.assert_equal(after["state"]["b"], now["state"]["b"])
    for name in ("W", "s"):
        np.testing.assert_equal(after["state"][name], saved["state"][name])
    assert after["step_count"] == saved["step_count"]


@each_backend
def test_a_change_of_rule_is_refused_and_changes_nothing(backend: str) -> None:
    for one, two in [
        ("sgd", "sgd_momentum"),
        ("sgd_momentum", "sgd"),
        ("adam", "adam_amsgrad"),
        ("adam_amsgrad", "adam"),
        ("rmsprop", "rmsprop_momentum"),
        ("rmsprop_centered", "rmsprop_centered_momentum"),
    ]:
        _, opt = trained(VARIANT_OF[one], backend)
        _, other = trained(VARIANT_OF[two], backend)
        refuses(opt, other.state_dict())
        refuses(opt, other.state_dict(), strict=False)


@each_backend
def test_groups_of_other_parameters_are_refused(backend: str) -> None:
    def made(count: int) -> Optimizer:
        groups = [{"params": np.ones(2)} for _ in range(count)]
        return fastopt.SGD(groups, momentum=0.5, backend=backend)

    for mine, theirs in ((1, 2), (2, 1), (3, 2)):
        refuses(made(mine), made(theirs).state_dict(), f"'{max(mine, theirs) - 1}.params'")
    saved = fastopt.SGD({"a": np.ones(2)}, momentum=0.5, backend=backend).state_dict()
    twice = {**saved, "groups": saved["groups"] * 2}
    refuses(fastopt.SGD({"a": np.ones(2)}, momentum=0.5), twice, "1 parameter groups", "2")


@each_backend
def test_numpy_counters_and_read_only_strided_arrays_are_taken(backend: str) -> None:
    _, opt = trained(VARIANT_OF["adam"], backend)
    saved = opt.state_dict()
    given = copy.deepcopy(saved)
    given["step_count"] = np.int64(1)
    for entry in given["state"].values():
        entry["step"] = np.int32(entry["step"])
        for slot in ("m", "v"):
            entry[slot] = np.asfortranarray(entry[slot])
            entry[slot].flags.writeable = False
    opt.load_state_dict(given)
    np.testing.assert_equal(opt.state_dict(), saved)
    assert type(opt.state_dict()["state"]["W"]["step"]) is int


def test_strict_false_keeps_the_hyperparameters_that_were_not_saved() -> None:
    opt = fastopt.Adam(np.ones(2), lr=0.5, betas=(0.5, 0.75))
    saved = without(opt.state_dict(), "groups", 0, "betas")
    saved["groups"][0]["lr"] = 0.25
    refuses(opt, saved, "betas")
    older = {**saved, "fastopt": "0.0.1"}  # which cannot have saved what it did not know
    assert opt.load_state_dict(older).missing == ("groups[0].betas",)
    opt.lr = 0.5
    assert opt.load_state_dict(saved, strict=False).missing == ("groups[0].betas",)
    assert (opt.lr, opt.param_groups[0]["betas"]) == (0.25, (0.5, 0.75))


@each_backend
@each_variant
def test_state_in_the_units_of_scale_safe_is_refused(variant: Variant, backend: str) -> None:
    """As an earlier version saved it, with a power of two that gradients were multiplied by."""
    opt = variant({"W": np.ones(3), "b": np.ones(2)}, backend=backend)
    opt.step({"W": np.ones(3), "b": np.ones(2)})
    saved = opt.state_dict()
    for entry in saved["state"].values():
        entry["exponent"] = 0
    params = {"W": np.zeros(3), "b": np.zeros(2)}
    other = variant(params, backend=backend)
    other.load_state_dict(saved)
    assert other.step_count == 1
    saved["state"]["W"]["exponent"] = np.int64(-12)
    before = other.state_dict()
    said = r"state:W: it is that of gradients times 2\^-12, .*strict=False.*state_dtype='float64'"
    with pytest.raises(CheckpointError, match=said):
        other.load_state_dict(saved)
    np.testing.assert_equal(other.state_dict(), before)
    report = variant(params, backend=backend).load_state_dict(saved, strict=False)
    assert len(report.mismatched) == 1
    for wrong in (1.5, True, "1", None):
        saved["state"]["W"]["exponent"] = wrong
        with pytest.raises(CheckpointError, match="exponent must be a whole number"):
            other.load_state_dict(saved)
