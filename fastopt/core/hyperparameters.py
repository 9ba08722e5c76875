"""Hyperparameters: checks of their values, bounds, and the scalars that a rule makes of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.dtypes import BOUNDS, Kind
from fastopt.core.tree import Leaf, Tree
from fastopt_kernels import AnyRule, Rule

# -------------------------------------------------------------------------------------------------
# What a hyperparameter may be, and what is said when it is not that.

Options = dict[str, Any]
"""Hyperparameters by name."""

Scheduled = float | Array | Callable[[int], Any]
"""A number, or a function of the step number (0 for the first step) that returns one; where an
optimizer has members it may be an array of one for each of them."""

ScheduledNumber = float | Callable[[int], float]
"""The same of what has no members."""

Value = float | Array
"""A number, or one float64 for each member of an optimizer that has members."""


class Check(Protocol):
    """Returns the value in its plain Python form, or raises TypeError or ValueError."""

    def __call__(self, name: str, value: Any) -> Any:
        """Check one hyperparameter's value."""


@dataclass(frozen=True)
class Number:
    """A finite real number between two ends: whatever ``as_float`` takes for one.

    With ``infinite`` it may be the float infinity too.
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    infinite: bool = False

    def __call__(self, name: str, value: Any) -> float:
        """Return the number as a float."""
        number = as_float(value)
        if number is None:
            raise TypeError(f"{name} must be a number in {self}; got {value!r}")
        infinite = self.infinite and isinstance(value, float) and value == math.inf
        inside = self.low <= number <= self.high and (math.isfinite(number) or infinite)
        at_open_end = (self.low_open and number == self.low) or (
            self.high_open and number == self.high
        )
        if not inside or at_open_end:
            raise ValueError(f"{name} must be a number in {self}; got {value!r}")
        return number

    def __str__(self) -> str:
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high_open or (self.high == math.inf and not self.infinite) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class MemberNumber:
    """A number for all members, or an array of one number for each of them."""

    number: Number
    members: int

    def __call__(self, name: str, value: Any) -> Value:
        """Return the number as a float, or the numbers as a read-only array of float64."""
        check = self.number
        if isinstance(value, list | tuple | dict):
            raise TypeError(
                f"{name} must be a number in {check}, or an array of {self.members} of them, one "
                f"for each member, such as np.array([...]); got {value!r:.200}"
            )
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            return check(name, value)
        if value.shape != (self.members,) or value.dtype.kind not in "fiu":
            raise ValueError(
                f"{name} must be a number in {check}, or an array of {self.members} of them, one "
                f"for each member; got {value.dtype} of shape {value.shape}"
            )
        numbers = value.astype(np.float64)
        above = numbers > check.low if check.low_open else numbers >= check.low
        below = numbers < check.high if check.high_open else numbers <= check.high
        finite = np.isfinite(numbers) | (check.infinite & (numbers == np.inf))
        wrong = ~(above & below & finite)
        if wrong.any():
            member = int(wrong.argmax())
            raise ValueError(
                f"{name} must hold numbers in {check}; got {value[member]} for member {member}"
            )
        numbers.flags.writeable = False
        return numbers


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def __call__(self, name: str, value: Any) -> bool:
        """Return the flag as a bool."""
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False; got {value!r}")
        return bool(value)


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> str:
        """Return the word as it is."""
        if not isinstance(value, str):
            raise TypeError(f"{name} must be one of {', '.join(self.words)}; got {value!r}")
        if value not in self.words:
            raise ValueError(f"{name} must be one of {', '.join(self.words)}; got {value!r}")
        return value


@dataclass(frozen=True)
class Maybe:
    """None, or what another check lets through."""

    check: Check

    def __call__(self, name: str, value: Any) -> Any:
        """Return None, or what the other check returns."""
        return None if value is None else self.check(f"{name}, if it is not None,", value)


@dataclass(frozen=True)
class Numbers:
    """So many finite numbers."""

    count: int

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        """Return them as a tuple of floats."""
        if not isinstance(value, tuple | list) or len(value) != self.count:
            raise TypeError(f"{name} must be {self.count} numbers; got {value!r}")
        return tuple(FINITE(f"{name}[{k}]", number) for k, number in enumerate(value))


@dataclass(frozen=True)
class OneOrMore:
    """One number or more, each in the same range."""

    number: Number

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        """Return them as a tuple of floats."""
        if not isinstance(value, tuple | list) or not value:
            raise TypeError(f"{name} must be a tuple of numbers in {self.number}; got {value!r}")
        return tuple(self.number(f"{name}[{k}]", one) for k, one in enumerate(value))


@dataclass(frozen=True)
class Schedulable:
    """A number, or a function of the step number (0 for the first step) that returns one."""

    number: Number | MemberNumber

    def __call__(self, name: str, value: Any) -> Any:
        """Return the number as a float, or the function as it is."""
        if callable(value):
            return value  # its values are checked at every step
        return self.number(name, value)

    def at(self, name: str, value: Any, step: int) -> Any:
        """Return the value in a step, checked; ``value`` is what ``__call__`` returned."""
        return self.number(f"{name} at step {step}", value(step)) if callable(value) else value


@dataclass(frozen=True)
class Several:
    """So many numbers, each with its own range, and each a function of the step number if it may.

    Their order is part of it: they are set and saved together, as a tuple.
    """

    numbers: tuple[Schedulable, ...]

    def __call__(self, name: str, value: Any) -> tuple[Any, ...]:
        """Return a tuple, in the plain form of numbers, with functions as they are."""
        if not isinstance(value, tuple | list) or len(value) != len(self.numbers):
            count = "a pair of" if len(self.numbers) == 2 else f"{len(self.numbers)}"
            raise TypeError(
                f"{name} must be {count} numbers, or functions of the step number that return one "
                f"each; got {value!r}"
            )
        pairs = zip(self.numbers, value, strict=True)
        return tuple(check(f"{name}[{k}]", one) for k, (check, one) in enumerate(pairs))

    def at(self, name: str, value: tuple[Any, ...], step: int) -> tuple[Value, ...]:
        """Return the numbers in a step, checked; ``value`` is what ``__call__`` returned."""
        pairs = zip(self.numbers, value, strict=True)
        return tuple(check.at(f"{name}[{k}]", one, step) for k, (check, one) in enumerate(pairs))


class Pair(Several):
    """Two numbers."""

    def __init__(self, first: Schedulable, second: Schedulable) -> None:
        super().__init__((first, second))


def functions_in(check: Check, value: Any) -> list[Callable[[int], Any]]:
    """Return the functions of the step number that a checked value is, or holds."""
    if isinstance(check, Several):
        return [one for one in value if callable(one)]
    return [value] if callable(value) else []


def of_members(check: Check, members: int) -> Check:
    """Return a check that lets an array of one number for each member through, for a number."""
    if isinstance(check, Number):
        return MemberNumber(check, members)
    if isinstance(check, Several):
        return Several(tuple(_of_members(one, members) for one in check.numbers))
    if isinstance(check, Schedulable):
        return _of_members(check, members)
    return Maybe(of_members(check.check, members)) if isinstance(check, Maybe) else check


def _of_members(check: Schedulable, members: int) -> Schedulable:
    number = check.number
    return Schedulable(MemberNumber(number, members)) if isinstance(number, Number) else check


def of_each(function: Callable[[float], float], values: Array) -> Array:
    """Return what a function makes of the number of each member; it is asked once for equal ones.

    NumPy's own expm1 and log differ from those of ``math`` in the last bit of some values.
    """
    distinct, places = np.unique(values, return_inverse=True)
    return np.array([function(one) for one in distinct.tolist()])[places]


def together(function: Callable[..., float], *values: Value) -> Value:
    """Return what a function makes of several values, or of those of each member."""
    if all(type(value) is float for value in values):
        return function(*values)
    columns = [column.tolist() for column in np.broadcast_arrays(*values)]
    return np.array([function(*numbers) for numbers in zip(*columns, strict=True)])


def exceeds(value: Value, limit: Value) -> bool:
    """Return whether a number, or that of any member, is larger than a limit."""
    return bool(np.any(value > limit))


def where_zero(values: Array, then: Value, otherwise: Value) -> Array:
    """Return a choice for each member: whether its number is 0."""
    return np.where(values == 0.0, then, otherwise)


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` on, to ``high`` if there is one."""

    low: int
    high: int | None = None

    def __call__(self, name: str, value: Any) -> int:
        """Return the number as an int."""
        return whole(name, value, self.low, self.high)


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number that is in the range, or raise TypeError or ValueError."""
    upto = "on" if high is None else f"to {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number from {low} {upto}; got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be a whole number from {low} {upto}; got {value!r}")
    return int(value)


def as_float(value: Any) -> float | None:
    """Return a real number as a float; None for anything else, truth values and text included.

    It takes what ``float()`` takes, of any library: NumPy's numbers, arrays and tensors of one
    element (one on a device is fetched, which waits for it), fractions and decimals.
    """
    if isinstance(value, float):
        return float(value)
    try:
        return float(_element(value)) if _is_number(value) else None
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _is_number(value: Any) -> bool:
    """Return whether this may be a real number, or an array of one element that holds one."""
    if isinstance(value, bool | str | bytes) or math.prod(getattr(value, "shape", ())) != 1:
        return False
    dtype = str(getattr(value, "dtype", "float"))  # its name says what it is in any library
    found = "float" in dtype or "int" in dtype
    return found and (hasattr(value, "__float__") or hasattr(value, "__index__"))


def _element(value: Any) -> Any:
    """Return the element of an array of one: NumPy lets ``float()`` take none that has axes."""
    return value.item() if hasattr(value, "item") else value


NONNEGATIVE = Number(low=0.0)
POSITIVE = Number(low=0.0, low_open=True)
POSITIVE_OR_INF = Number(low=0.0, low_open=True, infinite=True)
GROWTH = Number(low=1.0, infinite=True)
"""A factor that something may grow by at most: below 1 it would have to shrink."""
FRACTION = Number(low=0.0, high=1.0, high_open=True)
"""A decay rate: 0 forgets everything, 1 would never learn and is excluded."""
BETA = Schedulable(FRACTION)
BETAS = Pair(BETA, BETA)
THREE_BETAS = Several((BETA, BETA, BETA))
SHARE = Schedulable(Number(low=0.0, high=1.0))
"""A weight in a mean of two; the other has the rest."""
SHARES = Pair(SHARE, SHARE)
FINITE = Number()
EPS = NONNEGATIVE
"""Added to a denominator. A constant 0 stands for the smallest guard against 0/0; a function of the
step number must not return 0."""


# -------------------------------------------------------------------------------------------------
# Bounds of parameters: what may be given, and what the backends are told of it.


@dataclass(frozen=True)
class BoundsCheck:
    """None, or a pair of a lower and an upper bound, each a number, None, or a tree of those."""

    def __call__(self, name: str, value: Any) -> tuple[Any, Any] | None:
        """Return the pair, with numbers as floats and None for no bound."""
        if value is None:
            return None
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(
                f"{name} must be None or a pair (lower, upper), each a number, None, or a tree of "
                f"arrays nested as the parameters; got {value!r:.200}"
            )
        lower, upper = (_number(f"{name}[{k}]", one) for k, one in enumerate(value))
        if isinstance(lower, float) and isinstance(upper, float) and lower > upper:
            raise ValueError(f"{name}: the lower must be at most the upper; got {value!r}")
        return None if lower is None and upper is None else (lower, upper)


def _number(name: str, value: Any) -> Any:
    """Return a number as a float; what is no number as it is."""
    number = None if getattr(value, "ndim", 0) else as_float(value)
    if number is not None and math.isnan(number):
        raise ValueError(f"{name} must not be NaN; None is no bound")
    return value if number is None else number


def bounds_kind(bounds: tuple[Any, Any] | None) -> Kind:
    """Return whether there are bounds, and whether they are the same for all parameters."""
    if bounds is None:
        return "none"
    return "numbers" if all(isinstance(b, float | None) for b in bounds) else "arrays"


def saved_bounds(bounds: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
    """Return what stands in a state_dict: bounds that are arrays do not."""
    return bounds if bounds_kind(bounds) == "numbers" else None


def bounds_as_numbers(bounds: tuple[Any, Any], dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return bounds that are numbers as numbers of the parameters' dtype, none as infinite."""
    lower, upper = bounds
    low = -math.inf if lower is None else float(_inside(np.array([lower]), dtype, 1)[0])
    high = math.inf if upper is None else float(_inside(np.array([upper]), dtype, -1)[0])
    return low, high


