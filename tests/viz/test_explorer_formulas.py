"""The explorer's formulas with numbers: each line is read off the page, and worked out by hand.

What stands on the page is held against fastopt four ways: the names, worked out in Python from what
fastopt had before the step, give what it has after it; the number for each name is that name's; the
numbers of a line come to the result beside it; and the result is the line's.
"""

from __future__ import annotations

import html
import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.viz import explorer, javascript
from viz.test_explorer import CLOSE, GRADIENTS, Options, opened, optimizer

STEPS = (1, 2, 9)

GUARD = 2.0**-511  # in the place of an eps of 0

# -------------------------------------------------------------------------------------------------
# What is shown: every optimizer with each of its flags, and with what else changes its lines.

OTHERS: dict[str, list[Options]] = {
    "SGD": [{"momentum": 0.9, "dampening": 0.5}],
    "Adagrad": [{"lr_decay": 0.1, "initial_accumulator_value": 0.1}],
    "RMSprop": [  # of which the first step has a w of 0
        {"eps": 0.0, "centered": True, "bias_correction": True, "eps_inside_sqrt": True,
         "weight_decay": decay} for decay in (0.1, 0.2, 0.3)
    ],
    "Adam": [{"betas": [0.5, 0.99999]}, {"lr": 1e-7}, {"lr": 1e6}],
    "NAdam": [{"momentum_decay": 0.0}, {"betas": [0.0, 0.9]}],
    "RAdam": [{"betas": [0.9, 0.5]}],
    "Yogi": [{"initial_accumulator_value": 0.1}],
    "AdaBound": [{"base_lr": 0.2}, {"gamma": 1.0, "final_lr": 0.001}],
    "AdEMAMix": [{"alpha": 0.0}],
    "AdamAtan2": [{"a": 0.5, "b": 2.0}],
    "ADOPT": [{"clip_exponent": 0.0}, {"eps": 10.0}],
    "QHAdam": [{"nus": [0.3, 0.4]}],
    "OptimisticAdam": [{"optimism": 0.5}],
    "AggMo": [{"betas": [0.99, 0.5, 0.0]}],
    "Rprop": [{"step_sizes": [0.2, 0.21]}, {"etas": [0.1, 3.0]}],
    "ASGD": [{"t0": 3.0, "lambd": 0.1}],
    "FTRL": [
        {"learning_rate_power": power, "beta": beta, "l1_regularization_strength": 1.0,
         "l2_regularization_strength": 0.1, "l2_shrinkage_regularization_strength": 0.2}
        for power in (-0.5, 0.0) for beta in (0.0, 0.5)
    ],
    "COCOB": [{"alpha": 2.0}, {"eps": 10.0}],
    "ScheduleFreeSGD": [{"warmup_steps": 5, "weight_lr_power": 1.0, "r": 0.5}, {"lr": 0.0}],
    "ScheduleFreeAdamW": [{"warmup_steps": 5, "betas": [0.8, 0.9]}, {"lr": 1e-3}],
}  # fmt: skip


def runners() -> Iterator[tuple[str, Options]]:
    for name in javascript.OFFERED:
        default = {
            key: one.default
            for key, one in inspect.signature(getattr(fastopt, name).__init__).parameters.items()
        }
        every = {key: (False, True) for key, one in default.items() if isinstance(one, bool)}
        every["weight_decay"] = (0.0, 0.1)
        if "eps" in default:
            every["eps"] = (1e-3,)
        if name in ("SGD", "RMSprop"):
            every["momentum"] = (0.0, 0.9)
        for values in itertools.product(*every.values()):
            options = {"lr": 0.05, **dict(zip(every, values, strict=True))}
            if options.get("nesterov") and not options["momentum"]:
                continue  # which is refused
            yield name, options
        zero: list[Options] = []
        if "eps" in default and name != "Adadelta":  # which refuses it
            flags = [
                key for key in ("eps_inside_sqrt", "centered", "bias_correction") if key in every
            ]
            zero = [{"eps": 0.0, **dict.fromkeys(flags, one)} for one in (False, True)]
        for other in [*zero, *OTHERS.get(name, [])]:
            yield name, {"lr": 0.05, **other}


