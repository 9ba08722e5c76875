"""Runs a Python file with the real CuPy on the emulated CUDA: a rehearsal of work on a device.

python -m helpers.cuda.emulation.run FILE [ARGUMENT ...]
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from helpers.cuda.emulation import cuda

if __name__ == "__main__":
    cuda.installed()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
