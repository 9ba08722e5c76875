"""Train a small GPT on the source text of Python's standard library, character by character.

    FASTOPT_BACKEND=numba python examples/char_transformer.py
    FASTOPT_BACKEND=cupy python examples/char_transformer.py --size gpu

Real text that every machine has. Every tenth file is held out, never trained on, and used only to
measure. The model and its gradients, written by hand, are in ``char_gpt.py``; this file has the
text, the training, and what is printed. The program is written once, against
``xp = fastopt.array_namespace()``: numpy for the backends numpy and numba, cupy for the backend
cupy. Nothing else depends on the backend, and the same seed gives the same numbers on numpy and
numba (with the same NumPy, Python and number of threads: the products of matrices depend on them,
and the text does). Where other programs keep the cores busy, OPENBLAS_NUM_THREADS=1 is several
times as fast as threads that wait for each other.

What a loss is worth is told by two entropies of the held-out text: no model that ignores what came
before can get below the first, and none that sees only the last character below the second. A loss
of 1 nat is 1/log(2) = 1.44 bits per character.

With ``--dtype bfloat16`` the model's parameters take half the memory; the optimizer keeps float32
master weights beside them, so that its small steps add up. Needs ``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from char_gpt import (
    Array,
    Params,
    Shape,
    cross_entropy,
    forward,
    initial_params,
    loss_and_gradients,
)
from optree import tree_leaves, tree_map
from tqdm import tqdm

import fastopt

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # printable ASCII; all else is read as "?"
V = len(ALPHABET)
PROMPT = "\ndef "
TEMPERATURE = 0.8  # below 1: likely characters become likelier when text is drawn
REPORTS = 10


@dataclass(frozen=True)
class Size:
    """A model, and how to train it."""

    shape: Shape
    batch: int  # texts per step
    steps: int
    lr: float  # the largest


SIZES = {
    "laptop": Size(Shape(V, context=64, width=128, heads=4, layers=3), 12, 1800, 3e-3),
    "gpu": Size(Shape(V, context=512, width=512, heads=8, layers=8), 64, 2000, 1e-3),
}

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


# The text ---------------------------------------------------------------------------------------


def standard_files() -> Iterator[Path]:
    """Yield the files of Python's standard library by name, without tests and tables."""
    folder = Path(os.__file__).parent
    left_out = {"test", "tests", "idle_test", "encodings", "pydoc_data"}
    for name in sorted(sys.stdlib_module_names):  # other packages may be installed beside it
        module = folder / f"{name}.py"
        for path in [module] if module.is_file() else sorted((folder / name).rglob("*.py")):
            if not left_out & set(path.relative_to(folder).parts):
                yield path