READ = """
const runners = %s, steps = %s, given = %s;
const lists = (arrays) =>
  Object.fromEntries(Object.entries(arrays).map(([key, values]) => [key, Array.from(values)]));
const html = (all) => Array.from(all, (one) => one.innerHTML);
const setup = State.completed({ ...given, surface: "noisy", steps: Math.max(...steps) });
const box = document.createElement("div");
return runners.map(([name, options]) => {
  const optimizer = { name, options };
  const runs = [Runs.run(setup, optimizer)];
  return steps.map((t) => {
    const state = { ...setup, optimizers: [optimizer], focus: 0, t };
    Panel.showLines(box, { state, runs, axes: ["along", "across"] });
    const rows = Array.from(box.querySelectorAll("tbody tr"), (row) => ({
      rules: html(row.querySelectorAll("th code")),
      cells: html(row.querySelectorAll("td code")),
      said: Array.from(row.querySelectorAll(".said"), (one) => one.textContent),
      meaning: row.querySelector("small").textContent,
      last: row.className === "last",
    }));
    const [step, before] = [runs[0].steps[t - 1], runs[0].steps[t - 2]];
    if (!step) return { rows };
    const places = [step.before, step.gradient, step.after].map((one) => Array.from(one));
    const states = [before?.state ?? {}, step.state].map(lists);
    return { rows, places, states, factor: step.scalars.factor };
  });
});
"""

# -------------------------------------------------------------------------------------------------
# Reading: what stands there as Python.

FUNCTIONS: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt, "cbrt": lambda a: float(np.cbrt(a)), "abs": abs, "max": max, "min": min,
    "sign": lambda a: float(np.sign(a)), "atan2": math.atan2,
    "clip": lambda a, low, high: min(max(a, low), high),
}  # fmt: skip
RAISED = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True))
MINUS = "\N{MINUS SIGN}"
NUMBER = r"\d+(?:\.\d+)?(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?"
NAME = r"[A-Za-z]\w*(?:(?<=_)\(t[+-]1\)|\[\d\]|\')?"


def number(text: str) -> float:
    assert re.fullmatch(f"{MINUS}?{NUMBER}", text), text
    mantissa, _, power = text.replace(MINUS, "-").partition("·10")
    return float(mantissa) * 10.0 ** int("".join(RAISED[one] for one in power) or 0)


def python(shown: str) -> str:
    """Return what is shown with Python's signs; numbers in powers of ten stay as they are."""
    text = re.sub(r"<sup>(.*?)</sup>", r"**(\1)", shown)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    text = text.replace("√(", "sqrt(").replace("∛(", "cbrt(").replace(MINUS, "-")
    text = re.sub(r"\|([^|]*)\|", r"abs(\1)", text)
    assert not re.search(r"/ [\d.]+·|·10\W+\*\*", text), f"unclear: {text}"
    return text.replace(" · ", " * ")


def worked_out(text: str) -> float:
    """Return what an expression of numbers alone comes to."""
    text = re.sub(rf"(?<!\w){NUMBER}", lambda found: repr(number(found[0])), text)
    assert re.fullmatch(r"(?:[\d.e+\-*/(), ]|sqrt|cbrt|abs|max|min|sign|atan2|clip)+", text), text
    return float(eval(text, {"__builtins__": {}}, FUNCTIONS))


def named(text: str, values: dict[str, float]) -> tuple[list[str], float]:
    """Return the names in an expression in their order, and what it comes to."""
    names = [one for one in re.findall(NAME, text) if one not in FUNCTIONS]

    def exact(found: re.Match[str]) -> str:
        return found[0] if found[0] in FUNCTIONS else f"({values[found[0]]!r})"

    return names, float(eval(re.sub(NAME, exact, text), {"__builtins__": {}}, FUNCTIONS))


def digits(text: str) -> int:
    mantissa = re.sub(r"·.*", "", text)
    if "." not in mantissa:
        mantissa = mantissa.rstrip("0")  # which may stand for what was rounded
    return max(4, len(re.sub(r"\D", "", mantissa).lstrip("0")))


