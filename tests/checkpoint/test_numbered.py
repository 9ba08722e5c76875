"""Numbered checkpoints: the newest are kept, in the background too, whatever kills a process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_save_load import Memo

import fastopt
from fastopt.checkpoint import file
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.variants import script


class Run:
    """An optimizer whose parameter says how many steps it has made."""

    def __init__(self, size: int = 3) -> None:
        self.params = {"p": np.zeros(size)}
        self.opt: Optimizer = fastopt.SGD(self.params, 1.0, momentum=0.5, backend="numpy")

    def go(self, steps: int) -> Run:
        for _ in range(steps):
            self.opt.step({"p": np.zeros_like(self.params["p"])})
        self.params["p"][...] = self.opt.step_count
        return self


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, in the order of their names."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    assert all(name.endswith(".safetensors") for name in names), names
    return [int(name.split("-")[1]) for name in names]


def loaded(folder: Path) -> int:
    """Return the step of the newest checkpoint, which must hold one step's values alone."""
    run = Run()
    report = fastopt.Checkpoints(folder).load(run.opt)
    assert report is not None
    assert run.params["p"].tolist() == [report.step_count] * 3
    assert run.opt.step_count == report.step_count
    return report.step_count


def test_the_newest_are_kept_in_the_order_of_their_names(tmp_path: Path) -> None:
    run, checkpoints = Run(), fastopt.Checkpoints(tmp_path / "new" / "runs", keep=2)
    for expected in ([3], [3, 6], [6, 9], [9, 12]):
        path = checkpoints.save(run.go(3).opt)
        assert path.is_file()
        assert steps_in(tmp_path / "new" / "runs") == expected
        assert checkpoints.latest() == path
    assert loaded(tmp_path / "new" / "runs") == 12
    assert path.name.startswith("step-000000000012-")


def test_where_there_is_nothing_nothing_is_made_or_loaded(tmp_path: Path) -> None:
    checkpoints = fastopt.Checkpoints(tmp_path / "a")
    assert checkpoints.latest() is None
    assert checkpoints.load(Run().opt) is None
    assert os.listdir(tmp_path) == []
    (tmp_path / "step-000000000001.safetensors").write_text("of somebody else")
    assert fastopt.Checkpoints(tmp_path).latest() is None


def test_what_save_takes_is_passed_on(tmp_path: Path) -> None:
    run, memo = Run().go(2), Memo(1.5)
    checkpoints = fastopt.Checkpoints(tmp_path)
    checkpoints.save(run.opt, params=False, also={"memo": memo}, notes={"epoch": 3})
    later, other = Run(), Memo()
    report = checkpoints.load(later.opt, also={"memo": other})
    assert report is not None
    assert (report.notes, report.also, report.params) == ({"epoch": 3}, ("memo",), False)
    assert other.number == 1.5
    with pytest.raises(CheckpointError, match="also="):
        checkpoints.load(later.opt)
    assert checkpoints.load(later.opt, strict=False) is not None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_what_is_damaged_is_skipped_and_said(damage: str, tmp_path: Path) -> None:
    run, checkpoints = Run(), fastopt.Checkpoints(tmp_path)
    paths = [checkpoints.save(run.go(1).opt) for _ in range(3)]

    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[damage])

    spoil(paths[2])
    with pytest.warns(RuntimeWarning, match=f"skipped.*{paths[2].name}"):
        assert checkpoints.latest() == paths[1]
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert loaded(tmp_path) == 2
    for path in paths[:2]:
        spoil(path)
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert checkpoints.latest() is None
    with (
        pytest.warns(RuntimeWarning, match="skipped"),
        pytest.raises(CheckpointError, match="none of the 3 checkpoints"),
    ):
        checkpoints.load(Run().opt)


def test_one_that_does_not_fit_is_an_error_and_not_skipped(tmp_path: Path) -> None:
    fastopt.Checkpoints(tmp_path).save(Run().go(1).opt)
    with pytest.raises(CheckpointError, match=r"\(4,\)"):
        fastopt.Checkpoints(tmp_path).load(Run(size=4).opt)


def test_a_run_that_goes_back_is_told_once_and_loses_nothing_it_wrote(tmp_path: Path) -> None:
    checkpoints = fastopt.Checkpoints(tmp_path, keep=2)
    run = Run()
    for _ in range(2):
        checkpoints.save(run.go(10).opt)
    back, again = Run().go(1), fastopt.Checkpoints(tmp_path, keep=2)
    with pytest.warns(RuntimeWarning, match="of step 1, and .*000020.* of a later one"):
        written = again.save(back.opt)
    assert written.is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = again.save(back.go(1).opt)
    assert written.is_file()
    assert steps_in(tmp_path)[-1] == 20


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


