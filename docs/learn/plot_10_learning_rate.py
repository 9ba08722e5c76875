r"""
.. _learn-lr:

Choosing the learning rate
==========================

The learning rate means something else in each method. In gradient descent it multiplies the
gradient: near the minimum the gradient is small, and so is the step. In RMSProp and Adam it *is*
about the length of the step, however large or small all gradients are. That is why they ask for more care at the end.
"""

import textwrap

import numpy as np
from learning import (
    batches,
    digits,
    gradient,
    loss_and_gradients,
    network,
    start,
    walk,
)

import fastopt


def distance(points):
    return np.linalg.norm(points, axis=-1)


descent = walk(fastopt.SGD(start.copy(), lr=0.07), steps=201)
rmsprop = walk(fastopt.RMSprop(start.copy(), lr=0.3), steps=201)
print("           gradient descent          RMSProp, lr = 0.3")
print("step     gradient     step       gradient     step")
for t in (1, 10, 30, 60, 100, 150, 199):
    cells = []
    for points in (descent, rmsprop):
        size, moved = (
            np.linalg.norm(gradient(points[t])),
            distance(points[t + 1] - points[t]),
        )
        cells.append(f"{size:12.4f} {moved:8.4f}")
    print(f"{t:4} {cells[0]}  {cells[1]}")

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, ORANGE, VERMILION, keep, picture

moved = {
    name: distance(np.diff(p, axis=0))
    for name, p in (("gd", descent), ("rms", rmsprop))
}
assert moved["gd"][-1] < 1e-3 * moved["gd"][0]
assert moved["rms"][120:].min() > 0.25
assert moved["rms"][40:70].min() < 0.1  # "shorter and shorter"
last_slope = np.abs(gradient(rmsprop[199]))
assert abs(last_slope[1] - 25 * 0.15) < 0.4  # lr/2 away across
assert (
    abs(moved["rms"][190:].mean() / (0.3 * np.sqrt(2)) - 1) < 0.1
)  # lr in x and in y
in_lr = np.abs(np.diff(rmsprop, axis=0)) / 0.3  # in x and in y
spikes = [
    lo + 1 + in_lr[lo:hi].max(axis=1).argmax() for lo, hi in ((20, 100), (100, 200))
]
assert np.all(in_lr[10:].max(axis=1) < 1 / np.sqrt(0.1))  # the bound
assert min(in_lr[at - 1].max() for at in spikes) > 3
assert in_lr[30:50, 1].max() < 0.1  # the quiet before: across ...
assert in_lr[100:120, 0].max() < 0.1  # ... and along
keep(
    "length",
    spike=f"{min(in_lr[at - 1].max() for at in spikes):.0f}",
    first_spike=f"{spikes[0]}",
    second_spike=f"{spikes[1]}",
    slope=f"{np.linalg.norm(gradient(rmsprop[199])):.1f}",
    mean=f"{moved['rms'][190:].mean():.2f}",
    gd=f"{moved['gd'][-1]:.0e}",
)
figure, axes = picture(
    "Length of each step on a logarithmic scale. The steps of gradient descent shrink all the "
    "way. Those of RMSProp shrink near the minimum too, but then grow again, in spikes up to three "
    "learning rates long, and stay near the learning rate in the end.",
    height=3.4,
)
axes.semilogy(moved["gd"], label="gradient descent, lr = 0.07", **BLUE)
axes.semilogy(moved["rms"], label="RMSProp, lr = 0.3", **VERMILION)
axes.set(xlabel="step", ylabel="length of the step")
axes.legend()
# sphinx_gallery_end_ignore

# %%
# The steps of gradient descent shrink with the gradient; the last is :number:`length.gd` long.
# Those of RMSProp do so for a while, because v still remembers larger gradients. But v forgets.
# Once √v is as small as the gradient, :math:`g/\sqrt{v}` is 1 again, and the step is as long as the
# learning rate again: about 0.3 in x and 0.3 in y, together :number:`length.mean` in the mean of the
# last ten. On the way there are spikes, around step :number:`length.first_spike` across and around
# step :number:`length.second_spike` along: after a quiet time v is so small that a step is about
# :number:`length.spike` lr long, near the :ref:`bound <learn-what-square-does>`
# :math:`\mathrm{lr}/\sqrt{1-\beta}` = 3.2 lr. So it jumps over the minimum and back again, for ever. The gradient stays large, too
# (:number:`length.slope` at the end): half a step from the minimum, this valley is steep.
#
# .. _learn-lr-settles:
#
# RMSProp settles at a distance in proportion to lr
# -------------------------------------------------

