"""Which backend runs: by argument, block, call or environment; and what is said if none can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import BackendMismatchError, BackendUnavailableError, FastoptError
from helpers.variants import CPU_BACKENDS, HAS_NUMBA, VARIANTS

ROOT = Path(__file__).parents[2]
NAMES = ("auto", "numpy", "numba", "cupy")
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without a choice, whatever this run of the tests was started with."""
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    fastopt.set_backend(None)
    yield
    fastopt.set_backend(None)


def used(**options: Any) -> str:
    """Return the backend of an optimizer constructed now, as soon as it is the fastest."""
    text = repr(fastopt.SGD(np.ones(1), **options).warmup())
    return text.rpartition(" on ")[2].rstrip(">")


def script(text: str, *arguments: str, **environment: str) -> Any:
    """Run a Python script in a process of its own; returns what it prints as JSON."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    inherited = {k: v for k, v in os.environ.items() if k != "FASTOPT_BACKEND"}
    end = subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert end.returncode == 0, end.stderr
    return json.loads(end.stdout)


# The names and their order of strength -----------------------------------------------------------


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("form", ["{}", " {} ", "\t{}\n"])
def test_case_and_blanks_of_a_name_do_not_matter(
    form: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (form.format(backend), form.format(backend.upper()), form.format(backend.title())):
        assert used(backend=name) == backend
        with fastopt.use_backend(name):
            assert used() == backend
        fastopt.set_backend(name)
        assert used() == backend
        fastopt.set_backend(None)
        monkeypatch.setenv("FASTOPT_BACKEND", name)
        assert used() == backend


@pytest.mark.parametrize("empty", ["", "  ", "auto", " AUTO "])
def test_an_empty_choice_is_auto(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "numba" if HAS_NUMBA else "numpy"
    assert used() == expected
    monkeypatch.setenv("FASTOPT_BACKEND", empty)
    assert used() == expected
    assert used(backend="auto") == expected


@pytest.mark.parametrize("wrong", ["numpi", "torch", "numpy,numba", "cuda", "0", "None"])
def test_an_unknown_name_is_refused_with_the_allowed_ones(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter() -> None:
        with fastopt.use_backend(wrong):
            pass

    for call, source in [
        (lambda: used(backend=wrong), "backend"),
        (enter, "use_backend"),
        (lambda: fastopt.set_backend(wrong), "set_backend"),
    ]:
        with pytest.raises(ValueError, match="must be one of auto, numpy, numba, cupy") as caught:
            call()
        assert type(caught.value) is ValueError
        assert source in str(caught.value)
        assert repr(wrong) in str(caught.value)
    monkeypatch.setenv("FASTOPT_BACKEND", wrong)
    for read in (used, fastopt.array_namespace):
        with pytest.raises(ValueError, match="FASTOPT_BACKEND must be one of auto, numpy"):
            read()
    assert used(backend="numpy") == "numpy"


@pytest.mark.parametrize("wrong", [3, True, np, b"numpy", ["numpy"]])
def test_a_choice_that_is_no_text_is_refused(wrong: Any) -> None:
    def enter() -> None:
        with fastopt.use_backend(wrong):
            pass

    for call in (lambda: used(backend=wrong), enter, lambda: fastopt.set_backend(wrong)):
        with pytest.raises(TypeError, match="must be a string"):
            call()


@needs_numba
def test_the_nearest_choice_is_the_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "numpy")
    assert used() == "numpy"
    fastopt.set_backend("numba")
    assert used() == "numba"
    with fastopt.use_backend("numpy"):
        assert used() == "numpy"
        assert used(backend="numba") == "numba"
        with fastopt.use_backend("numba"):
            assert used() == "numba"
        assert used() == "numpy"
        with fastopt.use_backend("auto"):
            assert used() == "numba"
        fastopt.set_backend("numba")
        assert used() == "numpy"
    assert used() == "numba"
    fastopt.set_backend("auto")
    assert used() == "numba", "auto in code is a choice too, stronger than the environment's"
    fastopt.set_backend(None)
    assert used() == "numpy"


@needs_numba
def test_the_choice_is_read_when_an_optimizer_is_constructed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opt = fastopt.SGD(np.ones(3))
    monkeypatch.setenv("FASTOPT_BACKEND", "numpy")
    with fastopt.use_backend("numpy"):
        opt.step(np.ones(3))
    assert "on numba" in repr(opt.warmup())
    assert used() == "numpy"
    monkeypatch.setenv("FASTOPT_BACKEND", "numba")
    assert used() == "numba"


@needs_numba
def test_use_backend_ends_with_its_block_even_by_an_exception() -> None:
    def fail() -> None:
        with fastopt.use_backend("numpy"):
            assert used() == "numpy"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert used() == "numba"


@needs_numba
def test_use_backend_holds_in_its_thread_alone_and_set_backend_in_all() -> None:
    found: dict[str, str] = {}

    def look(name: str) -> None:
        found[name] = used()

    def in_thread(name: str) -> None:
        thread = threading.Thread(target=look, args=[name])
        thread.start()
        thread.join()

    with fastopt.use_backend("numpy"):
        in_thread("beside a with block")
    fastopt.set_backend("numpy")
    in_thread("after set_backend")
    assert found == {"beside a with block": "numba", "after set_backend": "numpy"}


# What there is -----------------------------------------------------------------------------------


def test_available_backends_says_which_can_run_and_why_not() -> None:
    found = fastopt.available_backends()
    assert list(found) == ["numpy", "numba", "cupy"]
    assert found["numpy"] is None
    assert (found["numba"] is None) == HAS_NUMBA
    for name, reason in found.items():
        if reason is not None:
            assert name in reason
            with pytest.raises(BackendUnavailableError) as caught:
                fastopt.SGD(np.ones(1), backend=name)
            assert str(caught.value) == reason


def test_array_namespace_is_the_module_of_the_arrays_or_of_the_choice() -> None:
    assert fastopt.array_namespace(np.ones(1)) is np
    assert fastopt.array_namespace(np.ones(1), np.ones((), np.float32)) is np
    for backend in CPU_BACKENDS:
        with fastopt.use_backend(backend):
            assert fastopt.array_namespace() is np
    for wrong in (1.0, [1.0], np.float32(1), None, "numpy", np.ma.zeros(1)):
        with pytest.raises(TypeError, match=f"numpy and cupy arrays; got .*{type(wrong).__name__}"):
            fastopt.array_namespace(np.ones(1), wrong)


def test_errors_of_backends_can_be_caught_as_what_they_are() -> None:
    assert issubclass(BackendUnavailableError, FastoptError)
    assert issubclass(BackendUnavailableError, RuntimeError)
    assert issubclass(BackendMismatchError, FastoptError)
    assert issubclass(BackendMismatchError, TypeError)
    assert issubclass(fastopt.CheckpointError, FastoptError)
    assert issubclass(fastopt.CheckpointError, ValueError)
    assert not issubclass(FastoptError, ValueError | TypeError | RuntimeError)


# A library that is missing or broken -------------------------------------------------------------

WITHOUT = """
import json, sys
import numpy as np

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise {error}
        return None