EARLIER = """
import sys
from pathlib import Path
from test_numbered import Run
import fastopt

run, checkpoints = Run(), fastopt.Checkpoints(sys.argv[1], keep=2)
for step in map(int, sys.argv[2:]):
    checkpoints.save(run.go(step - run.opt.step_count).opt)
"""


def earlier(folder: Path, *steps: int) -> list[Path]:
    """Return the checkpoints that a process which has ended has left, of its last two steps."""
    done = script(EARLIER, str(folder), *map(str, steps))
    assert done.returncode == 0, done.stderr
    return sorted(folder.glob("*.safetensors"))


def test_one_that_is_damaged_takes_no_place_among_those_that_are_kept(tmp_path: Path) -> None:
    cut(earlier(tmp_path, 1, 2, 3, 4, 5)[-1])
    run, checkpoints = Run(), fastopt.Checkpoints(tmp_path, keep=2)
    with pytest.warns(RuntimeWarning, match="skipped"):
        checkpoints.load(run.opt)
    assert run.opt.step_count == 4
    checkpoints.save(run.go(1).opt)
    assert steps_in(tmp_path) == [4, 5, 5]
    checkpoints.save(run.go(1).opt)  # two that are whole are newer than the damaged one now
    assert steps_in(tmp_path) == [5, 6]
    assert loaded(tmp_path) == 6


def test_one_that_is_damaged_while_the_run_goes_on_takes_no_place_either(tmp_path: Path) -> None:
    run, checkpoints = Run(), fastopt.Checkpoints(tmp_path, keep=2)
    paths = [checkpoints.save(run.go(1).opt) for _ in range(3)]
    cut(paths[2])
    checkpoints.save(run.go(1).opt, background=True)
    checkpoints.wait()
    assert steps_in(tmp_path) == [2, 3, 4]


