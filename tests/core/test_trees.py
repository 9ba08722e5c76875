"""Trees of other classes than dict, list and tuple: mappings by key, sequences by position."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import optree
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.tree import Tree
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


class Bunch(dict[str, Any]):
    """A dict with attributes, made of keywords alone as scikit-learn's."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class AttrDict(dict[str, Any]):
    """A dict whose attributes are its entries."""

    def __init__(self, *entries: Any, **more: Any) -> None:
        super().__init__(*entries, **more)
        self.__dict__ = self


class Named(dict[str, Any]):
    """A dict that cannot be made of its entries alone."""

    def __init__(self, name: str, entries: Any) -> None:
        super().__init__(entries)
        self.name = name


class Frozen(Mapping[str, Any]):
    """A mapping that is no dict, and wraps those below it whenever it is asked, as Flax's."""

    def __init__(self, entries: Any) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> Any:
        found = self._entries[key]
        return Frozen(found) if isinstance(found, dict) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Layers(list[Any]):
    pass


class Several(tuple[Any, ...]):
    __slots__ = ()


class Ordered(OrderedDict[str, Any]):
    pass


def defaulted(entries: dict[str, Any]) -> Any:
    made: defaultdict[str, Any] = defaultdict(list)
    made.update(entries)
    return made


MAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Ordered": Ordered,
    "defaultdict": defaulted,
    "Bunch": lambda entries: Bunch(**entries),
    "AttrDict": AttrDict,
    "Named": lambda entries: Named("layer", entries),
    "UserDict": UserDict,
    "Frozen": Frozen,
    "MappingProxyType": MappingProxyType,
}
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "Layers": Layers,
    "Several": Several,
    "UserList": UserList,
    "deque": deque,
}
Kinds = tuple[str, str]
KINDS: list[Kinds] = [
    *itertools.product(MAPPINGS, ["list"]),
    *itertools.product(["dict"], SEQUENCES),
    ("Frozen", "Several"),
    ("Bunch", "Layers"),
]


def tree(kinds: Kinds, leaf: Callable[[int], Any], turned: bool = False) -> Any:
    """Return a mapping of an array and a sequence of two mappings, of some classes."""
    mapping, sequence = MAPPINGS[kinds[0]], SEQUENCES[kinds[1]]

    def made(entries: dict[str, Any]) -> Any:
        return mapping(dict(reversed(entries.items())) if turned else entries)

    layers = [made({"W": leaf(0), "b": leaf(1)}), made({"W": leaf(2), "b": leaf(3)})]
    return made({"embed": leaf(4), "layers": sequence(layers)})


def leaves(given: Any) -> list[Any]:
    """Return the leaves of such a tree in the order of their numbers."""
    one, two = given["layers"]
    return [one["W"], one["b"], two["W"], two["b"], given["embed"]]


def zeros(number: int) -> Array:
    return np.zeros((number + 1, 2))


def ones(number: int) -> Array:
    return np.full((number + 1, 2), number + 1.0)


NAMES = ["embed", "layers.0.W", "layers.0.b", "layers.1.W", "layers.1.b"]


# Steps -------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("theirs", KINDS, ids="-".join)
@pytest.mark.parametrize("ours", KINDS, ids="-".join)
def test_gradients_of_any_classes_find_their_parameters(
    ours: Kinds, theirs: Kinds, backend: str
) -> None:
    params = tree(ours, zeros)
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    for turned in (False, True):
        opt.step(tree(theirs, ones, turned))
    for number, param in enumerate(leaves(params)):
        np.testing.assert_array_equal(param, np.full((number + 1, 2), -2.0 * (number + 1)))
    assert sorted(opt.state_dict()["state"]) == NAMES
    assert opt.params is params


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_the_order_of_the_state_is_that_of_plain_dicts_and_lists(kinds: Kinds) -> None:
    if kinds[0] == "OrderedDict":  # it keeps its own order, as before
        return
    names = list(fastopt.Adam(tree(kinds, zeros, turned=True)).state_dict()["state"])
    assert names == NAMES


