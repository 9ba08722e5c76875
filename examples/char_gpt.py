"""A small GPT, forward and backward, written by hand: each formula beside its line.

Each layer is one function. It returns what the layer computes, and a second function, ``backward``,
that takes d_y, the gradient of the loss for the layer's output y, and returns the gradients for
what went in: first for the input x, then for the layer's own parameters. By the chain rule the
whole backward pass is then the forward pass read from its end. What ``backward`` needs from the
forward pass it simply remembers, being defined inside it.

Letters in the shapes:

    B  texts in a batch            C  width: numbers that stand for one character
    T  characters in a text        H  heads of attention, each of D = C/H numbers
    V  characters in the alphabet  N = B T  rows: only attention looks beyond its own row

d_x stands for dL/dx, where L is the loss, and always has the shape of x. ``xp`` is numpy or cupy.

The model: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), known as
GPT-2, after Vaswani et al., "Attention Is All You Need" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import optree

Array = Any  # numpy.ndarray or cupy.ndarray
Backward = Callable[[Array], Any]

NORM_EPS = 1e-5  # keeps a row of equal numbers from being divided by 0


# The parameters: a tree, which fastopt takes as it is -------------------------------------------


class Linear(NamedTuple):
    """x W + b."""

    W: Array  # (inputs, outputs)
    b: Array  # (outputs)


class Norm(NamedTuple):
    """What a layer norm multiplies and adds at its end."""

    gain: Array  # (C)
    bias: Array  # (C)


class Block(NamedTuple):
    """One of the transformer's blocks."""

    norm1: Norm
    qkv: Linear  # C -> 3C: queries, keys and values of all heads
    out: Linear  # C -> C
    norm2: Norm
    up: Linear  # C -> 4C
    down: Linear  # 4C -> C


class Params(NamedTuple):
    """All that is learned. The gradients are a ``Params`` too."""

    tokens: Array  # (V, C): the vector of each character; used going in and coming out
    positions: Array  # (longest T, C)
    blocks: list[Block]
    norm: Norm


class Shape(NamedTuple):
    """The size of a model."""

    alphabet: int  # V
    context: int  # the longest T
    width: int  # C
    heads: int  # H; C is a multiple of it
    layers: int  # number of blocks


def initial_params(xp: ModuleType, shape: Shape, rng: np.random.Generator) -> Params:
    """Return random weights, zero biases and gains of one, in float32.

    Weights have the variance 1/inputs, so that x W is about as large as x. Each block adds to its
    input twice; what it adds begins smaller by 1/sqrt(2 layers), so that the sum over all blocks
    does not grow with their number. The numbers are drawn by numpy for every backend.
    """
    C = shape.width
    small = (2 * shape.layers) ** -0.5

    def drawn(rows: int, columns: int, std: float) -> Array:
        return xp.asarray(rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(std))

    def linear(inputs: int, outputs: int, scale: float = 1.0) -> Linear:
        W = drawn(inputs, outputs, scale * inputs**-0.5)
        return Linear(W, xp.zeros(outputs, dtype=xp.float32))

    def norm() -> Norm:
        return Norm(xp.ones(C, dtype=xp.float32), xp.zeros(C, dtype=xp.float32))

    def block() -> Block:
        return Block(
            norm1=norm(),
            qkv=linear(C, 3 * C),
            out=linear(C, C, small),
            norm2=norm(),
            up=linear(C, 4 * C),
            down=linear(4 * C, C, small),
        )

    tokens = drawn(shape.alphabet, C, C**-0.5)
    positions = drawn(shape.context, C, C**-0.5)
    return Params(tokens, positions, [block() for _ in range(shape.layers)], norm())


def at_least_float32(params: Params) -> Params:
    """Return the parameters as the model computes with them: shorter floats become float32.

    Parameters of float32 or longer are not copied.
    """
    return optree.tree_map(
        lambda array: array.astype(np.result_type(array.dtype, np.float32), copy=False), params
    )


# The layers -------------------------------------------------------------------------------------


def linear(x: Array, p: Linear) -> tuple[Array, Backward]:
    """y = x W + b, for x of shape (N, inputs)."""

    def backward(d_y: Array) -> tuple[Array, Linear]:
        # y_nj = sum_i x_ni W_ij + b_j, so
        #   dL/dx_ni = sum_j dL/dy_nj W_ij      that is  d_x = d_y W^T
        #   dL/dW_ij = sum_n x_ni dL/dy_nj      that is  d_W = x^T d_y
        #   dL/db_j  = sum_n dL/dy_nj
        return d_y @ p.W.T, Linear(x.T @ d_y, d_y.sum(axis=0))

    y = x @ p.W
    y += p.b
    return y, backward