def test_a_damaged_one_of_a_later_step_is_neither_counted_nor_called_the_newest(
    tmp_path: Path,
) -> None:
    left = earlier(tmp_path, 8, 9)
    cut(left[1])
    left[0].unlink()
    run, checkpoints = Run(), fastopt.Checkpoints(tmp_path, keep=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            path = checkpoints.save(run.go(1).opt)
    assert steps_in(tmp_path) == [2, 3, 9]
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert checkpoints.latest() == path


def test_the_later_one_that_is_named_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    left = earlier(tmp_path, 8, 9)
    cut(left[1])
    checkpoints = fastopt.Checkpoints(tmp_path, keep=2)
    with pytest.warns(RuntimeWarning, match=f"{left[0].name}.* of a later one"):
        checkpoints.save(Run().go(1).opt)
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert checkpoints.latest() == left[0]


def test_what_was_written_or_read_already_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = earlier(tmp_path, 1, 2)
    read: list[Path] = []
    original = file.read

    def spied(path: Path) -> dict[str, Any]:
        read.append(path)
        return original(path)

    monkeypatch.setattr(file, "read", spied)
    run, checkpoints = Run().go(2), fastopt.Checkpoints(tmp_path, keep=3)
    checkpoints.save(run.go(1).opt)  # nothing is to be removed
    assert read == []
    for _ in range(3):
        checkpoints.save(run.go(1).opt)
    assert read == [left[1]]
    assert steps_in(tmp_path) == [4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"folder": 3}, TypeError, "got int"),
        ({"folder": "a\0b"}, ValueError, "null character"),
        ({"folder": "a", "keep": 0}, ValueError, "keep must be a whole number from 1 on; got 0"),
        ({"folder": "a", "keep": 2.5}, TypeError, "keep must be"),
        ({"folder": "a", "name": "a/b"}, ValueError, "name must be made of letters"),
        ({"folder": "a", "name": ""}, ValueError, "name must be made of letters"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        fastopt.Checkpoints(**arguments)


def test_what_stands_around_an_optimizer_is_no_optimizer(tmp_path: Path) -> None:
    run = Run()
    for wrong in (fastopt.EMA(run.params), run.params, None):
        with pytest.raises(TypeError, match=r"got (EMA|dict|NoneType).*also="):
            fastopt.Checkpoints(tmp_path).save(wrong)  # type: ignore[arg-type]  # that is tested
    assert os.listdir(tmp_path) == []


# In the background -------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits for this event."""
    go_on, replace = threading.Event(), file.replace_file

    def waits(*given: Any, **named: Any) -> None:
        assert go_on.wait()
        replace(*given, **named)

    monkeypatch.setattr(file, "replace_file", waits)
    return go_on


def test_steps_go_on_while_the_state_from_before_is_written(
    held: threading.Event, tmp_path: Path
) -> None:
    run, checkpoints, memo = Run().go(4), fastopt.Checkpoints(tmp_path), Memo(1.0)
    notes = {"seen": np.ones(2)}
    path = checkpoints.save(run.opt, notes=notes, also={"memo": memo}, background=True)
    run.go(3)
    notes["seen"][...] = memo.average["W"][...] = 9.0
    assert not path.exists()
    held.set()
    checkpoints.wait()
    later, other = Run(), Memo()
    report = later.opt.load(path, also={"memo": other})
    assert (report.step_count, later.params["p"].tolist()) == (4, [4.0] * 3)
    assert report.notes["seen"].tolist() == other.average["W"].tolist() == [1.0, 1.0]
    assert run.opt.step_count == 7


@pytest.mark.parametrize("call", ["save", "latest", "load"])
def test_what_comes_next_waits_for_what_was_begun(
    call: str, held: threading.Event, tmp_path: Path
) -> None:
    run, checkpoints, done = Run().go(1), fastopt.Checkpoints(tmp_path), threading.Event()
    checkpoints.save(run.opt, background=True)
    run.go(1)

    def next_call() -> None:
        getattr(checkpoints, call)(*[run.opt] * (call != "latest"))
        done.set()

    thread = threading.Thread(target=next_call)
    thread.start()
    assert not done.wait(0.1)
    held.set()
    thread.join()
    assert done.is_set()
    assert steps_in(tmp_path) == ([1, 2] if call == "save" else [1])
    assert run.opt.step_count == (1 if call == "load" else 2)


@pytest.mark.parametrize("background", [True, False])
def test_an_error_is_raised_once_and_nothing_is_removed(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checkpoints = Run(), fastopt.Checkpoints(tmp_path, keep=1)
    checkpoints.save(run.go(1).opt)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        checkpoints.save(run.go(1).opt, background=background)
        checkpoints.wait()

    with monkeypatch.context() as patch:
        patch.setattr(file, "replace_file", full)
        with pytest.raises(OSError, match="No space left"):
            fail()
        checkpoints.wait()
        if background:
            checkpoints.save(run.go(1).opt, background=True)
            assert loaded(tmp_path) == 1
            with pytest.raises(OSError, match="No space left"):
                checkpoints.save(run.opt)
    assert steps_in(tmp_path) == [1]
    checkpoints.save(run.opt, background=background)
    checkpoints.wait()
    assert steps_in(tmp_path) == [run.opt.step_count]


AT_THE_END = """
import sys, time
import numpy as np
import fastopt
from fastopt.checkpoint import file

replace = file.replace_file

def slow(*given, **named):
    time.sleep(0.3)
    if sys.argv[2] == "fails":
        raise OSError(28, "No space left on device")
    replace(*given, **named)

file.replace_file = slow
opt = fastopt.SGD(np.ones(3), backend="numpy")
opt.step(np.ones(3))
checkpoints = fastopt.Checkpoints(sys.argv[1])
checkpoints.save(opt, background=True)
"""


def test_the_end_of_the_process_waits_and_prints_what_went_wrong(tmp_path: Path) -> None:
    done = script(AT_THE_END, str(tmp_path), "works")
    assert (done.returncode, done.stderr) == (0, "")
    assert steps_in(tmp_path) == [1]
    assert fastopt.Checkpoints(tmp_path).latest() is not None
    assert "No space left" in script(AT_THE_END, str(tmp_path), "fails").stderr


def test_threads_that_save_at_once_leave_whole_files(tmp_path: Path) -> None:
    checkpoints, errors = fastopt.Checkpoints(tmp_path, keep=50), []

    def work(first: int) -> None:
        try:
            run = Run().go(first)
            for _ in range(5):
                checkpoints.save(run.go(3).opt, background=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that come out of order
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    checkpoints.wait()
    assert errors == []
    assert steps_in(tmp_path) == list(range(3, 18))
    for path in sorted(tmp_path.glob("*.safetensors")):
        run = Run()
        report = run.opt.load(path)
        assert run.params["p"].tolist() == [report.step_count] * 3


# Whose files -------------------------------------------------------------------------------------


def test_two_in_one_folder_leave_each_others_alone(tmp_path: Path) -> None:
    one, two = (fastopt.Checkpoints(tmp_path, keep=2) for _ in range(2))
    first, second = Run(), Run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(4):
            one.save(first.go(100).opt)
            if number < 3:
                two.save(second.go(1).opt)
    assert steps_in(tmp_path) == [2, 3, 300, 400]
    two.save(second.go(397).opt)  # the same step as the other's
    assert steps_in(tmp_path) == [3, 300, 400, 400]


def test_optimizers_with_names_of_their_own_share_a_folder(tmp_path: Path) -> None:
    both = {name: fastopt.Checkpoints(tmp_path, keep=1, name=name) for name in ("g", "d")}
    for steps, (_name, checkpoints) in enumerate(both.items(), 1):
        checkpoints.save(Run().go(steps).opt)
    for steps, checkpoints in enumerate(both.values(), 1):
        report = checkpoints.load(Run().opt)
        assert report is not None
        assert report.step_count == steps


def test_what_one_that_has_ended_left_counts_as_ones_own(tmp_path: Path) -> None:
    run = Run()
    first = fastopt.Checkpoints(tmp_path, keep=3)
    for _ in range(3):
        first.save(run.go(1).opt)
    del first
    gc.collect()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    fastopt.Checkpoints(tmp_path, keep=2).save(run.go(1).opt)
    assert steps_in(tmp_path) == [3, 4]


OTHER_PROCESS = """
import sys, time
import numpy as np
import fastopt

opt = fastopt.SGD({"p": np.zeros(3)}, 1.0, momentum=0.5, backend="numpy")
checkpoints = fastopt.Checkpoints(sys.argv[1], keep=2)
for _ in range(2):
    opt.step({"p": np.zeros(3)})
    checkpoints.save(opt)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_process_that_lives_keeps_its_files_and_a_dead_one_leaves_them(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    run, checkpoints = Run().go(10), fastopt.Checkpoints(tmp_path, keep=2)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            for _ in range(3):
                checkpoints.save(run.go(1).opt)
            assert steps_in(tmp_path) == [1, 2, 12, 13]
        finally:
            other.kill()
    checkpoints.save(run.go(1).opt)
    assert steps_in(tmp_path) == [13, 14]
    assert len([name for name in os.listdir(tmp_path) if name.startswith(".")]) == 1  # the lock


KILLS = """
import os, random, signal, sys, time, warnings
from pathlib import Path
import numpy as np
import fastopt
from helpers.processes import drained

random.seed(0)
folder, keep = Path(sys.argv[1]), 3
background = sys.argv[2] == "background"

def made():
    params = {"p": np.zeros(100_000), "q": [np.zeros(30_000, np.float32)]}
    return params, fastopt.SGD(params, momentum=0.5, backend="numpy")

def work(first, tell):
    params, opt = made()
    checkpoints = fastopt.Checkpoints(folder, keep=keep)
    checkpoints.load(opt)
    for number in range(first, first + 1000):
        opt.step({"p": np.zeros(100_000), "q": [np.zeros(30_000, np.float32)]})
        params["p"][...] = params["q"][0][...] = number
        assert opt.step_count == number
        checkpoints.save(opt, background=background)
        os.write(tell, b".")

def whole():
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        params, opt = made()
        number = opt.load(path).step_count
        for array in (params["p"], params["q"][0]):
            assert array.min() == array.max() == number, "half new"
        found.append(number)
    return found

told, tell = os.pipe()
last, kills, hits = 0, 0, 0
while kills < 25:
    child = os.fork()
    if child == 0:
        work(last + 1, tell)
    for _ in range(3):
        os.read(told, 1)  # of the first three saves
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    more = drained(told)
    kills += 1
    hits += any(".tmp." in name for name in os.listdir(folder))
    found = whole()
    done = last + 3 + more - background  # the last one may be under way
    assert max([0, *found]) >= done, (found, done, "a save that was finished is lost")
    assert len(found) >= min(done, keep), (found, done)
    assert len(found) <= keep + 1, found
    path = fastopt.Checkpoints(folder).latest()
    last = int(path.name.split("-")[1]) if path else 0
    assert last == max([0, *found])
params, opt = made()
checkpoints = fastopt.Checkpoints(folder, keep=keep)
checkpoints.load(opt)
checkpoints.save(opt)
assert not [name for name in os.listdir(folder) if ".tmp." in name], os.listdir(folder)
assert len(os.listdir(folder)) == keep + 1, os.listdir(folder)  # with the lock
print(kills, hits, last)
"""


@pytest.mark.xdist_group("apart")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("how", ["background", "at_once"])
def test_kill_9_at_random_moments_never_leaves_fewer_than_are_kept(
    how: str, tmp_path: Path
) -> None:
    done = script(KILLS, str(tmp_path), how)
    assert done.returncode == 0, done.stderr
    kills, hits, last = map(int, done.stdout.split())
    assert kills == 25
    assert hits >= 3, "the kills did not hit the writing"
    assert last >= 25


def test_the_class_is_imported_when_it_is_first_asked_for() -> None:
    done = script(
        "import fastopt, sys; print('fastopt.checkpoint.numbered' in sys.modules);"
        "fastopt.Checkpoints; print('Checkpoints' in fastopt.__all__)"
    )
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
