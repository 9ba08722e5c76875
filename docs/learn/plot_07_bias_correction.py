r"""
.. _learn-bias:

Is bias correction needed? Measured
===================================

An average that begins at 0 is too small at first. After one step with gradient 1 and β = 0.9, v is
0.1, not 1. *Bias correction* divides by the sum of the weights that have come in so far:

.. math:: \hat{v} = \frac{v}{1 - \beta^t} \qquad\text{at step } t = 1, 2, 3, \dots

Then the first average is the first gradient's square itself. Adam has this by default, and RMSProp
does not. Who needs it?
"""

import numpy as np
from learning import batches, digits, loss_and_gradients, network

import fastopt


def lengths(make, steps):
    """Return the lengths of the first steps under a steady gradient of 1, in units of lr."""
    p = np.zeros(1)
    opt = make(p)
    found = []
    for _ in range(steps):
        before = p.copy()
        opt.step(np.array([1.0]))
        found.append((before - p)[0])
    return np.array(found)


plain = {
    "RMSProp, β = 0.9": lambda p: fastopt.RMSprop(p, lr=1.0, beta=0.9),
    "RMSProp, β = 0.99": lambda p: fastopt.RMSprop(p, lr=1.0, beta=0.99),
    "RMSProp, β = 0.999": lambda p: fastopt.RMSprop(p, lr=1.0, beta=0.999),
    "Adam, 0.9 and 0.999": lambda p: fastopt.Adam(p, lr=1.0, bias_correction=False),
}
print("without correction    first  longest  steps over 1.05  sum of the excess")
for name, make in plain.items():
    found = lengths(make, 6000)
    until, far = np.flatnonzero(found > 1.05)[-1] + 1, (found - 1).sum()
    print(f"{name:20} {found[0]:6.2f} {found.max():8.2f} {until:16} {far:18.1f}")

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, ORANGE, VERMILION, keep, picture

table = {name: lengths(make, 6000) for name, make in plain.items()}
first = [found[0] for found in table.values()]
assert np.allclose(
    first[:3], 1 / np.sqrt(1 - np.array([0.9, 0.99, 0.999])), rtol=1e-6
)
assert abs(first[3] - 0.1 / np.sqrt(0.001)) < 1e-4
both = [table["RMSProp, β = 0.999"], table["Adam, 0.9 and 0.999"]]
half_way, last = ([found[t - 1] for found in both] for t in (215, 430))
assert np.allclose(last, 1 / np.sqrt(1 - 0.999**430), rtol=1e-3)
assert np.allclose(half_way, half_way[0], rtol=1e-3)
assert 1.6 < last[0] < 1.75
corrected = [
    lengths(lambda p: fastopt.RMSprop(p, lr=1.0, bias_correction=True), 100),
    lengths(lambda p: fastopt.Adam(p, lr=1.0), 100),
]
assert all(np.allclose(one, 1, rtol=1e-6) for one in corrected)
keep(
    "first",
    rms_9=f"{first[0]:.1f}",
    rms_99=f"{first[1]:.0f}",
    rms_999=f"{first[2]:.0f}",
    half_999=f"{half_way[0]:.1f}",
    last=f"{last[0]:.1f}",
    extra_99=f"{(table['RMSProp, β = 0.99'] - 1).sum():.0f}",
    until_99=f"{np.flatnonzero(table['RMSProp, β = 0.99'] > 1.05)[-1] + 1}",
    adam=f"{first[3]:.1f}",
    adam_max=f"{table['Adam, 0.9 and 0.999'].max():.1f}",
    extra_9=f"{(table['RMSProp, β = 0.9'] - 1).sum():.0f}",
    extra_999=f"{(table['RMSProp, β = 0.999'] - 1).sum():.0f}",
    until_9=f"{np.flatnonzero(table['RMSProp, β = 0.9'] > 1.05)[-1] + 1}",
    until_adam=f"{np.flatnonzero(table['Adam, 0.9 and 0.999'] > 1.05)[-1] + 1}",
)
figure, axes = picture(
    "Length of a step under a steady gradient, without correction, against the step number. "
    "RMSProp begins three times too long with beta 0.9 and thirty times with 0.999; Adam begins "
    "three times too long, rises to over six, and needs thousands of steps to come down. With the "
    "correction all are 1 from the first step.",
    height=3.8,
)
t = np.arange(1, 6001)
for (name, found), style in zip(
    table.items(), (BLUE, GREEN, ORANGE, VERMILION), strict=True
):
    axes.loglog(t, found, label=name, **style)