def bounds_of_leaves(
    bounds: tuple[Any, Any], tree: Tree, positions: Sequence[int], group: int, owner: str
) -> dict[int, tuple[Any, Any]]:
    """Return the bounds of a group's leaves by position, as host arrays in the shape of the leaf.

    Raises ValueError for another structure or shape, TypeError for other things than numbers and
    real arrays, and ValueError if a lower bound exceeds the upper.
    """
    trained = [at for at in positions if not tree.leaves[at].is_counter]
    sides = []
    for side, given, none in zip(BOUNDS, bounds, (-math.inf, math.inf), strict=True):
        root = f"{owner}: bounds, {side}"
        values = _spread(given, tree, positions, group, root)
        found = zip(map(tree.leaves.__getitem__, positions), values, strict=True)
        sides.append([_of_leaf(root, v, leaf, none) for leaf, v in found if not leaf.is_counter])
    for position, lower, upper in zip(trained, *sides, strict=True):
        if (lower > upper).any():
            path = tree.leaves[position].path
            raise ValueError(f"{owner}: the lower bound of {path} exceeds the upper")
    return dict(zip(trained, zip(*sides, strict=True), strict=True))


def _spread(
    given: Any, tree: Tree, positions: Sequence[int], group: int, root: str
) -> Sequence[Any]:
    """Return one side of the bounds for each leaf: a number for all, or nested as they are."""
    if isinstance(given, float | None):
        return [given] * len(positions)
    if tree.grouped:
        return tree.match_group(group, given, root)
    matched = tree.match(given, root)
    return [matched[position] for position in positions]


