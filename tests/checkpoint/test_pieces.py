"""A checkpoint is written and read by pieces: the same bytes, errors and guarantees as at once."""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save
from test_atomic_file import KILLS, Stop, failing, made, names, previous, value_in
from test_damage import FOREIGN, FORGED, MUTATIONS, Json, Model, joined, parts, put, sealed

import fastopt
from fastopt.checkpoint import file
from fastopt.checkpoint.file import Content, Described, Pieces
from fastopt.errors import CheckpointError
from helpers.variants import script

Arrays = dict[str, np.ndarray[Any, Any]]

HEADERS = {"format_1": 100_000, "format_2": 15_000, "format_2_numbered": 6_000}
"""Bytes that hold all of what is drawn below, or no more than the names, or not even these."""


def described(arrays: Arrays) -> Described:
    return {key: (array.dtype.name, array.shape) for key, array in arrays.items()}


def pieces_of(manifest: Json, arrays: Arrays, size: int) -> Iterator[tuple[str, int, bytes]]:
    """Cut arrays into pieces of at most so many bytes, in the order of the file."""
    for key in file.order_of(manifest, described(arrays)):
        data = arrays[key].tobytes()
        for at in range(0, len(data), size):
            yield key, at, data[at : at + size]


def write(path: Path, content: Content, pieces: Pieces, keep_previous: bool = True) -> None:
    file.write_pieces(path, content.manifest, described(content.arrays), pieces, keep_previous)


def in_pieces(path: Path, content: Content, size: int) -> bytes:
    write(path, content, pieces_of(content.manifest, content.arrays, size))
    return path.read_bytes()


def format_of(packed: bytes) -> tuple[int, bool]:
    manifest = json.loads(parts(packed)[0]["__metadata__"]["fastopt"])
    return manifest["format_version"], manifest.get("numbered", False)


# The bytes ---------------------------------------------------------------------------------------

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
]


def drawn(seed: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    count = int(np.prod(shape)) * kind.itemsize
    data = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, count, np.uint8)
    return data.view(kind).reshape(shape)


some_arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map("note:".__add__),
    st.builds(
        drawn,
        st.integers(0, 99),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    max_size=12,
)


@given(some_arrays.filter(bool))  # of none safetensors 0.4.3 writes what is no JSON
def test_a_file_is_laid_out_as_safetensors_does_it(arrays: Arrays) -> None:
    packed = file.pack_arrays({"x": [1, "ü"]}, arrays)
    stored = {}
    for key, array in arrays.items():
        stored[key] = array
        if array.dtype.kind == "c":
            real = np.dtype(f"f{array.dtype.itemsize // 2}")
            stored[key] = array.reshape(-1).view(real).reshape(*array.shape, 2)
    metadata = parts(packed)[0]["__metadata__"]
    # safetensors writes the two entries of the metadata in a random order.
    assert any(save(stored, metadata) == packed for _ in range(100))


@pytest.mark.parametrize("form", HEADERS)
@settings(max_examples=50)
@given(arrays=some_arrays, size=st.integers(1, 40))
def test_pieces_of_any_size_end_in_the_bytes_of_a_file_written_at_once(
    arrays: Arrays, size: int, form: str, tmp_path: Path
) -> None:
    arrays["note:" + "y" * 8000] = np.ones(3)
    content = Content({"fastopt": "1", "notes": {"text": "x" * 3000}}, arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "LONGEST_HEADER", HEADERS[form])
        packed = content.packed()
        assert format_of(packed) == (1 if form == "format_1" else 2, form.endswith("numbered"))
        assert in_pieces(tmp_path / "a", content, size) == packed


def trained() -> Content:
    """Return all kinds of content there are: what is saved of a run in 8 bits, and notes."""
    rng = np.random.default_rng(0)
    params = {
        "W": rng.standard_normal((100, 80)).astype(np.float32),
        "half": rng.standard_normal(300).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.0, np.float32),
        "none": np.zeros((0, 3), np.float32),
        **{f"layer{k}": rng.standard_normal(3).astype(np.float32) for k in range(1500)},
    }
    opt = fastopt.Adam(params, lr=0.1, backend="numpy", state_dtype="int8")
    opt.step({name: np.ones_like(param) for name, param in params.items()})
    notes = {
        "z": np.array([1 + 2j]),
        "seen": np.array([True]),
        "x": np.ones(2),
        "empty": np.zeros((2, 0), "c8"),
    }
    return opt._detached(True, None, notes)


