"""What to do with something that is no array of ours: the call that helps, as it can be typed.

What a thing is, is known by the module of its class: no library is imported to ask. Nothing is
shown of what an array holds.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.dtypes import SUPPORTED_DTYPES
from fastopt.core.rows import RowGrad

CONJUGATE = (
    "A complex parameter takes g = dL/dRe + i dL/dIm (PyTorch's); grad of JAX and of autograd "
    "returns its conjugate"
)
"""Which of the two gradients of complex numbers is meant."""

_DEPTH = 3
"""How many objects within objects are looked into for arrays."""

_LONGEST = 200
"""Characters of an expression; a longer one is written for all arrays at once."""


def library(value: object) -> str:
    """Return the package that a thing is of: torch for a user's own torch.nn.Module too."""
    packages = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    return next((one for one in packages if one in _KNOWN), packages[0])


# Parameters ---------------------------------------------------------------------------------------

_PARAMETERS = {
    "torch": (
        "A CPU tensor's memory can be updated as {path}.detach().numpy(); otherwise use an "
        "optimizer of torch.optim."
    ),
    "jax": "JAX arrays cannot change in place; use np.array({path}), or optax.",
    "jaxlib": "JAX arrays cannot change in place; use np.array({path}), or optax.",
    "tensorflow": "Its tensors cannot change in place; use np.array({path}), or keras.optimizers.",
    "scipy": "A sparse array does not change in place as a whole; use {path}.toarray().",
    "cupyx": "A sparse array does not change in place as a whole; use {path}.toarray().",
    "pandas": "Tables are not updated in place; use np.array({path}).",
    "fastopt": "Hand it in by itself, not as a part of something.",
}


def for_parameter(value: Any, path: str) -> str:
    """Return one sentence or two on a leaf of the parameters that is no array."""
    if value is None:
        return "Leave it out of the tree."
    if isinstance(value, np.generic):
        return f"A NumPy scalar cannot change in place; use a 0-d array: np.array({path})."
    if isinstance(value, np.ndarray):
        return f"Subclasses compute differently; use np.asarray({path})."
    if isinstance(value, bool | int | float | complex):
        kind = "np.complex64" if isinstance(value, complex) else "np.float32"
        return (
            "Numbers cannot change in place. If it is no parameter, leave it out; if it is, use "
            f"np.array({path}, {kind})."
        )
    if (known := library(value)) in _PARAMETERS:
        return _PARAMETERS[known].format(path=path)
    if isinstance(value, Iterator | ValuesView | KeysView):
        return f"It is no tree that gradients could be nested like; use list({path})."
    if isinstance(value, set | frozenset):
        return f"A set has no order; use list({path})."
    found = None if isinstance(value, type) else _arrays_in(value, path, _DEPTH)
    if found is None and callable(getattr(value, "parameters", None)):
        return f"Hand in arrays alone; if its parameters() returns some, list({path}.parameters())."
    if found is None:
        return (
            'Hand in arrays alone: one, or a list, or a dict such as {"W": W, "b": b}, and leave '
            "out what is none. Of an object's attributes these are "
            f"{_comprehension('layer')}. {_REPLACED}"
        )
    copies = " (dataclasses.asdict copies the arrays)" * dataclasses.is_dataclass(value)
    live = found == path or found.startswith((f"vars({path})", "[vars("))
    return f"Its arrays can be updated: hand in {found}{copies}." + f" {_REPLACED}" * (not live)


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object has of its own, without asking for what it computes."""
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    names = [n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _is_parameter(value: Any) -> bool:
    return arrays.kind(value) is not None and value.dtype.name in SUPPORTED_DTYPES


def _arrays_in(value: Any, path: str, depth: int) -> str | None:
    """Return an expression for the tree of the arrays that something holds; None if it has none."""
    if _is_parameter(value):
        return path
    if isinstance(value, Mapping):
        entries = {k: (v, f"{path}[{k!r}]") for k, v in value.items()}
    elif isinstance(value, list | tuple):
        return _arrays_in_sequence(value, path, depth)
    elif depth == 0 or isinstance(value, type | types.ModuleType | types.FunctionType):
        return None
    else:
        entries = {k: (v, f"{path}.{k}") for k, v in _attributes(value).items()}
        if entries and hasattr(value, "__dict__") and _holds_arrays_alone(value):
            return f"vars({path})"
    found = {k: _arrays_in(v, where, depth - 1) for k, (v, where) in entries.items()}
    found = {k: text for k, text in found.items() if text is not None}
    if not found:
        return None
    if isinstance(value, Mapping) and found == {k: where for k, (_, where) in entries.items()}:
        return path
    if len(found) == 1 and not any(map(_is_parameter, _values(value))):
        return next(iter(found.values()))
    text = "{" + ", ".join(f"{k!r}: {text}" for k, text in found.items()) + "}"
    if len(text) > _LONGEST and hasattr(value, "__dict__"):
        return _comprehension(path)
    return text


def _arrays_in_sequence(values: Sequence[Any], path: str, depth: int) -> str | None:
    if values and all(map(_is_parameter, values)):
        return path
    inner = [_arrays_in(v, f"{path}[{k}]", depth - 1) for k, v in enumerate(values)]
    if not any(inner):
        return None
    if all(map(_holds_arrays_alone, values)):
        return f"[vars(layer) for layer in {path}]"
    text = f"[{', '.join(one for one in inner if one is not None)}]"
    if len(text) > _LONGEST:
        return f"[{_comprehension('layer')} for layer in {path}]"
    return text


_REPLACED = (
    "A program that replaces these arrays as a whole hands them in again in every step: "
    "opt.step(grads, params=...)."
)
"""What goes with a dict of somebody's arrays that is made for the optimizer alone."""


