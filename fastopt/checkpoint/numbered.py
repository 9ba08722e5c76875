"""Numbered checkpoints in a folder: the newest are kept, and written in the background if asked."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from fastopt.checkpoint import file
from fastopt.checkpoint.file import Companions, Content
from fastopt.checkpoint.state_dict import LoadReport
from fastopt.core.hyperparameters import whole
from fastopt.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

# -------------------------------------------------------------------------------------------------
# Whose file is whose. Every writer has a token, which is in the names of its files, and holds a
# lock on a file of this token as long as it lives, which the system lets go however it ends. So
# files of a writer that lives are told from those that one has left.


class _Found(NamedTuple):
    """A checkpoint, in the order of steps; of the same step the one written later is newer."""

    step: int
    written: int
    path: Path
    token: str
    size: int


class _Lock:
    """A locked file that says that the writer with this token lives."""

    def __init__(self, folder: Path, name: str) -> None:
        while True:
            self.token = secrets.token_hex(4)
            self._path = _lock_path(folder, name, self.token)
            self._file = self._path.open("xb")
            if sys.platform != "win32":
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._file.fileno(), fcntl.LOCK_EX)
            # Before it was locked another writer may have held its writer for dead, and removed it.
            if self._path.exists():
                return
            self._file.close()

    def release(self) -> None:
        """Let others take over the files of this token."""
        with contextlib.suppress(OSError):
            if sys.platform != "win32":  # there an open file cannot be removed
                self._path.unlink(missing_ok=True)
            self._file.close()
            self._path.unlink(missing_ok=True)


def _lock_path(folder: Path, name: str, token: str) -> Path:
    return folder / f".{name}-{token}.lock"


def _try_lock(opened: BinaryIO) -> bool:
    """Lock an open file; False if another one holds it, or the file system has no locks."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(opened.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_gone(folder: Path, name: str, token: str) -> bool:
    """Return whether the writer with a token has ended; what it has locked is removed then."""
    path = _lock_path(folder, name, token)
    try:
        with path.open("rb") as opened:
            if not _try_lock(opened):
                return False
            if sys.platform != "win32":
                path.unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # Windows refuses that for a file that its writer has open
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


# -------------------------------------------------------------------------------------------------
# The folder, and who writes into it.


