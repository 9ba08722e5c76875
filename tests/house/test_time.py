"""No test fails because a machine is slow: there are no deadlines and no limits of time."""

from __future__ import annotations

import ast
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parents[1]
CLOCKS = {
    name + unit
    for name in ("perf_counter", "monotonic", "process_time", "thread_time", "time")
    for unit in ("", "_ns")
}
LIMITS = {"timeout", "deadline", "timeout_s", "suppress_health_check"}
"""Arguments that set one; the last one where it replaces what the profiles have."""
ALARMS = {"alarm", "setitimer", "dump_traceback_later"}
WAITS = {"wait", "join", "get", "acquire", "wait_for"}


def called(node: ast.AST) -> str:
    """Return the name of the function that is called, without its module or object."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def has_clock(node: ast.AST) -> bool:
    return any(called(inner) in CLOCKS for inner in ast.walk(node))


def limits(text: str) -> Iterator[int]:
    """Yield the lines of a program that set a limit of time, also within its strings."""
    tree = ast.parse(text)
    # That a thread is still waiting can be seen only by looking for a while: it fails nowhere.
    looks = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.Assert):
            if has_clock(node):
                yield node.lineno
        elif isinstance(node, ast.Call):
            given = [k for k in node.keywords if k.arg in LIMITS and ast.unparse(k.value) != "None"]
            first = node.args[0] if node.args else None
            seconds = isinstance(first, ast.Constant) and type(first.value) in (int, float)
            waits = called(node) in WAITS and seconds and node not in looks
            if given or waits or called(node) in ALARMS:
                yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in ("timeout", "TimeoutExpired"):
            yield node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            try:
                inner = list(limits(textwrap.dedent(node.value)))
            except (SyntaxError, ValueError):  # of null characters
                continue
            yield from (node.lineno + line - 1 for line in inner)


PLANTED = TESTS / "house" / "test_planted_faults.py"
"""It passes where its limit is reached: what a fault breaks may never end."""
STARTING = TESTS / "helpers" / "ranks" / "starting.py"
"""Of ranks that wait for each other for ever nobody would hear: they are given two minutes."""
ON_DEVICE = TESTS / "cuda" / "test_ranks_on_device.py"
"""So are these, which start by themselves."""
APART = {Path(__file__), TESTS / "conftest.py", PLANTED, STARTING, ON_DEVICE}
FILES = sorted(set(TESTS.rglob("*.py")) - APART)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_test_has_a_limit_of_time(path: Path) -> None:
    assert [*limits(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "subprocess.run(['a'], timeout=60)",
        "settings(max_examples=3, deadline=200)",
        "settings(deadline=timedelta(seconds=1))",
        "settings(suppress_health_check=[HealthCheck.function_scoped_fixture])",
        "assert event.wait(60)",
        "thread.join(0.5)",
        "barrier.wait(timeout=2)",
        "assert time.perf_counter() - start < 1",
        "while time.monotonic() < end: pass",
        "signal.alarm(3)",
        "@pytest.mark.timeout(3)\ndef test_it(): pass",
        "script('''\nimport time\nassert time.time() < 3\n''')",
    ],
)
def test_a_limit_is_seen(text: str) -> None:
    assert [*limits(text)]


@pytest.mark.parametrize(
    "text",
    [
        "settings(max_examples=3, deadline=None)",
        "event.wait()",
        "assert not done.wait(0.2)",
        "thread.join()",
        "', '.join(names)",
        "time.sleep(0.01)",
        "start = time.perf_counter()",
    ],
)
def test_what_is_no_limit_is_none(text: str) -> None:
    assert not [*limits(text)]


def test_hypothesis_has_no_deadline_in_any_profile() -> None:
    text = (TESTS / "conftest.py").read_text("utf-8")
    assert text.count("register_profile(") == 3
    for profile in (settings(), *map(settings.get_profile, ("fastopt", "explore", "first"))):
        assert profile.deadline is None
        assert HealthCheck.too_slow in profile.suppress_health_check
    options = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))
    assert not [name for name in options["tool"]["pytest"]["ini_options"] if "time" in name]
