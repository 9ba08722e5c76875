r"""
A network with autograd
=======================

The gradients come from HIPS autograd, the steps from fastopt.

::

    python examples/autograd_net.py
"""

from learning import run_example

run_example("autograd_net")

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/autograd_net.py