@each_backend
def test_classes_may_change_from_step_to_step(backend: str) -> None:
    params = tree(("Bunch", "list"), zeros)
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    every = [("dict", "tuple"), ("Frozen", "list"), ("dict", "list"), ("Bunch", "tuple")]
    for kinds in every * 2:
        opt.step(tree(kinds, ones))
    np.testing.assert_array_equal(params["embed"], np.full((5, 2), -40.0))


@each_backend
def test_a_tuple_of_gradients_goes_with_a_list_and_the_other_way_round(backend: str) -> None:
    for ours, theirs in itertools.permutations([list, tuple, Layers, UserList], 2):
        params: Any = ours([np.zeros(2), np.zeros(3)])
        opt = fastopt.SGD(params, lr=1.0, backend=backend)
        opt.step(theirs([np.ones(2), None]))
        opt.step(theirs([np.ones(2), np.ones(3)]))
        assert [param.tolist() for param in params] == [[-2.0] * 2, [-1.0] * 3]


Two = namedtuple("Two", "W b")
Other = namedtuple("Other", "b W")
Longer = type("Longer", (Two,), {})


def test_namedtuples_are_matched_by_their_fields() -> None:
    params = Longer(np.zeros(2), np.zeros(3))
    opt = fastopt.SGD(params, lr=1.0)
    for grads in (Two(np.ones(2), np.ones(3)), (np.ones(2), np.ones(3)), [np.ones(2), None]):
        opt.step(grads)
    assert (params.W.tolist(), params.b.tolist()) == ([-3.0] * 2, [-2.0] * 3)
    with pytest.raises(ValueError, match=r"unexpected grads\.b|grads is a Other"):
        opt.step(Other(np.ones(3), np.ones(2)))


@each_backend
def test_a_step_of_the_same_classes_is_read_in_one_way(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[Any] = []
    read = Tree._read

    def counting(self: Tree, given: Any, root: str) -> list[Any]:
        searches.append(root)
        return read(self, given, root)

    monkeypatch.setattr(Tree, "_read", counting)
    for ours, theirs in itertools.product([("dict", "list"), ("Bunch", "Layers")], repeat=2):
        opt = fastopt.SGD(tree(ours, zeros), backend=backend)
        searches.clear()
        for _ in range(4):
            opt.step(tree(theirs, ones))
        assert searches == ["grads"]


def test_trees_of_the_plain_classes_are_read_by_optree() -> None:
    held = Tree(tree(("dict", "list"), zeros))
    grads = tree(("dict", "list"), ones, turned=True)
    assert held.match(grads) == leaves(grads)[4:] + leaves(grads)[:4]
    for reader in (held._read_grads, held._read_params):
        assert isinstance(reader.__self__, optree.PyTreeSpec)  # type: ignore[attr-defined]  # a bound method


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_the_order_in_which_leaves_were_given_is_known(kinds: Kinds, grouped: bool) -> None:
    turned, alike = (tree(kinds, zeros, turned=way) for way in (True, False))
    given = ({"W1": zeros(0), "b1": zeros(1), "W0": turned}, [zeros(2), alike])
    held = Tree([*given] if grouped else {"second": given[0], "first": given[1]}, grouped)
    in_order = [held.leaves[position].array for position in held.as_given()]
    there = [given[0]["W1"], given[0]["b1"], *(leaves(turned)[k] for k in (1, 0, 3, 2, 4))]
    there += [given[1][0], *(leaves(alike)[k] for k in (4, 0, 1, 2, 3))]
    assert list(map(id, in_order)) == list(map(id, there))


class Watched:
    """A gradient that nobody may look into: to show an array waits for its device."""

    def __repr__(self) -> str:
        raise AssertionError("somebody looked into a gradient")


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_no_first_step_looks_into_gradients(kinds: Kinds) -> None:
    held = Tree(tree(("dict", "list"), zeros))
    grads = tree(kinds, lambda number: Watched())
    for _ in range(2):
        assert held.match(grads) == leaves(grads)[4:] + leaves(grads)[:4]


def test_a_tree_is_in_no_circle_of_references() -> None:
    gc.disable()
    try:
        held = Tree(tree(("Bunch", "tuple"), zeros))
        held.match(tree(("dict", "list"), ones))
        alive = weakref.ref(held)
        del held
        assert alive() is None
    finally:
        gc.enable()


# Flax --------------------------------------------------------------------------------------------


def flax() -> dict[str, Any]:
    return {
        "params": {"Dense_0": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}},
        "batch_stats": {"BatchNorm_0": {"mean": np.zeros(2), "count": np.array(3)}},
    }


