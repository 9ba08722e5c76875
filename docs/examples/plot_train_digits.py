r"""
Train a network on digits
=========================

A two-layer network, gradients written by hand, and any optimizer.

::

    python examples/train_digits.py
"""

from learning import run_example, show

folder = run_example("train_digits")

# sphinx_gallery_start_ignore
show(
    folder / "train_digits.png",
    "Training loss and accuracy on held-out digits over thirty epochs: the loss falls from "
    "above one to below two hundredths, the accuracy rises to about 98 percent.",
)
# sphinx_gallery_end_ignore

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/train_digits.py
