"""Files that are damaged, foreign, newer or forged: a CheckpointError, and nothing has changed."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import fastopt
from fastopt.checkpoint import file as checkpoint_file
from fastopt.checkpoint.file import FORMAT
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.make_checkpoint import described, trees

Json = dict[str, Any]


class Count:
    """A companion that checks nothing but the kind of what it gets."""

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "seen": np.full(2, self.number)}

    def _restorer(self, saved: Mapping[str, Any]) -> Callable[[], None]:
        if not isinstance(saved, Mapping) or not isinstance(saved.get("number"), int):
            raise CheckpointError("a Count holds a number")

        def commit() -> None:
            self.number = saved["number"]

        return commit


class Model:
    """An optimizer with parameters and a companion, of which everything can be looked at."""

    def __init__(self, value: float, steps: int) -> None:
        self.params: dict[str, Any] = {
            "W": np.full((2, 3), value, np.float32),
            "b": np.full(3, -value),
            "none": np.zeros((0, 2)),
        }
        self.opt: Optimizer = fastopt.Adam(self.params, lr=0.1 * value, backend="numpy")
        self.count = Count(steps)
        for _ in range(steps):
            self.opt.step(copy.deepcopy(self.params))

    def save(self, path: Path) -> bytes:
        self.opt.save(path, also={"count": self.count}, notes={"epoch": 3, "x": [0.1, (1, "a")]})
        return path.read_bytes()

    def load(self, path: Path) -> fastopt.LoadReport:
        return self.opt.load(path, also={"count": self.count})

    def look(self) -> bytes:
        state = self.opt.state_dict()
        arrays = [
            *self.params.values(),
            *(e[slot] for e in state.pop("state").values() for slot in "mv"),
        ]
        return (
            b"".join(map(bytes, (a.tobytes() for a in arrays)))
            + repr((state, self.count.number)).encode()
        )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Model(2.0, 3).save(tmp_path_factory.mktemp("good") / "run")


def parts(content: bytes) -> tuple[Json, bytes]:
    """Return a file's header and data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def sealed(header: Json, manifest: Any, data: bytes) -> bytes:
    """Return a file with another manifest, and the hash that belongs to it."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    metadata = {**header["__metadata__"], "fastopt": text, "fastopt_sha256": digest}
    return joined({**header, "__metadata__": metadata}, data)


def refused(content: bytes, path: Path, *parts: str) -> None:
    path.write_bytes(content)
    model = Model(5.0, 1)
    before = model.look()
    with pytest.raises(CheckpointError) as caught:
        model.load(path)
    assert model.look() == before
    for part in (str(path), *parts):
        assert part in str(caught.value)


def put(path: Path, content: bytes) -> None:
    """Write a file that no disk is waited for: a truncated one would be flushed by ext4."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


# Whatever happens to the bytes -------------------------------------------------------------------


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_in_front(content: bytes, rng: np.random.Generator) -> bytes:
    return flip(content[:64], rng) + content[64:]


def span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(content)))
    return start, min(len(content), start + int(rng.integers(1, 200)))


