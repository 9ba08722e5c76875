"""Nothing comes into the package without vectors, variants, bad values, and a use for its rule."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import test_hyperparameters
import test_mutants

import fastopt
from fastopt.core.options import FIXED, GRAPHED, SWITCHED
from helpers.variants import OF_MATRICES, VARIANTS, one_parameter, public_optimizers
from helpers.vectors import VECTORS, options_of

KERNELS = Path(__file__).parents[2] / "kernels" / "fastopt_kernels"
EVERY = [*VARIANTS, *OF_MATRICES]
each_optimizer = pytest.mark.parametrize("optimizer", public_optimizers())


def rules() -> list[str]:
    """Return the names of the files that hold a rule."""
    return sorted({path.stem for path in KERNELS.glob("*.py")} - {"__init__", "rule"})


def test_the_public_optimizers_are_found() -> None:
    names = {optimizer.__name__ for optimizer in public_optimizers()}
    assert names >= {"SGD", "Momentum", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW"}
    assert len(rules()) >= 11


def test_every_optimizer_of_a_file_is_public() -> None:
    folder = Path(fastopt.__file__).parent / "optimizers"
    public = set(public_optimizers())
    for path in folder.glob("*.py"):
        module = importlib.import_module(f"fastopt.optimizers.{path.stem}")
        for name, item in vars(module).items():
            if inspect.isclass(item) and issubclass(item, fastopt.Optimizer):
                assert item in public or inspect.isabstract(item), f"{name} is not exported"


@each_optimizer
def test_the_manual_says_what_an_optimizer_does(optimizer: Any) -> None:
    folder = KERNELS.parents[1] / "docs" / "reference"
    table = (folder / "updates.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert any(f"`{optimizer.__name__}`" in row for row in rows)


@each_optimizer
def test_an_optimizer_has_recorded_vectors_of_two_oracles(optimizer: Any) -> None:
    mine = [v for v in VECTORS if v.info["optimizer"] == optimizer.__name__]
    assert len({vector.info["oracle"] for vector in mine}) >= 2
    assert any(not vector.info["kwargs"] for vector in mine), "its defaults are not recorded"


@each_optimizer
def test_an_optimizers_state_is_recorded(optimizer: Any) -> None:
    recorded = {
        slot for v in VECTORS if v.info["optimizer"] == optimizer.__name__ for slot in v.state
    }
    mine = [variant for variant in EVERY if variant.optimizer is optimizer]
    slots = {slot for variant in mine for slot in entry_of(variant)}
    assert slots <= recorded


def entry_of(variant: Any) -> set[str]:
    only = one_parameter(variant.optimizer)
    entry: dict[str, Any] = variant(only).state_dict()["state"]["params"]
    return entry.keys() - {"step"}


@each_optimizer
def test_an_optimizer_has_a_variant_over_which_all_tests_run(optimizer: Any) -> None:
    assert [variant for variant in EVERY if variant.optimizer is optimizer]


@each_optimizer
def test_every_hyperparameter_has_bad_values_to_be_refused(optimizer: Any) -> None:
    options = test_hyperparameters.options_of(optimizer)
    assert set(optimizer._checks) <= set(options)
    for name in options:
        kinds = {kind for _, kind in test_hyperparameters.bad_values(optimizer, name)}
        assert TypeError in kinds, name


@each_optimizer
def test_every_flag_and_every_hyperparameter_is_recorded_at_another_value(optimizer: Any) -> None:
    mine = [v.info for v in VECTORS if v.info["optimizer"] == optimizer.__name__]
    used = {name for info in mine for name in info["kwargs"]}
    used |= {name for info in mine for group in info["groups"] for name in group}
    missing = set(test_hyperparameters.options_of(optimizer)) - used
    # That trainable=False is a missing gradient is held to the vectors in test_trainable, that
    # a bounded step is one that is cut off in test_bounds, that vectors are met by state in fewer
    # bits as far as it goes in test_low_precision, that lr_scale multiplies lr in test_lr_scale,
    # and that clipping is that of the gradients before any rule in test_clip_value and
    # test_clip_each. What is done to whole gradients is held to steps without in test_transforms,
    # and decoupled_lr to a decay that was divided in test_decoupled_lr.
    elsewhere = {"lr_scale", "decoupled_lr", "trainable", "bounds", "reset_at_bounds"}
    assert missing <= {"lr", *elsewhere, *FIXED, *SWITCHED, *GRAPHED, "seed"}


@each_optimizer
def test_an_optimizer_has_mutants_of_its_own(optimizer: Any) -> None:
    mine = [right for right, _ in test_mutants.MUTANTS.values() if right is optimizer]
    assert len(mine) >= 10


def test_every_rule_is_reached_by_a_variant() -> None:
    reached = {
        variant.optimizer._rule(variant(one_parameter(variant.optimizer)).param_groups[0]).name
        for variant in EVERY
    }
    assert sorted(reached) == rules()


def test_every_rule_is_reached_by_a_recorded_vector() -> None:
    named = {optimizer.__name__: optimizer for optimizer in public_optimizers()}
    reached = set()
    for vector in VECTORS:
        make: Any = named[vector.info["optimizer"]]
        group = make(one_parameter(make), **options_of(vector.info["kwargs"])).param_groups[0]
        reached.add(make._rule(group).name)
    assert sorted(reached) == rules()


def test_variants_have_names_of_their_own() -> None:
    names = [variant.name for variant in EVERY]
    assert len(names) == len(set(names))
