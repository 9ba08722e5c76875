r"""
Train a network on digits
=========================

A two-layer network, gradients written by hand, and any optimizer.

::

    python examples/train_digits.py --epochs 15
"""

from learning import run_example, show

folder = run_example("train_digits", "--epochs", "15")

# sphinx_gallery_start_ignore
show(
    folder / "train_digits.png",
    "Training loss and accuracy on held-out digits over fifteen epochs: the loss falls from "
    "above one to about a twentieth, the accuracy rises to about 98 percent.",
)
# sphinx_gallery_end_ignore

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/train_digits.py
