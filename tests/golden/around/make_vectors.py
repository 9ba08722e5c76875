"""Makes the golden vectors of what stands around a step, with torch and optax.

From the root of the repository: python -m tests.golden.around.make_vectors
It never imports fastopt. ../README.md gives the format.
"""

import io
import json
import sys
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax
import torch

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).parent
Array = npt.NDArray[Any]
Arrays = dict[str, Any]
SHAPES = ((), (5,), (3, 4))
TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


def drawn(seed: int, steps: int = 1, size: float = 1.0) -> list[Array]:
    """Draw (steps, *shape) normal numbers of each shape, exact in float32."""
    rng = np.random.default_rng(seed)
    made = [size * rng.standard_normal((steps, *shape)) for shape in SHAPES]
    return [x.astype(np.float32).astype(np.float64) for x in made]


def plain(array: Any) -> Array:
    """Return what .npz can hold: bfloat16 as the bits of it."""
    array = np.asarray(array)
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def as_tensor(array: Array) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def as_array(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def clip_inputs(dtype: str, special: str) -> list[Array]:
    grads = [x[0] for x in drawn(1)]
    if special == "large":
        grads = [1e3 * g for g in grads]
    if dtype.startswith("complex"):
        grads = [g + 1j * h[0] for g, h in zip(grads, drawn(2), strict=True)]
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    grads = [np.asarray(g).astype(kind) for g in grads]
    if special in ("nan", "inf"):
        grads[1][2] = float(special)
    return grads


def clipping() -> Arrays:
    """torch.nn.utils.clip_grad_norm_ and clip_grad_value_."""
    cases = [
        {"dtype": dtype, "max_norm": limit, "norm_type": order, "special": special}
        for dtype, limit, order, special in [
            *(("float64", 0.75, order, "") for order in (0.5, 1.0, 2.0, 3.0, 7.5, "inf")),
            *(("float32", 0.75, order, "") for order in (0.5, 1.0, 2.0, 3.0, "inf")),
            *((dtype, 1.5, 2.0, "") for dtype in ("float16", "bfloat16")),
            *((dtype, 1.5, 2.0, "") for dtype in ("complex64", "complex128")),
            *((dtype, 1.5, order, "") for dtype in ("complex128",) for order in (1.0, 3.0, "inf")),
            ("float64", 1e3, 2.0, ""),
            ("float64", 1e3, 2.0, "large"),
            *((dtype, 1.0, 2.0, bad) for dtype in ("float32", "float64") for bad in ("inf", "nan")),
            ("float64", 1.0, "inf", "inf"),
            ("float64", 1.0, "inf", "nan"),
        ]
    ]
    arrays: Arrays = {"cases": json.dumps(cases)}
    for number, case in enumerate(cases):
        grads = clip_inputs(str(case["dtype"]), str(case["special"]))
        params = [torch.nn.Parameter(torch.zeros_like(as_tensor(g))) for g in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = as_tensor(grad)
        order, limit = float(case["norm_type"]), float(case["max_norm"])  # type: ignore[arg-type]
        total = torch.nn.utils.clip_grad_norm_(params, limit, order)
        arrays[f"{number}/norm"] = np.float64(total.item())
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            assert param.grad is not None
            arrays[f"{number}/g{k}"] = plain(grad)
            arrays[f"{number}/clipped{k}"] = plain(as_array(param.grad))
    return arrays | clipping_values()


def clipping_values() -> Arrays:
    cases = [
        {"dtype": dtype, "value": value, "special": special}
        for dtype in ("float16", "bfloat16", "float32", "float64")
        for value, special in [(0.5, ""), (0.1, ""), (0.5, "nan"), (0.5, "inf"), (1e3, "large")]
    ]
    arrays: Arrays = {"value_cases": json.dumps(cases)}
    for number, case in enumerate(cases):
        grads = clip_inputs(str(case["dtype"]), str(case["special"]))
        params = [torch.nn.Parameter(torch.zeros_like(as_tensor(g))) for g in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = as_tensor(grad)
        torch.nn.utils.clip_grad_value_(params, float(case["value"]))  # type: ignore[arg-type]
        for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
            assert param.grad is not None
            arrays[f"value{number}/g{k}"] = plain(grad)
            arrays[f"value{number}/clipped{k}"] = plain(as_array(param.grad))
    return arrays


class Model(torch.nn.Module):
    """A model that is three parameters."""

    def __init__(self, arrays: list[Array]) -> None:
        super().__init__()
        self.list = torch.nn.ParameterList(torch.nn.Parameter(as_tensor(a)) for a in arrays)

    def take(self, arrays: list[Array]) -> None:
        with torch.no_grad():
            for param, array in zip(self.list, arrays, strict=True):
                param.copy_(as_tensor(array))


def ema() -> Arrays:
    """torch.optim.swa_utils.AveragedModel, whose first update copies; the warmup in decimals."""
    steps, path = 12, drawn(3, 13)
    decays = [0.0, 0.3, 0.9, 0.999]
    arrays: Arrays = {"decays": np.array(decays)} | {f"p{k}": x for k, x in enumerate(path)}
    for number, decay in enumerate(decays):
        for dtype in ("float32", "float64"):
            given = [[x[t].astype(dtype) for x in path] for t in range(steps + 1)]
            model = Model(given[0])
            averaged = torch.optim.swa_utils.AveragedModel(
                model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
            )
            averaged.update_parameters(model)  # copies
            kept: list[list[Array]] = []
            for now in given[1:]:
                model.take(now)
                averaged.update_parameters(model)
                kept.append([as_array(p.detach()) for p in averaged.module.list])
            for k in range(len(SHAPES)):
                arrays[f"{number}/{dtype}/avg{k}"] = np.array([step[k] for step in kept])
    for number, decay in enumerate(decays):
        for k, x in enumerate(path):
            arrays[f"{number}/warmup/avg{k}"] = ema_in_decimals(x, Decimal(decay))
    return arrays


def ema_in_decimals(path: Array, decay: Decimal) -> Array:
    """Return avg <- d * avg + (1 - d) * p with d = min(decay, (1 + n) / (10 + n))."""
    with localcontext() as context:
        context.prec = 50
        average = [Decimal(float(x)) for x in path[0].ravel()]
        kept = []
        for n, now in enumerate(path[1:]):
            d = min(decay, Decimal(1 + n) / Decimal(10 + n))
            values = [Decimal(float(x)) for x in now.ravel()]
            average = [d * a + (1 - d) * p for a, p in zip(average, values, strict=True)]
            kept.append([float(a) for a in average])
    return np.array(kept).reshape(path[1:].shape)


INNER = {
    "sgd": lambda: optax.sgd(0.1),
    "sgd_momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
}


def lookahead() -> Arrays:
    """optax.lookahead in float64."""
    steps, first, grads = 14, drawn(4), drawn(5, 14)
    cases = [
        {"inner": inner, "k": k, "alpha": alpha}
        for inner, k, alpha in [
            ("sgd", 5, 0.5),
            ("sgd", 1, 0.25),
            ("sgd_momentum", 3, 0.8),
            ("sgd_momentum", 4, 1.0),
            ("adam", 5, 0.5),
            ("adam", 2, 0.1),
        ]
    ]
    arrays: Arrays = {"cases": json.dumps(cases)}
    arrays |= {f"p{k}": x[0] for k, x in enumerate(first)} | {
        f"g{k}": x for k, x in enumerate(grads)
    }
    for number, case in enumerate(cases):
        wrapped = optax.lookahead(INNER[str(case["inner"])](), case["k"], case["alpha"])
        start = [jax.numpy.asarray(x[0]) for x in first]
        params = optax.LookaheadParams.init_synced(start)
        state = wrapped.init(params)
        fast, slow = [], []
        for t in range(steps):
            updates, state = wrapped.update([jax.numpy.asarray(g[t]) for g in grads], state, params)
            params = optax.apply_updates(params, updates)
            fast.append([np.asarray(x) for x in params.fast])
            slow.append([np.asarray(x) for x in params.slow])
        for k in range(len(SHAPES)):
            arrays[f"{number}/fast{k}"] = np.array([step[k] for step in fast])
            arrays[f"{number}/slow{k}"] = np.array([step[k] for step in slow])
    return arrays


def accumulation() -> Arrays:
    """torch: the gradients of micro-batches added up by backward, divided, and one step."""
    first, grads, every = drawn(6), drawn(7, 12), 3
    arrays: Arrays = {"every": every} | {f"p{k}": x[0] for k, x in enumerate(first)}
    arrays |= {f"g{k}": x for k, x in enumerate(grads)}
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.25),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    }
    for name, optimizer in make.items():
        params = [torch.nn.Parameter(as_tensor(x[0])) for x in first]
        opt, path = optimizer(params), []
        for t in range(12):
            loss = sum((p * as_tensor(g[t])).sum() for p, g in zip(params, grads, strict=True))
            (loss / every).backward()  # type: ignore[union-attr]
            if (t + 1) % every == 0:
                opt.step()
                opt.zero_grad()
                path.append([as_array(p.detach()) for p in params])
        for k in range(len(SHAPES)):
            arrays[f"{name}/p{k}"] = np.array([step[k] for step in path])
    return arrays


def loss_scaler() -> Arrays:
    """torch.amp.GradScaler on the CPU: the scale after every step, the tracker, the parameter."""
    rng = np.random.default_rng(8)
    steps = 40
    cases = [
        {"init_scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3},
        {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 1},
        {"init_scale": 8.0, "growth_factor": 1.5, "backoff_factor": 0.75, "growth_interval": 2},
        {"init_scale": 2.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000},
    ]
    arrays: Arrays = {"cases": json.dumps(cases)}
    for number, case in enumerate(cases):
        scaler = torch.amp.GradScaler("cpu", **case)  # type: ignore[arg-type]
        param = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
        opt = torch.optim.SGD([param], lr=0.125, momentum=0.5)
        grads = rng.integers(-8, 9, (steps, 4)) / 8.0
        bad = rng.random(steps) < 0.4
        scales, trackers, path = [], [], []
        for grad, poisoned in zip(grads, bad, strict=True):
            scaled = as_tensor(grad) * scaler.get_scale()
            if poisoned:
                scaled[1] = float("nan") if grad[0] > 0 else float("inf")
            param.grad = scaled
            # The scale is made at the first use of it, on the device of what is scaled.
            scaler.scale(torch.zeros(()))
            scaler.step(opt)
            scaler.update()
            scales.append(scaler.get_scale())
            trackers.append(scaler.state_dict()["_growth_tracker"])
            path.append(as_array(param.detach()))
        arrays |= {f"{number}/g": grads, f"{number}/bad": bad, f"{number}/p": np.array(path)}
        arrays |= {f"{number}/scale": np.array(scales), f"{number}/tracker": np.array(trackers)}
    return arrays


TORCH_INNER: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd_momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
}


def sam() -> Arrays:
    """optax.contrib.sam in float64, pytorch_optimizer's SAM, and the formulas in decimals.

    Of every step there are two gradients, at the parameters and uphill of them; recorded are where
    the second one is taken (``up``) and where the step ends (``p``).
    """
    steps, first, grads, second = 10, drawn(9), drawn(10, 10), drawn(11, 10)
    cases: list[dict[str, Any]] = [
        {"oracle": oracle, "inner": inner, "rho": rho, "eta": eta}
        for oracle, inner, rho, eta in [
            ("optax", "sgd", 0.05, None),
            ("optax", "sgd_momentum", 0.3, None),
            ("optax", "adam", 0.75, None),
            ("po", "sgd", 0.05, None),
            ("po", "sgd_momentum", 0.3, None),
            ("po", "adam", 0.75, None),
            ("po", "sgd_momentum", 0.5, 0.0),
            ("closed", "sgd", 0.05, None),
            ("closed", "sgd", 0.5, 0.0),
            ("closed", "sgd", 0.5, 0.01),
            ("closed", "sgd", 1.25, 0.3),
        ]
    ]
    arrays: Arrays = {"cases": json.dumps(cases)} | {f"p{k}": x[0] for k, x in enumerate(first)}
    arrays |= {f"g{k}": x for k, x in enumerate(grads)}
    arrays |= {f"h{k}": x for k, x in enumerate(second)}
    run = {"optax": sam_of_optax, "po": sam_of_po, "closed": asam_in_decimals}
    for number, case in enumerate(cases):
        given = [[[x[t] for x in some] for some in (grads, second)] for t in range(steps)]
        path = run[case["oracle"]](case, [x[0] for x in first], given)
        for k in range(len(SHAPES)):
            arrays[f"{number}/up{k}"] = np.array([up[k] for up, _ in path])
            arrays[f"{number}/p{k}"] = np.array([end[k] for _, end in path])
    return arrays


def sam_of_optax(case: dict[str, Any], start: list[Array], given: Any) -> Any:
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(case["rho"]))
    wrapped = optax.contrib.sam(INNER[case["inner"]](), uphill, sync_period=2)
    params: Any = [jax.numpy.asarray(x) for x in start]
    state, path = wrapped.init(params), []
    for both in given:
        ends = []
        for grads in both:
            updates, state = wrapped.update([jax.numpy.asarray(g) for g in grads], state, params)
            params = optax.apply_updates(params, updates)
            ends.append([np.asarray(x) for x in params])
        path.append(ends)
    return path


