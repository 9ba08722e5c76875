r"""
.. _learn-eps:

ε, and where it goes
====================

If all gradients of a parameter so far were 0, :math:`g/\sqrt{v}` is 0/0. So a tiny ε is added. Two
places are in use, and they are **not** the same:

.. math::

   \text{outside the root:}\quad &\frac{g}{\sqrt{v} + \varepsilon} \\[1ex]
   \text{inside it:}\quad &\frac{g}{\sqrt{v + \varepsilon}}

Outside, ε is added to a gradient's size. Inside, it is added to a gradient's *square*, and what it
comes to is its root. With ε = 1e-8, that is 1e-4: ten thousand times as much.
"""

import numpy as np
from learning import batches, digits, loss_and_gradients, network

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

# %%
# .. _learn-eps-take:
#
# Which ε to take, and how to tell
# --------------------------------
#
# Leave it at 1e-8, and look at √v once. ε does nothing as long as it is far below the √v of almost all
# weights. On the :ref:`digits <learn-epochs>`, ten epochs with lr = 0.01:

x, y, *_ = digits()
found = {}
print("      ε   RMSProp    Adam   share of weights with √v < 100 ε (RMSProp)")
for eps in (1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
    ends = []
    for make in (fastopt.RMSprop, fastopt.Adam):
        params = network()
        opt = make(params, lr=0.01, eps=eps)
        for bx, by in batches(x, y, epochs=10):
            opt.step(loss_and_gradients(params, bx, by)[1])
        ends.append(loss_and_gradients(params, x, y)[0])
        if make is fastopt.RMSprop:
            v = np.concatenate(
                [state["v"].ravel() for state in opt.state_dict()["state"].values()]
            )
            root = np.sqrt(v[v > 0])  # 0: pixels that are black in all images
            share = (root < 100 * eps).mean()
    found[eps] = *ends, share, np.median(root)
    print(f"{eps:7g}   {ends[0]:7.3f} {ends[1]:7.3f}   {share:.0%}")

# sphinx_gallery_start_ignore
rms, adam, shares, roots = (
    np.array(column) for column in zip(*found.values(), strict=True)
)
assert np.all(np.abs(rms[:3] / rms[0] - 1) < 0.01)  # up to 1e-6
assert np.all(np.abs(adam[:4] / adam[0] - 1) < 0.01)
assert rms[4] > 1.05 * rms[0]
assert min(rms[6] / rms[0], adam[6] / adam[0]) > 1.5
params = network()  # a loss a millionth as large
opt = fastopt.RMSprop(params, lr=0.01, eps=1e-8)
for bx, by in batches(x, y, epochs=10):
    grads = loss_and_gradients(params, bx, by)[1]
    opt.step({name: 1e-6 * g for name, g in grads.items()})
small_loss = loss_and_gradients(params, x, y)[0]
assert abs(small_loss / rms[6] - 1) < 1e-6  # as with 1e-2
assert np.all(roots[:3] > 1e-3)
assert shares[2] < 0.2 < 0.5 < shares[4]
keep(
    "eps_take",
    small=f"{small_loss:.3f}",
    adam_2=f"{adam[6]:.3f}",
    at_4=f"{rms[4]:.3f}",
    root=f"{roots[1]:.0e}",
    same=f"{rms[1]:.3f}",
    at_2=f"{rms[6]:.3f}",
    share_8=f"{shares[1]:.0%}",
    share_6=f"{shares[2]:.0%}",
    share_4=f"{shares[4]:.0%}",
)
# sphinx_gallery_end_ignore

# %%
# * **Take 1e-8, the default.** From 1e-12 to 1e-6 the end is the same (:number:`eps_take.same` for
#   RMSProp, a single run with lr = 0.01; with other rates it ends otherwise,
#   :ref:`compared here <learn-rmsprop-figures>`): the median √v is :number:`eps_take.root`, and few weights come near ε
#   (:number:`eps_take.share_8` of them with 1e-8, :number:`eps_take.share_6` with 1e-6).
# * **To tell whether yours is too large,** read v as above, from ``opt.state_dict()``. With 1e-4 most
#   weights (:number:`eps_take.share_4`) have a √v of less than 100 ε, and the loss is higher
#   (:number:`eps_take.at_4`). With 1e-2 it is :number:`eps_take.at_2`, in Adam :number:`eps_take.adam_2`,
#   because all steps have become shorter.
# * **A smaller loss needs a smaller ε.** Multiply this loss by a millionth, and all gradients are a
#   millionth as large. Then 1e-8 is what 1e-2 was: the run ends at :number:`eps_take.small`.
# * A larger ε is for gradients that are nothing but noise, as above.
