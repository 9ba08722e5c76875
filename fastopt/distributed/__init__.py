"""More than one process: gradients are averaged over ranks, and state can be shared out."""

from fastopt.distributed.nccl_ranks import nccl as nccl
from fastopt.distributed.parallel import DataParallel as DataParallel
from fastopt.distributed.sharded import Sharded as Sharded
from fastopt.errors import RankError as RankError
