"""What a fragment is: something that acts around any rule, written three times."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fastopt_kernels.rule import (
    Memory,
    Sums,
    check_cupy,
    check_name,
    check_passes,
    check_signature,
)

VALUES = ("plain_grad", "grad", "before", "decayed", "after")
"""What a form can ask for, in this order; it takes those that it needs.

``plain_grad`` is the gradient after its scale and its sign. ``grad`` is what the fragments at
"gradient" that stand before have made of it, and after all of these, with the L2 term, what the
rule sees. ``before`` is the value as the step found it,
``decayed`` what the rule began with (the parameter after its decoupled decay, for state the same
as ``before``), ``after`` what the rule made of it, and fragments that stand before. The last three
are of the value at hand: for a slot of state they are that slot's, not the parameter's.
"""


@dataclass(frozen=True, slots=True)
class Fragment:
    """An option that acts on the gradient before any rule, or on what any rule has made.

    ``at="gradient"``: the forms return what the L2 term is added to and the rule is to see, of
    ``plain_grad`` and ``grad``. ``at="after"``: they return the value that is kept, and are called
    for the parameter and, with ``on="all"``, for each slot of state; ``grad`` is then that of the
    same element. After these values all forms take ``*scalars`` and what ``memory`` makes of
    ``sums``, which sum over the same values as the forms ask for (those of the parameter).
    ``scalars`` reach the forms in the arithmetic's dtype, ``inputs`` of the memory its function in
    float64; both are values of the options with these names. Those scalars that ``lr_scalars``
    names too are multiplied by the learning rate, which there is at "after" alone.

    * ``numpy``: arrays in, a new array out; no argument is changed;
    * ``numba``: numbers of one element in, a number out; not decorated;
    * ``cupy``: C++ that assigns ``kept``, on variables of type ``real`` with these names.

    ``refuses`` names the storage of state that the fragment cannot act on; ``of_decay`` says that
    it acts on weight decay that comes before the rule, and on nothing else.
    """

    name: str
    at: Literal["gradient", "after"]
    numpy: Callable[..., Any]
    numba: Callable[..., Any]
    cupy: str
    on: Literal["param", "all"] = "param"
    scalars: tuple[str, ...] = ()
    lr_scalars: tuple[str, ...] = ()
    sums: Sums | None = None
    memory: Memory | None = None
    refuses: tuple[str, ...] = ()
    of_decay: bool = False

    def __post_init__(self) -> None:
        """Hold the three forms against each other."""
        check_name(self.name)
        owner = f"fragment {self.name}"
        if self.at not in ("gradient", "after") or self.on not in ("param", "all"):
            raise TypeError(
                f"{owner} acts at 'gradient' or 'after', on 'param' or 'all'; "
                f"got {self.at!r}, {self.on!r}"
            )
        for form in ("numpy", "numba"):
            check_signature(owner, form, getattr(self, form), self.arguments)
        check_cupy(owner, self.cupy, self.arguments, ("kept",))
        if not set(self.lr_scalars) <= set(self.scalars if self.at == "after" else ()):
            raise TypeError(f"{owner}: {self.lr_scalars} are no scalars of it at 'after'")
        check_passes(owner, self.read, self.sums, self.memory)
        if self.memory and (self.memory.names or self.memory.over != "array"):
            raise TypeError(f"{owner}: fragments sum over an array and remember nothing")
        if self.memory and self.on == "all":
            raise TypeError(f"{owner}: a fragment that acts on all has no sums")

    @property
    def values(self) -> tuple[str, ...]:
        """Which of ``VALUES`` the forms take."""
        asked = inspect.signature(self.numpy).parameters
        allowed = VALUES[:2] if self.at == "gradient" else VALUES
        return tuple(name for name in allowed if name in asked)

    @property
    def read(self) -> tuple[str, ...]:
        """The argument names of the pass that only reads and sums, in order."""
        return (*self.values, *self.scalars, *(self.memory.handed if self.memory else ()))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The argument names that every form has, in order."""
        return (*self.read, *(self.memory.scalars if self.memory else ()))