@each_backend
def test_the_tree_of_flax_is_a_tree(backend: str) -> None:
    params = {"params": flax()["params"]}
    grads = {"params": {"Dense_0": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}}
    for kind in (dict, Frozen, UserDict):
        opt = fastopt.SGD(kind(params), lr=1.0, backend=backend)
        opt.step(grads)
        opt.step(kind(grads))
        assert list(opt.state_dict()["state"]) == ["params.Dense_0.bias", "params.Dense_0.kernel"]
    assert params["params"]["Dense_0"]["bias"].tolist() == [-6.0, -6.0]


@each_backend
def test_the_statistics_of_flax_are_frozen_beside(backend: str, tmp_path: Path) -> None:
    variables = flax()
    frozen = {"batch_stats.**": {"trainable": False}}
    opt = fastopt.Adam(fastopt.groups(variables, frozen), lr=1.0, backend=backend)
    grads = {"params": {"Dense_0": {"kernel": np.ones((2, 2)), "bias": None}}}
    for statistics in (None, {}, flax()["batch_stats"]):
        opt.step({**grads, "batch_stats": statistics})
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].tolist() == [0.0, 0.0]
    assert (variables["params"]["Dense_0"]["kernel"] < -2.9).all()
    opt.save(tmp_path / "run")
    other = flax()
    fastopt.Adam(fastopt.groups(other, frozen), backend=backend).load(tmp_path / "run")
    np.testing.assert_equal(other, variables)


def test_one_group_that_is_in_no_list_is_told_from_a_tree() -> None:
    group: dict[str, Any] = {"params": [np.zeros(2)], "lr": 0.25}
    for more in ({}, {"betas": (0.5, 0.5)}, {"lr": lambda t: 0.25}):
        params = {**group, **more}
        with pytest.raises(TypeError, match=r"list of dicts .* hand in \[params\]\. If it is a"):
            fastopt.Adam(params)
        fastopt.Adam([params]).step([[np.ones(2)]])  # as the message says
    del group["lr"]
    fastopt.Adam(group).step({"params": [np.ones(2)]})


def test_groups_can_be_any_mappings() -> None:
    params = [np.zeros(2), np.zeros(2)]
    groups = [Bunch(params=params[0], lr=1.0), UserDict(params=params[1])]
    fastopt.SGD(groups, lr=0.5).step((np.ones(2), np.ones(2)))
    assert [param.tolist() for param in params] == [[-1.0] * 2, [-0.5] * 2]


# Everything else that takes a tree ---------------------------------------------------------------

SOME: list[Kinds] = [("Bunch", "Layers"), ("Frozen", "tuple"), ("UserDict", "UserList")]
some_kinds = pytest.mark.parametrize("kinds", SOME, ids="-".join)


@each_backend
@some_kinds
def test_groups_freezing_and_bounds_go_by_such_trees(kinds: Kinds, backend: str) -> None:
    params = tree(kinds, zeros)
    limits = (None, tree(("dict", "list"), lambda number: np.full((number + 1, 2), 0.5)))
    patterns: dict[str, Any] = {"layers.0.*": {"trainable": False}, "layers[1].W": {"lr": 0.5}}
    opt = fastopt.SGD(fastopt.groups(params, patterns), bounds=limits, lr=1.0, backend=backend)
    grads = tree(kinds, lambda number: -ones(number) / 4)
    opt.step(grads)
    assert [param.max() for param in leaves(params)] == [0.0, 0.0, 0.375, 0.5, 0.5]
    opt.param_groups[1]["trainable"] = True
    opt.step(tree(("dict", "tuple"), lambda number: -ones(number) / 4))
    assert [param.max() for param in leaves(params)] == [0.25, 0.5, 0.5, 0.5, 0.5]


