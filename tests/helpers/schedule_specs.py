"""The recorded schedules as our own: what schedules.json holds, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastopt import schedules

FILE = Path(__file__).parents[1] / "golden" / "schedules.json"
RECORDED: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def made(spec: Any) -> Any:
    """Return a schedule from its name and arguments, nested ones too; the rest as it is."""
    if isinstance(spec, list):
        return [made(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    kwargs = {name: made(value) for name, value in spec["kwargs"].items()}
    kind = getattr(schedules, spec["name"])
    return kind(*kwargs["factors"]) if spec["name"] == "product" else kind(**kwargs)


def names_in(spec: Any) -> set[str]:
    """Return the names of all schedules in a specification."""
    if isinstance(spec, list):
        return {name for part in spec for name in names_in(part)}
    if not isinstance(spec, dict):
        return set()
    return {spec["name"]} | {n for value in spec["kwargs"].values() for n in names_in(value)}
