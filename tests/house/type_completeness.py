"""Fails where the type of a public symbol of the package is not written down: ``pyright`` says so.

``python tests/house/type_completeness.py``: what ``pyright --verifytypes fastopt`` finds unknown or
left to be inferred, but for the classes that are other libraries' too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

OTHERS = {
    "fastopt.interop.torch_optim.TorchOptimizer",
    *(f"fastopt.interop.torch_explain.{name}" for name in ("explained", "summarised")),
    *(f"fastopt.interop.sklearn.{name}" for name in ("_Network", "MLPClassifier", "MLPRegressor")),
    *(f"fastopt.interop.thinc.{name}" for name in ("Optimizer", "configured")),
}
"""Classes that are those of libraries too, which have no types here, and what takes one."""
COMMAND = ["pyright", "--verifytypes", "fastopt", "--ignoreexternal", "--outputjson"]


def incomplete(found: dict[str, Any]) -> list[str]:
    """Return what is said of each symbol whose type is not complete."""
    symbols = found["typeCompleteness"]["symbols"]
    wrong = [s for s in symbols if not s["isTypeKnown"] or s["isTypeAmbiguous"]]
    return [
        f"{symbol['name']}: {said['message']}"
        for symbol in wrong
        for said in symbol["diagnostics"]
        if symbol["name"] not in OTHERS
    ]


def main() -> int:
    """Run pyright and print what it finds; return how the program ends."""
    done = subprocess.run(
        [*COMMAND, "--pythonpath", sys.executable], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    counts = found["typeCompleteness"]["exportedSymbolCounts"]
    wrong = incomplete(found)
    print("\n".join([*wrong, f"{counts['withKnownType']} public symbols have known types"]))
    return 1 if wrong or not counts["withKnownType"] else 0


if __name__ == "__main__":
    sys.exit(main())
