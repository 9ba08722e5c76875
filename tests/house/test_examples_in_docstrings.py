"""The examples in docstrings run and print what they say (``pytest --doctest-modules`` too)."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import fastopt
from fastopt import schedules

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "fastopt", ROOT / "kernels" / "fastopt_kernels")


def module_of(path: Path) -> str:
    """Return the name of the module in a file of one of the packages."""
    base = next(folder for folder in FOLDERS if path.is_relative_to(folder)).parent
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


WITH_EXAMPLES = sorted(
    module_of(path)
    for folder in FOLDERS
    for path in folder.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)

ENTRANCES = [
    *(fastopt.Adam, fastopt.SGD, fastopt.LBFGS, fastopt.Optimizer.save, fastopt.optimizer),
    *(fastopt.minimize, fastopt.find_lr, fastopt.ravel, fastopt.groups, fastopt.RowGrad),
    *(fastopt.EMA, fastopt.Lookahead, fastopt.Accumulator, fastopt.LossScaler),
    *(fastopt.array_namespace, fastopt.use_backend, fastopt.optimizers.names),
    *(fastopt.clip_grad_norm_,),
    *(getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"),
]
"""Where a newcomer begins: each has an example."""


NEEDED = {"fastopt.interop.torch_optim": "torch"}
"""Libraries that are no requirement of the tests."""


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_run(name: str) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0  # what was expected and got stands in the output


def test_every_entrance_has_an_example() -> None:
    bare = [one for one in ENTRANCES if ">>> " not in (inspect.getdoc(one) or "")]
    assert bare == []