hidden = sys.argv[1].split(",")
sys.meta_path.insert(0, Hide())
import fastopt

def said(call):
    try:
        return repr(call())
    except Exception as error:
        bases = [base.__name__ for base in type(error).__mro__]
        return [bases, str(error)]

def enter():
    with fastopt.use_backend(hidden[0]):
        return fastopt.SGD(np.ones(3))

def step():
    param = np.zeros(2)
    fastopt.SGD(param, 1.0).step(np.ones(2))
    return param.tolist()

print(json.dumps({{
    "auto": said(lambda: fastopt.SGD(np.ones(3))),
    "named": said(lambda: fastopt.SGD({{"W": np.ones(3)}}, backend=hidden[0])),
    "with": said(enter),
    "namespace": said(fastopt.array_namespace),
    "step": said(step),
    "available": fastopt.available_backends(),
}}))
"""
MISSING = WITHOUT.format(error='ModuleNotFoundError(f"No module named {name!r}", name=name)')
BROKEN = WITHOUT.format(error='OSError("libsomething.so.1: cannot open shared object file")')


@pytest.mark.parametrize(
    ("text", "why"), [(MISSING, "No module named 'numba'"), (BROKEN, "libsomething.so.1")]
)
def test_without_numba_auto_falls_to_numpy_and_numba_by_name_says_why(text: str, why: str) -> None:
    found = script(text, "numba")
    assert "on numpy>" in found["auto"]
    assert found["step"] == "[-1.0, -1.0]"
    assert "numpy" in found["namespace"]
    for call in ("named", "with"):
        bases, message = found[call]
        assert bases[:3] == ["BackendUnavailableError", "FastoptError", "RuntimeError"]
        for part in ("'numba'", "cannot run here", why, "pip install numba", "numpy"):
            assert part in message
    assert found["available"]["numpy"] is None
    assert why in found["available"]["numba"]


@pytest.mark.parametrize(
    ("text", "why"), [(MISSING, "No module named 'cupy'"), (BROKEN, "libsomething.so.1")]
)
def test_without_cupy_cupy_by_name_says_why_and_what_to_do(text: str, why: str) -> None:
    found = script(text, "cupy")
    for call in ("named", "with"):
        bases, message = found[call]
        assert bases[0] == "BackendUnavailableError"
        for part in ("'cupy'", "cannot run here", why, "fastopt[cuda12]", "auto"):
            assert part in message
    assert why in found["available"]["cupy"]


def test_the_environments_backend_that_cannot_run_is_no_silent_fallback() -> None:
    text = MISSING.replace("backend=hidden[0]", "")
    for name in ("numba", "cupy"):
        found = script(text, name, FASTOPT_BACKEND=name)
        for call in ("auto", "named", "namespace", "step"):
            assert found[call][0][0] == "BackendUnavailableError", call


def test_sys_modules_none_is_a_missing_numba_too() -> None:
    text = """
import json, sys
sys.modules["numba"] = None
import numpy as np, fastopt
print(json.dumps([repr(fastopt.SGD(np.ones(1))), fastopt.available_backends()["numba"]]))
"""
    made, reason = script(text)
    assert "on numpy>" in made
    assert "numba" in reason


# Importing ---------------------------------------------------------------------------------------

HEAVY = ("numba", "llvmlite", "cupy", "matplotlib", "torch", "jax", "scipy", "sklearn", "tqdm")


def test_importing_the_package_imports_no_heavy_library() -> None:
    text = f"""
import json, sys
import fastopt
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    assert script(text) == []
    assert script(text, FASTOPT_BACKEND="numba") == []


def test_an_optimizer_on_numpy_imports_no_numba() -> None:
    text = """
import json, sys
import numpy as np, fastopt
for name in ("SGD", "Adam"):
    opt = getattr(fastopt, name)(np.ones(3), backend="numpy")
    opt.step(np.ones(3))
    opt.load_state_dict(opt.state_dict())
print(json.dumps(sorted(name for name in ("numba", "cupy") if name in sys.modules)))
"""
    assert script(text) == []


def test_every_public_name_is_there() -> None:
    assert len(fastopt.__all__) == len(set(fastopt.__all__))
    for name in fastopt.__all__:
        assert getattr(fastopt, name) is not None
    used_in_tests = {type(variant(np.ones(1))).__name__ for variant in VARIANTS}
    assert used_in_tests <= set(fastopt.__all__)
