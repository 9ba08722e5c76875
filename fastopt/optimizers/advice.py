"""What looks wrong in a step that was explained: few sentences, each with a number and a remedy.

A sentence is said only where it is true of the step at hand, whatever the model is; the limits are
far beyond what steps of runs that learn look like.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fastopt.core.hyperparameters import Options

if TYPE_CHECKING:
    from fastopt.optimizers.explain import Explanation, ParameterStep

LARGE_RATIO = 0.3
"""|update| / |weights| of a matrix, in RMS: usual are 1e-4 to 1e-2."""

SMALL_RATIO = 1e-6
"""The same: so many steps take a million to change the weights by as much as they are."""

LARGE_CLIP = 10.0
"""By how much gradients are scaled down before it is said."""

LARGE_BEGINNING = 5.0
"""How many times as long as later steps the first may be for want of bias correction."""

MANY = 0.5
"""Which share of elements has to be concerned."""

MANY_SUBNORMAL = 0.25
"""Which share of a float16 gradient's elements."""


@dataclass(frozen=True)
class Advice:
    """What looks wrong, why, and what to do.

    Attributes:
        about: which of these it is, in one word: "nonfinite", "no_gradient", "zero_gradient",
            "same_gradient", "lr_zero", "large_step", "small_step", "eps", "beginning", "clipped",
            "underflow", "rounding".
        text: one or two sentences with a reason, a number and something to do.
        parameters: the names of the parameters that it is about; () for all.
    """

    about: str
    text: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


class Context(NamedTuple):
    """What a parameter's group is set to in the step, and what is kept of the parameter."""

    options: Options
    scheduled: bool
    """Whether the learning rate is a function of the step number."""
    master: bool
    """Whether it has master weights."""
    squares: bool
    """Whether its state v is an average of squares, and not a velocity."""


Around = Mapping[str, Context]


def advice_on(
    made: Explanation, around: Around, shared: tuple[str, str] | None
) -> tuple[Advice, ...]:
    """Return what looks wrong in a step; ``around`` has the context of each parameter.

    ``shared`` are two parameters whose gradients share memory.
    """
    found = [*_of_gradients(made), *_same(shared), *_of_rates(made)]
    for one in (_large, _small, _eps, _beginning, _clipped_each, _cut, _underflow, _rounding):
        found += one(made, around)
    return (*found,)


def _named(names: Iterable[str]) -> str:
    first, *others = names
    if not others:
        return first
    return f"{first} and {others[0]}" if len(others) == 1 else f"{first} and {len(others)} more"


def _worst(
    found: list[tuple[float, ParameterStep]],
) -> tuple[float, ParameterStep, str, tuple[str, ...]]:
    """Return the largest number, whose it is, and the names of all."""
    ordered = sorted(found, key=lambda pair: -pair[0])
    names = tuple(one.name for _, one in ordered)
    return *ordered[0], _named(names), names


def _of_gradients(made: Explanation) -> Iterator[Advice]:
    parameters = made.parameters
    there = [one for one in parameters if one.grad_rms is not None]
    if not there:
        if all(one.status == "frozen" for one in parameters):
            text = "all groups have trainable=False, so that no step moves anything: set it to True"
        else:
            text = "no parameter has a gradient, all are None: look at what hands them in"
        yield Advice("no_gradient", text)
        return
    bad = [(float(one.nonfinite), one) for one in there if one.nonfinite]
    if bad:
        count, _, names, every = _worst(bad)
        then = {
            "propagate": "the step would write them into parameters and state; set "
            'on_nonfinite="skip", and look at the loss and at what it divides by',
            "skip": "the step would be left out; if that goes on, look at the loss and at what it "
            "divides by, and at the learning rate before",
            "raise": "the step would raise; look at the loss and at what it divides by",
        }[made.policy]
        text = f"{count:.0f} elements of the gradient of {names} are NaN or infinite: {then}"
        yield Advice("nonfinite", text, every)
    zero = [one.name for one in there if one.zeros == 1.0 and one.size]
    if zero and len(zero) == len(there):
        text = (
            f"all {sum(one.size for one in there)} elements of all gradients are exactly 0: the "
            "loss does not depend on the parameters here. Look for units that are all off (a "
            "smaller learning rate, another initialization), a batch without data, or gradients "
            "that were never written"
        )
        yield Advice("zero_gradient", text, tuple(zero))
        return
    zero = [one.name for one in there if one.zeros == 1.0 and len(one.shape) > 1 and one.size]
    if zero:
        text = (
            f"all elements of the gradient of {_named(zero)} are exactly 0, and others' are not: "
            "nothing that the loss sees passes through it. Look at where it is used, and at "
            "whether what follows begins with 0"
        )
        yield Advice("zero_gradient", text, tuple(zero))


