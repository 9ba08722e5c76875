"""What a backend is: the protocols that it implements, and the scalars common to all rules."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastopt.core.arrays import Array
from fastopt.core.buckets import Arena, Parameter
from fastopt.core.dtypes import Format
from fastopt.core.loss_scale import Scale, ScalePolicy
from fastopt_kernels import Rule

# -------------------------------------------------------------------------------------------------
# What a backend offers on whose device the scale of a loss can be kept.

Answer = tuple[Array, int]
"""Where it stands whether a step was made: memory of the device, and the place in it."""


class ScaleTold(NamedTuple):
    """What the device says; ``given_up`` are skips in a row that were too many (0: none)."""

    scale: Scale
    given_up: int


class ScaleMemory(Protocol):
    """A scale in a device's memory."""

    @property
    def device(self) -> int | None:
        """The number of the device."""

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, of shape ()."""

    def factor(self, dtype: np.dtype[Any]) -> Array:
        """Return what a loss is multiplied by, of shape () and in float32 or float64."""

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""

    def send(self, scale: Scale) -> None:
        """Write the scale and what is counted."""

    def place(self) -> Answer:
        """Return a place for the answer whether the coming step is made."""

    @property
    def place_of_captured(self) -> Answer:
        """The place for what nobody can ask."""

    def follow(self, counts: Array, answer: Answer) -> None:
        """Launch what brings the scale up to date after a decision."""

    def request(self) -> None:
        """Have all of it copied to the host, some time; ``arrived`` returns it."""

    def arrived(self) -> ScaleTold | None:
        """Return what was asked for, once, if it is here; else None."""

    def fetch(self) -> ScaleTold:
        """Wait for all that the device has to do, and return what it says."""

    def answer(self, given: Answer) -> bool:
        """Wait, and return whether a step was made."""

    def forget_given_up(self) -> None:
        """Write that the host has heard of too many skips."""


# -------------------------------------------------------------------------------------------------
# What a backend offers on whose device steps can be decided: counts, settings, launches.


class Counts(NamedTuple):
    """What the device knows of the steps so far.

    ``clock`` of them were made, ``skipped`` were not, for what was in a gradient, and
    ``overrun`` were not because no row of scalars was there for them. ``norm`` is that of the last
    one's gradients, -1 where it was not measured.
    """

    clock: int
    skipped: int
    overrun: int
    norm: float


class Settings(NamedTuple):
    """What the device decides by.

    The tables hold ``length`` rows, from that of step count ``base`` on; of these the last
    ``period`` come again and again after the end, if it is not 0. ``clips``: the norm is brought
    down to ``limit``. ``skips``: a step is left out if a gradient is not finite, or squares
    overflow (see ``engine.policy``).
    """

    base: int
    length: int
    period: int
    clips: bool
    skips: bool
    limit: float


class Lanes(NamedTuple):
    """What is measured of the ``pieces`` of all gradients, lane by lane (see ``norms``).

    The sums of squares; with ``wide`` then those of the gradients multiplied by each other factor
    that they may need.
    """

    pieces: int
    wide: bool


class DeviceSide(Protocol):
    """What a driver does by numbers that stand in its device's memory."""

    wide: bool
    """Whether the squares of its gradients can leave the range of float64."""

    def gradients(self) -> list[Array]:
        """Return the gradients of the coming step."""

    def pieces(self) -> int:
        """Return how many pieces the gradients have, see ``core.norms``."""

    def measure_to(self, lanes: Array, first: int, layout: Lanes) -> None:
        """Write what is measured of its gradients, from the place of its first piece on."""

    def update_by(self, given: tuple[Array, ...], mine: Array | None, always: bool) -> None:
        """Update the parameters that are chosen by ``mine`` (None: all) and have a gradient.

        ``given`` are the counts, the scale and the table. ``always`` launches without gradients
        too.
        """