def layer_norm(xp: ModuleType, x: Array, p: Norm) -> tuple[Array, Backward]:
    """y = gain n + bias with n = (x - mean) / std, row by row, for x of shape (N, C)."""
    n = x - x.mean(axis=1, keepdims=True)
    std = xp.sqrt((n * n).mean(axis=1, keepdims=True) + NORM_EPS)  # (N, 1)
    n /= std

    def backward(d_y: Array) -> tuple[Array, Norm]:
        d_n = d_y * p.gain
        # A change of x moves the mean and the std too. Along (1, ..., 1) it is undone by the mean,
        # along n by the std; what remains of d_n is what is at right angles to both:
        #   d_x = (d_n - mean(d_n) - n mean(d_n n)) / std
        d_x = d_n - d_n.mean(axis=1, keepdims=True)
        d_x -= n * (d_n * n).mean(axis=1, keepdims=True)
        d_x /= std
        return d_x, Norm((d_y * n).sum(axis=0), d_y.sum(axis=0))

    y = n * p.gain
    y += p.bias
    return y, backward


def gelu(xp: ModuleType, x: Array) -> tuple[Array, Backward]:
    """y = x/2 (1 + tanh(u)) with u = k (x + a x^3): GPT-2's form of x times P(normal < x)."""
    k, a = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = square * (k * a)
    t += k
    t *= x  # u
    xp.tanh(t, out=t)

    def backward(d_y: Array) -> Array:
        # dy/dx = (1 + t)/2 + x/2 (1 - t^2) u'  with  u' = k (1 + 3a x^2), since tanh' = 1 - tanh^2
        slope = square * (3 * a * k)
        slope += k
        slope *= x
        slope *= 1 - t * t
        slope += t
        slope += 1
        slope *= 0.5
        slope *= d_y
        return slope

    y = t + 1
    y *= x
    y *= 0.5
    return y, backward


def causal_attention(xp: ModuleType, qkv: Array, batch: int, heads: int) -> tuple[Array, Backward]:
    """Each character collects from itself and those before it, for qkv of shape (N, 3C).

    In every head: S = q k^T / sqrt(D), but -infinity where the key stands after the query;
    A = softmax(S), row by row; o = A v: each row of o is an average of the values v, weighted by
    how well the query of the row goes with their keys. Returns the o of all heads side by side,
    (N, C).
    """
    N, C = qkv.shape[0], qkv.shape[1] // 3
    B, T, H, D = batch, N // batch, heads, C // heads
    scale = D**-0.5

    # No loop over texts and heads: a matmul of arrays (B, H, ., .) multiplies B H matrices.
    q, k, v = qkv.reshape(B, T, 3, H, D).transpose(2, 0, 3, 1, 4)  # (B, H, T, D) each, not copied
    future = xp.triu(xp.full((T, T), -xp.inf, dtype=qkv.dtype), k=1)  # 0 on and below the diagonal
    A = q @ k.swapaxes(2, 3)  # (B, H, T, T): a row for each query, a column for each key
    A *= scale
    A += future
    A -= A.max(axis=3, keepdims=True)  # the same softmax, and exp cannot overflow
    xp.exp(A, out=A)
    A /= A.sum(axis=3, keepdims=True)
    o = A @ v  # (B, H, T, D)

    def backward(d_y: Array) -> Array:
        d_o = d_y.reshape(B, T, H, D).transpose(0, 2, 1, 3)
        d_qkv = xp.empty((B, T, 3, H, D), dtype=qkv.dtype)
        d_q, d_k, d_v = d_qkv.transpose(2, 0, 3, 1, 4)  # parts of d_qkv: written to below
        d_v[...] = A.swapaxes(2, 3) @ d_o  # o = A v is a product as x W is in ``linear``
        d_S = d_o @ v.swapaxes(2, 3)  # d_A so far
        # Softmax: dA_ij/dS_il = A_ij (1[j = l] - A_il), so d_S = A (d_A - r), row by row, with
        #   r_i = sum_j d_A_ij A_ij = sum_j (d_o_i . v_j) A_ij = d_o_i . o_i
        # Where the key stands after the query A is 0, and so is d_S: nothing flows back from there.
        d_S -= (d_o * o).sum(axis=3, keepdims=True)
        d_S *= A
        d_S *= scale
        d_q[...] = d_S @ k  # so is S = scale q k^T
        d_k[...] = d_S.swapaxes(2, 3) @ q
        return d_qkv.reshape(N, 3 * C)

    return o.transpose(0, 2, 1, 3).reshape(N, C), backward


