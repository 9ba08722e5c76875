r"""
Many fits at once
=================

A step on a slope, fitted to profiles of real terrain: five numbers each, from three starts, all
side by side. Here to the first twenty rows of the map.

::

    python examples/many_fits.py --rows 20 --picture many_fits.png
"""

from learning import run_example, show

folder = run_example("many_fits", "--rows", "20", "--picture", "many_fits.png")

# sphinx_gallery_start_ignore
show(
    folder / "many_fits.png",
    "A map of terrain with the places where profiles show a step, and some profiles with the "
    "steps that were fitted.",
)
# sphinx_gallery_end_ignore

# %%
# The program
# -----------
#
# .. literalinclude:: ../../examples/many_fits.py