def sam_of_po(case: dict[str, Any], start: list[Array], given: Any) -> Any:
    """Run po, whose norm is float32, and has 1e-12 added to it unless it is told otherwise."""
    from pytorch_optimizer import SAM

    params = [torch.nn.Parameter(as_tensor(x)) for x in start]
    kind, options = TORCH_INNER[case["inner"]]
    adaptive = case["eta"] is not None
    opt = SAM(params, kind, rho=case["rho"], adaptive=adaptive, perturb_eps=0.0, **options)
    path = []
    for both in given:
        ends = []
        for grads, move in zip(both, (opt.first_step, opt.second_step), strict=True):
            for param, grad in zip(params, grads, strict=True):
                param.grad = as_tensor(grad)
            move()
            ends.append([as_array(p.detach()) for p in params])
        path.append(ends)
    return path


def asam_in_decimals(case: dict[str, Any], start: list[Array], given: Any) -> Any:
    """Return q = p + rho u^2 g / |u g| with u = |p| + eta, for SAM 1, and p - 0.1 h."""
    with localcontext() as context:
        context.prec = 50
        rho, eta, rate = Decimal(case["rho"]), Decimal(case["eta"] or 0), Decimal(float("0.1"))
        p, path = flat_decimals(start), []
        for first, second in given:
            g, h = flat_decimals(first), flat_decimals(second)
            units = [Decimal(1) if case["eta"] is None else abs(x) + eta for x in p]
            norm = sum((u * u * y * y for u, y in zip(units, g, strict=True)), Decimal(0)).sqrt()
            up = [x + rho * u * u * y / norm for x, u, y in zip(p, units, g, strict=True)]
            p = [x - rate * y for x, y in zip(p, h, strict=True)]
            path.append((in_shapes(up), in_shapes(p)))
    return path


