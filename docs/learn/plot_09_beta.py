r"""
.. _learn-beta:

What β means in steps
=====================

An average :math:`m \leftarrow \beta m + (1-\beta) g` gives the newest gradient the weight
:math:`1-\beta`, the one before :math:`\beta(1-\beta)`, the one before that
:math:`\beta^2(1-\beta)`, and so on. How far back does it look? Let the package say: one gradient of
1, then zeros. What is left in the average after n steps is the weight of a gradient n steps old.
"""

import numpy as np

import fastopt


def weights(beta, steps):
    """Return the weight of the newest gradient, of the one before, and so on."""
    p = np.zeros(1)
    opt = fastopt.Momentum(p, lr=1.0, beta=beta)
    found = []
    for t in range(steps):
        before = p.copy()
        opt.step(np.array([1.0 if t == 0 else 0.0]))
        found.append((before - p)[0])  # with lr = 1 the step is the average
    return np.array(found)


print("     β   1/(1-β)   steps that carry 50 %    90 %    99 %")
carry = {}
for beta in (0.5, 0.7, 0.9, 0.99, 0.999):
    total = np.cumsum(weights(beta, 8000))
    carry[beta] = [
        int((total < share - 1e-9).sum()) + 1 for share in (0.5, 0.9, 0.99)
    ]
    print(
        f"{beta:6} {1 / (1 - beta):9.0f} {carry[beta][0]:23} {carry[beta][1]:7} {carry[beta][2]:7}"
    )

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, VERMILION, keep, picture

for beta, (_, ninety, _) in carry.items():
    assert ninety == np.ceil(np.log(0.1) / np.log(beta)), beta
    if beta >= 0.9:
        assert abs(ninety * (1 - beta) - 2.3) < 0.15
ages = np.arange(8000)
assert (
    abs((ages * weights(0.9, 8000)).sum() - 9) < 1e-6
)  # the mean age: beta / (1 - beta)
keep(
    "beta",
    ninety_9=f"{carry[0.9][1]}",
    ninety_99=f"{carry[0.99][1]}",
    ninety_999=f"{carry[0.999][1]}",
)
figure, axes = picture(
    "Weight of a gradient against its age in steps, for beta 0.5, 0.9 and 0.97. The larger beta "
    "is, the lower the curve begins and the longer it is. The ages that carry 90 percent are "
    "shaded for 0.9: the last 22 steps.",
    height=3.6,
)
t = np.arange(60)
for beta, style in ((0.5, BLUE), (0.9, VERMILION), (0.97, GREEN)):
    axes.plot(t, weights(beta, 60), label=f"β = {beta}", **style)
axes.fill_between(
    t[:22], weights(0.9, 22), color=VERMILION["color"], alpha=0.2, linewidth=0
)
axes.annotate(
    "90 % of β = 0.9",
    (9, 0.03),
    (18, 0.13),
    arrowprops={"arrowstyle": "-", "color": "0.4"},
)
axes.set(xlabel="age of the gradient in steps", ylabel="weight", ylim=(0, 0.5))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# The rule to keep: **the average remembers about** :math:`1/(1-\beta)` **steps, and 2.3 times as
# many carry 90 % of it.** β = 0.9 means ten steps (90 % in the last :number:`beta.ninety_9`), 0.99
# a hundred (:number:`beta.ninety_99`), 0.999 a thousand (:number:`beta.ninety_999`).
#
# .. _learn-beta-trade:
#
# Smoother, or quicker to turn
# ----------------------------
#
# A long memory averages noise away. It also notices late that things have changed. Here the
# gradient is noisy, and its true value turns from 1 to -1 after 200 steps:

rng = np.random.default_rng(1)
truth = np.where(np.arange(400) < 200, 1.0, -1.0)
noisy = truth + rng.standard_normal(400)


def averaged(signal, beta):
    """Return the average after each gradient, with bias correction."""
    m, found = 0.0, []
    for t, g in enumerate(signal, start=1):
        m = beta * m + (1 - beta) * g
        found.append(m / (1 - beta**t))
    return np.array(found)