@each_backend
@some_kinds
def test_a_list_of_groups_holds_such_trees(kinds: Kinds, backend: str) -> None:
    params = [tree(kinds, zeros), tree(kinds, zeros)]
    opt = fastopt.SGD([{"params": p} for p in params], lr=1.0, backend=backend)
    opt.step([tree(("dict", "list"), ones), tree(kinds, ones)])
    assert params[0]["embed"].max() == params[1]["embed"].max() == -5.0
    assert "0.layers.1.b" in opt.state_dict()["state"]


@some_kinds
def test_norms_and_clipping_outside_of_a_step(kinds: Kinds) -> None:
    grads, plain = tree(kinds, ones), tree(("dict", "list"), ones)
    norm = fastopt.global_norm(plain)
    assert fastopt.global_norm(grads) == norm
    assert fastopt.clip_grad_norm_(grads, 1.0) == norm
    assert fastopt.global_norm(grads) == pytest.approx(1.0)
    fastopt.clip_grad_value_(grads, 1e-3)
    assert max(grad.max() for grad in leaves(grads)) == 1e-3
    bad = tree(kinds, lambda number: "text" if number == 2 else ones(number))
    with pytest.raises(TypeError, match=r'grads\["layers"\]\[1\]\["W"\] must be'):
        fastopt.global_norm(bad)


@each_backend
@some_kinds
def test_companions_have_trees_of_the_same_classes(kinds: Kinds, backend: str) -> None:
    params = tree(kinds, ones)
    ema = fastopt.EMA(params, decay=0.5)
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    for average, param in zip(leaves(ema.average), leaves(params), strict=True):
        assert average is not param
        np.testing.assert_array_equal(average, param)
    for made in (ema.average, opt.gradient_buffers(), fastopt.Lookahead(opt).slow):
        assert type(made) is type(params)
        assert type(made["layers"]) is type(params["layers"])
        assert type(made["layers"][1]) is type(params["layers"][1])
    buffers = opt.gradient_buffers()
    for buffer in leaves(buffers):
        buffer[...] = 1.0
    opt.step(buffers)
    accumulator = fastopt.Accumulator(opt, every=2)
    for _ in range(2):
        accumulator.step(tree(("dict", "tuple"), ones))
    assert [param.max() for param in leaves(params)] == [-1.0] * 5


def test_attributes_of_a_companion_are_its_own_arrays() -> None:
    for params in (AttrDict(W=np.zeros(2)), Bunch(W=np.zeros(2))):
        average = fastopt.EMA(params).average
        assert average.W is average["W"]
        assert average.W is not params["W"]


def test_a_class_that_cannot_be_made_of_entries_gives_a_dict() -> None:
    average = fastopt.EMA(Named("net", {"W": np.zeros(2)})).average
    assert type(average) is dict


@some_kinds
def test_state_goes_from_such_trees_to_plain_ones_and_back(kinds: Kinds, tmp_path: Path) -> None:
    for ours, theirs in [(kinds, ("dict", "list")), (("dict", "list"), kinds)]:
        one, two = tree(ours, zeros), tree(theirs, ones)
        source, target = fastopt.Adam(one), fastopt.Adam(two)
        source.step(tree(theirs, ones))
        source.save(tmp_path / "run")
        target.load(tmp_path / "run")
        np.testing.assert_equal(leaves(two), leaves(one))
        np.testing.assert_equal(target.state_dict(), source.state_dict())


# Errors ------------------------------------------------------------------------------------------


