"""The update rules of fastopt: one file per rule, each with its three forms."""

from fastopt_kernels.rule import Rule

__all__ = ["Rule"]
