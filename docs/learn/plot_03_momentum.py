r"""
Momentum: an average that cancels the swinging
==============================================

Gradient descent swings across the valley because it looks at the newest gradient alone. *Momentum*
steps along an average of the gradients so far:

.. math::

   m &\leftarrow \beta\, m + (1 - \beta)\, g \\
   p &\leftarrow p - \mathrm{lr} \cdot m

m begins at 0. In each step a share :math:`\beta` of the old average stays and a share
:math:`1 - \beta` of the new gradient comes in. An old gradient counts :math:`\beta` times as much
after each step, so it fades away. (This is called an *exponentially weighted average*. Some texts call
m the *velocity* and write v, as the reference of ``fastopt.Momentum`` does. On these pages v is always
the average of *squares*, which comes with RMSProp.)
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
across_descent, across_momentum = np.abs([descent[-1, 1], momentum[-1, 1]])
along_descent, along_momentum = np.abs([descent[-1, 0], momentum[-1, 0]])
assert 25 * across_descent**2 > 4 * along_descent**2  # "most of the cost"
assert along_descent > 2 * along_momentum
keep(
    "same",
    times=f"{cost(descent[-1]) / cost(momentum[-1]):.0f}",
    across_descent=f"{across_descent:.2f}",
    across_momentum=f"{across_momentum:.3f}",
    along_descent=f"{along_descent:.2f}",
    along_momentum=f"{along_momentum:.2f}",
)
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
# Momentum ends :number:`same.times` times lower, though the learning rate is the same. This one is
# near gradient descent's limit of 0.08, where its swinging dies slowly: it is still
# :number:`same.across_descent` away across, and momentum :number:`same.across_momentum`. Along the
# valley, momentum is :number:`same.along_momentum` away and gradient descent
# :number:`same.along_descent`: the average still holds earlier gradients, which were larger.
#
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
m = size = np.zeros(2)
averages, sizes = [], []
for each in g:
    m = beta * m + (1 - beta) * each
    size = beta * size + (1 - beta) * np.abs(each)
    averages.append(m)
    sizes.append(size)
averages, sizes = np.array(averages), np.array(sizes)

print("       along the valley           across it")
print("step      g  average  of sizes        g  average  of sizes")
for t in (0, 1, 2, 3, 20, 21, 22, 23):
    (gx, gy), (mx, my), (sx, sy) = g[t], averages[t], sizes[t]
    print(
        f"{t + 1:4} {gx:6.2f} {mx:8.2f} {sx:9.2f}   {gy:6.2f} {my:8.2f} {sy:9.2f}"
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


slope_of_g, slope_of_m = degrees(g[20:]).mean(), degrees(averages[20:]).mean()
assert slope_of_g > 2 * slope_of_m
keep(
    "cancels",
    along=f"{share_along:.0%}",
    across=f"{share_across:.0%}",
    degrees_g=f"{slope_of_g:.0f}",
    degrees_m=f"{slope_of_m:.0f}",
)
figure, axes = picture(
    "Two strips over forty steps. Across the valley the gradients alternate between plus and minus "
    "and their average stays close to zero. Along the valley all gradients are negative, and so is "
    "their average, which lags behind: it is the larger one once the gradients become smaller.",
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
        label="average m",
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
# :number:`cancels.degrees_m`. That is the whole trick. **An average of gradients is never longer
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
# That alone is not speed yet: what matters is how many steps it takes. Now they race until the cost
# stays below 0.001: all with the same learning rate (the best that gradient descent has), and each
# with its own best.


def race(beta, steep=25, most=150):
    """Return the fewest steps over 300 rates, its rate, and all."""
    curvatures = np.array([1.0, steep])
    rates = np.geomspace(0.5, 25, 300) / steep
    points = np.tile(start, (300, 1))
    opt = fastopt.Momentum(points, lr=rates, beta=beta, members=300)
    last = np.zeros(300, int)  # the last step at which the cost was still above
    with np.errstate(over="ignore"):  # some run away
        for t in range(1, most + 1):
            opt.step(curvatures * points)
            last[~((curvatures * points**2).sum(axis=1) < 2e-3)] = t
    return last.min() + 1, rates[last.argmin()], last + 1


_, lr_descent, _ = race(0.0)
at = np.abs(np.geomspace(0.02, 1, 300) - lr_descent).argmin()
races = {beta: race(beta) for beta in (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
print(f"       with lr = {lr_descent:.3f}   with its best lr")
for beta, (steps, lr, all_rates) in races.items():
    same_lr = f"{all_rates[at]:3} steps"
    print(f"β = {beta}:  {same_lr:19} {steps:3} steps, lr = {lr:.3f}")

# sphinx_gallery_start_ignore
steps_sgd, lr_sgd, _ = races[0.0]
best_beta = min(races, key=lambda beta: races[beta][0])
steps_mom, lr_mom, at_rates = races[best_beta]
steps_same = at_rates[at]
for beta, (steps, lr, all_rates) in races.items():
    alone = fastopt.Momentum(start.copy(), lr=lr_sgd, beta=beta)
    assert steps_to(walk(alone, 400), 1e-3) == all_rates[at]
    alone = fastopt.Momentum(start.copy(), lr=lr, beta=beta)
    assert steps_to(walk(alone, 400), 1e-3) == steps
same = {beta: all_rates[at] for beta, (_, _, all_rates) in races.items()}
least = min(same, key=lambda beta: same[beta])
assert same[least] < 0.9 * steps_sgd  # "some"
assert steps_mom < steps_sgd / 4
assert steps_same > 0.9 * steps_sgd  # "most of it comes from the learning rate"
assert lr_mom > 2.5 * lr_sgd
assert races[0.9][0] > steps_sgd
assert races[0.9][1] < lr_sgd


def factor(beta):
    """Return the least factor per step, over all rates, of the slower of the two directions."""

    def slowest(lr):
        return max(
            np.abs(np.roots([1, -(1 + beta - (1 - beta) * lr * c), beta])).max()
            for c in (1, 25)
        )

    return min(slowest(lr) for lr in np.geomspace(0.02, 1, 300))


assert abs(factor(0.9) - np.sqrt(0.9)) < 1e-3  # "√β is the best that it can do"
assert abs(factor(0.0) - 24 / 26) < 2e-3
assert factor(0.0) < np.sqrt(0.9)
turning = ((np.sqrt(25) - 1) / (np.sqrt(25) + 1)) ** 2
assert abs(factor(turning) - np.sqrt(turning)) < 0.02
assert abs(turning - best_beta) < 0.06
plain_100, nine_100 = race(0.0, 100, 300)[0], race(0.9, 100, 300)[0]
assert plain_100 > 2 * nine_100
keep(
    "speed",
    limit_0=f"{limits[0.0]:.2f}",
    limit_9=f"{limits[0.9]:.2f}",
    times_5=f"{limits[0.5] / limits[0.0]:.0f}",
    times=f"{limits[0.9] / limits[0.0]:.0f}",
    beta=f"{best_beta}",
    least_beta=f"{least}",
    least=f"{same[least]}",
    sgd=f"{steps_sgd}",
    same=f"{steps_same}",
    mom=f"{steps_mom}",
    nine=f"{races[0.9][0]}",
    root_9=f"{np.sqrt(0.9):.2f}",
    factor_0=f"{factor(0.0):.2f}",
    turning=f"{turning:.2f}",
    plain_100=f"{plain_100}",
    nine_100=f"{nine_100}",
)
figure, axes = picture(
    f"Cost against step for three runs. Momentum with beta {best_beta} at gradient descent's "
    f"learning rate takes {steps_same} steps to a cost of 0.001, hardly fewer than gradient "
    f"descent's {steps_sgd}; with the larger learning rate that it allows it takes {steps_mom}.",
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
        f"momentum, β = {best_beta}, lr = {lr_sgd:.3f}",
        GREEN,
    ),
    (
        fastopt.Momentum(start.copy(), lr=lr_mom, beta=best_beta),
        f"momentum, β = {best_beta}, lr = {lr_mom:.2f}",
        VERMILION,
    ),
):
    axes.semilogy(cost(walk(opt, 100)), label=label, **style)
axes.axhline(1e-3, color="0.5", linewidth=1)
axes.set(xlabel="step", ylabel="cost", ylim=(1e-6, 300))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# Gradient descent takes :number:`speed.sgd` steps. With the *same* learning rate momentum gains
# some: it takes :number:`speed.least` with β = :number:`speed.least_beta`, and :number:`speed.same`
# with β = :number:`speed.beta`. With its *own* learning rate, β = :number:`speed.beta` takes
# :number:`speed.mom`. So most of the speed comes from the larger learning rate, which the average
# makes room for.
#
# .. _learn-momentum-too-much:
#
# A larger β is not always faster
# -------------------------------
#
# With β = 0.9 the limit of the learning rate is :number:`speed.times` times as high
# (:number:`speed.limit_9`, not :number:`speed.limit_0`), and yet the best run takes
# :number:`speed.nine` steps, more than gradient descent. A learning rate below the limit does not
# run away; that does not make it fast. The average of β = 0.9 is slow to turn: it carries the point
# past the minimum and back. Each step leaves at least √β = :number:`speed.root_9` of this sway, at
# any learning rate. Gradient descent at its best leaves :number:`speed.factor_0` of the distance.
#
# A smaller β forgets its sway sooner, but allows less learning rate. The best stands between: where
# the point comes to the minimum as fast as it can without swaying past it. (This is called
# *critical damping*.) For a valley of condition number κ it is
# :math:`\beta = \left(\frac{\sqrt κ - 1}{\sqrt κ + 1}\right)^2`, here :number:`speed.turning`. The
# more oblong the valley, the larger it is: in one 100 times as steep across as along, β = 0.9 takes
# :number:`speed.nine_100` steps and gradient descent :number:`speed.plain_100`. For networks
# 0.9 is usual: :ref:`choosing β <learn-beta>`.
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
