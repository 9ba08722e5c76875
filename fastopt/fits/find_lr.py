"""find_lr: the learning-rate range test, on copies, with the curve and how sure it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import optimizers
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import as_float, whole
from fastopt.fits.methods import is_lbfgs
from fastopt.optimizers.base import Optimizer

FEWEST = 8
"""Learning rates that a curve must have before anything can be read off it."""

SURE_WITHIN = 10.0
"""A suggestion is sure where all that it is made of is within this factor."""


@dataclass(frozen=True, repr=False)
class RangeTest:
    """What a range test has found. Printed, it says so in words.

    Attributes:
        suggestion: the learning rate; NaN where the curve tells none.
        low, high: what the curve may be read as: the least and the largest of two readings of each
            run, the steepest fall, and a tenth of where the loss is lowest.
        sure: whether these are within a factor of 10 and nothing speaks against them.
        message: the suggestion, and each thing that speaks against it, in sentences.
        lrs: the learning rates, rising, of shape (n,).
        losses: the loss after the step with each, of shape (runs, n); NaN from where it diverged.
        smoothed: the mean of the runs, smoothed, of shape (n,).
    """

    suggestion: float
    low: float
    high: float
    sure: bool
    message: str
    lrs: Array
    losses: Array
    smoothed: Array

    def __repr__(self) -> str:
        return f"<RangeTest: {self.message}>"

    def picture(self, path: Any = None) -> Any:
        """Draw the curve with matplotlib; return the figure, written to ``path`` if there is one.

        Raises ImportError where matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "a picture is drawn by matplotlib, which is not installed: pip install matplotlib"
            ) from error
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for run in self.losses:
            axes.plot(self.lrs, run, color="0.8", linewidth=1)
        axes.plot(self.lrs, self.smoothed, color="C0")
        if math.isfinite(self.suggestion):
            axes.axvspan(self.low, self.high, color="C1", alpha=0.2)
            axes.axvline(self.suggestion, color="C1", label=f"lr = {self.suggestion:.2g}")
            axes.legend()
        shown = self.smoothed[np.isfinite(self.smoothed)]
        if shown.size and np.ptp(shown) > 0:
            room = 0.1 * np.ptp(shown)
            axes.set_ylim(shown.min() - room, shown.max() + room)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss after the step")
        if path is not None:
            figure.savefig(path)
        return figure


def find_lr(
    step_fn: Callable[..., Any],
    params: Any,
    method: str | type[Optimizer] = "adam",
    *,
    batches: Iterable[Any] | None = None,
    lr_min: float = 1e-7,
    lr_max: float = 10.0,
    steps: int = 100,
    runs: int = 3,
    options: Mapping[str, Any] | None = None,
) -> RangeTest:
    """Return a learning rate to begin with: the range test.

    ::

        found = fastopt.find_lr(loss_and_gradients, params, "adamw", batches=batches)
        print(found)                       # the suggestion, and how sure it is
        found.picture("range_test.png")
        opt = fastopt.AdamW(params, lr=found.suggestion)

    The optimizer makes ``steps`` steps with learning rates that rise in equal ratios from
    ``lr_min`` to ``lr_max``, and the loss is looked at after each, until it diverges. Where it
    falls fastest learning rates are good, and those some way below where it is lowest. All this
    happens on copies: neither the parameters nor an optimizer are changed. Only ``batches``, and
    random generators of step_fn, have gone on.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> def loss(x):
        ...     return float(x @ x), 2.0 * x
        >>> found = fastopt.find_lr(loss, np.ones(3), "sgd", steps=50, runs=1)
        >>> found.sure, found.low <= found.suggestion <= found.high
        (True, True)

    Args:
        step_fn: ``step_fn(params)``, with batches ``step_fn(params, batch)``, returns the loss and
            the gradients, nested as the parameters. It must use the parameters that it is handed,
            which are the copies, and must not write to them. The function that ``minimize`` takes
            is one.
        params: the parameters, as the optimizer takes them; or an optimizer, in the middle of a
            run perhaps: then copies of it make the steps, from its state.
        method: the optimizer, by name or class. Not looked at if params is an optimizer.
        batches: mini-batches, one for each step; a list begins again at its end, an iterator that
            ends ends the test.
        lr_min, lr_max: where learning rates begin and end, > 0.
        steps: learning rates in between, at least 10.
        runs: how often all this is done, each time from the parameters as they are and with the
            batches that follow; how far the runs differ tells how sure the suggestion is. Where the
            second is the same as the first no more are made.
        options: what else the optimizer takes.

    Returns:
        A ``RangeTest``: ``suggestion``, ``sure``, ``message``, the curve. The suggestion is the
        geometric mean of where the loss falls fastest (by the logarithm of the learning rate,
        smoothed over a tenth of the curve) and of a tenth of where it is lowest; of several runs
        their median. It is a start, and no optimum: long runs bear somewhat less.

    Raises:
        TypeError, ValueError: for arguments out of range, an optimizer of members, groups that
            differ in lr, and what step_fn returns if it is no loss with gradients.

    Source: Smith, "Cyclical learning rates for training neural networks" (2017), section 3.3.
    """
    lrs = _rates(lr_min, lr_max, whole("find_lr: steps", steps, 10))
    count = whole("find_lr: runs", runs, 1)
    opt = _optimizer(params, method, options)
    following = None if batches is None else _following(batches)
    curves: list[Array] = []
    before: list[float] = []
    for _ in range(count):
        first, losses = _run(step_fn, copy.deepcopy(opt), lrs, following)
        if losses is None:
            break
        before.append(first)
        curves.append(losses)
        if len(curves) == 2 and np.array_equal(curves[0], losses, equal_nan=True):
            curves.pop()
            before.pop()
            break
    if not curves:
        raise ValueError(
            f"batches must hold {FEWEST} or more for a run, and the first run had fewer. A list "
            "begins again at its end, an iterator does not: hand in list(batches)"
        )
    return _read_off(lrs, np.array(curves), np.array(before))