rates = np.geomspace(0.001, 1.0, 7)
ends, arrived = [], []
for lr in rates:
    points = walk(fastopt.RMSprop(start.copy(), lr=lr), steps=12_000)
    ends.append(distance(points[-200:]).mean())
    arrived.append(int((distance(points) < 1.0).argmax()))
    print(
        f"lr = {lr:6.3f}: nearer than 1 after {arrived[-1]:5} steps, ends {ends[-1]:.4f} away"
    )

# sphinx_gallery_start_ignore
ends, arrived = np.array(ends), np.array(arrived)
assert np.allclose(ends / rates, np.sqrt(0.5), rtol=1e-3)
assert np.allclose(arrived * rates, 9, atol=1.1)
keep(
    "settles",
    ratio=f"{(ends / rates).mean():.2f}",
    way=f"{(arrived * rates).mean():.0f}",
)
figure, axes = picture(
    "Against the learning rate, two straight lines on logarithmic scales: the distance at which "
    "RMSProp settles rises in proportion to it, and the number of steps that it takes to arrive "
    "falls in proportion.",
    1,
    2,
    height=3.2,
)
axes[0].loglog(rates, ends, marker="o", **VERMILION)
axes[0].set(xlabel="learning rate", title="distance at which\nit settles")
axes[1].loglog(rates, arrived, marker="s", **BLUE)
axes[1].set(xlabel="learning rate", title="steps until\nit is there")
# sphinx_gallery_end_ignore

# %%
# There are two prices, and the learning rate trades them:
#
# * *Too large:* it settles :number:`settles.ratio` times lr away. (It jumps from lr/2 on one side to
#   lr/2 on the other, in x and in y.)
# * *Too small:* the way is about :number:`settles.way` long, and each step covers lr of it. So it
#   takes about :number:`settles.way` / lr steps.
#
# Ten times the learning rate is ten times the distance at the end. Gradient descent has no such
# price in this valley: every learning rate below its :ref:`limit <learn-limit>` comes to rest at
# the minimum, if only after long. **That is why RMSProp seems so sensitive to its learning rate: one number sets both
# how fast it walks and how near it gets.**
#
# .. _learn-lr-schedule:
#
# A schedule mends it
# -------------------
#
# Walk with long steps first, and with short ones at the end, by a :term:`schedule`:

steps = 300
constant = walk(fastopt.RMSprop(start.copy(), lr=0.3), steps)
falling = fastopt.schedules.cosine(0.3, total_steps=steps)  # from 0.3 down to 0
scheduled = walk(fastopt.RMSprop(start.copy(), lr=falling), steps)
for name, points in (
    ("constant lr = 0.3", constant),
    ("cosine from 0.3 to 0", scheduled),
):
    print(f"{name:21} ends {distance(points[-1]):.1e} from the minimum")

# sphinx_gallery_start_ignore
assert distance(scheduled[-1]) < 1e-6 < 0.1 < distance(constant[-1])
keep(
    "schedule",
    constant=f"{distance(constant[-1]):.2f}",
    cosine=f"{distance(scheduled[-1]):.0e}",
)
figure, axes = picture(
    "Distance from the minimum against the step. With a constant learning rate RMSProp stays at "
    "about 0.2; with one that falls to 0 along a cosine it arrives as early and goes on down.",
    height=3.4,
)
axes.semilogy(distance(constant), label="constant, 0.3", **VERMILION)
axes.semilogy(distance(scheduled), label="cosine from 0.3 to 0", **GREEN)
axes.set(xlabel="step", ylabel="distance from the minimum", ylim=(1e-6, 20))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# .. _learn-lr-window:
#
# How sensitive, in the valley
# ----------------------------
#
# Which learning rates bring it to a hundredth of the distance in 200 steps, and keep it there for the
# last 20 of them? Many are tried at once:

many = np.geomspace(1e-3, 10, 401)
window = {}
pair = {"gradient descent": fastopt.SGD, "RMSProp": fastopt.RMSprop}
for name, make in pair.items():
    for further in (1, 10):  # and from ten times as far away
        points = further * np.tile(start, (len(many), 1))
        opt = make(points, lr=many, members=len(many))
        with np.errstate(over="ignore"):  # some run away
            far = distance(walk(opt, steps=200)[-20:]).max(axis=0)
        good = many[far < 0.01 * distance(further * start)]
        low, high = window[name, further] = good[0], good[-1]
        print(f"{name:16} {further:3} times as far: from {low:.3f} to {high:.3f}")

# sphinx_gallery_start_ignore
near_gd, far_gd, near_rms, far_rms = window.values()
assert near_gd == far_gd
assert far_rms[0] > near_rms[1]  # "none is good for both"
assert (
    many[0] < near_gd[0] < far_rms[1] < many[-1]
)  # the ends lie inside what was tried
assert near_rms[1] / near_rms[0] < near_gd[1] / near_gd[0]
keep(
    "window",
    gd=f"{near_gd[1] / near_gd[0]:.1f}",
    rms=f"{near_rms[1] / near_rms[0]:.1f}",
    rms_from=f"{near_rms[0]:.2f}",
    rms_to=f"{near_rms[1]:.2f}",
    far_from=f"{far_rms[0]:.2f}",
    far_to=f"{far_rms[1]:.2f}",
)
# sphinx_gallery_end_ignore

# %%
# For gradient descent the largest is :number:`window.gd` times the smallest, for RMSProp
# :number:`window.rms` times. And its range moves with the way that is to go: from ten times as far
# it is :number:`window.far_from` to :number:`window.far_to`, where it was :number:`window.rms_from`
# to :number:`window.rms_to`, and no learning rate is good for both. Gradient descent keeps its own.
# So for a smooth cost and an exact goal RMSProp *is* the more sensitive one.
#
# .. _learn-lr-sensitive:
#
# How sensitive, on real data
# ---------------------------
#
# The digits ask for less: :term:`batches <batch>` are noisy, and a loss below 0.15 is good enough. Ten epochs, many
# learning rates for each: 61 of them, each 1.17 times the one before, so that an end of a range is
# found to within that. One run each. How wide is the range that works?

x, y, *_ = digits()
rates = np.geomspace(1e-3, 10, 61)
classes = {
    "gradient descent": fastopt.SGD,
    "momentum": fastopt.Momentum,
    "RMSProp": fastopt.RMSprop,
    "Adam": fastopt.Adam,
}
curves = {}
for name, make in classes.items():
    curve = []
    for lr in rates:
        params = network()
        opt = make(params, lr=lr)
        for bx, by in batches(x, y, epochs=10):
            opt.step(loss_and_gradients(params, bx, by)[1])
        curve.append(loss_and_gradients(params, x, y)[0])
    curves[name] = np.array(curve)
    good = rates[curves[name] < 0.15]
    print(f"{name}: best {min(curve):.3f} at lr = {rates[np.argmin(curve)]:.3f};")
    print(
        f"  below 0.15 from {good[0]:.3f} to {good[-1]:.3f}, {good[-1] / good[0]:.0f} times as much"
    )

# sphinx_gallery_start_ignore
width = {n: rates[c < 0.15][-1] / rates[c < 0.15][0] for n, c in curves.items()}
best = {n: rates[c.argmin()] for n, c in curves.items()}
assert width["RMSProp"] > 2 * width["gradient descent"]
assert abs(rates[1] / rates[0] - 1.17) < 0.01
for name, curve in curves.items():  # a range without holes, inside what was tried
    inside = np.flatnonzero(curve < 0.15)
    assert np.all(np.diff(inside) == 1), name
    assert 0 < inside[0] < inside[-1] < len(rates) - 1, name
