"""How the suite is shared out: tests that have to run alone do."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("apart")
def test_tests_of_a_group_stay_on_one_worker(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--dist", "no") == "no" and not hasattr(
        request.config, "workerinput"
    ):
        pytest.skip("there is one process: pytest -n 2")
    assert request.node.nodeid.endswith("@apart"), (
        "pytest-xdist did not group this test: it does not fit this pytest. Install others"
    )
