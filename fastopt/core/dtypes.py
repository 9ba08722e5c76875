"""Dtypes: how parameters and state are stored, and what a step computes in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from fastopt_kernels.around import Fragment

SUPPORTED_DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, which NumPy puts together anew each time: that takes 3 us."""
    return dtype.name


MASTER = "master"
"""The state slot of the parameters in the precision of the arithmetic."""


Kind = Literal["none", "numbers", "arrays"]

BOUNDS = ("lower", "upper")

LR_SCALE = "lr_scale"
"""The slot of the factors of learning rates that are arrays."""

State = Literal["real", "bfloat16", "int8"]
"""How a rule's state is stored: in the arithmetic's dtype or in codes (``core.quantization``).

What stores and reads state asks for the kind by name and ends with ``assert_never``, or looks it up
in a table, so that mypy or the first test finds what does not know of another kind. What is only so
where codes come in blocks asks for "int8" alone; CONTRIBUTING.md lists these places.
"""

CODE_DTYPES: dict[State, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.uint8),
}
"""The dtype of the codes, for each way of storing state in them."""

CODED = tuple(CODE_DTYPES)
"""The values of ``state_dtype`` that keep state in codes."""

STATE_DTYPES = ("float64", *CODED)
"""What ``state_dtype`` may be beside None: wider arithmetic and its state, or state in codes."""

INT8_FROM = 4_096
"""Real numbers of a parameter from which its state is kept in 8 bits, where that is asked for."""

RANDOM = ("random_high", "random_low")


