"""Optimizers for programs in PyTorch: ``fastopt.torch.Adam(model.parameters(), lr=1e-3)``."""

from fastopt.interop.torch_optim import __dir__ as __dir__
from fastopt.interop.torch_optim import __getattr__ as __getattr__
