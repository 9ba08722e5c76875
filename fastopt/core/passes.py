"""Passes: what an update sums over arrays before it writes any, and what is made of the sums.

An update with fragments or sums works an element out in this order. A pass goes as far as what it
sums, and writes nothing; ``update`` goes to the end.

1. ``plain_grad``: the gradient, scaled and signed; ``grad``: the same after each fragment at
   "gradient", and then with the L2 term;
2. ``before``: parameter and state as they are; ``decayed``: the parameter after its decay;
3. the rule;
4. each fragment at "after" on the parameter, the bounds, each fragment at "after" on all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from fastopt.core.dtypes import UpdateSpec
from fastopt_kernels import AnyRule, Memory, Sums
from fastopt_kernels.around import Fragment

BEFORE_RULE, OF_RULE, AFTER_RULE = range(3)


class Pass(NamedTuple):
    """One pass: of the rule, or of a fragment.

    ``stage`` is one of BEFORE_RULE, OF_RULE and AFTER_RULE. Among all derived
    scalars of the update ``memory_columns`` are those of the memory that the forms take as it was
    before the step (``Memory.handed``), and ``derived_columns`` those that are made of the sums.
    Among the inputs of all memories of the update ``input_columns`` are those of this one's.
    """

    stage: int
    sums: Sums | None
    memory: Memory
    fragment: Fragment | None
    memory_columns: slice
    derived_columns: slice
    input_columns: slice

    @property
    def over_optimizer(self) -> bool:
        """Whether it sums over all arrays of the optimizer."""
        return self.memory.over == "optimizer"


class Derived(NamedTuple):
    """The derived scalars of a rule and its fragments: in what passes they are made, their names.

    Those of the rule have the names that its forms give them; those of a fragment begin with its
    name.
    """

    passes: tuple[Pass, ...]
    names: tuple[str, ...]

    @property
    def inputs(self) -> int:
        """How many numbers of the step the memories of all passes are given."""
        return self.passes[-1].input_columns.stop if self.passes else 0


PassOf = tuple[int, int, Pass]
"""Which of some updates, the number of one of its passes, and that pass."""


def in_order(described: Sequence[Derived]) -> Iterator[list[PassOf]]:
    """Yield the passes of a step's updates in their order: those that belong together as a list."""
    every = [
        (update, number, one)
        for update, derived in enumerate(described)
        for number, one in enumerate(derived.passes)
    ]
    for stage in (BEFORE_RULE, OF_RULE, AFTER_RULE):
        now = [turn for turn in every if turn[2].stage == stage]
        yield from ([turn] for turn in now if not turn[2].over_optimizer)
        if together := [turn for turn in now if turn[2].over_optimizer]:
            yield together


@lru_cache(maxsize=1024)
def derived_of(rule: AnyRule, spec: UpdateSpec) -> Derived:
    """Return the passes of an update in their order, and the names of the scalars they make."""
    stages = [
        *((BEFORE_RULE, fragment) for fragment in spec.at_gradient),
        (OF_RULE, None),
        *((AFTER_RULE, fragment) for fragment in spec.on_param),
    ]
    passes, names, inputs = [], list[str](), 0
    for stage, fragment in stages:
        owner = rule if fragment is None else fragment
        memory = owner.memory
        if memory is None:
            continue
        prefix = "" if fragment is None else f"{fragment.name}_"
        first = len(names)
        names += [prefix + name for name in (*memory.handed, *memory.scalars)]
        middle = first + len(memory.handed)
        given, inputs = inputs, inputs + len(memory.inputs)
        columns = slice(first, middle), slice(middle, len(names)), slice(given, inputs)
        passes.append(Pass(stage, owner.sums, memory, fragment, *columns))
    return Derived(tuple(passes), tuple(names))


def number_name(name: str) -> str:
    """Return what a scalar of the rule is called in generated text, apart from all other names."""
    return f"{name}_number"


def fragment_names(fragment: Fragment) -> tuple[str, ...]:
    """Return the names that a fragment's scalars and derived scalars have in an update."""
    memory = fragment.memory
    own = (*fragment.scalars, *((*memory.handed, *memory.scalars) if memory else ()))
    return tuple(f"{fragment.name}_{name}" for name in own)