class _Writer:
    """Writes the checkpoints of one ``Checkpoints``, one at a time, and removes old ones."""

    def __init__(self, folder: Path, name: str, keep: int) -> None:
        self.folder, self.name, self.keep = folder, name, keep
        self.whole: dict[_Found, bool] = {}  # of files that were written or read here
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._lock: _Lock | None = None
        self._process = os.getpid()
        self._locks = re.compile(rf"\.{re.escape(name)}-([0-9a-f]{{8}})\.lock")
        numbers = rf"{re.escape(name)}-(\d{{12,}})-([0-9a-f]{{8}})\.safetensors"
        self._names = re.compile(numbers)
        self._leftovers = re.compile(rf"\.{numbers}\.tmp\..*")

    def place(self, step: int) -> Path:
        """Return where the checkpoint of a step is to be written; the folder is made."""
        if self._process != os.getpid():  # a forked child is another writer
            self._process, self._lock, self._thread = os.getpid(), None, None
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _Lock(self.folder, self.name)
        return self.folder / f"{self.name}-{step:012}-{self._lock.token}.safetensors"

    def found(self) -> list[_Found]:
        """Return all checkpoints that there are, the oldest first."""
        return sorted(self._matching(self._names))

    def write(self, path: Path, content: Content) -> None:
        """Write a checkpoint, and then remove those that are too old."""
        file.replace_file(path, content.packed(), keep_previous=False)
        ended, found = self._ended(), self.found()
        self.whole = {one: whole for one, whole in self.whole.items() if one in found}
        self.whole.update((one, True) for one in found if one.path == path)  # it has been compared
        inherited = [one for one in found if one.token in {self._token, *ended}]
        leftovers = [one for one in self._matching(self._leftovers) if one.token in ended]
        for old in [*self._too_old(inherited), *leftovers]:
            if old.path != path:
                with contextlib.suppress(OSError):  # another process may be faster
                    old.path.unlink()

    def _too_old(self, found: list[_Found]) -> list[_Found]:
        """Return those that are older than as many whole ones as are kept; read no more of them."""
        if len(found) <= self.keep:
            return []
        whole = 0
        for place in range(len(found) - 1, 0, -1):
            whole += self.is_whole(found[place])
            if whole == self.keep:
                return found[:place]
        return []

    def is_whole(self, found: _Found) -> bool:
        """Return whether a checkpoint is whole; it is read unless it has been, and is unchanged."""
        if found not in self.whole:
            try:
                file.read(found.path)
            except (CheckpointError, OSError):
                self.whole[found] = False
            else:
                self.whole[found] = True
        return self.whole[found]

    def start(self, path: Path, content: Content) -> None:
        """Do the same in a thread, which the end of the process waits for."""
        self._thread = threading.Thread(target=self._run, args=(path, content))
        self._thread.start()

    def _run(self, path: Path, content: Content) -> None:
        try:
            self.write(path, content)
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        """Wait for the thread; an error in it stays where it is."""
        if self._thread is not None and self._process == os.getpid():
            self._thread.join()
            self._thread = None

    def raise_error(self) -> None:
        """Raise an error of the thread, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait, let go of the files, and raise an error that nobody has seen."""
        if self._process == os.getpid():  # a forked child must not let go of its parent's
            self.join()
            if self._lock is not None:
                self._lock.release()
            self.raise_error()

    @property
    def _token(self) -> str | None:
        return None if self._lock is None else self._lock.token

    def _matching(self, pattern: re.Pattern[str]) -> Iterator[_Found]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return
        for name in names:
            if match := pattern.fullmatch(name):
                path = self.folder / name
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    about = path.stat()
                    yield _Found(int(match[1]), about.st_mtime_ns, path, match[2], about.st_size)

    def _ended(self) -> set[str]:
        """Return the tokens of writers that have left something and ended."""
        found = [*self._matching(self._names), *self._matching(self._leftovers)]
        locks = filter(None, map(self._locks.fullmatch, os.listdir(self.folder)))
        others = {one.token for one in found} | {match[1] for match in locks}
        others.discard(str(self._token))
        return {token for token in others if _is_gone(self.folder, self.name, token)}


class Saveable(Protocol):
    """An optimizer, as far as it is saved and loaded."""

    def _detached(
        self, params: bool, also: Companions | None, notes: Mapping[str, Any] | None
    ) -> Content: ...

    def load(
        self, path: Path, *, strict: bool, also: Companions | None, convert: bool
    ) -> LoadReport:
        """Take over what a file holds."""


