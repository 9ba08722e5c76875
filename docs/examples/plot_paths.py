r"""
Paths down a valley
===================

Gradient descent, momentum, RMSProp and Adam on the valley of Learn, from one program.

::

    python examples/paths.py --out docs/images
"""

from learning import run_example, show

folder = run_example("paths", "--out", ".")

# sphinx_gallery_start_ignore
show(
    folder / "paths_momentum.png",
    "Gradient descent zigzags across a narrow valley; momentum with the same learning rate "
    "sways a few times and then runs along its floor.",
)
show(
    folder / "paths_rmsprop.png",
    "Gradient descent zigzags; RMSProp turns straight into the valley floor, Adam sways around it.",
)
# sphinx_gallery_end_ignore

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/paths.py
