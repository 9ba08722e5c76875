"""Checkpoints as one safetensors file each, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, Protocol

import numpy as np

from fastopt.checkpoint import state_dict as checkpoint_state_dict
from fastopt.checkpoint.convert import converted
from fastopt.checkpoint.state_dict import Differences, LoadReport, compare_names
from fastopt.core import arrays as core_arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import OptimizerState
from fastopt.core.signals import Deferred, DeferredTermination
from fastopt.errors import CheckpointError
from fastopt.version import __version__

# -------------------------------------------------------------------------------------------------
# A file that is replaced whole or not at all, whatever kills the process or the machine.
#
# The new content goes to ``.<name>.tmp.<process>.<random>`` beside the file, is flushed to the
# disk, read again and compared, and only then moved over the old file, which stays as
# ``<name>.prev``.

_in_use: set[str] = set()
"""The temporary files that threads of this process are at work on."""

_PIECE = 1 << 20


def previous(path: Path) -> Path:
    """Return where the file before the present one is kept."""
    return path.with_name(f"{path.name}.prev")


class _NewContent(Protocol):
    """What a file is to hold."""

    raised: BaseException | None
    """What came out of where the content comes from, which has nothing to do with the file."""

    def write(self, file: BinaryIO) -> None:
        """Write all of it into an empty file."""

    def is_in(self, file: BinaryIO) -> bool:
        """Return whether a file, read from its start, holds what was written and no more."""


class _Whole:
    """Bytes that are all there."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.raised: BaseException | None = None

    def write(self, file: BinaryIO) -> None:
        file.write(self._content)

    def is_in(self, file: BinaryIO) -> bool:
        return _continues(file, self._content) and not file.read(1)


def _continues(file: BinaryIO, content: bytes) -> bool:
    """Return whether these bytes come next in a file."""
    whole = memoryview(content)
    parts = (whole[i : i + _PIECE] for i in range(0, len(whole), _PIECE))
    return all(file.read(len(part)) == part for part in parts)


def _digest(file: BinaryIO, count: int) -> str:
    """Return the sha256 of so many bytes that come next in a file, or of those that there are."""
    hashed = hashlib.sha256()
    while count and (piece := file.read(min(_PIECE, count))):
        hashed.update(piece)
        count -= len(piece)
    return hashed.hexdigest()


def replace_file(path: Path, content: bytes, keep_previous: bool) -> None:
    """Replace a file, or make it. A link is followed: what it points to is replaced.

    Raises OSError that names the file, which then is as it was, with one exception: if the folder
    cannot be flushed, the new file is there already, but may not survive a power cut.
    """
    _replace(path, _Whole(content), keep_previous)


def _replace(path: Path, content: _NewContent, keep_previous: bool) -> None:
    """Replace a file by content that comes from anywhere; as ``replace_file`` does it.

    What the content raises goes through as it is, and the file stays as it was.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target)
    _remove_stale(target)
    temporary = _beside(target)
    _in_use.add(temporary.name)
    try:
        _write_through(temporary, content)
        _compare(temporary, content)
        with Deferred(), DeferredTermination():
            if keep_previous:
                _keep(target)
            os.replace(temporary, target)
            _flush_folder(target.parent)
    except OSError as error:
        if error.filename is None and error is not content.raised:  # as for a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        _in_use.discard(temporary.name)


def _check_replaceable(target: Path) -> None:
    """Raise OSError for what is no file: a folder, a device, a pipe."""
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a checkpoint replaces regular files only", str(target))


def _write_through(path: Path, content: _NewContent) -> None:
    """Write a new file, down to the disk."""
    with path.open("xb") as file:
        content.write(file)
        file.flush()
        os.fsync(file.fileno())


def _compare(path: Path, content: _NewContent) -> None:
    """Read a file again; OSError unless it holds what was written and no more."""
    with path.open("rb") as file:
        if not content.is_in(file):
            raise OSError(errno.EIO, "what was written reads back as something else", str(path))


def _keep(target: Path) -> None:
    """Give the old file a second name, so that there is no moment without either."""
    spare = _beside(target)
    _in_use.add(spare.name)
    try:
        try:
            os.link(target, spare)
        except FileNotFoundError:
            return
        except OSError:  # a file system without links, or a file of another user
            shutil.copyfile(target, spare)
            with spare.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(spare, previous(target))
    finally:
        spare.unlink(missing_ok=True)  # two names of one file are both left by os.replace
        _in_use.discard(spare.name)


def _flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that can be asked for."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems
            raise
    finally:
        os.close(descriptor)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp.{os.getpid()}.{secrets.token_hex(8)}")


def _remove_stale(target: Path) -> None:
    """Remove what killed processes have left beside the file."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.tmp\.(\d+)\.[0-9a-f]{{16}}")
    for name in os.listdir(target.parent):
        found = pattern.fullmatch(name)
        if found and name not in _in_use and not _is_alive(int(found[1])):
            with contextlib.suppress(OSError):  # another process may be faster
                (target.parent / name).unlink()


