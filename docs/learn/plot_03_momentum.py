r"""
Momentum: an average that cancels the swinging
==============================================

Gradient descent swings across the valley because it looks at the newest gradient alone. *Momentum*
steps along an average of the gradients so far:

.. math::

   v &\leftarrow \beta\, v + (1 - \beta)\, g \\
   p &\leftarrow p - \mathrm{lr} \cdot v

v begins at 0. In each step a share :math:`\beta` of the old average stays and a share
:math:`1 - \beta` of the new gradient comes in. An old gradient counts :math:`\beta` times as much
after each step, so it fades away. (This is called an *exponentially weighted average*.)
"""

import numpy as np
from learning import cost, gradient, start, steps_to, walk

import fastopt

descent = walk(fastopt.SGD(start.copy(), lr=0.078), steps=40)
momentum = walk(fastopt.Momentum(start.copy(), lr=0.078, beta=0.7), steps=40)
print(f"cost after 40 steps of gradient descent: {cost(descent[-1]):.3f}")
print(f"cost after 40 steps of momentum:         {cost(momentum[-1]):.3f}")

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, VERMILION, contours, keep, path, picture

late = slice(15, 41)
assert np.abs(momentum[late, 1]).max() < 0.5 * np.abs(descent[late, 1]).max()
figure, axes = picture(
    "Two paths with the same learning rate. Gradient descent zigzags across the valley for all of "
    "its steps. Momentum makes a few wide sways and then runs along the valley floor.",
    2,
    height=5.0,
    sharex=True,
)
for one in axes:
    contours(one)
path(axes[0], descent, BLUE, "")
axes[0].set_title("gradient descent, lr = 0.078")
axes[0].set_xlabel("")
path(axes[1], momentum, VERMILION, "")
axes[1].set_title("momentum, lr = 0.078, β = 0.7")
# sphinx_gallery_end_ignore

# %%
# .. _learn-momentum-cancels:
#
# Why the swinging cancels and the steady part stays
# --------------------------------------------------
#
# Take the gradients that *gradient descent* met, and only average them; nobody moves. Across the
# valley the signs alternate: plus, minus, plus, minus. Along it all have the same sign. Beside the
# average of the gradients stands that of their sizes, without signs, for comparison.

g = gradient(descent[:40])  # a row for each step: along, across

beta = 0.9
v = size = np.zeros(2)
averages, sizes = [], []
for each in g:
    v = beta * v + (1 - beta) * each
    size = beta * size + (1 - beta) * np.abs(each)
    averages.append(v)
    sizes.append(size)
averages, sizes = np.array(averages), np.array(sizes)

print("       along the valley           across it")
print("step      g  average  of sizes        g  average  of sizes")
for t in (0, 1, 2, 3, 20, 21, 22, 23):
    (gx, gy), (vx, vy), (sx, sy) = g[t], averages[t], sizes[t]
    print(
        f"{t + 1:4} {gx:6.2f} {vx:8.2f} {sx:9.2f}   {gy:6.2f} {vy:8.2f} {sy:9.2f}"
    )

share_along, share_across = (np.abs(averages) / sizes)[20:].mean(axis=0)
print(
    f"\nin the last 20 steps, along:  {share_along:.0%} of the sizes are left in the average"
)
print(f"in the last 20 steps, across: {share_across:.0%}")

# sphinx_gallery_start_ignore
assert share_across < 0.06
assert abs(share_along - 1) < 1e-12
assert np.all(
    np.abs(averages) <= np.maximum.accumulate(np.abs(g))
)  # "no step longer"


def degrees(vectors):
    return np.degrees(np.arctan2(np.abs(vectors[:, 1]), np.abs(vectors[:, 0])))


slope_of_g, slope_of_v = degrees(g[20:]).mean(), degrees(averages[20:]).mean()
assert slope_of_g > 2 * slope_of_v
keep(
    "cancels",
    along=f"{share_along:.0%}",
    across=f"{share_across:.0%}",
    degrees_g=f"{slope_of_g:.0f}",
    degrees_v=f"{slope_of_v:.0f}",
)
figure, axes = picture(
    "Two strips over forty steps. Across the valley the gradients alternate between plus and minus "
    "and their average stays close to zero. Along the valley all gradients are negative and the "
    "average soon agrees with them.",
    2,
    height=5.0,
    sharex=True,
)
t = np.arange(1, 41)
for one, k, title in zip(
    axes,
    (1, 0),
    (
        "across: the signs alternate, the sum cancels",
        "along: the signs agree, the sum stays",
    ),
    strict=True,
):
    one.bar(t, g[:, k], color="#56B4E9", width=0.7, label="gradient g")
    one.plot(
        t,
        averages[:, k],
        color=VERMILION["color"],
        linewidth=2.2,
        label="average v",
    )
    one.axhline(0, color="black", linewidth=0.8)
    one.set_title(title)
    one.set_ylabel("gradient")
axes[0].legend(loc="upper right", ncols=2)
axes[1].set_xlabel("step")
# sphinx_gallery_end_ignore

# %%
# Across, neighbours have opposite signs. In the sum they cancel: :number:`cancels.across` of the
# sizes is left. Along, nothing cancels: :number:`cancels.along` is left.
#
# So the *direction* changes. The gradients of the last twenty steps stand
# :number:`cancels.degrees_g` degrees from the valley floor, their averages
# :number:`cancels.degrees_v`. That is the whole trick. **An average of gradients is never longer
# than the longest of them. It is turned towards where they agree: down the valley.** If "a steeper
# path" means one that goes more directly to the minimum, this is where it comes from.
#
# .. _learn-momentum-faster:
#
# Where the speed comes from
# --------------------------
#
# If the average is no longer than the gradients, why is the path faster? Because the swinging was
# what limited the learning rate. When it cancels, the learning rate may be larger. Here is the
# largest one with which the path does not run away, found by trying:

limits = {}
rates = np.geomspace(0.05, 3, 300)
for beta in (0.0, 0.5, 0.9):
    points = np.tile(
        start, (len(rates), 1)
    )  # one path for each learning rate, all at once
    opt = fastopt.Momentum(points, lr=rates, beta=beta, members=len(rates))
    with np.errstate(over="ignore"):  # some do run away
        for _ in range(800):
            opt.step(gradient(points))
        held = cost(points) < cost(start)
    limits[beta] = rates[held].max()
    print(f"β = {beta}: the largest learning rate that holds is {limits[beta]:.3f}")

# sphinx_gallery_start_ignore
for beta, limit in limits.items():
    theory = 2 / 25 * (1 + beta) / (1 - beta)
    assert abs(limit / theory - 1) < 0.03, (beta, limit, theory)
# sphinx_gallery_end_ignore

# %%
# Now both race to a cost below 0.001, each with the best learning rate it has. Momentum has the
# best β, too.

rates = np.geomspace(0.02, 1, 300)


def race(beta):
    """Return the fewest steps over all rates, and the rate."""
    opt = fastopt.Momentum(
        np.tile(start, (300, 1)), lr=rates, beta=beta, members=300
    )
    with np.errstate(over="ignore"):  # some run away
        high = (
            cost(walk(opt, 150)) > 1e-3
        )  # a row for each step, a column for each rate
    last = np.where(high.any(axis=0), 151 - high[::-1].argmax(axis=0), 0)
    return last.min(), rates[last.argmin()]


for beta in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
    steps, lr = race(beta)
    print(f"β = {beta}: {steps:3} steps, with lr = {lr:.3f}")

# sphinx_gallery_start_ignore
steps_sgd, lr_sgd = race(0.0)
steps_mom, best_beta = min(
    (race(beta)[0], beta) for beta in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
)
lr_mom = race(best_beta)[1]
same = walk(fastopt.Momentum(start.copy(), lr=lr_sgd, beta=best_beta), 400)
steps_same = steps_to(same, 1e-3)
assert steps_mom < steps_sgd / 2.5
assert lr_mom > 2 * lr_sgd
assert steps_same > 1.5 * steps_mom
keep(
    "speed",
    limit_0=f"{limits[0.0]:.2f}",
    limit_9=f"{limits[0.9]:.2f}",
    times=f"{limits[0.9] / limits[0.0]:.0f}",
    beta=f"{best_beta}",
    sgd=f"{steps_sgd}",
    same=f"{steps_same}",
    mom=f"{steps_mom}",
)
figure, axes = picture(
    "Cost against step for three runs. Momentum at gradient descent's learning rate is no faster "
    "than gradient descent; momentum with the larger learning rate that it allows is far ahead.",
    height=3.6,
)
for opt, label, style in (
    (
        fastopt.SGD(start.copy(), lr=lr_sgd),
        f"gradient descent, lr = {lr_sgd:.3f}",
        BLUE,
    ),
    (
        fastopt.Momentum(start.copy(), lr=lr_sgd, beta=best_beta),
        f"momentum, lr = {lr_sgd:.3f}",
        GREEN,
    ),
    (
        fastopt.Momentum(start.copy(), lr=lr_mom, beta=best_beta),
        f"momentum, lr = {lr_mom:.2f}",
        VERMILION,
    ),
):
    axes.semilogy(cost(walk(opt, 100)), label=label, **style)
axes.axhline(1e-3, color="0.5", linewidth=1)
axes.set(xlabel="step", ylabel="cost", ylim=(1e-6, 300))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# Gradient descent takes :number:`speed.sgd` steps. Momentum with β = :number:`speed.beta` takes
# :number:`speed.same` with the *same* learning rate, and :number:`speed.mom` with its own, which is
# larger. The average alone is not the speed. It makes room for a learning rate that is: with
# β = 0.9 the limit rises from :number:`speed.limit_0` to :number:`speed.limit_9`,
# :number:`speed.times` times as much. (In this short valley a small β is best, because a large one
# is slow to turn at the minimum. In long runs with noise 0.9 is usual:
# :ref:`choosing β <learn-beta>`.)
#
# .. _learn-momentum-names:
#
# Two forms under one name
# ------------------------
#
# Many libraries leave the factor :math:`1 - \beta` away and *add up* instead of averaging:
# :math:`b \leftarrow \beta b + g`. That is ``fastopt.SGD(momentum=β)``. The sum is
# :math:`1/(1-\beta)` times the average, so the learning rate must be that much smaller. Then the
# two are the same:

averaged = walk(fastopt.Momentum(start.copy(), lr=0.078, beta=0.9), steps=40)
summed = walk(fastopt.SGD(start.copy(), lr=0.0078, momentum=0.9), steps=40)
print("largest difference of the paths:", np.abs(averaged - summed).max())

# sphinx_gallery_start_ignore
assert np.abs(averaged - summed).max() < 1e-12
# sphinx_gallery_end_ignore

# %%
# Next: :ref:`a step length for each direction <learn-adagrad>`.