def without_steps(text: str) -> str:
    """Return advice for what is no optimizer, and has no ``opt.step`` to hand anything in to."""
    return text.replace(f" {_REPLACED}", "")


def _comprehension(path: str) -> str:
    return f"{{k: v for k, v in vars({path}).items() if isinstance(v, np.ndarray)}}"


def _holds_arrays_alone(value: Any) -> bool:
    return hasattr(value, "__dict__") and all(map(_is_parameter, vars(value).values()))


def _values(value: Any) -> Iterator[Any]:
    yield from value.values() if isinstance(value, Mapping) else _attributes(value).values()


def for_dtype(value: Any, path: str) -> str:
    """Return what to do about an array of a dtype that no parameter has."""
    if value.dtype.kind == "O":
        return _for_objects(value, path)
    if not value.dtype.isnative and value.dtype.newbyteorder("=").name in SUPPORTED_DTYPES:
        return f"Convert it before: {path}.astype({value.dtype.newbyteorder('=').name!r})."
    if value.dtype.kind in "biufc":
        like = "complex128" if value.dtype.kind == "c" else "float32"
        return f"If it is to be trained, convert it before: {path}.astype({like!r})."
    if value.dtype.kind == "V" and value.dtype.names:
        return f"Hand in one array for each field: {{name: {path}[name].copy() for name in ...}}."
    return "It holds no numbers that could be trained. If they are there as text: .astype(float)."


def _for_objects(value: Any, path: str) -> str:
    """Return what to do about an array of objects."""
    entries = value.ravel().tolist()
    if all(isinstance(one, int | float | complex) for one in entries):
        return f"It is an array of Python's numbers; convert it before: {path}.astype('float64')."
    ragged = "NumPy makes an array of objects where the rows have different lengths"
    if value.ndim == 0:
        return f"It is a 0-d array around something else; hand in {path}.item()."
    if all(isinstance(one, np.ndarray) for one in entries):
        return f"{ragged}; hand in one array for each entry: list({path})."
    if all(isinstance(one, list | tuple) for one in entries):
        return (
            f"{ragged}; hand in one array for each entry: "
            f"[np.array(row, 'float64') for row in {path}]."
        )
    return f"{ragged}, or are no numbers; hand in one array for each entry."


