"""Compiled code on disk: found by what it was made of, verified before use, never needed.

A file's name is the hash of everything that the code depends on, so an edited rule, another
version or another processor never finds old code; its content begins with its own hash, so a
damaged file is compiled anew. A folder that is missing, read-only, full or somebody else's costs
compile time only.

The folder is ``FASTOPT_CACHE_DIR``, or ``fastopt`` in the user's cache folder. Its files are loaded
as code, so it is used only if it belongs to the user and nobody else can write to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np

_HASH_BYTES = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Return the folder of compiled code, made if need be; None if there can be none."""
    given = os.environ.get("FASTOPT_CACHE_DIR")
    try:
        path = Path(given) if given else _user_cache() / "fastopt"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    if hasattr(os, "getuid") and (
        found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        return None
    return path


def names() -> list[str]:
    """Return the names of the files of compiled code."""
    place = folder()
    try:
        return os.listdir(place) if place else []
    except OSError:
        return []


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


class CodeCache:
    """One compiled function's place on disk, in the form in which Numba asks for it.

    ``pack`` and ``unpack`` turn Numba's result into bytes and back; ``identity`` is everything that
    the code depends on besides the signature.
    """

    def __init__(
        self,
        name: str,
        identity: tuple[object, ...],
        pack: Callable[[Any], bytes],
        unpack: Callable[[Any, bytes], Any],
    ) -> None:
        self._name = name
        self._identity = identity
        self._pack = pack
        self._unpack = unpack
        self.hits: int = 0
        self.misses: int = 0

    def _path(self, signature: object) -> Path | None:
        place = folder()
        key = hashlib.sha256(repr((self._identity, str(signature))).encode()).hexdigest()
        return place / f"{self._name}-{key[:32]}.bin" if place else None

    def load_overload(self, signature: object, context: Any) -> Any:
        """Return the compiled result for a signature; None if it has to be compiled."""
        try:
            path = self._path(signature)
            found = self._unpack(context, _verified(path.read_bytes())) if path else None
        except Exception:  # whatever is wrong with a file, compiling is the answer
            found = None
        self.hits += found is not None
        self.misses += found is None
        return found

    def save_overload(self, signature: object, result: Any) -> None:
        """Keep a compiled result for other processes, if that can be done."""
        with contextlib.suppress(Exception):
            path = self._path(signature)
            if path is not None:
                _write(path, self._pack(result))


def _verified(content: bytes) -> bytes:
    digest, payload = content[:_HASH_BYTES], content[_HASH_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("damaged")
    return payload


def _write(path: Path, payload: bytes) -> None:
    """Write a file beside its place, then move it there: readers see all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fingerprint(function: Callable[..., Any]) -> str:
    """Return a hash of what a function does: its code, and the functions and numbers it uses."""
    return hashlib.sha256("\n".join(_parts(function, set())).encode()).hexdigest()


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    value = getattr(value, "_defn", value)  # the function behind an intrinsic of Numba
    if not isinstance(value, FunctionType):
        known = isinstance(value, int | float | str | bytes | tuple | np.generic | None)
        yield repr(value) if known else getattr(value, "__qualname__", type(value).__qualname__)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    yield from _code_parts(value.__code__)
    for name in sorted(_names(value.__code__) & value.__globals__.keys()):
        yield name
        yield from _parts(value.__globals__[name], seen)
    for cell in value.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)


def _code_parts(code: CodeType) -> Iterator[str]:
    yield repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_parts(constant)
        else:
            yield repr(constant)


def _names(code: CodeType) -> set[str]:
    nested = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*nested)
