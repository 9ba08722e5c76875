r"""
.. _learn-adam:

Adam: both at once
==================

Momentum turns the step towards where the gradients agree. RMSProp divides by their usual size.
*Adam* does both, with bias correction:

.. math::

   m &\leftarrow \beta_1 m + (1 - \beta_1)\, g    &&\quad\text{as in momentum} \\
   v &\leftarrow \beta_2 v + (1 - \beta_2)\, g^2  &&\quad\text{as in RMSProp} \\
   \hat{m} &= m / (1 - \beta_1^t)                &&\quad\text{bias correction} \\
   \hat{v} &= v / (1 - \beta_2^t)                &&\quad\text{of both} \\
   p &\leftarrow p - \mathrm{lr} \cdot \frac{\hat{m}}{\sqrt{\hat{v}} + \varepsilon}

The usual numbers are :math:`\beta_1 = 0.9`, :math:`\beta_2 = 0.999.`
"""

import numpy as np
from learning import gradient, start, walk

import fastopt

# The same by hand, in five lines, to see that nothing else is in it.
p = start.copy()
m = v = np.zeros(2)
by_hand = [p.copy()]
for t in range(1, 41):
    g = gradient(p)
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    p = p - 0.3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    by_hand.append(p.copy())

adam = walk(fastopt.Adam(start.copy(), lr=0.3), steps=40)
print(
    "largest difference from fastopt.Adam:", np.abs(np.array(by_hand) - adam).max()
)

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, VERMILION, contours, keep, path, picture

assert np.abs(np.array(by_hand) - adam).max() < 1e-12
rmsprop = walk(fastopt.RMSprop(start.copy(), lr=0.3), steps=40)
figure, axes = picture(
    "RMSProp turns straight into the valley floor and walks along it. Adam with the same learning "
    "rate goes as fast, and sways slowly around the floor, as momentum does.",
    2,
    height=5.0,
    sharex=True,
)
for one, points, style, title in (
    (axes[0], rmsprop, VERMILION, "RMSProp, lr = 0.3"),
    (axes[1], adam, GREEN, "Adam, lr = 0.3"),
):
    contours(one)
    path(one, points, style, "")
    one.set_title(title)
axes[0].set_xlabel("")
# sphinx_gallery_end_ignore

# %%
# The average in Adam's numerator sways, as momentum does; in this valley without any noise RMSProp
# looks neater. The next section shows what Adam has the average for.
#
# .. _learn-adam-ratio:
#
# How long a step is
# ------------------
#
# The step is lr times :math:`\hat{m}/\sqrt{\hat{v}}`. That is 1 if all gradients agree. It is near 0
# if they cancel. So Adam goes fast where the gradients agree and slows down where they only
# scatter. Three parameters, each with gradients whose root mean square is 1:

rng = np.random.default_rng(0)
steps = 2000
kinds = {
    "steady": np.ones(steps),
    "a little more plus than minus": 0.3 + 0.95 * rng.standard_normal(steps),
    "as often plus as minus": rng.standard_normal(steps),
}
p, q = np.zeros(3), np.zeros(3)
adam, rmsprop = (
    fastopt.Adam(p, lr=1.0),
    fastopt.RMSprop(q, lr=1.0, beta=0.999, bias_correction=True),
)
adam_steps, rms_steps = [], []
for g in np.array(list(kinds.values())).T:
    before = p.copy(), q.copy()
    adam.step(g)
    rmsprop.step(g)
    adam_steps.append(before[0] - p)
    rms_steps.append(before[1] - q)

mean_adam = np.abs(adam_steps[500:]).mean(axis=0)
mean_rms = np.abs(rms_steps[500:]).mean(axis=0)
for name, a, r in zip(kinds, mean_adam, mean_rms, strict=True):
    print(f"{name:30} step of Adam {a:.2f} lr, of RMSProp {r:.2f} lr")

