r"""
A network of scikit-learn
=========================

scikit-learn's network on digits beside the same one here, a grid search over two optimizers, and
``partial_fit`` that goes on.

::

    python examples/sklearn_digits.py
"""

from learning import run_example

run_example("sklearn_digits")

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/sklearn_digits.py
