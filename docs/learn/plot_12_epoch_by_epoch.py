r"""
.. _learn-epochs:

Epoch by epoch, on real digits
==============================

Now all of it in one training. The data are 1797 images of handwritten digits, 8 by 8 pixels, which
come with scikit-learn. 450 are held out: never trained on, only used to check.

The words first:

* A *batch* is a handful of images, here 32. Its loss and gradients are the means over these images.
  They are a noisy estimate of what all images would say.
* A *step* is one update of all weights, with the gradients of one batch.
* An *epoch* is one time through all 1347 images: 42 batches of 32, and one of the 3 that are left,
  so 43 steps. Then the images are shuffled, and the next epoch begins. Weights, m and v just go
  on. Nothing is reset.

The network
-----------

64 pixels, 32 hidden values, 10 *scores*, one for each digit; the highest score is the answer. ``log_p``
are the logarithms of the probabilities that the scores stand for, and the *loss* is minus that of the
right digit, in the mean: 0 if the network is always sure and right, 2.3 (log 10) if it knows nothing.
It is the cost of the first pages, under its usual name. Then backwards by the chain rule: ``d_scores``
is the gradient for the scores, ``d_sums`` that for the sums inside the tanh.

.. literalinclude:: ../learning.py
   :pyobject: loss_and_gradients

The training
------------
"""

import numpy as np
from learning import accuracy, digits, loss_and_gradients, network

import fastopt

x, y, held_x, held_y = digits()
params = network()
lr, beta1, beta2, eps = 0.003, 0.9, 0.999, 1e-8
opt = fastopt.Adam(params, lr=lr, betas=(beta1, beta2), eps=eps)
rng = np.random.default_rng(0)

batch_losses, epoch_losses, right, watched, mean_steps = [], [], [], [], []
for epoch in range(1, 11):
    order = rng.permutation(len(x))  # shuffle
    losses = []
    for first in range(0, len(x), 32):
        batch = order[first : first + 32]
        loss, grads = loss_and_gradients(params, x[batch], y[batch])
        before = params["W2"].copy()
        opt.step(grads)
        losses.append(loss)

        # Watch one weight: from hidden value 5 to the score of digit 3.
        state = opt.state_dict()["state"]["W2"]
        watched.append(
            (
                grads["W2"][5, 3],
                state["m"][5, 3],
                state["v"][5, 3],
                (params["W2"] - before)[5, 3],
            )
        )
        mean_steps.append(np.abs(params["W2"] - before).mean())  # and all its 320
    batch_losses += losses
    epoch_losses.append(np.mean(losses))
    right.append(accuracy(params, held_x, held_y))
    print(
        f"epoch {epoch:2}: loss {epoch_losses[-1]:.3f}, held-out digits right {right[-1]:.1%}"
    )

# sphinx_gallery_start_ignore
from learning import BLUE, GREEN, ORANGE, VERMILION, keep, picture

assert (len(x), len(held_x), len(batch_losses)) == (1347, 450, 430)
assert np.all(np.diff(epoch_losses[:6]) < 0)
assert epoch_losses[0] - epoch_losses[1] > 3 * (epoch_losses[4] - epoch_losses[9])
assert right[-1] > 0.94
keep(
    "epochs",
    loss_1=f"{epoch_losses[0]:.2f}",
    loss_10=f"{epoch_losses[-1]:.3f}",
    right_1=f"{right[0]:.0%}",
    right_10=f"{right[-1]:.0%}",
    scatter=f"{np.std(batch_losses[-43:]) / np.mean(batch_losses[-43:]):.0%}",
)
figure, axes = picture(
    "Loss against the epoch: a thin noisy line with a value for each batch, and a mean for each "
    "epoch that falls steeply at first and slowly afterwards.",
    height=3.4,
)
t = np.arange(1, 431) / 43
axes.semilogy(t, batch_losses, color="0.75", linewidth=0.9, label="one batch")
axes.semilogy(
    np.arange(1, 11) - 0.5,
    epoch_losses,
    marker="o",
    label="mean of the epoch",
    **BLUE,
)
axes.set(xlabel="epoch", ylabel="loss", xlim=(0, 10), xticks=range(0, 11, 2))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# The mean loss falls fast at first and then slowly (once it even rises a little), from
# :number:`epochs.loss_1` in the first to :number:`epochs.loss_10` in the tenth. From batch to batch it jumps about by
# :number:`epochs.scatter` (standard deviation, last epoch), because each batch holds other images.
# :number:`epochs.right_1` of the held-out digits are right after one epoch,
# :number:`epochs.right_10` after ten.
#
# .. _learn-one-weight:
#
# m and v of one weight
# ---------------------
#
# For one of the weights, the gradient of each batch, the average m, and the root of the averaged
# square v. Both averages are divided by their bias correction, as Adam does it.

