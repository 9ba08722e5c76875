"""scipy_method: an optimizer as a method of scipy.optimize.minimize."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fastopt.fits.methods import checked_method
from fastopt.fits.minimize import minimize
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

_OF_MINIMIZE = ("lr", "maxiter", "tol", "gtol", "ftol", "xtol", "maxfun", "max_time", "progress")


def scipy_method(
    method: str | type[Optimizer] = "adam",
    *,
    lr: Any = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Callable[..., OptimizeResult]:
    """Return a method for ``scipy.optimize.minimize``, and for what calls that (basinhopping, ...).

    ::

        scipy.optimize.minimize(fun, x0, jac=True, method=fastopt.scipy_method("adam", lr=1e-2))

    SciPy hands on ``args``, ``jac``, ``bounds``, ``callback``, ``tol`` and ``options``; the result
    is that of ``fastopt.minimize``. SciPy's ``options`` are stronger than what stands here; they
    may be ``maxiter``, ``maxfun`` (``maxfev`` too), ``max_time``, ``gtol``, ``ftol``, ``xtol``,
    ``progress``, ``lr``, ``disp`` (print the message), and whatever the optimizer takes. Without
    ``jac``, and with SciPy's "2-point", "3-point" and "cs", which it does not hand on, gradients
    are forward differences, as for SciPy's own methods: one evaluation for each element of x0.
    ``hess`` and ``hessp`` are not used, which is warned of; constraints are refused.

    Args:
        method, lr, options: as ``fastopt.minimize`` takes them.
        settings: what else it takes: ``maxiter``, ``tol``, ``gtol``, ``ftol``, ``xtol``,
            ``maxfun``, ``max_time``, ``progress``.

    Returns:
        A function that can be pickled if ``lr`` and ``options`` can. (``scipy.optimize.shgo`` takes
        no method but by name.)

    Raises:
        TypeError, ValueError: for other settings, and a method and options that
            ``fastopt.minimize`` would not take; by the method, what that raises, and ValueError for
            constraints.
    """
    unknown = settings.keys() - set(_OF_MINIMIZE)
    if unknown:
        raise TypeError(
            f"scipy_method takes {', '.join(_OF_MINIMIZE)} and options; got "
            f"{', '.join(sorted(unknown))}. What the optimizer takes goes to options={{...}}, all "
            "else to scipy.optimize.minimize"
        )
    checked_method(method, lr, options, None)
    return partial(_solve, method, {**settings, "lr": lr}, {} if options is None else options)


def _solve(
    method: str | type[Optimizer],
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Any = None,
    disp: Any = False,
    **asked: Any,
) -> OptimizeResult:
    """Minimise as ``scipy.optimize.minimize`` asks for it."""
    if not (isinstance(constraints, list | tuple) and not constraints):
        raise ValueError(
            "fastopt's methods keep bounds and no constraints; hand in bounds=, put a penalty "
            "into fun, or take method='SLSQP' or 'trust-constr'"
        )
    if hess is not None or hessp is not None:
        warnings.warn("fastopt's methods do not use hess and hessp", RuntimeWarning, stacklevel=3)
    if "maxfev" in asked:
        asked["maxfun"] = asked.pop("maxfev")
    named = {**given, **{k: asked.pop(k) for k in _OF_MINIMIZE if k in asked}}
    more = args if isinstance(args, tuple) else (args,)
    result = minimize(
        (lambda x: fun(x, *more)) if more else fun,
        x0,
        (lambda x: jac(x, *more)) if callable(jac) and more else jac,
        method,
        bounds=bounds,
        callback=callback,
        options={**own, **asked},
        **named,
    )
    if disp:
        print(result.message)
    return result
