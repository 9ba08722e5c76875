"""COCOB: each element bets on its next gradient, and stands where its stake puts it.

g <- lr * grad
peak <- max(peak, eps, |g|)
total <- total + |g|
reward <- max(reward - g * (param - p0), 0)
theta <- theta - g
p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
param <- p0 + theta / max(total + peak, alpha * peak) * ((peak + reward) / peak)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    p0: Any,
    theta: Any,
    peak: Any,
    total: Any,
    reward: Any,
    first: float,
    alpha: float,
    eps: float,
    lr: float,
) -> None:
    g = lr * grad
    size = np.abs(g)
    np.maximum(peak, eps, out=peak)
    np.maximum(peak, size, out=peak)
    total += size
    p0 += first * (param - p0)
    reward -= g * (param - p0)
    np.maximum(reward, 0, out=reward)
    theta -= g
    below = np.maximum(total + peak, alpha * peak)
    np.divide(theta, below, out=below)
    below *= (peak + reward) / peak
    np.add(p0, below, out=param)


def _numba(
    param: Any,
    grad: Any,
    p0: Any,
    theta: Any,
    peak: Any,
    total: Any,
    reward: Any,
    first: Any,
    alpha: Any,
    eps: Any,
    lr: Any,
) -> tuple[Any, Any, Any, Any, Any, Any]:
    g, least = lr * grad, eps
    size = abs(g)
    # NaN wins, as in np.maximum.
    peak = peak if peak >= least or peak != peak else least
    peak = peak if peak >= size or peak != peak else size
    total = total + size
    p0 = p0 + first * (param - p0)
    reward = reward - g * (param - p0)
    reward = reward if reward > 0 or reward != reward else alpha - alpha
    theta = theta - g
    whole, first_whole = total + peak, alpha * peak
    below = whole if whole >= first_whole or whole != whole else first_whole
    param = p0 + theta / below * ((peak + reward) / peak)
    return param, p0, theta, peak, total, reward


RULE = Rule(
    name="cocob",
    state=("p0", "theta", "peak", "total", "reward"),
    signed=("p0", "theta"),
    places=("p0",),
    from_start=True,
    scalars=("first", "alpha", "eps", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real g = lr * grad;
        const real size = fabs(g);
        peak = peak >= eps || peak != peak ? peak : eps;
        peak = peak >= size || peak != peak ? peak : size;
        total = total + size;
        p0 = p0 + first * (param - p0);
        reward = reward - g * (param - p0);
        reward = reward > 0 || reward != reward ? reward : alpha - alpha;
        theta = theta - g;
        const real whole = total + peak;
        const real first_whole = alpha * peak;
        const real below = whole >= first_whole || whole != whole ? whole : first_whole;
        param = p0 + theta / below * ((peak + reward) / peak);
    """,
)
