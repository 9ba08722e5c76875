"""A checkpoint is replaced whole or not at all: kill -9, Ctrl-C, a full disk, any failure."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_save_load import Memo

import fastopt
from fastopt.checkpoint import file
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.interruption import interrupted, places_of, whole_traces
from helpers.variants import script


def made(value: float, size: int = 3) -> Optimizer:
    return fastopt.SGD({"p": np.full(size, value)}, momentum=0.5, backend="numpy")


def value_in(path: Path) -> float:
    """Return what a checkpoint of ``made`` holds; raises if it is no whole one."""
    params = {"p": np.zeros(3)}
    fastopt.SGD(params, momentum=0.5, backend="numpy").load(path)
    (value,) = set(params["p"].tolist())
    return float(value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds 1.0, with 0.0 before it, alone in its folder."""
    for value in (0.0, 1.0):
        made(value).save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".prev")


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


# Kill -9 -----------------------------------------------------------------------------------------

KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import fastopt
from helpers.processes import drained

random.seed(0)
folder = Path(sys.argv[1])
path, before = folder / "run", folder / "run.prev"
params = {"p": np.zeros(100_000), "q": [np.zeros(30_000, np.float32)]}
opt = fastopt.SGD(params, momentum=0.5, backend="numpy")
fresh = {"p": np.zeros(100_000), "q": [np.zeros(30_000, np.float32)]}
reader = fastopt.SGD(fresh, momentum=0.5, backend="numpy")

def save(number):
    params["p"][...] = number
    params["q"][0][...] = number
    opt.save(path, notes={"number": number})

def load(path):
    number = reader.load(path).notes["number"]
    for array in (fresh["p"], fresh["q"][0]):
        assert array.min() == array.max() == number, "half new"
    return number

save(0)
start = time.perf_counter()
for number in (1, 2, 3):
    save(number)
usual = (time.perf_counter() - start) / 3
began = last = 3
hits = kills = 0
told, tell = os.pipe()
while kills < 40 or began < 200:
    child = os.fork()
    if child == 0:
        for number in range(last + 1, last + 1000):
            os.write(tell, b".")
            save(number)
    os.read(told, 1)
    time.sleep(random.uniform(0, 5) * usual)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    more = drained(told)
    kills += 1
    hits += any(".tmp." in name for name in os.listdir(folder))
    number = load(path)
    assert number in (last + more, last + more + 1), "a save that was finished is lost"
    assert load(before) in (number - 1, number)
    began += more + 1
    last = number