def unit(text: str) -> float:
    """Return what 1 in the last place of a result is, which has at least four digits."""
    size = abs(number(text))
    return 10.0 ** (math.floor(math.log10(size)) - digits(text) + 1) if size else 0.0


def same(text: str, value: float) -> bool:
    """Return whether a text is a number to as many digits as it has, and at least four."""
    return abs(number(text) - value) <= 0.501 * unit(text) + 1e-9 * abs(value)


# -------------------------------------------------------------------------------------------------
# What fastopt has.


def begun(name: str, options: Options, p: float, grad: float, t: int) -> dict[str, float]:
    """Return what the formula's names stand for before a step, but for the state."""
    opt: Any = optimizer(name, np.zeros(1), options)
    every = {**opt.param_groups[0]}
    values: dict[str, float] = {"p": p, "y": p, "grad": grad, "t": t}
    for key in inspect.signature(getattr(fastopt, name).__init__).parameters:
        value = every.get(key)
        if isinstance(value, tuple):
            for k, one in enumerate(value):
                values |= {f"{key}[{k}]": one, f"{key[:-1]}{k + 1}": one}
            values["K"] = len(value)
        elif isinstance(value, int | float):
            values[key.removesuffix("_regularization_strength")] = value
    if values.get("eps") == 0.0:
        values["eps"] = GUARD
    if name == "FTRL" and values["beta"] == 0.0 and values["learning_rate_power"]:
        values["beta"] = GUARD
    if name == "NAdam":
        mu = [values["beta1"] * (1 - 0.5 * 0.96 ** (k * values["momentum_decay"]))
              for k in range(1, t)]  # fmt: skip
        values["M_(t-1)"] = math.prod(mu)
    if name.startswith("ScheduleFree"):
        values |= {"peak": 0.0, "total": 0.0}
        for k in range(1, t):
            rate = values["lr"] * min(1.0, k / (values["warmup_steps"] or 1))
            values["peak"] = max(values["peak"], rate ** values["weight_lr_power"])
            values["total"] += k ** values["r"] * values["peak"]
    return values


def taken(name: str, options: Options) -> Iterator[tuple[Any, ...]]:
    """Yield p, gradient, state before and after, and p after each step of a run."""
    gradient, given = GRADIENTS["noisy"]
    p = np.array(given["start"], np.float64)
    opt = optimizer(name, p, options)

    def state() -> dict[str, np.ndarray[Any, Any]]:
        (slots,) = opt.state_dict()["state"].values() or ({},)
        return {key: np.array(one) for key, one in slots.items() if np.shape(one) == p.shape}

    for t in range(1, max(STEPS) + 1):
        before, grad, had = p.copy(), np.array(gradient(p, t)), state()
        opt.step(grad)
        yield before, grad, had, state(), p.copy()


def began_with(name: str, options: Options, slot: str) -> float:
    value = optimizer(name, np.zeros(1), options).param_groups[0].get("initial_accumulator_value")
    return float(value) if slot in {"Adagrad": "s", "Yogi": "mv", "FTRL": "n"}.get(name, "") else 0


# -------------------------------------------------------------------------------------------------


def test_every_line_of_a_formula_is_right_in_symbols_and_in_numbers(tmp_path: Path) -> None:
    every = list(runners())
    given = GRADIENTS["noisy"][1]
    got = opened(tmp_path, READ % (json.dumps(every), json.dumps(STEPS), json.dumps(given)))
    assert {name for name, _ in every} == set(javascript.OFFERED)
    for (name, options), steps in zip(every, got, strict=True):
        ran = list(taken(name, options))
        for t, step in zip(STEPS, steps, strict=True):
            rows = step["rows"]
            if of_rounding(name, options):
                if rows:
                    (before, grad, after), (had, has) = step["places"], step["states"]
                    for n in range(2):
                        made = before, grad, had, has, after
                        check(name, options, t, n, rows, made, step["factor"])
                continue
            lost = any(np.abs(one[-1]).max() >= 1e9 for one in ran[: t - 1])
            assert sum(row["last"] for row in rows) == (not lost), (name, options, t)
            if lost:  # and no step t is made
                continue
            for n in range(2):
                check(name, options, t, n, rows, ran[t - 1])


