"""When the square of a finite gradient overflows: on a device as on the host, to the bit.

The largest element of a gradient times ``unit`` and what scales the gradient is compared with
OVERFLOWS. That is exact for the arithmetic of float32, in which 2^64 is the first number whose
square overflows and the product is rounded; float64 loses its last 3e-8 below 2^512, and the
square of a modulus is taken for twice that of its larger part.
"""

from __future__ import annotations

from fastopt.formats import Format

SAFE = 2.0**63
"""No square overflows where the norm of all gradients, scaled, is below this."""

OVERFLOWS = 1.0 - 2.0**-25
"""From this on squares overflow, of numbers that are multiplied by ``unit``."""


def unit(format: Format) -> float:
    """Return what makes the first number whose square overflows 1.

    The square of a modulus is the sum of two, which may each be as large.
    """
    bound = 2.0**64 if format.real.itemsize == 4 else 2.0**512
    return (2.0**0.5 if format.modulus else 1.0) / bound