@pytest.fixture(scope="module")
def content() -> Content:
    return trained()


@pytest.mark.parametrize("size", [997, 1 << 20])
@pytest.mark.parametrize("most", [file.LONGEST_HEADER, 900_000])
def test_a_run_in_pieces_is_the_same_file_and_loads(
    size: int, most: int, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {a.dtype.name for a in content.arrays.values()} >= {
        *("uint8", "bfloat16", "float32", "float64", "complex64", "complex128", "bool")
    }
    assert len(content.arrays) > 3000
    monkeypatch.setattr(file, "LONGEST_HEADER", most)
    packed = in_pieces(tmp_path / "a", content, size)
    assert packed == content.packed()
    assert format_of(packed)[0] == (1 if most == 100_000_000 else 2)
    found = file.read(tmp_path / "a")
    assert found["params"]["half"].tobytes() == content.arrays["param:half"].tobytes()


def test_pieces_may_be_arrays_and_one_buffer_that_is_used_anew(tmp_path: Path) -> None:
    arrays = {"note:a": np.arange(12.0).reshape(3, 4), "note:b": drawn(0, "bfloat16", (8,))}
    content = Content({}, arrays)
    buffer = bytearray(32)

    def pieces() -> Iterator[tuple[str, int, Any]]:
        for row in range(3):
            buffer[:] = arrays["note:a"][row].tobytes()
            yield "note:a", 32 * row, buffer
        yield "note:b", 0, arrays["note:b"][:4]
        yield "note:b", 8, memoryview(arrays["note:b"][4:].view(np.int16))

    write(tmp_path / "a", content, pieces())
    assert (tmp_path / "a").read_bytes() == content.packed()


def test_a_dtype_without_a_place_is_refused_before_a_piece_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="note:a is of dtype float8_e5m2"):
        file.write_pieces(tmp_path / "a", {}, {"note:a": ("float8_e5m2", (3,))}, iter(()), True)
    assert names(tmp_path) == set()


# Pieces that are wrong, or do not come -----------------------------------------------------------

TWO = Content({}, {"note:a": np.arange(3.0), "note:b": np.zeros((0, 2)), "note:c": np.ones(2)})
A, C = TWO.arrays["note:a"].tobytes(), TWO.arrays["note:c"].tobytes()

