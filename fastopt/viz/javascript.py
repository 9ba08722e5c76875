"""The package's optimizers as JavaScript: its own rules and formulas, translated when asked for.

A page that shows how optimizers go steps with what stands here: the rules for one element from
their CUDA C++ (``from_cuda``), the scalars of a step from the optimizers' Python
(``from_python``), options, ranges and formulas from their classes and docstrings; what is the same
for all, in ``rules.js``. So a page has what the package has at the time that it is written.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import fastopt
from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    Number,
    OneOrMore,
    Schedulable,
    Several,
    Whole,
)
from fastopt.optimizers import regularized_leader
from fastopt.optimizers.base import Optimizer
from fastopt.viz import from_cuda
from fastopt.viz.from_python import Functions
from fastopt_kernels import Rule
from fastopt_kernels.rule import Memory

# -------------------------------------------------------------------------------------------------
# What is offered.


@dataclass(frozen=True)
class Offer:
    """What a page wants to know of an optimizer, and its class does not say.

    ``averages`` names the state that averages or gathers gradients, ``squares`` that which does so
    with their squares; of several, the first that the rule has. ``ranges`` are of sliders, where
    they differ from those of ``RANGES``.
    """

    averages: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    ranges: Mapping[str, Range] | None = None


@dataclass(frozen=True)
class Range:
    """From where to where a slider goes, in powers of ten if ``log``; pairs for each number."""

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    log: bool = False


_SHARE = Range(0.0, 1.0)
_KEPT = Range(0.0, 0.9999)
_RATE = Range(1e-5, 10.0, log=True)

RANGES: Mapping[str, Range] = {
    "lr": _RATE,
    "base_lr": _RATE,
    "final_lr": _RATE,
    "weight_decay": _SHARE,
    "momentum": Range(0.0, 0.999),
    "dampening": _SHARE,
    "beta": _KEPT,
    "betas": _KEPT,
    "rho": _KEPT,
    "eps": Range(1e-16, 1.0, log=True),
    "eps_root": Range(1e-16, 1e-2, log=True),
    "lr_decay": _SHARE,
    "initial_accumulator_value": _SHARE,
    "momentum_decay": Range(0.0, 0.1),
    "gamma": Range(1e-5, 1.0, log=True),
    "a": Range(0.1, 3.0),
    "b": Range(0.1, 3.0),
    "clip_exponent": _SHARE,
    "optimism": Range(0.0, 2.0),
    "nu": _SHARE,
    "nus": Range((0.0, 0.0), (1.0, 1.0)),
    "etas": Range((0.01, 1.01), (0.99, 3.0)),
    "step_sizes": Range((1e-9, 1e-3), (1e-1, 100.0), log=True),
    "lambd": Range(0.0, 0.1),
    "t0": Range(1.0, 1e6, log=True),
    "l1_regularization_strength": _SHARE,
    "l2_regularization_strength": _SHARE,
    "l2_shrinkage_regularization_strength": _SHARE,
    "warmup_steps": Range(0, 200),
    "weight_lr_power": Range(0.0, 4.0),
    "r": Range(0.0, 4.0),
}
"""By the names of options."""

CHOICES: Mapping[tuple[str, str], Sequence[float]] = {
    ("FTRL", "learning_rate_power"): regularized_leader.POWERS,
}
"""The values of options that have few, by optimizer and name."""

_M_V = Offer(averages=("m",), squares=("v",))

OFFERS: Mapping[str, Offer] = {
    "SGD": Offer(averages=("buf", "v")),
    "Momentum": Offer(averages=("v",)),
    "Adagrad": Offer(squares=("s",)),
    "RMSprop": Offer(averages=("a",), squares=("v",)),
    "Adadelta": Offer(squares=("v",)),
    "Adam": _M_V,
    "AdamW": _M_V,
    "NAdam": _M_V,
    "RAdam": _M_V,
    "Adamax": Offer(averages=("m",)),
    "AdaBelief": _M_V,
    "Yogi": _M_V,
    "AdaBound": _M_V,
    "Adan": Offer(averages=("m",), squares=("n",)),
    "AdEMAMix": Offer(averages=("m",), squares=("v",), ranges={"alpha": Range(0.0, 10.0)}),
    "AdamAtan2": _M_V,
    "ADOPT": _M_V,
    "LaProp": _M_V,
    "QHAdam": _M_V,
    "OptimisticAdam": _M_V,
    "MADGRAD": Offer(averages=("s",), squares=("v",)),
    "Lion": Offer(averages=("m",)),
    "Signum": Offer(averages=("m",)),
    "AggMo": Offer(),
    "QHM": Offer(averages=("m",)),
    "Rprop": Offer(),
    "ASGD": Offer(ranges={"alpha": Range(0.0, 2.0)}),
    "FTRL": Offer(squares=("n",), ranges={"beta": _SHARE}),
    "COCOB": Offer(ranges={"alpha": Range(1.0, 1000.0, log=True)}),
    "ScheduleFreeSGD": Offer(),
    "ScheduleFreeAdamW": Offer(squares=("v",)),
}

OFFERED: tuple[str, ...] = tuple(OFFERS)
"""The names of the optimizers that there are in JavaScript."""

# -------------------------------------------------------------------------------------------------
# The whole.


def source(names: Sequence[str] = OFFERED) -> str:
    """Return a script that defines one global, ``FASTOPT``: optimizers that step in JavaScript.

    ``FASTOPT.create(name, options)`` makes one, with the names and defaults of the Python class;
    ``opt.step(x, g)`` takes a parameter and its gradient, two Float64Arrays of equal length,
    changes the parameter in place, and returns what it did. ``FASTOPT.optimizers`` says what there
    is. All in doubles, in the order of the operations that all backends have: equal bits, but for
    scalars that are made with logarithms and powers (bias corrections, for one), whose last bit
    is the library's.

    Args:
        names: which optimizers, of ``OFFERED``.

    Raises:
        ValueError: for a name that is not offered, and for what cannot be translated.
    """
    if wrong := [name for name in names if name not in OFFERS]:
        raise ValueError(
            f"names must be some of {', '.join(OFFERS)}, which are translated to JavaScript; "
            f"got {wrong[0]!r}"
        )
    functions = Functions()
    rules: dict[str, str] = {}
    described = [_optimizer(name, functions, rules) for name in dict.fromkeys(names)]
    formulas = [f"const {name} = {text};" for name, text in functions.texts.items()]
    runtime = files("fastopt.viz").joinpath("rules.js").read_text(encoding="utf-8")
    return "\n".join(
        [
            '"use strict";',
            "globalThis.FASTOPT = (() => {",
            runtime,
            *formulas,
            f"const RULES = {_object(rules)};",
            f"const OPTIMIZERS = [{', '.join(described)}];",
            "return { optimizers: OPTIMIZERS, create };",
            "})();",
            "",
        ]
    )


def _text(value: Any) -> str:
    """Return JSON in which no tag of HTML can begin, so that a page may hold it as it is."""
    return json.dumps(value).replace("<", "\\u003c")


def _object(members: Mapping[str, str]) -> str:
    """Return an object literal of members that are JavaScript already."""
    lines = [f"{json.dumps(name)}: {text}" for name, text in members.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


# -------------------------------------------------------------------------------------------------
# Rules.


def rule_text(rule: Rule) -> str:
    """Return the object that is a rule in JavaScript: its names, and what it does to arrays.

    Raises ValueError for a rule that sums over arrays, and for what cannot be translated.
    """
    owner, memory = f"rule {rule.name}", rule.memory
    if rule.sums is not None or (memory and (memory.over != "array" or memory.handed)):
        raise ValueError(
            f"{owner} needs sums over arrays, or what it remembers beside state, which is not "
            "translated to JavaScript; rules that update each element by itself are"
        )
    made = memory.scalars if memory else ()
    square = ("square",) if rule.takes_square else ()
    given = ("grad", *square, *rule.scalars, *made)
    thresholds = {slot: "$signed" if slot in rule.signed else "$positive" for slot in rule.state}
    update = [
        "update($x, $g, $state, $scalars, $around) {",
        f"  const {{ {', '.join((*rule.scalars, *made))} }} = $scalars;",
        "  const { l2: $l2, decay: $decay, signed: $signed, positive: $positive } = $around;",
        "  for (let $i = 0; $i < $x.length; ++$i) {",
        "    let param = $x[$i];",
        *(f"    let {slot} = $state.{slot}[$i];" for slot in rule.state),
        "    const grad = $l2 !== 0 ? $g[$i] + $l2 * param : $g[$i];",
        *("    const square = grad * grad;" for _ in square),
        "    param = $decay !== 0 ? param - $decay * param : param;",
        from_cuda.translated(owner, rule.cupy, given, ("param", *rule.state), "    "),
        "    $x[$i] = param;",
        *(
            f"    $state.{slot}[$i] = Math.abs({slot}) < {threshold} ? 0 : {slot};"
            for slot, threshold in thresholds.items()
        ),
        "  }",
        "}",
    ]
    members = [
        f"state: {json.dumps(rule.state)}",
        f"scalars: {json.dumps(rule.scalars)}",
        f"memory: {json.dumps(memory.names if memory else ())}",
        "\n".join(update),
        *([_memory_text(owner, memory)] if memory else []),
    ]
    return "{\n" + ",\n".join(members) + "\n}"


def _memory_text(owner: str, memory: Memory) -> str:
    """Return the method by which a rule's memory follows a step."""
    inputs, names, made = (", ".join(of) for of in (memory.inputs, memory.names, memory.scalars))
    assigned = (*memory.names, *memory.scalars)
    return "\n".join(
        [
            "remember($memory, $made) {",
            f"  const {{ {inputs} }} = $made;",
            f"  let {{ {names} }} = $memory;",
            f"  let {made};",
            from_cuda.translated(f"{owner}, memory", memory.cupy, memory.inputs, assigned, "  "),
            f"  Object.assign($memory, {{ {names} }});",
            f"  return {{ {made} }};",
            "}",
        ]
    )