@each_backend
@some_kinds
def test_what_is_missing_and_unexpected_is_named(kinds: Kinds, backend: str) -> None:
    params = tree(kinds, zeros)
    opt = fastopt.SGD(params, backend=backend)
    good = tree(("dict", "list"), ones)
    other: Any
    for _ in range(2):
        for change, said in [
            (lambda t: t.pop("embed"), 'missing grads["embed"]'),
            (lambda t: t.update(extra=zeros(1)), 'unexpected grads["extra"]'),
            (lambda t: t["layers"].pop(), 'missing grads["layers"][1]["W"]'),
            (lambda t: t["layers"].append(zeros(1)), 'unexpected grads["layers"][2]'),
            (lambda t: t["layers"][0].pop("b"), 'missing grads["layers"][0]["b"]'),
        ]:
            for kind in (dict, Frozen):
                other = copy.deepcopy(good)
                change(other)
                with pytest.raises(ValueError, match="nested as the parameters") as caught:
                    opt.step(kind(other))
                assert said in str(caught.value)
        opt.step(tree(kinds, ones))
    assert opt.step_count == 2


NOT_NESTED: list[tuple[Any, Any]] = [
    ([1], (1, 2)),
    ([1], {0: 1}),
    ({"a": 1}, [1]),
    ([[], 1], [{}, 1]),
    ([[], 1], [None, 1]),
    ([{}, 1], [(), 1]),
    (Two(1, 2), Other(1, 2)),
    ({"a": [1]}, {"a": Bunch(b=1)}),
    (Bunch(a=1), defaulted({"b": 1})),
]


@each_backend
@pytest.mark.parametrize("number", range(len(NOT_NESTED)))
def test_no_error_shows_what_arrays_hold(number: int, backend: str) -> None:
    def filled(one: Any) -> Any:
        return np.full(2, 0.12345) if isinstance(one, int) else one

    ours, theirs = (optree.tree_map(filled, one) for one in NOT_NESTED[number])
    if isinstance(theirs, dict):
        theirs = {k: Bunch(b=filled(1)) if isinstance(v, Bunch) else v for k, v in theirs.items()}
    if isinstance(ours, Bunch):
        ours = Bunch(a=filled(1))
    opt = fastopt.SGD(ours, backend=backend)
    before = copy.deepcopy(theirs)
    with pytest.raises(ValueError, match="nested as the parameters") as caught:
        opt.step(theirs)
    assert "0.12345" not in str(caught.value)
    assert "array" not in str(caught.value)
    np.testing.assert_equal(theirs, before)  # a defaultdict gets no new entry


def test_what_a_list_can_be_made_of_says_so() -> None:
    opt = fastopt.SGD([np.zeros(2), np.zeros(2)], lr=1.0)
    grads: Any
    for make in (
        lambda: np.ones((2, 2)),
        lambda: (np.ones(2) for _ in range(2)),
        lambda: {"a": np.ones(2), "b": np.ones(2)}.values(),
    ):
        with pytest.raises(ValueError, match=r"of which list\(grads\) is one"):
            opt.step(make())
        grads = make()
        opt.step(list(grads))
    assert opt.step_count == 3


def test_a_file_whose_arrays_are_read_anew_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", W=np.zeros(2))
    with np.load(tmp_path / "weights.npz") as params:
        with pytest.raises(TypeError, match=r'params\["W"\] is another array .* dict'):
            fastopt.SGD(params)
        kept = dict(params)
    fastopt.SGD(kept, lr=1.0).step({"W": np.ones(2)})
    assert kept["W"].tolist() == [-1.0, -1.0]


@each_backend
def test_an_entry_that_was_replaced_is_found_in_such_trees_too(backend: str) -> None:
    params = Bunch(W=np.zeros(2), b=np.zeros(2))
    opt = fastopt.SGD(params, backend=backend)
    opt.step({"W": np.ones(2), "b": None})
    params["W"] = np.zeros(2)
    with pytest.raises(ValueError, match=r'params\["W"\] is no longer the array'):
        opt.step({"W": np.ones(2), "b": None})
    del params["W"]
    with pytest.raises(ValueError, match=r'params must be nested .* missing params\["W"\]'):
        opt.step({"W": np.ones(2), "b": None})


