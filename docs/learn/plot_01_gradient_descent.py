r"""
Gradient descent on an oblong cost
==================================

A *cost* says how bad a choice of numbers is. Training looks for the numbers with the least cost.
Here there are two of them, x and y, and the cost is a valley that is steep across and flat along:

.. math:: f(x, y) = \frac{x^2 + 25\,y^2}{2}

The *gradient* is the list of the two derivatives. It says how fast the cost rises if x grows a
little, and if y does:

.. math:: g = (x,\; 25\,y)
"""

import numpy as np

import fastopt


def cost(point):
    return (point[..., 0] ** 2 + 25 * point[..., 1] ** 2) / 2


def gradient(point):
    return np.array([1.0, 25.0]) * point


start = np.array([-10.0, 1.5])
print("cost at the start:    ", cost(start))
print("gradient at the start:", gradient(start))

# %%
# .. _learn-step:
#
# What a step is
# --------------
#
# A step of gradient descent goes against the gradient. The *learning rate* lr says how far:
#
# .. math:: p \leftarrow p - \mathrm{lr} \cdot g
#
# ``fastopt.SGD`` is this rule. It changes the array of the parameters itself.

point = start.copy()
opt = fastopt.SGD(point, lr=0.07)
opt.step(gradient(point))

print("by hand:     ", start - 0.07 * gradient(start))
print("by fastopt:  ", point)
print("cost after it:", cost(point))

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, VERMILION, contours, keep, path, picture

assert np.array_equal(point, start - 0.07 * gradient(start))
downhill, wanted = -gradient(start), -start
cosine = downhill @ wanted / np.linalg.norm(downhill) / np.linalg.norm(wanted)
angle = np.degrees(np.arccos(cosine))
assert angle > 60  # "far off"
keep("step", angle=f"{angle:.0f}")

figure, axes = picture(
    "The valley's lines of equal cost are long ellipses. At the start the step of gradient descent "
    "points almost straight across the valley, while the minimum lies along it.",
    height=2.9,
)
contours(axes)
arrow = {"arrowstyle": "-|>", "lw": 2, "shrinkA": 0, "shrinkB": 0}
short = start + 0.07 * downhill
axes.annotate(
    "", short, start, arrowprops={**arrow, "color": BLUE["color"]}, zorder=4
)
axes.text(short[0] + 0.2, short[1] - 0.15, "the step", color=BLUE["color"])
axes.annotate(
    "",
    (-5.0, 0.75),
    start,
    arrowprops={**arrow, "color": VERMILION["color"], "ls": "--"},
)
axes.text(-4.9, 0.85, "where the minimum is", color=VERMILION["color"])
# sphinx_gallery_end_ignore

# %%
# The grey lines are *contours*: along each the cost is the same, as on a hiking map the height is.
# The step leaves its contour at a right angle. In a round bowl that would be the way to the
# minimum. In this valley it is :number:`step.angle` degrees off: the cost is steepest across the
# valley, and the gradient knows nothing else.
#
# .. _learn-zigzag:
#
# Many steps
# ----------

points = [start.copy()]
point = start.copy()
opt = fastopt.SGD(point, lr=0.07)
for _ in range(40):
    opt.step(gradient(point))
    points.append(point.copy())
points = np.array(points)

print("step      x        y      cost")
for t in (0, 1, 2, 3, 4, 10, 20, 40):
    print(f"{t:4} {points[t, 0]:8.4f} {points[t, 1]:8.4f} {cost(points[t]):9.4f}")

# sphinx_gallery_start_ignore
ratios = points[1:] / points[:-1]
assert np.allclose(ratios, [0.93, -0.75])
keep(
    "factors",
    along=f"{ratios[0, 0]:.2f}",
    across=f"{ratios[0, 1]:.2f}",
)
figure, axes = picture(
    "The path of gradient descent swings from one side of the valley to the other while it slowly "
    "moves along it.",
    height=2.9,
)
contours(axes)
path(axes, points, BLUE, "gradient descent, lr = 0.07")
axes.legend(loc="lower right")
# sphinx_gallery_end_ignore

# %%
# Look at the columns of x and y. In each step x is multiplied by :number:`factors.along`, and y by
# :number:`factors.across`. The formula says why: in one step
#
# .. math:: x \leftarrow (1 - \mathrm{lr})\,x, \qquad y \leftarrow (1 - 25\,\mathrm{lr})\,y
#
# A factor near 1 means creeping. A negative factor means that each step lands on the other side.
#
# .. _learn-condition:
#
# One learning rate for both directions
# -------------------------------------
#
# How much the gradient grows per unit of distance is called *curvature*: here 1 along and 25
# across. Their ratio is the *condition number*. It says how oblong the valley is.
#
# A learning rate that suits the valley's length is too large for its width. One that suits the
# width creeps along the length. There is only one learning rate, so it has to be a compromise. The
# best is the one that shrinks both at the same pace. The more oblong the valley, the less it helps:

conditions = np.array([1, 2, 5, 10, 25, 100, 400, 1000])
needed = []
for condition in conditions:
    curvatures = np.array([1.0, condition])
    p = np.array([1.0, 1.0])
    opt = fastopt.SGD(p, lr=2 / (1 + condition))  # the best compromise
    steps = 0
    while np.abs(p).max() > 0.01:  # to a hundredth of the distance
        opt.step(curvatures * p)
        steps += 1
    needed.append(steps)
    print(f"condition number {condition:5}: {steps:5} steps")

# sphinx_gallery_start_ignore
needed = np.array(needed)
assert np.all(np.diff(needed) > 0)
assert 30 < needed[-1] / needed[3] < 300  # about in proportion
keep(
    "condition",
    round=f"{needed[0]}",
    ours=f"{needed[4]}",
    worst=f"{needed[-1]}",
)
figure, axes = picture(
    "Steps needed against the condition number, both on logarithmic scales: a straight rise, from "
    "one step in a round bowl to thousands in a narrow valley.",
    height=3.2,
)
axes.loglog(conditions, needed, marker="o", **BLUE)
axes.set(xlabel="condition number", ylabel="steps to 1/100 of the way")
axes.plot(conditions[4], needed[4], "s", markersize=9, color=GREEN["color"])
axes.annotate("our valley", (25, needed[4]), (8, -12), textcoords="offset points")
# sphinx_gallery_end_ignore

# %%
# A round bowl takes :number:`condition.round` step, our valley :number:`condition.ours`, and one of
# condition number 1000 takes :number:`condition.worst`.
# The next pages are about ways out: *momentum* lets the swinging cancel itself, *AdaGrad*,
# *RMSProp* and *Adam* give each direction a step length of its own.
