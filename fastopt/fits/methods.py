"""How a fit goes: the optimizer by name or class, or L-BFGS, with their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fastopt import optimizers
from fastopt.core.hyperparameters import whole
from fastopt.fits import problem
from fastopt.fits.bounds import Bounds
from fastopt.fits.problem import Flat, Leaves, Points
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from fastopt.fits.lbfgs import Minimizer


class Method(NamedTuple):
    """A method: the class of the optimizer, None for L-BFGS, and its options."""

    name: str
    optimizer: type[Optimizer] | None
    options: Mapping[str, Any]

    def make(self, points: Points) -> Optimizer:
        """Return the optimizer of the points' arrays, which its steps change."""
        options = {**self.options, **_of_members(points.members)}
        assert self.optimizer is not None
        opt = self.optimizer(points.tree.params, **options)
        if opt._estimate is not None:
            raise ValueError(
                f"{type(opt).__name__} steps by estimates of the Hessian, and minimize has none; "
                "take another optimizer, or 'lbfgs', which makes its own"
            )
        return opt


def _of_members(members: int | None) -> dict[str, Any]:
    """Return the option by which the first axis of every array counts members."""
    return {} if members is None else {"members": members}


def checked_method(
    method: Any, lr: Any, options: Mapping[str, Any] | None, bounds: Bounds | None
) -> Method:
    """Return a method; raise TypeError or ValueError for what is none, and for its options."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict; got {options!r:.200}")
    asked = {} if options is None else {**options}
    for name, instead in _ELSEWHERE.items():
        if name in asked:
            raise ValueError(f"options must not hold {name!r}: {instead}")
    if is_lbfgs(method):
        return Method("lbfgs", None, _checked_lbfgs(lr, asked))
    if lr is not None:
        asked["lr"] = lr
    if bounds is not None:
        asked["bounds"] = bounds.option
    if isinstance(method, str):
        try:
            return Method(method, optimizers.named(method), asked)
        except ValueError as error:
            raise ValueError(f"{error}; 'lbfgs' is a method too") from None
    if isinstance(method, type) and issubclass(method, Optimizer):
        return Method(method.__name__, method, asked)
    raise TypeError(
        f"method must be 'lbfgs' or an optimizer of fastopt, by name or class; got {method!r:.200}"
    )


_ELSEWHERE = {
    "lr": "minimize(..., lr=...) takes it",
    "bounds": "minimize(..., bounds=...) takes them",
    "maximize": "minimize goes down; hand in -fun to go up",
    "maxiter": "minimize(..., maxiter=...) takes it",
}


def is_lbfgs(method: Any) -> bool:
    """Return whether this is L-BFGS: the class, or its name as it is or as SciPy has it."""
    if not isinstance(method, str):
        from fastopt.fits.closure import LBFGS

        return isinstance(method, type) and issubclass(method, LBFGS)
    return "".join(filter(str.isalnum, method.lower())) in ("lbfgs", "lbfgsb")


def _checked_lbfgs(lr: Any, options: Mapping[str, Any]) -> dict[str, int]:
    if lr is not None:
        raise ValueError("lbfgs finds the lengths of its steps by itself; leave out lr")
    defaults = {"history": 10, "max_line_steps": 20}
    if unknown := options.keys() - defaults.keys():
        raise TypeError(
            "lbfgs takes the options history and max_line_steps (SciPy's maxcor and maxls); got "
            f"{', '.join(sorted(map(str, unknown)))}"
        )
    return {
        name: whole(f"lbfgs: {name}", options.get(name, default), 1)
        for name, default in defaults.items()
    }


def lbfgs_of(
    flat: Flat, start: Leaves, sides: problem.Sides | None, options: Mapping[str, Any]
) -> Minimizer:
    """Return L-BFGS at a start."""
    from fastopt.fits.lbfgs import Minimizer

    lower = upper = None
    if sides is not None:
        lower, upper = (flat.vector([pair[side] for pair in sides]) for side in (0, 1))
    return Minimizer(flat.vector(start), lower=lower, upper=upper, **options)