def load_text(context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the text to train on and the text held out, as places in the alphabet.

    Raises ValueError if there is not even one piece of ``context`` characters in each.
    """
    table = np.full(128, ALPHABET.index("?"))
    table[[ord(c) for c in ALPHABET]] = np.arange(V)
    parts: tuple[list[str], list[str]] = [], []
    for number, path in enumerate(standard_files()):
        text = path.read_text(encoding="utf-8", errors="replace").expandtabs()
        parts[number % 10 == 9].append(text)
    codes = [np.frombuffer("\n".join(part).encode("ascii", "replace"), np.uint8) for part in parts]
    if min(map(len, codes)) <= context:
        raise ValueError(f"no source text of the standard library in {Path(os.__file__).parent}")
    return table[codes[0]], table[codes[1]]


def windows(xp: ModuleType, text: Array, starts: np.ndarray, length: int) -> tuple[Array, Array]:
    """Return pieces of the text as rows (B, T), and the same moved on by one: what comes next."""
    rows = text[xp.asarray(starts)[:, None] + xp.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def entropies(text: np.ndarray) -> tuple[float, float]:
    """Return the entropy in nats of a character alone, and given the character before it.

    H(next) = -sum p(b) log p(b) and H(next | last) = H(last, next) - H(last), with the shares of
    characters and pairs in this text as probabilities.
    """

    def entropy(counts: np.ndarray) -> float:
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())

    pairs = np.bincount(text[:-1] * V + text[1:], minlength=V * V).reshape(V, V)
    return entropy(pairs.sum(axis=0)), entropy(pairs) - entropy(pairs.sum(axis=1))


# Training ---------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step (0 for the first).

    It grows evenly over the first twentieth, while Adam's averages are young, and then falls along
    half a cosine to a tenth: long steps first, to get far, then short ones, to settle.
    """
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return peak * (0.55 + 0.45 * math.cos(math.pi * min(done, 1.0)))


def in_dtype(params: Params, dtype: Any) -> Params:
    """Return the parameters in the dtype in which they are kept."""
    return tree_map(lambda array: array.astype(dtype, copy=False), params)


def make_optimizer(params: Params, size: Size, **options: Any) -> fastopt.Optimizer:
    """Return AdamW with the schedule, and with gradients clipped to the length 1."""
    return fastopt.AdamW(
        params,
        lr=lambda step: learning_rate(step, size.steps, size.lr),
        betas=(0.9, 0.99),  # a short memory suits a short training
        max_grad_norm=1.0,
        **options,
    )


@dataclass
class Progress:
    """What the training came to: losses in nats per character, times in seconds."""

    training: float = math.nan  # mean of the batches since the last report
    held_out: float = math.nan
    seconds: float = 0.0
    in_steps: float = 0.0  # of these, in opt.step


def held_out_loss(xp: ModuleType, params: Params, text: Array, size: Size) -> float:
    """Return the mean loss over eight batches, evenly spread over the text and always the same."""
    length, count = size.shape.context, 8 * size.batch
    starts = np.linspace(0, len(text) - length - 1, count).astype(np.int64)
    total = 0.0
    for some in np.split(starts, 8):
        ids, targets = windows(xp, text, some, length)
        logits, _ = forward(xp, params, ids, size.shape.heads)
        total += float(cross_entropy(xp, logits, targets)[0])
    return total / 8


def train(
    xp: ModuleType,
    params: Params,
    opt: fastopt.Optimizer,
    text: tuple[Array, Array],
    size: Size,
    rng: np.random.Generator,
) -> Progress:
    """Train the parameters in place, and print how it goes."""
    training, held_out = text
    length, every = size.shape.context, max(1, size.steps // REPORTS)
    told, total, since = Progress(), xp.zeros((), dtype=xp.float64), 0
    start = time.perf_counter()
    for step in tqdm(range(1, size.steps + 1), unit="step", disable=None):  # on terminals only
        # Drawn by numpy, so that every backend sees the same batches.
        starts = rng.integers(0, len(training) - length, size.batch)
        ids, targets = windows(xp, training, starts, length)
        loss, grads = loss_and_gradients(xp, params, ids, targets, size.shape.heads)
        wait(xp)
        before = time.perf_counter()
        opt.step(grads)
        wait(xp)
        told.in_steps += time.perf_counter() - before
        total += loss
        since += 1
        if step % every == 0 or step == size.steps:
            told.training, since = float(total) / since, 0
            total = xp.zeros_like(total)
            told.held_out = held_out_loss(xp, params, held_out, size)
            tqdm.write(
                f"step {step:5}: training loss {told.training:.4f}, held out {told.held_out:.4f}"
            )
            if not math.isfinite(told.training):
                break  # no step leads back from NaN
    told.seconds = time.perf_counter() - start
    return told


def wait(xp: ModuleType) -> None:
    """Wait until the device has done what it was told; numpy has when it returns.

    Twice in every step, for the optimizer's share of the time. It costs a GPU little here: one
    step of this model is hundreds of launches, and clipping waits for the gradients in any case.
    """
    if xp is not np:
        xp.cuda.Device().synchronize()


# New text ---------------------------------------------------------------------------------------


def sample(
    xp: ModuleType, params: Params, shape: Shape, length: int, rng: np.random.Generator
) -> str:
    """Return the prompt and ``length`` characters after it, drawn one by one from the model.

    Every character costs a pass over all that the model can see; real programs keep the keys and
    values of the characters before.
    """
    ids = [ALPHABET.index(c) for c in PROMPT]
    for _ in range(length):
        seen = xp.asarray(ids[-shape.context :])[None]
        logits, _ = forward(xp, params, seen, shape.heads)
        scores = np.asarray(logits[-1].tolist()) / TEMPERATURE  # on the host, in float64
        weights = np.exp(scores - scores.max()).cumsum()
        ids.append(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")))
    return "".join(ALPHABET[i] for i in ids)


# The command line -------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        description="Train a small GPT on the source text of Python's standard library.",
        epilog="The environment variable FASTOPT_BACKEND (auto, numpy, numba or cupy) says what "
        "computes the optimizer's steps, and where the model is.",
    )
    parser.add_argument("--size", choices=SIZES, default="laptop", help="default: laptop")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the parameters; the model computes in float32; default: float32",
    )
    parser.add_argument("--steps", type=int, help="default: as many as suit the size")
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, batches, sample; default: 0"
    )
    parser.add_argument(
        "--sample", type=int, default=500, help="characters to write at the end; default: 500"
    )
    given = parser.parse_args(arguments)
    if given.steps is None:
        given.steps = SIZES[given.size].steps
    for name, least in (("steps", 1), ("seed", 0), ("sample", 0)):
        if (value := getattr(given, name)) < least:
            parser.error(f"--{name} must be at least {least}; got {value}")
    return given


def main(arguments: list[str] | None = None) -> None:
    """Train, say in one line how it went, and show what the model writes."""
    given = parse(arguments)
    size = replace(SIZES[given.size], steps=given.steps)
    rng = np.random.default_rng(given.seed)
    try:
        xp = fastopt.array_namespace()
        text = load_text(size.shape.context)
        params = in_dtype(initial_params(xp, size.shape, rng), DTYPES[given.dtype])
        opt = make_optimizer(params, size).warmup()
    except (fastopt.FastoptError, ValueError) as error:  # a backend, or no text
        sys.exit(f"char_transformer.py: {error}")

    single, pair = entropies(text[1])
    print(
        f"{len(text[0])} characters to train on, {len(text[1])} held out, whose entropy is "
        f"{single:.4f} nats per character, {pair:.4f} given the one before; "
        f"{sum(array.size for array in tree_leaves(params))} parameters"
    )
    on_device = xp.asarray(text[0]), xp.asarray(text[1])
    with np.errstate(over="ignore", invalid="ignore"):  # the loss shows it, and is looked at below
        told = train(xp, params, opt, on_device, size, rng)
    if not math.isfinite(told.training + told.held_out):
        sys.exit(
            "char_transformer.py: the loss is no longer finite; try another --seed, or a smaller "
            "lr in SIZES"
        )
    if given.sample:
        print(sample(xp, params, size.shape, given.sample, rng))
    print(
        f"AdamW on {opt.backend}: held-out loss {nats_and_bits(told.held_out)}, training loss "
        f"{nats_and_bits(told.training)}, {told.seconds:.1f} s of training, "
        f"{told.in_steps / told.seconds:.1%} of it in the optimizer's steps"
    )


def nats_and_bits(loss: float) -> str:
    """Return a loss per character in both units."""
    return f"{loss:.4f} nats ({loss / math.log(2):.4f} bits) per character"


if __name__ == "__main__":
    main()
