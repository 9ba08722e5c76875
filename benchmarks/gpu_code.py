"""What NVRTC makes of the kernels: registers, blocks on a multiprocessor, instructions an element.

    PYTHONPATH=tests python benchmarks/gpu_code.py

Needs CuPy, NVRTC and nvdisasm, and no GPU; tests/helpers/cuda/code_limits.py has the limits.
"""

from __future__ import annotations

import cupy

from helpers.cuda import code_limits, sass


def main() -> None:
    """Print a row for each kernel, with a column for each architecture."""
    heads = [f"sm_{number}" for number in code_limits.ARCHITECTURES]
    print(f"| kernel | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, limited in code_limits.table().items():
        kernel = cupy.ElementwiseKernel(**limited.text)
        cells = []
        for architecture in code_limits.ARCHITECTURES:
            code = sass.code_of(kernel, architecture)
            said = f"{code.registers} registers, {code.blocks(limited.threads)} blocks"
            if limited.instructions:
                said += f", {len(code.way()) / limited.elements:.1f} instructions"
            cells.append(said + f", {code.spilled} bytes spilled" * bool(code.spilled))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