# Gradients ----------------------------------------------------------------------------------------

_CALLS = {
    "scipy": "{path}.toarray()",
    "cupyx": "{path}.toarray()",
    "sparse": "{path}.todense()",
    "pandas": "{path}.to_numpy()",
    "polars": "{path}.to_numpy()",
    "xarray": "{path}.to_numpy()",
    "torch": "{path}.detach().cpu().numpy()",
    "tensorflow": "{path}.numpy()",
    "paddle": "{path}.numpy()",
    "mxnet": "{path}.asnumpy()",
    "dask": "{path}.compute()",
    "jax": "np.asarray({path})",
    "jaxlib": "np.asarray({path})",
    "mlx": "np.asarray({path})",
}
"""What makes a NumPy array of another library's (a CuPy one of cupyx's)."""

_KNOWN = _PARAMETERS.keys() | _CALLS.keys()


def for_gradient(value: Any, path: str, like: Any) -> str:
    """Return what to do about a gradient that is no array like its parameter, ``like``."""
    shape, number = like.shape, _number_of(value)
    if type(value) is RowGrad:
        return f"Hand in the gradient of all rows: {path}.dense(param), with its parameter."
    if number is not None:
        call = f"np.full({shape}, {path}, {like.dtype.name!r})"
        if like.size != 1:
            return f"If every element has this gradient: {_there(call, like)}."
        if number == "f" and like.dtype.kind != "c":
            call = f"np.reshape({path}, {shape})"
    elif isinstance(value, np.ma.MaskedArray):
        call = f"{path}.filled(0.0)"
    elif isinstance(value, np.ndarray):
        call = _in_shape(f"np.asarray({path})", value.shape, shape)
    elif isinstance(value, Mapping):
        return "The parameter is one array, so its gradient is one, too."
    elif (known := library(value)) in _CALLS:
        call = _CALLS[known].format(path=path)
        if arrays.kind(like) == "cupy" and known in ("torch", "jax", "jaxlib"):
            detached = f"{path}.detach()" if known == "torch" else path
            return f"Hand in cupy.from_dlpack({detached})."
        call = _in_shape(call, getattr(value, "shape", shape), shape)
    elif isinstance(value, list | tuple):
        call = f"np.array({path}, {like.dtype.name!r})"
        if any(arrays.kind(one) == "cupy" for one in value):
            return f"Hand in cupy.stack({path})."
    elif isinstance(value, str | bytes) or not hasattr(value, "__array__"):
        return "Use None for no gradient."
    else:
        call = f"np.asarray({path})"
    return f"Hand in {call if library(value) == 'cupyx' else _there(call, like)}."


def _number_of(value: Any) -> str | None:
    """Return the kind of number that something is, as in a dtype; None for anything else."""
    if isinstance(value, np.generic):
        return value.dtype.kind if value.dtype.kind in "biufc" else None
    kinds = {bool: "b", int: "i", float: "f", complex: "c"}
    return kinds.get(type(value))


def _in_shape(call: str, given: Any, shape: tuple[int, ...]) -> str:
    try:
        given = tuple(map(int, given))
    except (TypeError, ValueError):  # a library with shapes of another kind
        return call
    same = given != shape and math.prod(given) == math.prod(shape)
    return f"{call}.reshape({shape})" if same else call


def _there(call: str, like: Any) -> str:
    """Return a call for a NumPy array as one for an array of the parameter's kind."""
    return f"cupy.asarray({call})" if arrays.kind(like) == "cupy" else call


def for_gradient_dtype(grad: Any, path: str, like: Any) -> str:
    """Return what to do about an array whose dtype is that of no gradient of this parameter."""
    name = like.dtype.name
    if path.startswith("hessian") and "c" in (like.dtype.kind, grad.dtype.kind):
        if grad.dtype.kind == "O":
            return _for_objects(grad, path)
        return _for_estimate(path, like)
    if like.dtype.kind == "c" and grad.dtype.kind != "O":
        return f"{CONJUGATE}. Where all of dL/dIm is 0: {path}.astype({name!r})."
    if grad.dtype.kind == "c":
        return (
            f"The gradient of a real loss by a real parameter is the real part, {path}.real, also "
            "of JAX's and autograd's, which return the conjugate."
        )
    if grad.dtype.kind == "O":
        return _for_objects(grad, path)
    return f"Convert it before: {path}.astype({name!r})."


