"""What the tests need to know of each family of optimizers beside the formulas, a file for each.

* ``VARIANTS`` (or ``OF_MATRICES``, for rules on whole arrays): what all tests run over;
* ``BAD``: values that hyperparameters of these names refuse, in every family alike; ``BAD_HERE``:
  those that one optimizer alone refuses; ``BAD_INSTEAD``: the same for one of another form there;
* ``MUTANTS``: mistakes that the recorded vectors must catch: by name, the right optimizer and the
  wrong one;
* ``RIGHT``: the same for what mistakes are made in, without any, which must meet the vectors;
* ``SMOOTH``: the names of optimizers whose steps change little where gradient and state change
  little (no signs), so that state in fewer bits meets the vectors;
* ``ALIKE``: by the names of optimizers whose steps grow or shrink with all gradients, a function of
  their size that returns the options with which they do not.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
MODULES = [import_module(f"families.{name}") for name in NAMES]


def lists(name: str) -> list[Any]:
    """Return what all families list under a name."""
    return [one for module in MODULES for one in getattr(module, name, ())]


def tables(name: str) -> dict[Any, Any]:
    """Return what all families have under a name, by its keys."""
    found: dict[Any, Any] = {}
    for module in MODULES:
        found |= getattr(module, name, {})
    return found


VARIANTS = lists("VARIANTS")
OF_MATRICES = lists("OF_MATRICES")
SMOOTH = lists("SMOOTH")
RIGHT = lists("RIGHT")
ALIKE = tables("ALIKE")
BAD = tables("BAD")
BAD_HERE = tables("BAD_HERE")
BAD_INSTEAD = tables("BAD_INSTEAD")
MUTANTS = tables("MUTANTS")
