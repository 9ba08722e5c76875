"""Launches give NumPy's bits: with clipping, many arrays, odd numbers, and from NumPy and back.

See test_text.py and test_storage.py for the same of every rule, dtype and layout.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_storage import LONG, MORE, WAYS

import fastopt
from fastopt.backends.cupy.launch import Kernels
from fastopt.core.norms import TILE
from helpers.cuda.runs import (
    DENSE,
    DTYPES,
    ODD,
    difference_of,
    differences,
    on_host,
    run_of,
    some_values,
)
from helpers.variants import VARIANT_OF, VARIANTS, Variant

EXAMPLE = Path(__file__).parents[2] / "examples" / "cuda_graph.py"
ALL = [*DENSE, *ODD]

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# Every rule and layout ---------------------------------------------------------------------------


@each_dtype
@each_variant
def test_every_rule_does_so_when_clipped(cupy: Any, variant: Variant, dtype: Any) -> None:
    more = {"missing": True, "max_grad_norm": 300.0, "grad_scale": -0.5}
    assert difference_of(variant, cupy, dtype, cuts=ALL, **more) == {}


@pytest.mark.covering(1)
@pytest.mark.parametrize("way", [*WAYS, *MORE])
@each_variant
def test_state_in_codes_and_rounding_by_chance_do_so(cupy: Any, variant: Variant, way: str) -> None:
    dtype, options = (WAYS | MORE)[way]
    more = {"cuts": [*LONG, *ODD], "missing": True, "seed": 2**40 + 7, **options}
    if "mask_zero" in variant.options and options.get("state_dtype") == "int8":
        with pytest.raises(ValueError, match="mask_zero cannot be used with state_dtype='int8'"):
            difference_of(variant, cupy, dtype, **more)
        return
    assert difference_of(variant, cupy, dtype, **more) == {}


# Many arrays -------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("count", [1, 192, 193, 1_000])
def test_any_number_of_arrays_ends_in_the_bits_of_numpy(cupy: Any, count: int, dtype: Any) -> None:
    cuts = [(run_of(1 + k % 9, k % 3), run_of(1 + k % 9, k % 2)) for k in range(count)]
    assert difference_of(VARIANT_OF["adam"], cupy, dtype, cuts=cuts, missing=count > 1) == {}


@each_dtype
@pytest.mark.parametrize("limit", [100.0, 1e9])
def test_clipping_by_the_norm_of_many_arrays_does_so_too(
    cupy: Any, dtype: Any, limit: float
) -> None:
    cuts = [(run_of(k % 9), run_of(k % 9)) for k in range(300)]
    cuts += [(run_of(n), run_of(n, 1)) for n in (TILE - 1, TILE, TILE + 1, 3 * TILE + 100)]
    more = {"missing": True, "max_grad_norm": limit}
    assert difference_of(VARIANT_OF["adam"], cupy, dtype, cuts=cuts, **more) == {}


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_addresses_in_an_array_serve_as_well(
    cupy: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a CuPy before 14.1, whose kernels take no addresses by value."""
    kernels = Kernels(cupy)
    vars(kernels)["by_value"] = False
    backend = importlib.import_module("fastopt.backends.cupy.backend")
    monkeypatch.setattr(backend, "_KERNELS", kernels)
    assert difference_of(VARIANT_OF[name], cupy, np.float32, missing=True, grad_scale=0.5) == {}


# Unusual gradients -------------------------------------------------------------------------------


def trained(xp: Any, variant: Variant, grads: Any, **options: Any) -> dict[str, Any]:
    """Return parameters and state after steps with these gradients on one array."""
    params = [xp.asarray(some_values(np.size(grads[0]), np.float32, 0))]
    opt = variant(params, backend="numpy" if xp is np else "cupy", **options)
    with np.errstate(all="ignore"):
        for grad in grads:
            opt.step([xp.asarray(grad)])
    state = opt.state_dict()["state"]["0"]
    return {"param": on_host(params[0]), **{slot: np.asarray(x) for slot, x in state.items()}}


@each_variant
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1, "max_grad_norm": 1.0}])
def test_nan_and_infinity_go_where_they_go_in_numpy(cupy: Any, variant: Variant, more: Any) -> None:
    grads = [some_values(70, np.float32, k) for k in range(6)]
    grads[1][3], grads[2][4], grads[2][5], grads[3][6] = np.nan, np.inf, -np.inf, -np.nan
    grads[3][4], grads[4][7] = np.inf, np.finfo(np.float32).max
    one, two = (trained(module, variant, grads, **more) for module in (np, cupy))
    # What is not a number agrees with no gradient: cautious leaves the parameter where it is.
    assert np.isnan(one["param"]).any() or "cautious" in variant.options
    for name in one:
        # A NaN is a NaN, with whatever sign; all else has the same bits.
        np.testing.assert_array_equal(np.isnan(one[name]), np.isnan(two[name]), name)
        clean = [np.where(np.isnan(x), 0, x) for x in (one[name], two[name])]
        assert differences({name: clean[0]}, {name: clean[1]}) == {}


