"""What to do about a leaf of the parameters that is no array."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, KeysView, ValuesView
from typing import Any

import numpy as np

_BY_LIBRARY = {
    "torch": (
        "A CPU tensor's memory can be updated as tensor.detach().numpy(); otherwise use an "
        "optimizer of torch.optim."
    ),
    "jax": "JAX arrays cannot change in place; use np.array(value), or optax.",
    "tensorflow": "Its tensors cannot change in place; use np.array(value), or keras.optimizers.",
    "fastopt": "Hand it in by itself, not as a part of something.",
}
_BY_LIBRARY["jaxlib"] = _BY_LIBRARY["jax"]


def remedy(value: object) -> str:
    """Return one sentence or two of advice."""
    if value is None:
        return "Leave it out of the tree."
    if isinstance(value, np.generic):
        return "A NumPy scalar cannot change in place; use a 0-d array: np.array(value)."
    if isinstance(value, np.ndarray):
        return "Subclasses compute differently; use np.asarray(value)."
    for kind in type(value).__mro__:  # a user's own torch.nn.Module too
        if (library := kind.__module__.partition(".")[0]) in _BY_LIBRARY:
            return _BY_LIBRARY[library]
    if isinstance(value, Iterator | ValuesView | KeysView):
        return "It is no tree that gradients could be nested like; use list(value)."
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _of_fields(value)
    return "Only arrays can change in place; use np.array(value)."


def _of_fields(value: Any) -> str:
    names = [field.name for field in dataclasses.fields(value)]
    instead = "vars(value)"
    if not hasattr(value, "__dict__"):
        instead = "{" + ", ".join(f"{name!r}: value.{name}" for name in names[:3]) + "}"
    return f"A dataclass is no tree here; use {instead} (dataclasses.asdict copies the arrays)."
