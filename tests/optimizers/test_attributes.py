"""What would be without effect is an error: unknown attributes, changes of the list of groups."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.param_groups import ParamGroup
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@each_variant
def test_a_hyperparameter_is_no_attribute_and_the_error_says_where_it_is(variant: Variant) -> None:
    opt = variant({"W": np.ones(2)})
    before = copy.deepcopy(opt.state_dict())
    for name in opt.param_groups[0].keys() - {"params", "lr"}:
        with pytest.raises(AttributeError) as caught:
            setattr(opt, name, 0.5)
        assert f"opt.param_groups[0][{name!r}]" in str(caught.value)
        assert type(opt).__name__ in str(caught.value)
        assert not hasattr(opt, name)
    np.testing.assert_equal(opt.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("beta", "opt.param_groups[0]['betas']"),
        ("max_grad_nrom", "did you mean 'max_grad_norm'"),
        ("learning", "has no attribute 'learning'"),
        ("Lr", "has no attribute 'Lr'"),
        ("param", "did you mean 'params'"),
        ("zzz", "'Adam' object has no attribute 'zzz'"),
    ],
)
def test_other_attributes_are_refused_with_what_was_meant(name: str, meant: str) -> None:
    opt: Any = fastopt.Adam(np.ones(2))
    with pytest.raises(AttributeError) as caught:
        setattr(opt, name, 1)
    assert meant in str(caught.value)


@pytest.mark.parametrize("name", ["step_count", "param_groups", "grad_norm", "backend"])
def test_what_is_read_is_not_set(name: str) -> None:
    opt = fastopt.Adam(np.ones(2))
    before = getattr(opt, name)
    with pytest.raises(AttributeError, match=name):
        setattr(opt, name, before)


def test_what_can_be_set_is_set() -> None:
    opt = fastopt.Adam(np.ones(2))
    opt.lr, opt.max_grad_norm, opt.on_nonfinite = 0.5, math.inf, "skip"
    assert (opt.lr, opt.max_grad_norm, opt.on_nonfinite) == (0.5, math.inf, "skip")


class Counting(fastopt.SGD):
    """A user's optimizer with attributes of its own."""

    calls: int = 0

    def step(self, grads: Any, *, grad_scale: float = 1.0) -> None:
        self.calls += 1
        self._last = grads
        super().step(grads, grad_scale=grad_scale)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_subclass_sets_what_it_declares(backend: str) -> None:
    opt: Any = Counting(np.ones(2), backend=backend)
    opt.step(np.ones(2))
    assert (opt.calls, opt.step_count) == (1, 1)
    with pytest.raises(AttributeError, match="did you mean 'calls'"):
        opt.call = 3


CHANGES: dict[str, Callable[[Any], Any]] = {
    "append": lambda groups: groups.append({"params": [np.ones(1)]}),
    "extend": lambda groups: groups.extend([{"params": [np.ones(1)]}]),
    "insert": lambda groups: groups.insert(0, {"params": [np.ones(1)]}),
    "pop": lambda groups: groups.pop(),
    "remove": lambda groups: groups.remove(groups[0]),
    "clear": lambda groups: groups.clear(),
    "sort": lambda groups: groups.sort(key=id),
    "reverse": lambda groups: groups.reverse(),
    "set": lambda groups: groups.__setitem__(0, {"lr": 1.0}),
    "set_slice": lambda groups: groups.__setitem__(slice(None), []),
    "delete": lambda groups: groups.__delitem__(0),
    "add": lambda groups: groups.__iadd__([{"params": [np.ones(1)]}]),
    "multiply": lambda groups: groups.__imul__(2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_list_of_groups_is_fixed(name: str) -> None:
    opt = fastopt.SGD([{"params": np.ones(1)}, {"params": np.ones(2), "lr": 0.5}])
    before = [id(group) for group in opt.param_groups]
    with pytest.raises(TypeError, match="add_param_group"):
        CHANGES[name](opt.param_groups)
    assert [id(group) for group in opt.param_groups] == before


def test_the_groups_are_a_list_of_dicts_like_any() -> None:
    opt = fastopt.SGD([{"params": np.ones(1)}, {"params": np.ones(2), "lr": 0.5}])
    groups = opt.param_groups
    assert isinstance(groups, list)
    assert all(isinstance(group, ParamGroup) for group in groups)
    groups[0]["lr"] = 0.25
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.5]
    for copied in (copy.copy(groups), copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert type(copied) is list
        assert [group["lr"] for group in copied] == [0.25, 0.5]
    assert (groups + [{}])[2] == {}  # noqa: RUF005 - this is asked
    assert type(groups[:1]) is list
