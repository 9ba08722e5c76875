"""Which rules there are: every optimizer, once for each rule that its options can choose.

Nothing here names an optimizer or an option that chooses. An optimizer's ``_rule`` is asked with
options that write down what it looks at; each of these is then given the other values that its
check lets through, until no rule comes up that was not there.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from fastopt import optimizers
from fastopt.core.hyperparameters import Check, Flag, Maybe, OneOf, OneOrMore, Options, Whole
from fastopt.core.options import FRAGMENTS, GROUP_CHECKS, is_on
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import AnyRule, ArrayRule, Rule


@dataclass(frozen=True)
class Case:
    """An optimizer and the options with which it uses one of its rules.

    ``given`` are those that choose the rule, or that let something act around it.
    """

    optimizer: type[Optimizer]
    given: tuple[tuple[str, Any], ...]
    rule: AnyRule

    def __str__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.given)
        return f"{self.optimizer.__name__}({said})" if said else self.optimizer.__name__

    @property
    def promises_bits(self) -> bool:
        """Whether every backend ends in the same bits: not where matrices are multiplied."""
        return isinstance(self.rule, Rule)


def cases(names: list[str] | None = None) -> list[Case]:
    """Return every rule of the optimizers of these names, all by default; then what acts around.

    Options that act around any rule (a fragment each) are met around AdamW, which takes them all.
    Raises ValueError for a name that no optimizer has; it tells the closest.
    """
    names = optimizers.names() if names is None else names
    found = [case for name in names for case in _of(optimizers.named(name))]
    if "AdamW" in names:
        plain = next(case for case in found if str(case) == "AdamW")
        for option in FRAGMENTS:
            value = True if isinstance(GROUP_CHECKS[option], Flag) else 0.5
            found.append(Case(plain.optimizer, ((option, value),), plain.rule))
    return found


class _Asked(Options):
    """Options that write down which of them are looked at."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.asked.append(name)
        return super().__getitem__(name)


def _of(optimizer: type[Optimizer]) -> Iterator[Case]:
    """Yield a case for each rule that an optimizer has, the one of its defaults first."""
    group = optimizer(np.ones((1, 1)), backend="numpy").param_groups[0]
    defaults = {name: group[name] for name in group if name != "params"}
    order = list(optimizer._checks)
    known: set[tuple[str, Any]] = set()
    waiting: list[Options] = [{}]
    for given in waiting:  # which grows: the fewest options that choose a rule come first
        options = _Asked({**defaults, **given})
        rule = optimizer._rule(options)
        key = rule.name, getattr(rule, "settings", None)
        if key not in known:
            known.add(key)
            yield Case(optimizer, tuple(given.items()), rule)
        for name in dict.fromkeys(options.asked):
            if name in given:
                continue
            others = _values(name, optimizer._checks.get(name))
            for more in ({**given, name: other} for other in others if other != defaults[name]):
                one = {name: more[name] for name in order if name in more}
                if one not in waiting:
                    waiting.append(one)


def _values(name: str, check: Check | None) -> list[Any]:
    """Return values of an option that may choose another rule than its default does."""
    if isinstance(check, Flag):
        return [False, True]
    if isinstance(check, OneOf):
        return list(check.words)
    if check is None or isinstance(check, Whole | OneOrMore):
        return []  # how often, how many, how large: the same text of a rule, more or less of it
    numbers: list[Any] = [None] if isinstance(check, Maybe) else []
    for number in (0.0, 0.5):  # off and on
        with suppress(ValueError, TypeError):
            numbers.append(check(name, number))
    return numbers


# -------------------------------------------------------------------------------------------------
# How often a rule rounds.


def roundings(case: Case, options: Options, longest: int) -> int:
    """Return how many roundings stand at most between what one element goes in with and comes out.

    Counted in the compiled text of the form of one element: an operation rounds once, a function
    that is called counts as its own text, and every scalar is rounded to the arithmetic's format.
    Three more are those of the gradient's scale and of weight decay. In a rule on whole arrays a
    sum along the ``longest`` axis rounds as often as that has places, and each of the iterations
    again.
    """
    rule = case.rule
    if isinstance(rule, ArrayRule):
        counts = [n for _, n in rule.settings if isinstance(n, int) and not isinstance(n, bool)]
        return _operations(rule.compute, set()) * longest * max(1, *counts, 1)
    forms: list[Callable[..., Any]] = [rule.numba]
    forms += [rule.sums.numba] if rule.sums else []
    forms += [rule.memory.host] if rule.memory else []
    if case.optimizer._estimate is not None:
        forms.append(case.optimizer._estimate.numba)
    count = sum(_operations(form, set()) for form in forms) + len(rule.scalars) + 3
    on = [name for name, value in options.items() if name in FRAGMENTS and is_on(value)]
    for fragment in map(FRAGMENTS.__getitem__, on):
        count += _operations(fragment.numba, set()) + len(fragment.scalars)
    return count


def _operations(function: Any, seen: set[CodeType]) -> int:
    """Return how many operations and calls a function holds, with those of what it calls."""
    code = function.__code__
    if code in seen:
        return 0
    seen.add(code)
    count = sum(
        found.opname.startswith(("BINARY_OP", "CALL")) for found in dis.get_instructions(code)
    )
    used = inspect.getclosurevars(function)
    called = (*used.globals.values(), *used.nonlocals.values())
    own = [one for one in called if isinstance(one, FunctionType)]
    return count + sum(_operations(one, seen) for one in own)
