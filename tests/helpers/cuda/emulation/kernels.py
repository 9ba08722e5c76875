"""Kernels as CuPy generates them, built by g++ for the CPU instead of by NVRTC for a GPU."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from helpers.cuda.emulation import build

_HEAD = re.compile(r'extern "C" __global__ void (\w+)\((.*?)\) \{', re.DOTALL)
_TEXT = """
static thread_local void **all_arguments;
static void kernel() {{ {name}({arguments}); }}
extern "C" {{
int argument_sizes[] = {{ {sizes} }};
int argument_count = {count};
int run(void **given, unsigned grid, unsigned block) {{
    all_arguments = given;
    return run_all(kernel, grid, block, {together}, {flush});
}}
}}
"""


class Failed(Exception):
    """g++ does not take a kernel."""


def library(source: str) -> Path:
    """Return the shared library of a kernel, which is built if it is not in the cache."""
    own = re.sub(r"#include .*", "", source)
    # A large argument is not copied for every thread.
    own = re.sub(r"(const cupy::UnstructuredVoid<\d+>) (\w+)", r"\1 &\2", own, count=1)
    text = '#include "kernel.h"\n' + own + _caller(own)
    header = (build.HERE / "kernel.h").read_text()
    key = hashlib.sha256("\0".join((text, header, *build.KERNEL_FLAGS)).encode()).hexdigest()[:24]
    target = build.folder().parent / "kernels" / f"{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        command = [
            "g++",
            *build.KERNEL_FLAGS,
            f"-I{build.built()}",
            "-x",
            "c++",
            "-",
            "-o",
            str(made),
        ]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if done.returncode:
            raise Failed(done.stderr[:2000])
        made.rename(target)
    return target


class Compiled(NamedTuple):
    """What CuPy has compiled."""

    source: str
    options: tuple[str, ...]


def compiled(path: str) -> Compiled:
    """Return what a library was built from, in this process."""
    return _compiled[path]


_compiled: dict[str, Compiled] = {}


def _caller(source: str) -> str:
    """Return what runs a kernel: all of its threads, block by block."""
    head = _HEAD.search(source)
    assert head, source
    types = [re.match(r"(.*?)\w+$", one.strip(), re.DOTALL)[1].strip() for one in _split(head[2])]  # type: ignore[index]
    plain = [one.removeprefix("const ").removesuffix(" &") for one in types]
    return _TEXT.format(
        name=head[1],
        arguments=", ".join(f"*({one} *)all_arguments[{k}]" for k, one in enumerate(plain)),
        sizes=", ".join(f"(int)sizeof({one})" for one in plain),
        count=len(plain),
        together="block" if "__syncthreads" in source else 32 if "__syncwarp" in source else 0,
        flush=str("double" not in head[2]).lower(),
    )


def _split(parameters: str) -> list[str]:
    """Split at the commas that are outside of brackets."""
    depth, found = 0, [""]
    for character in parameters:
        depth += (character in "<(") - (character in ">)")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def compiler(module: Callable[[], Any], names: list[str]) -> Callable[..., Any]:
    """Return what stands for CuPy's compilation; it adds to ``names`` what it compiles."""

    def compile_for_cpu(source: str, options: tuple[str, ...], *_: Any, **__: Any) -> Any:
        head = _HEAD.search(source)
        assert head
        names.append(head[1])
        path = str(library(source))
        _compiled[path] = Compiled(source, options)
        made = module()
        made.load(b"SO:" + path.encode() + b"\0")
        return made

    return compile_for_cpu