@dataclass(frozen=True, slots=True)
class UpdateSpec:
    """What the backends need to know of a parameter's dtype.

    ``stored`` is the dtype of the parameter's real numbers (a complex one is a row of pairs of
    them), ``gradient`` that of its gradient's, ``real`` that of its state and of all arithmetic. A
    step widens the first two to it, exactly, and rounds the parameter at its end; half precision
    goes by way of float32 both ways, so that float64 is rounded twice, the same everywhere. With
    ``master`` the state holds a parameter of half precision in ``real`` too, its master. The
    parameter is the master, rounded. Where the two differ, the user has written the parameter since
    the last step, and the master starts again from it.

    ``scaled`` names scalars of the rule and of fragments that a factor for each element multiplies,
    which stands in the arena, as it does the decay of the parameter: those that are proportional to
    the learning rate. None where the factor is a number, and in the scalars by then.

    ``bounds`` says whether parameters are kept between two numbers, or between arrays, which stand
    in the arena; with ``reset`` the signed state of one that is at a bound becomes 0.

    ``state`` says how the rule's state is stored between steps, which compute in ``real`` all the
    same; ``stochastic`` that the parameters are rounded to ``stored`` up or down by chance;
    ``modulus`` that a rule gets the squares of the moduli of pairs; ``fragments`` are what acts
    around the rule, in this order.

    ``members``: the first axis of every parameter counts fits that are made side by side, each with
    hyperparameters of its own, such as a hundred models for a hundred learning rates. One fit is a
    member. An element's scalars are then those of its member. (Most optimizers have none.)
    """

    stored: np.dtype[Any]
    gradient: np.dtype[Any]
    real: np.dtype[Any]
    master: bool
    bounds: Kind = "none"
    reset: bool = False
    state: State = "real"
    stochastic: bool = False
    modulus: bool = False
    fragments: tuple[Fragment, ...] = ()
    members: bool = False
    scaled: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        dtype: np.dtype[Any],
        master_weights: bool = True,
        bounds: Kind = "none",
        reset: bool = False,
        state: State = "real",
        stochastic: bool = False,
        modulus: bool = False,
        state_dtype: str | None = None,
        fragments: tuple[Fragment, ...] = (),
        members: bool = False,
        scaled: tuple[str, ...] = (),
    ) -> UpdateSpec:
        """Return the format of parameters of a dtype, with gradients of the same dtype."""
        stored = real_dtype(dtype)
        real = arithmetic_of(dtype, state_dtype)
        half = stored.itemsize == 2
        master = master_weights and half
        stochastic = stochastic and half and not master
        reset = reset and bounds != "none"
        modulus = modulus and dtype.kind == "c"
        return cls(
            stored,
            stored,
            real,
            master,
            bounds,
            reset,
            state,
            stochastic,
            modulus,
            fragments,
            members,
            scaled,
        )

    def with_gradients(self, dtype: np.dtype[Any]) -> UpdateSpec:
        """Return the format for gradients of this dtype, which is one of ``readable``."""
        return replace(self, gradient=dtype)

    @property
    def readable(self) -> tuple[np.dtype[Any], ...]:
        """The dtypes of gradients that a step reads as they are; others become ``real``."""
        return tuple(dict.fromkeys([self.stored, wide(self.stored), self.real]))

    @property
    def widened(self) -> bool:
        """Whether a step computes in more precision than such parameters ask for."""
        return self.real != wide(self.stored)

    @property
    def computes_as_stored(self) -> bool:
        """Whether a step computes in the precision in which the parameters are stored."""
        return self.stored == self.real

    @property
    def name(self) -> str:
        """A short name for what is compiled for it."""
        dtypes = dict.fromkeys([self.stored.name, self.gradient.name])
        bounds = [f"bounds-{self.bounds}"] * (self.bounds != "none")
        state = [f"state-{self.state}"] * (self.state != "real")
        flags = [*["reset"] * self.reset, *state, *["stochastic"] * self.stochastic]
        flags += [f"in-{self.real.name}"] * self.widened
        flags += ["modulus"] * self.modulus
        flags += [fragment.name for fragment in self.fragments]
        flags += ["members"] * self.members
        flags += [f"by-{LR_SCALE}"] * bool(self.scaled)
        return "-".join([*dtypes, *[MASTER] * self.master, *bounds, *flags])

    @property
    def masters(self) -> tuple[str, ...]:
        """The slot of the master weights, if there are any: it follows those of the rule."""
        return (MASTER,) if self.master else ()

    @property
    def rates(self) -> tuple[str, ...]:
        """The slot of the factors of learning rates, if there are any."""
        return (LR_SCALE,) if self.scaled else ()

    @property
    def limits(self) -> tuple[str, ...]:
        """The slots of bounds that are arrays."""
        return BOUNDS if self.bounds == "arrays" else ()

    @property
    def constants(self) -> tuple[str, ...]:
        """The slots that are never written: ``rates``, then ``limits``; they come last."""
        return (*self.rates, *self.limits)

    @property
    def limit_scalars(self) -> tuple[str, ...]:
        """The scalars of bounds that are numbers; they follow those of the rule."""
        return BOUNDS if self.bounds == "numbers" else ()

    @property
    def scalars(self) -> tuple[str, ...]:
        """What a row of scalars ends with, after those of the rule."""
        return (*self.fragment_scalars, *self.limit_scalars, *self.random_scalars)

    @property
    def fragment_scalars(self) -> tuple[str, ...]:
        """The scalars of fragments, which follow those of the rule, with the fragment's name."""
        return tuple(f"{f.name}_{name}" for f in self.fragments for name in f.scalars)

    @property
    def at_gradient(self) -> tuple[Fragment, ...]:
        """The fragments that act on the gradient before the rule."""
        return tuple(f for f in self.fragments if f.at == "gradient")

    @property
    def on_param(self) -> tuple[Fragment, ...]:
        """The fragments that act after the rule on the parameter alone, before the bounds."""
        return tuple(f for f in self.fragments if f.at == "after" and f.on == "param")

    @property
    def on_all(self) -> tuple[Fragment, ...]:
        """The fragments that act on parameter and state, last of all."""
        return tuple(f for f in self.fragments if f.at == "after" and f.on == "all")

    @property
    def random_scalars(self) -> tuple[str, ...]:
        """The halves of a step's random key, if anything is rounded by chance; they come last."""
        return RANDOM if self.state != "real" or self.stochastic else ()


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which such numbers are computed with: float32 for half precision."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def arithmetic_of(dtype: np.dtype[Any], state_dtype: str | None) -> np.dtype[Any]:
    """Return the dtype of the real numbers that parameters of a dtype are computed in."""
    return np.dtype(np.float64) if state_dtype == "float64" else wide(real_dtype(dtype))


def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of a dtype's real numbers: half of a complex one, else itself."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype


def dtype_of(real: np.dtype[Any], like: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of complex numbers made of such real ones if ``like`` is complex."""
    return np.dtype(f"c{2 * real.itemsize}") if like.kind == "c" else real


def state_of(state_dtype: str | None, size: int) -> State:
    """Return how the state of a parameter of so many real numbers is stored."""
    if state_dtype == "bfloat16":
        return "bfloat16"
    return "int8" if state_dtype == "int8" and size >= INT8_FROM else "real"


def real_size(shape_size: int, dtype: np.dtype[Any]) -> int:
    """Return how many real numbers so many elements of a dtype are."""
    return shape_size * dtype.itemsize // real_dtype(dtype).itemsize
