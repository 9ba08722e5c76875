"""State of other libraries' optimizers: a run that began there goes on here, and goes back.

``load_torch``, ``load_optax`` and ``load_keras`` read what PyTorch, optax and keras keep of a run
into an optimizer; ``to_torch`` writes what PyTorch reads. None of these libraries is imported, nor
has to be installed where the run goes on. A state that does not belong to the optimizer, or about
which anything is in doubt, is a CheckpointError, and then nothing has changed.

``from_jax`` and ``to_jax`` are of arrays: gradients and parameters of a program in JAX. They alone
import it. (``fastopt.torch``, ``fastopt.sklearn`` and ``fastopt.thinc`` are doors to what else is
here.)
"""

from fastopt.interop.jax import from_jax, to_jax
from fastopt.interop.keras import load_keras
from fastopt.interop.optax import load_optax
from fastopt.interop.torch import load_torch, to_torch

__all__ = ["from_jax", "load_keras", "load_optax", "load_torch", "to_jax", "to_torch"]