def _of_leaf(root: str, given: Any, leaf: Leaf, none: float) -> Any:
    place = root + leaf.place
    value = _number(place, none if given is None else given)
    if isinstance(value, float):
        value = np.full(leaf.array.shape, value)
    if arrays.kind(value) is None or value.dtype.kind != "f":
        raise TypeError(
            f"{place} must be a number, None or a real array; got {type(value).__name__}"
        )
    if value.shape != leaf.array.shape:
        raise ValueError(
            f"{place} must have the shape of {leaf.path}, {leaf.array.shape}; got {value.shape}"
        )
    host = arrays.on_host(value)
    if np.isnan(host).any():
        raise ValueError(f"{place} must not hold NaN; infinity is no bound")
    return _inside(host, leaf.array.dtype, 1 if none < 0 else -1)


def _inside(values: Any, dtype: np.dtype[Any], towards: int) -> Any:
    """Return bounds in a dtype, rounded up (1) or down (-1), so that they are kept in any dtype."""
    with np.errstate(all="ignore"):  # the neighbour of the largest number is infinite
        rounded = values.astype(dtype)
        stepped = np.nextafter(rounded, np.array(towards * np.inf, dtype))
    beyond = rounded < values if towards > 0 else rounded > values
    return np.where(beyond, stepped, rounded).astype(dtype)