# -------------------------------------------------------------------------------------------------
# Optimizers.


def _optimizer(name: str, functions: Functions, rules: dict[str, str]) -> str:
    """Return the object that describes an optimizer; its rules and formulas are added to theirs."""
    make: type[Optimizer] = getattr(fastopt, name)
    offer = OFFERS[name]
    unknown = {"_parts", "_part", "_view", "_memory", "_estimate"}
    own = {key for base in make.__mro__ if base not in Optimizer.__mro__ for key in vars(base)}
    if besides := sorted(unknown & own):
        raise ValueError(f"{name} has {besides}, which fastopt/viz/rules.js does not know of")
    chosen_by, choices = _choices(make)
    for rule, _ in choices.values():
        if rule.name not in rules:
            rules[rule.name] = rule_text(rule)
    named = {key: (rule.name, decay) for key, (rule, decay) in choices.items()}
    default = make._rule(_defaults(make))
    assert isinstance(default, Rule)
    state = default.state
    every = dict.fromkeys(slot for rule, _ in choices.values() for slot in rule.state)
    facts = {
        "name": name,
        "title": name,
        "summary": (inspect.getdoc(make) or "").splitlines()[0],
        "formula": _formula(make),
        "state": state,
        "average": next((slot for slot in offer.averages if slot in state), None),
        "square": next((slot for slot in offer.squares if slot in state), None),
        "everyState": list(every),
        "averages": offer.averages,
        "squares": offer.squares,
        "options": [_option(make, option, offer) for option in _defaults(make)],
        "chosenBy": chosen_by,
        "choices": {key: {"rule": rule, "decay": decay} for key, (rule, decay) in named.items()},
    }
    of_class: dict[str, Callable[..., Any]] = {
        "scalars": make._scalars,
        "smallestDenominator": make._smallest_denominator,
        "fill": make._fill,
    }
    members = {key: _text(value) for key, value in facts.items()}
    for key, function in of_class.items():
        owner = function.__qualname__
        members[key] = functions.name_of(function, owner.replace(".", ""), owner)
    return _object(members)


