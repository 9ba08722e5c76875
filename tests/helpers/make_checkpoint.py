"""Write a checkpoint of the present format, and what is in it, to be kept for ever."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.checkpoint import file as checkpoint_file
from fastopt.checkpoint import state_dict
from fastopt.checkpoint.file import FORMAT

FOLDER = Path(__file__).parents[1] / "data"


class Count:
    """A companion with a number."""

    def state_dict(self) -> dict[str, Any]:
        return {"number": 17, "seen": np.arange(3)}

    def _restorer(self, saved: Mapping[str, Any]) -> Callable[[], None]:
        raise NotImplementedError


def trees(make: Callable[..., Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return two groups' trees; ``make`` takes a shape and a dtype."""
    first = {
        "W": make((2, 3), np.float32),
        "layers": [{"b": make(3, np.float64)}, make((), np.float64)],
        "none": make((0, 2), np.float32),
        "turned": make((4, 3), np.float64).T[::-1],
    }
    return first, [make(1, np.float64)]


def main() -> None:
    """Train four steps, in one of which some gradients are missing, and save."""
    # What comes before the release is then, to those who read it, of another version.
    state_dict.__version__ = checkpoint_file.__version__ = f"{fastopt.__version__}.dev0"  # type: ignore[attr-defined]  # imported there
    rng = np.random.default_rng(0)

    def draw(shape: Any, dtype: Any) -> Any:
        return np.asarray(rng.standard_normal(shape)).astype(dtype)

    first, second = trees(draw)
    groups = [{"params": first, "betas": (0.8, 0.1 + 0.2)}, {"params": second, "lr": 0.1 + 0.2}]
    opt = fastopt.Adam(groups, lr=1e-2, amsgrad=True, weight_decay=1e-3, backend="numpy")
    for step in range(4):
        one, two = trees(draw)
        opt.step([{**one, "W": None} if step == 2 else one, two])
    checkpoint_file.LONGEST_HEADER = 5000  # format 2 is that of files with longer ones
    notes = {"epoch": 3, "best": float("-inf"), "rng": (2**100, [0.1, None]), "name": "ü"}
    content = described(opt, notes)
    with (FOLDER / f"checkpoint_{FORMAT}.json").open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
    path = FOLDER / f"checkpoint_{FORMAT}.safetensors"
    opt.save(path, notes=notes, also={"count": Count()})  # type: ignore[dict-item]  # as above


def described(opt: fastopt.Optimizer, notes: Any) -> dict[str, Any]:
    """Return what an optimizer holds, in a form in which no bit is lost."""
    saved = opt.state_dict()
    entries = saved["state"].items()
    arrays = {f"{name}/{slot}": e[slot] for name, e in entries for slot in e.keys() - {"step"}}
    arrays |= {leaf.name: leaf.array for leaf in opt._state.tree.leaves}
    return {
        "version": saved["fastopt"],
        "step_count": saved["step_count"],
        "groups": json.loads(json.dumps(saved["groups"])),
        "steps": {name: entry["step"] for name, entry in entries},
        "notes": repr(notes),
        "count": 17,
        "arrays": {
            key: [str(array.dtype), list(array.shape), array.tobytes().hex()]
            for key, array in sorted(arrays.items())
        },
    }


if __name__ == "__main__":
    main()
