"""Makes the vectors of optimizers whose rules need sums: python -m tests.golden.make_sums

Writes sums/inputs.npz, sums/lamb.npz and sums/prodigy.npz, in the format that README.md gives. It
needs optax, jax, torch, prodigyopt and pytorch_optimizer, and never imports fastopt.
"""

import jax
import numpy as np
import optax
import prodigyopt
import pytorch_optimizer
import torch

from . import oracle_lamb, oracle_prodigy
from .kind_files import Inputs, make_file, make_inputs_file
from .vector_cases import GROUPS, LATER, MISSING, SHAPES, Case
from .vector_inputs import PARAMS, as_float32_values, make_inputs

STEPS = 30


def extra_inputs() -> dict[str, Inputs]:
    """Return the sets that only sums need.

    ``zeros``: parameters that begin at 0, one of them without a gradient for three steps, another
    without any; ``tiny`` and ``huge``: sizes whose squares no float32 holds; ``small``: the
    gradients of ``plain`` at small parameters, since Prodigy's first steps are about d0 and p0 - p
    loses digits beside a large p0; ``large``: these with large gradients; ``pull``: gradients of a
    quadratic bowl on the way down a path, with noise.
    """
    rng = np.random.default_rng(1011)
    sizes = [as_float32_values(rng.standard_normal((STEPS, *shape))) for shape in SHAPES]
    starts = [as_float32_values(p * 1e-3) for p in PARAMS]
    zeros = {"p": [0 * starts[0], 0 * starts[1], starts[2]], "g": [g.copy() for g in sizes]}
    zeros["g"][0][:3] = 0.0
    zeros["g"][1][:] = 0.0
    tiny = [as_float32_values(g * 1e-24) for g in sizes]
    huge = [as_float32_values(g * 1e15) for g in sizes]
    small = [as_float32_values(p * 1e-6) for p in PARAMS]
    pull: Inputs = {"p": small, "g": []}
    for start in small:
        target, at, path = start + 0.3, start, []
        for _ in range(STEPS):
            path.append(as_float32_values(at - target + 0.05 * rng.standard_normal(start.shape)))
            at = at - 0.15 * path[-1]
        pull["g"].append(np.stack(path))
    return {
        "zeros": zeros,
        "tiny": {"p": [as_float32_values(p * 1e-12) for p in PARAMS], "g": tiny},
        "huge": {"p": [as_float32_values(p * 1e12) for p in PARAMS], "g": huge},
        "small": {"p": small, "g": make_inputs()["plain"]["g"]},
        "large": {"p": small, "g": huge},
        "pull": pull,
    }


