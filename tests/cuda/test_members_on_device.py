"""Scalars that are arrays, on a device: the text of the kernels looks up those of an element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.cuda.runs import differences, on_host
from helpers.members import LAYOUTS, Layout, hyperparameters_of, member_run
from helpers.variants import ELEMENTWISE, VARIANT_OF, Variant

DTYPES = (np.float32, np.float64, np.complex64)
SHAPES = ((3, 5), (3, 70, 101))


@pytest.mark.parametrize("decided", [False, True], ids=["by_host", "by_device"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_members_have_the_bits_that_numpy_gives_them(
    cupy: Any, variant: Variant, dtype: Any, layout: Layout, decided: bool
) -> None:
    settings = hyperparameters_of(variant)
    on_host = member_run(variant, settings, dtype, layout, backend="numpy")
    on_device = member_run(
        variant, settings, dtype, layout, xp=cupy, decided=decided, backend="cupy"
    )
    assert differences(on_host, on_device) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"state_dtype": "float64"},
        {"mask_zero": True},
        {"maximize": True},
        {"bounds": (-0.5, 2.0), "reset_at_bounds": True},
        {"complex_moment": "modulus"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("decided", [False, True], ids=["by_host", "by_device"])
def test_members_with_common_options(cupy: Any, options: dict[str, Any], decided: bool) -> None:
    dtype = np.complex64 if "complex_moment" in options else np.float32
    variant = VARIANT_OF["adam"]
    about = (variant, hyperparameters_of(variant), dtype)
    change = {"lr": [0.2, 0.0, 0.1, 0.05, 0.2], "eps": 1e-2}
    for layout in LAYOUTS:
        more = {**options, "change": change}
        on_host = member_run(*about, layout, backend="numpy", **more)
        on_device = member_run(*about, layout, xp=cupy, decided=decided, backend="cupy", **more)
        assert differences(on_host, on_device) == {}


def test_more_parameters_than_a_launch_takes_and_more_elements_than_a_block(cupy: Any) -> None:
    shapes = [(3, 2)] * 200 + [(3, 5_001)]
    rates = np.array([0.1, 0.0, 0.3])
    ends = []
    for module, backend in ((np, "numpy"), (cupy, "cupy")):
        rng = np.random.default_rng(0)
        params = [module.asarray(rng.standard_normal(shape)) for shape in shapes]
        opt = fastopt.AdamW(params, lambda step: rates / (step + 1), members=3, backend=backend)
        for _ in range(3):
            opt.step([module.asarray(rng.standard_normal(shape)) for shape in shapes])
        ends.append({str(k): on_host(param) for k, param in enumerate(params)})
    assert differences(*ends) == {}


@pytest.mark.parametrize(
    "policy",
    [
        {"max_grad_norm": 1.0},
        {"on_nonfinite": "skip"},
        {"on_nonfinite": "skip", "max_grad_norm": 2},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_is_judged_by_itself(cupy: Any, dtype: Any, policy: dict[str, Any]) -> None:
    ends = []
    for module, backend in ((np, "numpy"), (cupy, "cupy")):
        rng = np.random.default_rng(0)
        params = [module.asarray(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
        opt = fastopt.AdamW(params, members=3, backend=backend, **policy)
        found = {}
        for step in range(12):
            grads: list[Any] = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
            if "on_nonfinite" in policy and step % 3 == 1:
                grads[0][step % 2, 0] = np.inf
            given = [module.asarray(grad) for grad in grads]
            outcome = opt.step([None if step % 5 == 2 else given[0], given[1]])
            found |= {f"made {step}": outcome.made, f"norm {step}": outcome.grad_norm}
        if "on_nonfinite" in policy:
            opt.on_nonfinite, opt.max_grad_norm = "propagate", None
        opt.step(given)
        opt.select([2, 0])
        opt.step([grad[[2, 0]] for grad in given])
        found |= {str(k): on_host(param) for k, param in enumerate(opt.params)}
        found |= {"steps": opt.step_count, "skipped": opt.skipped_steps}
        for name, entry in opt.state_dict()["state"].items():
            found |= {f"{name}.{slot}": np.asarray(value) for slot, value in entry.items()}
        ends.append(found)
    assert differences(*ends) == {}


def test_members_do_not_take_a_scale_on_the_device(cupy: Any) -> None:
    opt = fastopt.Adam(cupy.ones((3, 2)), members=3, on_nonfinite="skip")
    with pytest.raises(TypeError, match="judged by themselves, so grad_scale must be a number"):
        opt.step(cupy.ones((3, 2)), grad_scale=cupy.ones(()))
