"""The inputs of golden cases as they are stored beside the files of their kind."""

import json
from pathlib import Path

import numpy as np

from .vector_cases import Array

HERE = Path(__file__).parent


def stored_inputs(folder: str) -> dict[str, dict[str, list[Array]]]:
    """Return set name -> {"p": first parameters, "g": gradients with the steps first}."""
    own = HERE / folder / "inputs.npz"
    with np.load(own, allow_pickle=False) as file:
        sets = json.loads(str(file["sets"]))
        return {
            name: {letter: [file[f"{name}/{letter}{k}"] for k in range(3)] for letter in "pg"}
            for name in sets
        }
