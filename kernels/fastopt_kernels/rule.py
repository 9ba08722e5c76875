"""What a rule is: an update, written once for each backend, checked when it is constructed.

There are three kinds: elementwise rules (``Rule``), elementwise rules that need sums over arrays
(``Rule`` with ``sums``), and rules on whole arrays (``ArrayRule``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Numbers = Mapping[str, float]
Host = Callable[[Numbers, Numbers, Numbers], tuple[dict[str, float], dict[str, float]]]
Shape = tuple[int, ...]

_DOUBLE_LITERAL = re.compile(r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?(?![\w.])")


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over a gradient's array, or over all arrays of the optimizer, that an update needs.

    The forms say what is summed: one term for every name and element, of the same arguments as the
    rule's own forms, without the numbers that come of the sums. They only read; the pass that
    writes works the coming state out again.

    * ``numpy``: arrays in, a tuple of arrays out, one per name; no argument is changed;
    * ``numba``: numbers of one element in, a tuple of numbers out; not decorated;
    * ``cupy``: C++ that assigns variables of type ``real`` with the names of the sums.

    Terms are converted to float64, those of ``squared`` names are squared there (float32 squares
    overflow at 2e19 and vanish at 3e-23), and they are added in the order of fastopt's norms.
    Besides the sums there is always ``size``, the number of elements that were summed; it can be 0.
    """

    names: tuple[str, ...]
    numpy: Callable[..., tuple[Any, ...]]
    numba: Callable[..., tuple[Any, ...]]
    cupy: str
    squared: tuple[str, ...] = ()

    def check(self, owner: str, arguments: tuple[str, ...]) -> None:
        """Hold the forms against each other and against what the owner hands them."""
        if unknown := set(self.squared) - set(self.names):
            raise TypeError(f"{owner}: squared names no sum: {sorted(unknown)}")
        for form in ("numpy", "numba"):
            check_signature(f"{owner}, sums", form, getattr(self, form), arguments)
        check_cupy(f"{owner}, sums", self.cupy, (), self.names)


@dataclass(frozen=True, slots=True)
class Memory:
    """Numbers that outlast the step, and what is made of them and of sums for the writing pass.

    There is one set of numbers for each array, or one for the optimizer (``over``), as the sums are
    over an array or over all of them. ``names`` are those of what outlasts the step: float64, 0 at
    first unless the optimizer says otherwise, saved with the state, and advanced only by steps that
    are made. ``inputs`` names the scalars of the step that the function needs; the forms do not get
    them. For memory of the optimizer they must be the same in all its groups. ``handed`` names
    memory that both passes take, as it was before the step. ``scalars`` names what the function
    makes for the writing pass. With ``takes_value`` the number called ``value`` is not that of the
    step before: it is the loss that the step was handed, times its ``grad_scale``, and its
    negative where it is maximized.

    * ``host``: ``(scalars, memory, sums) -> (memory, scalars)`` in float64, by + - * / and the
      root alone, so that a device computes the same bits. One that looks numbers up by their names
      alone and returns two dictionaries that it writes out is compiled into a step of Numba's;
    * ``cupy``: the same in C++, on variables of type ``double`` that carry these names.
    """

    over: Literal["array", "optimizer"]
    scalars: tuple[str, ...]
    host: Host
    cupy: str
    inputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    handed: tuple[str, ...] = ()
    takes_value: bool = False

    def check(self, owner: str, sums: tuple[str, ...]) -> None:
        """Hold the names against each other, and the C++ against them."""
        if self.takes_value and not (self.over == "optimizer" and "value" in self.names):
            raise TypeError(f"{owner}: a value is handed to memory of the optimizer named 'value'")
        if self.over not in ("array", "optimizer"):
            raise TypeError(f"{owner}: memory is over 'array' or 'optimizer'; got {self.over!r}")
        if unknown := set(self.handed) - set(self.names):
            raise TypeError(f"{owner}: handed names no memory: {sorted(unknown)}")
        words = (*self.inputs, *self.names, *sums)
        if twice := {name for name in words if (*words, *self.scalars).count(name) > 1}:
            raise TypeError(f"{owner}: more than one number is called {sorted(twice)}")
        check_signature(f"{owner}, memory", "host", self.host, ("scalars", "memory", "sums"))
        kept = tuple(n for n in self.names if not (self.takes_value and n == "value"))
        check_cupy(f"{owner}, memory", self.cupy, words, (*kept, *self.scalars), False)


