"""A file that is replaced whole or not at all, whatever kills the process or the machine.

The new content goes to ``.<name>.tmp.<process>.<random>`` beside the file, is flushed to the disk,
read again and compared, and only then moved over the old file, which stays as ``<name>.prev``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from pathlib import Path

from fastopt.interrupts import Deferred, DeferredTermination

_in_use: set[str] = set()
"""The temporary files that threads of this process are at work on."""

_PIECE = 1 << 20


def previous(path: Path) -> Path:
    """Return where the file before the present one is kept."""
    return path.with_name(f"{path.name}.prev")


def write(path: Path, content: bytes, keep_previous: bool) -> None:
    """Replace a file, or make it. A link is followed: what it points to is replaced.

    Raises OSError that names the file, which then is as it was, with one exception: if the folder
    cannot be flushed, the new file is there already, but may not survive a power cut.
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
        if error.filename is None:  # as for a full disk
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


def _write_through(path: Path, content: bytes) -> None:
    """Write a new file, down to the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _compare(path: Path, content: bytes) -> None:
    """Read a file again; OSError unless it holds these bytes and no more."""
    whole = memoryview(content)
    with path.open("rb") as file:
        same = all(file.read(_PIECE) == whole[i : i + _PIECE] for i in range(0, len(whole), _PIECE))
        if not same or file.read(1):
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
