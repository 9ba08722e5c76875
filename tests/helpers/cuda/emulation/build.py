"""Builds a CUDA that runs on the CPU for the CuPy that is installed.

CuPy's wheels link CUDA's runtime into one module, ``cupy_backends.cuda.api.runtime``; that module
is built again here, from the sources of the same version, and linked with ``runtime.cpp`` in its
place. The same stands for cuBLAS: ``cublas.cpp``, with stubs for whatever else CuPy is linked with.
Needed are g++, Cython 3.1, and the headers of CUDA 12 (those of 13 lack ``clockRate``):
the extra test-cuda brings them. What was built is kept in a folder of the user's cache, by version
and sources, so it takes half a minute once.

    python -m helpers.cuda.emulation.build
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    *("state.h", "runtime.cpp", "driver.cpp", "cublas.cpp", "cuda_profiler_api.h", "kernel.h"),
    "build.py",
)
KERNEL_FLAGS = (
    *("-O1", "-std=c++17", "-shared", "-fPIC", "-w", "-fpermissive", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-fsanitize=alignment", "-fno-gnu-unique"),
)
CUDA_VERSION = 12090


def reason_to_skip() -> str | None:
    """Return what is missing; None if nothing is."""
    if cupy_version() is None:
        return "CuPy is not installed: pip install -e '.[test-cuda]'"
    if sys.platform != "linux":
        return "CUDA on the CPU is built for Linux alone"
    if shutil.which("g++") is None:
        return "there is no g++"
    return None


@cache
def cupy_version() -> str | None:
    """Return the version of the installed CuPy, whatever its wheel is called."""
    for name in ("cupy-cuda12x", "cupy"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return None


@cache
def folder() -> Path:
    """Return the folder for what is built: of this CuPy, these sources, this Python."""
    said = [cupy_version(), sys.version, *((HERE / name).read_text() for name in SOURCES)]
    key = hashlib.sha256("\0".join(map(str, said)).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "fastopt-tests" / f"cuda-{cupy_version()}-{key}"


def built() -> Path:
    """Return the folder of what is built: the libraries of CUDA, and ``runtime.so`` for CuPy.

    ``kernel.h`` is there too, read once by the compiler for all kernels.
    """
    target = folder()
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as made:
            _build(Path(made))
            try:
                os.rename(made, target)
            except OSError:  # another process was faster
                if not target.exists():
                    raise
            else:
                Path(made).mkdir()  # for the context to remove
    return target


def _build(made: Path) -> None:
    source = _cupy_source(made)
    include = [f"-I{HERE}", *(f"-I{path}" for path in _headers())]
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-w", "-ffp-contract=off"]
    library = made / "libcuda.so.1"
    ours = [str(HERE / "runtime.cpp"), str(HERE / "driver.cpp")]
    _run(["g++", *flags, *include, *ours, "-o", str(library), "-Wl,-soname,libcuda.so.1", "-ldl"])
    _build_cublas(made, [*flags, *include])
    header = shutil.copy(HERE / "kernel.h", made)
    _run(["g++", *KERNEL_FLAGS, "-x", "c++-header", header, "-o", f"{header}.gch"])
    package = source / "cupy_backends" / "cuda" / "api"
    about = f"CUPY_CUDA_VERSION={CUDA_VERSION},CUPY_HIP_VERSION=0,CUPY_USE_CUDA_PYTHON=0"
    cpp = made / "module.cpp"
    cython = [sys.executable, "-m", "cython", "-3", "--cplus", "-E", about]
    _run([*cython, "cupy_backends/cuda/api/runtime.pyx", "-o", str(cpp)], source)
    include += [f"-I{package}", f"-I{package.parents[1]}", f"-I{sysconfig.get_path('include')}"]
    _run(["g++", *flags, *include, str(cpp), "-o", str(made / "runtime.so"), *_linked(made)])
    shutil.rmtree(source)
    cpp.unlink()


def _build_cublas(made: Path, flags: list[str]) -> None:
    """Build ``libcublas.so.12``, and the library that CuPy loads before it, which is empty."""
    package = importlib.util.find_spec("cupy_backends")
    (root,) = package.submodule_search_locations or () if package else ()
    (module,) = (Path(root) / "cuda" / "libs").glob("cublas.*.so")
    linked = set(re.findall(r"U (cublas\w+)", _run(["nm", "-D", str(module)])))
    source = made / "cublas.cpp"
    text = (HERE / "cublas.cpp").read_text()
    stubs = sorted(linked - set(re.findall(r"^int (cublas\w+)", text, re.MULTILINE)))
    stub = 'extern "C" int {}(...) {{ return NOT_SUPPORTED; }}\n'
    source.write_text(text + "".join(map(stub.format, stubs)))
    versions = made / "versions"
    versions.write_text("libcublas.so.12 { global: cublas*; };")
    for name, more in (
        ("libcublasLt.so.12", ["-x", "c++", os.devnull]),
        ("libcublas.so.12", [str(source), f"-Wl,--version-script,{versions}", *_linked(made)]),
    ):
        _run(["g++", *flags, *more, "-o", str(made / name), f"-Wl,-soname,{name}"])
    source.unlink()
    versions.unlink()


def _linked(made: Path) -> list[str]:
    """Return the options that link what is built with ``libcuda.so.1``."""
    return [f"-L{made}", "-l:libcuda.so.1", "-Wl,-rpath,$ORIGIN"]


def _cupy_source(made: Path) -> Path:
    """Return the sources of the installed version, as the index has them."""
    environment = {**os.environ, "READTHEDOCS": "True"}  # to have them without a CUDA toolkit
    wanted = f"cupy=={cupy_version()}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "cupy"]
    _run([*pip, wanted, "-d", str(made)], environment=environment)
    archive = next(made.glob("cupy-*.tar.gz"))
    with tarfile.open(archive) as content:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 on
        content.extractall(made, **safely)
    archive.unlink()
    return next(made.glob("cupy-*"))


def nvidia(*parts: str) -> list[Path]:
    """Return where NVIDIA's wheels may have a file or folder."""
    found = importlib.util.find_spec("nvidia")
    roots = found.submodule_search_locations or () if found else ()
    return [Path(root).joinpath(*parts) for root in roots]


def _headers() -> list[Path]:
    """Return the folders of CUDA's headers."""
    folders = [*nvidia("cuda_runtime", "include"), *nvidia("cuda_nvcc", "include")]
    there = [folder for folder in folders if folder.is_dir()]
    if len(there) < 2:
        raise RuntimeError(
            "the headers of CUDA 12 are not installed: pip install nvidia-cuda-runtime-cu12 "
            "nvidia-cuda-nvcc-cu12"
        )
    return there


def _run(
    command: list[str], cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    print(built())