def of_rounding(name: str, options: Options) -> bool:
    """Return whether the first step is made of the last bits of a logarithm, so that runs part.

    g^2 - (g)^2 under the root: such a run is held against the rule's steps in the page itself.
    """
    return name == "RMSprop" and bool(options.get("centered") and options.get("bias_correction"))


def check(
    name: str,
    options: Options,
    t: int,
    n: int,
    rows: list[dict[str, Any]],
    ran: tuple[Any, ...],
    factor: float | None = None,
) -> None:
    before, grad, had, has, after = ran
    values = begun(name, options, float(before[n]), float(grad[n]), t)
    for slot in has:
        values[slot] = float(had[slot][n]) if t > 1 else began_with(name, options, slot)
    if "p0" in has and t == 1:
        values["p0"] = values["p"]
    if name.startswith("ScheduleFree"):
        share = values["momentum" if name == "ScheduleFreeSGD" else "beta1"]
        values["z"] = values["y"] + values["d"]
        values["x"] = values["y"] + (1 - 1 / share) * values["d"]
    results: dict[str, tuple[float, str]] = {}
    for row in rows:
        rule, cell = row["rules"][n % len(row["rules"])], row["cells"][n]
        at = (name, options, t, n, rule, cell)
        left, _, right = rule.partition(" ← ")
        names, value = named(python(right), values)
        if left == "w" and factor is not None and t == 1:  # a difference of equals
            assert value < 1e-12 * values["v"] / values["c"], at
            value = abs(has["v"][n] - factor * has["a"][n] ** 2) / values["c"]  # as the rule has it
        else:
            assert " ≈ " not in cell, at
        numbers, _, result = cell.replace(" ≈ ", " = ").rpartition(" = ")
        result = re.sub(r"<[^>]*>", "", result)
        if numbers:
            shown = re.findall(r'<span class="number">(.*?)</span>', numbers)
            for one, text in zip(names, shown, strict=True):
                guard = values[one] == GUARD and text == "0"  # where that is the same
                assert guard or same(text, values[one]), (at, one, values[one])
            off = abs(worked_out(python(numbers)) - number(result))
            zero = 1e-12 * max(abs(values[one]) for one in names) if result == "0" else 0.0
            assert off <= max(zero, unit(result)) or " ≈ " in cell, at
        assert same(result, value), (at, value)
        assert row["meaning"], at
        assert ("rounding" in row["meaning"]) == (" ≈ " in "".join(row["cells"])), at
        for said in row["said"]:
            assert re.fullmatch(r"[\w\s,.'()\[\]+-]+", said), (at, said)
        values[left] = value
        results[left] = value, result
        if row["last"]:
            assert left in ("p", "y"), at
            moved = abs(after[n] - before[n])
            assert value == pytest.approx(after[n], CLOSE, CLOSE), at
            if moved > 1e-9 * abs(after[n]):  # which can be seen
                assert abs(number(result) - after[n]) <= 0.1 * moved, at
    for slot in has.keys() & results.keys() - {"d"}:  # which is another in Schedule-free
        size = np.abs(has[slot]).max()
        assert results[slot][0] == pytest.approx(has[slot][n], CLOSE, CLOSE * size), (at, slot)


SAID = """
const box = document.createElement("div");
return %s.map(([name, options, t]) => {
  const optimizer = { name, options };
  const runs = [Runs.run({ ...State.DEFAULT, steps: t, start: [-4, 2] }, optimizer)];
  const state = { ...State.DEFAULT, optimizers: [optimizer], focus: 0, t };
  Panel.showLines(box, { state, runs, axes: ["along", "across"] });
  return Array.from(box.querySelectorAll(".last .said"), (one) => one.textContent);
});
"""


