"""Settings by pattern: which parameters they reach, and that they are groups like all others."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.param_groups import matches
from fastopt.core.tree import Tree
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant
from helpers.vectors import VECTORS, Vector, run, worst

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.complex64])
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
fixed = settings(max_examples=300)


# Which names a pattern stands for ----------------------------------------------------------------

MATCHES = {
    "layers.0.W": ["layers.0.W", "layers/0/W"],
    "layers.*.W": ["layers.0.W", "layers.10.W"],
    "layers/*/W": ["layers.0.W", "layers.10.W"],
    "layers.?.W": ["layers.0.W"],
    "layers.[01].*": ["layers.0.W", "layers.0.b", "layers.1.b"],
    "layers.[!0].*": ["layers.1.b"],
    "**/b": ["b", "layers.0.b", "layers.1.b", "deep.er.b"],
    "**": ["W", "b", "layers.0.b", "deep.er.b", "params"],
    "layers.**": ["layers.0.W", "layers", "layers.0"],
    "layers.**.b": ["layers.b", "layers.0.b"],
    "**.layers.**": ["layers.0", "net.layers.0.W", "layers"],
    "mlp/linear_*.w": ["mlp/linear_0.w", "mlp.linear_1.w"],
    "W*": ["W", "W1"],
    "*": ["W", "params"],
}
MATCHES_NOT = {
    "*": ["layers.0", "a/b"],
    "layers.*": ["layers", "layers.0.W"],
    "**/b": ["bb", "b.W", "layers.0.B"],
    "W": ["w", "W.0", "W1"],
    "layers.**.b": ["layers.0.W", "b"],
    "layers.?.W": ["layers.10.W"],
    "": ["W"],
    "[": ["W"],
    "W.": ["W"],
}


@pytest.mark.parametrize("pattern", MATCHES)
def test_a_pattern_stands_for(pattern: str) -> None:
    assert [name for name in MATCHES[pattern] if not matches(pattern, name)] == []


@pytest.mark.parametrize("pattern", MATCHES_NOT)
def test_a_pattern_does_not_stand_for(pattern: str) -> None:
    assert [name for name in MATCHES_NOT[pattern] if matches(pattern, name)] == []


def regular_expression(pattern: str) -> str:
    """Return what a pattern says, for names in which every level ends with a slash."""
    signs = {"*": "[^/]*", "?": "[^/]"}
    levels = re.split(r"[./]", pattern)
    return "".join(
        "(?:[^/]*/)*" if level == "**" else "".join(signs.get(c, re.escape(c)) for c in level) + "/"
        for level in levels
    )


level_of_name = st.text("ab0", max_size=3)
level_of_pattern = st.one_of(st.just("**"), st.text("ab0*?", max_size=3), st.just("*"))


@fixed
@given(
    pattern=st.lists(level_of_pattern, min_size=1, max_size=5),
    name=st.lists(level_of_name, min_size=1, max_size=5),
    separator=st.sampled_from("./"),
)
def test_matching_equals_a_regular_expression(
    pattern: list[str], name: list[str], separator: str
) -> None:
    written = separator.join(pattern)
    expected = re.fullmatch(regular_expression(written), "/".join(name) + "/") is not None
    assert matches(written, ".".join(name)) == expected


def zeros(*shape: int) -> Array:
    return np.zeros(shape)


def small_tree() -> dict[str, Any]:
    return {
        "embed": {"W": zeros(3, 2)},
        "layers": [{"W": zeros(2, 2), "b": zeros(2)}, {"W": zeros(2, 2), "b": zeros(2)}],
    }


def members(opt: Optimizer) -> list[list[str]]:
    return [list(group["params"]) for group in opt.param_groups]


def test_each_pattern_is_a_group_and_the_rest_is_the_first() -> None:
    params = small_tree()
    patterns = {"**/b": {"weight_decay": 0}, "embed.*": {"lr": 1e-4}}
    opt = fastopt.Adam(fastopt.groups(params, patterns), lr=1e-3, weight_decay=0.5)
    assert members(opt) == [
        ["layers.0.W", "layers.1.W"],
        ["layers.0.b", "layers.1.b"],
        ["embed.W"],
    ]
    assert [group["lr"] for group in opt.param_groups] == [1e-3, 1e-3, 1e-4]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.5, 0.0, 0.5]
    assert opt.param_groups[2]["params"]["embed.W"] is params["embed"]["W"]
    assert opt.lr == 1e-3


def test_the_first_match_counts_alone() -> None:
    patterns = {"layers.0.*": {"lr": 0.5}, "**/b": {"weight_decay": 0.25}}
    opt = fastopt.SGD(fastopt.groups(small_tree(), patterns), lr=1.0)
    assert members(opt)[1:] == [["layers.0.W", "layers.0.b"], ["layers.1.b"]]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.0, 0.0, 0.25]


def test_groups_that_hold_nothing_do_not_exist() -> None:
    opt = fastopt.SGD(fastopt.groups(small_tree(), {"**": {"lr": 0.5}}), lr=1.0)
    assert len(opt.param_groups) == 1
    assert opt.lr == 0.5
    none = fastopt.SGD(fastopt.groups(small_tree(), {}), lr=1.0)
    assert (len(none.param_groups), none.lr) == (1, 1.0)


def test_one_array_is_called_params() -> None:
    opt = fastopt.SGD(fastopt.groups(zeros(3), {"params": {"lr": 0.5}}))
    assert opt.lr == 0.5
    opt.step(np.ones(3))
    assert list(opt.state_dict()["state"]) == ["params"]


NOTHING: dict[str, list[str]] = {
    "layer.*.W": ["'layer.*.W' matches no parameter", "closest", "'layers.0.W'", "'layers.1.W'"],
    "layers/2/b": ["matches no parameter", "'layers.1.b'"],
    "embed": ["branch", "'embed.**'"],
    "layers.0": ["branch", "'layers.0.**'"],
    "": ["matches no parameter"],
    "**/B": ["matches no parameter", "'layers.0.b'"],
}


@pytest.mark.parametrize("pattern", NOTHING)
def test_a_pattern_that_matches_nothing_is_refused_with_the_closest_names(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern") as caught:
        fastopt.groups(small_tree(), {"**/W": {}, pattern: {"lr": 0.5}})
    for part in NOTHING[pattern]:
        assert part in str(caught.value)


def test_a_pattern_that_earlier_ones_leave_nothing_for_is_refused() -> None:
    with pytest.raises(ValueError, match="narrower") as caught:
        fastopt.groups(small_tree(), {"layers.**": {"lr": 0.5}, "**/b": {"weight_decay": 0.0}})
    for part in ("'**/b'", "'layers.**'", "'layers.0.b'"):
        assert part in str(caught.value)


WRONG: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "groups_already": (lambda p: fastopt.groups([{"params": p}], {}), TypeError, "groups already"),
    "twice": (lambda p: fastopt.groups(fastopt.groups(p, {}), {}), TypeError, "groups already"),
    "settings_list": (lambda p: fastopt.groups(p, ["**"]), TypeError, "settings must be a dict"),
    "settings_none": (lambda p: fastopt.groups(p, None), TypeError, "settings must be a dict"),
    "number": (lambda p: fastopt.groups(p, {3: {}}), TypeError, "pattern must be a string"),
    "no_dict": (lambda p: fastopt.groups(p, {"**": 0.1}), TypeError, "'\\*\\*' must have a dict"),
    "params": (lambda p: fastopt.groups(p, {"**": {"params": p}}), TypeError, "with 'params'"),
    "no_array": (lambda p: fastopt.groups({**p, "n": 1}, {"**": {}}), TypeError, 'params\\["n"\\]'),
    "no_params": (lambda p: fastopt.groups({}, {"**": {}}), ValueError, "holds no array"),
    "nothing": (lambda p: fastopt.SGD(fastopt.groups({}, {})), ValueError, "no parameters"),
    "in_a_list": (lambda p: fastopt.SGD([fastopt.groups(p, {})]), TypeError, "by itself"),
    "in_a_group": (
        lambda p: fastopt.SGD([{"params": fastopt.groups(p, {})}]),
        TypeError,
        "by itself",
    ),
    "unknown": (
        lambda p: fastopt.SGD(fastopt.groups(p, {"**/b": {"weight_decy": 0}})),
        TypeError,
        "SGD, pattern '\\*\\*/b' has no .*'weight_decy'; did you mean 'weight_decay'",
    ),
    "out_of_range": (
        lambda p: fastopt.SGD(fastopt.groups(p, {"**/b": {"lr": -1.0}})),
        ValueError,
        "SGD, pattern '\\*\\*/b': lr must be",
    ),
    "eps_of_a_group": (
        lambda p: fastopt.Adam(
            fastopt.groups({**p, "h": zeros(1).astype("f4")}, {"h": {"eps": 1e-46}})
        ),
        ValueError,
        "eps.*underflow.*float32",
    ),
    "same_array": (
        lambda p: fastopt.SGD(fastopt.groups([p["embed"]["W"]] * 2, {"0": {"lr": 1.0}})),
        ValueError,
        "params\\[0\\] and params\\[1\\] are the same array",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_groups_is_refused(name: str) -> None:
    call, kind, said = WRONG[name]
    with pytest.raises(kind, match=said):
        call(small_tree())


def test_settings_are_copied() -> None:
    own = {"lr": 0.5}
    patterns = {"**/b": own}
    made = fastopt.groups(small_tree(), patterns)
    own["lr"] = 0.25
    patterns["**/W"] = {}
    assert [group["lr"] for group in fastopt.SGD(made, lr=1.0).param_groups] == [1.0, 0.5]


# They step as a list of groups does --------------------------------------------------------------

SPLIT: dict[str, dict[str, Any]] = {
    "*/b": {"weight_decay": 0.0, "lr": 0.25},
    "turned": {"maximize": True},
}


def arrays(dtype: Any, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "W": rng.standard_normal((3, 4)).astype(dtype),
        "some": rng.standard_normal((6, 5)).astype(np.float64)[::2, ::-1],
        "0/b": rng.standard_normal(7).astype(dtype),
        "1/b": np.array(rng.standard_normal(), dtype),
        "turned": rng.standard_normal((4, 6)).astype(dtype)[::2].T,
        "none": np.zeros((0, 3), dtype),
    }


def as_tree(given: dict[str, Any]) -> dict[str, Any]:
    made = {key: given[key] for key in ("W", "some", "turned", "none")}
    return made | {"0": {"b": given["0/b"]}, "1": {"b": given["1/b"]}}


def as_list(given: dict[str, Any]) -> list[dict[str, Any]]:
    rest = {key: given[key] for key in ("W", "some", "none")}
    return [rest, {"0": given["0/b"], "1": given["1/b"]}, {"turned": given["turned"]}]


def both(
    variant: Variant, dtype: Any, **options: Any
) -> tuple[dict[str, Array], Optimizer, dict[str, Array], Optimizer]:
    """Return parameters in groups by pattern and in a list of groups, with the same settings."""
    one, two = arrays(dtype, 0), arrays(dtype, 0)
    by_pattern = variant(fastopt.groups(as_tree(one), SPLIT), **options)
    owns: list[dict[str, Any]] = [{}, *SPLIT.values()]
    listed = [{"params": tree, **own} for tree, own in zip(as_list(two), owns, strict=True)]
    return one, by_pattern, two, variant(listed, **options)


def state_of(opt: Optimizer, turned: Callable[[str], str] = str) -> dict[str, Any]:
    return {turned(name): entry for name, entry in opt.state_dict()["state"].items()}


@each_backend
@each_dtype
@each_variant
@pytest.mark.parametrize("policy", [{}, {"max_grad_norm": 0.5, "on_nonfinite": "skip"}])
def test_they_end_in_the_bits_of_a_list_of_groups(
    variant: Variant, dtype: Any, backend: str, policy: Any
) -> None:
    one, by_pattern, two, listed = both(variant, dtype, backend=backend, **policy)
    for step in range(1, 9):
        grads: dict[str, Any] = arrays(dtype, step)
        for missing in {2: ["W"], 3: ["0/b", "1/b"], 5: ["turned"], 6: list(grads)}.get(step, []):
            grads[missing] = None
        if step == 4 and policy:
            grads["0/b"][3] = math.nan
        if step == 5:
            by_pattern.param_groups[1]["lr"] = listed.param_groups[1]["lr"] = 0.125
        by_pattern.step(as_tree(grads), grad_scale=0.5)
        listed.step(as_list(grads), grad_scale=0.5)
        assert by_pattern.grad_norm == listed.grad_norm or step == 4
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name, strict=True)
    names = {"0.W": "W", "0.some": "some", "0.none": "none", "2.turned": "turned"}
    names |= {"1.0": "0.b", "1.1": "1.b"}
    np.testing.assert_equal(state_of(by_pattern), state_of(listed, names.__getitem__))
    assert by_pattern.step_count == listed.step_count == (7 if policy else 8)
    assert by_pattern.skipped_steps == listed.skipped_steps == (1 if policy else 0)


GROUPED = [vector for vector in VECTORS if vector.info["groups"]]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("vector", GROUPED, ids=str)
def test_recorded_groups_are_met_by_pattern(vector: Vector, backend: str) -> None:
    def make(groups: Any, **options: Any) -> Optimizer:
        own = [{name: v for name, v in group.items() if name != "params"} for group in groups]
        patterns = {f"{number}.*": settings_of for number, settings_of in enumerate(own)}
        tree = [group["params"] for group in groups]
        optimizer: Any = getattr(fastopt, vector.info["optimizer"])
        made: Optimizer = optimizer(fastopt.groups(tree, patterns), **options)
        assert len(made.param_groups) == len(groups) == 3
        return made

    assert worst(vector, run(vector, np.float64, backend, make)) <= 1e-11


@each_backend
def test_the_norm_is_that_of_one_tree(backend: str) -> None:
    one, other = arrays(np.float32, 0), arrays(np.float32, 0)
    patterns = {"**/b": {"lr": 0.25}}
    opt = fastopt.Adam(fastopt.groups(as_tree(one), patterns), max_grad_norm=1.0, backend=backend)
    plain = fastopt.Adam(as_tree(other), max_grad_norm=1.0, backend=backend)
    opt.step(as_tree(arrays(np.float32, 1)))
    plain.step(as_tree(arrays(np.float32, 1)))
    assert opt.grad_norm == pytest.approx(plain.grad_norm, rel=1e-15)


@each_backend
def test_a_step_flattens_the_gradients_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    match = Tree.match

    def counting(self: Tree, grads: Any, root: str = "grads") -> list[Any]:
        calls.append(grads)
        return match(self, grads, root)

    monkeypatch.setattr(Tree, "match", counting)
    _, opt, _, _ = both(VARIANTS[0], np.float32, backend=backend)
    assert len(opt.param_groups) == 3
    for step in range(1, 4):
        opt.step(as_tree(arrays(np.float32, step)))
        assert len(calls) == step


@each_backend
def test_errors_name_the_place_in_the_one_tree(backend: str) -> None:
    params = small_tree()
    opt = fastopt.SGD(fastopt.groups(params, {"**/b": {"lr": 0.5}}), backend=backend)
    grads = small_tree()
    for bad, kind, said in [
        (zeros(3), ValueError, r'grads\["layers"\]\[1\]\["b"\] must have the shape of params\['),
        (1.0, TypeError, r'grads\["layers"\]\[1\]\["b"\]'),
        (params["layers"][0]["b"], ValueError, r'shares memory with params\["layers"\]\[0\]'),
    ]:
        grads["layers"][1]["b"] = bad
        with pytest.raises(kind, match=said):
            opt.step(grads)
    for tree in ([small_tree()], small_tree()["layers"], None, {"embed": None}):
        with pytest.raises(ValueError, match="grads must be nested as the parameters"):
            opt.step(tree)
    opt.on_nonfinite = "raise"
    grads["layers"][1]["b"] = np.full(2, math.nan)
    with pytest.raises(FloatingPointError, match=r'grads\["layers"\]\[1\]\["b"\]'):
        opt.step(grads)
    assert opt.step_count == 0


@pytest.mark.parametrize("asked", CPU_BACKENDS)
def test_the_tree_can_change_before_the_optimizer_is_made(asked: str) -> None:
    params = small_tree()
    made = fastopt.groups(params, {"**/b": {"lr": 0.5}})
    params["layers"].append({"W": zeros(2), "b": zeros(1)})
    opt = fastopt.SGD(made, backend=asked)
    assert members(opt)[1] == ["layers.0.b", "layers.1.b", "layers.2.b"]


# State goes by the names of the tree -------------------------------------------------------------

PATTERNS: dict[str, dict[str, Any]] = {"*.b": {"lr": 0.25}, "turned": {"weight_decay": 0.125}}


def trained(
    variant: Variant, patterns: dict[str, Any] | None, backend: str, stop: int = 4, **options: Any
) -> tuple[dict[str, Array], Optimizer]:
    params = arrays(np.float32, 0)
    given = as_tree(params) if patterns is None else fastopt.groups(as_tree(params), patterns)
    opt = variant(given, backend=backend, **options)
    for step in range(stop):
        opt.step(as_tree(arrays(np.float32, 10 + step)))
    return params, opt


@each_backend
@each_variant
def test_resuming_ends_in_the_bits_of_going_on(variant: Variant, backend: str) -> None:
    params, opt = trained(variant, PATTERNS, backend)
    saved = opt.state_dict()
    later = arrays(np.float32, 0)  # in the same order in memory, which sums go by
    for name, array in params.items():
        later[name][...] = array
    resumed = variant(fastopt.groups(as_tree(later), PATTERNS), backend=backend)
    resumed.load_state_dict(saved)
    for step in range(3):
        for one in (opt, resumed):
            one.step(as_tree(arrays(np.float32, 20 + step)))
    np.testing.assert_equal(later, params)
    np.testing.assert_equal(resumed.state_dict(), opt.state_dict())


def test_names_have_no_group_in_them_and_groups_have_the_names() -> None:
    _, opt = trained(VARIANTS[1], PATTERNS, "numpy")
    saved = opt.state_dict()
    assert set(saved["state"]) == {"W", "some", "none", "0.b", "1.b", "turned"}
    assert [group["params"] for group in saved["groups"]] == [
        ["W", "none", "some"],
        ["0.b", "1.b"],
        ["turned"],
    ]
    plain = trained(VARIANTS[1], {}, "numpy")[1].state_dict()
    assert "params" not in plain["groups"][0]


@each_backend
@each_variant
@pytest.mark.parametrize("way", ["into_groups", "out_of_groups", "into_other_groups"])
def test_state_goes_on_by_name_whatever_the_groups(
    variant: Variant, way: str, backend: str
) -> None:
    before, after = {
        "into_groups": (None, PATTERNS),
        "out_of_groups": (PATTERNS, None),
        "into_other_groups": (PATTERNS, {"W": {"lr": 0.75}, "**/b": {"lr": 0.5}}),
    }[way]
    _, source = trained(variant, before, backend, weight_decay=0.5)
    _, target = trained(variant, after, backend, stop=1, lr=0.0625)
    mine = target.state_dict()["groups"]
    target.load_state_dict(source.state_dict())
    np.testing.assert_equal(state_of(target), state_of(source))
    assert target.step_count == source.step_count
    assert target.state_dict()["groups"] == mine


@each_backend
def test_settings_go_to_the_same_parameters_whatever_the_order_of_the_patterns(
    backend: str,
) -> None:
    _, source = trained(VARIANTS[0], PATTERNS, backend)
    source.param_groups[1]["lr"] = 0.75
    turned = dict(reversed(PATTERNS.items()))
    _, target = trained(VARIANTS[0], turned, backend, stop=0)
    target.load_state_dict(source.state_dict())
    lr = {tuple(group["params"]): group["lr"] for group in target.param_groups}
    assert lr == {("W", "none", "some"): 0.1, ("turned",): 0.1, ("0.b", "1.b"): 0.75}


def test_a_schedule_of_a_group_stays() -> None:
    def lr(t: int) -> float:
        return 0.5 / (t + 1)

    _, source = trained(VARIANTS[0], PATTERNS, "numpy")
    _, target = trained(VARIANTS[0], {**PATTERNS, "*.b": {"lr": lr}}, "numpy", stop=0)
    target.load_state_dict(source.state_dict())
    assert target.param_groups[1]["lr"] is lr
    saved = target.state_dict()
    assert saved["groups"][1]["lr"] is None
    target.load_state_dict(saved)
    assert target.param_groups[1]["lr"] is lr


DAMAGED: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "no_names": lambda groups: groups[1].pop("params"),
    "names_none": lambda groups: groups[1].update(params=None),
    "names_text": lambda groups: groups[1].update(params="0.b"),
    "names_numbers": lambda groups: groups[1].update(params=[0, 1]),
    "a_name_less": lambda groups: groups[1]["params"].pop(),
    "a_name_twice": lambda groups: groups[1]["params"].append("W"),
    "a_foreign_name": lambda groups: groups[1]["params"].append("X"),
    "a_group_less": lambda groups: groups.pop(),
    "a_group_twice": lambda groups: groups.append(groups[1]),
    "bad_number": lambda groups: groups[1].update(lr=-1.0),
    "unknown": lambda groups: groups[1].update(lrr=1.0),
    "lacks_lr": lambda groups: groups[1].pop("lr"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_groups_are_refused_and_change_nothing(name: str) -> None:
    _, opt = trained(VARIANTS[1], PATTERNS, "numpy")
    saved = copy.deepcopy(opt.state_dict())
    DAMAGED[name](saved["groups"])
    opt.step(as_tree(arrays(np.float32, 30)))
    before = opt.state_dict()
    with pytest.raises(CheckpointError, match="groups"):
        opt.load_state_dict(saved)
    np.testing.assert_equal(opt.state_dict(), before)


def test_state_goes_from_a_list_of_groups_to_groups_by_pattern_where_names_tell() -> None:
    one, two = ({"W": np.ones(2), "b": np.ones(3)} for _ in range(2))
    by_pattern = fastopt.Adam(fastopt.groups(one, {"b": {"lr": 0.5}}), lr=0.25)
    by_pattern.step({"W": np.ones(2), "b": np.ones(3)})
    listed = fastopt.Adam([{"params": {"b": two["b"]}}, {"params": {"W": two["W"]}}])
    listed.load_state_dict(by_pattern.state_dict())
    assert [group["lr"] for group in listed.param_groups] == [0.5, 0.25]
    found, wanted = listed.state_dict()["state"], by_pattern.state_dict()["state"]
    np.testing.assert_equal(found, {"0.b": wanted["b"], "1.W": wanted["W"]})


@each_backend
def test_bounds_that_are_arrays_go_with_groups_by_pattern(backend: str) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(4)}
    bounds = (None, {"a": np.full(2, 1.0), "b": np.full(3, 2.0), "c": np.full(4, 3.0)})
    opt = fastopt.SGD(
        fastopt.groups(params, {"c": {"bounds": bounds}, "b": {"bounds": bounds}}),
        lr=10.0,
        backend=backend,
    )
    opt.step({name: -np.ones(param.shape) for name, param in params.items()})
    assert [param.max() for param in params.values()] == [10.0, 2.0, 3.0]


def test_a_run_with_a_frozen_group_by_pattern_is_saved(tmp_path: Path) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    opt = fastopt.SGD(fastopt.groups(params, {"b": {"trainable": False}}), lr=1.0)
    opt.step({"a": np.ones(2), "b": None})
    opt.save(tmp_path / "run")
    params["a"][...] = params["b"][...] = 7.0
    opt.load(tmp_path / "run")
    assert (params["a"].tolist(), params["b"].tolist()) == ([-1.0] * 2, [0.0] * 3)