g, m, v, change = np.array(watched).T
t = np.arange(1, 431)
m_hat = m / (1 - beta1**t)
v_hat = v / (1 - beta2**t)
step = -lr * m_hat / (np.sqrt(v_hat) + eps)
print(
    "differs from what fastopt did by at most",
    np.abs(step - change).max(),
)
print()
print("epoch    mean |g|    mean |m|   root of v   |step|/lr")
for e in range(10):
    s = slice(43 * e, 43 * e + 43)
    sizes = [np.abs(a[s]).mean() for a in (g, m_hat, np.sqrt(v_hat), step)]
    print(
        f"{e + 1:5}"
        + "".join(f"{size:12.4f}" for size in (*sizes[:3], sizes[3] / lr))
    )

# sphinx_gallery_start_ignore
assert np.abs(step - change).max() < 1e-12
of_all = np.reshape(mean_steps, (10, 43)).mean(axis=1) / lr
assert np.all(
    np.diff(of_all[:9]) < 0
)  # "shrinks from epoch to epoch, until the ninth"
by_epoch = {
    name: np.abs(a).reshape(10, 43).mean(axis=1)
    for name, a in (
        ("g", g),
        ("m", m_hat),
        ("v", np.sqrt(v_hat)),
        ("step", step / lr),
    )
}
assert by_epoch["v"][-1] > 1.4 * by_epoch["g"][-1]
assert np.all(by_epoch["m"] < 0.8 * by_epoch["g"])
assert abs(abs(step[0]) / lr - 1) < 1e-3
assert by_epoch["step"][:4].mean() > 1.5 * by_epoch["step"][5:].mean()
assert np.abs(g).argmax() % 43 == 42  # "the batch of three images"
assert np.abs(g).max() > 4 * np.sqrt(v_hat[np.abs(g).argmax()])
keep(
    "weight",
    g_1=f"{by_epoch['g'][0]:.4f}",
    g_10=f"{by_epoch['g'][-1]:.4f}",
    m_10=f"{by_epoch['m'][-1]:.4f}",
    v_10=f"{by_epoch['v'][-1]:.4f}",
    first=f"{abs(step[0]) / lr:.2f}",
    step_early=f"{by_epoch['step'][:4].mean():.2f}",
    step_late=f"{by_epoch['step'][5:].mean():.2f}",
    all_1=f"{of_all[0]:.2f}",
    all_10=f"{of_all[-1]:.2f}",
    outlier=f"{np.abs(g).max() / np.sqrt(v_hat[np.abs(g).argmax()]):.0f}",
    outlier_step=f"{np.abs(step / lr)[np.abs(g).argmax()]:.2f}",
)
figure, axes = picture(
    "Two strips over ten epochs for one weight. Above: the gradients of the batches scatter "
    "around zero and become smaller; their average m is a calm line among them; the root of v "
    "encloses them like a band and shrinks slowly. Below: the step in units of the learning rate, "
    "close to one at the very beginning and a fraction of it later.",
    2,
    height=5.6,
    sharex=True,
)
epochs = t / 43
axes[0].plot(
    epochs, g, ".", color="#56B4E9", markersize=3, label="gradient of a batch"
)
axes[0].plot(epochs, m_hat, label="m", **VERMILION)
axes[0].plot(epochs, np.sqrt(v_hat), label="√v and -√v", **GREEN)
axes[0].plot(epochs, -np.sqrt(v_hat), **GREEN)
axes[0].set_ylabel("gradient")
axes[0].legend(ncols=3, loc="upper right", fontsize=8.5)
axes[1].axhline(0, color="black", linewidth=0.8)
axes[1].plot(epochs, step / lr, **BLUE)
axes[1].set(
    xlabel="epoch", ylabel="step / lr", xlim=(0, 10), xticks=range(0, 11, 2)
)
# sphinx_gallery_end_ignore

