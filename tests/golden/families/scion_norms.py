"""Scion's norms of matrices, after pytorch_optimizer (po), and by singular values."""

from typing import Any

from ..oracles import Oracle, by_class
from ..vector_cases import Case, Hyper
from . import cases_of, scion

FOLDER = "matrices"
PACKAGES = scion.PACKAGES
DEFAULTS = scion.DEFAULTS
NUMBERS = {"spectral": 2, "sign": 4, "column": 6, "row": 7}


def arguments_of_po(hyper: Hyper) -> Hyper:
    made: Any = scion.arguments_of_po({**hyper, "norm": "auto"})
    return {**made, "norm_type": NUMBERS[hyper["norm"]]}


ORACLES: dict[str, dict[str, Oracle]] = {
    "Scion": {
        "po": by_class(scion.of_po, arguments_of_po, {"d": "m"}, step=scion.in_float64),
        "closed": scion.closed,
    },
}
CASES: dict[str, tuple[Case, ...]] = {
    "Scion": cases_of(
        "Scion",
        DEFAULTS["Scion"],
        *(
            (norm, scion.PC, scion.ODD | {"norm": norm, "weight_decay": 0.1}, {"inputs": "usual"})
            for norm in NUMBERS
        ),
        *(
            (f"{norm}_{size}", scion.PC, scion.ODD | {"norm": norm}, {"inputs": size})
            for norm in ("spectral", "row")
            for size in ("tiny", "huge")
        ),
    ),
}
