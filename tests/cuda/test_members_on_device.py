"""Scalars that are arrays, on a device: the text of the kernels looks up those of an element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.cuda.runs import differences
from helpers.members import LAYOUTS, Layout, hyperparameters_of, member_run
from helpers.variants import VARIANTS, Variant

DTYPES = (np.float32, np.float64, np.complex64)


@pytest.mark.parametrize("decided", [False, True], ids=["by_host", "by_device"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_members_have_the_bits_that_numpy_gives_them(
    xp: Any, variant: Variant, dtype: Any, layout: Layout, decided: bool
) -> None:
    settings = hyperparameters_of(variant)
    on_host = member_run(variant, settings, dtype, layout, backend="numpy")
    on_device = member_run(variant, settings, dtype, layout, xp=xp, decided=decided, backend="cupy")
    assert differences(on_host, on_device) == {}