def _is_alive(process: int) -> bool:
    """Return whether a process other than this one is running."""
    if process == os.getpid():  # what this one works on is in _in_use
        return False
    if sys.platform == "win32":  # there os.kill ends the process that it asks for
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# -------------------------------------------------------------------------------------------------
# Nested plain values and arrays as JSON values with the arrays apart, and back, exactly.


class Encoder:
    """Turns nested values into JSON values, and collects their arrays, C-ordered and on the host.

    What JSON has no word for becomes a dict with one key that begins with a dollar sign:
    ``{"$array": key}``, ``{"$tuple": [...]}``, ``{"$float": "nan"}``; a dict that has such a key
    itself is wrapped in ``{"$dict": ...}``. Numbers come back exactly; NumPy scalars come back as
    Python numbers.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self.copies = False  # of arrays that may change before they are written

    def encode(self, prefix: str, value: Any, path: tuple[str, ...] = ()) -> Any:
        """Return a value in its JSON form; TypeError names the place of what has none.

        An array gets the key ``prefix`` and ``path``, joined with slashes.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, int) and value.bit_length() > _LONGEST_WHOLE:
            raise ValueError(
                f"{prefix}{'/'.join(path)} is a whole number of {value.bit_length()} bits, and a "
                f"file holds {_LONGEST_WHOLE}; store it as text: hex(number)"
            )
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, Mapping):
            return self._dict(prefix, value, path)
        if isinstance(value, list | tuple):
            items = [self.encode(prefix, v, (*path, str(i))) for i, v in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        if core_arrays.kind(value) is not None:
            return {"$array": self._keep(prefix + "/".join(path), value)}
        raise TypeError(
            f"{prefix}{'/'.join(path)} must be None, a bool, a real number, text, an array, or a "
            f"list, tuple or dict of such; got {type(value).__name__}"
        )

    def _dict(self, prefix: str, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{prefix}{'/'.join(path)} must have text as its keys; got {key!r}, "
                    "which would come back as something else"
                )
        items = {str(k): self.encode(prefix, v, (*path, k)) for k, v in value.items()}
        return {"$dict": items} if any(key.startswith("$") for key in items) else items

    def _keep(self, key: str, array: Array) -> str:
        # A file's keys are UTF-8, which has no lone surrogates; the names themselves are in JSON.
        key = wanted = key.encode("utf-8", "backslashreplace").decode()
        count = 1
        while key in self.arrays:  # {"a/b": x, "a": {"b": y}}
            count += 1
            key = f"{wanted}#{count}"
        self.arrays[key] = self.kept(array)
        return key

    def kept(self, array: Array) -> Array:
        """Return an array as it is collected."""
        copied = self.copies or core_arrays.kind(array) == "cupy"
        return core_arrays.on_host(array) if copied else np.asarray(array, order="C")


_LONGEST_WHOLE = 10_000
"""Bits; Python does not read many more from decimal text."""


def decode(value: Any, found: Mapping[str, Array]) -> Any:
    """Return what was encoded; ValueError, KeyError or TypeError if nothing is encoded like this.

    ``found`` holds the arrays by their keys.
    """
    if isinstance(value, list):
        return [decode(item, found) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (kind, content), *_ = value.items()
        if kind == "$array":
            return found[content]
        if kind == "$tuple":
            return tuple(decode(item, found) for item in content)
        if kind == "$float":
            return _nonfinite(content)
        if kind == "$dict":
            return {key: decode(item, found) for key, item in content.items()}
    if any(key.startswith("$") for key in value):
        raise ValueError(f"unknown kind of value {sorted(value)[:3]}")
    return {key: decode(item, found) for key, item in value.items()}


def _nonfinite(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"unknown number {text!r}")
    return float(text)


# -------------------------------------------------------------------------------------------------
# A manifest and named arrays as one safetensors file, in which every bit is accounted for.
#
# The manifest is a dict of JSON values. It stands in the file's metadata as text, beside its
# sha256, and lists every array's dtype, shape and sha256. Complex arrays are stored as real ones
# with a last axis of 2. This is format 1.
#
# Where that is more than a header may hold it is format 2: the manifest's text is an array of
# bytes, and what the metadata says is where, and how many bytes of arrays there are in all. If the
# names of the arrays alone are too long, the arrays are numbered in the order of the manifest.

FORMAT = 2
"""Grows when a file could not be read by what reads the files before it."""

LONGEST_HEADER = 100_000_000
"""Bytes; what safetensors allows."""

_MANIFEST = "fastopt:manifest"
"""The array that holds the manifest's text in format 2; no other array's name begins like this."""

_NAMES = {  # safetensors' names of the dtypes
    **{"bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16"},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_REAL = {"complex64": "float32", "complex128": "float64"}
_ORDER = (
    *("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("I8", "U8", "BOOL"),
)
"""Of the dtypes in a file: what takes more bytes comes first, so that all arrays are aligned."""

_UNKNOWN = "0" * 64
"""In the place of a sha256 that is not known yet: all are of one length, so are texts with them."""

Described = Mapping[str, tuple[str, tuple[int, ...]]]
"""The dtype's name and the shape of arrays, by their keys."""


class _Place(NamedTuple):
    """What a file says of an array, but for where it begins."""

    key: str
    name: str  # in the file
    dtype: str  # safetensors' name of it
    shape: tuple[int, ...]  # with the axis of 2 that complex numbers have
    size: int  # bytes


def _place(key: str, dtype: str, shape: tuple[int, ...]) -> _Place:
    """Return the place of an array under its own key; TypeError for a dtype that has none."""
    real = _REAL.get(dtype, dtype)
    if real not in _NAMES:
        raise TypeError(f"{key} is of dtype {dtype}, which has no place in a file")
    stored = (*shape, 2) if dtype in _REAL else shape
    return _Place(key, key, _NAMES[real], stored, math.prod(shape) * dtype_of(dtype).itemsize)


@dataclass(frozen=True)
class _Layout:
    """Where everything is in a file, which does not depend on any number in its arrays.

    ``places`` are in the order of the file. In format 2 the manifest's text is among them, with the
    key ``fastopt:manifest``.
    """

    content: Mapping[str, Any]
    described: Described
    version: int
    numbered: bool
    places: tuple[_Place, ...]

    def sealed(self, hashes: Mapping[str, str]) -> tuple[bytes, bytes]:
        """Return what the file begins with, and the array with the manifest's text if it has one.

        ``hashes`` are the sha256 of the arrays; those that are missing have zeros in their place.
        """
        text = _manifest_text(self.version, self.content, self.described, hashes)
        if self.version == 1:
            return _start(self.places, _sealed(text)), b""
        total = sum(place.size for place in self.places)
        return _start(self.places, _about(text, total, self.numbered)), text.encode("ascii")


def _laid_out(content: Mapping[str, Any], described: Described) -> _Layout:
    """Return a file's layout; TypeError and ValueError as of ``pack_arrays``."""
    places = [_place(key, *one) for key, one in described.items()]
    text = _manifest_text(1, content, described, {})
    if _most_bytes(places, _sealed(text)) <= LONGEST_HEADER:
        return _Layout(content, described, 1, False, _in_order(places))
    text = _manifest_text(2, content, described, {})
    manifest = _place(_MANIFEST, "uint8", (len(text),))
    total = manifest.size + sum(place.size for place in places)
    for numbered in (False, True):
        if numbered:
            places = [place._replace(name=str(k)) for k, place in enumerate(places)]
        together = [*places, manifest]
        if (length := _most_bytes(together, _about(text, total, numbered))) <= LONGEST_HEADER:
            return _Layout(content, described, 2, numbered, _in_order(together))
    raise ValueError(
        f"{len(places)} arrays take a header of up to {length} bytes, and that of a safetensors "
        f"file has at most {LONGEST_HEADER}; put small arrays together into larger ones, or leave "
        "the parameters out (params=False)"
    )


def _in_order(places: Iterable[_Place]) -> tuple[_Place, ...]:
    """Return arrays as safetensors lays them out: by dtype and name."""
    return tuple(sorted(places, key=lambda place: (_ORDER.index(place.dtype), place.name)))


def _start(places: Iterable[_Place], metadata: Mapping[str, str]) -> bytes:
    """Return the header with its length, which is a multiple of 8."""
    fields: dict[str, Any] = {"__metadata__": metadata}
    first = 0
    for place in places:
        last = first + place.size
        entry = {"dtype": place.dtype, "shape": place.shape, "data_offsets": [first, last]}
        fields[place.name], first = entry, last
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def pack_arrays(content: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return the file's bytes. The arrays must be C-ordered NumPy arrays.

    Raises TypeError for an array of another dtype than real and complex numbers, integers and
    bool, ValueError if there are more arrays than a file's header can list.
    """
    for key, array in arrays.items():
        if not array.dtype.isnative:
            raise TypeError(f"{key} is of dtype {array.dtype.str}, which has no place in a file")
    described = {key: (array.dtype.name, array.shape) for key, array in arrays.items()}
    layout = _laid_out(content, described)
    buffers = {key: _bytes_of(array) for key, array in arrays.items()}
    hashes = {key: hashlib.sha256(buffer).hexdigest() for key, buffer in buffers.items()}
    start, text = layout.sealed(hashes)
    buffers[_MANIFEST] = memoryview(text)
    return b"".join([start, *(buffers[place.key] for place in layout.places)])


def _bytes_of(buffer: Buffer) -> memoryview:
    """Return the bytes of an array in C order, or of anything else that has some."""
    if isinstance(buffer, np.ndarray):  # memoryview knows no bfloat16
        return buffer.reshape(-1).view(np.uint8).data
    return memoryview(buffer).cast("B")


def _manifest_text(
    version: int, content: Mapping[str, Any], described: Described, hashes: Mapping[str, str]
) -> str:
    entries = {
        key: {"dtype": dtype, "shape": list(shape), "sha256": hashes.get(key, _UNKNOWN)}
        for key, (dtype, shape) in described.items()
    }
    return _text({"format_version": version, **content, "arrays": entries})


def _text(manifest: Mapping[str, Any]) -> str:
    try:
        return json.dumps(manifest, allow_nan=False)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


_TOO_DEEP = "notes and what companions remember must not be nested a thousand levels deep"


def _sealed(text: str) -> dict[str, str]:
    return {"fastopt": text, "fastopt_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _about(text: str, total: int, numbered: bool) -> dict[str, str]:
    """Return the metadata of format 2: what the manifest's text is, which is an array itself."""
    about = {"format_version": 2, "fastopt": __version__, "bytes": total, "numbered": numbered}
    sha = hashlib.sha256(text.encode("ascii")).hexdigest()
    return _sealed(_text({**about, "length": len(text), "sha256": sha}))


def _most_bytes(places: Iterable[_Place], metadata: Mapping[str, str]) -> int:
    """Return how long the header will be at most."""
    entries = sum(  # their numbers have at most 19 digits
        len(json.dumps(place.name)) + 20 * (len(place.shape) + 2) + 60 for place in places
    )
    return len(json.dumps(metadata)) + entries + 60


# Piece by piece, so that no more than a piece is held.

Buffer = bytes | bytearray | memoryview | Array
Pieces = Iterable[tuple[str, int, Buffer]]
"""An array's key, the offset in its bytes, and bytes from there on."""


def order_of(manifest: Mapping[str, Any], described: Described) -> list[str]:
    """Return the keys of arrays in the order in which they are in a file.

    ``manifest`` is that of ``Content``, ``described`` its arrays in the order in which they are
    there. Raises TypeError and ValueError as ``pack_arrays``.
    """
    return [place.key for place in _laid_out(manifest, described).places if place.key != _MANIFEST]


def write_pieces(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    described: Described,
    pieces: Pieces,
    keep_previous: bool,
) -> None:
    """Replace a checkpoint, whose arrays come piece by piece, by the bytes of ``write``.

    Args:
        path: the file.
        manifest: that of ``Content``.
        described: the dtype's name and the shape of each of its arrays, in the order of
            ``Content.arrays``.
        pieces: key, offset in bytes within the array and bytes (C-ordered); the arrays as
            ``order_of`` has them, each from its start to its end. An array without elements needs
            no piece. A buffer may be used anew as soon as the next piece is asked for.
        keep_previous: keep the file from before as ``<path>.prev``.

    Raises what ``pieces`` raises, AssertionError for pieces in another order, and else TypeError,
    ValueError and OSError as ``write`` and ``pack_arrays`` do. The file then is as it was.
    """
    _replace(place_of(path), _InPieces(_laid_out(manifest, described), pieces), keep_previous)


class _InPieces:
    """A checkpoint whose arrays come piece by piece, which can be done once."""

    def __init__(self, layout: _Layout, pieces: Pieces) -> None:
        self._layout, self._pieces = layout, pieces
        self._hashes: dict[str, str] = {}
        self._start, self._text = layout.sealed({})
        self.raised: BaseException | None = None

    def write(self, file: BinaryIO) -> None:
        """Write the arrays, then what their hashes are part of, for which room was left."""
        file.write(self._start)
        pieces, at_text = self._given(), 0
        waiting = next(pieces, None)
        for place in self._layout.places:
            if place.key == _MANIFEST:
                at_text = file.tell()
                file.write(self._text)
                continue
            hashed, done = hashlib.sha256(), 0
            while waiting and waiting[0] == place.key:
                _, offset, data = waiting
                if offset != done or done + len(data) > place.size:
                    raise AssertionError(_out_of_order(place, done, waiting))
                file.write(data)
                hashed.update(data)
                done += len(data)
                waiting = next(pieces, None)
            if done != place.size:
                raise AssertionError(_out_of_order(place, done, waiting))
            self._hashes[place.key] = hashed.hexdigest()
        if waiting:
            raise AssertionError(f"a piece of {waiting[0]!r} came behind the last array")
        self._start, self._text = self._layout.sealed(self._hashes)
        for at, content in ((at_text, self._text), (0, self._start)):
            file.seek(at)
            file.write(content)

    def _given(self) -> Iterator[tuple[str, int, memoryview]]:
        try:
            for key, offset, buffer in self._pieces:
                yield key, offset, _bytes_of(buffer)
        except BaseException as error:
            self.raised = error
            raise

    def is_in(self, file: BinaryIO) -> bool:
        """Return it by the hashes of the arrays, and all the rest itself."""
        return (
            _continues(file, self._start)
            and all(
                _continues(file, self._text)
                if place.key == _MANIFEST
                else _digest(file, place.size) == self._hashes[place.key]
                for place in self._layout.places
            )
            and not file.read(1)
        )


def _out_of_order(place: _Place, done: int, got: tuple[str, int, memoryview] | None) -> str:
    came = f"{len(got[2])} bytes of {got[0]!r} at {got[1]}" if got else "the end"
    return (
        f"the next piece must be of {place.key!r} at {done}, of which {place.size - done} bytes of "
        f"{place.size} are to come; got {came}"
    )


Take = Callable[[BufferedReader, int, int], tuple[bytearray | memoryview, str]]
"""Returns the bytes of a file from the first on, up to the last without it, and their sha256."""


def _loaded(file: BufferedReader, first: int, last: int) -> tuple[bytearray, str]:
    """Take bytes into memory of their own."""
    data = bytearray(last - first)
    file.seek(first)
    file.readinto(data)
    return data, hashlib.sha256(data).hexdigest()


class _Mapped:
    """Takes bytes as parts of a mapping of the file, which takes no memory."""

    def __init__(self) -> None:
        self._mapping: mmap.mmap | None = None

    def __call__(self, file: BufferedReader, first: int, last: int) -> tuple[memoryview, str]:
        if self._mapping is None:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.seek(first)  # a mapping that is read through is memory of this process
        return memoryview(self._mapping)[first:last], _digest(file, last - first)

    def close(self) -> None:
        """End the mapping, or leave that to the last array in it."""
        if self._mapping is not None:
            with contextlib.suppress(BufferError):
                self._mapping.close()


def unpack(file: BufferedReader, size: int, take: Take) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return manifest and arrays of a file of so many bytes.

    Raises CheckpointError for anything but a whole and undamaged file of a known format; until
    the sizes in it are known to fit the file's own, no more than the header is read.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > LONGEST_HEADER:
        raise CheckpointError(f"this is no safetensors file{_foreign(start)}")
    if length > size - 8:
        raise CheckpointError(f"this is no safetensors file, or it was cut off{_foreign(start)}")
    fields = _fields(file.read(length))
    manifest = _manifest(fields)
    about = manifest if manifest["format_version"] == 2 else None
    described = {} if about else _described(manifest)
    expected = 8 + length + (_total(about) if about else _size(described))
    if size != expected:
        raise CheckpointError(f"{size} bytes instead of {expected}: cut off, or damaged")
    entries = _entries(fields, 8 + length, size)
    taken = partial(take, file)
    if about:
        manifest = _manifest_in(entries.pop(_MANIFEST, None), about, taken)
        described = _described(manifest)
        if about.get("numbered"):
            numbers = {str(number): key for number, key in enumerate(described)}
            entries = {numbers.get(number, number): entry for number, entry in entries.items()}
    if entries.keys() != described.keys():
        _damaged("the arrays are not those of the manifest")
    return manifest, {k: _array(k, one, *described[k], taken) for k, one in entries.items()}


class _Entry(NamedTuple):
    """What a file's header says of an array, which may be anything, and where it lies."""

    dtype: Any
    shape: Any
    first: int
    last: int


def _entries(fields: Mapping[str, Any], first: int, size: int) -> dict[str, _Entry]:
    """Return the arrays of a file of so many bytes by their names, in the order of the file.

    They must follow one another without gaps from the first byte behind the header to the end.
    """
    found = []
    for name in fields.keys() - {"__metadata__"}:
        entry = fields[name] if isinstance(fields[name], dict) else {}
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(offsets, list) or len(offsets) != 2 or not _is_shape(offsets):
            _damaged(f"data_offsets of {name!r} are {offsets!r}")
        found.append((first + offsets[0], first + offsets[1], name, dtype, shape))
    found.sort(key=lambda one: one[:3])
    at = first
    for begin, end, name, *_ in found:
        if begin != at or end < begin:
            _damaged(f"{name!r} is not where the array before it ends")
        at = end
    if at != size:
        _damaged(f"the last array ends {size - at} bytes before the file")
    return {name: _Entry(dtype, shape, *place) for *place, name, dtype, shape in found}


_FOREIGN = {
    b"PK": "a zip archive, as torch.save and numpy.savez write (a run of PyTorch goes on with "
    "torch.load and fastopt.interop.load_torch)",
    b"\x80": "a pickle",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "an array of numpy.save",
}
"""What other files begin with."""


def _foreign(start: bytes) -> str:
    return next((f"; it looks like {s}" for b, s in _FOREIGN.items() if start.startswith(b)), "")


def _total(about: Mapping[str, Any]) -> int:
    """Return how many bytes of arrays there are in a file of format 2."""
    total = about.get("bytes")
    if not isinstance(total, int) or total < 0:
        _damaged(f"bytes is {total!r}")
    return total


Taken = Callable[[int, int], tuple[bytearray | memoryview, str]]
"""The same of a file that is known."""


def _manifest_in(entry: _Entry | None, about: Mapping[str, Any], taken: Taken) -> dict[str, Any]:
    """Return the manifest from its array, which the metadata describes."""
    if entry is None:
        _damaged("there is no manifest")
    shape = about.get("length")
    if not isinstance(shape, int) or not _is_shape([shape]):
        _damaged(f"length is {shape!r}")
    text = _array(_MANIFEST, entry, "uint8", (shape,), str(about.get("sha256")), taken)
    manifest = _parsed(text.tobytes())
    if manifest["format_version"] != 2:
        _damaged("the manifest is of another format")
    return manifest


def _fields(header: bytes) -> dict[str, Any]:
    """Return what is in a file's header, which may be anything yet."""
    try:
        fields = json.loads(header.decode())
    except (ValueError, RecursionError):
        raise CheckpointError("this is no safetensors file, or its header is damaged") from None
    return fields if isinstance(fields, dict) else {}


def _manifest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest from a file's header, checked by its hash."""
    metadata = fields.get("__metadata__")
    text = metadata.get("fastopt") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(text, str):
        raise CheckpointError("this is no checkpoint of fastopt: its header holds no manifest")
    encoded = text.encode("utf-8", "replace")
    if metadata.get("fastopt_sha256") != hashlib.sha256(encoded).hexdigest():
        _damaged("the manifest's sha256 is another")
    return _parsed(text)


def _parsed(text: str | bytes) -> dict[str, Any]:
    """Return a manifest from its text, if its format is known."""
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
    key: str, entry: _Entry, dtype: str, shape: tuple[int, ...], sha: str, taken: Taken
) -> Array:
    """Return an array as it was saved, if all that is known of it is true."""
    real = _REAL.get(dtype, dtype)
    stored_shape = [*shape, 2] if dtype in _REAL else [*shape]
    if entry.dtype != _NAMES[real] or entry.shape != stored_shape:
        _damaged(f"{key} is {entry.dtype} {entry.shape}, not {dtype} {shape}")
    data, digest = taken(entry.first, entry.last)
    if digest != sha:
        _damaged(f"the sha256 of {key} is another")
    try:
        return np.frombuffer(data, dtype_of(dtype)).reshape(shape)
    except ValueError as error:  # no elements along an axis that is too long for NumPy
        _damaged(f"{key}: {error}")


def _size(described: Mapping[str, tuple[str, tuple[int, ...], str]]) -> int:
    """Return the bytes of all arrays."""
    return sum(
        math.prod(shape) * dtype_of(dtype).itemsize for dtype, shape, _ in described.values()
    )


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of this name, bfloat16 of ml_dtypes too."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


def _damaged(why: str) -> NoReturn:
    raise CheckpointError(f"the file is damaged: {why}")


# -------------------------------------------------------------------------------------------------
# An optimizer, its parameters and its companions as one file, and back: all of it or nothing.


class Companion(Protocol):
    """What can be saved beside an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything to be remembered: plain values and arrays, nested."""

    def _restorer(self, saved: Any) -> Callable[[], None]:
        """Look at all of a state_dict; return what takes it over, which cannot fail.

        Raises CheckpointError if it does not fit.
        """


Companions = Mapping[str, Companion]

_PREFIXES = {"state": "state:", "params": "param:", "also": "also:", "notes": "note:"}


@dataclass(frozen=True)
class Content:
    """What a checkpoint is to hold: its manifest but for the description of its arrays, and these.

    The arrays are the user's own, or with ``detached`` copies, which go on being what they were.
    """

    manifest: dict[str, Any]
    arrays: dict[str, Array]

    def packed(self) -> bytes:
        """Return the checkpoint's bytes."""
        return pack_arrays(self.manifest, self.arrays)


def collect(
    optimizer: str,
    state: OptimizerState,
    policy: Mapping[str, Any],
    params: bool,
    also: Companions | None,
    notes: Mapping[str, Any] | None,
    detached: bool = False,
) -> Content:
    """Return what a checkpoint of an optimizer is to hold."""
    content = checkpoint_state_dict.collect_state(optimizer, state, policy)
    content["params"] = checkpoint_state_dict.collect_parameters(state) if params else None
    return content_of(content, also, notes, Encoder(), detached)


def content_of(
    content: Mapping[str, Any],
    also: Companions | None,
    notes: Mapping[str, Any] | None,
    encoder: Encoder,
    detached: bool = False,
) -> Content:
    """Return what a checkpoint is to hold, given a ``state_dict`` with "params" beside it."""
    content = {
        **content,
        "also": {k: one.state_dict() for k, one in _checked(also, "state_dict").items()},
        "notes": _mapping("notes", notes),
    }
    manifest: dict[str, Any] = {}
    for name, value in content.items():
        encoder.copies = detached and name != "state"  # that has been copied
        try:
            manifest[name] = encoder.encode(_PREFIXES.get(name, f"{name}:"), value)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
    return Content(manifest, encoder.arrays)


def write(path: str | os.PathLike[str], content: bytes, keep_previous: bool) -> None:
    """Replace a checkpoint by another."""
    replace_file(place_of(path), content, keep_previous)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what is in a checkpoint; CheckpointError if the file is not a whole one."""
    return _read(path, _loaded)


@contextlib.contextmanager
def mapped(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Give what ``read`` returns, its arrays read-only and of no memory: they are in the file.

    It has been read by pieces then, and every sha256 compared. What is taken of an array is read
    from the disk, or from what the system still has of it. The mapping ends with the ``with``
    statement, and if an array is kept beyond that, with the last of these: copy what is to stay.
    The file may be replaced meanwhile, and the arrays stay those of the old one; on Windows no
    mapped file can be. It must not be written to in place or cut off.

    Raises CheckpointError and OSError as ``read`` does.
    """
    mapping = _Mapped()
    content = {}
    try:
        content = _read(path, mapping)
        yield content
    finally:
        content.clear()
        mapping.close()


def _read(path: str | os.PathLike[str], take: Take) -> dict[str, Any]:
    """Return what is in a checkpoint, its arrays as ``take`` gives them."""
    place = place_of(path)
    try:
        if place.is_dir():
            raise CheckpointError(_about_folder(place))
        if place.exists() and not place.is_file():
            raise CheckpointError("this is no regular file")  # a pipe could be waited for
        with place.open("rb") as file:
            return _content(*unpack(file, os.fstat(file.fileno()).st_size, take))
    except CheckpointError as error:
        told = explained(path, error, whole=False)
    raise told  # here, where it does not keep what was read so far


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return what tells checkpoints apart: the sha256 of the header, which has those of all."""
    with place_of(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(length)).hexdigest()


def place_of(path: str | os.PathLike[str]) -> Path:
    """Return a path; TypeError or ValueError if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be text or a pathlib.Path; got {type(path).__name__}")
    place = Path(path)
    if "\0" in str(place):
        raise ValueError(f"path must not hold a null character; got {str(place)!r}")
    return place


def _about_folder(folder: Path) -> str:
    """Return that this is a folder, and which checkpoints are in it, the newest first."""
    try:
        found = [place for place in folder.iterdir() if _looks_like_ours(place)]
        found.sort(key=lambda place: place.stat().st_mtime_ns, reverse=True)
    except OSError:
        found = []
    names = ", ".join(repr(place.name) for place in found[:3])
    more = f" and {len(found) - 3} older ones" if len(found) > 3 else ""
    inside = f"load one of the checkpoints in it: {names}{more}" if found else "with no checkpoint"
    return f"this is a folder; {inside}"


def _looks_like_ours(place: Path) -> bool:
    """Return whether a file begins as a checkpoint does; temporary and older files do not count."""
    if place.name.startswith(".") or place.suffix == ".prev" or not place.is_file():
        return False
    with place.open("rb") as file:
        return b'"fastopt' in file.read(200)


def explained(path: str | os.PathLike[str], error: CheckpointError, whole: bool) -> CheckpointError:
    """Return the error with the file's name, and if it is not ``whole`` the one's before it."""
    before = previous(Path(os.path.realpath(path)))
    helps = not whole and before.is_file()
    hint = f" The checkpoint before it is {str(before)!r}." if helps else ""
    return CheckpointError(f"{os.fspath(path)!r}: {str(error).rstrip('.')}.{hint}")


def _content(manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    try:
        content = {k: decode(v, arrays) for k, v in manifest.items() if k != "arrays"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the file is damaged: {error!r}") from None
    for name, kinds in (("fastopt", str), ("also", dict), ("notes", dict)):
        if not isinstance(content.get(name), kinds):
            raise CheckpointError(f"the file is damaged: {name} is {content.get(name)!r}")
    if not isinstance(content.get("params", ...), dict | None):
        raise CheckpointError("the file is damaged: params is neither a dict nor null")
    return content


ParametersRestorer = Callable[[Mapping[str, Any], bool], tuple[Callable[[], None], Differences]]


def restorer(
    optimizer: str,
    state: OptimizerState,
    policy: Mapping[str, Any],
    content: Mapping[str, Any],
    strict: bool,
    also: Companions | None,
    convert: bool = False,
    params: ParametersRestorer | None = None,
) -> tuple[Callable[[], None], LoadReport]:
    """Look at all that is in a checkpoint; return what takes it over, and the report on that.

    ``params`` looks at saved parameters, if there are any, and whether that is done strictly; None:
    they are those of the state.
    """
    changes: tuple[str, ...] = ()
    if convert:
        content, changes = converted(state, content)
    params = params or partial(checkpoint_state_dict.parameters_restorer, state)
    commit, differences = checkpoint_state_dict.state_restorer(
        optimizer, state, policy, content, strict
    )
    commits = [commit]
    saved_params = content["params"]
    if saved_params is not None:
        commit, more = params(saved_params, strict)
        commits.append(commit)
        differences += more
    companions, saved = _checked(also, "_restorer"), content["also"]
    differences += compare_names("companions (also=)", "also:", companions, saved, strict)
    taken = [key for key in companions if key in saved]
    commits += [_restorer_of(key, companions[key], saved[key]) for key in taken]
    made = report(content, differences, saved_params is not None, taken, content["notes"])
    return lambda: _commit(commits), replace(made, converted=changes)


def _restorer_of(key: str, companion: Companion, saved: Any) -> Callable[[], None]:
    try:
        return companion._restorer(saved)
    except CheckpointError as error:
        raise CheckpointError(f"also[{key!r}]: {error}") from error


def _commit(commits: Iterable[Callable[[], None]]) -> None:
    with Deferred():
        for commit in commits:
            commit()


def report(
    content: Mapping[str, Any],
    differences: Differences,
    params: bool = False,
    also: Iterable[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Return the report on a state that was taken over."""
    return LoadReport(
        optimizer=str(content["optimizer"]),
        version=str(content.get("fastopt", "unknown")),
        step_count=int(content["step_count"]),
        params=params,
        also=tuple(also),
        notes=dict(notes or {}),
        missing=differences.missing,
        unexpected=differences.unexpected,
        mismatched=differences.mismatched,
        settings=differences.settings,
    )


def _checked(also: Companions | None, needed: str) -> Companions:
    companions: Companions = _mapping("also", also)
    for key, companion in companions.items():
        if not isinstance(key, str):
            raise TypeError(f"also must have text as its keys; got {key!r}")
        if not callable(getattr(companion, needed, None)):
            raise TypeError(
                f"also[{key!r}] must be a companion of the optimizer, such as an EMA or a "
                f"LossScaler; got {type(companion).__name__}. Plain values belong into notes."
            )
    return companions


def _mapping(name: str, given: Any) -> Any:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a dict; got {type(given).__name__}")
    return {} if given is None else given