# -------------------------------------------------------------------------------------------------
# Factors of the learning rate: one for a group, or one for each element of some of its parameters.


@dataclass(frozen=True, eq=False)
class ElementScales:
    """An ``lr_scale`` that differs within a group; ``given`` is what the user gave.

    That is an array for a group of one leaf, or nested as the parameters, with an array that
    broadcasts against its leaf, a number, or None (for 1) for each.
    """

    given: Any

    def __repr__(self) -> str:
        return repr(self.given)


class ScaleCheck(Schedulable):
    """A factor that is >= 0, or a function that gives one; or factors of elements."""

    def __call__(self, name: str, value: Any) -> Any:
        """Return what is not for all elements in ``ElementScales``, all else as a number."""
        if isinstance(value, ElementScales):
            return value
        if isinstance(value, dict | list | tuple) or (
            arrays.kind(value) is not None and value.ndim > 0
        ):
            return ElementScales(value)
        return super().__call__(name, value)


def scales_of_leaves(
    scales: ElementScales, tree: Tree, positions: Sequence[int], group: int, owner: str
) -> dict[int, tuple[Array]]:
    """Return the factors of a group's leaves by position, host arrays in the shape of the leaf.

    Raises ValueError for another structure, shapes that do not broadcast and numbers that are no
    factors, TypeError for other things than numbers and real arrays.
    """
    root, given = f"{owner}: lr_scale", scales.given
    if len(positions) == 1 and arrays.kind(given) is not None:
        values: Sequence[Any] = [given]
    else:
        values = _spread(given, tree, positions, group, root)
    pairs = zip(positions, values, strict=True)
    return {at: (_scale_of_leaf(root, value, tree.leaves[at]),) for at, value in pairs}


