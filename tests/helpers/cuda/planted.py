"""Faults that are planted in the CUDA text, to see that the tests notice them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastopt.backends.cupy.launch import Kernels


@contextmanager
def planted(cupy: Any, right: str, wrong: str) -> Iterator[None]:
    """Have kernels be made of another text; one of them must hold what is replaced in it."""
    found = 0

    class Faulty(Kernels):
        def of(self, text: Callable[..., dict[str, Any]], *about: Any) -> Any:
            nonlocal found
            key = (text, *about)
            if key not in self._made:
                given = text(*about)
                for part in {"preamble", "operation"} & given.keys():
                    found += right in given[part]
                    given[part] = given[part].replace(right, wrong)
                self._made[key] = cupy.ElementwiseKernel(**given)
            return self._made[key]

    backend = importlib.import_module("fastopt.backends.cupy.backend")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_KERNELS", Faulty(cupy))
        yield
    assert found, f"no kernel that was made holds {right!r}"