@each_dtype
def test_steps_with_nan_are_skipped_or_refused(cupy: Any, dtype: Any) -> None:
    values = some_values(5_000, dtype, 0)
    good, bad = some_values(5_000, dtype, 1), some_values(5_000, dtype, 2)
    bad[4_321] = np.nan
    ends = []
    for module in (np, cupy):
        params = [module.asarray(values.copy()), module.asarray(values[:3].copy())]
        opt = fastopt.Adam(params, on_nonfinite="skip")
        for grad in (good, bad, good):
            opt.step([module.asarray(grad), module.asarray(grad[:3])])
        assert opt.skipped_steps == 1
        opt.on_nonfinite = "raise"
        with pytest.raises(FloatingPointError, match=r"grads\[0\]"):
            opt.step([module.asarray(bad), module.asarray(good[:3])])
        ends.append({str(k): on_host(param) for k, param in enumerate(params)})
    assert differences(*ends) == {}


# State -------------------------------------------------------------------------------------------


@each_dtype
@each_variant
def test_a_run_goes_from_the_gpu_to_numpy_and_back(cupy: Any, variant: Variant, dtype: Any) -> None:
    ends = []
    for modules in ((np, np, np), (cupy, np, cupy)):
        values = [some_values(300, dtype, 0).reshape(20, 15), some_values(1, dtype, 1)]
        saved = None
        for leg, module in enumerate(modules):
            wide, short = (module.asarray(value.copy()) for value in values)
            opt = variant([wide.T, short], backend="numpy" if module is np else "cupy")
            if saved is not None:
                opt.load_state_dict(saved)
            for step in range(4):
                grad = module.asarray(some_values(300, dtype, 2 + 4 * leg + step).reshape(15, 20))
                opt.step([grad, None if leg else grad[0, :1]])
            values, saved = [on_host(wide), on_host(short)], opt.state_dict()
        assert saved is not None
        assert saved["step_count"] == 12
        state = {f"{n}.{slot}": x for n, one in saved["state"].items() for slot, x in one.items()}
        assert all(not hasattr(x, "get") for x in state.values())  # NumPy's, wherever they were
        ends.append({"wide": values[0], "short": values[1], **state})
    assert differences(*ends) == {}


def test_a_checkpoint_goes_from_numpy_to_the_gpu_and_back(cupy: Any, tmp_path: Path) -> None:
    ends = []
    for kinds in ((np, np, np), (np, cupy, np)):
        for number, module in enumerate(kinds):
            wide = module.asarray(np.ones((40, 50)))
            params = {
                "W": wide[::2].T,
                "b": module.asarray(np.ones(3, "f4")),
                "s": module.asarray(1.0),
            }
            opt = fastopt.Adam(params)
            if number:
                opt.load(tmp_path / "a")
            for step in range(4):
                opt.step({name: p * (step - 1.5) for name, p in params.items()})
            opt.save(tmp_path / "a")
        ends.append(load_file(tmp_path / "a"))
    np.testing.assert_equal(*ends)


# Without reading, and in a graph ------------------------------------------------------------------


def test_skipping_for_ever_is_noticed_although_nobody_reads(cupy: Any) -> None:
    opt, scaler = fastopt.SGD([cupy.zeros(2)]), fastopt.LossScaler(1.0, min_scale=0.5, max_skips=2)
    bad = cupy.asarray(np.array([0.0, np.nan]))

    def steps() -> None:
        for _ in range(100):
            scaler.step(opt, [bad])
            scaler.update()
            cupy.cuda.Device().synchronize()

    with pytest.raises(FloatingPointError, match=r"skipped at the smallest scale, 0\.5"):
        steps()


def test_the_example_trains_by_a_graph(cupy: Any, capsys: Any) -> None:
    spec = importlib.util.spec_from_file_location("cuda_graph", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    graph = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(graph)
    told = []
    for backend in ("numpy", "cupy"):
        with fastopt.use_backend(backend):
            graph.main(["--epochs", "5"])
        told.append([float(word) for word in capsys.readouterr().out.split()[1:7:5]])
    assert told[1] == pytest.approx(told[0], abs=1e-3)
