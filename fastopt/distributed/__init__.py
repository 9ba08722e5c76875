"""More than one process: gradients are averaged over ranks, and state can be shared out."""

from fastopt.distributed.nccl_ranks import nccl
from fastopt.distributed.parallel import DataParallel
from fastopt.distributed.ranks import mpi
from fastopt.distributed.sharded import Sharded

__all__ = ["DataParallel", "Sharded", "mpi", "nccl"]
