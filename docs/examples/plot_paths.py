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
    folder / "paths_learning_rate.png",
    "Gradient descent with a learning rate that is too small creeps; with one too large it swings "
    "wider and wider across the valley.",
)
show(
    folder / "paths_momentum.png",
    "Gradient descent zigzags across a narrow valley; momentum with the same learning rate "
    "sways a few times and then runs along its floor.",
)
show(
    folder / "paths_rmsprop.png",
    "Gradient descent zigzags; RMSProp turns straight into the valley floor, Adam sways around it.",
)
show(
    folder / "paths_rmsprop_lr.png",
    "RMSProp with three learning rates: the small one does not get there, the middle one does, and "
    "the large one jumps across the minimum for ever.",
)
# sphinx_gallery_end_ignore

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/paths.py