def _scale_of_leaf(root: str, given: Any, leaf: Leaf) -> Array:
    place = root + leaf.place
    number = as_float(1.0 if given is None else given)
    if number is None and (arrays.kind(given) is None or given.dtype.kind not in "fiu"):
        raise TypeError(
            f"{place} must be a number, None (for 1) or a real array; got {given!r:.200}"
        )
    values = np.array(number) if number is not None else arrays.on_host(given).astype(np.float64)
    if not (np.isfinite(values) & (values >= 0.0)).all():
        raise ValueError(f"{place} must hold finite numbers >= 0; got {values!r:.200}")
    try:
        return np.broadcast_to(values, leaf.array.shape)
    except ValueError:
        raise ValueError(
            f"{place} must broadcast against {leaf.path}, whose shape is {leaf.array.shape}; got "
            f"{values.shape}"
        ) from None


# -------------------------------------------------------------------------------------------------
# What an optimizer says of its mathematics: its rule, and the scalars of a step.


Decay = Literal["gradient", "parameter", "rule"]
"""Weight decay as an L2 term on the gradient, on the parameter itself before the update
(decoupled), or within the rule, by scalars of its own: ``decay`` if that is a share of the
parameter, proportional to the learning rate, and others if it is no step of its own."""


class Formula(ABC):
    """The words and numbers of an optimizer; it knows no array and no backend.

    A subclass gives ``_checks`` for its own hyperparameters, ``_rule``, ``_scalars`` and
    ``_lr_scalars``, and where they differ from the defaults here ``_vanishing_scalars``,
    ``_smallest_denominator``, ``_fill``, ``_memory``, ``_review``, ``_check_array`` and ``_decay``.

    Where a check is ``Schedulable``, alone or in ``Several``, the option may be a function of the
    step number: ``_rule`` and ``_review`` see the function, ``_scalars`` and
    ``_smallest_denominator`` the number that it gave for the step.

    Parameters of one group can be updated by different rules, each by the formula of its own that
    ``_part`` names: ``_parts`` are all of these, and ``_view`` gives one its options in its own
    words.
    """

    _checks: ClassVar[Mapping[str, Check]] = {}
    _lr_scalars: ClassVar[tuple[str, ...]] = ()
    """The scalars that are proportional to the learning rate; where one is too small for the dtype
    of the arithmetic it is 0, and steps go on, while any other is refused. Where each element has
    a rate of its own (``ElementScales``) the NumPy form gets arrays, as it does with members."""
    _vanishing_scalars: ClassVar[tuple[str, ...]] = ()
    """Others of which a number too small for the dtype is 0: what is proportional to the weight
    decay alone, and the shares of state that are kept."""

    _takes_value: ClassVar[bool] = False
    """Whether every step is handed the loss: its rule's memory takes a value."""
    _estimate: ClassVar[Rule | None] = None
    """The rule that takes an estimate of the Hessian's diagonal into the state, as its gradient,
    before a step that is handed one. It has the state of the optimizer's own rule and some of its
    scalars, and leaves the parameter as it is."""
    _estimate_first: ClassVar[bool] = False
    """Whether the first step of a parameter must be handed one."""

    @staticmethod
    @abstractmethod
    def _rule(options: Options) -> AnyRule:
        """Return the rule that these hyperparameters ask for."""

    @staticmethod
    @abstractmethod
    def _scalars(options: Options, lr: Value, t: int, guard: float) -> dict[str, Value]:
        """Return the rule's scalars in the t-th step (1 for the first) of a parameter.

        With them the ``inputs`` of its memory. ``guard`` stands in for an eps of 0. What is
        an array of one number for each member makes arrays, by ``optimizers.common``.
        """

    @classmethod
    def _parts(cls) -> tuple[type[Formula], ...]:
        """Return the formulas that parameters of this optimizer may have: most often it alone."""
        return (cls,)

    @classmethod
    def _part(cls, options: Options, path: str, shape: tuple[int, ...]) -> type[Formula]:
        """Return which of ``_parts`` updates a parameter; raise if that cannot."""
        return cls

    @staticmethod
    def _view(options: Options) -> Options:
        """Return the options of the optimizer that this is a part of, by the names used here."""
        return options

    @staticmethod
    def _decay(options: Options) -> Decay:
        """Return what weight decay acts on."""
        return "gradient"

    @staticmethod
    def _smallest_denominator(options: Options) -> Value:
        """Return the smallest denominator of an update; 1 if nothing is divided."""
        return 1.0

    @staticmethod
    def _fill(options: Options) -> dict[str, Value]:
        """Return the value that state begins with, by slot, where it is not 0."""
        return {}

    @staticmethod
    def _memory(options: Options) -> dict[str, float]:
        """Return what the rule's memory begins with, by name, where it is not 0."""
        return {}

    @staticmethod
    def _check_array(path: str, shape: tuple[int, ...], dtype: str) -> None:
        """Raise ValueError or TypeError for a parameter that the rule cannot update."""

    @staticmethod
    def _review(options: Options) -> None:
        """Raise ValueError for hyperparameters that make no sense together."""