print("     β   noise left   steps that it still points the old way")
late, noise = {}, {}
for beta in (0.0, 0.5, 0.9, 0.97, 0.99):
    noise[beta] = averaged(rng.standard_normal(20_000), beta)[2000:].std()
    late[beta] = int((averaged(truth, beta)[200:] > 0).sum())
    print(f"{beta:6} {noise[beta]:12.2f} {late[beta]:35}")

# sphinx_gallery_start_ignore
for beta, left in noise.items():
    assert abs(left / np.sqrt((1 - beta) / (1 + beta)) - 1) < 0.15
assert late[0.99] > 5 * late[0.9] > 0
keep(
    "trade",
    noise_9=f"{noise[0.9]:.2f}",
    late_9=f"{late[0.9]}",
    noise_99=f"{noise[0.99]:.2f}",
    late_99=f"{late[0.99]}",
)
figure, axes = picture(
    "A noisy gradient that turns from plus one to minus one, and two averages of it. That with "
    "beta 0.9 still wavers and follows the turn in a few steps; that with 0.99 is smooth and "
    "needs many.",
    height=3.6,
)
axes.plot(noisy, color="0.8", linewidth=0.8, label="gradient")
axes.plot(truth, color="black", linewidth=1, label="its true value")
axes.plot(averaged(noisy, 0.9), label="β = 0.9", **VERMILION)
axes.plot(averaged(noisy, 0.99), label="β = 0.99", **BLUE)
axes.set(xlabel="step", ylabel="gradient", ylim=(-3.5, 4.5))
axes.legend(ncols=2, loc="upper right")
# sphinx_gallery_end_ignore

# %%
# With β = 0.9, :number:`trade.noise_9` of the noise is left, and the average of the true value
# points the old way for :number:`trade.late_9` more steps. With 0.99 it is :number:`trade.noise_99`, and
# :number:`trade.late_99` steps.
#
# .. _learn-choose-beta:
#
# How to choose
# -------------
#
# Try it where it counts. RMSProp and Adam on the digits, ten epochs of 43 steps, each with the best
# of three learning rates; the median of three runs, from other first weights and with another order
# of the images:

from learning import batches, digits, loss_and_gradients, network

x, y, *_ = digits()


def train(make, lr, seed=0):
    """Return the loss after ten epochs."""
    params = network(seed)
    opt = make(params, lr)
    for bx, by in batches(x, y, epochs=10, seed=seed):
        opt.step(loss_and_gradients(params, bx, by)[1])
    return loss_and_gradients(params, x, y)[0]


def best_end(make):
    """Return the median of three runs with the best of three learning rates."""
    first, lr = min((train(make, lr), lr) for lr in (0.003, 0.01, 0.03))
    return np.median([first, train(make, lr, 1), train(make, lr, 2)])


tried = {"RMSProp, β": [], "Adam, β1": [], "Adam, β2": []}
some = (0.0, 0.5, 0.9, 0.99, 0.999)
for b in some:
    for name, make in {
        "RMSProp, β": lambda p, lr, b=b: fastopt.RMSprop(
            p, lr=lr, beta=b, bias_correction=True
        ),
        "Adam, β1": lambda p, lr, b=b: fastopt.Adam(p, lr=lr, betas=(b, 0.999)),
        "Adam, β2": lambda p, lr, b=b: fastopt.Adam(p, lr=lr, betas=(0.9, b)),
    }.items():
        tried[name].append(best_end(make))
print("            " + "".join(f"{b:8}" for b in some))
for name, ends in tried.items():
    print(
        f"{name:12}"
        + "".join(f"{end:8.3f}" if end < 10 else "   fails" for end in ends)
    )

