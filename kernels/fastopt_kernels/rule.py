"""What a rule is: one update, written three times, checked when it is constructed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_DOUBLE_LITERAL = re.compile(r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?(?![\w.])")


@dataclass(frozen=True, slots=True)
class Rule:
    """The update of one parameter by one gradient, elementwise, in three forms.

    All three take ``param, grad, *state, *scalars`` in this order, under these names; with
    ``squares`` it is ``param, grad, square, *state, *scalars``, where ``square`` is that of the
    gradient, or of the modulus of a complex one:

    * ``numpy``: arrays, changed in place; ``grad`` is only read, ``square`` may be overwritten;
    * ``numba``: numbers of one element in, ``(param, *state)`` out; not decorated;
    * ``cupy``: C++ on local variables of type ``real`` that carry these names.

    ``signed`` names the state that can be negative; the rest never is. ``averages_squares`` says
    whether state is made of squares of gradients, which overflow where the gradient does not;
    with ``squares`` it is.
    A rule that lacks a form, or whose forms disagree, raises ``TypeError`` here.
    """

    name: str
    state: tuple[str, ...]
    scalars: tuple[str, ...]
    numpy: Callable[..., None]
    numba: Callable[..., tuple[Any, ...]]
    cupy: str
    signed: tuple[str, ...] = ()
    squares: bool = False
    averages_squares: bool = False

    def __post_init__(self) -> None:
        """Hold the three forms against each other."""
        if not (self.name.isidentifier() and self.name.islower()):
            raise TypeError(f"rule name must be a lower-case identifier; got {self.name!r}")
        if unknown := set(self.signed) - set(self.state):
            raise TypeError(f"rule {self.name}: signed names no state: {sorted(unknown)}")
        object.__setattr__(self, "averages_squares", self.averages_squares or self.squares)
        for form in ("numpy", "numba"):
            self._check_signature(form, getattr(self, form))
        self._check_cupy()

    @property
    def arguments(self) -> tuple[str, ...]:
        """The argument names that every form has, in order."""
        return ("param", "grad", *["square"] * self.squares, *self.state, *self.scalars)

    def _check_signature(self, form: str, function: object) -> None:
        if not callable(function):
            raise TypeError(f"rule {self.name}: the {form} form is missing; got {function!r}")
        names = tuple(inspect.signature(function).parameters)
        if names != self.arguments:
            raise TypeError(
                f"rule {self.name}: the {form} form takes {names}, not {self.arguments}"
            )

    def _check_cupy(self) -> None:
        if not (isinstance(self.cupy, str) and self.cupy.strip()):
            raise TypeError(f"rule {self.name}: the cupy form is missing; got {self.cupy!r}")
        words = set(re.findall(r"[A-Za-z_]\w*", self.cupy))
        if absent := [name for name in self.arguments if name not in words]:
            raise TypeError(f"rule {self.name}: the cupy form never uses {absent}")
        for name in ("param", *self.state):
            if not re.search(rf"\b{name}\s*=[^=]", self.cupy):
                raise TypeError(f"rule {self.name}: the cupy form never assigns {name}")
        if found := _DOUBLE_LITERAL.search(self.cupy):
            raise TypeError(
                f"rule {self.name}: the cupy form holds the double {found[0]}; pass it as a scalar"
            )