def _same(shared: tuple[str, str] | None) -> Iterator[Advice]:
    if shared is not None:
        text = (
            f"the gradients of {shared[0]} and {shared[1]} share memory: 2 parameters step by the "
            "same numbers. If it was handed in twice, or overwritten, hand in an array for each"
        )
        yield Advice("same_gradient", text, shared)


def _of_rates(made: Explanation) -> Iterator[Advice]:
    moving = [one for one in made.parameters if one.grad_rms is not None]
    still = [one.name for one in moving if one.lr == 0.0 and not one.update_rms]
    if still:
        text = (
            f"lr is 0 in step {_first(made.step_count) + 1} for {_named(still)}: nothing moves. If "
            "a schedule gives it, look at its number of steps, and at whether it begins at 0; else "
            'set "lr" in opt.param_groups'
        )
        yield Advice("lr_zero", text, tuple(still))
    factor = made.clip_factor if isinstance(made.clip_factor, float) else min(made.clip_factor)
    made_it = made.made if isinstance(made.made, bool) else all(made.made)
    if made_it and isinstance(made.grad_norm, float) and 0.0 < factor < 1.0 / LARGE_CLIP:
        text = (
            f"max_grad_norm={made.max_grad_norm:.3g} makes all gradients {1.0 / factor:.3g} times "
            f"smaller, their norm is {made.grad_norm:.3g}: as a limit for outliers, set it above "
            "the usual norm (watch grad_norm over some steps); if this step is one, nothing is "
            "wrong"
        )
        yield Advice("clipped", text)


def _first(count: int | tuple[int, ...]) -> int:
    return count if isinstance(count, int) else max(count)


def _matrices(made: Explanation) -> list[ParameterStep]:
    """Return the parameters of two or more axes that the step moves, and that are not all 0."""
    return [
        one for one in made.parameters if len(one.shape) > 1 and one.ratio is not None and one.size
    ]


def _large(made: Explanation, around: Around) -> Iterator[Advice]:
    found = [(one.ratio or 0.0, one) for one in _matrices(made) if not _began_with_zeros(one)]
    found = [pair for pair in found if pair[0] > LARGE_RATIO]
    if found:
        ratio, one, names, every = _worst(found)
        text = (
            f"the step changes {names} by {ratio:.2g} times its own RMS ({one.update_rms:.2g} of "
            f"{one.weight_rms:.2g}), where 0.001 is usual: take a learning rate that is "
            f"{_rounded(ratio / 1e-2):g} times smaller, or warm up"
        )
        yield Advice("large_step", text, every)


def _began_with_zeros(one: ParameterStep) -> bool:
    """Return whether a parameter may be no more than what a few steps like this one have made."""
    return one.step > 1 and one.weight_rms <= 1.5 * (one.step - 1) * (one.update_rms or 0.0)


def _rounded(value: float) -> float:
    """Return a number of one digit."""
    return float(f"{value:.0e}")


def _small(made: Explanation, around: Around) -> Iterator[Advice]:
    every = _matrices(made)
    found = [
        (one.ratio or 0.0, one)
        for one in every
        if not around[one.name].scheduled and one.grad_rms and one.lr != 0.0
    ]
    if not found or len(found) < len(every) or any(r >= SMALL_RATIO for r, _ in found):
        return
    ratio, _, names, of = _worst(found)
    # The first step of some optimizers only fills state.
    if ratio == 0.0 and all(one.unmoved == 1.0 and one.step > 1 for _, one in found):
        dtypes = ", ".join(sorted({one.dtype for _, one in found}))
        text = (
            f"100% of the elements of {names} stay as they are, to the bit: the step is lost in "
            f"{dtypes}. Raise the learning rate, or look at what scales gradients down"
        )
        yield Advice("small_step", text, of)
    if ratio == 0.0:
        return
    text = (
        f"the step changes {names} by {ratio:.1g} of its own RMS at most: {0.01 / ratio:.1g} steps "
        "would change it by a hundredth. If the loss is not at its minimum, raise the learning "
        "rate, or look at what scales gradients down"
    )
    yield Advice("small_step", text, of)


def _eps(made: Explanation, around: Around) -> Iterator[Advice]:
    found = []
    for one in made.parameters if not made.memory else ():  # or squares are in units of that
        root, eps = _root_of_squares(one, around[one.name])
        if one.status == "updated" and one.grad_rms and root and eps > root:
            found.append((eps / root, one))
    if found:
        _, one, names, every = _worst(found)
        root, eps = _root_of_squares(one, around[one.name])
        text = (
            f"eps is larger than the root of v of {names} ({eps:.2g} and {root:.2g} in RMS), so "
            "that steps shrink with the gradient, as SGD's do: choose an eps far below "
            f"{root:.1g}, or scale the loss"
        )
        yield Advice("eps", text, every)