# sphinx_gallery_start_ignore
rms, beta1, beta2 = (np.array(tried[name]) for name in tried)
assert rms.argmin() == 2  # 0.9
assert beta1.argmin() == 2  # 0.9
assert some[beta2.argmin()] >= 0.99
assert beta2[0] > 10  # "fails"
assert max(beta2[3], beta2[4]) < 1.5 * beta2.min()
assert rms[4] > 2 * rms.min()
assert rms[1] < 1.6 * rms[2] > rms[3] / 1.6  # "its neighbours are near"
assert abs(beta1[0] / rms[4] - 1) < 1e-6  # "the same rule"
assert beta1[4] > 3 * beta1[2]
newest = 0.001 / (
    1 - 0.999**430
)  # the weights in the last step, of the newest and the oldest
oldest = newest * 0.999**429
assert 0.6 < oldest / newest < 0.7  # "nearly the plain mean"
RATES = (0.003, 0.01, 0.03)
rms_lr = min(
    RATES,
    key=lambda lr: train(
        lambda p, lr: fastopt.RMSprop(p, lr, beta=0.9, bias_correction=True), lr
    ),
)
keep(
    "choose",
    rms_lr=f"{rms_lr}",
    rms_9=f"{rms[2]:.3f}",
    rms_999=f"{rms[4]:.3f}",
    adam_99=f"{beta2[3]:.3f}",
    adam_999=f"{beta2[4]:.3f}",
    b1_0=f"{beta1[0]:.3f}",
    b1_9=f"{beta1[2]:.3f}",
    b1_999=f"{beta1[4]:.3f}",
    oldest=f"{oldest / newest:.2f}",
)
figure, axes = picture(
    "Loss after ten epochs against the steps remembered, 1 / (1 - beta), with the best learning rate "
    "for each. All three curves fall from no memory to one of ten steps. With a memory longer than "
    "the run those of RMSProp and of Adam's average of gradients rise again; that of Adam's average "
    "of squares stays low.",
    height=3.6,
)
memory = 1 / (1 - np.array(some))
for (name, ends), style, mark in zip(
    tried.items(), (VERMILION, GREEN, BLUE), "so^", strict=True
):
    axes.loglog(
        memory,
        ends,
        marker=mark,
        label=name.replace("β1", "β₁").replace("β2", "β₂"),
        **style,
    )
axes.set(
    xlabel="1 / (1 - β): steps remembered",
    ylabel="loss after 10 epochs",
    ylim=(0.003, 0.3),
)
axes.axvline(430, color="0.5", linewidth=1)
axes.annotate(
    "steps of the run", (430, 0.2), (-6, 0), textcoords="offset points", ha="right"
)
axes.legend()
# sphinx_gallery_end_ignore

# %%
# What the table says:
#
# * **Begin with 0.9 for the average of gradients** (momentum's β, Adam's :math:`\beta_1`). Here
#   none at all (0) ends at :number:`choose.b1_0`, 0.9 at :number:`choose.b1_9`, and a memory longer
#   than the whole run (0.999) at :number:`choose.b1_999`.
# * **0.9 or 0.99 for RMSProp.** Here 0.9 is best with :number:`choose.rms_9` (lr =
#   :number:`choose.rms_lr`; :ref:`other figures of RMSProp <learn-rmsprop-figures>`), and its neighbours are near. With a memory longer than the run it is :number:`choose.rms_999`.
# * **0.99 to 0.999 for Adam's** :math:`\beta_2`: :number:`choose.adam_99` and
#   :number:`choose.adam_999`. It must not be much shorter than :math:`\beta_1`'s memory. At 0 the run
#   fails: v then holds the newest square alone. Where that is nearly 0, the step is old gradients
#   over nothing.
# * **Longer than the run?** 0.999 remembers a thousand steps, and the run has 430. With the bias
#   correction v is then nearly the plain mean of all squares so far: at the end the oldest counts
#   :number:`choose.oldest` times as much as the newest. In Adam this does no harm here. It does in
#   RMSProp, which has the same v but no m: with :math:`\beta_1 = 0` Adam is RMSProp, and ends at the
#   same :number:`choose.rms_999`. And it does in m, which then still holds the gradients of the
#   beginning.
# * Count in steps. Noisier gradients (smaller batches) want a longer memory, a quickly changing
#   problem a shorter one.