# sphinx_gallery_start_ignore
assert mean_adam[0] > 0.99
assert mean_adam[0] > 2 * mean_adam[1] > 2.5 * mean_adam[2]
assert mean_rms.min() > 0.7
keep(
    "ratio_adam",
    noise=f"{mean_adam[2]:.2f}",
    rms=f"{mean_rms[2]:.2f}",
)
figure, axes = picture(
    "Adam's step over 150 steps for three kinds of gradients. Under a steady gradient it is "
    "exactly one learning rate; under one that is plus a little more often it wavers around a "
    "third; under pure noise it wavers around zero.",
    height=3.4,
)
shown = np.array(adam_steps)[500:650]
for k, style in enumerate((BLUE, GREEN, VERMILION)):
    axes.plot(shown[:, k], label=list(kinds)[k], **style)
axes.axhline(0, color="black", linewidth=0.8)
axes.set(xlabel="step", ylabel="Adam's step / lr", ylim=(-0.9, 1.8))
axes.legend(loc="upper right", ncols=1)
# sphinx_gallery_end_ignore

# %%
# Under noise alone Adam's steps are :number:`ratio_adam.noise` of the learning rate, RMSProp's
# :number:`ratio_adam.rms`: it has no average above the line, so each noisy gradient makes a full
# step.
#
# .. _learn-adam-burst:
#
# A step can be several learning rates long
# -----------------------------------------
#
# It is longer than lr if the gradients suddenly become larger: v follows more slowly than m. Here
# they are tiny for a long time, and then 1:

p = np.zeros(1)
opt = fastopt.Adam(p, lr=1.0)
quiet, burst = 8000, []
for size in [1e-9] * quiet + [1.0] * 6000:
    before = p.copy()
    opt.step(np.array([size]))
    burst.append(abs(p - before)[0])
burst = np.array(burst[quiet:])
for t in (1, 2, 5, 12, 50, 500, 5000):
    print(f"step {t:4} of the large gradients: {burst[t - 1]:.2f} lr")

# sphinx_gallery_start_ignore
assert abs(burst[0] - 0.1 / np.sqrt(0.001)) < 1e-3
assert abs(burst.argmax() + 1 - 12) <= 1
keep(
    "burst",
    first=f"{burst[0]:.2f}",
    most=f"{burst.max():.1f}",
    at=f"{burst.argmax() + 1}",
    until=f"{np.flatnonzero(burst > 1.05)[-1] + 1}",
)
# sphinx_gallery_end_ignore

# %%
# The first is :math:`(1-\beta_1)/\sqrt{1-\beta_2}` = :number:`burst.first` lr long: a tenth of the new
# gradient is in m at once, and a thousandth of its square in v. Then m fills sooner than v, and step
# :number:`burst.at` is the longest, :number:`burst.most` lr. More than 5 % too long are the first
# :number:`burst.until`. (The same happens at the start if the
# :ref:`bias correction <learn-bias>` is left out.)
#
# .. _learn-adam-parts:
#
# What each part is for
# ---------------------
#
# * Leave :math:`\beta_1` at 0, and Adam is RMSProp with bias correction:

a = walk(fastopt.Adam(start.copy(), lr=0.1, betas=(0.0, 0.9)), steps=40)
r = walk(
    fastopt.RMSprop(start.copy(), lr=0.1, beta=0.9, bias_correction=True), steps=40
)
print("largest difference:", np.abs(a - r).max())

# sphinx_gallery_start_ignore
assert np.abs(a - r).max() < 1e-12
# sphinx_gallery_end_ignore

# %%
# * m changes the *direction* (:ref:`learn-momentum-cancels`), v the *length* in each direction
#   (:ref:`learn-large-small`), ε keeps 0/0 away (:ref:`learn-eps`), the corrections make the first
#   steps as long as later ones (:ref:`learn-bias`).
# * What a β means in steps is :ref:`next <learn-beta>`.