def _root_of_squares(one: ParameterStep, context: Context) -> tuple[float, float]:
    """Return the root of the average of squares that eps is added to, and eps as it acts on it."""
    options = context.options
    eps = options.get("eps")
    if not context.squares or "v" not in one.state or not isinstance(eps, float):
        return 0.0, 0.0
    root = math.sqrt(one.state["v"])
    filled = _last_filled(one) if options.get("bias_correction", True) else 1.0
    if not options.get("eps_hat") and filled:
        root /= math.sqrt(filled)
    return root, math.sqrt(eps) if options.get("eps_inside_sqrt") else eps


def _last_filled(one: ParameterStep) -> float:
    """Return how much of the average of squares is filled."""
    values = [value for value in one.filled.values() if isinstance(value, float)]
    return values[-1] if values else 1.0


def _beginning(made: Explanation, around: Around) -> Iterator[Advice]:
    found = []
    for one in made.parameters if not made.memory else ():  # what is estimated allows for it
        given, _, _, squares = around[one.name]
        uncorrected = given.get("bias_correction") is False and "v" in one.state and squares
        if one.status != "updated" or not uncorrected or not one.filled:
            continue
        numbers = [value for value in one.filled.values() if isinstance(value, float)]
        gathers = numbers[0] if "m" in one.state and len(numbers) > 1 else 1.0
        if numbers and numbers[-1] > 0.0:
            found.append((gathers / math.sqrt(numbers[-1]), one))
    found = [pair for pair in found if pair[0] > LARGE_BEGINNING]
    if found:
        factor, one, names, every = _worst(found)
        text = (
            f"step {one.step} of {names} is {factor:.2g} times as long as later ones: its averages "
            f"begin with 0, v holds {_last_filled(one):.2g} of what it will, and "
            "bias_correction=False. Set it to True, or warm up the learning rate"
        )
        yield Advice("beginning", text, every)


def _clipped_each(made: Explanation, around: Around) -> Iterator[Advice]:
    found = [
        (1.0 / one.clip_each_factor, one)
        for one in made.parameters
        if one.status == "updated" and one.clip_each_factor
    ]
    found = [pair for pair in found if pair[0] > LARGE_CLIP]
    if found:
        factor, one, names, every = _worst(found)
        text = (
            f"clip_each={around[one.name].options['clip_each']:.3g} makes the gradient of {names} "
            f"{factor:.3g} times smaller: as a limit for outliers, set it above the usual norm of "
            "an array; if this step is one, nothing is wrong"
        )
        yield Advice("clipped", text, every)


def _cut(made: Explanation, around: Around) -> Iterator[Advice]:
    found = [
        (one.clipped_elements, one)
        for one in made.parameters
        if one.status == "updated" and one.clipped_elements and one.clipped_elements > MANY
    ]
    if found:
        cut, one, names, every = _worst(found)
        limit = around[one.name].options["clip_value"]
        text = (
            f"clip_value={limit:.3g} cuts off {cut:.0%} of the elements of the gradient of "
            f"{names}, so that little more than their signs is left: set it above "
            f"{one.grad_max:.2g}, the largest, or clip by norm"
        )
        yield Advice("clipped", text, every)


def _underflow(made: Explanation, around: Around) -> Iterator[Advice]:
    found = [
        (one.subnormal, one)
        for one in made.parameters
        if one.subnormal is not None and one.subnormal > MANY_SUBNORMAL
    ]
    if found:
        small, one, names, every = _worst(found)
        text = (
            f"{small:.0%} of the elements of the float16 gradient of {names} are below 6.1e-5, "
            f"where float16 loses digits, and {one.zeros:.0%} are 0: scale the loss up "
            "(fastopt.LossScaler, torch.amp.GradScaler), or hand in float32 gradients"
        )
        yield Advice("underflow", text, every)


def _rounding(made: Explanation, around: Around) -> Iterator[Advice]:
    found = []
    for one in made.parameters:
        given, _, master, _ = around[one.name]
        kept = one.dtype not in ("float16", "bfloat16") or master
        blocked = given["cautious"] or given["stochastic_rounding"] or given["l1"] or one.at_bounds
        blocked = blocked or (one.step == 1 and not one.update_max)  # some only fill state then
        if one.status == "updated" and not kept and not blocked and one.lr != 0.0:
            found.append((one.unmoved or 0.0, one))
    found = [pair for pair in found if pair[0] > MANY]
    if found:
        lost, one, names, every = _worst(found)
        text = (
            f"{lost:.0%} of the elements of {names} do not move, though they have a gradient: the "
            f"step is too small for {one.dtype}. Keep master_weights=True, or set "
            "stochastic_rounding=True"
        )
        yield Advice("rounding", text, every)