def _rates(low: Any, high: Any, count: int) -> Array:
    numbers = []
    for name, value in (("lr_min", low), ("lr_max", high)):
        number = as_float(value)
        if number is None:
            raise TypeError(f"find_lr: {name} must be a number; got {value!r:.200}")
        if not (number > 0.0 and math.isfinite(number)):
            raise ValueError(f"find_lr: {name} must be above 0 and finite; got {number}")
        numbers.append(number)
    if not numbers[0] < numbers[1]:
        raise ValueError(f"find_lr: lr_min must be below lr_max; got {low} and {high}")
    return np.geomspace(numbers[0], numbers[1], count)


def _optimizer(params: Any, method: Any, options: Mapping[str, Any] | None) -> Optimizer:
    """Return an optimizer of the parameters, to be copied; it makes no step itself."""
    more = {} if options is None else {**options}
    if "lr" in more:
        raise ValueError("find_lr: options must not hold lr, which is what is looked for")
    if isinstance(params, Optimizer):
        if more:
            raise ValueError("find_lr: an optimizer has its options; leave options away")
        opt = params
    elif is_lbfgs(method):
        raise ValueError("lbfgs has no learning rate to find: it searches the length of each step")
    elif isinstance(method, str):
        opt = optimizers.optimizer(method, params, **more)
    elif isinstance(method, type) and issubclass(method, Optimizer):
        opt = method(params, **more)
    else:
        raise TypeError(
            f"method must be an optimizer of fastopt, by name or class; got {method!r:.200}"
        )
    if opt._members is not None:
        raise ValueError("find_lr: members have a learning rate each; hand in one of them")
    return opt


