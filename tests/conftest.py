"""How the suite runs: what it takes of large products by default, threads, devices."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Hashable, Iterator
from typing import Any
from zlib import crc32

# Before NumPy is loaded: a worker uses one processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

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
settings.register_profile(  # the first failure is enough, however large the example
    "first",
    deadline=None,
    suppress_health_check=CHECKS,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("fastopt")

# One test of each function -----------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --one-of-each."""
    parser.addoption(
        "--one-of-each",
        action="store_true",
        help="run each test with the last of its parameters alone (but for CuPy's): what depends "
        "on where and how the package is installed, and not on numbers",
    )


def one_of_each(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the last test of each function."""
    order = sorted(items, key=lambda item: item.get_closest_marker("gpu") is None)
    last = {(getattr(item, "cls", None), getattr(item, "function", item)): item for item in order}
    kept = set(last.values())
    return [item for item in items if item in kept]


# What is taken of a product ----------------------------------------------------------------------

OF_EVERY_VARIANT = {
    "test_formulas",
    "test_fragments",
    "test_gate",
    "test_hyperparameters",
    "test_same_bits",
    "test_vectors",
}
"""Files of tests that the default run makes with variants that are close to others too."""

PAIRED = {"test_dtypes", "test_layouts", "test_state_dtype"}
"""Those in which such a variant meets each value of the other parameters, if not by default."""

FEW = 8
"""Of so many such variants one is met by each of the other tests."""


def is_close(item: pytest.Function) -> bool:
    """Return whether a test is of a variant whose code is all that of others."""
    return any(isinstance(v, Variant) and v.close for v in item.callspec.params.values())


def point(item: pytest.Function) -> tuple[Hashable, ...]:
    """Return where in the product of its parameters a test is: by decorator, and by fixture."""
    left = {name: id(value) for name, value in item.callspec.params.items()}
    place: list[Hashable] = []
    for marker in item.iter_markers("parametrize"):
        names = marker.args[0] if marker.args else marker.kwargs["argnames"]
        split = names.replace(",", " ").split() if isinstance(names, str) else names
        place.append(tuple(left.pop(name, None) for name in split))
    return (*place, *left.values())


def mark_all_but(kept: set[int], members: list[pytest.Function], marker: str) -> None:
    """Mark the tests whose numbers are not among those that are kept."""
    for k, member in enumerate(members):
        if k not in kept:
            member.add_marker(marker)


def sort_usual(members: list[pytest.Function]) -> None:
    """Sort the tests of one function into default and product."""
    marker = members[0].get_closest_marker("covering")
    together = marker.args[0] if marker else 2
    points = [point(member) for member in members]
    if len(points[0]) > together:
        mark_all_but(covering(points, together), members, "product")


def sort_close(members: list[pytest.Function]) -> None:
    """Sort those of variants that are close to others."""
    by_default = members[0].path.stem in OF_EVERY_VARIANT
    paired = members[0].path.stem in PAIRED
    kept = covering([point(member) for member in members], 2 if by_default or paired else 1)
    if not (by_default or paired):  # a few, others in each function
        begin = crc32(members[0].nodeid.partition("[")[0].encode()) % FEW
        kept = set(sorted(kept)[begin::FEW])
    mark_all_but(kept, members, "product")
    if not by_default:
        mark_all_but(set(), members, "exhaustive")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the products of parameters into what is always run, what CI adds, and what is left.

    Of a test with three parameters or more the default run takes so many points that every two
    values meet (of one that is marked ``covering(n)`` so many that every n do). Variants that are
    close to others are taken where numbers and bits are looked at; ``exhaustive`` has one of eight
    in every other test, and all, with each value, where storage and layout are looked at. What is
    left is marked ``product``.

    Tests of CuPy are marked gpu, but for those that look at the emulated CUDA.
    """
    usual: dict[Any, list[pytest.Function]] = {}
    close: dict[Any, list[pytest.Function]] = {}
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
            sort = close if is_close(item) else usual
            sort.setdefault((item.cls, item.function), []).append(item)
    for members in usual.values():
        sort_usual(members)
    for members in close.values():
        sort_close(members)
    kept = items[:]
    if "product" not in config.option.markexpr:
        kept = [item for item in kept if not item.get_closest_marker("product")]
    if config.getoption("--one-of-each"):
        kept = one_of_each([item for item in kept if not item.get_closest_marker("exhaustive")])
    here = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in here])
    items[:] = kept


# Threads -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> None:
    """Let steps use one thread, since there is a worker per processor; not in tests of threads."""
    apart = any(mark.args == ("apart",) for mark in request.node.iter_markers("xdist_group"))
    fastopt.set_num_threads(None if apart else 1)


# Chance ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let what draws from the global generators (``random_state=None``) draw the same each time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - it is this one that scikit-learn draws from


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
    gc.freeze()  # so that the collection below goes through what the test has made alone
    try:
        yield cupy
    finally:
        left = cuda.end_captures()
        cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)
    assert not left, "a capture was not ended"
    gc.collect()
    gc.unfreeze()
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