ranges = {
    n: f"{rates[c < 0.15][0]:.3f} to {rates[c < 0.15][-1]:.3f}"
    for n, c in curves.items()
}
assert best["gradient descent"] > 20 * best["RMSProp"]
keep(
    "sensitive",
    rms=f"{width['RMSProp']:.0f}",
    gd=f"{width['gradient descent']:.0f}",
    best_rms=f"{best['RMSProp']:.2f}",
    end_rms=f"{curves['RMSProp'].min():.3f}",
    rms_from=f"{rates[curves['RMSProp'] < 0.15][0]:.3f}",
    rms_to=f"{rates[curves['RMSProp'] < 0.15][-1]:.3f}",
    best_gd=f"{best['gradient descent']:.1f}",
)
figure, axes = picture(
    "Loss on the digits after ten epochs against the learning rate, a curve for each optimizer. "
    "Below 0.15 are: "
    + "; ".join(f"{name} from {span}" for name, span in ranges.items())
    + ". Each curve falls slowly and rises steeply where the rate is too large.",
    height=3.6,
)
for (name, curve), style in zip(
    curves.items(), (BLUE, ORANGE, VERMILION, GREEN), strict=True
):
    axes.loglog(rates, curve, label=name, **style)
axes.set(xlabel="learning rate", ylabel="loss after 10 epochs", ylim=(0.0007, 8))
axes.legend(loc="lower left", fontsize=8.5)
# sphinx_gallery_end_ignore

# %%
# Here RMSProp is *not* the more sensitive one: its range spans a factor of about
# :number:`sensitive.rms`, that of gradient descent about :number:`sensitive.gd`. A loss below 0.15 does not need small steps at the
# end. But the range lies elsewhere: it is best at
# :number:`sensitive.best_rms`, and not at :number:`sensitive.best_gd`. That is for these digits, this
# network and ten epochs: what was best for RMSProp elsewhere stands
# :ref:`beside it in one table <learn-rmsprop-figures>`.
# Whoever carries a learning rate over from one method to another is out of it. Think of it as a
# length: how far may a weight move in one step?
#
# .. _learn-choose-lr:
#
# Let the package look
# --------------------
#
# ``fastopt.find_lr`` makes a *range test*: on copies, it trains with a learning rate that rises in
# every step, and watches the loss. Where the loss falls fastest, the learning rate is good. Where
# it shoots up, it is too large.

params = network()
some = list(batches(x, y, epochs=1))


def step_fn(params, batch):
    return loss_and_gradients(params, *batch)


found = {}
for name, method in (
    ("RMSProp", "rmsprop"),
    ("Adam", "adam"),
    ("gradient descent", "sgd"),
):
    found[name] = fastopt.find_lr(
        step_fn, params, method, batches=some, lr_min=1e-5, lr_max=100
    )
    print(f"{name}:", textwrap.fill(found[name].message, 70), sep="\n")

# sphinx_gallery_start_ignore
test = found["RMSProp"]
for name in found:
    assert 0.02 < found[name].suggestion / best[name] < 50, name
assert test.sure
assert not found["gradient descent"].sure
keep(
    "found",
    rms=f"{test.suggestion:.2g}",
    gd=f"{found['gradient descent'].suggestion:.2g}",
)
figure, axes = picture(
    "The range test's curve for RMSProp: the loss is flat for tiny learning rates, falls between "
    "0.002 and 0.02, and rises when the learning rate is too large. The suggestion stands where it "
    "falls.",
    height=3.4,
)
axes.semilogx(test.lrs, test.smoothed, label="loss after the step", **BLUE)
axes.axvline(
    test.suggestion, label=f"suggested: {test.suggestion:.2g}", **VERMILION
)
axes.set(xlabel="learning rate", ylabel="loss", ylim=(1, 4))
axes.legend(loc="upper left")
# sphinx_gallery_end_ignore

# %%
# For RMSProp it suggests :number:`found.rms`, where the curves above were best at
# :number:`sensitive.best_rms`. For gradient descent it suggests :number:`found.gd` (best:
# :number:`sensitive.best_gd`), and says itself that it is not sure. It is a start, on the safe
# side.
#
# A recipe: take what ``find_lr`` suggests. Run a short training with it, with three times as much,
# and with a third. Keep the best. Let it fall towards 0 at the end (``fastopt.schedules.cosine``).
# If the loss becomes NaN or jumps, halve it.