axes.axhline(1, color="black", linewidth=1)
axes.annotate(
    "with correction, all: 1", (1.2, 1), (0, -14), textcoords="offset points"
)
axes.set(xlabel="step", ylabel="length of the step / lr", ylim=(0.6, 50))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# All lengths are in learning rates; with the correction they are 1. Without it v is too small, so the
# step is too *long*. The first is
# :math:`1/\sqrt{1-\beta}` times too long: :number:`first.rms_9` times for β = 0.9 and
# :number:`first.rms_999` times for 0.999. With β = 0.9, :number:`first.until_9` steps are more than
# 5 % too long, and all of them together went :number:`first.extra_9` learning rates too far. With 0.99 the
# first is :number:`first.rms_99` times too long, :number:`first.until_99` are too long by more than 5 %,
# and together they went :number:`first.extra_99` too far; with 0.999, :number:`first.extra_999`.
#
# Adam without correction has *two* averages that are too small: m, that of the gradients, above the
# line, which makes the step shorter, and v below it, which makes it longer. √v is the smaller one, so the first step is
# :number:`first.adam` times too long. m has filled up after tens of steps, v after thousands. So the
# steps grow to :number:`first.adam_max` times the right length and come back late, after
# :number:`first.until_adam` steps.
#
# .. _learn-bias-runs:
#
# Does a run notice?
# ------------------
#
# The digits again: ten epochs, five learning rates, with and without. These are single
# runs; with other first weights an end may be some times as high. The loss at the end:

x, y, *_ = digits()
rates = (0.001, 0.003, 0.01, 0.03, 0.1)
cases = {
    "RMSProp, β = 0.9": lambda p, lr, c: fastopt.RMSprop(
        p, lr=lr, beta=0.9, bias_correction=c
    ),
    "RMSProp, β = 0.99": lambda p, lr, c: fastopt.RMSprop(
        p, lr=lr, beta=0.99, bias_correction=c
    ),
    "RMSProp, β = 0.999": lambda p, lr, c: fastopt.RMSprop(
        p, lr=lr, beta=0.999, bias_correction=c
    ),
    "Adam, 0.9 and 0.999": lambda p, lr, c: fastopt.Adam(
        p, lr=lr, bias_correction=c
    ),
}
results = {}
print("learning rate                    " + "".join(f"{lr:8}" for lr in rates))
for name, make in cases.items():
    for correct in (True, False):
        ends, worst = [], []
        for lr in rates:
            params = network()
            opt = make(params, lr, correct)
            losses = []
            for bx, by in batches(x, y, epochs=10):
                loss, grads = loss_and_gradients(params, bx, by)
                opt.step(grads)
                losses.append(loss)
            ends.append(loss_and_gradients(params, x, y)[0])
            worst.append(max(losses))
        results[name, correct] = np.array(ends), np.array(worst)
        word = "with" if correct else "without"
        print(f"{name:20} {word:8} end " + "".join(f"{end:8.3f}" for end in ends))
        print(
            f"{'':20} {'':6} highest " + "".join(f"{high:8.1f}" for high in worst)
        )

# sphinx_gallery_start_ignore
best = {key: ends.min() for key, (ends, _) in results.items()}
small = (
    results["RMSProp, β = 0.9", True][0][:3],
    results["RMSProp, β = 0.9", False][0][:3],
)
assert np.all(small[1] <= small[0])
assert np.all(small[1] > 0.7 * small[0])  # hardly a difference
for name in cases:
    assert (
        0.6 < best[name, True] / best[name, False] < 1.6
    )  # none, each at its best rate
high = {(n, c): results[n, c][1][2] for n, c in results}  # at lr = 0.01
assert high["RMSProp, β = 0.999", False] > 3 * high["RMSProp, β = 0.999", True]
assert high["RMSProp, β = 0.9", False] < 1.1 * high["RMSProp, β = 0.9", True]
assert (
    1.1 < high["RMSProp, β = 0.99", False] / high["RMSProp, β = 0.99", True] < 1.5
)


def end_at(seed, correct, lr=0.01):
    """Return RMSProp's loss at the end with β = 0.999, and the highest."""
    params = network(seed)
    opt = fastopt.RMSprop(params, lr=lr, beta=0.999, bias_correction=correct)
    losses = []
    for bx, by in batches(x, y, epochs=10, seed=seed):
        loss, grads = loss_and_gradients(params, bx, by)
        opt.step(grads)
        losses.append(loss)
    return loss_and_gradients(params, x, y)[0], max(losses)


five = np.array([[end_at(seed, c) for seed in range(5)] for c in (True, False)])
ends_with, ends_without = five[:, :, 0]
assert five[1, :, 1].min() > 2.5 * five[0, :, 1].max()  # rough in all five
assert (ends_without > ends_with).sum() == 1  # lower in four, and one is lost
lost = ends_without.argmax()
rising = fastopt.schedules.warmup(0.01, warmup_steps=43)
warm = np.array([end_at(seed, False, rising) for seed in range(5)])
assert np.all(warm[:, 0] < np.minimum(ends_with, ends_without))
assert warm[:, 1].max() < 3
assert ends_without[lost] > 5 * ends_with[lost]
longest_ok = {
    key: max(lr for lr, end in zip(rates, ends, strict=True) if end < 0.1)
    for key, (ends, _) in results.items()
}
assert (
    longest_ok["Adam, 0.9 and 0.999", True]
    >= longest_ok["Adam, 0.9 and 0.999", False]
)
for name in ("RMSProp, β = 0.999", "Adam, 0.9 and 0.999"):  # lower, then higher
    with_it, without = results[name, True][0], results[name, False][0]
    assert np.all(without[:3] < with_it[:3])
    assert np.all(without[3:] > with_it[3:])