class Control(Protocol):
    """The memory of an optimizer's decisions, and the launches that make and use them."""

    can_capture: bool
    """Whether steps can be captured in a graph."""

    requested: bool
    """Whether counts are on their way."""

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""

    def send_counts(self, counts: Counts) -> None:
        """Write the counts."""

    def send_settings(self, settings: Settings) -> None:
        """Write the settings."""

    def table(self, name: Hashable, rows: Array, capacity: int) -> Array:
        """Write the rows of a table into its memory, which has room for so many; return it."""

    def measure(self, sides: Sequence[DeviceSide]) -> None:
        """Measure all gradients."""

    def decide(self, grad_scale: Any, measured: bool, squares: bool) -> None:
        """Decide on a step, by what was measured last if that is so.

        ``squares`` says whether some rule averages squares in float32, which can overflow.
        """

    def update(
        self, side: DeviceSide, tables: Sequence[tuple[Array | None, Array]], always: bool
    ) -> None:
        """Update parameters by the row that was decided on.

        Each of the ``tables`` comes with which parameters are updated by it (None: all).
        ``always`` launches without gradients too, which compiles what is needed.
        """

    def scale(self, policy: ScalePolicy) -> ScaleMemory:
        """Return memory for the scale of a loss."""

    def rescale(self, scale: ScaleMemory, answer: Answer) -> None:
        """Have a scale follow the last decision, and write whether the step was made."""

    def request(self) -> None:
        """Have the counts copied to the host, some time; ``arrived`` returns them."""

    def arrived(self) -> Counts | None:
        """Return the counts that were asked for, once, if they are here; else None."""

    def fetch(self) -> Counts:
        """Wait for all that the device has to do, and return the counts."""

    def wait(self) -> None:
        """Wait until what was written is there, for steps on any stream."""


COMMON_SCALARS = ("grad_scale", "l2", "decay", "tiny_signed", "tiny_positive")
"""What every update gets before its rule's own scalars, and every backend applies around a rule:

grad <- grad_scale * grad;  grad <- grad + l2 * param;  param <- param - decay * param;  rule;
state whose magnitude is below tiny_signed or tiny_positive becomes 0.
"""


def tiny_names(rule: Rule) -> dict[str, str]:
    """Return for each state slot of a rule the common scalar below which it becomes 0."""
    return {slot: "tiny_signed" if slot in rule.signed else "tiny_positive" for slot in rule.state}


class StepAtOnce(Protocol):
    """A whole step of a bucket in one call."""

    def __call__(
        self,
        params: list[Array],
        grads: list[Array | None],
        row: Sequence[float],
        steps: Array,
        clock: Array,
    ) -> bool:
        """Look at the arrays, update, and add 1 to ``steps`` and ``clock``.

        Returns False, with nothing changed, if any array is not as usual or a gradient is None.
        """


class Driver(Protocol):
    """Runs one rule over the parameters of one bucket, which it knows from its construction."""

    step_at_once: StepAtOnce | None
    """Look, update and count in one call that nothing interrupts; None if the driver cannot."""

    device_side: DeviceSide | None
    """What it does by decisions that were made on its device; None if that is the host."""

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need (with ``norm`` the sum of squares too); step nothing."""

    def take_usual(self, params: list[Array], grads: list[Array | None]) -> int | None:
        """Take a step's gradients if all arrays are as usual, and return how many are None.

        Returns None if one is not: then the caller looks at them all, and calls ``take_flat``.
        """

    def take_flat(self, grads: Sequence[Array | None]) -> None:
        """Take a step's gradients as flat real numbers.

        All are of the dtype in which the parameters are stored, or all of that of the arithmetic.
        """

    def squares(self, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient) by pieces, as in ``core.norms``.

        Parameter after parameter; the pieces of a missing gradient are 0.
        """

    def update(self, table: Sequence[Sequence[float]], rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None.

        ``table`` holds rows of scalars (the common ones, then the rule's); ``rows`` says which row
        each parameter takes, None that all take the first.
        """


class Backend(Protocol):
    """Makes drivers; knows where state lives."""

    name: str
    bridges_gaps: bool
    """Whether drivers reach the elements of arrays with gaps; else they get flat copies."""
    alignment: int
    """The pieces of the state arena begin at multiples of this many elements."""

    def allocate(self, like: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return zeros, on the device of the array ``like``."""

    def driver(
        self, rule: Rule, parameters: Sequence[Parameter], arena: Arena, format: Format
    ) -> Driver:
        """Return the driver of some parameters, whose state is in the arena at their offsets.

        The slots of the arena are those of the rule, ``format.masters`` and ``format.limits``; the
        scalars are the common ones, those of the rule, and ``format.scalars``.
        """

    def control(self, like: Array) -> Control | None:
        """Return what steps are decided with on the array's device; None if that is the host."""
