"""How wrong optimizers are made out of right ones."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

from fastopt_kernels import ArrayRule, Rule

Make = Callable[..., Any]


def scalars(base: Any, change: Callable[[dict[str, float], dict[str, Any], int], Any]) -> Any:
    """Return a class whose scalars are changed by a function of them, the options and t."""

    def wrong(options: Any, lr: float, t: int, guard: float) -> dict[str, float]:
        made = base._scalars(options, lr, t, guard)
        return {**made, **change({**made, "lr": lr}, options, t)}

    return type("Mutant", (base,), {"_scalars": staticmethod(wrong)})


def given(base: Any, change: Callable[[dict[str, Any], float, int], tuple[Any, float, int]]) -> Any:
    """Return a class that computes its scalars from changed options, lr and t."""

    def wrong(options: Any, lr: float, t: int, guard: float) -> dict[str, float]:
        made: dict[str, float] = base._scalars(*change(dict(options), lr, t), guard)
        return made

    return type("Mutant", (base,), {"_scalars": staticmethod(wrong)})


def rule(base: Any, update: Callable[[SimpleNamespace], None]) -> Any:
    """Return a class whose rule does something else.

    ``update`` gets all arguments by name, and the rule's name as ``rule``.
    """

    @cache
    def wrong(name: str, right: Rule) -> Rule:
        def form(*values: Any) -> None:
            update(SimpleNamespace(rule=name, **dict(zip(right.arguments, values, strict=True))))

        form.__signature__ = inspect.signature(right.numpy)  # type: ignore[attr-defined]
        return dataclasses.replace(right, numpy=form)

    def choose(options: Any) -> Rule:
        right = base._rule(options)
        return wrong(right.name, right)

    return type("Mutant", (base,), {"_rule": staticmethod(choose)})


def computing(base: Any, compute: Callable[..., tuple[Any, dict[str, Any]]]) -> Any:
    """Return a class whose rule on whole arrays computes something else.

    ``compute`` gets what the right function does, without its settings.
    """

    @cache
    def wrong(right: ArrayRule) -> ArrayRule:
        def other(xp: Any, param: Any, grad: Any, state: Any, scalars: Any) -> Any:
            return compute(xp, param, grad, state, scalars)

        return dataclasses.replace(right, compute=other, settings=())

    def choose(options: Any) -> ArrayRule:
        return wrong(base._rule(options))

    return type("Mutant", (base,), {"_rule": staticmethod(choose)})


def estimating(base: Any, update: Callable[[SimpleNamespace], None]) -> Any:
    """Return a class that does something else with an estimate; see ``rule``."""
    right: Rule = base._estimate

    def form(*values: Any) -> None:
        update(SimpleNamespace(**dict(zip(right.arguments, values, strict=True))))

    form.__signature__ = inspect.signature(right.numpy)  # type: ignore[attr-defined]
    return type("Mutant", (base,), {"_estimate": dataclasses.replace(right, numpy=form)})


def rule_named(base: Any, name: str, update: Callable[[SimpleNamespace], None]) -> Any:
    """Return a class in which the rule of that name alone does something else."""
    wrong = rule(base, update)

    def choose(options: Any) -> Rule:
        right: Rule = base._rule(options)
        return wrong._rule(options) if right.name == name else right

    return type("Mutant", (base,), {"_rule": staticmethod(choose)})


def arguments(base: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return what constructs the right optimizer with changed arguments, groups' ones too."""

    def make(params: Any, **options: Any) -> Any:
        if isinstance(params[0], dict):
            params = [change(dict(group)) for group in params]
        return base(params, **change(options))

    return make


def stepping(base: Any, step: Callable[[Any, Any, Callable[[Any], None]], None]) -> Any:
    """Return a class with another step; it gets the optimizer, the gradients and the right step."""

    def wrong(self: Any, grads: Any, **handed: Any) -> None:
        step(self, grads, lambda other: base.step(self, other, **handed))

    return type("Mutant", (base,), {"step": wrong})


def each(change: Callable[[Any], Any], tree: Any) -> Any:
    """Return a nested list with every leaf changed."""
    return [each(change, part) for part in tree] if isinstance(tree, list) else change(tree)


def remembering(base: Any, change: Callable[..., tuple[dict[str, float], dict[str, float]]]) -> Any:
    """Return a class that makes something else of its sums; ``change`` gets the right function."""

    @cache
    def wrong(name: str, right: Rule) -> Rule:
        memory = right.memory
        assert memory is not None
        host = memory.host

        def other(scalars: Any, memory: Any, sums: Any) -> Any:
            return change(host, scalars, memory, sums)

        return dataclasses.replace(right, memory=dataclasses.replace(memory, host=other))

    def choose(options: Any) -> Rule:
        right = base._rule(options)
        return wrong(right.name, right)

    return type("Mutant", (base,), {"_rule": staticmethod(choose)})


def common_clock(base: Any) -> Make:
    """Return what counts one step for all parameters, whether they had a gradient or not."""

    def make(params: Any, **options: Any) -> Any:
        clock = SimpleNamespace(t=0)

        def step(self: Any, grads: Any, **handed: Any) -> None:
            clock.t += 1
            base.step(self, grads, **handed)

        def wrong(options: Any, lr: float, t: int, guard: float) -> dict[str, float]:
            made: dict[str, float] = base._scalars(options, lr, max(clock.t, 1), guard)
            return made

        body = {"step": step, "_scalars": staticmethod(wrong)}
        return type("Mutant", (base,), body)(params, **options)

    return make