def _following(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches; those of a list begin again at its end."""
    if iter(batches) is batches:
        yield from batches
        return
    some = True
    while some:
        some = False
        for batch in batches:
            some = True
            yield batch


_NONE = object()


def _run(
    step_fn: Callable[..., Any], opt: Optimizer, lrs: Array, batches: Iterator[Any] | None
) -> tuple[float, Array | None]:
    """Return the loss before the first step, and that after the step with each learning rate.

    None where there were no batches for it.
    """
    found = np.full(len(lrs), math.nan)
    first = best = math.nan
    for k in range(len(lrs) + 1):
        batch = None if batches is None else next(batches, _NONE)
        if batch is _NONE:
            return first, None if k < FEWEST else found
        answer = step_fn(opt.params) if batches is None else step_fn(opt.params, batch)
        loss, grads = _loss_and_gradients(answer)
        if k:
            found[k - 1] = loss
        else:
            first = best = loss
        if not math.isfinite(loss):
            break
        best = min(best, loss)
        # One bad batch is no divergence: two losses in a row are.
        limit = best + max(4.0 * (first - best), 3.0 * abs(first))
        if k > 1 and min(found[k - 2 : k]) > limit:
            break
        if k == len(lrs):
            break
        opt.lr = lrs[k]
        opt.step(grads, **({"value": loss} if opt._takes_value else {}))
    return first, found


def _loss_and_gradients(answer: Any) -> tuple[float, Any]:
    try:
        loss, grads = answer
    except (TypeError, ValueError):
        raise TypeError(
            f"step_fn must return a pair, the loss and the gradients; got {type(answer).__name__}"
        ) from None
    number = as_float(loss)
    if number is None:
        raise TypeError(
            f"the loss that step_fn returns must be one real number; got {type(loss).__name__}"
        )
    return number, grads


# -------------------------------------------------------------------------------------------------
# What a curve says.


def _read_off(lrs: Array, curves: Array, before: Array) -> RangeTest:
    """Return the suggestion of some runs' curves."""
    with np.errstate(all="ignore"):
        readings = [_reading(lrs, *one) for one in zip(curves, before, strict=True)]
        together = _smoothed(_mean(curves), float(np.mean(before)))[0]
    if not np.isfinite(before).all():
        return _untold("The loss is not finite before the first step.", lrs, curves, together)
    found = [one for one in readings if one is not None]
    if not found:
        return _untold(_why_none(lrs, curves, before), lrs, curves, together)
    each = np.array(found)
    suggestion = float(np.exp(np.median(np.log(each).mean(axis=1))))
    low, high = float(each.min()), float(each.max())
    doubts = _doubts(lrs, curves, before, len(found))
    if high / low > SURE_WITHIN:
        doubts.append("The readings differ by more than a factor of 10.")
    said = "one run" if len(curves) == 1 else f"{len(curves)} runs"
    message = f"A learning rate of {suggestion:.2g}, by {said} between {low:.2g} and {high:.2g}."
    message = " ".join([message, "This is sure." if not doubts else "Not sure:", *doubts])
    return RangeTest(suggestion, low, high, not doubts, message, lrs, curves, together)


def _untold(why: str, lrs: Array, curves: Array, smoothed: Array) -> RangeTest:
    nan = math.nan
    return RangeTest(nan, nan, nan, False, f"No suggestion. {why}", lrs, curves, smoothed)


def _mean(curves: Array) -> Array:
    """Return the mean of the runs, as far as all have gone."""
    mean: Array = curves.mean(axis=0)
    return mean


def _smoothed(losses: Array, first: float) -> tuple[Array, Array]:
    """Return a curve smoothed by lines through a tenth of it around each point, and their slopes.

    What is far above the loss at first is cut off, so that the end of the curve, where it
    diverges, does not bend what is before.
    """
    count = int(np.isfinite(losses).cumprod().sum())
    value, slope = np.full(len(losses), math.nan), np.full(len(losses), math.nan)
    if count < 3:
        return value, slope
    known = losses[:count]
    cut = np.minimum(known, first + max(first - known.min(), 0.0))
    reach = max(2, len(losses) // 20)
    for k in range(count):
        near = slice(max(0, k - reach), min(count, k + reach + 1))
        place = np.arange(near.start, near.stop) - k
        middle = place.mean()
        away = place - middle
        slope[k] = (away * cut[near]).sum() / (away * away).sum()
        value[k] = cut[near].mean() - slope[k] * middle
    return value, slope


def _reading(lrs: Array, losses: Array, first: float) -> tuple[float, float] | None:
    """Return the learning rates of the steepest fall and a tenth of that of the lowest loss."""
    value, slope = _smoothed(losses, first)
    known = np.isfinite(value)
    if known.sum() < FEWEST or not math.isfinite(first):
        return None
    lowest = int(np.nanargmin(value))
    if lowest == 0 or not value[lowest] < first:
        return None
    steepest = int(slope[: lowest + 1].argmin())
    return float(lrs[steepest]), max(float(lrs[lowest]) / 10.0, float(lrs[0]))


def _why_none(lrs: Array, curves: Array, before: Array) -> str:
    known = np.isfinite(curves)
    if (known.sum(axis=1) < FEWEST).all():
        return f"The loss diverges from the first steps on: take lr_min below {lrs[0]:.2g}."
    if (np.where(known, curves, before[:, None]) == before[:, None]).all():
        return (
            "The loss is the same whatever the learning rate: step_fn must use the parameters that "
            "it is handed, and return their gradients."
        )
    return (
        "The loss never falls below what it was: look at the sign of the gradients, take lr_min "
        f"below {lrs[0]:.2g}, or larger batches."
    )


def _doubts(lrs: Array, curves: Array, before: Array, readable: int) -> list[str]:
    """Return what speaks against a suggestion."""
    doubts = []
    if readable < len(curves):
        doubts.append(f"The loss fell in {readable} of {len(curves)} runs alone.")
    for losses, first in zip(curves, before, strict=True):
        with np.errstate(all="ignore"):
            value = _smoothed(losses, float(first))[0]
        known = np.isfinite(value)
        lowest = int(np.nanargmin(value)) if known.any() else 0
        quiet = known & (np.arange(len(lrs)) <= lowest)
        scatter = float((losses - value)[quiet].std()) if quiet.any() else 0.0
        if first - np.nanmin(value) < 3.0 * scatter:
            doubts.append("The loss falls by less than three times what it scatters by.")
            break
    if all(np.isfinite(curves[:, -1])) and int(np.nanargmin(_mean(curves))) >= len(lrs) - 2:
        doubts.append(f"The loss still falls at lr_max = {lrs[-1]:.2g}: take a larger one.")
    return doubts
