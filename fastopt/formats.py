"""How the numbers of parameters are stored, and in which precision a step computes with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SUPPORTED_DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")

MASTER = "master"
"""The state slot of the parameters in the precision of the arithmetic."""


@dataclass(frozen=True, slots=True)
class Format:
    """What the backends need to know of a parameter's dtype.

    ``stored`` is the dtype of the parameter's real numbers (a complex one is a row of pairs of
    them), ``given`` that of its gradient's, ``real`` that of its state and of all arithmetic. With
    ``master`` the state holds the parameter in ``real`` too. The parameter is its rounded copy:
    where the two do not agree somebody else wrote the parameter, and what was written counts.
    """

    stored: np.dtype[Any]
    given: np.dtype[Any]
    real: np.dtype[Any]
    master: bool

    @classmethod
    def of(cls, dtype: np.dtype[Any], master_weights: bool) -> Format:
        """Return the format of parameters of a dtype, with gradients of the same dtype."""
        stored = real_dtype(dtype)
        real = np.dtype(np.float32) if stored.itemsize == 2 else stored
        return cls(stored, stored, real, master_weights and stored != real)

    def with_gradients(self, dtype: np.dtype[Any]) -> Format:
        """Return the format for gradients of this dtype, which is ``stored`` or ``real``."""
        return replace(self, given=dtype)

    @property
    def exact(self) -> bool:
        """Whether a step computes in the precision in which the parameters are stored."""
        return self.stored == self.real

    @property
    def name(self) -> str:
        """A short name for what is compiled for it."""
        dtypes = dict.fromkeys([self.stored.name, self.given.name])
        return "-".join([*dtypes, *[MASTER] * self.master])


def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of a dtype's real numbers: half of a complex one, else itself."""
    return np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
