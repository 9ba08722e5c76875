"""Train the network of train_digits.py in several processes, to the same bits for any number.

    pip install -e '.[mpi,examples]' && mpiexec -n 2 python examples/train_digits_mpi.py

Each step takes 96 images, as 12 micro-batches of 8, which are numbered over all processes: rank k
of n has the numbers k, k + n, k + 2 n, ... Their gradients are added up in the order of the
numbers whatever rank they are on, so that 1, 2, 3, 4 or 12 processes (and any other number, which
only share the work out less evenly) end in the same weights. The last line has a hash of them to
compare.

``--sharded`` leaves 1 / n of Adam's state in each process instead of all of it; the bits stay the
same. With FASTOPT_BACKEND=cupy each process takes a GPU of its own (on every machine they are dealt
out in turn). docs/use/machines.md says more, also of other MPIs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from types import ModuleType
from typing import Any

import numpy as np
from train_digits import (
    Images,
    Params,
    accuracy,
    initial_params,
    load_images,
    loss_and_gradients,
)

import fastopt
from fastopt.distributed import DataParallel, Sharded

try:
    from mpi4py import MPI
except ImportError as error:  # mpi4py, or the MPI that it looks for
    sys.exit(f"train_digits_mpi.py: {error}\npip install -e '.[mpi]' brings mpi4py and an MPI")

MICRO_BATCHES, MICRO_BATCH_SIZE = 12, 8
BATCH_SIZE = MICRO_BATCHES * MICRO_BATCH_SIZE
LR = 0.005  # for batches three times as large as those of train_digits.py


def namespace(comm: Any) -> ModuleType:
    """Return numpy or cupy, as FASTOPT_BACKEND says; on cupy go to a device of this process."""
    xp = fastopt.array_namespace()
    if xp is not np:
        on_this_machine = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_rank()
        xp.cuda.Device(on_this_machine % xp.cuda.runtime.getDeviceCount()).use()
    return xp


def train_epoch(
    xp: ModuleType,
    params: Params,
    opt: DataParallel | Sharded,
    images: Images,
    rng: np.random.Generator,
) -> float:
    """Go once through the images in a random order; return the sum of this rank's losses."""
    count = len(images.x)
    order = xp.asarray(rng.permutation(count))  # the same in all processes, as their seed is
    x, y = images.x[order], images.y[order]
    total = xp.zeros((), dtype=xp.float64)
    for start in range(0, count, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, count)
        firsts = range(start, stop, MICRO_BATCH_SIZE)  # where micro-batches begin, by number
        for first in firsts[opt.rank :: opt.size]:
            part = slice(first, min(first + MICRO_BATCH_SIZE, stop))
            loss, grads = loss_and_gradients(xp, params, x[part], y[part])
            images_here = part.stop - part.start
            opt.add(grads, weight=images_here)  # the mean is one over images, not micro-batches
            total += loss * images_here
        opt.step()  # also where there are fewer micro-batches, or none
    return float(total)


def fingerprint(params: Params) -> str:
    """Return a short hash of all bits of the weights."""
    found = hashlib.sha256()
    for name in sorted(params):
        array = params[name]
        found.update((array if isinstance(array, np.ndarray) else array.get()).tobytes())
    return found.hexdigest()[:16]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line, checked."""
    parser = argparse.ArgumentParser(
        description="Train a two-layer network on handwritten digits in several processes: "
        "mpiexec -n 2 python examples/train_digits_mpi.py",
    )
    parser.add_argument("--sharded", action="store_true", help="share the state out")
    parser.add_argument("--epochs", type=int, default=30, help="default: 30")
    parser.add_argument("--lr", type=float, default=LR, help=f"default: {LR:g}")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; default: 0")
    given = parser.parse_args(arguments)
    if given.epochs < 1:
        parser.error(f"--epochs must be at least 1; got {given.epochs}")
    return given


def main(arguments: list[str] | None = None) -> None:
    """Train, and say in one line how it went and what the weights are."""
    given = parse(arguments)
    comm = MPI.COMM_WORLD
    rng = np.random.default_rng(given.seed)
    try:
        xp = namespace(comm)
        training, held_out = load_images(xp)
        params = initial_params(xp, rng)
        around = Sharded if given.sharded else DataParallel
        opt = around(fastopt.Adam(params, lr=given.lr), comm)
    except (fastopt.FastoptError, ValueError) as error:  # a backend, a learning rate
        sys.exit(f"train_digits_mpi.py, rank {comm.Get_rank()}: {error}")

    loss = 0.0
    for _ in range(given.epochs):
        loss = comm.allreduce(train_epoch(xp, params, opt, training, rng)) / len(training.x)
    if opt.rank == 0:
        print(
            f"{around.__name__} on {opt.size} x {opt.innermost.backend}: "
            f"{accuracy(xp, params, held_out):.2%} of {len(held_out.x)} held-out digits read "
            f"correctly, training loss {loss:.6f}, weights {fingerprint(params)}"
        )


if __name__ == "__main__":
    main()
