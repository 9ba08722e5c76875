"""Arrays of JAX and arrays that optimizers change in place, over the same memory or as copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import backends
from fastopt.core import arrays
from fastopt.core.arrays import Array

if TYPE_CHECKING:
    from types import ModuleType


def _jax() -> ModuleType:
    try:
        import jax
    except ImportError as error:
        raise ImportError(
            "from_jax and to_jax work on JAX's arrays, and JAX is not installed here; install it "
            "(pip install jax)"
        ) from error
    found: ModuleType = jax
    return found


def from_jax(tree: Any, *, copy: bool = False) -> Any:
    """Return a tree of JAX as arrays of NumPy, or where JAX has them on a GPU of CuPy.

    ::

        params = from_jax(model_params, copy=True)     # once: JAX's arrays never change
        opt = fastopt.Adam(params, lr=1e-3)
        for batch in batches:
            grads = gradients(to_jax(params), batch)   # a copy in each step, see to_jax
            opt.step(from_jax(grads))                  # none: read where JAX has them

    Args:
        tree: any pytree of ``jax.Array``, of any floating or complex dtype. Other leaves stay.
        copy: whether the arrays are to be updated in place, such as parameters. False (the default)
            is without a copy, for gradients: over JAX's own memory, through DLPack on a GPU. On a
            CPU these cannot be written; on a GPU nothing hinders it, and JAX must not see it.
            (Either waits until JAX has worked them out.)

    Complex gradients of ``jax.grad`` are conjugates of what ``step`` takes: hand in ``conj(g)``.

    Raises ImportError without JAX, and BackendUnavailableError for arrays on a GPU without CuPy.
    """
    jax = _jax()

    def array_of(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if {device.platform for device in leaf.devices()} <= {"cpu"}:
            return np.array(leaf) if copy else np.asarray(leaf)
        with backends.use_backend("cupy"):
            array = backends.array_namespace().from_dlpack(leaf)
        return array.copy() if copy else array

    return jax.tree.map(array_of, tree)


def to_jax(tree: Any) -> Any:
    """Return a tree of NumPy or CuPy arrays as arrays of JAX, on the same device.

    Each is a copy: JAX takes it for granted that its arrays never change, and steps change
    parameters in place. Leaves that are no such arrays stay.

    Raises TypeError for a dtype that JAX would change (float64, unless ``jax_enable_x64`` is set),
    and ImportError without JAX.
    """
    jax = _jax()

    def copy_of(leaf: Any) -> Any:
        kind = arrays.kind(leaf)
        if kind not in ("numpy", "cupy"):
            return leaf
        array: Array = leaf
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise TypeError(
                f"JAX would make {jax.dtypes.canonicalize_dtype(array.dtype)} of an array of "
                f'{array.dtype}; call jax.config.update("jax_enable_x64", True) at the beginning '
                "of the program, or keep parameters in float32"
            )
        given = array if kind == "numpy" else jax.dlpack.from_dlpack(array)
        return jax.numpy.array(given, copy=True)

    return jax.tree.map(copy_of, tree)
