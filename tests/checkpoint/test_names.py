"""Names decide: a list of groups and one tree exchange state, where that is unambiguous."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.around import leaves

SIZES = {"W": 2, "b": 3, "c": 4}


def arrays(names: str) -> dict[str, Array]:
    """Return an array for each name, each of a size and with values of its own."""
    return {name: np.full(SIZES[name], ord(name), float) for name in names}


SHAPES: dict[str, Callable[[], Any]] = {
    "tree": lambda: arrays("Wbc"),
    "two_groups": lambda: [{"params": arrays("W")}, {"params": arrays("bc"), "lr": 0.5}],
    "other_groups": lambda: [{"params": arrays("c"), "lr": 0.5}, {"params": arrays("Wb")}],
    "three_groups": lambda: [{"params": arrays(name)} for name in "bWc"],
    "one_group": lambda: [{"params": arrays("Wbc")}],
    "by_pattern": lambda: fastopt.groups(arrays("Wbc"), {"b": {"lr": 0.5}}),
    "nested": lambda: {"encoder": arrays("W"), "decoder": {"out": arrays("bc")}},
}
SAME_TREES = [name for name in SHAPES if name != "nested"]
GROUPS = ["two_groups", "other_groups", "three_groups", "one_group"]


def made(shape: str | Any, lr: float = 0.25) -> Optimizer:
    params = SHAPES[shape]() if isinstance(shape, str) else shape
    return fastopt.Adam(params, lr, backend="numpy")


def parameters(opt: Optimizer) -> list[Array]:
    """Return the parameters, in the order of their sizes."""
    return sorted((leaf.array for leaf in opt._state.tree.leaves), key=lambda array: array.size)


def trained(opt: Optimizer) -> Optimizer:
    """Make two steps in which every parameter has gradients of its own, one of them in one."""
    tree = opt._state.tree
    for step in range(2):
        grads = [
            None if step == 1 and leaf.array.size == 3 else leaf.array + step
            for leaf in tree.leaves
        ]
        opt.step(tree.nest(grads))
    return opt


def state(opt: Optimizer) -> list[Any]:
    entries = opt.state_dict()["state"].values()
    return sorted(entries, key=lambda entry: entry["m"].size)


PAIRS = [(one, two) for one in SAME_TREES for two in SAME_TREES]
PAIRS += [(one, "nested") for one in GROUPS] + [("nested", one) for one in GROUPS]


@pytest.mark.parametrize(("one", "two"), PAIRS)
@pytest.mark.parametrize("by_file", [True, False])
def test_state_and_parameters_go_from_one_to_the_other(
    one: str, two: str, by_file: bool, tmp_path: Path
) -> None:
    source, into = trained(made(one)), made(two)
    if by_file:
        for array in parameters(into):
            array[...] = 0
        source.save(tmp_path / "a")
        report = into.load(tmp_path / "a")
        for mine, theirs in zip(parameters(into), parameters(source), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    else:
        report = into.load_state_dict(source.state_dict())
    np.testing.assert_equal(state(into), state(source))
    assert [entry["step"] for entry in state(into)] == [2, 1, 2]
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert into.step_count == 2


def test_a_run_goes_on_in_the_bits_that_it_would_have_had() -> None:
    straight, source = made("tree"), trained(made("tree"))
    trained(trained(straight))
    into = made([{"params": arrays("Wb")}, {"params": arrays("c")}])
    for mine, theirs in zip(parameters(into), parameters(source), strict=True):
        mine[...] = theirs
    into.load_state_dict(source.state_dict())
    trained(into)
    np.testing.assert_equal(state(into), state(straight))
    for mine, theirs in zip(parameters(into), parameters(straight), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_groups_of_the_same_parameters_take_their_settings_over() -> None:
    source = made([{"params": arrays("W"), "lr": 0.125}, {"params": arrays("bc"), "lr": 0.5}])
    into = made([{"params": arrays("bc")}, {"params": arrays("W")}])
    report = into.load_state_dict(source.state_dict())
    assert [group["lr"] for group in into.param_groups] == [0.5, 0.125]
    assert [one.holds for one in report.settings] == ["saved", "saved"]
    by_pattern = fastopt.groups(arrays("Wbc"), {"[bc]": {"lr": 1.0}})
    into = made(by_pattern)
    into.load_state_dict(source.state_dict())
    assert [group["lr"] for group in into.param_groups] == [0.125, 0.5]
    back = made([{"params": arrays("W")}, {"params": arrays("bc")}], 3.0)
    back.load_state_dict(into.state_dict())
    assert [group["lr"] for group in back.param_groups] == [0.125, 0.5]
    into = made("one_group")
    into.load_state_dict(made("tree", 2.0).state_dict())
    assert into.lr == 2.0


def test_other_groups_keep_their_settings_and_say_so() -> None:
    into = made("two_groups", 1.0)
    report = into.load_state_dict(made("tree", 2.0).state_dict())
    assert [group["lr"] for group in into.param_groups] == [1.0, 0.5]
    assert [(one.name, one.saved, one.here, one.holds) for one in report.settings] == [
        ("groups[0].lr", 2.0, 1.0, "here"),
        ("groups[1].lr", 2.0, 0.5, "here"),
    ]


def test_groups_that_are_arrays_are_a_list() -> None:
    both = [np.ones(2), np.full(3, 2.0)]
    source = trained(made([{"params": array} for array in copy.deepcopy(both)]))
    into = made(both)
    into.load_state_dict(source.state_dict())
    np.testing.assert_equal(state(into), state(source))
    back = made([{"params": array} for array in copy.deepcopy(both)])
    back.load_state_dict(into.state_dict())
    np.testing.assert_equal(state(back), state(source))
    one, alone = made([{"params": np.ones(2)}]), trained(made(np.ones(2)))
    one.load_state_dict(alone.state_dict())
    np.testing.assert_equal(state(one), state(alone))


AMBIGUOUS: list[tuple[Any, Any, tuple[str, ...]]] = [
    (
        [{"params": {"W": np.ones(2)}}, {"params": {"W": np.ones(2)}}],
        {"encoder": {"W": np.ones(2)}, "decoder": {"W": np.ones(2)}},
        ("'0.W' in the file could be each of ['decoder.W', 'encoder.W'] here",),
    ),
    (
        {"encoder": {"W": np.ones(2)}, "decoder": {"W": np.ones(2)}},
        [{"params": {"W": np.ones(2)}}, {"params": {"W": np.ones(2)}}],
        ("'0.W' here could be each of ['decoder.W', 'encoder.W'] in the file",),
    ),
    (
        [{"params": {"W": np.ones(2)}}, {"params": {"W": np.ones(2)}}],
        {"W": np.ones(2)},
        ("'W' here could be each of ['0.W', '1.W'] in the file",),
    ),
    (
        {"W": np.ones(2)},
        [{"params": {"W": np.ones(2)}}, {"params": {"W": np.ones(2)}}],
        ("'W' in the file could be each of ['0.W', '1.W'] here",),
    ),
]


@pytest.mark.parametrize(("theirs", "ours", "said"), AMBIGUOUS)
def test_what_could_be_several_is_refused_with_all_of_them(
    theirs: Any, ours: Any, said: tuple[str, ...], tmp_path: Path
) -> None:
    source, into = made(copy.deepcopy(theirs)), made(copy.deepcopy(ours))
    source.save(tmp_path / "a")
    before = copy.deepcopy((into.state_dict(), leaves(into.params)))
    for load in (
        lambda: into.load_state_dict(source.state_dict()),
        lambda: into.load(tmp_path / "a"),
    ):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert all(part in str(caught.value) for part in said)
        np.testing.assert_equal((into.state_dict(), leaves(into.params)), before)
    report = into.load_state_dict(source.state_dict(), strict=False)
    assert set(report.missing) == {f"state:{name}" for name in into.state_dict()["state"]}


def test_what_is_clear_is_taken_where_the_rest_is_not_asked_for() -> None:
    source = trained(made([{"params": arrays("W")}, {"params": arrays("bc")}]))
    into = made(arrays("Wb") | {"d": np.ones(5)})
    with pytest.raises(CheckpointError, match=r"\['d'\].*\['1.c'\]"):
        into.load_state_dict(source.state_dict())
    report = into.load_state_dict(source.state_dict(), strict=False)
    assert (report.missing, report.unexpected) == (("state:d",), ("state:1.c",))
    np.testing.assert_equal(state(into)[:2], state(source)[:2])


def test_names_that_are_the_same_are_taken_as_they_are() -> None:
    """A tree that is a list has such names itself."""
    lists = [{"W": np.ones(2)}, {"W": np.full(2, 2.0)}]
    source, into = trained(made(copy.deepcopy(lists))), made(copy.deepcopy(lists))
    into.load_state_dict(source.state_dict())
    np.testing.assert_equal(into.state_dict(), source.state_dict())
    grouped = made([{"params": tree} for tree in copy.deepcopy(lists)])
    grouped.load_state_dict(source.state_dict())
    np.testing.assert_equal(grouped.state_dict()["state"], source.state_dict()["state"])
    into.load_state_dict(grouped.state_dict())
    np.testing.assert_equal(into.state_dict()["state"], source.state_dict()["state"])


def test_another_dtype_is_converted_under_the_right_name(tmp_path: Path) -> None:
    source = trained(made("two_groups"))
    source.save(tmp_path / "a")
    params = {name: array.astype(np.float32) * 0 for name, array in arrays("Wbc").items()}
    into = made(params)
    report = into.load(tmp_path / "a", convert=True)
    assert "param:W: float64 -> float32" in report.converted
    for mine, theirs in zip(parameters(into), parameters(source), strict=True):
        np.testing.assert_array_equal(mine, theirs.astype(np.float32))


def test_counters_that_have_no_state_go_along(tmp_path: Path) -> None:
    def tree() -> dict[str, Any]:
        return {"W": np.ones(2)}

    count = np.array([7])
    listed = [{"params": tree()}, {"params": {"n": count}, "trainable": False}]
    made(listed).save(tmp_path / "a")
    params = {**tree(), "n": np.array([0])}
    into = made(fastopt.groups(params, {"n": {"trainable": False}}))
    into.load(tmp_path / "a")
    assert params["n"].tolist() == [7]
