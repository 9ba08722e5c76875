"""The update rules of fastopt: one file per rule, with its form for each backend."""

from fastopt_kernels.rule import AnyRule, ArrayRule, Memory, Rule, Sums

__all__ = ["AnyRule", "ArrayRule", "Memory", "Rule", "Sums"]