@dataclass(frozen=True, slots=True)
class Rule:
    """The update of one parameter by one gradient, elementwise, in three forms.

    All three take ``param, grad, *state, *scalars`` in this order, under these names; with
    ``takes_square`` it is ``param, grad, square, *state, *scalars``, where ``square`` is that of
    the gradient, or of the modulus of a complex one:

    * ``numpy``: arrays, changed in place; ``grad`` is only read, ``square`` may be overwritten;
    * ``numba``: numbers of one element in, ``(param, *state)`` out; not decorated;
    * ``cupy``: C++ on local variables of type ``real`` that carry these names.

    ``signed`` names the state that can be negative; the rest never is. ``places`` names what of it
    holds values of parameters, and is no average of gradients; ``begun`` what else the first step
    sets, whatever the gradient is. Both change in elements that ``mask_zero`` leaves alone.
    ``from_start`` says that the parameter is worked out anew from what it was at first: what is
    written into it from outside is lost with the next step. ``standing`` names signed state that it
    is worked out of, which would put it elsewhere if it became 0 at bounds.
    ``averages_squares`` says
    whether state is made of squares of gradients, which overflow where the gradient does not;
    with ``takes_square`` it is. ``heavy`` says that the C++ holds so many numbers at once that,
    with three slots of int8 state, 64 registers are too few for it.

    A rule with ``sums`` reads all arrays once more before it updates them. ``memory`` says what is
    made of the sums; without sums it only follows the steps. The forms of both passes take after
    the scalars the memory that is handed to them, and the rule's own forms after that the scalars
    that ``memory`` makes. Scalars of the step reach the NumPy form as floats, unrounded, or as
    arrays in the arithmetic's dtype: multiplied with each other, rather than one after the other
    with an array, they would not give the same bits both ways.

    A rule that lacks a form, or whose forms disagree, raises ``TypeError`` here.
    """

    name: str
    state: tuple[str, ...]
    scalars: tuple[str, ...]
    numpy: Callable[..., None]
    numba: Callable[..., tuple[Any, ...]]
    cupy: str
    signed: tuple[str, ...] = ()
    takes_square: bool = False
    averages_squares: bool = False
    sums: Sums | None = None
    memory: Memory | None = None
    places: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()
    from_start: bool = False
    standing: tuple[str, ...] = ()
    heavy: bool = False

    def __post_init__(self) -> None:
        """Hold the three forms against each other."""
        owner = f"rule {self.name}"
        check_name(self.name)
        if unknown := set(self.signed) - set(self.state):
            raise TypeError(f"{owner}: signed names no state: {sorted(unknown)}")
        if unknown := set(self.places) - set(self.signed):
            raise TypeError(f"{owner}: places names no signed state: {sorted(unknown)}")
        if unknown := set(self.standing) - set(self.signed):
            raise TypeError(f"{owner}: standing names no signed state: {sorted(unknown)}")
        if unknown := set(self.begun) - set(self.state):
            raise TypeError(f"{owner}: begun names no state: {sorted(unknown)}")
        object.__setattr__(self, "averages_squares", self.averages_squares or self.takes_square)
        for form in ("numpy", "numba"):
            check_signature(owner, form, getattr(self, form), self.arguments)
        check_cupy(owner, self.cupy, self._used, ("param", *self.state))
        check_passes(owner, self.read, self.sums, self.memory)

    @property
    def reset(self) -> tuple[str, ...]:
        """The state that becomes 0 at bounds with ``reset_at_bounds``."""
        return tuple(slot for slot in self.signed if slot not in (*self.places, *self.standing))

    @property
    def kept(self) -> tuple[str, ...]:
        """The state that fragments on all of it act on."""
        return tuple(slot for slot in self.state if slot not in (*self.places, *self.begun))

    @property
    def _used(self) -> tuple[str, ...]:
        """The argument names that no sum uses, so that the update itself must."""
        summed = self.sums.cupy if self.sums else ""
        return tuple(name for name in self.arguments if not re.search(rf"\b{name}\b", summed))

    @property
    def read(self) -> tuple[str, ...]:
        """The argument names of the pass that only reads and sums, in order."""
        square = ("square",) if self.takes_square else ()
        handed = self.memory.handed if self.memory else ()
        return ("param", "grad", *square, *self.state, *self.scalars, *handed)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The argument names that every form has, in order."""
        return (*self.read, *(self.memory.scalars if self.memory else ()))


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """The update of a whole array, for rules that are more than elementwise: products of matrices.

    ``compute(xp, param, grad, state, scalars, **settings) -> (param, state)``: ``xp`` is numpy or
    cupy, the arrays have the parameter's own shape behind one more axis, along which parameters of
    equal shape stand side by side. It changes none of its arguments; the state that it returns has
    the same slots. ``scalars`` are arrays without axes, by name, in the arithmetic's dtype.
    ``settings`` are what the structure of the computation depends on (how often it iterates), which
    is no scalar: with others it is another rule.

    ``shapes`` are functions, by slot, for state that has another shape than its parameter: of the
    parameter's shape, they return that of the slot, or None where such a parameter has no such
    slot; ``state`` is then without it. ``signed`` names the state that can be negative.
    ``decisions`` names the scalars that say what is computed at all, such as a decomposition at an
    interval: they are Python floats, for which nothing waits, since the host decides on such steps
    on a device too. None of these can be captured.
    ``averages_squares`` is as in ``Rule``.
    """

    name: str
    state: tuple[str, ...]
    scalars: tuple[str, ...]
    compute: Callable[..., tuple[Any, dict[str, Any]]]
    settings: tuple[tuple[str, Any], ...] = ()
    signed: tuple[str, ...] = ()
    shapes: tuple[tuple[str, Callable[[Shape], Shape | None]], ...] = ()
    averages_squares: bool = False
    decisions: tuple[str, ...] = ()

    takes_square = False
    sums = None
    memory = None
    places: ClassVar[tuple[str, ...]] = ()
    begun: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[tuple[str, ...]] = ()
    from_start = False

    def __post_init__(self) -> None:
        """Check the names, and what the function takes."""
        owner = f"rule {self.name}"
        check_name(self.name)
        if unknown := set(self.signed) - set(self.state):
            raise TypeError(f"{owner}: signed names no state: {sorted(unknown)}")
        if unknown := dict(self.shapes).keys() - set(self.state):
            raise TypeError(f"{owner}: shapes names no state: {sorted(unknown)}")
        if unknown := set(self.decisions) - set(self.scalars):
            raise TypeError(f"{owner}: decisions names no scalar: {sorted(unknown)}")
        arguments = ("xp", "param", "grad", "state", "scalars", *dict(self.settings))
        check_signature(owner, "compute", self.compute, arguments)

    @property
    def reset(self) -> tuple[str, ...]:
        """The state that becomes 0 at bounds with ``reset_at_bounds``."""
        return self.signed

    def __call__(
        self, xp: Any, param: Any, grad: Any, state: Numbers, scalars: Numbers
    ) -> tuple[Any, dict[str, Any]]:
        """Return what becomes of parameters and their state."""
        return self.compute(xp, param, grad, state, scalars, **dict(self.settings))


AnyRule = Rule | ArrayRule


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of a C++ name."""
    if not (name.isidentifier() and name.islower()):
        raise TypeError(f"rule name must be a lower-case identifier; got {name!r}")