# %%
# * **The gradient** (dots) changes its sign from batch to batch. In the mean its size falls from
#   :number:`weight.g_1` in the first epoch to :number:`weight.g_10` in the tenth.
# * **m** is its calm middle: most of the noise cancels, in the tenth epoch :number:`weight.m_10` is
#   left.
# * √v is a band around the dots: their usual size. With :math:`\beta_2 = 0.999` it remembers a
#   thousand steps, more than the whole run has. So it falls slowly, and in the tenth epoch it is
#   :number:`weight.v_10`, still wider than the gradients are.
# * **The step** is lr times m/√v. The very first is :number:`weight.first` lr, because one gradient
#   always agrees with itself. In the first four epochs it is :number:`weight.step_early` lr in the
#   mean, from the sixth on :number:`weight.step_late`. One weight is unsteady; the mean over all 320
#   weights of its layer shrinks in each epoch until the ninth, from :number:`weight.all_1` lr in the
#   first to :number:`weight.all_10` in the tenth. The gradients agree less, m shrinks against √v, and
#   Adam goes more carefully. Nobody changed the learning rate.
# * One gradient is an outlier, :number:`weight.outlier` times √v (it came with the batch of three
#   images). The step there is :number:`weight.outlier_step` lr: both averages have softened it.
#
# .. _learn-epochs-compared:
#
# The same, with four optimizers
# ------------------------------

from learning import batches

runs = {
    "gradient descent, lr = 1": lambda p: fastopt.SGD(p, lr=1.0),
    "momentum, lr = 1": lambda p: fastopt.Momentum(p, lr=1.0, beta=0.9),
    "RMSProp, lr = 0.01": lambda p: fastopt.RMSprop(p, lr=0.01),
    "Adam, lr = 0.01": lambda p: fastopt.Adam(p, lr=0.01),
}
curves, highest = {}, {}
for name, make in runs.items():
    params = network()
    opt = make(params)
    losses = []
    for bx, by in batches(x, y, epochs=10):
        loss, grads = loss_and_gradients(params, bx, by)
        opt.step(grads)
        losses.append(loss)
    by_epoch = np.reshape(losses, (10, 43))
    curves[name], highest[name] = by_epoch.mean(axis=1), by_epoch.max(axis=1)
print("epoch   " + "".join(f"{name.split(',')[0]:>18}" for name in curves))
for e in range(10):
    print(f"{e + 1:5}   " + "".join(f"{c[e]:18.3f}" for c in curves.values()))

# sphinx_gallery_start_ignore
sgd, momentum, rmsprop, adam = curves.values()
assert max(c[2] for c in curves.values()) < 0.25  # all learn
rises = {
    n.split(",")[0]: np.flatnonzero(np.diff(c) > 0) + 2 for n, c in curves.items()
}
assert {n: list(r) for n, r in rises.items()} == {
    "gradient descent": [5, 10],
    "momentum": [5, 10],
    "RMSProp": [],
    "Adam": [5, 10],
}
assert sgd[4] > 2 * sgd[3]
assert 1.3 < momentum[4] / momentum[3] < 1.6
assert adam[4] < 1.05 * adam[3]
assert sgd[9] > 1.2 * sgd[8]
assert max(momentum[9] / momentum[8], adam[9] / adam[8]) < 1.1
worst_sgd, worst_momentum = (list(highest.values())[k][4] for k in (0, 1))
assert worst_sgd > 4 * worst_momentum
for e in range(4, 10):  # "is the highest from the fifth on"
    assert sgd[e] > 1.05 * max(momentum[e], rmsprop[e], adam[e]), e
assert max(momentum[-1], rmsprop[-1], adam[-1]) < 0.75 * sgd[-1]
lead = np.argmin([momentum, rmsprop, adam], axis=0)
assert set(lead[4:]) == {0, 1}  # "momentum and RMSProp take turns"