def test_the_lines_are_said_in_words(tmp_path: Path) -> None:
    asked = [
        ("Momentum", {"lr": 0.5, "beta": 0.5, "bias_correction": True}, 1),
        ("Adagrad", {"lr": 0.5, "eps": 1e-10}, 1),
        ("Lion", {"lr": 0.5}, 1),
    ]
    momentum, adagrad, lion = opened(tmp_path, SAID % json.dumps(asked))
    assert momentum[0] == (
        "p becomes p minus lr times v over open bracket, 1 minus beta to the power of t, "
        "close bracket."
    )
    assert momentum[1] == (
        "minus 4 minus 0.5 times open bracket, minus 2, close bracket, over open bracket, 1 minus "
        "0.5 to the power of 1, close bracket, equals minus 2."
    )
    assert adagrad[2].endswith(
        "over open bracket, the square root of, open bracket, 1600, close bracket, plus 1 times 10 "
        "to the power minus 10, close bracket, equals 1.5."
    )
    assert lion[1] == (
        "minus 4 minus 0.5 times sign of, open bracket, minus 0.4, close bracket, equals minus 3.5."
    )


PLAIN = """
return FASTOPT.optimizers.map(({ name }) => {
  const { steps, options } = Runs.run({ ...State.DEFAULT, steps: 9 }, { name, options: {} });
  const lines = Lines.of(name, options, steps[8], steps[7], 0);
  return [name, lines.map(({ left, right }) => `${left} <- ${right}`)];
});
"""

ALTERED = {
    "NAdam": ["mu_(t+1)", "M_(t+1)"],  # as M_t and mu_t of the next step
    "RMSprop": ["c", "p"],
    "SGD": ["d", "p"],
    "AggMo": ["b0", "b1", "b2", "p"],
    "Rprop": ["length", "prev"],
    "FTRL": [],
    "ScheduleFreeSGD": ["s"],
    "ScheduleFreeAdamW": ["s", "g"],
}
"""What stands in words beside the docstring's lines, or is written out of them."""


def test_the_lines_stand_word_for_word_in_the_docstrings(tmp_path: Path) -> None:
    for name, texts in opened(tmp_path, PLAIN):
        make = fastopt.Adam if name == "AdamW" else getattr(fastopt, name)
        said = re.sub(r"\s+", " ", inspect.getdoc(make) or "")
        for text in texts:
            left, _, right = text.partition(" <- ")
            if left in ALTERED.get(name, []) or right in ("grad", "lr * grad"):
                continue
            assert right in said, (name, text)
            assert re.search(rf"(?<!\w){re.escape(left)}(?!\w)", said), (name, text)


NARROW = """
const frame = document.createElement("iframe");
frame.style = "width: 360px; height: 800px; border: 0";
frame.srcdoc = %s;
document.body.prepend(frame);
await new Promise((done) => frame.addEventListener("load", done));
await wait(50);
const inside = frame.contentWindow;
return inside.FASTOPT.optimizers.map(({ name, options }) => {
  const long = { flag: () => true, betas: (value) => value.map(() => 0.987654321) };
  const given = options.filter((one) => long[one.kind] || one.name === "weight_decay")
    .map((one) => [one.name, long[one.kind]?.(one.value) ?? 0.123456789]);
  const chosen = { lr: 1.2345678901e-5, ...Object.fromEntries(given) };
  if (name === "SGD") chosen.momentum = 0.987654321;
  const wrong = inside.explorer.set({ optimizers: [{ name, options: chosen }], t: 9 });
  const { scrollWidth } = inside.document.documentElement;
  return [name, wrong ?? null, inside.innerWidth, scrollWidth];
});
"""


def test_no_formula_is_wider_than_a_telephone(tmp_path: Path) -> None:
    handed = "<script>globalThis.explorer = Explorer;</script></body>"
    page = json.dumps(explorer.page().replace("</body>", handed)).replace("<", "\\u003c")
    got = opened(tmp_path, NARROW.replace("%s", page))
    assert [one[0] for one in got] == list(javascript.OFFERED)
    for name, wrong, shown, needed in got:
        assert wrong is None, (name, wrong)
        assert shown == 360
        assert needed <= shown, name
