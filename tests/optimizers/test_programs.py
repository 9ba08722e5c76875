"""What public programs do with their parameters between steps: each as a loop written by hand.

The loops hold the textbook's update in float64, and know nothing of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


class AdamByHand:
    """Adam as it is in most tutorials, one instance for one real array."""

    def __init__(self, p: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.m, self.v, self.t = np.zeros_like(p), np.zeros(p.shape), 0
        self.lr, self.betas = lr, betas

    def change(self, g: Any) -> Any:
        """Return what is subtracted."""
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m, v = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return self.lr * m / (np.sqrt(v) + 1e-8)


# Layers ------------------------------------------------------------------------------------------


class Dense:
    """A layer as courses write it: parameters in W and b, gradients in dW and db."""

    def __init__(self, rng: np.random.Generator, ins: int, outs: int) -> None:
        self.W, self.b = rng.standard_normal((ins, outs)) / np.sqrt(ins), np.zeros(outs)

    def forward(self, x: Array) -> Array:
        self.x, self.y = x, np.tanh(x @ self.W + self.b)
        return self.y

    def backward(self, upstream: Array) -> Array:
        before = upstream * (1 - self.y**2)
        self.dW, self.db = self.x.T @ before, before.sum(axis=0)
        return before @ self.W.T


def network() -> tuple[list[Dense], Array, Array]:
    rng = np.random.default_rng(0)
    sizes = [(5, 8), (8, 8), (8, 2)]
    return (
        [Dense(rng, *size) for size in sizes],
        rng.standard_normal((20, 5)),
        np.tanh(rng.standard_normal((20, 2))),
    )


def backpropagate(layers: list[Dense], x: Array, y: Array) -> float:
    out = x
    for layer in layers:
        out = layer.forward(out)
    upstream = (out - y) / len(x)
    for layer in reversed(layers):
        upstream = layer.backward(upstream)
    return float(((out - y) ** 2).mean())


def parameters(layer: Dense) -> dict[str, Array]:
    return {"W": layer.W, "b": layer.b}


def gradients(layer: Dense) -> dict[str, Array]:
    return {"W": layer.dW, "b": layer.db}


def trained_by_hand(steps: int, lrs: tuple[float, ...]) -> list[Dense]:
    layers, x, y = network()
    adams = [
        [AdamByHand(p, lr) for p in (one.W, one.b)] for one, lr in zip(layers, lrs, strict=True)
    ]
    for _ in range(steps):
        backpropagate(layers, x, y)
        for layer, (of_w, of_b) in zip(layers, adams, strict=True):
            layer.W -= of_w.change(layer.dW)
            layer.b -= of_b.change(layer.db)
    return layers


def assert_same_layers(found: list[Dense], expected: list[Dense]) -> None:
    for one, two in zip(found, expected, strict=True):
        same(one.W, two.W)
        same(one.b, two.b)


@each_backend
@pytest.mark.parametrize("tree", ["list of dicts", "vars", "names"])
def test_layers_that_hold_arrays_and_gradients_as_attributes(tree: str, backend: str) -> None:
    layers, x, y = network()

    def nested(of_layer: Callable[[Dense], dict[str, Array]]) -> Any:
        if tree == "names":
            every = ((k, of_layer(layer).items()) for k, layer in enumerate(layers))
            return {f"layer{k}.{name}": value for k, items in every for name, value in items}
        return [of_layer(layer) for layer in layers]

    # vars() is the layer's own dict, which gets more entries later: a copy of it stays as it is.
    params = [dict(vars(layer)) for layer in layers] if tree == "vars" else nested(parameters)
    opt = fastopt.Adam(params, lr=0.01, backend=backend)
    for _ in range(30):
        backpropagate(layers, x, y)
        opt.step(nested(gradients))
    assert_same_layers(layers, trained_by_hand(30, (0.01,) * 3))


@each_backend
def test_an_optimizer_for_every_layer(backend: str) -> None:
    layers, x, y = network()
    lrs = (0.01, 0.003, 0.02)
    opts = {
        id(layer): fastopt.Adam(parameters(layer), lr, backend=backend)
        for layer, lr in zip(layers, lrs, strict=True)
    }
    for _ in range(30):
        backpropagate(layers, x, y)
        for layer in reversed(layers):
            opts[id(layer)].step(gradients(layer))
    assert_same_layers(layers, trained_by_hand(30, lrs))


@each_backend
def test_early_stopping_puts_the_best_parameters_back_and_goes_on(backend: str) -> None:
    ends = []
    for by_hand in (True, False):
        layers, x, y = network()
        trained = [p for layer in layers for p in (layer.W, layer.b)]
        velocities = [np.zeros_like(p) for p in trained]
        opt = fastopt.SGD(trained, lr=1.5, momentum=0.9, backend=backend)
        best, kept, patience, restored = np.inf, [p.copy() for p in trained], 0, 0
        for _ in range(40):
            loss = backpropagate(layers, x, y)
            if loss < best:
                best, kept, patience = loss, [p.copy() for p in trained], 0
            else:
                patience += 1
            if patience == 3:
                for p, of_best in zip(trained, kept, strict=True):
                    p[...] = of_best
                patience, restored = 0, restored + 1
                continue
            grads = [g for layer in layers for g in (layer.dW, layer.db)]
            if by_hand:
                for p, velocity, g in zip(trained, velocities, grads, strict=True):
                    velocity[...] = 0.9 * velocity + g
                    p -= 1.5 * velocity
            else:
                opt.step(grads)
        assert restored >= 1
        ends.append((best, trained))
    same(ends[1][0], ends[0][0])
    for found, expected in zip(ends[1][1], ends[0][1], strict=True):
        same(found, expected)


# Rates and parameters that the program sets -------------------------------------------------------


@each_backend
def test_an_evolution_strategy_sets_rate_and_parameters_itself(backend: str) -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((40, 6, 12))
    target = rng.standard_normal(12)

    def estimate(center: Array, sigma: float, generation: int) -> Array:
        reward = -(((center + sigma * noise[generation]) - target) ** 2).sum(axis=1)
        reward = (reward - reward.mean()) / (reward.std() + 1e-8)
        gradient: Array = noise[generation].T @ reward / (len(reward) * sigma)
        return gradient

    center, by_hand, velocity = np.zeros(12), np.zeros(12), np.zeros(12)
    opt = fastopt.SGD(center, lr=0.3, momentum=0.5, maximize=True, backend=backend)
    for generation in range(40):
        sigma, lr = 0.5 * 0.97**generation, 0.3 * 0.95**generation
        if generation % 10 == 9:  # mutated from outside, and pulled back into the box
            for p in (center, by_hand):
                p[...] = np.clip(p + 0.1 * noise[generation, 0], -1.5, 1.5)
        opt.lr = lr
        opt.step(estimate(center, sigma, generation))
        velocity = 0.5 * velocity + estimate(by_hand, sigma, generation)
        by_hand += lr * velocity
    same(center, by_hand)


@each_backend
def test_a_rate_that_is_lowered_by_hand_in_every_step(backend: str) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    w, by_hand, lr = np.zeros(4), np.zeros(4), 0.2
    opt = fastopt.SGD(w, lr=lr, weight_decay=0.01, backend=backend)
    for epoch in range(400):
        opt.step(x.T @ (x @ w - y) / 30)
        by_hand = by_hand - lr * (x.T @ (x @ by_hand - y) / 30 + 0.01 * by_hand)
        opt.lr *= 1 / (1 + 0.1 * epoch)
        lr *= 1 / (1 + 0.1 * epoch)
    assert lr < 1e-300
    same(w, by_hand)


@each_backend
def test_a_gan_whose_critic_is_maximised(backend: str) -> None:
    rng = np.random.default_rng(3)
    real, latent = 2 + 0.5 * rng.standard_normal((50, 8)), rng.standard_normal((50, 8))

    def value_grads(g: Array, d: Array, k: int) -> tuple[Array, Array]:
        """Of V = mean(d0 x + d1 x^2) over real minus that over fake, fake = g0 + g1 z."""
        fake = g[0] + g[1] * latent[k]
        into_fake = -(d[0] + 2 * d[1] * fake)
        of_g = np.array([into_fake.mean(), (into_fake * latent[k]).mean()])
        of_d = [real[k].mean() - fake.mean(), (real[k] ** 2).mean() - (fake**2).mean()]
        return of_g, np.array(of_d) - 0.1 * d

    g, d = np.array([0.0, 1.0]), np.zeros(2)
    mine, theirs = g.copy(), d.copy()
    groups = [{"params": g, "lr": 0.01}, {"params": d, "lr": 0.05, "maximize": True}]
    opt = fastopt.Adam(groups, betas=(0.5, 0.9), backend=backend)
    of_mine, of_theirs = AdamByHand(g, 0.01, (0.5, 0.9)), AdamByHand(d, 0.05, (0.5, 0.9))
    for k in range(50):
        if k % 3 == 2:  # the generator, once for two steps of the critic
            opt.step([value_grads(g, d, k)[0], None])
            mine -= of_mine.change(value_grads(mine, theirs, k)[0])
        else:
            opt.step([None, value_grads(g, d, k)[1]])
            theirs += of_theirs.change(value_grads(mine, theirs, k)[1])
    assert opt.step_count == 50
    same(g, mine)
    same(d, theirs)


# Gradients of many kinds -------------------------------------------------------------------------


@each_backend
def test_a_char_rnn_with_adagrad_and_values_that_are_clipped(backend: str) -> None:
    rng = np.random.default_rng(4)
    text, hidden, letters = rng.integers(0, 7, 26), 9, 7

    def made() -> dict[str, Array]:
        rng = np.random.default_rng(5)
        shapes = {"Wxh": (hidden, letters), "Whh": (hidden, hidden), "Why": (letters, hidden)}
        weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        return weights | {"bh": np.zeros((hidden, 1)), "by": np.zeros((letters, 1))}

    def through_time(p: dict[str, Array]) -> dict[str, Array]:
        hs, ps = [np.zeros((hidden, 1))], []
        for t in range(25):
            x = np.eye(letters)[:, [text[t]]]
            hs.append(np.tanh(p["Wxh"] @ x + p["Whh"] @ hs[-1] + p["bh"]))
            y = p["Why"] @ hs[-1] + p["by"]
            ps.append(np.exp(y - y.max()) / np.exp(y - y.max()).sum())
        grads = {name: np.zeros_like(value) for name, value in p.items()}
        coming = np.zeros((hidden, 1))
        for t in reversed(range(25)):
            dy = ps[t].copy()
            dy[text[t + 1]] -= 1
            grads["Why"] += dy @ hs[t + 1].T
            grads["by"] += dy
            raw = (1 - hs[t + 1] ** 2) * (p["Why"].T @ dy + coming)
            grads["bh"] += raw
            grads["Wxh"] += raw @ np.eye(letters)[[text[t]]]
            grads["Whh"] += raw @ hs[t].T
            coming = p["Whh"].T @ raw
        return grads

    params, by_hand = made(), made()
    memory = {name: np.zeros_like(value) for name, value in by_hand.items()}
    opt = fastopt.Adagrad(params, lr=0.1, eps=1e-8, backend=backend)
    clipped = 0
    for _ in range(15):
        grads = through_time(params)
        clipped += sum(int((abs(g) > 5).sum()) for g in grads.values())
        fastopt.clip_grad_value_(grads, 5.0)
        opt.step(grads)
        for name, grad in through_time(by_hand).items():
            grad = np.clip(grad, -5, 5)
            memory[name] += grad * grad
            by_hand[name] += -0.1 * grad / (np.sqrt(memory[name]) + 1e-8)
    assert clipped > 10
    for name in by_hand:
        same(params[name], by_hand[name])


@each_backend
def test_word_vectors_of_which_a_step_sees_few_rows(backend: str) -> None:
    rng = np.random.default_rng(6)
    start = rng.standard_normal((40, 5))
    vectors, by_hand = start.copy(), start.copy()
    m, v = np.zeros((40, 5)), np.zeros((40, 5))
    opt = fastopt.Adam(vectors, lr=0.01, mask_zero=True, backend=backend)
    grad = np.zeros((40, 5))
    seen: set[int] = set()
    for t in range(1, 41):
        words = rng.integers(0, 30, 6)  # some twice
        own = rng.standard_normal((6, 5))
        grad[...] = 0
        np.add.at(grad, words, own)
        opt.step(grad)
        for word in set(words.tolist()):
            g = own[words == word].sum(axis=0)
            m[word] = 0.9 * m[word] + 0.1 * g
            v[word] = 0.999 * v[word] + 0.001 * g * g
            change = m[word] / (1 - 0.9**t) / (np.sqrt(v[word] / (1 - 0.999**t)) + 1e-8)
            by_hand[word] -= 0.01 * change
        seen |= set(words.tolist())
    same(vectors, by_hand)
    unseen = sorted(set(range(40)) - seen)
    assert len(unseen) >= 10
    np.testing.assert_array_equal(vectors[unseen], start[unseen])


@each_backend
def test_a_policy_gradient_with_rmsprop_that_adds_up_episodes(backend: str) -> None:
    rng = np.random.default_rng(7)
    made = {"W1": rng.standard_normal((6, 4)) / 2, "W2": rng.standard_normal(6) / 2}
    model = {name: value.copy() for name, value in made.items()}
    by_hand = {name: value.copy() for name, value in made.items()}
    buffers = [{name: np.zeros_like(value) for name, value in made.items()} for _ in range(2)]
    cache = {name: np.zeros_like(value) for name, value in made.items()}
    opt = fastopt.RMSprop(model, lr=1e-3, beta=0.99, eps=1e-5, maximize=True, backend=backend)

    def episode(p: dict[str, Array], number: int) -> dict[str, Array]:
        rng = np.random.default_rng(number)
        x, advantage = rng.standard_normal((12, 4)), rng.standard_normal(12)
        h = np.maximum(x @ p["W1"].T, 0)
        up = rng.random(12) < 0.5
        dlogp = (up - 1 / (1 + np.exp(-h @ p["W2"]))) * advantage
        dh = np.outer(dlogp, p["W2"]) * (h > 0)
        return {"W1": dh.T @ x, "W2": h.T @ dlogp}

    for number in range(1, 61):
        for p, buffer in zip((model, by_hand), buffers, strict=True):
            for name, grad in episode(p, number).items():
                buffer[name] += grad
        if number % 5:
            continue
        opt.step(buffers[0])
        for name, grad in buffers[1].items():
            cache[name] = 0.99 * cache[name] + 0.01 * grad**2
            by_hand[name] += 1e-3 * grad / (np.sqrt(cache[name]) + 1e-5)
        for buffer in buffers:
            for name in buffer:
                buffer[name][...] = 0.0
    for name in made:
        same(model[name], by_hand[name])


@each_backend
def test_logistic_regression_whose_intercept_has_no_axes(backend: str) -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((60, 3)), (rng.random(60) < 0.5).astype(float)
    params = {"coef": np.zeros(3), "intercept": np.array(0.0)}
    coef, intercept = np.zeros(3), 0.0
    buffer, other = np.zeros(3), 0.0
    opt = fastopt.SGD(params, lr=0.5, momentum=0.9, nesterov=True, backend=backend)
    for _ in range(50):
        error = 1 / (1 + np.exp(-(x @ params["coef"] + params["intercept"]))) - y
        # A mean over all axes is a NumPy scalar; np.asarray makes an array of it.
        opt.step({"coef": x.T @ error / 60, "intercept": np.asarray(error.mean())})
        error = 1 / (1 + np.exp(-(x @ coef + intercept))) - y
        grad, of_intercept = x.T @ error / 60, error.mean()
        buffer, other = 0.9 * buffer + grad, 0.9 * other + of_intercept
        coef = coef - 0.5 * (grad + 0.9 * buffer)
        intercept -= 0.5 * (of_intercept + 0.9 * other)
    assert params["intercept"].shape == ()
    same(params["coef"], coef)
    same(params["intercept"], intercept)


@each_backend
def test_matrix_factorisation_with_blocks_that_have_no_ratings_in_a_batch(backend: str) -> None:
    rng = np.random.default_rng(9)
    ratings = rng.random((4, 6, 5, 6))  # of blocks of users and items
    users = [rng.random((6, 3)) for _ in range(4)]
    items = [rng.random((6, 3)) for _ in range(5)]
    p, q = [u.copy() for u in users], [i.copy() for i in items]
    of_p, of_q = [AdamByHand(u, 0.02) for u in p], [AdamByHand(i, 0.02) for i in q]
    opt = fastopt.Adam({"users": users, "items": items}, lr=0.02, backend=backend)
    for _ in range(80):
        i, j = int(rng.integers(4)), int(rng.integers(5))
        error = users[i] @ items[j].T - ratings[i, :, j]
        opt.step(
            {
                "users": [error @ items[j] if k == i else None for k in range(4)],
                "items": [error.T @ users[i] if k == j else None for k in range(5)],
            }
        )
        error = p[i] @ q[j].T - ratings[i, :, j]
        changes = of_p[i].change(error @ q[j]), of_q[j].change(error.T @ p[i])
        p[i] -= changes[0]
        q[j] -= changes[1]
    assert len({adam.t for adam in of_p}) > 1
    for found, expected in zip([*users, *items], [*p, *q], strict=True):
        same(found, expected)


# Images ------------------------------------------------------------------------------------------


@each_backend
def test_one_image_that_stays_between_black_and_white(backend: str) -> None:
    rng = np.random.default_rng(10)
    content, style = 1.4 * rng.random((3, 8, 9)) - 0.2, rng.random((3, 3))
    image = rng.random((3, 8, 9))
    by_hand, adam = image.copy(), AdamByHand(image, 0.05)

    def gradient(image: Array) -> Array:
        flat = image.reshape(3, -1)
        gram = flat @ flat.T / flat.shape[1]
        of_style: Array = 4 / flat.shape[1] * (gram - style) @ flat
        return 2 * (image - content) + 20 * of_style.reshape(image.shape)

    opt = fastopt.Adam(image, lr=0.05, bounds=(0.0, 1.0), backend=backend)
    for _ in range(60):
        opt.step(gradient(image))
        by_hand = np.clip(by_hand - adam.change(gradient(by_hand)), 0, 1)
    assert (image == 0).any()
    assert (image == 1).any()
    same(image, by_hand)


@each_backend
def test_ptychography_with_a_complex_object_and_probe(backend: str) -> None:
    rng = np.random.default_rng(11)

    def drawn(*shape: int) -> Array:
        made: Array = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        return made

    measured = np.abs(np.fft.fft2(drawn(9, 6, 6))) ** 2
    places = [(r, c) for r in (0, 3, 6) for c in (0, 3, 6)]
    made = {"object": drawn(12, 12), "probe": drawn(6, 6)}
    found = {name: value.copy() for name, value in made.items()}
    by_hand = {name: value.copy() for name, value in made.items()}

    def gradient(p: dict[str, Array]) -> dict[str, Array]:
        """Of L = sum (|F psi| - sqrt(I))^2: dL/dRe + i dL/dIm, which is 2 dL/d conj(p)."""
        of_object, of_probe = np.zeros((12, 12), complex), np.zeros((6, 6), complex)
        for (r, c), intensity in zip(places, measured, strict=True):
            view = p["object"][r : r + 6, c : c + 6]
            wave = np.fft.fft2(p["probe"] * view)
            residual = wave - np.sqrt(intensity) * wave / (np.abs(wave) + 1e-12)
            back = 2 * 36 * np.fft.ifft2(residual)
            of_object[r : r + 6, c : c + 6] += np.conj(p["probe"]) * back
            of_probe += np.conj(view) * back
        return {"object": of_object, "probe": of_probe}

    def loss(p: dict[str, Array]) -> float:
        waves = (np.fft.fft2(p["probe"] * p["object"][r : r + 6, c : c + 6]) for r, c in places)
        pairs = zip(waves, measured, strict=True)
        return sum(float(((np.abs(w) - np.sqrt(i)) ** 2).sum()) for w, i in pairs)

    # It points uphill: the difference quotient along it, and along i times it.
    step = 1e-6
    for turn in (1, 1j):
        ahead = {**made, "probe": made["probe"] + step * turn * (1 + 0.5j)}
        back = {**made, "probe": made["probe"] - step * turn * (1 + 0.5j)}
        along = (np.conj(gradient(made)["probe"]) * turn * (1 + 0.5j)).real.sum()
        assert (loss(ahead) - loss(back)) / (2 * step) == pytest.approx(along, rel=1e-5)

    lrs = {"object": 0.05, "probe": 0.02}
    groups = [{"params": found[name], "lr": lr} for name, lr in lrs.items()]
    opt = fastopt.Adam(groups, backend=backend)
    parts = {n: [AdamByHand(p.real, lrs[n]), AdamByHand(p.imag, lrs[n])] for n, p in made.items()}
    for _ in range(30):
        grads = gradient(found)
        opt.step([grads[name] for name in lrs])
        for name, grad in gradient(by_hand).items():
            real, imag = parts[name]
            by_hand[name] -= real.change(grad.real) + 1j * imag.change(grad.imag)
    assert loss(found) < 0.5 * loss(made)
    for name in made:
        same(found[name], by_hand[name])