save(last + 1)
assert sorted(os.listdir(folder)) == ["run", "run.prev"], os.listdir(folder)
print(kills, hits, began)
"""


@pytest.mark.xdist_group("apart")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kill_9_at_random_moments_never_leaves_an_unreadable_or_half_new_file(
    tmp_path: Path,
) -> None:
    done = script(KILLS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    kills, hits, saves = map(int, done.stdout.split())
    assert kills >= 40
    assert hits >= kills / 4, "the kills did not hit the writing"
    assert saves >= 40


# Any failure, at any place -----------------------------------------------------------------------


class Stop(BaseException):
    """What no code expects."""


def failing(function: Callable[..., Any], at: int, error: BaseException) -> Callable[..., Any]:
    """Return a function that raises the ``at``-th time it is called."""
    calls = 0

    def wrapper(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return function(*given, **named)

    return wrapper


CALLS = [("fsync", 1), ("link", 1), ("replace", 1), ("replace", 2)]


@pytest.mark.parametrize(("name", "at"), CALLS)
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, MemoryError])
def test_a_failure_before_the_end_keeps_the_old_file_and_leaves_nothing_else(
    name: str, at: int, kind: type[BaseException], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing(getattr(os, name), at, kind()))
        with pytest.raises(kind):
            made(2.0).save(path)
    assert names(path.parent) == {path.name, previous(path).name}
    assert value_in(path) == 1.0
    assert value_in(previous(path)) == (1.0 if at == 2 else 0.0)
    for value in (2.0, 3.0):
        made(value).save(path)
        assert (value_in(path), value_in(previous(path))) == (value, value - 1)
    assert names(path.parent) == {path.name, previous(path).name}


def test_the_disk_has_the_file_before_its_name_and_the_name_before_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        done.append(Path(new).name)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    made(2.0).save(path)
    assert done == ["file", previous(path).name, path.name, "folder"]


def test_a_full_disk_keeps_the_old_file_and_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, 1, full))
        with pytest.raises(OSError, match="No space left") as caught:
            made(2.0).save(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert str(path) in str(caught.value)
    assert names(path.parent) == {path.name, previous(path).name}
    assert value_in(path) == 1.0


def test_a_file_that_may_not_grow_so_large_is_an_error_that_names_it(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = made(2.0, size=100_000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(OSError, match=r"run\.safetensors") as caught:
            big.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert names(path.parent) == {path.name, previous(path).name}
    assert value_in(path) == 1.0


@pytest.mark.parametrize("damage", ["flip", "cut", "append"])
def test_what_reads_back_as_something_else_does_not_replace_the_old_file(
    damage: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def bad_disk(descriptor: int) -> None:
        fsync(descriptor)
        size = os.fstat(descriptor).st_size
        if damage == "cut":
            os.truncate(descriptor, size - 1)
        else:
            os.pwrite(descriptor, b"\xff", size // 2 if damage == "flip" else size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", bad_disk)
        with pytest.raises(OSError, match="reads back as something else"):
            made(2.0).save(path)
    assert names(path.parent) == {path.name, previous(path).name}
    assert value_in(path) == 1.0


# Between open() and its with statement an interrupt leaves it to Python to close the file.
closed_by_python = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# Signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_the_file_is_in_place(
    number: signal.Signals, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def handler(got: int, frame: Any) -> None:
        assert got == number
        seen.append(value_in(path))

    replace = os.replace

    def signalled(*given: Any) -> None:
        signal.raise_signal(number)
        assert seen == []
        replace(*given)

    before = signal.signal(number, handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", signalled)
            made(2.0).save(path)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert seen == [2.0]
    assert value_in(previous(path)) == 1.0


@whole_traces
@closed_by_python
def test_an_interrupt_anywhere_in_a_save_leaves_the_old_file_or_the_new(path: Path) -> None:
    old, new, kept = made(1.0), made(2.0), path.read_bytes()
    wrong, outcomes = [], set()
    tries = places_of(lambda: new.save(path))
    old.save(path)
    for at in tries:
        came_out = interrupted(lambda: new.save(path), at)
        outcomes.add(now := value_in(path))
        if not came_out or names(path.parent) != {path.name, previous(path).name}:
            wrong.append(at)
        if now == 2.0:
            old.save(path)
            assert path.read_bytes() == kept or value_in(path) == 1.0
    assert wrong == [], "something is left over"
    assert outcomes == {1.0, 2.0}
    assert len(tries) > 100


@whole_traces
@closed_by_python
def test_an_interrupt_anywhere_in_a_load_leaves_the_old_or_the_new(path: Path) -> None:
    made(2.0).save(path, also={"memo": Memo(2.0)})
    params, memo = {"p": np.zeros(3)}, Memo(0.0)
    opt = fastopt.SGD(params, lr=0.5, momentum=0.5, backend="numpy")
    wrong, outcomes = [], set()
    opt.load(path, also={"memo": memo})  # what is worked out once is, before we count
    tries = places_of(lambda: opt.load(path, also={"memo": memo}))
    for at in tries:
        params["p"][...], memo.number, opt.lr = 0.0, 0.0, 0.5
        assert interrupted(lambda: opt.load(path, also={"memo": memo}), at) is not None
        now = (set(params["p"].tolist()), memo.number, opt.lr)
        outcomes.add(memo.number)
        if now not in (({0.0}, 0.0, 0.5), ({2.0}, 2.0, 0.001)):
            wrong.append((at, now))
    assert wrong == [], "half loaded"
    assert outcomes == {0.0, 2.0}
    assert len(tries) > 100


def test_a_thread_that_is_not_the_main_one_saves_too(path: Path) -> None:
    thread = threading.Thread(target=lambda: made(2.0).save(path))
    thread.start()
    thread.join()
    assert value_in(path) == 2.0


def test_threads_that_save_to_one_path_leave_a_whole_file(path: Path) -> None:
    errors: list[BaseException] = []

    def work(value: float) -> None:
        try:
            for _ in range(10):
                made(value).save(path)
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=work, args=(value,)) for value in (2.0, 3.0, 4.0)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert errors == []
    assert value_in(path) in (2.0, 3.0, 4.0)
    assert value_in(previous(path)) in (2.0, 3.0, 4.0)
    assert names(path.parent) == {path.name, previous(path).name}


# What stands beside the file ---------------------------------------------------------------------


def test_the_file_from_before_is_kept_and_named_if_the_new_one_is_damaged(path: Path) -> None:
    assert value_in(previous(path)) == 0.0
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"the file is damaged: .*run\.safetensors\.prev'"):
        value_in(path)
    previous(path).unlink()
    with pytest.raises(CheckpointError) as caught:
        value_in(path)
    assert ".prev" not in str(caught.value)


def test_the_file_from_before_need_not_be_kept(path: Path) -> None:
    made(2.0).save(path, keep_previous=False)
    assert (value_in(path), value_in(previous(path))) == (2.0, 0.0)
    alone = path.with_name("alone")
    for value in (1.0, 2.0):
        made(value).save(alone, keep_previous=False)
    assert not previous(alone).exists()


def test_without_hard_links_the_file_from_before_is_copied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    made(2.0).save(path)
    assert (value_in(path), value_in(previous(path))) == (2.0, 1.0)
    assert names(path.parent) == {path.name, previous(path).name}


def dead_process() -> int:
    done = script("import os; print(os.getpid())")
    return int(done.stdout)


def test_what_dead_processes_left_is_removed_and_nothing_else(path: Path) -> None:
    dead, random = dead_process(), "0123456789abcdef"
    stale = [
        f".{path.name}.tmp.{dead}.{random}",
        f".{path.name}.tmp.{os.getpid()}.{random}",  # of an earlier process of this number
        f".{path.name}.tmp.{'9' * 30}.{random}",
    ]
    others = [
        f".{path.name}.tmp.{os.getppid()}.{random}",  # alive
        f".{path.name}.tmp.{dead}.{random}.keep",
        f".{path.name}.tmp.{dead}.mine",
        f".{path.name}.tmp.{random}",
        f"{path.name}.tmp.{dead}.{random}",
        f".other.tmp.{dead}.{random}",
        f".run_safetensors.tmp.{dead}.{random}",
    ]
    for name in stale + others:
        (path.parent / name).write_text("x")
    made(2.0).save(path)
    assert names(path.parent) == {path.name, previous(path).name, *others}


def test_the_temporary_file_of_another_thread_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = file._compare

    def interleaved(temporary: Path, content: bytes) -> None:
        monkeypatch.setattr(file, "_compare", compare)
        made(2.0).save(path)
        compare(temporary, content)

    monkeypatch.setattr(file, "_compare", interleaved)
    made(3.0).save(path)
    assert (value_in(path), value_in(previous(path))) == (3.0, 2.0)


@pytest.mark.parametrize("existing", [True, False])
def test_a_link_is_followed_and_stays_a_link(existing: bool, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target, link = folder / "target", tmp_path / "link"
    if existing:
        made(7.0).save(target)
    link.symlink_to(target)
    made(8.0).save(link)
    assert link.is_symlink()
    assert (value_in(target), value_in(link)) == (8.0, 8.0)
    assert names(folder) == ({"target", "target.prev"} if existing else {"target"})
    target.write_bytes(b"x")
    hint = "target.prev" if existing else "no safetensors"
    with pytest.raises(CheckpointError, match=hint):
        value_in(link)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_file_has_the_permissions_of_any_new_file(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        made(1.0).save(tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


# What is no place for a file ---------------------------------------------------------------------


def places(folder: Path) -> Iterator[tuple[Any, type[Exception], str]]:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "file").write_text("x")
    yield folder / "folder", IsADirectoryError, "folder"
    yield folder / "pipe", OSError, "regular files only"
    yield folder / "missing" / "a", FileNotFoundError, "missing"
    yield folder / "file" / "a", NotADirectoryError, "file"
    yield b"bytes", TypeError, "bytes"
    yield 3, TypeError, "int"
    yield None, TypeError, "None"


def test_what_is_no_place_for_a_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    for place, kind, message in places(tmp_path):
        before = names(tmp_path)
        with pytest.raises(kind, match=message):
            made(1.0).save(place)
        assert names(tmp_path) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_cannot_be_opened_is_the_systems_own_error(tmp_path: Path) -> None:
    opt = made(1.0)
    with pytest.raises(FileNotFoundError, match="missing"):
        opt.load(tmp_path / "missing")
    for bad in (3, None, b"x"):
        with pytest.raises(TypeError, match=r"path must be text or a pathlib\.Path; got"):
            opt.load(bad)  # type: ignore[arg-type]  # that is tested
    for call in (opt.save, opt.load):
        with pytest.raises(ValueError, match="null character"):
            call(tmp_path / "a\0b")  # type: ignore[operator]  # two functions
        with pytest.raises(OSError, match="name too long"):
            call(tmp_path / ("x" * 300))  # type: ignore[operator]  # two functions
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(CheckpointError, match="no regular file"):
            opt.load(special)


def test_a_folder_is_said_to_be_one_with_the_checkpoints_in_it(tmp_path: Path) -> None:
    opt = made(1.0)
    with pytest.raises(CheckpointError, match="this is a folder; with no checkpoint"):
        opt.load(tmp_path)
    for number in range(5):
        opt.save(tmp_path / f"run{number}")
        os.utime(tmp_path / f"run{number}", (1000 + number, 1000 + number))
    opt.save(tmp_path / "run4")  # which leaves run4.prev
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "inner").mkdir()
    said = r"folder; load one of the checkpoints in it: 'run4', 'run3', 'run2' and 2 older ones\."
    with pytest.raises(CheckpointError, match=said) as caught:
        opt.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_other_programs_files_are_called_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "zip", x=np.ones(3))
    np.save(tmp_path / "npy", np.ones(3))
    (tmp_path / "pickle").write_bytes(pickle.dumps({"m": [1.0] * 20}))
    (tmp_path / "hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    found = {"zip.npz": "torch.load", "npy.npy": "numpy.save", "pickle": "pickle", "hdf5": "HDF5"}
    for name, said in found.items():
        with pytest.raises(CheckpointError, match=f"no safetensors file.* looks like .*{said}"):
            made(1.0).load(tmp_path / name)


@pytest.mark.parametrize("links", [True, False])
def test_whatever_gets_a_name_is_on_the_disk(
    links: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: dict[int, int] = {}  # by the file's number, how much of it
    named: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        state = os.fstat(descriptor)
        flushed[state.st_ino] = state.st_size

    def replaced(old: Path, new: Path) -> None:
        state = os.stat(old)
        if state.st_ino not in begun:
            assert flushed.get(state.st_ino) == state.st_size, f"{new} is not on the disk"
        named.append(Path(new).name)
        replace(old, new)

    if not links:
        failed = failing(os.link, 1, PermissionError(errno.EPERM, os.strerror(errno.EPERM)))
        monkeypatch.setattr(os, "link", failed)
    begun = {place.stat().st_ino for place in path.parent.iterdir()}  # by earlier saves
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    made(2.0).save(path)
    assert named == [previous(path).name, path.name]
    assert len(flushed) == (2 if links else 3)  # with the folder
    assert (value_in(path), value_in(previous(path))) == (2.0, 1.0)
