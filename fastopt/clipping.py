"""Clip gradients in place, by their norm or by their values; the norm of all of them together."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree

from fastopt import arrays, tree, tree_norms
from fastopt.arrays import Array
from fastopt.blocks import blocks
from fastopt.formats import wide
from fastopt.gradient_policy import clip_factor, positive_or_inf
from fastopt.hyperparameters import POSITIVE
from fastopt.interrupts import Deferred
from fastopt.overlap import sharing


def global_norm(grads: Any) -> float:
    """Return the 2-norm of all gradients together: sqrt(sum of |g|^2 over all elements).

    In float64 and in one order of summation, so that float32 gradients of 1e25 have a finite norm.
    That order is a step's: the bits are those of ``opt.grad_norm``, if no gradient is None, and all
    have the dtype and memory order of their parameters, which are of one dtype or one group.

    Args:
        grads: an array or a tree of NumPy or CuPy arrays of any floating or complex dtype; None
            counts as zero. It is not written.

    Raises:
        TypeError: for anything else in the tree.
    """
    return tree_norms.norm([array for _, array in _leaves(grads, written=False)], 2.0)


def clip_grad_norm_(grads: Any, max_norm: float, norm_type: float = 2.0) -> float:
    """Scale all gradients together down to a norm, in place, and return the norm they had.

    ::

        norm <- (sum of |g|^norm_type over all elements)^(1 / norm_type)    max |g| for inf
        g    <- min(1, max_norm / (norm + 1e-6)) * g

    The norm is taken in float64. If it is infinite, finite gradients become 0 and infinite ones
    NaN; if it is NaN, all become NaN. Inside a step, ``max_grad_norm`` does the same without
    writing the gradients, and ``on_nonfinite`` deals with what is not finite.

    Args:
        grads: an array or a tree of NumPy or CuPy arrays of any floating or complex dtype; None is
            left alone.
        max_norm: the largest norm allowed, > 0, in units of the gradient; inf only measures.
        norm_type: > 0; inf for the largest magnitude.

    Raises:
        ValueError, TypeError: for arguments out of range, and for leaves that are no floating
            arrays, are read-only, or share memory; nothing has been written then.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks"
    (ICML 2013), algorithm 1, with PyTorch's 1e-6.
    """
    max_norm = positive_or_inf("max_norm", max_norm)
    norm_type = positive_or_inf("norm_type", norm_type)
    found = [array for _, array in _leaves(grads, written=True)]
    norm = tree_norms.norm(found, norm_type)
    factor = clip_factor(max_norm, norm)
    if factor != 1.0:
        with Deferred(), np.errstate(all="ignore"):
            for array in found:
                with arrays.on_device_of(array):
                    _scale(array, factor)
    return norm


def clip_grad_value_(grads: Any, value: float) -> None:
    """Limit every element of every gradient to [-value, value], in place; NaN stays NaN.

    Args:
        grads: an array or a tree of NumPy or CuPy arrays of any real floating dtype; None is left
            alone.
        value: > 0, in units of the gradient.

    Raises:
        ValueError, TypeError: as ``clip_grad_norm_``, and for complex gradients; nothing has been
            written then.
    """
    value = POSITIVE("value", value)
    found = _leaves(grads, written=True)
    for position, array in found:
        if array.dtype.kind == "c":
            raise TypeError(
                f"{_path(grads, position)} is {array.dtype}, which has no order; clip complex "
                "gradients by their norm (clip_grad_norm_)"
            )
    with Deferred(), np.errstate(all="ignore"):
        for _, array in found:
            limit = np.asarray(value).astype(array.dtype)[()]
            with arrays.on_device_of(array):
                array.clip(-limit, limit, out=array)


def _scale(array: Array, factor: float) -> None:
    """Multiply an array by a number, half precision in float32, where the number is not lost."""
    computed = wide(array.dtype)
    for (part,) in blocks(array):
        if part.dtype != computed:
            part[...] = (part.astype(computed) * factor).astype(part.dtype)
        elif part.dtype.kind == "c":
            for component in (part.real, part.imag):
                component *= factor
        else:
            part *= factor


def _path(grads: Any, position: int) -> str:
    return tree.paths(grads, "grads")[position]


def _leaves(grads: Any, written: bool) -> list[tuple[int, Array]]:
    """Return the arrays of a tree, each with its position among the leaves, all checked."""
    leaves = optree.tree_leaves(grads, none_is_leaf=True)
    if not written:  # NumPy's reductions return scalars for 0-d results
        leaves = [np.asarray(x) if isinstance(x, np.inexact) else x for x in leaves]
    found = [(k, leaf) for k, leaf in enumerate(leaves) if leaf is not None]
    for position, leaf in found:
        if (problem := _problem(leaf, written)) is not None:
            kind, text = problem
            raise kind(f"{_path(grads, position)} {text}")
    if written and (same := sharing([array for _, array in found])):
        one, two = (_path(grads, found[k][0]) for k in same)
        raise ValueError(
            f"{one} and {two} share memory, so they would be clipped twice; hand in each array once"
        )
    return found


def _problem(leaf: Any, written: bool) -> tuple[type[Exception], str] | None:
    """Return what keeps a leaf from being measured, or written."""
    if arrays.kind(leaf) is None:
        got = type(leaf).__name__
        return TypeError, f"must be a numpy.ndarray or cupy.ndarray, or None; got {got}"
    if leaf.dtype.kind not in "fc" and leaf.dtype.name != "bfloat16":
        return TypeError, f"must be of a floating or complex dtype; got {leaf.dtype}"
    if written and not getattr(leaf.flags, "writeable", True):
        return ValueError, "is read-only, and gradients are clipped in place; give a copy"
    if written and arrays.overlaps_itself(leaf):
        return ValueError, (
            f"holds elements that share memory (strides {leaf.strides}, shape {leaf.shape}), so "
            "they would be clipped twice; give a copy"
        )
    return None