# Other parameters for an optimizer in use --------------------------------------------------------


@each_backend
@some_kinds
def test_such_trees_are_rebound_resized_copied_and_given_to_a_step(
    kinds: Kinds, backend: str
) -> None:
    params, other = tree(kinds, zeros), tree(("dict", "tuple"), zeros)
    opt = fastopt.SGD(params, lr=1.0, backend=backend)
    opt.step(tree(("dict", "list"), ones), params=params)
    opt.rebind(other)
    opt.step(tree(kinds, ones), params=other)
    opt.rebind(params)
    opt.resize("layers.1.W", np.zeros((7, 2)))
    assert opt.params["layers"][1]["W"].shape == (7, 2)
    assert other["embed"].max() == params["embed"].max() == -5.0
    twin = copy.deepcopy(opt)
    grads = tree(("dict", "list"), ones)
    grads["layers"][1]["W"] = np.ones((7, 2))
    twin.step(grads)
    assert type(twin.params) is type(params)
    assert (twin.params["embed"].max(), params["embed"].max()) == (-10.0, -5.0)
    added = opt.updates(grads)
    assert type(added) is type(params)
    assert added["embed"].max() == -5.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_what_is_frozen_may_be_left_out_of_the_gradients(backend: str) -> None:
    """As a gradient function of Flax returns them: for the parameters alone."""
    variables = {
        "params": {"W": np.zeros(2), "b": np.zeros(1)},
        "batch_stats": {"mean": np.zeros(2), "count": np.zeros(1, int)},
    }
    groups = fastopt.groups(variables, {"batch_stats.**": {"trainable": False}})
    opt = fastopt.SGD(groups, 1.0, backend=backend)
    grads = {"params": {"W": np.ones(2), "b": np.ones(1)}}
    opt.step(grads)
    opt.step({**grads, "batch_stats": None})
    opt.step({**grads, "batch_stats": variables["batch_stats"]})
    opt.step(grads)
    assert variables["params"]["W"].tolist() == [-4, -4]
    assert not variables["batch_stats"]["mean"].any()
    with pytest.raises(ValueError, match=r'missing grads\["params"\]\["b"\]'):
        opt.step({"params": {"W": np.ones(2)}})
    with pytest.raises(ValueError, match=r'unexpected grads\["others"\]'):
        opt.step({**grads, "others": np.ones(1)})
    inner = fastopt.groups({"a": {"w": np.zeros(1), "s": np.ones(1)}}, {"a.s": {"lr": 0.5}})
    opt = fastopt.SGD(inner, 1.0, backend=backend)
    with pytest.raises(ValueError, match=r'missing grads\["a"\]\["s"\]'):
        opt.step({"a": {"w": np.ones(1)}})
    opt.param_groups[1]["trainable"] = False
    opt.step({"a": {"w": np.ones(1)}})
    opt.param_groups[1]["trainable"] = True
    with pytest.raises(ValueError, match=r'missing grads\["a"\]\["s"\]'):
        opt.step({"a": {"w": np.ones(1)}})


def test_the_advice_on_other_trees_is_that_of_their_kind() -> None:
    params = {"a": np.zeros(2), "b": np.zeros(1)}
    with pytest.raises(ValueError, match=r"Use None for a parameter that has none\."):
        fastopt.SGD(params, bounds=({"a": np.zeros(2)}, None))
    fastopt.SGD(params, bounds=({"a": np.zeros(2), "b": None}, None))
    opt = fastopt.SGD(params)
    with pytest.raises(ValueError, match="no gradient in this step"):
        opt.step({"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"Convert it: \.astype\('float64'\)"):
        opt.step({"a": None, "b": None}, params={**params, "a": np.zeros(2, np.float32)})
