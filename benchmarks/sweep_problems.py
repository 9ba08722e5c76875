"""What all optimizers are set to in ``sweep.py``: handwritten digits, and characters of real text.

The models, their gradients and the data are those of the examples, with parts of the data that are
kept apart: "training" for the steps, "choosing" for the learning rate, "shown" for the result.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import optree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import char_gpt
import char_transformer
import train_digits

Array = np.ndarray[Any, np.dtype[Any]]
Params = dict[str, Array]
Batch = tuple[Array, Array]
Part = Literal["choosing", "shown"]


class Problem(Protocol):
    """A model with its data.

    ``steps``: how long it is trained. ``no_knowledge``: the loss, in nats, of the best guess that
    does not look at its input. ``no_muon``: names of matrices that Muon is not meant for, which
    are embeddings and the last layer.
    """

    @property
    def title(self) -> str: ...

    @property
    def steps(self) -> int: ...

    @property
    def no_muon(self) -> frozenset[str]: ...

    @property
    def no_knowledge(self) -> float: ...

    def initial_params(self, rng: np.random.Generator) -> Params: ...

    def batch(self, rng: np.random.Generator) -> Batch: ...

    def loss_and_gradients(self, params: Mapping[str, Array], batch: Batch) -> tuple[Any, Params]:
        """Return the mean loss of a batch and its gradients, in the parameters' dtype."""
        ...

    def judge(self, params: Mapping[str, Array], part: Part) -> tuple[float, float]:
        """Return the mean loss, and the share of right answers, on data that is not trained on."""
        ...


@dataclass(frozen=True)
class Digits:
    """The network of ``examples/train_digits.py``: 64 pixels, 128 hidden units, 10 digits.

    A quarter of the images is held out as in the example, and shown; another quarter chooses.
    """

    steps: int = 300
    title: str = "handwritten digits"
    no_muon: frozenset[str] = frozenset({"W2"})

    @property
    def no_knowledge(self) -> float:
        """All digits alike."""
        return math.log(train_digits.DIGITS)

    @cached_property
    def _parts(self) -> dict[str, Batch]:
        rest, shown = train_digits.load_images(np)
        half = len(shown.x)
        return {
            "training": (rest.x[half:], rest.y[half:]),
            "choosing": (rest.x[:half], rest.y[:half]),
            "shown": (shown.x, shown.y),
        }

    def initial_params(self, rng: np.random.Generator) -> Params:
        return train_digits.initial_params(np, rng)

    def batch(self, rng: np.random.Generator) -> Batch:
        x, y = self._parts["training"]
        drawn = rng.choice(len(x), train_digits.BATCH_SIZE, replace=False)
        return x[drawn], y[drawn]

    def loss_and_gradients(self, params: Mapping[str, Array], batch: Batch) -> tuple[Any, Params]:
        return train_digits.loss_and_gradients(np, dict(params), *batch)

    def judge(self, params: Mapping[str, Array], part: Part) -> tuple[float, float]:
        x, y = self._parts[part]
        images = train_digits.Images(x, y)
        loss, _ = train_digits.loss_and_gradients(np, dict(params), x, y)
        return float(loss), train_digits.accuracy(np, dict(params), images)


SMALL = char_gpt.Shape(char_transformer.V, context=16, width=32, heads=2, layers=1)


@dataclass(frozen=True)
class Characters:
    """The GPT of ``examples/char_transformer.py`` in small: one block, 32 numbers per character.

    Its text is the source of Python's standard library. Half of what is held out there chooses.
    """

    steps: int = 300
    title: str = "characters of Python's source"
    no_muon: frozenset[str] = frozenset({"tokens", "positions"})
    shape: char_gpt.Shape = SMALL
    texts: int = 8  # per batch
    judged: int = 256  # texts of each part

    @property
    def no_knowledge(self) -> float:
        """Each character as often as it comes in the text."""
        return char_transformer.entropies(self._parts["shown"])[0]

    @cached_property
    def _parts(self) -> dict[str, Array]:
        training, held_out = char_transformer.load_text(self.shape.context)
        choosing, shown = np.split(held_out, [len(held_out) // 2])
        return {"training": training, "choosing": choosing, "shown": shown}

    def initial_params(self, rng: np.random.Generator) -> Params:
        params = char_gpt.initial_params(np, self.shape, rng)
        return dict(zip(self._names, optree.tree_leaves(params), strict=True))

    @cached_property
    def _tree(self) -> Any:
        return char_gpt.initial_params(np, self.shape, np.random.default_rng(0))

    @cached_property
    def _names(self) -> list[str]:
        return [path.codify("").lstrip(".") for path in optree.tree_accessors(self._tree)]

    def _as_tree(self, params: Mapping[str, Array]) -> char_gpt.Params:
        leaves = [params[name] for name in self._names]
        return optree.tree_unflatten(optree.tree_structure(self._tree), leaves)

    def batch(self, rng: np.random.Generator) -> Batch:
        text, length = self._parts["training"], self.shape.context
        starts = rng.integers(0, len(text) - length, self.texts)
        return char_transformer.windows(np, text, starts, length)

    def loss_and_gradients(self, params: Mapping[str, Array], batch: Batch) -> tuple[Any, Params]:
        loss, grads = char_gpt.loss_and_gradients(
            np, self._as_tree(params), *batch, self.shape.heads
        )
        return loss, dict(zip(self._names, optree.tree_leaves(grads), strict=True))

    def judge(self, params: Mapping[str, Array], part: Part) -> tuple[float, float]:
        text, length = self._parts[part], self.shape.context
        starts = np.linspace(0, len(text) - length - 1, self.judged).astype(np.int64)
        ids, targets = char_transformer.windows(np, text, starts, length)
        logits, _ = char_gpt.forward(np, self._as_tree(params), ids, self.shape.heads)
        loss, _ = char_gpt.cross_entropy(np, logits, targets)
        return float(loss), float((logits.argmax(axis=1) == targets.reshape(-1)).mean())


PROBLEMS: dict[str, type[Digits] | type[Characters]] = {
    "digits": Digits,
    "characters": Characters,
}