WRONG: dict[str, tuple[list[tuple[str, int, bytes]], str]] = {
    "none": ([], r"'note:a' at 0, of which 24 bytes of 24 are to come; got the end"),
    "one_missing": ([("note:a", 0, A)], r"'note:c' at 0, .*; got the end"),
    "cut_off": ([("note:a", 0, A), ("note:c", 0, C[:9])], "'note:c' at 9, of which 7 bytes of 16"),
    "gap": (
        [("note:a", 0, A[:8]), ("note:a", 16, A[16:])],
        "at 8, .*got 8 bytes of 'note:a' at 16",
    ),
    "twice": ([("note:a", 0, A[:8]), ("note:a", 0, A[:8])], "at 8, .*got 8 bytes of 'note:a' at 0"),
    "begins_late": ([("note:a", 8, A[8:])], "'note:a' at 0"),
    "too_long": ([("note:a", 0, A + b"x")], "got 25 bytes of 'note:a' at 0"),
    "of_nothing": ([("note:a", 0, A), ("note:b", 0, b"x")], "got 1 bytes of 'note:b'"),
    "other_order": ([("note:c", 0, C), ("note:a", 0, A)], "'note:a' at 0, .*'note:c'"),
    "unknown": ([("note:a", 0, A), ("note:x", 0, C)], "got 16 bytes of 'note:x'"),
    "too_many": ([("note:a", 0, A), ("note:c", 0, C), ("note:c", 16, C)], "got 16 bytes"),
    "behind_all": ([("note:a", 0, A), ("note:c", 0, C), ("note:a", 0, A)], "'note:a' came behind"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that holds 1.0, with 0.0 before it, alone in its folder."""
    for value in (0.0, 1.0):
        made(value).save(tmp_path / "run.safetensors")
    return tmp_path / "run.safetensors"


def unchanged(path: Path) -> None:
    assert names(path.parent) == {path.name, previous(path).name}
    assert (value_in(path), value_in(previous(path))) == (1.0, 0.0)


@pytest.mark.parametrize("case", WRONG)
def test_pieces_in_another_order_are_an_error_that_says_which(case: str, path: Path) -> None:
    pieces, said = WRONG[case]
    with pytest.raises(AssertionError, match=said):
        write(path, TWO, pieces)
    unchanged(path)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("rank 2 is gone"), OSError(errno.EIO, "x"), Stop(), SystemExit()]
)
def test_what_the_pieces_raise_goes_through_as_it_is(error: BaseException, path: Path) -> None:
    content = made(2.0)._detached(True, None, None)
    count = len(list(pieces_of(content.manifest, content.arrays, 5)))
    assert count > 4
    before = str(error)
    for at in range(count + 1):

        def pieces(at: int = at) -> Iterator[tuple[str, int, bytes]]:
            every = pieces_of(content.manifest, content.arrays, 5)
            yield from (next(every) for _ in range(at))
            raise error

        with pytest.raises(type(error)) as caught:
            write(path, content, pieces())
        assert caught.value is error
        assert str(error) == before
        assert getattr(error, "filename", None) is None
        unchanged(path)
    in_pieces(path, content, 5)
    assert (value_in(path), value_in(previous(path))) == (2.0, 1.0)


# The disk ----------------------------------------------------------------------------------------


def contents(value: float, size: int = 3) -> Content:
    return made(value, size)._detached(True, None, None)


@pytest.mark.parametrize(
    ("name", "at"), [("fsync", 1), ("link", 1), ("replace", 1), ("replace", 2)]
)
def test_a_failure_before_the_end_keeps_the_old_file(
    name: str, at: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing(getattr(os, name), at, Stop()))
        with pytest.raises(Stop):
            in_pieces(path, contents(2.0), 7)
    assert names(path.parent) == {path.name, previous(path).name}
    assert value_in(path) == 1.0


def test_a_full_disk_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, 1, full))
        with pytest.raises(OSError, match="No space left") as caught:
            in_pieces(path, contents(2.0), 7)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    unchanged(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = contents(2.0, size=100_000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(OSError, match=r"run\.safetensors") as caught:
            in_pieces(path, big, 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    unchanged(path)


@pytest.mark.parametrize("most", [file.LONGEST_HEADER, 3000])
def test_what_reads_back_as_something_else_does_not_replace_the_old_file(
    most: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever byte it is, of the header, of the manifest, of an array, or behind the end."""
    fsync, content = os.fsync, contents(2.0)
    content.manifest["notes"] = {"text": "x" * 3000}
    monkeypatch.setattr(file, "LONGEST_HEADER", most)
    packed = content.packed()
    assert format_of(packed)[0] == (1 if most > 3000 else 2)
    damages = [*range(0, len(packed), 101), len(packed) - 1, len(packed), None]
    for at in damages:

        def bad_disk(descriptor: int, at: int | None = at) -> None:
            fsync(descriptor)
            size = os.fstat(descriptor).st_size
            if at is None:
                os.truncate(descriptor, size - 1)
            else:
                flipped = packed[at] ^ 1 if at < size else 0
                os.pwrite(descriptor, bytes([flipped]), at)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", bad_disk)
            with pytest.raises(OSError, match="reads back as something else"):
                in_pieces(path, content, 7)
        unchanged(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_what_is_no_place_for_a_file_is_refused_before_a_piece_is_asked_for(tmp_path: Path) -> None:
    def pieces() -> Iterator[Any]:
        yield from failing(list, 1, Stop())()

    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[Any, type[Exception], str]] = [
        (tmp_path, IsADirectoryError, "directory"),
        (tmp_path / "pipe", OSError, "regular files only"),
        (tmp_path / "missing" / "a", FileNotFoundError, "missing"),
        (3, TypeError, "path must be text"),
    ]
    for place, kind, said in cases:
        with pytest.raises(kind, match=said):
            write(place, TWO, pieces())
    assert names(tmp_path) == {"pipe"}


# Kill -9 -----------------------------------------------------------------------------------------

BY_PIECES = """
from fastopt.checkpoint import file

def save_by_pieces(opt, path, number):
    content = opt._detached(True, None, {"number": number})
    described = {k: (a.dtype.name, a.shape) for k, a in content.arrays.items()}

    def pieces():
        for key in file.order_of(content.manifest, described):
            data = content.arrays[key].tobytes()
            for at in range(0, len(data), 10_000):
                yield key, at, data[at : at + 10_000]

    file.write_pieces(path, content.manifest, described, pieces(), True)
"""


@pytest.mark.xdist_group("apart")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kill_9_at_random_moments_never_leaves_an_unreadable_or_half_new_file(
    tmp_path: Path,
) -> None:
    code = KILLS
    for plain, other in (
        ('opt.save(path, notes={"number": number})', "save_by_pieces(opt, path, number)"),
        ("while kills < 40 or began < 200:", "while kills < 30 or began < 90:"),
    ):
        assert code.count(plain) == 1
        code = code.replace(plain, other)
    done = script(BY_PIECES + code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    kills, hits, saves = map(int, done.stdout.split())
    assert kills >= 30
    assert hits >= kills / 4, "the kills did not hit the writing"
    assert saves >= 30


KILLED_AT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import fastopt
from fastopt.checkpoint import file

path, before = Path(sys.argv[1]) / "run", Path(sys.argv[1]) / "run.prev"
arrays = {"note:a": np.zeros(50), "note:b": np.zeros((20, 3), np.float32)}
described = {k: (a.dtype.name, a.shape) for k, a in arrays.items()}
seen = 0

def count():
    "Die where the write is for the last-th time at a place that changes what is on the disk."
    global seen
    seen += 1
    if seen == last:
        os.kill(os.getpid(), signal.SIGKILL)

def save(number):
    manifest = {"fastopt": "1", "params": None, "also": {}, "notes": {
        "number": number, "a": {"$array": "note:a"}, "b": {"$array": "note:b"}}}
    def pieces():
        for key in file.order_of(manifest, described):
            data = (arrays[key] + np.array(number, arrays[key].dtype)).tobytes()
            for at in range(0, len(data), 100):
                count()
                yield key, at, data[at : at + 100]
    file.write_pieces(path, manifest, described, pieces(), True)

def load(path):
    notes = file.read(path)["notes"]
    assert set(notes["a"]) == set(notes["b"].flat) == {notes["number"]}, "half new"
    return notes["number"]

for name in ("fsync", "link", "replace"):
    def counted(*given, _function=getattr(os, name)):
        count()
        _function(*given)
        count()
    setattr(os, name, counted)

last = 0
save(1)
save(2)
seen = 0
save(3)
places, found = seen, set()
for at in range(1, places + 2):
    last = 0
    save(4)
    save(5)
    assert sorted(os.listdir(path.parent)) == ["run", "run.prev"]
    child = os.fork()
    if child == 0:
        last, seen = at, 0
        save(6)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (at <= places)
    now = load(path), load(before)
    assert now in ((5, 4), (5, 5), (6, 5)), now
    found.add(now)
assert len(found) == 3, found
print(places)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kill_9_at_every_piece_and_at_every_change_of_a_name(tmp_path: Path) -> None:
    done = script(KILLED_AT, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8 + 2 * 4


# Memory ------------------------------------------------------------------------------------------

MEMORY = r"""
import re, sys
from pathlib import Path
import numpy as np
from fastopt.checkpoint import file

def peak():
    "Return the most memory there was so far, in MiB; resource knows that of the parent process."
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

count, piece = 200, 1 << 20
manifest = {"fastopt": "1", "params": None, "also": {}, "notes": {"a": {"$array": "note:a"}}}
described = {"note:a": ("float32", (count, piece // 4))}
block = np.arange(piece // 4, dtype=np.float32)

def pieces():
    for number in range(count):
        block[0] = number
        yield "note:a", number * piece, block

path = Path(sys.argv[1])
small = {"note:a": ("float32", (3,))}
file.write_pieces(path, manifest, small, [("note:a", 0, block[:3])], False)
with file.mapped(path) as content:
    assert content["notes"]["a"].shape == (3,)
before = peak()
file.write_pieces(path, manifest, described, pieces(), False)
written = peak()
with file.mapped(path) as content:
    array = content["notes"]["a"]
    assert array[150, 0] == 150 and array[7, 5] == 5
    del array
mapped = peak()
assert file.read(path)["notes"]["a"][199, 0] == 199
print(path.stat().st_size, before, written, mapped, peak())
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system does not say what is the most"
)
def test_200_mb_are_written_and_mapped_in_less_than_20(tmp_path: Path) -> None:
    done = script(MEMORY, str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    size, before, written, mapped, loaded = map(float, done.stdout.split())
    assert size > 200 * 2**20
    assert written - before < 20
    assert mapped - before < 20
    assert 195 < loaded - before < 230, "the file, and once"
    (tmp_path / "a").unlink()


# Reading without loading -------------------------------------------------------------------------


def arrays_in(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(inner)


@pytest.mark.parametrize("most", [file.LONGEST_HEADER, 900_000])
def test_what_is_mapped_is_what_is_read(
    most: int, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LONGEST_HEADER", most)
    (tmp_path / "a").write_bytes(content.packed())
    expected = file.read(tmp_path / "a")
    with file.mapped(tmp_path / "a") as found:
        np.testing.assert_equal(found, expected)
        for one, other in zip(arrays_in(found), arrays_in(expected), strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert not one.flags.writeable
            assert not one.flags.owndata
            assert other.flags.writeable
        kept = copy.deepcopy(found["params"]["W"])
        del one
    assert found == {}
    np.testing.assert_equal(kept, expected["params"]["W"])


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


needs_maps = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="this system does not say what is mapped"
)


@needs_maps
def test_the_mapping_ends_with_the_statement_or_with_the_last_array(path: Path) -> None:
    gc.disable()
    try:
        with file.mapped(path) as content:
            assert is_mapped(path)
        assert not is_mapped(path)
        with file.mapped(path) as content:
            kept = content["params"]["p"][1:]
        assert is_mapped(path)
        made(2.0).save(path)  # the file may be replaced meanwhile
        assert kept.tolist() == [1.0, 1.0]
        del kept
        assert not any(is_mapped(place) for place in (path, previous(path)))
        with pytest.raises(Stop), file.mapped(path):
            raise Stop
        assert not is_mapped(path)
    finally:
        gc.enable()


@needs_maps
def test_no_mapping_of_a_damaged_file_stays(path: Path) -> None:
    opt = fastopt.Adam({"a": np.ones(3), "b": np.zeros(3, np.float32)}, backend="numpy")
    opt.save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="the sha256 of") as caught, file.mapped(path):
        pass
    assert not is_mapped(path)
    del caught


# Damage ------------------------------------------------------------------------------------------


def outcome(path: Path, way: Callable[[Path], bytes]) -> str | bytes:
    try:
        return way(path)
    except CheckpointError as error:
        return str(error)


def read(path: Path) -> bytes:
    return looked_at(file.read(path))


def read_mapped(path: Path) -> bytes:
    with file.mapped(path) as content:
        return looked_at(content)


def looked_at(content: Json) -> bytes:
    return repr(content).encode() + b"".join(array.tobytes() for array in arrays_in(content))


def same_outcome(path: Path) -> str | bytes:
    """Return what comes of reading a file, which must be the same in both ways."""
    found = outcome(path, read)
    assert outcome(path, read_mapped) == found
    return found


@pytest.fixture(scope="module", params=["format_1", "format_2"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "LONGEST_HEADER", 1900 if request.param == "format_2" else 10**8)
        return Model(2.0, 3).save(tmp_path_factory.mktemp("good") / "run")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_damage_is_told_in_the_same_words(
    mutation: Callable[[bytes, np.random.Generator], bytes], good: bytes, tmp_path: Path
) -> None:
    rng, path = np.random.default_rng(2), tmp_path / "run"
    put(path, good)
    expected, refused = same_outcome(path), 0
    assert isinstance(expected, bytes)
    for _ in range(150):
        changed = mutation(good, rng)
        put(path, changed)
        found = same_outcome(path)
        if isinstance(found, str):
            assert str(path) in found
            refused += 1
            continue
        assert found == expected
        try:
            deserialize(changed)
        except SafetensorError as error:
            pytest.fail(f"safetensors itself refuses it: {error}")
    assert refused > 50


@pytest.mark.parametrize("name", [*FORGED, *FOREIGN])
def test_what_is_forged_or_foreign_is_told_in_the_same_words(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    packed = FOREIGN.get(name) or Model(2.0, 3).save(path)
    if name in FORGED:
        header, data = parts(packed)
        manifest = json.loads(header["__metadata__"]["fastopt"])
        FORGED[name][0](manifest)
        packed = sealed(header, manifest, data)
    put(path, FOREIGN.get(name, packed))
    found = same_outcome(path)
    if name in FOREIGN:
        assert isinstance(found, str)
        assert "this is no " in found


PLACES: dict[str, tuple[Callable[[Json], Any], str]] = {
    "gap": (lambda h: h["param:b"].update(data_offsets=[200, 224]), "not where the array before"),
    "overlap": (lambda h: h["param:b"].update(data_offsets=[0, 24]), "not where the array before"),
    "backwards": (lambda h: h["param:none"].update(data_offsets=[24, 0]), "not where the array"),
    "negative": (lambda h: h["param:b"].update(data_offsets=[-24, 0]), "data_offsets of 'param:b'"),
    "text": (lambda h: h["param:b"].update(data_offsets="ab"), "data_offsets of 'param:b'"),
    "three": (lambda h: h["param:b"].update(data_offsets=[0, 24, 24]), "data_offsets of 'param:b'"),
    "real": (lambda h: h["param:b"].update(data_offsets=[0.0, 24.0]), "data_offsets of 'param:b'"),
    "none": (lambda h: h["param:b"].pop("data_offsets"), "data_offsets of 'param:b' are None"),
    "no_entry": (lambda h: h.update({"param:b": 3}), "data_offsets of 'param:b' are None"),
    "no_shape": (lambda h: h["param:b"].pop("shape"), r"param:b is F64 None, not float64 \(3,\)"),
    "no_dtype": (lambda h: h["param:b"].pop("dtype"), r"param:b is None \[3\], not float64"),
    "one_more": (
        lambda h: h.update(x={"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}),
        "not those of the manifest",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_header_that_does_not_fit_is_told_by_what_is_wrong(case: str, tmp_path: Path) -> None:
    header, data = parts(Model(2.0, 3).save(tmp_path / "run"))
    change, said = PLACES[case]
    change(header)
    put(tmp_path / "run", joined(header, data))
    with pytest.raises(CheckpointError, match=said):
        file.read(tmp_path / "run")
    same_outcome(tmp_path / "run")


def test_a_last_array_that_ends_before_the_file_is_refused(tmp_path: Path) -> None:
    header, data = parts(file.pack_arrays({}, {"note:a": np.ones(2), "note:b": np.ones(2)}))
    header["note:b"]["data_offsets"] = [16, 24]
    put(tmp_path / "run", joined(header, data))
    with pytest.raises(CheckpointError, match="the last array ends 8 bytes before the file"):
        file.read(tmp_path / "run")


def test_signals_wait_until_the_file_is_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, seen = os.replace, []

    def signalled(*given: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        assert seen == []
        replace(*given)

    before = signal.signal(signal.SIGINT, lambda *_: seen.append(value_in(path)))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", signalled)
            in_pieces(path, contents(2.0), 7)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [2.0]
