"""What is recorded of each family of optimizers, and by whom: a file for each family.

A file holds

* ``FOLDER``: "" for elementwise rules, "sums" or "matrices" for the other kinds: where the files
  go, and whose ``inputs.npz`` the cases run on;
* ``DEFAULTS``: by class, every hyperparameter of our class as it is documented, without those of
  all optimizers but with ``lr`` (and ``weight_decay`` where it is not 0);
* ``ORACLES``: by class, by the name of who computes, an oracle (``..oracles``);
* ``CASES``: by class, the cases; the first oracle of a case is recorded in full. ``case(...)``
  below makes them.
* ``PACKAGES``: the packages that compute, whose versions are recorded.

It imports neither fastopt nor, at its head, any of these packages but NumPy.
"""

from typing import Any

from ..vector_cases import Case, Hyper


def cases_of(
    optimizer: str, defaults: Hyper, *rows: tuple[str, tuple[str, ...], Hyper] | tuple[Any, ...]
) -> tuple[Case, ...]:
    """Return cases of rows: name, oracles, and then what a Case has, as a dict.

    ``("odd", ("torch", "closed"), {"lr": 0.1}, {"inputs": "dense"})``.
    """
    made = []
    for name, oracles, kwargs, *rest in rows:
        more: dict[str, Any] = rest[0] if rest else {}
        made.append(Case(optimizer, name, oracles, kwargs, defaults=defaults, **more))
    return tuple(made)
