"""What small numbers cost in training: final losses of two models in every way of storing them.

    python benchmarks/quality.py --json quality.json          # ten minutes on two cores
    python benchmarks/quality.py --only digits --seeds 1      # seconds

The models are those of the examples: the network on handwritten digits, and the small GPT on the
source text of Python's standard library. Each is trained from the same weights on the same batches
with float32 throughout and with smaller numbers; losses are means over the seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import ml_dtypes
import numpy as np
import optree
from rich.console import Console
from rich.table import Table

import fastopt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import char_transformer
import train_digits

Array = Any
Losses = dict[str, float]

LEAN = {"master_weights": False, "stochastic_rounding": True}

WAYS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "float32": (np.float32, {}),
    "float32, state bfloat16": (np.float32, {"state_dtype": "bfloat16"}),
    "float32, state int8": (np.float32, {"state_dtype": "int8"}),
    "bfloat16, master weights": (ml_dtypes.bfloat16, {}),
    "bfloat16, stochastic rounding": (ml_dtypes.bfloat16, LEAN),
    "bfloat16, stochastic rounding, state int8": (
        ml_dtypes.bfloat16,
        {**LEAN, "state_dtype": "int8"},
    ),
    "bfloat16, nothing": (ml_dtypes.bfloat16, {"master_weights": False}),
}
"""The dtype of the parameters, and the optimizer's arguments. The last is there to show why."""


def digits(dtype: Any, options: dict[str, Any], seed: int) -> tuple[Losses, fastopt.Optimizer]:
    """Train the network on digits; return its training loss in the last epoch, and the optimizer.

    As in the example, but for the loss on held-out images, which 450 images leave to chance.
    """
    rng = np.random.default_rng(seed)
    params = _in_dtype(train_digits.initial_params(np, rng), dtype)
    opt = fastopt.Adam(params, lr=3e-3, **options)
    training, _ = train_digits.load_images(np)
    compute = _in_float32(partial(train_digits.loss_and_gradients, np))
    loss = 0.0
    for _ in range(30):
        loss = _epoch(compute, params, opt, training, rng)
    return {"training": loss}, opt


def _epoch(
    compute: Callable[..., Any], params: Any, opt: fastopt.Optimizer, images: Any, rng: Any
) -> float:
    order, total = rng.permutation(len(images.x)), 0.0
    for start in range(0, len(order), train_digits.BATCH_SIZE):
        batch = order[start : start + train_digits.BATCH_SIZE]
        loss, grads = compute(params, images.x[batch], images.y[batch])
        opt.step(grads)
        total += float(loss) * len(batch)
    return total / len(order)


def characters(dtype: Any, options: dict[str, Any], seed: int) -> tuple[Losses, fastopt.Optimizer]:
    """Train the small GPT; return its loss in the last tenth and on held-out text."""
    size = replace(char_transformer.SIZES["laptop"])
    rng = np.random.default_rng(seed)
    text = char_transformer.load_text(size.shape.context)
    params = _in_dtype(char_transformer.initial_params(np, size.shape, rng), dtype)
    opt = char_transformer.make_optimizer(params, size, **options)
    told = char_transformer.train(np, params, opt, text, size, rng)
    return {"training": told.training, "held out": told.held_out}, opt


MODELS = {"digits": digits, "characters": characters}


def _in_dtype(params: Any, dtype: Any) -> Any:
    return optree.tree_map(lambda array: array.astype(dtype), params)


def _in_float32(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes with float32 copies of the parameters."""
    return lambda params, *rest: compute(_in_dtype(params, np.float32), *rest)


def measure(name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train a model in every way, with every seed; return mean losses and bytes."""
    rows = []
    for way, (dtype, options) in WAYS.items():
        runs = [MODELS[name](dtype, options, seed) for seed in seeds]
        losses = {key: float(np.mean([each[key] for each, _ in runs])) for key in runs[0][0]}
        opt = runs[0][1]
        rows.append({"model": name, "way": way, "state_bytes": opt.state_bytes, **losses})
        print(rows[-1], file=sys.stderr)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of the losses of one model, and how far they are from those of float32."""
    keys = [key for key in rows[0] if key not in ("model", "way", "state_bytes")]
    table = Table(title=str(rows[0]["model"]))
    table.add_column("parameters and state")
    for title in ("bytes of state", *(part for key in keys for part in (f"{key} loss", ""))):
        table.add_column(title, justify="right")
    for row in rows:
        cells = [str(row["way"]), f"{row['state_bytes']:,}"]
        for key in keys:
            cells += [f"{row[key]:.4f}", f"{row[key] / rows[0][key] - 1:+.2%}"]
        table.add_row(*cells)
    Console(width=120).print(table)


def main() -> None:
    """Train, print, write."""
    parser = command_line.parser(__doc__, picture=False)
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument("--seeds", type=int, default=3, help="of digits; characters take one")
    given = command_line.parse(parser)
    results = {}
    for name in MODELS if given.only is None else [given.only]:
        results[name] = measure(name, range(given.seeds if name == "digits" else 1))
    for rows in results.values():
        show(rows)
    command_line.write_json(given.json, results)


if __name__ == "__main__":
    main()