def cut_off(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def delete(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = span(content, rng)
    return content[:start] + content[stop:]


def insert(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = span(content, rng)
    return content[:start] + rng.bytes(stop - start) + content[start:]


def repeat(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = span(content, rng)
    return content[:stop] + content[start:]


def overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = span(content, rng)
    return content[:start] + bytes([int(rng.integers(256))]) * (stop - start) + content[stop:]


def another_length(content: bytes, rng: np.random.Generator) -> bytes:
    length = int(rng.integers(0, 2 ** int(rng.integers(1, 63))))
    return length.to_bytes(8, "little") + content[8:]


def swap_entries(content: bytes, rng: np.random.Generator) -> bytes:
    header, data = parts(content)
    one, two = rng.choice(list(header), 2)
    header[one], header[two] = header[two], header[one]
    return joined(header, data)


def swap_fields(content: bytes, rng: np.random.Generator) -> bytes:
    header, data = parts(content)
    one, two = rng.choice([key for key in header if key != "__metadata__"], 2)
    field = str(rng.choice(["dtype", "shape", "data_offsets"]))
    header[one][field], header[two][field] = header[two][field], header[one][field]
    return joined(header, data)


def edit_text(content: bytes, rng: np.random.Generator) -> bytes:
    """Change characters of the header, and let its length be right."""
    length = int.from_bytes(content[:8], "little")
    text = bytearray(content[8 : 8 + length])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(text)))
        text[at : at + int(rng.integers(3))] = rng.choice(
            list(b'{}[]",:0123456789-.eE\\ \n')
        ).tobytes()[:1]
    return joined(bytes(text), content[8 + length :])


MUTATIONS = [
    *(flip, flip_in_front, cut_off, delete, insert, repeat, overwrite),
    *(another_length, swap_entries, swap_fields, edit_text),
]
COUNT = 900  # of each: 9900 in all, and 1100 forged ones below


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_damaged_file_is_refused_or_means_the_same(
    mutation: Callable[[bytes, np.random.Generator], bytes], good: bytes, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    path, model, loaded = tmp_path / "run", Model(5.0, 1), 0
    other, same = model.look(), Model(2.0, 3).look()
    for number in range(COUNT):
        put(path, mutation(good, rng))
        try:
            report = model.load(path)
        except CheckpointError:
            assert model.look() == other, f"mutation {number} was loaded in part"
            continue
        assert model.look() == same, f"mutation {number} was loaded as something else"
        assert report.notes == {"epoch": 3, "x": [0.1, (1, "a")]}
        loaded += 1
        model = Model(5.0, 1)
    assert loaded < COUNT / 2, "hardly anything was damaged"


@pytest.fixture(scope="module")
def good_of_format_2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_file, "LONGEST_HEADER", 1900)
        return Model(2.0, 3).save(tmp_path_factory.mktemp("good") / "run")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_so_is_a_damaged_file_of_format_2(
    mutation: Callable[[bytes, np.random.Generator], bytes],
    good_of_format_2: bytes,
    tmp_path: Path,
) -> None:
    rng, path, model = np.random.default_rng(1), tmp_path / "run", Model(5.0, 1)
    other, same, refusals = model.look(), Model(2.0, 3).look(), 0
    for number in range(100):
        put(path, mutation(good_of_format_2, rng))
        try:
            model.load(path)
        except CheckpointError:
            assert model.look() == other, f"mutation {number} was loaded in part"
            refusals += 1
            continue
        assert model.look() == same, f"mutation {number} was loaded as something else"
        model = Model(5.0, 1)
    assert refusals >= 30


@pytest.mark.parametrize(
    "change",
    [
        *({"bytes": junk} for junk in (None, -1, 0, 2**70, "9", 1.5)),
        *({"length": junk} for junk in (None, -1, 0, 2**70, "9", [1])),
        *({"sha256": junk} for junk in (None, "", 3)),
        *({"numbered": junk} for junk in (None, False)),
    ],
    ids=str,
)
def test_what_describes_a_manifest_that_is_an_array_must_be_true(
    change: Json, good_of_format_2: bytes, tmp_path: Path
) -> None:
    header, data = parts(good_of_format_2)
    about = json.loads(header["__metadata__"]["fastopt"])
    assert about["numbered"]
    forged = sealed(header, {**about, **change}, data)
    refused(forged, tmp_path / "a", "damaged")


JUNK = [None, True, -1, 0, 2**70, 0.5, 1e400, "", "F32", [], [[]], {}, {"$array": "param:W"}]
JUNK += [{"$array": [1]}, {"$tuple": 3}, {"$float": "nan"}, {"$float": 3}, {"$dict": 3}, {"$x": 1}]
JUNK += [{"$array": "param:b"}, {"$dict": {"$array": 1}}, {"step": 1}, [2**62, 2**62], [-1]]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value in nested JSON."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def test_a_forged_manifest_is_refused_or_loaded_and_never_breaks_anything(
    good: bytes, tmp_path: Path
) -> None:
    header, data = parts(good)
    manifest = json.loads(header["__metadata__"]["fastopt"])
    everywhere = places(manifest)[1:]
    rng = np.random.default_rng(0)
    path, model = tmp_path / "run", Model(5.0, 1)
    other, outcomes = model.look(), {"refused": 0, "loaded": 0}
    for _ in range(1100):
        forged = copy.deepcopy(manifest)
        place = everywhere[rng.integers(len(everywhere))]
        inner = forged
        for key in place[:-1]:
            inner = inner[key]
        if rng.random() < 0.2 and isinstance(inner, dict):
            del inner[place[-1]]
        else:
            inner[place[-1]] = JUNK[rng.integers(len(JUNK))]
        put(path, sealed(header, forged, data))
        try:
            model.load(path)
        except CheckpointError:
            assert model.look() == other, (place, "was loaded in part")
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            model = Model(5.0, 1)
    assert outcomes["refused"] > 400


# What it is, said in words -----------------------------------------------------------------------


def test_a_newer_format_says_what_to_use(good: bytes, tmp_path: Path) -> None:
    header, data = parts(good)
    manifest = json.loads(header["__metadata__"]["fastopt"])
    newer = {**manifest, "format_version": 3, "fastopt": "9.1"}
    refused(sealed(header, newer, data), tmp_path / "a", "format 3", "fastopt 9.1", "newer fastopt")
    for version in (0, -1, True, 1.0, "1", None):
        forged = {**manifest, "format_version": version}
        refused(sealed(header, forged, data), tmp_path / "a", f"format_version is {version!r}")


def test_a_manifest_and_arrays_of_two_files_are_seen_not_to_belong_together(
    good: bytes, tmp_path: Path
) -> None:
    header, data = parts(good)
    other, _ = parts(Model(3.0, 3).save(tmp_path / "b"))
    mixed = {**header, "__metadata__": other["__metadata__"]}
    refused(joined(mixed, data), tmp_path / "a", "the sha256 of", "is another")
    for key, value in (("fastopt_sha256", "0" * 64), ("fastopt_sha256", None), ("fastopt", "{}")):
        metadata = {**header["__metadata__"], key: value}
        refused(joined({**header, "__metadata__": metadata}, data), tmp_path / "a", "manifest")


FORGED: dict[str, tuple[Callable[[Json], Any], str]] = {
    "no_arrays": (lambda m: m.pop("arrays"), "lists no arrays"),
    "array_fewer": (lambda m: m["arrays"].pop("param:none"), "not those of the manifest"),
    "dtype": (lambda m: m["arrays"]["param:W"].update(dtype="int32"), "not int32"),
    "dtype_unknown": (lambda m: m["arrays"]["param:W"].update(dtype="O"), "of dtype 'O'"),
    "dtype_list": (lambda m: m["arrays"]["param:W"].update(dtype=[]), "of dtype []"),
    "shape": (lambda m: m["arrays"]["param:W"].update(shape=[3, 2]), "not float32 (3, 2)"),
    "shape_huge": (lambda m: m["arrays"]["param:W"].update(shape=[2**62] * 4), "cut off"),
    "shape_long": (lambda m: m["arrays"]["param:W"].update(shape=[1] * 65), "of shape"),
    "shape_negative": (lambda m: m["arrays"]["param:W"].update(shape=[-2, -3]), "of shape"),
    "no_sha256": (lambda m: m["arrays"]["param:W"].pop("sha256"), "no sha256"),
    "unknown_array": (lambda m: m["params"].update(W={"$array": "x"}), "damaged"),
    "wrong_array": (lambda m: m["params"].update(W={"$array": "param:b"}), "param:W: expected"),
    "no_params": (lambda m: m.pop("params"), "params"),
    "param_number": (lambda m: m["params"].update(W=3), "param:W: expected an array"),
    "params_list": (lambda m: m.update(params=[]), "params"),
    "notes_list": (lambda m: m.update(notes=[]), "notes"),
    "also_none": (lambda m: m.update(also=None), "also"),
    "state_none": (lambda m: m.update(state=None), "state"),
    "step_negative": (lambda m: m["state"]["W"].update(step=-1), "step"),
    "typo": (lambda m: m["groups"][0].update(weight_decy=0.1), "did you mean 'weight_decay'"),
    "group_missing": (lambda m: m.update(groups=[]), "1 parameter groups"),
    "lr_nan": (lambda m: m["groups"][0].update(lr={"$float": "nan"}), "lr must be"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_manifest_is_told_by_what_is_wrong(name: str, good: bytes, tmp_path: Path) -> None:
    header, data = parts(good)
    manifest = json.loads(header["__metadata__"]["fastopt"])
    change, message = FORGED[name]
    change(manifest)
    refused(sealed(header, manifest, data), tmp_path / "a", message)


@pytest.mark.parametrize("key", ["param:W", "param:none"])
@pytest.mark.parametrize("value", [None, "", 0, 1, False, True, [], {}, 1.5, "0" * 64, "sha256"])
def test_an_array_without_its_own_sha256_is_refused(
    value: Any, key: str, good: bytes, tmp_path: Path
) -> None:
    header, data = parts(good)
    manifest = json.loads(header["__metadata__"]["fastopt"])
    assert len(manifest["arrays"][key]["sha256"]) == 64
    manifest["arrays"][key]["sha256"] = value
    said = "the sha256 of" if isinstance(value, str) else f"{key} has no sha256"
    refused(sealed(header, manifest, data), tmp_path / "a", said)


def test_every_array_of_a_file_has_its_sha256(good: bytes) -> None:
    header, data = parts(good)
    described = json.loads(header["__metadata__"]["fastopt"])["arrays"]
    assert described.keys() == header.keys() - {"__metadata__"}
    for key, entry in described.items():
        first, last = header[key]["data_offsets"]
        assert entry["sha256"] == hashlib.sha256(data[first:last]).hexdigest(), key


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "3", "NaN", '{"format_version": NaN}', "[" * 10**5]
)
def test_a_manifest_that_is_no_json_object_is_refused(
    text: str, good: bytes, tmp_path: Path
) -> None:
    header, data = parts(good)
    refused(sealed(header, text, data), tmp_path / "a", "damaged")


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "short": b"1234567",
    "text": b"loss,epoch\n1,2\n" * 10,
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": pickle.dumps({"optimizer": "Adam", "state": np.ones(3)}),
    "zeros": bytes(1000),
    "length_alone": (0).to_bytes(8, "little"),
    "length_too_large": (100_000_001).to_bytes(8, "little") + bytes(10),
    "length_past_the_end": (1000).to_bytes(8, "little") + b"{}",
    "no_object": joined([], b""),
    "nested": joined(b"[" * 10**5, b""),
    "empty_object": joined({}, b""),
    "metadata_text": joined({"__metadata__": "fastopt"}, b""),
    "metadata_list": joined({"__metadata__": {"fastopt": ["{}"]}}, b""),
    "other_model": save({"W": np.ones(3)}),
    "other_model_with_metadata": save({"W": np.ones(3)}, {"format": "pt"}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_said_to_be_none_of_ours(name: str, tmp_path: Path) -> None:
    refused(FOREIGN[name], tmp_path / "a", "this is no ")


def test_a_huge_foreign_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write((50).to_bytes(8, "little") + b" " * 50)
        file.truncate(2**40)  # sparse: it takes no place on the disk
    with pytest.raises(CheckpointError, match="no safetensors"):
        Model(5.0, 1).load(tmp_path / "a")


def test_a_file_that_was_written_anew_by_other_tools_means_the_same(
    good: bytes, tmp_path: Path
) -> None:
    from safetensors import safe_open

    (tmp_path / "a").write_bytes(good)
    with safe_open(tmp_path / "a", framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in sorted(file.keys(), reverse=True)}
        metadata = {"tool": "another", **file.metadata()}
    save_file(arrays, tmp_path / "b", metadata)
    model = Model(5.0, 1)
    model.load(tmp_path / "b")
    assert model.look() == Model(2.0, 3).look()


# Files of old versions ---------------------------------------------------------------------------

DATA = Path(__file__).parents[1] / "data"
OLD = sorted(DATA.glob("checkpoint_*.json"))


def test_there_is_an_old_checkpoint_of_every_format() -> None:
    assert [path.stem for path in OLD] == [f"checkpoint_{n}" for n in range(1, FORMAT + 1)]


@pytest.mark.parametrize("recorded", OLD, ids=lambda path: path.stem)
def test_checkpoints_of_every_format_stay_loadable_bit_for_bit(recorded: Path) -> None:
    expected = json.loads(recorded.read_text(encoding="utf-8"))
    groups = [{"params": tree} for tree in trees(np.zeros)]
    opt = fastopt.Adam(groups, amsgrad=True)
    count = Count(0)
    report = opt.load(recorded.with_suffix(".safetensors"), also={"count": count})
    assert (report.version, report.params) == (expected["version"], True)
    assert count.number == expected["count"]
    now = described(opt, report.notes)
    for name in ("step_count", "steps", "notes", "arrays"):
        assert now[name] == expected[name]
    for group, saved in zip(now["groups"], expected["groups"], strict=True):
        assert saved.items() <= group.items()  # a later version may have more hyperparameters
