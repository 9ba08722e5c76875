"""Write the tables of which optimizer to use when, from what was measured.

    python benchmarks/choosing.py

State and times are those of ``results/rules.json``, losses those of ``results/sweep.json``; the
sentences are here. The README has the first ones in short, ``docs/use/choosing.md`` has all. The
tables stand between two comments of a page, and all else stays.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
MANUAL = FOLDER.parent / "docs" / "use" / "choosing.md"
BEGIN = "<!-- written by benchmarks/choosing.py -->"
END = "<!-- end of what benchmarks/choosing.py writes -->"

FIRST: Mapping[str, str] = {
    "AdamW": "the usual first choice, of transformers above all; search `lr`",
    "Adam": "the same with decay inside the gradient: fits, small networks, published recipes",
    "SGD": "the least state; with `momentum=0.9` (4 bytes) and a schedule for networks that are "
    "known to train so, convolutional ones above all",
    "RMSprop": "small networks, reinforcement learning; needed no search of `lr` here",
    "NAdam": "Adam with a look ahead: better than Adam on characters, not on digits",
    "ScheduleFreeAdamW": "no schedule, and no number of steps fixed before; evaluate in "
    "`opt.eval()`",
    "Prodigy": "Adam with no rate to search: `lr=1` and a schedule",
    "Lion": "half of Adam's state; `lr` three to ten times smaller than AdamW's, large batches",
    "MuonWithAdamW": "networks of matrices whose gradients take far longer than a step: the best "
    "on characters",
    "Adafactor": "models so large that state decides: hardly any, sums by row and column alone",
}
"""What most users want, before all others."""

OTHERS: Mapping[str, Mapping[str, str]] = {
    "No learning rate to search": {
        "MoMoAdam": "Adam with a ceiling for `lr`, and the loss (`value=`) says how much of it; "
        "needed no search here",
        "MoMo": "the same of momentum, for networks that SGD trains well",
        "COCOB": "no rate at all: as good as a tuned Adam here, for five arrays of state",
        "DAdaptAdam": "to repeat what was trained with it; Prodigy, its successor, did better here "
        "at the defaults",
        "DAdaptSGD": "SGD's results without its search of `lr`",
        "DoG": "fine-tuning and convex problems in long runs; spends a short one finding its step",
        "DoWG": "as DoG, and sooner at its step",
        "ScheduleFreeSGD": "SGD without a schedule, on problems that SGD is good at; evaluate in "
        "`opt.eval()`",
    },
    "Adam, with something mended": {
        "RAdam": "in the place of a warm-up; its best `lr` was 100 times the default here",
        "ADOPT": "gradients so noisy that Adam's choice of beta2 matters",
        "LaProp": "betas that make Adam unstable: any two go together",
        "AdamAtan2": "a loss whose scale is not known: no eps, the same steps at any scale",
        "StableAdamW": "large models whose loss spikes: shortens steps that outgrow their average",
        "Yogi": "rare large gradients, which Adam forgets too fast; needed no search here",
        "AdaBelief": "gradients that agree from step to step, for which it takes longer steps",
        "AdaBound": "to begin as Adam does and end as SGD does",
        "Adamax": "sparse or jumping gradients: divided by a maximum, which they cannot outgrow by "
        "much",
        "AdEMAMix": "runs of ten thousands of steps, whose early gradients are still of use",
        "Adan": "vision models in long runs, at rates above Adam's, if there is memory for it",
        "Mars": "gradients whose change from step to step says something: a little ahead of Adam "
        "on characters",
        "QHAdam": "to weigh the newest gradient against the averages by hand",
        "OptimisticAdam": "games: adversarial networks, saddle points, where plain steps go round "
        "in circles",
        "AdamP": "networks with normalisation, where the length of the weights plays no part",
    },
    "SGD, with something mended": {
        "Momentum": "SGD whose `lr` keeps its meaning whatever the momentum is",
        "QHM": "to choose between SGD and momentum, and all between, by one number",
        "AggMo": "long narrow valleys: much momentum, and little of its swinging; far behind on "
        "characters",
        "Signum": "gradients whose scales differ wildly: only signs count; half of Adam's state",
        "SGDP": "as AdamP, for what SGD trains",
        "ASGD": "noisy convex problems: the mean of the way is the result",
    },
    "Large batches": {
        "LAMB": "transformers on batches of thousands",
        "LARS": "convolutional networks on batches of thousands, with a smaller `lr` for biases",
        "NovoGrad": "speech models and large batches, with half of Adam's state",
    },
    "Sums over all steps, sparse problems": {
        "Adagrad": "sparse features and convex problems: steps only become shorter",
        "MADGRAD": "as Adagrad, with momentum, for networks too; needed no search here",
        "FTRL": "sparse linear models (clicks): its L1 makes weights exactly 0; begins at 0",
        "SM3": "large embeddings: Adagrad with half of Adam's state",
        "Adadelta": "to repeat what was trained with it; its `lr` has no unit",
        "Rprop": "gradients of all data, of which it trusts the signs alone; not mini-batches",
    },
    "Whole matrices, at a price per step": {
        "Muon": "as MuonWithAdamW, where you pick the matrices yourself",
        "NorMuon": "Muon with rows of one size: the best on digits",
        "Scion": "steps of a known size in each layer, so that `lr` holds for wider networks",
        "Shampoo": "small networks, few steps: second on digits; raise `precondition_frequency`",
        "SOAP": "Shampoo's gain at an interval, with Adam's settings; large batches",
        "CAME": "as Adafactor, with averaged steps, which need half of Adam's state",
    },
    "With the Hessian's diagonal": {
        "Sophia": "language models, if an estimate every ten steps is cheap; no better than Adam "
        "here",
        "AdaHessian": "if an estimate in every step is cheap; far behind on characters here",
    },
}

HEAD = (
    "class",
    "state, bytes",
    "time, large",
    "time, small",
    "digits",
    "characters",
    "use it for",
)
SHORT_HEAD = ("class", "state, bytes", "time", "use it for")
SHORT_NOTES = """\
State: bytes per parameter in float32. Time: of a step over that of Adam on one array of 20 million,
or 24 matrices of 512 by 512 (†), with Numba on two threads."""
NOTES = """\
State: bytes per parameter in float32 (of a matrix of 512 by 512 where it goes by rows and columns).
Times: of a step over that of Adam on the same arrays, with Numba on two threads of one machine;
large is one array of 20 million, or 24 matrices of 512 by 512 (†), small is ten arrays of 1 000.
What is done at an interval is averaged over it; a loss or an estimate of the Hessian is handed in,
and making it is not counted. Digits and characters: the loss after 300 steps with the best of
eleven learning rates, in the median of three seeds."""


def figures(rules: Mapping[str, Any], sweep: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return of each optimizer its cells between its name and the sentence."""
    adam = {"name": "Adam", "times_adam": 1.0, "state_bytes_per_parameter": 8.0}
    matrices = [(row["parameters"], row) for row in rules["matrices"]]
    widest = max(parameters for parameters, _ in matrices)
    large = {row["name"]: row for row in [adam, *rules["bytes"]]}
    small = {row["name"]: row for row in [adam, *rules["small"]]}
    whole = {row["name"]: row for parameters, row in matrices if parameters == widest}
    small |= {row["name"]: row for parameters, row in matrices if parameters != widest}
    digits, characters = (sweep["problems"][of]["optimizers"] for of in ("digits", "characters"))
    found = {}
    for name in sorted(digits):
        row = whole[name] if name in whole else large[name]
        found[name] = [
            f"{row['state_bytes_per_parameter']:.3g}",
            _times(row["times_adam"]) + ("†" if name in whole else ""),
            _times(small[name]["times_adam"]),
            _loss(digits[name], 3),
            _loss(characters[name], 2),
        ]
    return found


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def _loss(found: Mapping[str, Any], places: int) -> str:
    loss = found["best"]["loss"]["median"]
    return "failed" if loss is None else f"{loss:.{places}f}"


