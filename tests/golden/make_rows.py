"""Record what PyTorch computes for gradients of some rows, beside its formulas: ``rows/torch.npz``.

    python -m tests.golden.make_rows

SparseAdam, and SGD and Adagrad with sparse gradients, in float64, on a table of 9 rows: 30 steps of
five rows each, of which some come twice, and some rows seldom. The formulas are worked out row by
row in plain Python; the script refuses to write if they are further than 1e-13 from PyTorch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS, ROWS, WIDTH = 30, 9, 3
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.SparseAdam, {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-3}),
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.3, "lr_decay": 0.01, "eps": 1e-6}),
}


def inputs() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    chances = np.arange(1.0, ROWS + 1) ** 2
    indices = rng.choice(ROWS - 1, (STEPS, 5), p=chances[:-1] / chances[:-1].sum())
    indices[3::7, 0] = ROWS - 1
    sizes = 10.0 ** rng.integers(-3, 3, (STEPS, 5, 1))
    values = (rng.standard_normal((STEPS, 5, WIDTH)) * sizes).astype(np.float32)
    return {
        "param": rng.standard_normal((ROWS, WIDTH)).astype(np.float32).astype(np.float64),
        "indices": indices,
        "values": values.astype(np.float64),
    }


def by_torch(name: str, given: dict[str, Any]) -> Any:
    make, options = CASES[name]
    param = torch.tensor(given["param"], requires_grad=True)
    opt = make([param], **options)
    path = []
    for indices, values in zip(given["indices"], given["values"], strict=True):
        param.grad = torch.sparse_coo_tensor(
            torch.tensor(indices)[None], torch.tensor(values), param.shape
        )
        opt.step()
        path.append(param.detach().numpy().copy())
    return np.array(path)


def by_formula(name: str, given: dict[str, Any]) -> Any:
    options = CASES[name][1]
    param = [[float(x) for x in row] for row in given["param"]]
    state: dict[tuple[int, int], tuple[float, float]] = {}
    path = []
    for t, (indices, values) in enumerate(
        zip(given["indices"], given["values"], strict=True), start=1
    ):
        sums: dict[int, Any] = {}
        for row, value in zip(indices.tolist(), values.tolist(), strict=True):
            before = sums.get(row, [0.0] * WIDTH)
            sums[row] = [a + b for a, b in zip(before, value, strict=True)]
        for row, grads in sums.items():
            for k, g in enumerate(grads):
                m, v = state.get((row, k), (0.0, 0.0))
                if name == "sgd":
                    step = options["lr"] * g
                elif name == "adagrad":
                    v += g * g
                    lr = options["lr"] / (1 + (t - 1) * options["lr_decay"])
                    step = lr * g / (math.sqrt(v) + options["eps"])
                else:
                    one, two = options["betas"]
                    m = one * m + (1 - one) * g
                    v = two * v + (1 - two) * g * g
                    rate = options["lr"] * math.sqrt(1 - two**t) / (1 - one**t)
                    step = rate * m / (math.sqrt(v) + options["eps"])
                state[row, k] = m, v
                param[row][k] -= step
        path.append([row[:] for row in param])
    return np.array(path)


def main() -> None:
    given = inputs()
    found = dict(given)
    for name in CASES:
        found[name] = by_torch(name, given)
        distance = float(np.abs(found[name] - by_formula(name, given)).max())
        print(f"{name}: {distance:.1e} between PyTorch and the formula")
        if not distance <= 1e-13:
            raise SystemExit(f"{name}: the oracles differ")
    np.savez(Path(__file__).parent / "rows" / "torch.npz", **found)


if __name__ == "__main__":
    main()
