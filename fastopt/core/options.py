"""The options that every optimizer takes beside its own: types, defaults, checks and documentation.

``Common`` is the one place where they are defined; the tables below are read off it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from fastopt.core.dtypes import STATE_DTYPES
from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    POSITIVE,
    POSITIVE_OR_INF,
    BoundsCheck,
    Check,
    Flag,
    Maybe,
    OneOf,
    Options,
    ScaleCheck,
    Whole,
)
from fastopt.core.quantization import SEEDS
from fastopt_kernels.around import (
    Fragment,
    cautious,
    cautious_decay,
    clip_each,
    clip_value,
    l1,
    mask_zero,
)

MODULUS = "modulus"
ComplexMoment = Literal["parts", "modulus"]
NonfinitePolicy = Literal["propagate", "skip", "raise"]


@dataclass(frozen=True)
class Option:
    """What there is to know of an option besides its name and type.

    ``check`` is None for options of the optimizer as a whole, which the optimizer checks; the
    others are hyperparameters of a group. What is ``fixed`` cannot change after the construction;
    what says how numbers are ``stored`` is changed by ``convert=True`` too. A state that was saved
    with another value of what is ``of_state`` is stored otherwise, or means something else. Where
    the option is on, neither False nor None, its ``fragment``, if it has one, acts around the rule;
    a number can be set to another, and stays one. ``neutral`` is the number that changes nothing.
    What is ``graphed`` a step that is captured in a CUDA graph keeps.
    """

    default: Any
    text: str
    check: Check | None = None
    fixed: bool = False
    stored: bool = False
    of_state: bool = False
    fragment: Fragment | None = None
    neutral: float = math.inf
    graphed: bool = False


class Common(TypedDict, total=False):
    """What every optimizer takes; all are optional."""

    lr_scale: Annotated[
        Any,
        Option(
            1.0,
            "what lr is multiplied by, schedule included (1.0); >= 0, without a unit: a number, or "
            "a function of the step number. A step's learning rate is lr * lr_scale wherever lr "
            "stands in a formula, so that groups with one lr keep their ratio when ``opt.lr`` is "
            "set and under a schedule. Also an array that broadcasts against the one array of its "
            "group, or a tree nested as the parameters of numbers, None (for 1) and such arrays, "
            "for a rate of each element. A hyperparameter: it can differ between groups; numbers "
            "can be set to others between steps.",
            ScaleCheck(NONNEGATIVE),
        ),
    ]
    decoupled_lr: Annotated[
        bool | float | None,
        Option(
            None,
            "let weight_decay be the share of the parameter that is taken off in a step, and not "
            "per unit of lr: p <- p - weight_decay * lr * lr_scale / decoupled_lr * p wherever p - "
            "lr * lr_scale * weight_decay * p stands in a formula; > 0, in units of lr: the "
            "learning rate at which weight_decay is meant, usually the largest one of a schedule. "
            "True stands for the lr that the optimizer, or its group, is constructed with, which "
            "has to be a number then: another lr does not change the decay of the first step, and "
            "one that is set later does as much as a schedule. None (the default) or False: decay "
            "is in proportion to lr. For optimizers with decoupled weight decay. As torch-optimi's "
            "decouple_lr and max_lr, where True stands for the optimizer's lr in all groups; after "
            "Loshchilov and Hutter, 'Decoupled Weight Decay Regularization' (2019), whose eta is "
            "the schedule alone. A hyperparameter: it can differ between groups, and be set to "
            "another number or None between steps.",
            Maybe(POSITIVE),
        ),
    ]
    maximize: Annotated[
        bool,
        Option(
            False,
            "go up instead of down (False). A hyperparameter: it can differ between groups.",
            Flag(),
        ),
    ]
    trainable: Annotated[
        bool,
        Option(
            True,
            "whether steps are made (True). Parameters of a group where it is False are left "
            "alone, with their state and step counts, and their gradients are not looked at: they "
            "can be None or anything, and count neither in the norm nor as not finite. Arrays of "
            "whole numbers or truth values, such as counters, can be in such a group; they have no "
            "state, and ``save`` stores them with the parameters. A "
            "hyperparameter: it can differ between groups, and be set between steps.",
            Flag(),
        ),
    ]
    bounds: Annotated[
        Any,
        Option(
            None,
            "a pair (lower, upper) that every parameter is kept between, each a number, None for "
            "no bound, or a tree nested as the parameters of numbers, None and arrays in the shape "
            "of the parameter; None (the default) for none. The update is cut off at the bound, in "
            "the units of the parameter; bounds that the parameter's dtype does not have are "
            "rounded inwards. A hyperparameter: it can differ between groups; numbers can be set "
            "to others between steps.",
            BoundsCheck(),
        ),
    ]
    reset_at_bounds: Annotated[
        bool,
        Option(
            False,
            "whether the averages of gradients (m, the momentum) of a parameter that a step leaves "
            "at a bound become 0 (False), so that it leaves the bound as soon as a gradient points "
            "inwards. Averages of squares stay: they are the gradient's scale.",
            Flag(),
            of_state=True,
        ),
    ]
    adaptive_clip: Annotated[
        float | None,
        Option(
            None,
            "scale the gradient g of each unit of an array by min(1, adaptive_clip * max(|p|, "
            "1e-3) / |g|), where |p| and |g| are the 2-norms of the unit's parameters, as they are "
            "before the step, and of its gradient times grad_scale, in float64, of complex numbers "
            "over both parts; > 0, without a unit, usually 0.01 to 0.16, math.inf scales nothing; "
            "None (the default) for none. A unit is a row of an array of two or more axes, all "
            "that stands at one place of the first axis: the weights of one output where these "
            "come first, as in PyTorch and timm; an array of one axis or none is one unit. Where "
            "outputs come last (x @ W, keras; optax takes them so) hand in views that begin with "
            "this axis, and such gradients: np.moveaxis(W, -1, 0). It comes first of all that is "
            "done with gradients: max_grad_norm, opt.grad_norm, on_nonfinite and clip_value see "
            "what it has made. A NaN makes its unit NaN, an infinity itself NaN and the rest of "
            "its unit 0, and on_nonfinite sees either; in float64 a norm above 1.3e154 is "
            "infinite, which makes its unit 0. After Brock, De, Smith and Simonyan, "
            "'High-Performance Large-Scale Image Recognition Without Normalization' (2021); as "
            "timm's adaptive_clip_grad, which holds |g| to at least 1e-6 besides. A "
            "hyperparameter: it can differ between groups, and be set between steps.",
            Maybe(POSITIVE_OR_INF),
            graphed=True,
        ),
    ]
    centralize: Annotated[
        bool,
        Option(
            False,
            "take the mean of each row off the gradient of arrays of two or more axes, g <- g - "
            "mean(g) over all axes but the first, in float64 (False); others stay as they are. It "
            "comes after adaptive_clip, and before all else, as that. A row is what stands at one "
            "place of the first axis, as for PyTorch's layers; keras' have their outputs last, see "
            "adaptive_clip. After Yong, Huang, Hua and Zhang, 'Gradient Centralization: A New "
            "Optimization Technique for Deep Neural Networks' (2020); as optax.centralize. A "
            "hyperparameter: it can differ between groups, and be set between steps.",
            Flag(),
            graphed=True,
        ),
    ]
    max_grad_norm: Annotated[
        float | None,
        Option(
            None,
            "scale all gradients together by min(1, max_grad_norm / (norm + 1e-6)), where norm is "
            "the 2-norm of all of them, in float64; > 0, in units of the gradient; None (the "
            "default) leaves them alone, math.inf only measures. Settable between steps. (In "
            "float32 a norm that is 8.5e37 times the limit, or more, asks for a factor that is 0 "
            "on a GPU, where denormal numbers are.)",
        ),
    ]
    clip_value: Annotated[
        float | None,
        Option(
            None,
            "cut off every element g of the gradient at min(max(g, -clip_value), clip_value); > 0, "
            "in units of the gradient, math.inf cuts nothing off; None (the default) for none. g "
            "has been multiplied by grad_scale and by the factor of max_grad_norm; clip_each and "
            "weight_decay come after. NaN stays NaN; of a complex number each part is cut off on "
            "its own. max_grad_norm and on_nonfinite look at the gradients before that. The same "
            "as PyTorch's clip_grad_value_ before its step. A hyperparameter: it can differ "
            "between groups, and a number be set to another between steps, but not to None.",
            Maybe(POSITIVE_OR_INF),
            fragment=clip_value.FRAGMENT,
        ),
    ]
    clip_each: Annotated[
        float | None,
        Option(
            None,
            "scale the gradient of each array by min(1, clip_each / (norm + 1e-6)), where norm is "
            "the 2-norm of this array's gradient alone, in float64, of complex numbers over both "
            "parts; > 0, in units of the gradient, math.inf scales nothing; None (the default) for "
            "none. It comes after grad_scale, max_grad_norm and clip_value, and before "
            "weight_decay. A norm that is infinite (in float64 gradients also one above 1.3e154, "
            "whose square is) makes the array's gradient 0, where it is infinite itself NaN, and a "
            "NaN makes all of it NaN; on_nonfinite looks at gradients before that. The same as "
            "PyTorch's clip_grad_norm_ on one parameter after the other. A hyperparameter: it can "
            "differ between groups, and a number be set to another between steps, but not to None.",
            Maybe(POSITIVE_OR_INF),
            fragment=clip_each.FRAGMENT,
        ),
    ]
    on_nonfinite: Annotated[
        NonfinitePolicy,
        Option(
            "propagate",
            'what a NaN or an infinity in a step\'s gradients does. "propagate" (the default) does '
            'not look; "skip" leaves everything as it is and adds 1 to ``skipped_steps``; "raise" '
            "leaves everything as it is and raises FloatingPointError with the parameter's name. "
            'With CuPy "raise" waits for the device in every step; the others do not, see '
            '``Optimizer.step``. "skip" and "raise" do the same where float32 averages squares of '
            "the gradients and the norm of all of them, scaled and clipped, is 2^63 (9.2e18) or "
            'more, whose squares it does not hold; state_dtype="float64" takes such gradients.',
        ),
    ]
    members: Annotated[
        int | None,
        Option(
            None,
            "how many fits are made side by side, each with the bits of an optimizer of its own; "
            "None (the default): there is one. The first axis of every parameter and gradient "
            "counts them (those of bounds too, where they are arrays), and every number of a group "
            "may be an array of one for each. Each has its own norm, which max_grad_norm, one for "
            "all, and on_nonfinite go by, and its own step count: one whose gradient is not "
            "finite is left out alone. ``step_count``, "
            "``skipped_steps``, ``grad_norm`` and an outcome's ``made`` are arrays then; "
            "``select`` keeps some. For optimizers that update each element by itself, without "
            "sums, and state that is not coded. Where the parameters are CuPy arrays, steps that "
            "are clipped or can be skipped wait for the device.",
        ),
    ]
    capturable: Annotated[
        bool,
        Option(
            False,
            "whether a step can be captured in a CUDA graph and replayed (False), see "
            '``Optimizer.refresh``; not together with on_nonfinite="raise". On NumPy arrays it '
            "changes nothing.",
        ),
    ]
    master_weights: Annotated[
        bool,
        Option(
            True,
            "keep float16 and bfloat16 parameters in the precision of the arithmetic too, as a "
            "part of the state (True), so that updates too small for the parameter's dtype add up; "
            "False saves these bytes and loses such updates. Other dtypes need none.",
        ),
    ]
    state_dtype: Annotated[
        str | None,
        Option(
            None,
            "how the optimizer's state (its averages; not the parameters) is kept between steps: "
            'None (the default) in the precision of the arithmetic, "bfloat16" in half of its '
            'memory, "int8" in a quarter: 8-bit floats with a scale for every 256 of them; '
            "parameters of fewer than 4096 numbers keep float32 then. Steps compute in float32 all "
            "the same, and state is rounded stochastically, so that averages follow what is too "
            "small for them at a single step. For float32, float16, bfloat16 and complex64 "
            "parameters. In 8 bits state that is NaN, infinite or above 1.6e38 makes its whole "
            'block NaN; on_nonfinite looks at gradients alone. With "float64" state and arithmetic '
            "of these parameters are in float64, where the squares of 1e-25 and 1e19 are ordinary "
            "numbers; the parameters stay in their dtype. It can differ between groups, and not "
            "change.",
            Maybe(OneOf(STATE_DTYPES)),
            fixed=True,
            stored=True,
            of_state=True,
        ),
    ]
    stochastic_rounding: Annotated[
        bool,
        Option(
            False,
            "round float16 and bfloat16 parameters that have no master weights (set "
            "master_weights=False) up or down with the probability that keeps their mean (False), "
            "so that small updates add up. Other dtypes are not affected. It can differ between "
            "groups, and not change.",
            Flag(),
            fixed=True,
            stored=True,
            of_state=True,
        ),
    ]
    cautious: Annotated[
        bool,
        Option(
            False,
            "move only elements whose step goes against their gradient, and those 1 / share times "
            "as far, where share, at least 0.001, is how many of its array's elements these are "
            "(False). A step too small to change its element is none of these. State follows "
            "as always. Of a complex number each part stands for itself. "
            "After Liang, Chen, Liu and Liu, 'Cautious Optimizers' (2024). It can differ between "
            "groups, and not change.",
            Flag(),
            fixed=True,
            fragment=cautious.FRAGMENT,
        ),
    ]
    cautious_decay: Annotated[
        bool,
        Option(
            False,
            "let weight decay act only on elements p whose update u, without the decay, is towards "
            "0 too, or does not move them, so that u * p >= 0 where p - u is next (False): p <- p "
            "- u - lr * weight_decay * p there, and p <- p - u elsewhere. For optimizers with "
            "decoupled weight decay. An update too small to change its element, when that has "
            "decayed, moves nothing; beside cautious, u is what that lets through. Of a complex "
            "number each part stands for itself. After Chen, Li, Liang, Su, Xie, Wang Pierse, "
            "Liang, Lao and Liu, 'Cautious Weight Decay' (2025), whose mask lets 0 decay as here. "
            "It can differ between groups, and not change.",
            Flag(),
            fixed=True,
            fragment=cautious_decay.FRAGMENT,
        ),
    ]
    l1: Annotated[
        float | None,
        Option(
            None,
            "bring every element p of the parameters closer to 0 by lr * l1 at the end of a step, "
            "and to 0 where that would go past it: p <- sign(p) * max(|p| - lr * l1, 0), the "
            "proximal step of the penalty l1 * sum(|p|), so that elements become exactly 0; >= 0, "
            "in units of the gradient. None (the default) for none. It acts on the parameter "
            "alone, whatever the optimizer makes of gradients, as decoupled weight decay does, "
            "comes before bounds, and lr is multiplied by lr_scale. An L1 term of the gradient, l1 "
            "* sign(p), is another thing, and yours to add. Of a complex number each part stands "
            "for itself. Not for optimizers that estimate their learning rate. A hyperparameter: "
            "it can differ between groups, and a number be set to another between steps, but not "
            "to None.",
            Maybe(NONNEGATIVE),
            fragment=l1.FRAGMENT,
            neutral=0.0,
        ),
    ]
    mask_zero: Annotated[
        bool,
        Option(
            False,
            "leave elements alone whose gradient is exactly 0, with their state (False): the "
            "gradient before weight_decay; NaN is not 0. Of a complex number each part stands for "
            "itself. The step counts go on. Not with state_dtype='int8'. It can differ between "
            "groups, and not change.",
            Flag(),
            fixed=True,
            fragment=mask_zero.FRAGMENT,
        ),
    ]
    complex_moment: Annotated[
        ComplexMoment,
        Option(
            "parts",
            "of what the squares of a complex gradient (dL/dRe + i dL/dIm; grad of JAX and of "
            'autograd returns its conjugate) are averaged: "parts" (the default) of the real and '
            "of the imaginary part, each on its own, as PyTorch does, or "
            '"modulus" of |g|^2, which does not depend on where the phase begins, as optax and '
            "imaging codes do; the average then stands in both parts of the state. For Adagrad, "
            "RMSprop (not centered), Adam and AdamW; no matter to real parameters. It can differ "
            "between groups, and not change.",
            OneOf(("parts", MODULUS)),
            fixed=True,
            of_state=True,
        ),
    ]
    seed: Annotated[
        int,
        Option(
            0,
            "of the random bits of state_dtype and stochastic_rounding, a whole number from 0 to "
            "2**64 - 1 (0). They depend on nothing else than a parameter's name, its step count "
            "and the place in it.",
            Whole(0, SEEDS - 1),
        ),
    ]
    backend: Annotated[
        str | None,
        Option(
            None,
            '"auto", "numpy", "numba" or "cupy"; None (the default) for what is set elsewhere. '
            '"auto" begins on NumPy and goes over to Numba, in the same bits, when that pays.',
        ),
    ]


def _table() -> dict[str, Option]:
    hints = get_type_hints(Common, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


OPTIONS = _table()
"""All of them, by name."""


def _chosen(choose: Callable[[Option], bool]) -> dict[str, Option]:
    return {name: option for name, option in OPTIONS.items() if choose(option)}


GROUP_DEFAULTS = {k: o.default for k, o in _chosen(lambda o: o.check is not None).items()}
"""The defaults of those that are hyperparameters of a group."""

FRAGMENTS = {k: o.fragment for k, o in OPTIONS.items() if o.fragment is not None}
"""What acts around any rule, in this order, by the option that asks for it."""


def is_on(value: Any) -> bool:
    """Return whether a value of an option lets its fragment act."""
    return value is not None and value is not False


def fragments_of(options: Options) -> dict[str, Fragment]:
    """Return the fragments that some hyperparameters ask for, by the option."""
    return {name: one for name, one in FRAGMENTS.items() if is_on(options[name])}


GROUP_CHECKS: dict[str, Check] = {k: o.check for k, o in OPTIONS.items() if o.check is not None}

STORAGE = tuple(_chosen(lambda option: option.stored))
"""Those that say how numbers are stored, which ``convert=True`` changes."""

FIXED = tuple(_chosen(lambda option: option.fixed))
"""Those that an optimizer keeps from its construction on."""

OF_STATE = tuple(_chosen(lambda option: option.of_state))
"""Those that a state which is loaded must have been saved with."""

SWITCHED = tuple(_chosen(lambda option: option.fragment is not None and not option.fixed))
"""Those that are numbers or None, of which an optimizer keeps whether they are None."""


GRAPHED = tuple(_chosen(lambda option: option.graphed))
"""Those that a step keeps once it has been captured in a CUDA graph."""


def documentation() -> str:
    """Return what there is to say of every option, as the Args of a docstring."""
    wrap = textwrap.TextWrapper(96, initial_indent="    ", subsequent_indent="        ")
    return "\n\n".join(wrap.fill(f"{name}: {option.text}") for name, option in OPTIONS.items())


Common.__doc__ = f"{Common.__doc__}\n\n{documentation()}\n"