def once_more(make, order):
    params = network()
    opt = make(params)
    losses = []
    for bx, by in batches(x, y, epochs=10, seed=order):
        loss, grads = loss_and_gradients(params, bx, by)
        opt.step(grads)
        losses.append(loss)
    return np.reshape(losses, (10, 43)).mean(axis=1)


reordered = [once_more(make, 1) for make in runs.values()]
assert all(c[4] < c[3] for c in reordered)  # "none rises in its fifth"
assert reordered[0][2] > reordered[0][1]  # "gradient descent does in its third"
assert all(c[2] < c[1] for c in reordered[1:])
half = once_more(lambda p: fastopt.SGD(p, lr=0.5), 0)
assert half[4] < half[3]
keep(
    "compared",
    sgd_4=f"{sgd[3]:.2f}",
    sgd_5=f"{sgd[4]:.2f}",
    sgd_9=f"{sgd[8]:.3f}",
    half_4=f"{half[3]:.3f}",
    half_5=f"{half[4]:.3f}",
    sgd_worst=f"{worst_sgd:.1f}",
    momentum_4=f"{momentum[3]:.2f}",
    momentum_5=f"{momentum[4]:.2f}",
    momentum_worst=f"{worst_momentum:.1f}",
    momentum_9=f"{momentum[8]:.3f}",
    adam_4=f"{adam[3]:.3f}",
    adam_5=f"{adam[4]:.3f}",
    adam_9=f"{adam[8]:.3f}",
    sgd=f"{sgd[-1]:.3f}",
    momentum=f"{momentum[-1]:.3f}",
    rmsprop=f"{rmsprop[-1]:.3f}",
    adam=f"{adam[-1]:.3f}",
)
figure, axes = picture(
    "Mean loss of each epoch for four optimizers. All fall in the first four epochs. In the fifth "
    "gradient descent doubles, momentum rises by less than half and Adam hardly; RMSProp goes on falling. "
    "From then on gradient descent is the highest, and the other three lie below it. In the "
    "tenth gradient descent rises once more.",
    height=3.4,
)
for (name, curve), style, mark in zip(
    curves.items(), (BLUE, ORANGE, VERMILION, GREEN), "osd^", strict=True
):
    axes.semilogy(
        range(1, 11), curve, marker=mark, markersize=4, label=name, **style
    )
axes.set(xlabel="epoch", ylabel="mean loss of the epoch", xticks=range(1, 11))
axes.legend()
# sphinx_gallery_end_ignore

# %%
# Each has one learning rate that does well here, and not the best of a search (that of RMSProp:
# :ref:`all its figures <learn-rmsprop-figures>`). The losses are means over the batches of an epoch, while
# the weights still move.
#
# In the tenth epoch gradient descent is at :number:`compared.sgd`, momentum at
# :number:`compared.momentum`, RMSProp at :number:`compared.rmsprop` and Adam at
# :number:`compared.adam`.
#
# In the fifth epoch three of them rise: gradient descent from :number:`compared.sgd_4` to
# :number:`compared.sgd_5` (one batch had a loss of :number:`compared.sgd_worst`), momentum from
# :number:`compared.momentum_4` to :number:`compared.momentum_5` (at most
# :number:`compared.momentum_worst` in a batch), Adam from :number:`compared.adam_4` to
# :number:`compared.adam_5`. RMSProp goes on falling. All four got the same batches in the same order,
# and it is these batches: with the images in another order, none of the four rises in its fifth epoch,
# and gradient descent does in its third. How much it rises is a matter of the learning rate: with half
# of it, gradient descent falls in the fifth, too (from :number:`compared.half_4` to
# :number:`compared.half_5`). In the tenth, with lr = 1, it rises again, from :number:`compared.sgd_9`; momentum (from
# :number:`compared.momentum_9`) and Adam (from :number:`compared.adam_9`) hardly do.
#
# From the fifth epoch on gradient descent is the highest; momentum and RMSProp take turns as the lowest.
# Another order of the images, or a learning rate a little different, would change that: look at
# :ref:`the whole curve <learn-lr-sensitive>`, not at one run.
