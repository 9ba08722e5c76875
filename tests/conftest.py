"""How the suite runs: what it takes of large products by default, threads, devices."""

from __future__ import annotations

import gc
import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

# Before NumPy is loaded: a worker uses one processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastopt
from helpers.covering import covering
from helpers.cuda.device import REAL, cupy_or_skip, emulated
from helpers.cuda.emulation.cuda import Cuda
from helpers.processes import cache_folder
from helpers.variants import CPU_BACKENDS, Variant

__all__ = ["cache_folder"]  # a fixture

# No test fails because a machine is slow. Fixtures of one test may serve all of its examples.
CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("fastopt", deadline=None, suppress_health_check=CHECKS, derandomize=True)
settings.register_profile(  # --hypothesis-profile
    "explore", deadline=None, suppress_health_check=CHECKS, max_examples=2_000
)
settings.load_profile("fastopt")

# What has run elsewhere --------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --leave-out."""
    parser.addoption(
        "--leave-out",
        type=Path,
        metavar="FILE",
        help="leave out the tests whose ids the file holds: pytest --collect-only -q prints them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the ids of tests to leave out."""
    path = config.getoption("--leave-out")
    if path is not None:
        ids = frozenset(line for line in path.read_text().splitlines() if "::" in line)
        if not ids:
            raise pytest.UsageError(f"--leave-out: {path} holds no ids of tests")
        config.pluginmanager.register(LeaveOut(ids))


class LeaveOut:
    """Deselects tests."""

    def __init__(self, ids: frozenset[str]) -> None:
        self.ids = ids

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out those that have run elsewhere."""
        gone = [item for item in items if item.nodeid in self.ids]
        items[:] = [item for item in items if item.nodeid not in self.ids]
        config.hook.pytest_deselected(items=gone)


# What the default run takes of a product ---------------------------------------------------------

OF_EVERY_VARIANT = {
    "test_clip_each",
    "test_clip_value",
    "test_compile",
    "test_formulas",
    "test_fragments",
    "test_gate",
    "test_hyperparameters",
    "test_same_bits",
    "test_vectors",
}
"""Files of tests that the default run makes with variants that are close to others too."""


def has_close_variant(item: pytest.Function) -> bool:
    """Return whether a test is of a variant whose code is all that of others."""
    return any(isinstance(v, Variant) and v.is_close for v in item.callspec.params.values())


def point(item: pytest.Function) -> tuple[Hashable, ...]:
    """Return where in the product of its parameters a test is: by decorator, and by fixture."""
    left = {name: id(value) for name, value in item.callspec.params.items()}
    place: list[Hashable] = []
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0] if marker.args else marker.kwargs["argnames"]
        split = names.replace(",", " ").split() if isinstance(names, str) else names
        place.append(tuple(left.pop(name, None) for name in split))
    return (*place, *left.values())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as exhaustive what the default run leaves out of the products of parameters.

    Of a test with three parameters or more it takes so many points that every two values meet; of
    one that is marked ``covering(n)`` so many that every n do. Variants that are close to others
    are taken where numbers and bits are looked at. Tests of CuPy are marked gpu, but for those that
    look at the emulated CUDA.
    """
    functions: dict[Any, list[pytest.Function]] = {}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"cupy", "cupy2"}:
            item.add_marker("emulated" if "cuda" in fixtures else "gpu")
            item.add_marker(CUPYS_WARNINGS)
            if REAL and "cuda" in fixtures:
                item.add_marker(pytest.mark.skip(reason="looks at the emulated CUDA"))
            if not REAL and item.get_closest_marker("hardware"):
                item.add_marker(pytest.mark.skip(reason="needs a device: set FASTOPT_TEST_GPU=1"))
        if hasattr(item, "callspec"):
            if has_close_variant(item) and item.path.stem not in OF_EVERY_VARIANT:
                item.add_marker("exhaustive")
                continue
            functions.setdefault((item.cls, item.function), []).append(item)
    for members in functions.values():
        marker = members[0].get_closest_marker("covering")
        together = marker.args[0] if marker else 2
        points = [point(member) for member in members]
        if len(points[0]) > together:
            kept = covering(points, together)
            for k, member in enumerate(members):
                if k not in kept:
                    member.add_marker("exhaustive")


# Threads -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> None:
    """Let steps use one thread, since there is a worker per processor; not in tests of threads."""
    apart = request.node.get_closest_marker("xdist_group")
    fastopt.set_num_threads(None if apart else 1)


# Devices -----------------------------------------------------------------------------------------

emulated()  # before anything imports CuPy

CUPYS_WARNINGS = pytest.mark.filterwarnings("ignore:::cupy")  # ours are errors
PLACES = [*CPU_BACKENDS, pytest.param("cupy", marks=[pytest.mark.gpu, CUPYS_WARNINGS])]


@pytest.fixture
def cupy() -> Iterator[Any]:
    """CuPy: on a device (``FASTOPT_TEST_GPU=1 pytest -m gpu``), or on an emulated CUDA."""
    yield from watched(1)


@pytest.fixture
def cupy2() -> Iterator[Any]:
    """CuPy with two devices."""
    yield from watched(2)


def watched(devices: int) -> Iterator[Any]:
    """Yield CuPy; afterwards nothing was written to freed memory, and no capture was left open."""
    cupy, cuda = cupy_or_skip(devices), emulated()
    if cuda is None:
        yield cupy
        return
    cuda.clear()
    # Without a pool, so that what is freed too early is found.
    cupy.cuda.set_allocator(None)
    try:
        yield cupy
    finally:
        left = cuda.end_captures()
        cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)
    assert not left, "a capture was not ended"
    gc.collect()
    assert cuda.written_after_free() == 0


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A module of arrays, and a backend that updates them."""
    on_device = request.param == "cupy"
    return request.getfixturevalue("cupy") if on_device else np, request.param


@pytest.fixture
def cuda(cupy: Any) -> Cuda:
    """The emulated CUDA, of which launches, calls and waits are counted: not on a device."""
    found = emulated()
    assert found is not None
    return found
