"""A manifest and named arrays as one safetensors file, in which every bit is accounted for.

The manifest is a dict of JSON values. It stands in the file's metadata as text, beside its sha256,
and lists every array's dtype, shape and sha256. Complex arrays are stored as real ones with a last
axis of 2.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np

from fastopt.arrays import Array
from fastopt.errors import CheckpointError

FORMAT = 1
"""Grows when a file could not be read by what reads the files before it."""

LONGEST_HEADER = 100_000_000
"""Bytes; what safetensors allows."""

_NAMES = {  # safetensors' names of the dtypes
    **{"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16"},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_REAL = {"complex64": "float32", "complex128": "float64"}


def pack(content: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return the file's bytes. The arrays must be C-ordered NumPy arrays.

    Raises TypeError for an array of another dtype than real and complex numbers, integers and
    bool, ValueError if there are more names or notes than a file's header can hold.
    """
    from safetensors.numpy import save

    stored = {key: _to_stored(key, array) for key, array in arrays.items()}
    described = {
        key: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "sha256": _sha256(stored[key]),
        }
        for key, array in arrays.items()
    }
    text = json.dumps({"format_version": FORMAT, **content, "arrays": described}, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    packed = save(stored, {"fastopt": text, "fastopt_sha256": digest})
    if (length := int.from_bytes(packed[:8], "little")) > LONGEST_HEADER:
        raise ValueError(
            f"names, hyperparameters and notes take {length} bytes, of which a checkpoint holds "
            f"{LONGEST_HEADER}; put large notes into arrays"
        )
    return packed


def unpack(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return manifest and arrays of a file of so many bytes.

    Raises CheckpointError for anything but a whole and undamaged file of a known format; until
    the sizes in it are known to fit the file's own, no more than the header is read.
    """
    from safetensors import SafetensorError, deserialize

    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > LONGEST_HEADER:
        raise CheckpointError("this is no safetensors file")
    if length > size - 8:
        raise CheckpointError("this is no safetensors file, or it was cut off")
    header = file.read(length)
    manifest = _manifest(header)
    described = _described(manifest)
    expected = 8 + length + sum(_stored_size(*entry[:2]) for entry in described.values())
    if size != expected:
        raise CheckpointError(f"{size} bytes instead of {expected}: cut off, or damaged")
    data = start + header + file.read(size - 8 - length)
    try:
        views = dict(deserialize(data))  # type: ignore[no-untyped-call]  # its stub has no types
    except SafetensorError as error:
        _damaged(str(error))
    if views.keys() != described.keys():
        _damaged("the arrays are not those of the manifest")
    return manifest, {key: _array(key, view, *described[key]) for key, view in views.items()}


def _manifest(header: bytes) -> dict[str, Any]:
    """Return the manifest from a file's header, checked by its hash."""
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        raise CheckpointError("this is no safetensors file, or its header is damaged") from None
    metadata = fields.get("__metadata__") if isinstance(fields, dict) else None
    text = metadata.get("fastopt") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(text, str):
        raise CheckpointError("this is no checkpoint of fastopt: its header holds no manifest")
    encoded = text.encode("utf-8", "replace")
    if metadata.get("fastopt_sha256") != hashlib.sha256(encoded).hexdigest():
        _damaged("the manifest's sha256 is another")
    try:
        manifest = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        _damaged(str(error))
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        _damaged(f"format_version is {version!r}")
    if version > FORMAT:
        raise CheckpointError(
            f"this is format {version}, written by fastopt {manifest.get('fastopt')}; this version "
            f"reads formats up to {FORMAT}. Use a newer fastopt."
        )
    return dict(manifest)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _described(manifest: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Return of every array the dtype's name, the shape and the sha256."""
    entries = manifest.get("arrays")
    if not isinstance(entries, dict):
        _damaged("the manifest lists no arrays")
    described = {}
    for key, entry in entries.items():
        found = entry if isinstance(entry, dict) else {}
        dtype, shape, digest = (found.get(name) for name in ("dtype", "shape", "sha256"))
        if not isinstance(dtype, str) or _REAL.get(dtype, dtype) not in _NAMES:
            _damaged(f"{key} is of dtype {dtype!r}")
        if not isinstance(shape, list) or not _is_shape(shape):
            _damaged(f"{key} is of shape {shape!r}")
        if not isinstance(digest, str):
            _damaged(f"{key} has no sha256")
        described[key] = dtype, tuple(shape), digest
    return described


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in shape)


def _array(
    key: str, view: Mapping[str, Any], dtype: str, shape: tuple[int, ...], sha: str
) -> Array:
    """Return an array as it was saved, if all that is known of it is true."""
    real = _REAL.get(dtype, dtype)
    stored_shape = [*shape, 2] if dtype in _REAL else [*shape]
    if view["dtype"] != _NAMES[real] or list(view["shape"]) != stored_shape:
        _damaged(f"{key} is {view['dtype']} {view['shape']}, not {dtype} {shape}")
    if hashlib.sha256(view["data"]).hexdigest() != sha:
        _damaged(f"the sha256 of {key} is another")
    try:
        return np.frombuffer(view["data"], _dtype(dtype)).reshape(shape)
    except ValueError as error:  # no elements along an axis that is too long for NumPy
        _damaged(f"{key}: {error}")


def _to_stored(key: str, array: Array) -> Array:
    name = array.dtype.name
    if _REAL.get(name, name) not in _NAMES or not array.dtype.isnative:
        raise TypeError(
            f"{key} is of dtype {array.dtype.str} ({name}), which has no place in a file"
        )
    if name in _REAL:
        return array.reshape(-1).view(_REAL[name]).reshape(*array.shape, 2)
    return array


def _sha256(array: Array) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _stored_size(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _dtype(dtype).itemsize


def _dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _damaged(why: str) -> NoReturn:
    raise CheckpointError(f"the file is damaged: {why}")