# -------------------------------------------------------------------------------------------------
# Coefficients that arithmetic in float32 would make 0 or infinite: refused before a step.
#
# What is proportional to the learning rate, weight decay and momentum may become 0: a schedule or a
# decay by hand brings them down as far as it is followed, and the run goes on.

_UNKNOWN = {"lr": 1.0, "lr_scale": 1.0, "weight_decay": 0.0}
"""What stands for schedules where their values are not known yet; 0.5 for any other."""

_LATE = 1_000_000
"""A step in which bias corrections are 1."""

_ZERO, _INFINITE = 2.0**-150, 2.0**128 - 2.0**103
"""Up to the first a number is rounded to 0 in float32, from the second on to infinity."""


def check_coefficients(
    formula: type[Formula],
    options: Options,
    real: np.dtype[Any],
    where: str,
    owner: str | None = None,
    around: Mapping[str, bool] = MappingProxyType({}),
) -> None:
    """Raise ValueError for a coefficient that is infinite in ``real`` and not in float64, or is 0.

    ``where`` names a parameter that is computed in it, ``owner`` the optimizer; None: its class.
    A learning rate that is infinite in float64 is refused too. ``around`` names the options that
    are scalars of what acts around the rule, and says whether the learning rate multiplies them.
    """
    numbers = with_decay(_numbers(options))
    with np.errstate(over="ignore"):
        rate = learning_rate(numbers)
    if not np.isfinite(rate).all():
        raise ValueError(
            f"{owner or formula.__name__}: lr * lr_scale must be finite; got {_said(options)}"
        )
    if real.itemsize != 4:
        return
    others = [
        (f"lr * {name}", rate * numbers[name], True)
        if by_rate
        else (name, _without_infinity(numbers[name]), False)
        for name, by_rate in around.items()
    ]
    for t in (1, _LATE):
        for name, value, vanishes in (*_coefficients(formula, numbers, t), *others):
            value = _worst(value, vanishes)
            too_small = 0.0 < abs(value) <= _ZERO and not vanishes
            if abs(value) < _INFINITE and not too_small:
                continue
            raise ValueError(
                f"{owner or formula.__name__}: {name} comes to {value:.3g}, which is "
                f"{'0' if too_small else 'infinite'} in {real}, in which {where} is "
                f"computed; got {_said(options)}. Choose others, or parameters of float64"
            )