OC = ("optax", "closed")
ODD = {"lr": 0.03, "betas": [0.6, 0.9], "eps": 1e-3, "weight_decay": 0.2}
UNCORRECTED = {"lr": 0.01, "eps": 0.0, "weight_decay": 0.03, "bias_correction": False}
LAMB = (
    Case("LAMB", "default", OC),
    Case("LAMB", "odd", OC, ODD),
    Case("LAMB", "beta1_zero", OC, {"lr": 0.02, "betas": [0.0, 0.99], "eps": 0.1}),
    Case("LAMB", "weight_decay", OC, {"lr": 0.01, "weight_decay": 0.1}),
    Case("LAMB", "maximize", OC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    Case("LAMB", "zeros", OC, {"lr": 0.01}, inputs="zeros"),
    Case("LAMB", "zeros_decay", OC, {"lr": 0.01, "weight_decay": 0.1}, inputs="zeros"),
    Case("LAMB", "tiny", OC, {"lr": 0.01}, inputs="tiny"),
    Case("LAMB", "huge", OC, {"lr": 0.01, "weight_decay": 0.1}, inputs="huge"),
    Case("LAMB", "uncorrected", ("po", "closed"), UNCORRECTED, inputs="dense"),
    Case("LAMB", "uncorrected_eps", ("closed",), {"bias_correction": False, "eps": 1e-3}),
    Case("LAMB", "missing", OC, {"lr": 0.01, "weight_decay": 0.1}, missing=MISSING),
    Case("LAMB", "groups", OC, groups=GROUPS),
    Case("LAMB", "lr_change", OC, lr_changes=LATER),
)

# The first is whose numbers count. po adds a coupled decay to the gradient after its last use, and
# counts a step in which no parameter has a gradient. With beta1 = 0 the authors' package multiplies
# the gradient by the new d, where the paper and the package itself with beta1 > 0 have the old one.
# Growth is limited where decay would otherwise outgrow the parameter: gradients do not answer here.
APC = ("prodigyopt", "po", "closed")
AC = ("prodigyopt", "closed")
PC = ("po", "closed")
SOME = {0: [0, 1, 12], 1: [4, 5], 2: [20, 29]}
ODDER = {"lr": 0.5, "betas": [0.6, 0.9], "beta3": 0.7, "eps": 1e-4, "d0": 1e-3, "d_coef": 2.0}
DECAY: tuple[dict[str, object], ...] = (
    {"params": [0]},
    {"params": [1], "weight_decay": 0.3},
    {"params": [2], "weight_decay": 0.02},
)
SLOW = {"d0": 1e-3, "growth_rate": 1.2}
DECAYS = SLOW | {"weight_decay": 0.5}
COUPLED = {"d0": 1e-3, "weight_decay": 0.05, "decoupled_weight_decay": False}
PRODIGY = (
    Case("Prodigy", "default", APC, inputs="small"),
    Case("Prodigy", "pull", APC, inputs="pull"),
    Case("Prodigy", "odd", APC, ODDER, inputs="pull"),
    Case("Prodigy", "beta1_zero", PC, SLOW | {"betas": [0.0, 0.99]}, inputs="pull"),
    Case("Prodigy", "weight_decay", APC, DECAYS, inputs="pull"),
    Case("Prodigy", "coupled_decay", AC, COUPLED, inputs="pull"),
    Case(
        "Prodigy",
        "safeguard",
        APC,
        {"safeguard_warmup": True, "lr": 0.1, "d0": 1e-3, "weight_decay": 0.1},
        inputs="pull",
    ),
    Case("Prodigy", "growth", APC, SLOW, inputs="pull"),
    Case("Prodigy", "corrected", APC, {"bias_correction": True, "d0": 1e-3}, inputs="pull"),
    Case("Prodigy", "maximize", APC, {"maximize": True, "d0": 1e-4}, inputs="small"),
    Case("Prodigy", "zeros", APC, {"d0": 1e-3, "weight_decay": 0.1}, inputs="zeros"),
    Case("Prodigy", "tiny", APC, {"d0": 1e-3, "eps": 1e-30}, inputs="tiny"),
    Case("Prodigy", "large", APC, {"d0": 1e-4}, inputs="large"),
    Case("Prodigy", "missing", APC, {"d0": 1e-3}, inputs="pull", missing=SOME),
    Case("Prodigy", "missing_all", AC, {"d0": 1e-3}, inputs="pull", missing=MISSING),
    Case("Prodigy", "groups", APC, SLOW, inputs="pull", groups=DECAY),
    Case("Prodigy", "lr_change", APC, {"d0": 1e-3}, inputs="pull", lr_changes={10: 0.3, 20: 2.0}),
)


def main() -> None:
    """Make all files."""
    torch.set_num_threads(1)
    plain = make_inputs()
    inputs = {name: plain[name] for name in ("plain", "dense")} | extra_inputs()
    make_inputs_file("sums", inputs)
    lamb = {"optax": oracle_lamb.by_optax, "po": oracle_lamb.by_po, "closed": oracle_lamb.closed}
    make_file("sums/lamb", LAMB, inputs, lamb, (optax, jax, torch, pytorch_optimizer, np))
    prodigy = {
        "prodigyopt": oracle_prodigy.by_authors,
        "po": oracle_prodigy.by_po,
        "closed": oracle_prodigy.closed,
    }
    make_file("sums/prodigy", PRODIGY, inputs, prodigy, (prodigyopt, torch, pytorch_optimizer, np))


if __name__ == "__main__":
    main()
