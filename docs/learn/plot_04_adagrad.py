r"""
.. _learn-adagrad:

AdaGrad: a step length for each direction
=========================================

Momentum keeps one learning rate for all directions. *AdaGrad* gives each parameter its own. It adds
up the squares of all gradients that the parameter has had, and divides by the root of the sum:

.. math::

   s &\leftarrow s + g^2 \\
   p &\leftarrow p - \mathrm{lr} \cdot \frac{g}{\sqrt{s} + \varepsilon}

All of it is done for each parameter on its own: x has its s, and y has its s. ε is a tiny number
that keeps 0/0 away; :ref:`it has a page <learn-eps>`.
"""

import numpy as np
from learning import cost, gradient, start, walk

import fastopt

point = start.copy()
opt = fastopt.Adagrad(point, lr=1.0)
g = gradient(point)
opt.step(g)
print("gradient:             ", g)
print("first step:           ", point - start)
print("step / gradient size: ", (point - start) / np.abs(g))

# sphinx_gallery_start_ignore
from learning import BLUE, VERMILION, contours, keep, path, picture

assert np.allclose(np.abs(point - start), 1.0)
# sphinx_gallery_end_ignore

# %%
# In the first step :math:`\sqrt{s} = |g|`, so only the sign of the gradient is left. Both
# directions move by the learning rate, though one gradient is several times the other. **The
# division takes the steepness out of the step.**

adagrad = walk(fastopt.Adagrad(start.copy(), lr=1.2), steps=40)
descent = walk(fastopt.SGD(start.copy(), lr=0.078), steps=40)

# sphinx_gallery_start_ignore
assert cost(adagrad[5]) < cost(descent[5])
changes = (np.diff(np.sign(adagrad[:, 1])) != 0).sum()
changes_descent = (np.diff(np.sign(descent[:, 1])) != 0).sum()
assert changes <= 3 < 30 < changes_descent
figure, axes = picture(
    "Gradient descent zigzags across the valley. AdaGrad turns into the valley within a few steps "
    "and goes along it without zigzag; its steps become shorter and shorter.",
    height=3.2,
)
contours(axes)
path(axes, descent, BLUE, "gradient descent, lr = 0.078")
path(axes, adagrad, VERMILION, "AdaGrad, lr = 1.2")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
# sphinx_gallery_end_ignore

# %%
# .. _learn-adagrad-scale:
#
# The scale of a direction drops out
# ----------------------------------
#
# Make the valley a hundred times as steep across. Gradient descent would need a learning rate a
# hundred times smaller. AdaGrad does not notice:

curvatures = np.array([1.0, 2500.0])
steeper = walk(fastopt.Adagrad(start.copy(), lr=1.2), 40, lambda p: curvatures * p)
print("largest difference of the two paths:", np.abs(steeper - adagrad).max())

# sphinx_gallery_start_ignore
assert np.abs(steeper - adagrad).max() < 1e-6
# sphinx_gallery_end_ignore

# %%
# .. _learn-adagrad-slows:
#
# The steps only get shorter
# --------------------------
#
# s is a sum. It never falls. Under a steady gradient it grows with the number of steps t, and the
# step shrinks like :math:`1/\sqrt{t}`. Below, the gradient is always 3:

p = np.zeros(1)
opt = fastopt.Adagrad(p, lr=1.0)
lengths = []
for _ in range(1000):
    before = p.copy()
    opt.step(np.array([3.0]))
    lengths.append(abs(p - before)[0])
for t in (1, 4, 25, 100, 1000):
    print(f"step {t:4}: length {lengths[t - 1]:.4f}")

# sphinx_gallery_start_ignore
t = np.arange(1, 1001)
assert np.allclose(lengths, 1 / np.sqrt(t), rtol=1e-6)
keep("adagrad", hundredth=f"{lengths[99]:.2f}", thousandth=f"{lengths[999]:.3f}")

p, q = np.zeros(1), np.zeros(1)
rare, often = fastopt.Adagrad(p, lr=1.0), fastopt.Adagrad(q, lr=1.0)
steps_rare, steps_often = [], []
for i in range(1, 401):
    before = p.copy(), q.copy()
    often.step(np.array([1.0]))
    if i % 50 == 0:
        rare.step(np.array([1.0]))
        steps_rare.append((i, abs(p - before[0])[0]))
    steps_often.append(abs(q - before[1])[0])
assert steps_rare[-1][1] > 5 * steps_often[-1]
keep("rare", rare=f"{steps_rare[-1][1]:.2f}", often=f"{steps_often[-1]:.2f}")
figure, axes = picture(
    "Length of AdaGrad's step against the step number. A parameter whose gradient comes in every "
    "step has ever shorter steps; one whose gradient comes in every fiftieth keeps long ones.",
    height=3.4,
)
axes.plot(np.arange(1, 401), steps_often, label="a gradient in every step", **BLUE)
axes.plot(
    *zip(*steps_rare, strict=True),
    label="a gradient in every fiftieth step",
    marker="s",
    **VERMILION,
)
axes.set(xlabel="step", ylabel="length of the step", ylim=(0, 1.1))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# After a hundred steps the step is :number:`adagrad.hundredth` of the first, after a thousand
# :number:`adagrad.thousandth`. That can be right. In the picture one parameter gets a gradient in
# every step, and another in every fiftieth. (A word that is rare in a text does so.) At the end the
# rare one still moves by :number:`rare.rare`, the other by :number:`rare.often`. Each is as fast as
# it has news.
#
# In a network nearly all parameters get a gradient in every step, for a very long time. There AdaGrad
# slows down before it has arrived. RMSProp lets it forget: :ref:`next <learn-rmsprop>`.
