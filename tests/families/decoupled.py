"""Adam and SGD with decoupled weight decay; what else is tested of them is not here."""

from __future__ import annotations

import fastopt
from helpers.variant import Variant

DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True}
VARIANTS = [
    Variant("adam_decoupled", fastopt.Adam, DECOUPLED, close=True),
    Variant("sgd_decoupled", fastopt.SGD, {"lr": 0.05, "momentum": 0.9, **DECOUPLED}, close=True),
]
