r"""
Too large, too small
====================

The learning rate is the first number to get right. On the valley of the last page,
:math:`f = (x^2 + 25\,y^2)/2`, its whole range can be tried.

``walk`` makes the steps and writes down the points, as the loop of the last page did. It, the
valley and the look of the pictures are in ``docs/learning.py``; from here on they are imported.
"""

import numpy as np
from learning import cost, start, walk

import fastopt

paths = {
    lr: walk(fastopt.SGD(start.copy(), lr=lr), steps=40)
    for lr in (0.005, 0.07, 0.0805)
}
for lr, points in paths.items():
    (x, y), height = np.abs(points[-1]), cost(points[-1])
    print(
        f"lr = {lr:6}: still {x:6.3f} away along, {y:6.3f} across; cost {height:.3g}"
    )

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, VERMILION, contours, keep, path, picture

small, good, large = paths.values()
assert cost(good[-1]) < 0.01 * cost(small[-1]) < cost(large[-1])
assert abs(large[-1, 1]) > abs(large[0, 1])
assert np.abs(good[-1, 0]) < 1 < 5 < np.abs(small[-1, 0])
figure, axes = picture(
    "Three paths of forty steps. With a learning rate of 0.005 the path bends smoothly into the "
    "valley and stops far from the minimum; with 0.07 it zigzags and gets near; with 0.0805 it "
    "swings wider and wider across the valley.",
    3,
    height=7.0,
    sharex=True,
)
for one, (lr, points), style, word in zip(
    axes,
    paths.items(),
    (BLUE, GREEN, VERMILION),
    (
        "too small: it creeps",
        "it gets near",
        "too large: it swings wider and wider",
    ),
    strict=True,
):
    contours(one, y=(-2.6, 2.6))
    path(one, points, style, "")
    one.set_title(f"lr = {lr}, {word}")
for one in axes[:-1]:
    one.set_xlabel("")
# sphinx_gallery_end_ignore

# %%
# .. _learn-limit:
#
# Where the limit is
# ------------------
#
# A step multiplies the distance across the valley by :math:`1 - 25\,\mathrm{lr}`. If that is below
# -1, each step lands further out than the one before, and the path runs away. So the limit is
#
# .. math:: \mathrm{lr} < \frac{2}{\text{largest curvature}} = \frac{2}{25} = 0.08
#
# The steepest direction alone sets it, however flat the others are. Trying shows the same:

rates = np.geomspace(1e-4, 0.1, 200)
ends = np.array(
    [cost(walk(fastopt.SGD(start.copy(), lr=lr), steps=40)[-1]) for lr in rates]
)
best = rates[ends.argmin()]
diverges = rates[ends > cost(start)].min()
print(f"the best of 200 learning rates: {best:.4f}")
print(f"the first that ends higher than it began: {diverges:.4f}")

# sphinx_gallery_start_ignore
assert 0.07 < best < 0.08
assert 0.08 < diverges < 0.085
keep(
    "rates",
    best=f"{best:.3f}",
    tenth=f"{ends[np.abs(rates - best / 10).argmin()]:.2g}",
    ratio=f"{diverges / best:.2f}",
)
figure, axes = picture(
    "The cost after forty steps against the learning rate: it falls slowly as the learning rate "
    "grows, reaches its lowest point just below 0.08, and shoots up behind it.",
    height=3.4,
)
axes.loglog(rates, ends, **BLUE)
axes.axvline(0.08, **VERMILION)
axes.annotate(
    "limit, 2 / 25", (0.08, 1e5), (-6, 0), textcoords="offset points", ha="right"
)
axes.axhline(cost(start), color="0.5", linewidth=1)
axes.annotate(
    "cost at the start", (1.1e-4, cost(start)), (0, 5), textcoords="offset points"
)
axes.set(xlabel="learning rate", ylabel="cost after 40 steps", ylim=(1e-3, 1e6))
# sphinx_gallery_end_ignore

# %%
# The curve has a gentle side and a cliff. A learning rate that is ten times too small still works
# a little (the cost falls to :number:`rates.tenth`). One that is :number:`rates.ratio` times the
# best is past the cliff. The best, :number:`rates.best`, stands close to the edge.
# So: raise the learning rate until it breaks, then go back to a half or a third.
# :ref:`learn-choose-lr` does that for you.