def _defaults(make: type[Optimizer]) -> dict[str, Any]:
    """Return the options of a class that are not those of all, with their defaults."""
    parameters = inspect.signature(make.__init__).parameters
    return {
        name: one.default
        for name, one in parameters.items()
        if one.default is not inspect.Parameter.empty
    }


def _choices(make: type[Optimizer]) -> tuple[list[str], dict[str, tuple[Rule, str]]]:
    """Return the options that choose the rule by whether they act, and what each choice comes to.

    The class itself says so, for flags that are set or not, and numbers that are 0 or not. A key
    has a "1" for each that acts, in the order of the options.
    """
    defaults = _defaults(make)
    switches = [name for name, value in defaults.items() if isinstance(value, bool | float)]
    switches = [name for name in switches if name not in ("lr", "weight_decay")]

    def made(acting: Sequence[bool]) -> tuple[Rule, str]:
        options = dict(defaults)
        for name, acts in zip(switches, acting, strict=True):
            value = defaults[name]
            number = value if value else 0.5
            options[name] = acts if isinstance(value, bool) else number if acts else 0.0
        rule = make._rule(options)
        assert isinstance(rule, Rule)
        return rule, make._decay(options)

    every = {
        acting: made(acting) for acting in itertools.product((False, True), repeat=len(switches))
    }
    matter = [
        k
        for k in range(len(switches))
        if any(
            every[acting] != every[(*acting[:k], not acting[k], *acting[k + 1 :])]
            for acting in every
        )
    ]
    found = {"".join(str(int(acting[k])) for k in matter): one for acting, one in every.items()}
    return [switches[k] for k in matter], found


