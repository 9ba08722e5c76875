r"""
Every schedule in one picture
=============================

What to write behind ``lr=``, and the learning rate that it gives in each step.

::

    python examples/schedules.py --out docs/images
"""

from learning import run_example, show

folder = run_example("schedules", "--out", ".")

# sphinx_gallery_start_ignore
show(
    folder / "schedules.png",
    "Twenty-one small pictures, one for each schedule, with the learning rate over a thousand "
    "steps under the words that make it.",
)
# sphinx_gallery_end_ignore

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/schedules.py
