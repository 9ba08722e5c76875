"""Tests on several ranks need an MPI, and stand by themselves: they use all processors."""

from __future__ import annotations

import pytest

from helpers.ranks.starting import launcher


@pytest.fixture(scope="session")
def _mpi() -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install mpi4py mpich")
    if launcher() is None:
        pytest.skip("there is no mpiexec: pip install mpich")