def _for_estimate(path: str, like: Any) -> str:
    """Return what to do about an estimate of curvatures that is complex, or is to be."""
    name = like.dtype.name
    if like.dtype.kind == "c":
        return (
            "Its real part is the curvature along the real axis, d2L/dRe2, and its imaginary part "
            "that along the imaginary axis, d2L/dIm2. Where you have one number for both: "
            f"({path} * (1 + 1j)).astype({name!r})."
        )
    return (
        "The Hessian of a real loss by a real parameter is real: what stands in the imaginary part "
        f"of a sound estimate is 0 or rounding. Where it is: {path}.real.astype({name!r})."
    )


def for_gradient_shape(grad: Any, path: str, shape: tuple[int, ...]) -> str:
    """Return what to do about a gradient of another shape."""
    said = "Gradients are not broadcast."
    if grad.ndim > 1 and grad.shape != shape and grad.shape[::-1] == shape:
        return f"{said} If it is transposed: {path}.T."
    if math.prod(grad.shape) == math.prod(shape):
        return f"{said} The sizes are equal: {path}.reshape({shape})."
    if grad.ndim and grad.shape[1:] == shape:
        return f"{said} If the first axis counts examples: {path}.mean(axis=0), or .sum(axis=0)."
    return said


# Names --------------------------------------------------------------------------------------------

_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["learning_rate", "step_size", "stepsize", "lr0", "eta", "rate"], ("lr",)),
    **dict.fromkeys(["lr_schedule", "schedule", "scheduler", "lr_scheduler"], ("lr",)),
    "alpha": ("beta", "lr"),  # RMSprop's in PyTorch, else the learning rate of the papers
    **dict.fromkeys(["beta1", "beta_1", "b1", "beta2", "beta_2", "b2"], ("betas", "beta")),
    **dict.fromkeys(["rho", "decay_rate", "smoothing_constant"], ("rho", "beta")),
    **dict.fromkeys(["momentum", "mu", "mass"], ("momentum", "beta", "betas")),
    **dict.fromkeys(["epsilon", "fuzz", "delta"], ("eps",)),
    **dict.fromkeys(
        ["wd", "l2", "l2_penalty", "weight_decay_rate", "l2_regularization", "reg"],
        ("weight_decay",),
    ),
    **dict.fromkeys(
        ["global_clipnorm", "clip_norm", "max_norm", "grad_clip", "gradient_clip"],
        ("max_grad_norm",),
    ),
    "clipnorm": ("clip_each",),  # keras': each array by itself
    **dict.fromkeys(["clipvalue", "clip"], ("clip_value",)),
    **dict.fromkeys(["ams_grad", "ams"], ("amsgrad",)),
    **dict.fromkeys(["bias_corr", "correct_bias", "unbias"], ("bias_correction",)),
    **dict.fromkeys(["frozen", "requires_grad", "freeze"], ("trainable",)),
    **dict.fromkeys(["maximise", "ascent"], ("maximize",)),
    **dict.fromkeys(["mu_dtype", "dtype"], ("state_dtype",)),
}
"""What other libraries and papers call an option, and what it may be called here."""

_FORMS = {"betas": " = (beta1, beta2)", "lr": ", a number or a function of the step number"}


def meant(name: str, known: Sequence[str]) -> str:
    """Return the option among ``known`` that a name stands for, as a question; "." if none does."""
    import difflib  # a millisecond

    called = [one for one in _NAMES.get(str(name).lower(), ()) if one in known]
    close = called or difflib.get_close_matches(str(name), known, n=1)
    if not close:
        return "."
    return f"; did you mean {close[0]!r}{_FORMS.get(close[0], '') if called else ''}?"
