"""How nested states are stored: the nesting as JSON, the arrays beside it under numbers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def encode(node: Any, arrays: list[Any]) -> Any:
    """Return a tree as JSON; its arrays are appended to ``arrays``."""
    if isinstance(node, dict):
        return {"dict": [[key, encode(value, arrays)] for key, value in node.items()]}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        fields = [[name, encode(getattr(node, name), arrays)] for name in node._fields]
        return {"named": type(node).__name__, "fields": fields}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [encode(value, arrays) for value in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"value": node}
    arrays.append(np.asarray(node))
    return {"array": len(arrays) - 1}


def outline(node: Any) -> Any:
    """Return a tree with dtypes and shapes in the place of arrays."""
    if isinstance(node, dict):
        return {key: outline(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [outline(value) for value in node]
    return f"{node.dtype} {node.shape}" if isinstance(node, np.ndarray) else node


def write(library: str, cases: list[dict[str, Any]], versions: dict[str, str]) -> None:
    """Write the cases of one library; values that are NumPy arrays go beside the JSON."""
    arrays: list[Any] = []
    listed = [encode(case, arrays) for case in cases]
    head = {"cases": json.dumps(listed), "made_with": json.dumps(versions)}
    content = {k: np.array(v) for k, v in head.items()}
    content |= {str(k): array for k, array in enumerate(arrays)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **content)
    path = FOLDER / f"{library}.npz"
    old = path.read_bytes() if path.exists() else None
    path.write_bytes(buffer.getvalue())
    verdict = "unchanged" if old == buffer.getvalue() else "new" if old is None else "CHANGED"
    print(f"{path.name}: {len(cases)} cases, {len(buffer.getvalue())} bytes, {verdict}")
