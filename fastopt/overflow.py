"""When the squares of finite gradients overflow float32: judged by the norm, everywhere alike."""

from __future__ import annotations

LIMIT = 2.0**63
"""From this norm on of all gradients, scaled and clipped, a step counts as not finite, if a rule
averages their squares in float32.

Below it the square of no element overflows, nor does the sum of the squares of a complex number's
parts: the first numbers with such squares are 2**64 and 2**63.5. From it on they may.
"""