def transformer_block(
    xp: ModuleType, x: Array, p: Block, batch: int, heads: int
) -> tuple[Array, Backward]:
    """x <- x + out(attention(qkv(norm1(x)))), then x <- x + down(gelu(up(norm2(x)))); x is (N, C).

    Attention carries information between characters, the second line works on each alone.
    """
    h, norm1_back = layer_norm(xp, x, p.norm1)
    h, qkv_back = linear(h, p.qkv)
    h, attention_back = causal_attention(xp, h, batch, heads)
    h, out_back = linear(h, p.out)
    x = x + h
    h, norm2_back = layer_norm(xp, x, p.norm2)
    h, up_back = linear(h, p.up)
    h, gelu_back = gelu(xp, h)
    h, down_back = linear(h, p.down)

    def backward(d_x: Array) -> tuple[Array, Block]:
        # y = x + f(x) sends d_y down both ways, and adds what comes back. So d_x reaches the first
        # block from the last without being multiplied by anything: why deep models can learn.
        d_h, d_down = down_back(d_x)
        d_h, d_up = up_back(gelu_back(d_h))
        d_h, d_norm2 = norm2_back(d_h)
        d_x = d_x + d_h
        d_h, d_out = out_back(d_x)
        d_h, d_qkv = qkv_back(attention_back(d_h))
        d_h, d_norm1 = norm1_back(d_h)
        return d_x + d_h, Block(d_norm1, d_qkv, d_out, d_norm2, d_up, d_down)

    h += x
    return h, backward


# The model --------------------------------------------------------------------------------------


def forward(xp: ModuleType, params: Params, ids: Array, heads: int) -> tuple[Array, Backward]:
    """Return the logits (N, V) of the character after each of ids (B, T), and ``backward``.

    Softmax of a row of logits gives the probabilities of the next character, given the characters
    up to here. T is at most the longest context.
    """
    p = at_least_float32(params)
    B, T = ids.shape
    V, C = p.tokens.shape
    x = (p.tokens[ids] + p.positions[:T]).reshape(B * T, C)
    backs = []
    for block in p.blocks:
        x, back = transformer_block(xp, x, block, B, heads)
        backs.append(back)
    y, norm_back = layer_norm(xp, x, p.norm)

    def backward(d_logits: Array) -> Params:
        d_x, d_norm = norm_back(d_logits @ p.tokens)
        d_blocks = []
        for back in reversed(backs):
            d_x, d_block = back(d_x)
            d_blocks.append(d_block)
        # The characters' vectors are used twice, and the two gradients add up: coming out,
        # logits = y tokens^T; going in, x = one_hot tokens + positions, where one_hot (N, V) has
        # a 1 in the column of each row's character. Both are sums over all rows, by matmul.
        one_hot = (ids.reshape(B * T, 1) == xp.arange(V)).astype(d_x.dtype)
        d_tokens = d_logits.T @ y
        d_tokens += one_hot.T @ d_x
        d_positions = xp.zeros_like(p.positions)
        d_positions[:T] = d_x.reshape(B, T, C).sum(axis=0)
        return Params(d_tokens, d_positions, d_blocks[::-1], d_norm)

    return y @ p.tokens.T, backward


def cross_entropy(xp: ModuleType, logits: Array, targets: Array) -> tuple[Array, Array]:
    """Return the mean of -log(probability of the target), in nats, and its gradient for the logits.

    log p = logits - log(sum(exp(logits))) along a row. The gradient is how far the probabilities
    are from the truth: (p - 1[target]) / N.
    """
    rows, right = xp.arange(len(logits)), targets.reshape(-1)
    log_p = logits - logits.max(axis=1, keepdims=True)  # the same p, and exp cannot overflow
    log_p -= xp.log(xp.exp(log_p).sum(axis=1, keepdims=True))
    loss = -log_p[rows, right].mean()
    d_logits = xp.exp(log_p)
    d_logits[rows, right] -= 1
    d_logits /= len(logits)
    return loss, d_logits


def loss_and_gradients(
    xp: ModuleType, params: Params, ids: Array, targets: Array, heads: int
) -> tuple[Array, Params]:
    """Return the mean loss of predicting targets (B, T) from ids (B, T), and its gradients.

    The loss is an array of no dimensions and stays on its device: float() of it would make the
    host wait for a GPU in every step.
    """
    logits, backward = forward(xp, params, ids, heads)
    loss, d_logits = cross_entropy(xp, logits, targets)
    return loss, backward(d_logits)
