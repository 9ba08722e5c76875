"""The hand-written GPT: right gradients, no look ahead, learning, and the same on every backend."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optree
import pytest
from threadpoolctl import threadpool_limits

import fastopt
from helpers.variants import CPU_BACKENDS

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


gpt = load("char_gpt")
char = load("char_transformer")


@pytest.fixture(autouse=True)
def one_thread_for_matrices() -> Iterator[None]:
    """Such small products gain nothing by threads, and lose much where tests run side by side."""
    with threadpool_limits(1, user_api="blas"):
        yield


SHAPE = gpt.Shape(alphabet=11, context=7, width=8, heads=2, layers=2)
BATCH, LENGTH = 3, 5  # shorter than the context, which must work too
TINY = char.Size(gpt.Shape(char.V, context=32, width=32, heads=2, layers=2), 16, 150, 1e-2)


def random_params(rng: np.random.Generator, dtype: Any = np.float64) -> Any:
    """Return parameters of which none is 0 or 1, so that no term of a gradient can hide."""
    return optree.tree_map(
        lambda array: (array + 0.3 * rng.standard_normal(array.shape)).astype(dtype),
        gpt.initial_params(np, SHAPE, rng),
    )


def random_batch(rng: np.random.Generator) -> tuple[Any, Any]:
    ids = rng.integers(0, SHAPE.alphabet, (BATCH, LENGTH + 1))
    return ids[:, :-1], ids[:, 1:]


# The model --------------------------------------------------------------------------------------


def test_every_element_of_every_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    params, (ids, targets) = random_params(rng), random_batch(rng)
    _, grads = gpt.loss_and_gradients(np, params, ids, targets, SHAPE.heads)

    def loss() -> float:
        logits, _ = gpt.forward(np, params, ids, SHAPE.heads)
        return float(gpt.cross_entropy(np, logits, targets)[0])

    paths, arrays, _ = optree.tree_flatten_with_path(params)
    for path, array, gradient in zip(paths, arrays, optree.tree_leaves(grads), strict=True):
        assert gradient.shape == array.shape
        expected = np.empty_like(array)
        for at in np.ndindex(array.shape):
            kept = array[at]
            array[at] = kept + 1e-5
            above = loss()
            array[at] = kept - 1e-5
            expected[at] = (above - loss()) / 2e-5
            array[at] = kept
        error = np.abs(gradient - expected).max()
        assert error <= 1e-7 * np.abs(expected).max(), path


def test_gelu_is_x_times_the_normal_distribution_to_three_digits() -> None:
    x = np.linspace(-6, 6, 241)
    exact = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x]
    assert gpt.gelu(np, x)[0] == pytest.approx(exact, abs=5e-4)


def test_a_later_character_changes_no_earlier_logits() -> None:
    rng = np.random.default_rng(1)
    params, (ids, _) = random_params(rng, np.float32), random_batch(rng)
    before = gpt.forward(np, params, ids, SHAPE.heads)[0].reshape(BATCH, LENGTH, -1)
    for place in range(LENGTH):
        changed = ids.copy()
        changed[:, place] = (changed[:, place] + 1) % SHAPE.alphabet
        after = gpt.forward(np, params, changed, SHAPE.heads)[0].reshape(BATCH, LENGTH, -1)
        assert np.array_equal(after[:, :place], before[:, :place])
        assert (np.abs(after[:, place:] - before[:, place:]).max(axis=2) > 1e-4).all()


def test_no_text_of_a_batch_changes_another() -> None:
    rng = np.random.default_rng(2)
    params, (ids, _) = random_params(rng), random_batch(rng)
    together = gpt.forward(np, params, ids, SHAPE.heads)[0].reshape(BATCH, LENGTH, -1)
    for number in range(BATCH):
        alone, _ = gpt.forward(np, params, ids[number : number + 1], SHAPE.heads)
        assert alone == pytest.approx(together[number], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_everything_is_computed_in_float32(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    params, (ids, targets) = random_params(rng, dtype), random_batch(rng)
    seen = set()

    def watch(layer: Any) -> Any:
        def watched(*given: Any) -> Any:
            y, backward = layer(*given)
            seen.add(y.dtype)

            def watched_backward(d_y: Any) -> Any:
                result = backward(d_y)
                seen.update(array.dtype for array in optree.tree_leaves((d_y, result)))
                return result

            return y, watched_backward

        return watched

    for name in ("linear", "layer_norm", "gelu", "causal_attention", "transformer_block"):
        monkeypatch.setattr(gpt, name, watch(getattr(gpt, name)))
    loss, grads = gpt.loss_and_gradients(np, params, ids, targets, SHAPE.heads)
    seen.update(array.dtype for array in [loss, *optree.tree_leaves(grads)])
    assert seen == {np.dtype(np.float32)}
    wide = gpt.at_least_float32(params)
    assert loss == gpt.loss_and_gradients(np, wide, ids, targets, SHAPE.heads)[0]


def test_the_loss_begins_at_that_of_a_guess() -> None:
    rng = np.random.default_rng(4)
    params = gpt.initial_params(np, TINY.shape, rng)
    ids = rng.integers(0, char.V, (16, 33))
    logits, _ = gpt.forward(np, params, ids[:, :-1], TINY.shape.heads)
    loss, _ = gpt.cross_entropy(np, logits, ids[:, 1:])
    assert math.log(char.V) - 0.1 < loss < math.log(char.V) + 1  # logits of size 1 cost 1/2


def test_logits_that_are_large_do_not_overflow() -> None:
    logits = np.array([[0.0, 5e4], [-5e4, 0.0]], dtype=np.float32)
    loss, gradient = gpt.cross_entropy(np, logits, np.array([[1, 0]]))
    assert float(loss) == 2.5e4
    assert gradient.tolist() == [[0.0, 0.0], [-0.5, 0.5]]


# The text ---------------------------------------------------------------------------------------


def test_the_entropies_are_those_of_known_texts() -> None:
    turns = np.tile([5, 9], 5000)  # half and half, and the one tells the next
    single, pair = char.entropies(turns)
    assert single == pytest.approx(math.log(2), abs=1e-6)
    assert pair == pytest.approx(0, abs=1e-6)
    drawn = np.random.default_rng(0).integers(0, 4, 200_000)  # nothing tells anything
    assert char.entropies(drawn) == pytest.approx((math.log(4), math.log(4)), abs=1e-3)


def test_the_text_is_python_and_none_of_it_is_on_both_sides() -> None:
    training, held_out = ("".join(map(char.ALPHABET.__getitem__, t)) for t in char.load_text(128))
    assert "\nimport " in training
    assert "\nimport " in held_out
    files = list(char.standard_files())
    assert len(files) == len(set(files))
    assert not any("site-packages" in path.parts for path in files)
    held = max(files[9::10], key=lambda path: path.stat().st_size).read_text("utf-8").expandtabs()
    assert held.encode("ascii", "replace").decode() in held_out
    assert held.encode("ascii", "replace").decode() not in training


def test_the_learning_rate_grows_and_then_falls_to_a_tenth() -> None:
    rates = [char.learning_rate(step, 400, 2.0) for step in range(401)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[:20] == sorted(rates[:20])
    assert max(rates) == rates[20] == rates[19] == pytest.approx(2.0)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[400] == pytest.approx(0.2)
    assert char.learning_rate(0, 1, 2.0) == 2.0


# Training ---------------------------------------------------------------------------------------


def trained(backend: str, steps: int) -> tuple[Any, Any, float]:
    rng = np.random.default_rng(0)
    text = char.load_text(TINY.shape.context)
    params = gpt.initial_params(np, TINY.shape, rng)
    size = char.replace(TINY, steps=steps)
    with fastopt.use_backend(backend):
        opt = char.make_optimizer(params, size)
        told = char.train(np, params, opt, text, size, rng)
    return params, told, char.entropies(text[1])[0]


def test_training_comes_far_below_the_entropy_of_single_characters() -> None:
    _, told, single = trained(CPU_BACKENDS[-1], 150)
    assert told.held_out < single - 0.5
    assert told.training < single - 0.5
    assert 0 < told.in_steps < told.seconds


def test_20_steps_end_in_the_same_bits_on_every_backend() -> None:
    runs = [trained(backend, 20) for backend in CPU_BACKENDS]
    for params, told, _ in runs:
        assert (told.training, told.held_out) == (runs[0][1].training, runs[0][1].held_out)
        for array, first in zip(*map(optree.tree_leaves, (params, runs[0][0])), strict=True):
            assert np.array_equal(array, first)


# The program ------------------------------------------------------------------------------------


def test_the_program_prints_the_same_on_every_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(char.SIZES, "laptop", TINY)
    told = []
    for backend in CPU_BACKENDS:
        with fastopt.use_backend(backend):
            char.main(["--steps", "12", "--sample", "30"])
        text = capsys.readouterr().out
        assert f"\nAdamW on {backend}: held-out loss " in text
        told.append(text.replace(f"on {backend}", "").rpartition(" per character")[0])
    assert len(set(told)) == 1


def test_sampling_goes_by_the_seed() -> None:
    params = gpt.initial_params(np, TINY.shape, np.random.default_rng(0))

    def drawn(seed: int) -> str:
        text = char.sample(np, params, TINY.shape, 60, np.random.default_rng(seed))
        assert isinstance(text, str)
        return text

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1).startswith(char.PROMPT)
    assert len(drawn(1)) == len(char.PROMPT) + 60  # longer than the context


def test_a_backend_that_cannot_run_is_one_clear_line() -> None:
    if fastopt.available_backends()["cupy"] is None:
        pytest.skip("a GPU is here")
    with (
        fastopt.use_backend("cupy"),
        pytest.raises(SystemExit, match=r"^char_transformer.py: backend 'cupy' cannot run.*$") as e,
    ):
        char.main([])
    assert "\n" not in str(e.value)


def test_a_loss_that_is_not_finite_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(char.SIZES, "laptop", char.replace(TINY, lr=1e30))
    with fastopt.use_backend("numpy"), pytest.raises(SystemExit, match="no longer finite"):
        char.main(["--steps", "20"])


@pytest.mark.parametrize("given", [["--steps", "0"], ["--sample", "-1"], ["--seed", "-1"]])
def test_a_number_out_of_range_is_refused(given: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        char.main(given)
    assert error.value.code == 2
    assert f"{given[0]} must be at least" in capsys.readouterr().err


def test_parameters_in_half_precision_learn_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(char.SIZES, "laptop", TINY)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        with fastopt.use_backend("numpy"):
            char.main(["--steps", "60", "--sample", "0", "--dtype", dtype])
        told = capsys.readouterr().out.split("held-out loss ")[1]
        losses[dtype] = float(told.split()[0])
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
