r"""
.. _learn-which:

Which optimizer when
====================

All optimizers of fastopt were tried on two problems: handwritten digits, and a small network that
predicts the next character of a text. Each had 300 steps, and the best of eleven learning rates.
The results are in the repository (``benchmarks/results``); this page reads them.
"""

import json

import numpy as np
from learning import ROOT, Table

file = ROOT / "benchmarks/results/sweep.json"
results = json.loads(file.read_text())["problems"]
digits, characters = (
    results[name]["optimizers"] for name in ("digits", "characters")
)
usual = "SGD Momentum Adagrad RMSprop Adam AdamW NAdam Lion MuonWithAdamW".split()


def loss(found, which):
    value = found[which]["loss"]["median"]
    return np.inf if value is None else value


print("                 digits             characters")
print("                 best    default    best    default")
for name in usual:
    cells = [
        loss(p[name], which)
        for p in (digits, characters)
        for which in ("best", "at_default")
    ]
    print(f"{name:14}" + "".join(f"{cell:9.3f}" for cell in cells))

# sphinx_gallery_start_ignore
from learning import BLUE, VERMILION, keep, picture

from fastopt import optimizers

everything = sorted(digits)
assert set(everything) == set(optimizers.names())
adam = loss(characters["Adam"], "best")
near = sum(loss(found, "best") < 1.05 * adam for found in characters.values())
lost = loss(characters["Adam"], "at_default") - adam
spread = np.percentile([loss(f, "best") for f in characters.values()], [25, 75])
assert near > 40
assert lost > spread[1] - spread[0]
for problem in (digits, characters):
    assert problem["RMSprop"]["best"]["factor"] == 1  # of eleven, its default
assert loss(digits["RMSprop"], "at_default") < 1.05 * loss(digits["Adam"], "best")
assert loss(characters["RMSprop"], "at_default") < 1.05 * adam
assert loss(characters["MuonWithAdamW"], "best") == min(
    loss(f, "best") for f in characters.values()
)
assert loss(characters["SGD"], "best") > 1.04 * adam
keep(
    "which",
    all=f"{len(everything)}",
    near=f"{near}",
    adam=f"{adam:.2f}",
    adam_default=f"{loss(characters['Adam'], 'at_default'):.2f}",
    rms=f"{loss(characters['RMSprop'], 'at_default'):.2f}",
    rms_digits=f"{loss(digits['RMSprop'], 'at_default'):.3f}",
    rms_lr=f"{digits['RMSprop']['default']}",
    muon=f"{loss(characters['MuonWithAdamW'], 'best'):.2f}",
    sgd=f"{loss(characters['SGD'], 'best'):.2f}",
)
figure, axes = picture(
    "Losses of nine optimizers on two problems. With the best learning rate all lie close "
    "together; at the default learning rate most lie far to the right, gradient descent farthest.",
    1,
    2,
    height=3.8,
    sharey=True,
)
for one, problem, title in zip(
    axes, (digits, characters), ("digits", "characters"), strict=True
):
    for row, name in enumerate(usual):
        best, default = (
            loss(problem[name], "best"),
            loss(problem[name], "at_default"),
        )
        one.plot([best, default], [row, row], color="0.8", zorder=1)
        one.plot(
            best,
            row,
            "o",
            color=BLUE["color"],
            label="best lr" if row == 0 else None,
        )
        one.plot(
            default,
            row,
            "D",
            color=VERMILION["color"],
            markerfacecolor="white",
            label="default lr" if row == 0 else None,
        )
    one.set(title=title, xlabel="loss after 300 steps", yticks=range(len(usual)))
    one.set_yticklabels(usual)
axes[0].set_xscale("log")
axes[0].invert_yaxis()
figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2
)
# sphinx_gallery_end_ignore

# %%
# Read it from left to right, in one row: the learning rate decides more than the name. With the
# best learning rate, :number:`which.near` of all :number:`which.all` optimizers end within 5 % of
# Adam's loss on characters, which is :number:`which.adam`. At its default learning rate Adam itself
# ends at :number:`which.adam_default`. So:
#
# 1. **Begin with AdamW or Adam** and :ref:`look for the learning rate <learn-choose-lr>`.
# 2. **RMSProp** is as good on both problems, with half the memory, and needed no search here: its
#    default, :number:`which.rms_lr`, was the best of eleven on both (:number:`which.rms` on characters).
#    On other pages another rate is best, :ref:`of other networks and runs <learn-rmsprop-figures>`.
# 3. **SGD** keeps no :term:`state`, and with momentum half of what Adam does. It is the usual choice for
#    convolutional networks (they read images with small filters that slide over them). On characters it is behind (:number:`which.sgd`).
# 4. **MuonWithAdamW** was the best on characters (:number:`which.muon`). Its steps cost much more.
# 5. **AdaGrad** is for sparse features, inputs that are 0 almost always, as the words of a text are (:ref:`learn-adagrad-slows`).
#
# .. _learn-which-table:
#
# What they cost and what they are for
# ------------------------------------

import sys

sys.path.insert(0, str(ROOT / "benchmarks"))
import choosing  # the sentences, and what belongs into a row

# sphinx_gallery_start_ignore
sys.path.remove(str(ROOT / "benchmarks"))
rules = json.loads((ROOT / "benchmarks/results/rules.json").read_text())
cells = choosing.figures(rules, {"problems": results})
memory = {name: float(cells[name][0]) for name in cells}
assert memory["RMSprop"] == memory["Momentum"] == memory["Adam"] / 2
assert memory["SGD"] == 0
assert float(cells["MuonWithAdamW"][1].rstrip("†")) > 50

import fastopt

decayed = {}
for name in ("Adam", "AdamW"):
    for decay in (0.01, 0.1):
        p = np.ones(1)
        opt = getattr(fastopt, name)(p, lr=0.001, weight_decay=decay)
        opt.step(np.zeros(1))
        decayed[name, decay] = 1 - p[0]
assert np.isclose(decayed["Adam", 0.01], decayed["Adam", 0.1], rtol=1e-4)
assert np.isclose(decayed["AdamW", 0.1], 10 * decayed["AdamW", 0.01])
p = np.array([5.0])
opt = fastopt.ScheduleFreeAdamW(p, lr=0.1, weight_decay=0.0)
for _ in range(50):
    opt.step(2 * p)
trained = p.copy()
opt.eval()
assert abs(p - trained)[0] > 0.05
opt.train()
assert np.allclose(p, trained)
# sphinx_gallery_end_ignore
head = [
    "class",
    "bytes of state per number",
    "time of a step, Adam = 1",
    "use it for",
]
Table(
    head, [[name, *cells[name][:2], text] for name, text in choosing.FIRST.items()]
)

# %%
# A † marks optimizers on matrices, timed on matrices of 512 by 512; the others on one array of 20
# million numbers. :doc:`All others </use/choosing>` have the same figures in *Use*.
#
# Words of the table:
#
# * *Decay* (weight decay) pulls each weight towards 0 in each step, which keeps weights small. *Inside
#   the gradient* it is added to the gradient, so that Adam divides it by √v, too (alone, with no
#   other gradient, it moves a weight by lr, whatever its size). AdamW takes it off the weight itself.
# * *Transformers* are the networks of language models, *convolutional* ones those of images.
# * ``opt.eval()``: a schedule-free optimizer takes gradients at one point, and its answer is another, an
#   average of earlier points. ``opt.eval()`` puts the answer into the parameters, and ``opt.train()``
#   goes back to the point for the next steps.
