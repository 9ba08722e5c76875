"""Records runs of PyTorch with the state_dict in the middle.

From the root of the repository: python -m tests.golden.interop.make_torch
"""

import sys
from typing import Any

import numpy as np
import torch

from .. import oracle_torch
from ..vector_cases import Case
from .move_cases import HALF, STEPS, TORCH, inputs
from .move_format import write

NAMED = Case("Adam", "named", ("torch",), {"lr": 0.02}, steps=STEPS)
COMPLEX = [
    Case(name, "complex", ("torch",), kwargs, "mild", STEPS)
    for name, kwargs in [
        ("SGD", {"momentum": 0.9}),
        ("Adagrad", {"initial_accumulator_value": 0.1}),
        ("Adam", {"amsgrad": True}),
    ]
]
DTYPES = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def named(params: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Return an optimizer that knows its parameters by name, in another order than ours."""
    pairs = [("layers.1.0", params[2]), ("b", params[1]), ("layers.0", params[0])]
    return torch.optim.Adam(pairs, lr=NAMED.kwargs["lr"], foreach=False)


def run(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Run one case; the state and the parameters in the middle, and the parameters at the end."""
    given = inputs(case.inputs, case.name == "complex")
    kind = DTYPES[dtype] if case.name == "complex" else dtype
    params = [torch.tensor(p, dtype=kind, requires_grad=True) for p in given["p"]]
    opt = named(params) if case is NAMED else oracle_torch.build(case, params)
    kept: dict[str, Any] = {}
    for step in range(STEPS):
        for i, param in enumerate(params):
            grad = torch.tensor(given["g"][i][step], dtype=kind)
            param.grad = None if case.is_missing(i, step) else grad
        opt.step()
        if step + 1 == HALF:
            state = opt.state_dict()
            kept["state"] = {
                "state": {
                    one: {k: v.numpy().copy() for k, v in entry.items() if v is not None}
                    for one, entry in state["state"].items()
                },
                "param_groups": [dict(group) for group in state["param_groups"]],
            }
        if step + 1 in (HALF, STEPS):
            kept[f"p{step + 1}"] = [param.detach().numpy().copy() for param in params]
    return kept


def describe(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Return the entry of one case."""
    return {
        "name": f"{case.optimizer}.{case.name}",
        "dtype": str(dtype).rpartition(".")[2],
        "optimizer": case.optimizer,
        "kwargs": case.kwargs,
        "inputs": case.inputs,
        "missing": {str(k): list(steps) for k, steps in case.missing.items()},
        "groups": [dict(group) for group in case.groups],
        "complex": case.name == "complex",
        "positions": case is not NAMED,
        **run(case, dtype),
    }


def main() -> None:
    """Record all cases in both precisions."""
    torch.set_num_threads(1)
    cases = [describe(c, dtype) for c in (*TORCH, NAMED, *COMPLEX) for dtype in DTYPES]
    write("torch", cases, {"torch": torch.__version__, "numpy": np.__version__})
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


if __name__ == "__main__":
    main()
