r"""
.. _learn-eps:

ε, and where it goes
====================

If all gradients of a parameter so far were 0, :math:`g/\sqrt{v}` is 0/0. So a tiny ε is added. Two
places are in use, and they are **not** the same:

.. math::

   \text{outside the root:}\quad \frac{g}{\sqrt{v} + \varepsilon}
   \qquad\qquad
   \text{inside it:}\quad \frac{g}{\sqrt{v + \varepsilon}}

Outside, ε is added to a gradient's size. Inside, it is added to a gradient's *square*, and what it
comes to is its root. With ε = 1e-8, that is 1e-4: ten thousand times as much.
"""

import numpy as np

import fastopt


def step_length(sizes, **options):
    """Return the last of 200 steps under steady gradients, as a share of lr."""
    p = np.zeros(len(sizes))
    opt = fastopt.RMSprop(p, lr=1.0, beta=0.9, **options)
    for _ in range(200):
        before = p.copy()
        opt.step(sizes)
    return before - p


sizes = np.array([1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
outside = step_length(sizes, eps=1e-8)
inside = step_length(sizes, eps=1e-8, eps_inside_sqrt=True)
print("gradient   ε = 1e-8 outside   ε = 1e-8 inside")
for size, out, within in zip(sizes, outside, inside, strict=True):
    print(f"{size:8g}   {out:16.6f}   {within:15.6f}")

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, ORANGE, VERMILION, keep, picture

at = outside[3], inside[3]
sizes = np.geomspace(1e-11, 10, 60)
lines = {
    "outside, ε = 1e-8": {"eps": 1e-8},
    "inside, ε = 1e-8": {"eps": 1e-8, "eps_inside_sqrt": True},
    "inside, ε = 1e-16": {"eps": 1e-16, "eps_inside_sqrt": True},
    "outside, ε = 1e-3": {"eps": 1e-3},
}
found = {name: step_length(sizes, **o) for name, o in lines.items()}
half = {
    name: sizes[np.abs(lengths - 0.5).argmin()] for name, lengths in found.items()
}
assert 3e-9 < half["outside, ε = 1e-8"] < 3e-8
assert 2e-5 < half["inside, ε = 1e-8"] < 2e-4
assert at[0] > 0.98
assert at[1] < 0.02
tame = step_length(np.array([1e-6]), eps=1e-5)[0]
assert tame < 0.1
keep("eps", outside=f"{at[0]:.2f}", inside=f"{at[1]:.2f}", tame=f"{tame:.2f}")
figure, axes = picture(
    "Length of a step against the size of a steady gradient. Each curve is flat at one learning "
    "rate for large gradients and falls in proportion below a knee. The knee is at 1e-8 for an "
    "epsilon of 1e-8 outside the root, and at 1e-4 for the same number inside.",
    height=3.8,
)
for (name, lengths), style in zip(
    found.items(), (BLUE, VERMILION, GREEN, ORANGE), strict=True
):
    axes.loglog(sizes, lengths, label=name, **style)
axes.set(
    xlabel="size of the gradient", ylabel="length of the step / lr", ylim=(1e-4, 2)
)
axes.legend(loc="lower right")
# sphinx_gallery_end_ignore

# %%
# Each curve has a knee, where the gradient is as large as ε (or as √ε, if ε is inside). Far above it,
# ε does nothing: the step is as long as the learning rate says. Far below it,
# ε is all of the denominator, and the step is g/ε (or g/√ε): gradient descent with a large learning
# rate. A gradient of 1e-6 with ε = 1e-8 makes :number:`eps.outside` of a step if ε is outside, and
# :number:`eps.inside` if it is inside.
#
# .. _learn-eps-choose:
#
# What follows
# ------------
#
# * To get the same from both, the ε inside has to be the square of the one outside. Far
#   above and far below the knee they are then equal; at the knee they differ:

sizes = np.geomspace(1e-11, 1.0, 200)
outside = step_length(sizes, eps=1e-8)
inside = step_length(sizes, eps=1e-16, eps_inside_sqrt=True)
worst = np.abs(inside / outside - 1)
print("1e-8 outside and 1e-16 inside differ by")
print(f"{worst.max():.0%} at a gradient of {sizes[worst.argmax()]:.0e},")
print(f"{worst[0]:.1%} at 1e-11 and {worst[-1]:.1%} at 1")

# sphinx_gallery_start_ignore
assert 0.3 < worst.max() < 0.45
assert max(worst[0], worst[-1]) < 0.002
# sphinx_gallery_end_ignore

# %%
# * fastopt and PyTorch add ε outside (``eps=1e-8``). optax and Keras put that of RMSProp inside.
#   For their numbers: ``eps_inside_sqrt=True``.
# * ε is also a choice: "treat gradients below this size as nothing". Where most gradients of a
#   network are noise of size 1e-6, ε = 1e-8 blows the noise up to :number:`eps.outside` of a full
#   step. With ε = 1e-5 it is :number:`eps.tame`.
# * In Adam there is one more place. ε can be added before or after v is
#   :ref:`corrected <learn-bias>`. fastopt, PyTorch and optax add it after, Keras before
#   (``eps_hat=True``). With gradients of ordinary size nobody sees it.
#   The first step with lr = 1:

g = np.array([1.0, 1e-6])
for hat in (False, True):
    p = np.zeros(2)
    fastopt.Adam(p, lr=1.0, eps=1e-8, eps_hat=hat).step(g)
    print(
        f"eps_hat={hat!s:5}: {-p[0]:.4f} for a gradient of 1, {-p[1]:.4f} for 1e-6"
    )

# sphinx_gallery_start_ignore
assert abs(p[0] + 1) < 1e-3
assert abs(p[1] + 1) > 0.1
# sphinx_gallery_end_ignore