class Checkpoints:
    """The checkpoints of a run in a folder: numbered by step, the newest kept.

    ::

        checkpoints = fastopt.Checkpoints("runs/7", keep=3)
        checkpoints.load(opt)  # where the last run ended, if there was one
        while opt.step_count < 100_000:
            opt.step(gradients(params))
            if opt.step_count % 1000 == 0:
                checkpoints.save(opt, background=True)
        checkpoints.wait()

    The files are those of ``Optimizer.save``, called ``step-000000001000-3f2a9c1e.safetensors``
    (the steps made, and a token of who wrote it), so that their order by name is that of the steps.
    A new file is written beside, flushed to the disk, read again and moved into place before an old
    one is removed: whenever the process is killed, all that were whole before are still there, or
    as many of them as are kept.

    A file that is damaged does not count among those that are kept. It is left alone, to be looked
    at, until as many whole ones as are kept are newer, and is removed then, as a whole one is. To
    know that, a file that another process wrote is read, once, before older ones are removed.

    Files of another ``Checkpoints`` that is in use, in this process or another one, are left alone,
    also those of the same step. What one that has ended has left counts as one's own: ``keep`` goes
    for all of it together. (It is told by a lock on a hidden file, which needs a file system that
    has locks; where there are none, only what was written by the object itself is removed.)

    A run that goes back to an earlier step finds the files of later ones, which stay the newest:
    ``save`` warns of that once, if the later ones are whole. Remove them, or use another folder.

    Args:
        folder: where the files are; it is made at the first save.
        keep: how many of the newest that are whole are kept, >= 1.
        name: what the names begin with: letters, digits, "_" and "-". Optimizers that share a
            folder each need one.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: int = 3, *, name: str = "step"
    ) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ValueError(f"name must be made of letters, digits, '_' and '-'; got {name!r}")
        self._writer = _Writer(file.place_of(folder), name, whole("Checkpoints: keep", keep, 1))
        self._mutex = threading.Lock()
        self._warned = False
        weakref.finalize(self, self._writer.close)

    def save(
        self,
        opt: Saveable,
        *,
        params: bool = True,
        also: Companions | None = None,
        notes: Mapping[str, Any] | None = None,
        background: bool = False,
    ) -> Path:
        """Write a checkpoint of an optimizer as it is now, and remove those that are too old.

        With ``background`` this returns as soon as everything is copied in memory, between two
        steps; the rest is done in a thread of its own while training goes on. The next save waits
        for it, and so does the end of the process. An error there is raised by the next ``save`` or
        ``wait``, or printed when the process ends.

        Args:
            opt: the optimizer.
            params, also, notes: as for ``Optimizer.save``.
            background: write in a thread; takes the size of the file in memory meanwhile, twice
                while it is written.

        Returns:
            Where it is, or with ``background`` will be.

        Raises:
            OSError, TypeError, ValueError, RuntimeError: as ``Optimizer.save``. Nothing is removed
                then.
        """
        if not callable(getattr(opt, "_detached", None)):
            raise TypeError(
                f"opt must be an optimizer of fastopt; got {type(opt).__name__}. What stands "
                "around one (EMA, Lookahead, ...) goes into also={...}"
            )
        with self._mutex:
            self.wait()
            content = opt._detached(params, also, notes)
            step = int(content.manifest["step_count"])
            path = self._writer.place(step)
            self._warn_of_later(step)
            if background:
                self._writer.start(path, content)
            else:
                self._writer.write(path, content)
        return path

    def wait(self) -> None:
        """Wait until what was begun in the background is written; raise the error if it was not."""
        self._writer.join()
        self._writer.raise_error()

    def latest(self) -> Path | None:
        """Return the newest checkpoint that is whole, None if there is none.

        All of it is read, and compared with its sha256. A file that is damaged is skipped, with a
        RuntimeWarning that says why. What is being written in the background is waited for.
        """
        self._writer.join()
        for found in reversed(self._writer.found()):
            try:
                file.read(found.path)
            except FileNotFoundError:  # another process has removed it
                continue
            except CheckpointError as error:
                self._writer.whole[found] = False
                warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)
                continue
            self._writer.whole[found] = True
            return found.path
        return None

    def load(
        self,
        opt: Saveable,
        *,
        strict: bool = True,
        also: Companions | None = None,
        convert: bool = False,
    ) -> LoadReport | None:
        """Take over the newest checkpoint that is whole; None, with nothing done, if there is none.

        The arguments and errors are those of ``Optimizer.load``; besides CheckpointError if there
        are checkpoints, and none of them is whole.
        """
        path = self.latest()
        if path is not None:
            return opt.load(path, strict=strict, also=also, convert=convert)
        if damaged := self._writer.found():
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in {str(self._writer.folder)!r} is whole; "
                "remove them to begin anew"
            )
        return None

    def _warn_of_later(self, step: int) -> None:
        if self._warned:
            return
        later = (found for found in reversed(self._writer.found()) if found.step > step)
        newest = next(filter(self._writer.is_whole, later), None)
        if newest is not None:
            self._warned = True
            warnings.warn(
                f"this checkpoint is of step {step}, and {str(newest.path)!r} of a later one, "
                "which latest() and load() go on taking for the newest; remove it if the run has "
                "gone back",
                RuntimeWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return f"Checkpoints({str(self._writer.folder)!r}, keep={self._writer.keep})"