def check_passes(
    owner: str, read: tuple[str, ...], sums: Sums | None, memory: Memory | None
) -> None:
    """Hold sums and memory against what their owner hands them."""
    if sums:
        if not memory:
            raise TypeError(f"{owner}: sums without memory, which says what is made of them")
        sums.check(owner, read)
    if memory:
        memory.check(owner, sums.names if sums else ())


def check_signature(owner: str, form: str, function: object, arguments: tuple[str, ...]) -> None:
    """Refuse a form that is not there or takes other arguments."""
    if not callable(function):
        raise TypeError(f"{owner}: the {form} form is missing; got {function!r}")
    names = tuple(inspect.signature(function).parameters)
    if names != arguments:
        raise TypeError(f"{owner}: the {form} form takes {names}, not {arguments}")


def check_cupy(
    owner: str, text: str, used: tuple[str, ...], assigned: tuple[str, ...], real: bool = True
) -> None:
    """Refuse C++ that leaves out a name, or holds a double where ``real`` may be float."""
    if not (isinstance(text, str) and text.strip()):
        raise TypeError(f"{owner}: the cupy form is missing; got {text!r}")
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    if absent := [name for name in used if name not in words]:
        raise TypeError(f"{owner}: the cupy form never uses {absent}")
    for name in assigned:
        if not re.search(rf"\b{name}\s*=[^=]", text):
            raise TypeError(f"{owner}: the cupy form never assigns {name}")
    if real and (found := _DOUBLE_LITERAL.search(text)):
        raise TypeError(f"{owner}: the cupy form holds the double {found[0]}; pass it as a scalar")