def measured() -> dict[str, list[str]]:
    """Return the cells of all optimizers from the committed results."""
    rules, sweep = (
        json.loads((FOLDER / "results" / f"{name}.json").read_text()) for name in ("rules", "sweep")
    )
    return figures(rules, sweep)


def short() -> str:
    """Return what stands between the two comments of the README: the first ones, in short."""
    cells = {name: row[:2] for name, row in measured().items()}
    return f"{_table(SHORT_HEAD, FIRST, cells)}\n\n{SHORT_NOTES}"


def everything() -> str:
    """Return what stands there in the manual: all of them, by what they are for."""
    cells = measured()
    titled = {"What most users want": FIRST, **OTHERS}
    tables = [f"## {title}\n\n{_table(HEAD, some, cells)}" for title, some in titled.items()]
    return "\n\n".join([NOTES, *tables])


def _table(
    head: Sequence[str], sentences: Mapping[str, str], cells: Mapping[str, Sequence[str]]
) -> str:
    rows = [
        head,
        ["---", *["--:"] * (len(head) - 2), "---"],
        *([f"`{name}`", *cells[name], sentence] for name, sentence in sentences.items()),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def replaced(page: str, tables: str) -> str:
    """Return a page with these tables between the two comments, which it has once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"expected the lines\n{BEGIN}\n{END}\nonce each and in this order")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables into the README and the manual, or into other pages with the comments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", type=Path, default=README, metavar="PAGE", help=f"{README}")
    parser.add_argument("--manual", type=Path, default=MANUAL, metavar="PAGE", help=f"{MANUAL}")
    given = parser.parse_args(argv)
    for page, tables in ((given.readme, short()), (given.manual, everything())):
        try:
            text = replaced(page.read_text(encoding="utf-8"), tables)
            page.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:
            parser.error(f"{page}: {error}")


if __name__ == "__main__":
    main()
