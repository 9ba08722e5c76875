"""Scalars that are arrays: members in one array end with the bits of optimizers of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastopt.core.arrays import Array
from helpers.members import (
    LAYOUTS,
    Layout,
    hyperparameters_of,
    member_run,
    separate_runs,
)
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

DTYPES = (np.float32, np.float64, np.complex64)


def same(one: dict[str, Array], two: dict[str, Array]) -> None:
    assert one.keys() == two.keys()
    for name, values in one.items():
        other = two[name]
        assert values.dtype == other.dtype
        assert values.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_members_have_the_bits_of_separate_optimizers(
    variant: Variant, dtype: Any, layout: Layout, backend: str
) -> None:
    settings = hyperparameters_of(variant)
    together = member_run(variant, settings, dtype, layout, backend=backend)
    same(together, separate_runs(variant, settings, dtype, layout, backend=backend))
