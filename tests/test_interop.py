"""Moving between libraries needs none of them, and costs nothing before it is asked for."""

from __future__ import annotations

import inspect

import pytest
from variants import script

import fastopt
from fastopt import interop


def test_no_other_library_is_imported() -> None:
    code = (
        "import sys, fastopt.interop, numpy as np\n"
        "opt = fastopt.Adam(np.ones(2), backend='numpy')\n"
        "opt.step(np.ones(2))\n"
        "fastopt.interop.load_torch(opt, fastopt.interop.to_torch(opt))\n"
        "print(sorted({'torch', 'jax', 'optax', 'keras', 'tensorflow', 'h5py', 'numba', 'cupy'}"
        " & set(sys.modules)))"
    )
    done = script(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_it_is_imported_when_it_is_first_asked_for() -> None:
    code = (
        "import sys, fastopt\n"
        "assert not [name for name in sys.modules if name.startswith('fastopt.interop')]\n"
        "fastopt.interop.load_torch"
    )
    done = script(code)
    assert done.returncode == 0, done.stderr
    assert "interop" in fastopt.__all__


@pytest.mark.parametrize("name", interop.__all__)
def test_what_is_public_says_what_corresponds_to_what(name: str) -> None:
    text = inspect.getdoc(getattr(interop, name)) or ""
    assert all(part in text for part in ("Args:", "Raises:", "Source:"))
    assert "=====" in text or "load_torch" in text
