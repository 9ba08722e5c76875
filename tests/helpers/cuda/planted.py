"""Faults that are planted in the CUDA text, to see that the tests notice them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def planted(cupy: Any, right: str, wrong: str) -> Iterator[None]:
    """Have kernels be made of another text; one of them must hold what is replaced in it."""
    make = cupy.ElementwiseKernel.__init__
    found = 0

    def faulty(self: Any, *given: Any, **about: Any) -> None:
        nonlocal found
        for part in {"preamble", "operation"} & about.keys():
            found += right in about[part]
            about[part] = about[part].replace(right, wrong)
        make(self, *given, **about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy.ElementwiseKernel, "__init__", faulty)
        yield
    assert found, f"no kernel that was made holds {right!r}"