def _option(make: type[Optimizer], name: str, offer: Offer) -> dict[str, Any]:
    """Return what a page is told of an option."""
    default = _defaults(make)[name]
    told: dict[str, Any] = {"name": name, "value": default, "help": _help(make, name)}
    if isinstance(default, bool):
        return {**told, "kind": "flag"}
    if choices := CHOICES.get((make.__name__, name)):
        return {**told, "kind": "choice", "choices": choices}
    slider = (offer.ranges or {}).get(name) or RANGES[name]
    told |= {"low": slider.low, "high": slider.high, "log": slider.log}
    told["ranges"] = [_range(make, name, check) for check in _checks(make, name, default)]
    if not isinstance(default, tuple):
        return {**told, "kind": "number"}
    return {**told, "kind": "betas" if name == "betas" else "numbers"}


def _checks(make: type[Optimizer], name: str, default: Any) -> Sequence[Any]:
    """Return what the class checks an option by, or each number of it."""
    own = {"lr": Schedulable(NONNEGATIVE), "weight_decay": Schedulable(NONNEGATIVE)}
    check = {**own, **make._checks}[name]
    if isinstance(check, Several):
        return check.numbers
    if isinstance(check, OneOrMore):
        return [check.number] * len(default)
    return [check]


def _range(make: type[Optimizer], name: str, check: Any) -> dict[str, Any]:
    """Return the range of a number that a check lets through."""
    number = check.number if isinstance(check, Schedulable) else check
    if isinstance(number, Whole):
        ends = {"low": number.low, "high": number.high, "lowOpen": False, "highOpen": False}
        return {**ends, "whole": True, "said": f"whole number from {number.low} on"}
    if not isinstance(number, Number):
        raise ValueError(
            f"{make.__name__}: the check of {name} is {check!r}, which is not translated to "
            "JavaScript; add it to fastopt/viz/javascript.py"
        )
    return {
        "low": None if number.low == -math.inf else number.low,
        "high": None if number.high == math.inf else number.high,
        "lowOpen": number.low_open,
        "highOpen": number.high_open,
        "whole": False,
        "said": f"number in {number}",
    }


# -------------------------------------------------------------------------------------------------
# Words, which are those of the docstrings.

_SCHEDULED = re.compile(r"[;,] (?:a number, )?or (?:a )?functions? of the step number[^;]*")


def _formula(make: type[Optimizer]) -> list[str]:
    """Return the lines of the formula in a class's docstring, which are those that assign."""
    text = (inspect.getdoc(make) or "").partition("\nArgs:")[0]
    blocks = re.findall(r"^(?:.*::)\n\n((?:    .*\n)+)", text + "\n", re.MULTILINE)
    return [line[4:] for block in blocks if "<-" in block for line in block.splitlines()]


def _help(make: type[Optimizer], name: str) -> str:
    """Return the first sentence that a class's docstring says of an option."""
    arguments = (inspect.getdoc(make) or "").partition("\nArgs:\n")[2]
    found = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", arguments, re.MULTILINE)
    if found is None:
        raise ValueError(f"{make.__name__}: its docstring says nothing of {name}; add it to Args")
    first = re.sub(r"\s+", " ", found[1]).rstrip(".").split(". ")[0]
    return _SCHEDULED.sub("", first) + "."
