"""Makes the vectors of optimizers that take matrices alone: python -m tests.golden.make_matrices

Writes matrices/inputs.npz and matrices/muon.npz, in the format that README.md gives, with three
parameters of the shapes SHAPES below. It needs torch and pytorch_optimizer, never fastopt.
"""

import numpy as np
import pytorch_optimizer
import torch

from . import oracle_muon
from .kind_files import Inputs, make_file, make_inputs_file
from .vector_cases import GROUPS, LATER, MISSING, Case
from .vector_inputs import as_float32_values

SHAPES = ((4, 4), (3, 7), (6, 2))
STEPS = 30


def make_inputs() -> dict[str, Inputs]:
    """Return the sets of inputs.

    ``usual``: sizes about 1; ``ranks``: zeros, matrices of rank one, rows and columns of zeros, and
    stretches without any gradient; ``tiny``: below eps, too; ``huge``: 1e12.
    """
    rng = np.random.default_rng(2020)
    starts = [as_float32_values(rng.standard_normal(shape)) for shape in SHAPES]
    usual = [as_float32_values(rng.standard_normal((STEPS, *shape))) for shape in SHAPES]
    ranks = [g.copy() for g in usual]
    for (rows, columns), g in zip(SHAPES, ranks, strict=True):
        g[:2] = 0.0
        g[2:7] = np.outer(np.arange(1, rows + 1), np.linspace(-1, 1, columns))
        g[7:14, 0] = 0.0
        g[9:20, :, 1] = 0.0
        g[22:25] = 0.0
    zeros = [starts[0], 0 * starts[1], starts[2]]
    return {
        "usual": {"p": starts, "g": usual},
        "ranks": {"p": zeros, "g": [as_float32_values(g) for g in ranks]},
        "tiny": {"p": starts, "g": [as_float32_values(g * 3e-8) for g in usual]},
        "huge": {"p": starts, "g": [as_float32_values(g * 1e12) for g in usual]},
    }


TPC = ("torch", "po", "closed")
TC = ("torch", "closed")  # pytorch_optimizer has no eps, no learning rate by groups as here
ODD = {"lr": 0.02, "momentum": 0.6, "ns_steps": 3, "ns_coefficients": [2.0, -1.5, 0.5]}
MATCHING = {"adjust_lr": "match_rms_adamw", "lr": 0.01}
MUON = (
    Case("Muon", "default", TPC, inputs="usual"),
    Case("Muon", "odd", TPC, ODD, inputs="usual"),
    Case("Muon", "not_nesterov", TPC, {"nesterov": False, "lr": 0.01}, inputs="usual"),
    Case("Muon", "momentum_zero", TPC, {"momentum": 0.0, "lr": 0.01}, inputs="usual"),
    Case("Muon", "momentum_below_half", TPC, {"momentum": 0.3, "lr": 0.01}, inputs="usual"),
    Case("Muon", "match_rms_adamw", TPC, MATCHING, inputs="usual"),
    Case("Muon", "no_decay", TPC, {"weight_decay": 0.0, "lr": 0.1}, inputs="usual"),
    Case("Muon", "maximize", TPC, {"maximize": True, "lr": 0.01}, inputs="usual"),
    Case("Muon", "ranks", TPC, {"lr": 0.01}, inputs="ranks"),
    Case("Muon", "tiny", TPC, {"lr": 0.01}, inputs="tiny"),
    Case("Muon", "eps", TC, {"lr": 0.01, "eps": 0.5}, inputs="usual"),
    Case("Muon", "huge", TPC, {"lr": 0.01}, inputs="huge"),
    Case("Muon", "missing", TPC, {"lr": 0.01}, inputs="usual", missing=MISSING),
    Case("Muon", "groups", TPC, inputs="usual", groups=GROUPS),
    Case("Muon", "lr_change", TPC, inputs="usual", lr_changes=LATER),
)


def main() -> None:
    """Make the files."""
    torch.set_num_threads(1)
    inputs = make_inputs()
    make_inputs_file("matrices", inputs)
    oracles = {
        "torch": oracle_muon.by_torch,
        "po": oracle_muon.by_po,
        "closed": oracle_muon.closed,
    }
    make_file("matrices/muon", MUON, inputs, oracles, (torch, pytorch_optimizer, np))


if __name__ == "__main__":
    main()
