"""What a backend offers on whose device steps can be decided: counts, settings, launches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from fastopt.arrays import Array
from fastopt.backends.scale_memory import Answer, ScaleMemory
from fastopt.scale_policy import ScalePolicy


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
    overflow (see ``fastopt.overflow``).
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
        """Return how many pieces the gradients have, see ``fastopt.norms``."""

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
