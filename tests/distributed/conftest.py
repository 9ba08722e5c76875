"""Tests on several ranks need an MPI, and stand by themselves: they use all processors."""

from __future__ import annotations

import pytest

from helpers.ranks.starting import is_mpich, launcher


@pytest.fixture(scope="session")
def _mpi() -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install mpi4py mpich")
    if launcher() is None:
        pytest.skip("there is no mpiexec: pip install mpich")


@pytest.fixture(scope="session")
def _hydra(_mpi: None) -> None:
    if not is_mpich():
        pytest.skip("the launcher's clean-up can be switched off in MPICH's alone")
