"""Nested plain values and arrays as JSON values with the arrays apart, and back, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array


class Encoder:
    """Turns nested values into JSON values, and collects their arrays, C-ordered and on the host.

    What JSON has no word for becomes a dict with one key that begins with a dollar sign:
    ``{"$array": key}``, ``{"$tuple": [...]}``, ``{"$float": "nan"}``; a dict that has such a key
    itself is wrapped in ``{"$dict": ...}``. Numbers come back exactly; NumPy scalars come back as
    Python numbers.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def encode(self, prefix: str, value: Any, path: tuple[str, ...] = ()) -> Any:
        """Return a value in its JSON form; TypeError names the place of what has none.

        An array gets the key ``prefix`` and ``path``, joined with slashes.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, Mapping):
            return self._dict(prefix, value, path)
        if isinstance(value, list | tuple):
            items = [self.encode(prefix, v, (*path, str(i))) for i, v in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        if arrays.kind(value) is not None:
            return {"$array": self._keep(prefix + "/".join(path), value)}
        raise TypeError(
            f"{prefix}{'/'.join(path)} must be None, a bool, a real number, text, an array, or a "
            f"list, tuple or dict of such; got {type(value).__name__}"
        )

    def _dict(self, prefix: str, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{prefix}{'/'.join(path)} must have text as its keys; got {key!r}, "
                    "which would come back as something else"
                )
        items = {str(k): self.encode(prefix, v, (*path, k)) for k, v in value.items()}
        return {"$dict": items} if any(key.startswith("$") for key in items) else items

    def _keep(self, key: str, array: Array) -> str:
        # A file's keys are UTF-8, which has no lone surrogates; the names themselves are in JSON.
        key = wanted = key.encode("utf-8", "backslashreplace").decode()
        count = 1
        while key in self.arrays:  # {"a/b": x, "a": {"b": y}}
            count += 1
            key = f"{wanted}#{count}"
        on_device = arrays.kind(array) == "cupy"
        self.arrays[key] = arrays.on_host(array) if on_device else np.asarray(array, order="C")
        return key


def decode(value: Any, found: Mapping[str, Array]) -> Any:
    """Return what was encoded; ValueError, KeyError or TypeError if nothing is encoded like this.

    ``found`` holds the arrays by their keys.
    """
    if isinstance(value, list):
        return [decode(item, found) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (kind, content), *_ = value.items()
        if kind == "$array":
            return found[content]
        if kind == "$tuple":
            return tuple(decode(item, found) for item in content)
        if kind == "$float":
            return _nonfinite(content)
        if kind == "$dict":
            return {key: decode(item, found) for key, item in content.items()}
    if any(key.startswith("$") for key in value):
        raise ValueError(f"unknown kind of value {sorted(value)[:3]}")
    return {key: decode(item, found) for key, item in value.items()}


def _nonfinite(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"unknown number {text!r}")
    return float(text)
