"""More than one process: gradients are averaged over ranks, and state can be shared out."""

from fastopt.distributed.parallel import DataParallel as DataParallel
from fastopt.distributed.sharded import Sharded as Sharded