def _without_infinity(value: Value) -> Value:
    """Return a number with 1 in the place of infinity, which every dtype holds."""
    if isinstance(value, np.ndarray):
        return np.where(np.isinf(value), 1.0, value)
    return 1.0 if math.isinf(value) else value


def _worst(value: Value, vanishes: bool) -> float:
    """Return a number as it is, of members' the first that is out of range, or any."""
    if isinstance(value, float):
        return value
    size = np.abs(value)
    wrong = ~(size < _INFINITE) | ((size > 0.0) & (size <= _ZERO) & (not vanishes))
    return float(value[wrong.argmax()])


def _numbers(options: Options) -> Options:
    """Return hyperparameters with numbers in the place of functions."""
    plain = ((name, value) for name, value in options.items() if name != "params")
    return {name: _number_for(value, _UNKNOWN.get(name, 0.5)) for name, value in plain}


def _number_for(value: Any, unknown: float) -> Any:
    if isinstance(value, tuple):
        return tuple(unknown if callable(one) else one for one in value)
    return unknown if callable(value) else value


def _coefficients(
    formula: type[Formula], options: Options, t: int
) -> Iterator[tuple[str, Value, bool]]:
    """Yield what a step multiplies by and adds, and what state begins with; if it may be 0."""
    lr, weight_decay = learning_rate(options), options["weight_decay"]
    made = formula._scalars(options, lr, t, 1.0)
    vanishing = (*formula._lr_scalars, *formula._vanishing_scalars)
    for name in formula._rule(options).scalars:
        yield name, made[name], name in vanishing
    decay = formula._decay(options)
    if decay == "parameter":
        yield "lr * weight_decay", lr * weight_decay, True
    elif decay == "gradient":
        yield "weight_decay", weight_decay, True
    for slot, value in formula._fill(options).items():
        yield f"the initial {slot}", value, False


def learning_rate(options: Options) -> Value:
    """Return the learning rate that a step goes by, of numbers: lr * lr_scale.

    Factors of elements are no part of it: they come in where an element is updated.
    """
    lr: Value = options["lr"]
    return lr * scale_of_all(options)


def scale_of_all(options: Options) -> Value:
    """Return the factor of the learning rate that all elements have, or each member's."""
    scale: Value | ElementScales = options["lr_scale"]
    return 1.0 if isinstance(scale, ElementScales) else scale


def with_decay(options: Options) -> Options:
    """Return options whose ``weight_decay`` is what the learning rate multiplies, of numbers.

    That is the share per unit of the rate. With ``decoupled_lr`` a share per step was given, and
    the rate that this is meant at, so it is divided by that.
    """
    base: Value | None = options["decoupled_lr"]
    return options if base is None else {**options, "weight_decay": options["weight_decay"] / base}


def decay_is_decoupled(formula: type[Formula], options: Options) -> bool:
    """Return whether a share of the parameter decays that is proportional to the learning rate.

    A rule that does this itself has the share as its scalar ``decay``.
    """
    acts_on = formula._decay(options)
    return acts_on == "parameter" or (
        acts_on == "rule" and "decay" in formula._rule(options).scalars
    )


def memory_inputs(formula: type[Formula], options: Options) -> dict[str, float]:
    """Return the inputs of the rule's memory in its first step; nothing without one."""
    memory = formula._rule(options).memory
    if memory is None:
        return {}
    numbers = with_decay(_numbers(options))
    made = formula._scalars(numbers, learning_rate(numbers), 1, 1.0)
    return {name: float(made[name]) for name in memory.inputs}


def _said(options: Options) -> str:
    """Return the numbers among the hyperparameters, as they were given."""
    kinds = (float, tuple, np.ndarray)
    plain = ((name, value) for name, value in options.items() if name != "params")
    return ", ".join(f"{name}={value!r}" for name, value in plain if isinstance(value, kinds))
