"""What acts around any rule: one file per option, each with its three forms."""

from fastopt_kernels.around.fragment import Fragment

__all__ = ["Fragment"]