best_lr = {key: rates[ends.argmin()] for key, (ends, _) in results.items()}
for name in ("RMSProp, β = 0.9", "RMSProp, β = 0.999"):
    assert len({best_lr[name, c] for c in (True, False)}) == 1
assert best_lr["Adam, 0.9 and 0.999", True] > best_lr["Adam, 0.9 and 0.999", False]
keep(
    "runs",
    lr_9=f"{best_lr['RMSProp, β = 0.9', True]}",
    with_9=f"{best['RMSProp, β = 0.9', True]:.3f}",
    without_9=f"{best['RMSProp, β = 0.9', False]:.3f}",
    with_999=f"{best['RMSProp, β = 0.999', True]:.3f}",
    without_999=f"{best['RMSProp, β = 0.999', False]:.3f}",
    with_adam=f"{best['Adam, 0.9 and 0.999', True]:.3f}",
    without_adam=f"{best['Adam, 0.9 and 0.999', False]:.3f}",
    lr_999=f"{best_lr['RMSProp, β = 0.999', True]}",
    lr_adam=f"{best_lr['Adam, 0.9 and 0.999', True]}",
    lr_adam_without=f"{best_lr['Adam, 0.9 and 0.999', False]}",
    with_99=f"{best['RMSProp, β = 0.99', True]:.3f}",
    without_99=f"{best['RMSProp, β = 0.99', False]:.3f}",
    high_with_99=f"{high['RMSProp, β = 0.99', True]:.1f}",
    high_without_99=f"{high['RMSProp, β = 0.99', False]:.1f}",
    lost_with=f"{ends_with[lost]:.3f}",
    lost_without=f"{ends_without[lost]:.3f}",
    warm_most=f"{warm[:, 0].max():.3f}",
    warm_high=f"{warm[:, 1].max():.1f}",
    high_with=f"{high['RMSProp, β = 0.999', True]:.1f}",
    high_without=f"{high['RMSProp, β = 0.999', False]:.1f}",
)
figure, axes = picture(
    "Four panels with the loss at the end against the learning rate, with and without bias "
    "correction. For RMSProp with beta 0.9 the two curves lie on each other, with 0.99 nearly so but "
    "for the largest rate. For RMSProp with 0.999 and for Adam the curve without correction is lower at "
    "small learning rates and higher at large ones.",
    2,
    2,
    height=5.6,
    sharex=True,
    sharey=True,
)
for one, name in zip(axes.flat, cases, strict=True):
    one.loglog(rates, results[name, True][0], marker="o", label="with", **BLUE)
    one.loglog(
        rates, results[name, False][0], marker="s", label="without", **VERMILION
    )
    one.set_title(name)
for one in axes[1]:
    one.set_xlabel("learning rate")
for one in axes[:, 0]:
    one.set_ylabel("loss after 10 epochs")
axes[0, 0].legend(loc="upper left")
# sphinx_gallery_end_ignore

# %%
# *RMSProp with β = 0.9*: no. The curves lie on each other; the best ends are
# :number:`runs.with_9` with correction and :number:`runs.without_9` without it, both with
# lr = :number:`runs.lr_9` (:ref:`all figures of RMSProp beside each other <learn-rmsprop-figures>`).
#
# *RMSProp with β = 0.99*: hardly. The best ends are :number:`runs.with_99` and
# :number:`runs.without_99`, and with lr = 0.01 the highest loss of a :term:`batch` was
# :number:`runs.high_with_99` with it and :number:`runs.high_without_99` without.
#
# *RMSProp with β = 0.999, and Adam*: at one learning rate it makes a large difference, because
# without correction the steps are longer for the whole run: under a steady gradient, in RMSProp
# :number:`first.rms_999` times in the first step, and in both :number:`first.half_999` times half-way and
# still :number:`first.last` times in the last of the 430 steps. At small learning rates
# that helps, and at large ones it harms. With its best learning rate each ends about where the other
# does: RMSProp at :number:`runs.with_999` with correction and :number:`runs.without_999` without
# (both with lr = :number:`runs.lr_999`), Adam at :number:`runs.with_adam` (:number:`runs.lr_adam`)
# and :number:`runs.without_adam` (:number:`runs.lr_adam_without`). But the start is rough: for
# RMSProp with lr = 0.01 and β = 0.999 the highest loss of a batch was :number:`runs.high_without`
# without correction and :number:`runs.high_with` with it. Most runs recover from that and some do not:
# of five, each with its own first weights, four end lower without correction than with it, and one at
# :number:`runs.lost_without` in the place of :number:`runs.lost_with`. With a learning rate that rises
# from 0 in the first epoch, and no correction, all five end lower than with either (at most
# :number:`runs.warm_most`), and the highest loss is :number:`runs.warm_high`.
#
# **In short:** with β = 0.9 RMSProp does without. With β = 0.999 it mostly ends as well, but begins so
# roughly that now and then a run is lost: correct it (``fastopt.RMSprop(..., bias_correction=True)``), or let the
# learning rate rise at the beginning (``fastopt.schedules.warmup``). In Adam leave it on: then the learning rate means the same from
# the first step to the last.