def flat_decimals(arrays: list[Array]) -> list[Decimal]:
    return [Decimal(float(x)) for array in arrays for x in np.ravel(array)]


def in_shapes(numbers: list[Decimal]) -> list[Array]:
    flat, made, at = np.array([float(x) for x in numbers]), [], 0
    for shape in SHAPES:
        size = int(np.prod(shape))
        made.append(flat[at : at + size].reshape(shape))
        at += size
    return made


def main() -> None:
    """Write one file for each, or for those that are named."""
    if not torch.__version__.startswith("2.13.") or optax.__version__ != "0.2.8":
        raise SystemExit("torch 2.13 and optax 0.2.8 are needed")
    torch.set_num_threads(1)
    made_with = json.dumps({"torch": torch.__version__, "optax": optax.__version__})
    for make in (clipping, ema, lookahead, accumulation, loss_scaler, sam):
        if sys.argv[1:] and make.__name__ not in sys.argv[1:]:
            continue
        arrays = {k: np.asarray(v) for k, v in make().items()} | {"made_with": np.array(made_with)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        path = HERE / f"{make.__name__}.npz"
        path.write_bytes(buffer.getvalue())
        print(f"{path.name}: {len(arrays)} arrays, {len(buffer.getvalue())} bytes")
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


if __name__ == "__main__":
    main()
