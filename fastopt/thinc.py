"""Optimizers for thinc: ``model.finish_update(fastopt.thinc.Optimizer(1e-3))``."""

from fastopt.interop.thinc import Optimizer as Optimizer
